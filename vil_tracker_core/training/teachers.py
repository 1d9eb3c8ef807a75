"""Trained trackers, as ONNX networks, that teach the net while it trains.

A teacher frames its crops in its own way: it sees a window around the middle of ours, of another
size and shape, and answers on a grid of its own. What it says is brought to our crop and grid here,
so that nothing else knows of its scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.geometry import FloatArray, Image
from vil_tracker_core.model.presets import ModelConfig
from vil_tracker_core.training.config import TeacherConfig

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Float32Array = npt.NDArray[np.float32]


class Response(NamedTuple):
    """A teacher's answer in each cell of a G x G grid over our search crop.

    Attributes:
        score: (G, G) in 0..1; 0 where the teacher did not look.
        boxes: (4, G, G) as (cx, cy, w, h) in units of our search crop's side.
    """

    score: Float32Array
    boxes: Float32Array


class Teacher(Protocol):
    """Dense features and answers for our crops, (3, S, S) uint8 RGB."""

    channels: int

    def features(self, search: Image) -> npt.NDArray[np.float16]:
        """(channels, g, g) of a search crop; the grid spans the whole crop."""
        ...

    def respond(self, template: Image, search: Image, aspect: float, grid: int) -> Response:
        """Where the template's target is in the search crop.

        Args:
            template, search: crops of one clip, made with the model's factors.
            aspect: width over height of the target, which a tracker knows from the last frame.
            grid: G of the answer.
        """
        ...


@dataclass(frozen=True)
class Window:
    """What a teacher sees of our crop: same centre, sides in units of our crop's side."""

    width: float
    height: float

    def cut(self, crop: Image, size: int) -> Image:
        """(size, size, 3) RGB of a crop (3, S, S) RGB; beyond its edge lies its mean colour."""
        image = np.ascontiguousarray(crop.transpose(1, 2, 0))
        side = image.shape[0]
        sx, sy = size / (self.width * side), size / (self.height * side)
        # continuous coordinates: (0.5, 0.5) of the crop's side is the middle of both; the centre
        # of pixel i, which OpenCV calls i, lies at i + 0.5
        shift = [size / 2 - s * side / 2 + 0.5 * s - 0.5 for s in (sx, sy)]
        matrix = np.array([[sx, 0, shift[0]], [0, sy, shift[1]]])
        mean = cv2.mean(image)
        return np.asarray(cv2.warpAffine(image, matrix, (size, size), borderValue=mean), np.uint8)


@dataclass(frozen=True)
class Answer:
    """A teacher's raw answer on its own grid.

    Attributes:
        score: (g, g) in 0..1.
        sides: (4, g, g) distances of the box's left, top, right and bottom from the cell's
            point, px of the teacher's search crop.
        first, stride: the points' first coordinate and their distance, px.
        size: side of the teacher's search crop, px.
    """

    score: FloatArray
    sides: FloatArray
    first: float
    stride: float
    size: int

    def boxes(self, window: Window) -> FloatArray:
        """(4, g, g) as (cx, cy, w, h) in units of our crop's side."""
        line = self.first + self.stride * np.arange(self.score.shape[0])
        left, top, right, bottom = self.sides
        x0, x1 = line - left, line + right
        y0, y1 = line[:, None] - top, line[:, None] + bottom
        return np.stack(
            [
                0.5 + ((x0 + x1) / 2 / self.size - 0.5) * window.width,
                0.5 + ((y0 + y1) / 2 / self.size - 0.5) * window.height,
                (x1 - x0) / self.size * window.width,
                (y1 - y0) / self.size * window.height,
            ]
        )

    def _hats(self, extent: float, grid: int) -> FloatArray:
        """(grid, g) weights of the teacher's points in our cells, along one axis: linear
        interpolation, fading out beyond the last point."""
        ours = (np.arange(grid) + 0.5) / grid
        at = ((0.5 + (ours - 0.5) / extent) * self.size - self.first) / self.stride
        distance = np.abs(at[:, None] - np.arange(self.score.shape[0]))
        return np.asarray(np.maximum(0, 1 - distance))

    def on_grid(self, window: Window, grid: int) -> Response:
        """The answer in the cells of a grid over our crop."""
        rows, columns = self._hats(window.height, grid), self._hats(window.width, grid)
        seen = np.outer(rows.sum(1), columns.sum(1))
        boxes = rows @ self.boxes(window) @ columns.T / np.maximum(seen, 1e-9)
        score = rows @ self.score @ columns.T
        return Response(score.astype(np.float32), boxes.astype(np.float32))


def open_network(
    path: Path, inputs: list[str], outputs: list[str], any_size: bool = False
) -> InferenceSession:
    """The part of an ONNX network between tensors, which need not be its inputs or outputs.

    Args:
        path: the .onnx file.
        inputs, outputs: names of tensors.
        any_size: let the images be of another height and width than the file says.

    Raises:
        DataError: the file is missing or no network, or has no such tensor.
    """
    import onnx
    import onnxruntime
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not path.is_file():
        raise DataError(f"teacher {path} is missing")
    try:
        known = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    except (DecodeError, onnx.shape_inference.InferenceError) as error:
        raise DataError(f"teacher {path} is not a readable ONNX network: {error}") from None
    graph = known.graph
    names = {value.name for value in (*graph.input, *graph.value_info, *graph.output)}
    for name in (*inputs, *outputs):
        if name not in names:
            raise DataError(f"teacher {path} has no tensor {name!r}")
    part = onnx.utils.Extractor(known).extract_model(inputs, outputs)
    if any_size:
        for value in (*part.graph.input, *part.graph.output):
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if axis >= 2:
                    dim.dim_param = f"{value.name}_{axis}"
        del part.graph.value_info[:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        part.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _batch(image: Image) -> Float32Array:
    """(1, 3, H, W) float32 of an image (H, W, 3)."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32)


class FearXs:
    """FEAR-XS (arXiv 2112.07957). RGB; the template is the box grown by 20 % a side, the search
    region by 200 %, each stretched to a square; points lie at 16 i px."""

    channels = 256
    TEMPLATE, SEARCH = 128, 256
    TEMPLATE_FACTOR, SEARCH_FACTOR = 1.4, 5.0

    def __init__(self, folder: Path, model: ModelConfig) -> None:
        self.model = model
        track = folder / "fear_xs_track.onnx"
        self._template = open_network(folder / "fear_xs_template.onnx", ["image"], ["features"])
        self._track = open_network(track, ["image", "template_features"], ["bbox", "cls"])
        self._dense = open_network(track, ["image"], ["input.125"])

    @staticmethod
    def window(factor: float, aspect: float, ours: float) -> Window:
        """Factor times the box, of which our crop's side is ``ours`` times sqrt(w * h)."""
        return Window(factor * math.sqrt(aspect) / ours, factor / math.sqrt(aspect) / ours)

    def features(self, search: Image) -> npt.NDArray[np.float16]:
        image = _batch(Window(1, 1).cut(search, self.SEARCH))
        return np.asarray(self._dense.run(None, {"image": image})[0][0], dtype=np.float16)

    def respond(self, template: Image, search: Image, aspect: float, grid: int) -> Response:
        near = self.window(self.TEMPLATE_FACTOR, aspect, self.model.template_factor)
        wide = self.window(self.SEARCH_FACTOR, aspect, self.model.search_factor)
        (known,) = self._template.run(None, {"image": _batch(near.cut(template, self.TEMPLATE))})
        searched = _batch(wide.cut(search, self.SEARCH))
        sides, logits = self._track.run(None, {"image": searched, "template_features": known})
        score = 1 / (1 + np.exp(-logits[0, 0].astype(np.float64)))
        answer = Answer(score, sides[0].astype(np.float64), 0.0, 16.0, self.SEARCH)
        return answer.on_grid(wide, grid)


class NanoTrack:
    """NanoTrack v3. BGR; square crops with SiamFC's context, (w + h) / 2 added to both sides;
    points lie 16 px apart around the middle."""

    channels = 96
    TEMPLATE, SEARCH = 127, 255

    def __init__(self, folder: Path, model: ModelConfig) -> None:
        self.model = model
        path = folder / "nanotrack_backbone.onnx"
        self._backbone = open_network(path, ["input"], ["output"], any_size=True)
        heads = ["input1", "input2"], ["output1", "output2"]
        self._head = open_network(folder / "nanotrack_head.onnx", *heads)

    @staticmethod
    def window(size: int, aspect: float, ours: float) -> Window:
        """Of ``size`` px where the template takes 127, over our crop's factor."""
        w, h = math.sqrt(aspect), 1 / math.sqrt(aspect)  # of a target with sqrt(w * h) = 1
        context = (w + h) / 2
        side = math.sqrt((w + context) * (h + context)) * size / NanoTrack.TEMPLATE / ours
        return Window(side, side)

    def _look(self, window: Window, crop: Image, size: int) -> Float32Array:
        image = _batch(window.cut(crop, size)[..., ::-1])
        return np.asarray(self._backbone.run(None, {"input": image})[0], dtype=np.float32)

    def features(self, search: Image) -> npt.NDArray[np.float16]:
        return np.asarray(self._look(Window(1, 1), search, self.SEARCH)[0], dtype=np.float16)

    def respond(self, template: Image, search: Image, aspect: float, grid: int) -> Response:
        near = self.window(self.TEMPLATE, aspect, self.model.template_factor)
        wide = self.window(self.SEARCH, aspect, self.model.search_factor)
        known = self._look(near, template, self.TEMPLATE)
        seen = self._look(wide, search, self.SEARCH)
        logits, sides = self._head.run(None, {"input1": known, "input2": seen})
        off, on = logits[0].astype(np.float64)
        first = self.SEARCH / 2 - 16 * (len(on) - 1) / 2
        answer = Answer(
            1 / (1 + np.exp(off - on)), sides[0].astype(np.float64), first, 16.0, self.SEARCH
        )
        return answer.on_grid(wide, grid)


KINDS: dict[str, type[FearXs] | type[NanoTrack]] = {"fear_xs": FearXs, "nanotrack": NanoTrack}


def open_teacher(config: TeacherConfig, model: ModelConfig) -> Teacher:
    """The configured teacher of a net with these crops; raises DataError naming a bad file."""
    return KINDS[config.kind](config.folder, model)
