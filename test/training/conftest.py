"""A training folder as small as it goes, made by the tests, and a config that uses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from vil_tracker_core.geometry import Image
from vil_tracker_core.training.batches import TaughtClips
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


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., dict[str, Tensor]]:
    """A function (config, micro=0) -> the micro-batch of that number."""

    def batch(config: TrainConfig, micro: int = 0) -> dict[str, Tensor]:
        clips = TaughtClips(config)
        items = [clips[micro * config.batch + index] for index in range(config.batch)]
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}

    return batch


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


def _mean_of_cells(
    name: str, image: str, out: str, size: int, channels: int, pad: tuple[int, int]
) -> tuple[onnx.NodeProto, onnx.TensorProto]:
    """A convolution: means over colours and size x size px, 16 px apart, in equal channels."""
    weight = np.full((channels, 3, size, size), 1 / (3 * size * size), dtype=np.float32)
    pads = [pad[0], pad[0], pad[1], pad[1]]
    node = helper.make_node("Conv", [image, name], [out], strides=[16, 16], pads=pads)
    return node, numpy_helper.from_array(weight, name)


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int]],
    outputs: dict[str, list[int]],
    constants: list[onnx.TensorProto],
) -> None:
    def info(values: dict[str, list[int]]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in values.items()
        ]

    graph = helper.make_graph(nodes, "teacher", info(inputs), info(outputs), constants)
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))


def _constant(name: str, values: object) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.float32), name)


@pytest.fixture(scope="session")
def fear_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks of FEAR-XS's layout whose answers can be worked out.

    features: the mean brightness of each 16 px cell. cls: (brightness around the point - 128) / 8.
    bbox: 20, 10, 30, 40 px to the left, top, right and bottom, times the template's brightness
    over 100.
    """
    folder = tmp_path_factory.mktemp("fear")
    dense, weight = _mean_of_cells("dense_weight", "image", "features", 16, 256, (0, 0))
    _save(
        folder / "fear_xs_template.onnx",
        [dense],
        {"image": [1, 3, 128, 128]},
        {"features": [1, 256, 8, 8]},
        [weight],
    )
    dense, weight = _mean_of_cells("dense_weight", "image", "input.125", 16, 256, (0, 0))
    points, points_weight = _mean_of_cells("points_weight", "image", "bright", 16, 1, (8, 0))
    nodes = [
        dense,
        points,
        helper.make_node("Sub", ["bright", "half"], ["above"]),
        helper.make_node("Div", ["above", "eight"], ["cls"]),
        helper.make_node("ReduceMean", ["template_features"], ["light"], keepdims=1),
        helper.make_node("Mul", ["light", "sides"], ["scaled"]),
        helper.make_node("Mul", ["bright", "zero"], ["blank"]),
        helper.make_node("Add", ["scaled", "blank"], ["bbox"]),
    ]
    sides = np.array([20, 10, 30, 40]).reshape(1, 4, 1, 1) / 100
    constants = [_constant("half", 128), _constant("eight", 8), _constant("zero", 0)]
    _save(
        folder / "fear_xs_track.onnx",
        nodes,
        {"image": [1, 3, 256, 256], "template_features": [1, 256, 8, 8]},
        {"bbox": [1, 4, 16, 16], "cls": [1, 1, 16, 16]},
        [weight, points_weight, _constant("sides", sides), *constants],
    )
    return folder


@pytest.fixture(scope="session")
def nano_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of NanoTrack's layout, in which only the blue channel counts.

    output: blue of each 16 px cell. output1: 0 and (blue around the point - 128) / 8. output2: as
    FEAR-XS's bbox, of the template's blue.
    """
    folder = tmp_path_factory.mktemp("nano")
    node, weight = _mean_of_cells("weight", "input", "output", 16, 96, (0, 1))
    blue = numpy_helper.to_array(weight) * np.array([3, 0, 0]).reshape(1, 3, 1, 1)
    weight = numpy_helper.from_array(blue.astype(np.float32), "weight")
    _save(
        folder / "nanotrack_backbone.onnx",
        [node],
        {"input": [1, 3, 255, 255]},
        {"output": [1, 96, 16, 16]},
        [weight],
    )
    nodes = [
        helper.make_node("AveragePool", ["input2"], ["around"], kernel_shape=[2, 2]),
        helper.make_node("ReduceMean", ["around"], ["bright"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["bright", "half"], ["above"]),
        helper.make_node("Div", ["above", "eight"], ["on"]),
        helper.make_node("Mul", ["bright", "zero"], ["blank"]),
        helper.make_node("Concat", ["blank", "on"], ["output1"], axis=1),
        helper.make_node("ReduceMean", ["input1"], ["light"], keepdims=1),
        helper.make_node("Mul", ["light", "sides"], ["scaled"]),
        helper.make_node("Add", ["scaled", "blank"], ["output2"]),
    ]
    sides = np.array([20, 10, 30, 40]).reshape(1, 4, 1, 1) / 100
    constants = [_constant("half", 128), _constant("eight", 8), _constant("zero", 0)]
    _save(
        folder / "nanotrack_head.onnx",
        nodes,
        {"input1": [1, 96, 8, 8], "input2": [1, 96, 16, 16]},
        {"output1": [1, 2, 15, 15], "output2": [1, 4, 15, 15]},
        [_constant("sides", sides), *constants],
    )
    return folder
