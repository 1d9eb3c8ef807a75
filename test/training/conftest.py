"""A training folder as small as it goes, made by the tests, and a config that uses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vil_tracker_core.geometry import Image
from vil_tracker_core.training.config import TrainConfig

MakeConfig = Callable[..., TrainConfig]


def _photograph(rng: np.random.Generator) -> Image:
    small = rng.integers(0, 255, size=(6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(small, (160, 120), interpolation=cv2.INTER_CUBIC))


def _video(folder: Path, rng: np.random.Generator, frames: int, masked: bool) -> None:
    (folder / "img").mkdir(parents=True)
    (folder / "mask").mkdir()
    ground, rows = _photograph(rng), []
    for index in range(frames):
        frame, mask = ground.copy(), np.zeros((120, 160), np.uint8)
        x, y = 40 + 3 * index, 60 - 2 * index
        for image, colour in ((frame, (30, 40, 230)), (mask, 255)):
            cv2.ellipse(image, (x, y), (16, 11), 0, 0, 360, colour, -1)
        cv2.imwrite(str(folder / "img" / f"{index + 1:08d}.jpg"), frame)
        if masked:
            cv2.imwrite(str(folder / "mask" / f"{index + 1:08d}.png"), mask)
        rows.append(f"{x - 16},{y - 11},33,23\n")
    (folder / "groundtruth_rect.txt").write_text("".join(rows))


@pytest.fixture(scope="session")
def training_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """video/{car,cat,held}, boxed/, still/ with photographs and still/stamps/ with cut-outs."""
    root = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(0)
    for name in ("car", "cat", "held"):
        _video(root / "video" / name, rng, frames=8, masked=name != "car")
    (root / "boxed").mkdir()
    cv2.imwrite(str(root / "boxed" / "street.jpg"), _photograph(rng))
    (root / "boxed" / "street.csv").write_text("50,40,30,24\n90,60,24,30\n")
    (root / "still" / "stamps").mkdir(parents=True)
    for index in range(2):
        cv2.imwrite(str(root / "still" / f"{index}.jpg"), _photograph(rng))
        stamp = np.zeros((40, 60, 4), np.uint8)
        cv2.ellipse(stamp, (30, 20), (26, 16), 0, 0, 360, (40 + 90 * index, 200, 60, 255), -1)
        cv2.imwrite(str(root / "still" / "stamps" / f"{index}.png"), stamp)
    return root


@pytest.fixture
def make_config(training_folder: Path) -> MakeConfig:
    """A function (data={...}, **changes) -> config of a short run of vil_tiny on the folder."""

    def make(data: dict[str, Any] | None = None, **changes: Any) -> TrainConfig:
        folders = {
            "videos": [training_folder / "video"],
            "boxed": [training_folder / "boxed"],
            "stills": [training_folder / "still"],
            "cutouts": [training_folder / "still" / "stamps"],
            "hold_out": ["held"],
            "workers": 0,
        }
        values: dict[str, Any] = {
            "model": "vil_tiny",
            "data": {**folders, **(data or {})},
            "steps": 6,
            "batch": 4,
            "warmup": 2,
        }
        return TrainConfig.model_validate({**values, **changes})

    return make


@pytest.fixture
def teacher_network(tmp_path: Path) -> Path:
    """image (1, 3, 16, 16) -> mean over 4x4 patches, times 2 ("inner") -> a sum ("out")."""
    weight = np.zeros((3, 3, 4, 4), dtype=np.float32)
    for channel in range(3):
        weight[channel, channel] = 1 / 16
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["patches"], strides=[4, 4]),
        helper.make_node("Mul", ["patches", "two"], ["inner"]),
        helper.make_node("ReduceSum", ["inner"], ["out"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array(2.0, dtype=np.float32), "two"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path / "teacher.onnx"
    onnx.save(model, str(path))
    return path
