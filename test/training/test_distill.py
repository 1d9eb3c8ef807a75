"""Teachers: the wanted tensor comes out of the network, and the loss compares with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.training.config import load_config
from vil_tracker_core.training.distill import FeatureDistillation, OnnxTeacher

SIZE = 16
"""Side of the image that `teacher_network` takes."""

SHIPPED = Path(__file__).parents[2] / "config" / "train" / "nano_local.yaml"


def test_inner_tensor_of_a_crop(teacher_network: Path) -> None:
    teacher = OnnxTeacher(teacher_network, "inner")
    assert (teacher.channels, teacher.size) == (3, SIZE)
    crop = np.random.default_rng(0).integers(0, 256, size=(3, SIZE, SIZE), dtype=np.uint8)
    found = teacher.features(crop)
    assert found.dtype == np.float16
    expected = 2 * crop.reshape(3, 4, 4, 4, 4).mean(axis=(2, 4))
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_crop_is_resized_to_the_teachers_input(teacher_network: Path) -> None:
    teacher = OnnxTeacher(teacher_network, "inner")
    colours = np.array([10, 100, 200], dtype=np.uint8)
    crop = np.broadcast_to(colours[:, None, None], (3, 40, 40))
    expected = np.broadcast_to(2.0 * colours[:, None, None], (3, 4, 4))
    np.testing.assert_allclose(teacher.features(crop), expected, rtol=1e-3)
    left = np.zeros((3, 40, 40), dtype=np.uint8)
    left[:, :, :20] = 200
    columns = teacher.features(left)[0].mean(axis=0)
    assert columns[0] > 390
    assert columns[-1] < 10


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.onnx is missing"):
        OnnxTeacher(tmp_path / "gone.onnx", "inner")


def test_unknown_tensor_is_named(teacher_network: Path) -> None:
    with pytest.raises(DataError, match=r"teacher\.onnx.*'nothing'"):
        OnnxTeacher(teacher_network, "nothing")


def test_unknown_input_is_named(teacher_network: Path) -> None:
    with pytest.raises(DataError, match=r"teacher\.onnx.*'picture'"):
        OnnxTeacher(teacher_network, "inner", image="picture")


def test_file_that_is_no_network_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a network")
    with pytest.raises(DataError, match=r"broken\.onnx"):
        OnnxTeacher(path, "inner")


def test_shipped_configs_teacher() -> None:
    wanted = load_config(SHIPPED).teacher
    assert wanted is not None
    path = SHIPPED.parents[2] / wanted.path
    if not path.is_file():
        pytest.skip(f"the teacher {wanted.path} is not on this machine")
    teacher = OnnxTeacher(path, wanted.tensor)
    crop = np.random.default_rng(0).integers(0, 256, size=(3, 224, 224), dtype=np.uint8)
    found = teacher.features(crop)
    assert found.shape == (teacher.channels, 16, 16) == (256, 16, 16)
    assert np.isfinite(found).all()
    assert found.std() > 0


def test_perfect_map_costs_nothing() -> None:
    torch.manual_seed(0)
    loss = FeatureDistillation(12, 5)
    tokens = torch.randn(2, 16, 12)
    made = loss.map(tokens).detach().transpose(1, 2).unflatten(-1, (4, 4))
    assert loss(tokens, made).item() == pytest.approx(0, abs=1e-6)
    assert loss(tokens, 7 * made).item() == pytest.approx(0, abs=1e-6)  # directions alone count
    assert loss(tokens, -made).item() == pytest.approx(2, abs=1e-6)


def test_tokens_run_along_rows() -> None:
    loss = FeatureDistillation(2, 2)
    with torch.no_grad():
        loss.map.weight.copy_(torch.eye(2))
        loss.map.bias.zero_()
    tokens = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    tokens[1] = torch.tensor([0.0, 1.0])  # row 0, column 1 of 2 x 2
    wanted = torch.zeros(1, 2, 2, 2)
    wanted[0, 0] = 1
    wanted[0, :, 0, 1] = torch.tensor([0.0, 1.0])
    assert loss(tokens[None], wanted).item() == pytest.approx(0, abs=1e-6)
    assert loss(tokens[None], wanted.transpose(2, 3)).item() == pytest.approx(0.5)


def test_grid_of_the_teacher_is_resampled() -> None:
    """A map that is linear over the teacher's 8 x 8 grid is the same line on the student's 4."""
    loss = FeatureDistillation(2, 2)
    with torch.no_grad():
        loss.map.weight.copy_(torch.eye(2))
        loss.map.bias.zero_()

    def line(grid: int) -> torch.Tensor:
        at = (torch.arange(grid) + 0.5) / grid
        y, x = torch.meshgrid(at, at, indexing="ij")
        return torch.stack([1 + x, 2 - y])[None]

    tokens = line(4).flatten(2).transpose(1, 2)
    assert loss(tokens, line(8)).item() == pytest.approx(0, abs=1e-6)
    assert loss(tokens, line(8).half()).item() == pytest.approx(0, abs=1e-4)
    assert loss(tokens, line(8).flip(3)).item() > 1e-3


def test_gradient_reaches_the_tokens() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 16, 12, requires_grad=True)
    FeatureDistillation(12, 5)(tokens, torch.randn(2, 5, 8, 8)).backward()
    assert tokens.grad is not None
    assert (tokens.grad.abs().sum(-1) > 0).all()
