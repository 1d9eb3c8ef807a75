"""Boxes, square crops, and the exact maps between crop and frame.

Conventions, used everywhere in the project:

* A *box* is ``(x, y, w, h)``: top-left corner and size, float pixels of the full frame.
* Coordinates are continuous: pixel ``i`` covers ``[i, i + 1)``, so an image of width W spans
  ``[0, W]`` and no formula needs a ``+ 1``.
* ``cxcywh`` is the same box as centre and size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.uint8]
"""A frame or a crop: (H, W, 3) uint8, channels in OpenCV's order (BGR)."""


class Box(NamedTuple):
    """An axis-aligned box: top-left corner and size in frame pixels."""

    x: float
    y: float
    w: float
    h: float

    @property
    def cx(self) -> float:
        return self.x + self.w / 2

    @property
    def cy(self) -> float:
        return self.y + self.h / 2

    @classmethod
    def from_cxcywh(cls, cx: float, cy: float, w: float, h: float) -> Box:
        return cls(cx - w / 2, cy - h / 2, w, h)


def validate_box(box: Box, frame_size: tuple[int, int]) -> Box:
    """Returns ``box`` as floats, or raises ValueError with a sentence that says what is wrong.

    Args:
        box: the box in frame pixels.
        frame_size: (width, height) of the frame.
    """
    box = Box(*(float(value) for value in box))
    width, height = frame_size
    shown = f"box x={box.x:g} y={box.y:g} w={box.w:g} h={box.h:g}"
    if not all(math.isfinite(value) for value in box):
        raise ValueError(f"{shown} is not finite")
    if box.w <= 0 or box.h <= 0:
        raise ValueError(f"{shown} is empty: width and height must be positive")
    if box.w < 2 or box.h < 2:
        raise ValueError(f"{shown} is too small: at least 2 px a side")
    inside = intersection_area(box, Box(0.0, 0.0, width, height))
    if inside <= 0:
        raise ValueError(f"{shown} lies outside the {width}x{height} image")
    if box.w > 2 * width or box.h > 2 * height:
        raise ValueError(f"{shown} is more than twice as large as the {width}x{height} image")
    return box


def intersection_area(a: Box, b: Box) -> float:
    """Area shared by two boxes, in px^2."""
    w = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
    h = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
    return max(w, 0.0) * max(h, 0.0)


def share_inside(box: Box, frame_size: tuple[int, int]) -> float:
    """How much of ``box``, which is not empty, lies in a (width, height) frame, of as much as there
    can, 0..1."""
    width, height = frame_size
    possible = min(box.w, width) * min(box.h, height)
    return intersection_area(box, Box(0.0, 0.0, width, height)) / possible


def iou(a: npt.ArrayLike, b: npt.ArrayLike) -> FloatArray:
    """Intersection over union of boxes ``(..., 4)`` as (x, y, w, h), broadcasting; NaN stays NaN.

    The rule is continuous (no ``+ 1``); the overlap of two empty boxes is 0.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    inter = np.prod(np.maximum(high - low, 0.0), axis=-1)
    union = np.prod(a[..., 2:], axis=-1) + np.prod(b[..., 2:], axis=-1) - inter
    return np.asarray(inter / np.where(union > 0, union, 1.0))


def to_cxcywh(boxes: npt.ArrayLike) -> FloatArray:
    """(..., 4) boxes from (x, y, w, h) to (cx, cy, w, h)."""
    boxes = np.asarray(boxes, dtype=np.float64)
    return np.concatenate([boxes[..., :2] + boxes[..., 2:] / 2, boxes[..., 2:]], axis=-1)


def to_xywh(boxes: npt.ArrayLike) -> FloatArray:
    """(..., 4) boxes from (cx, cy, w, h) to (x, y, w, h)."""
    boxes = np.asarray(boxes, dtype=np.float64)
    return np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., 2:]], axis=-1)


def _resized(image: Image, width: int, height: int) -> Image:
    """An image at another size: halved as often as that goes, each pixel the mean of four, then
    bilinear. The mean over each new pixel's whole area takes several times as long, and the
    network fares no better with it."""
    while image.shape[1] >= 2 * width and image.shape[0] >= 2 * height:
        half = image.shape[1] // 2, image.shape[0] // 2
        image = np.asarray(cv2.resize(image, half, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return np.asarray(cv2.resize(image, (width, height)), dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Crop:
    """A square of the frame, resampled to ``size`` x ``size`` pixels for the network.

    The corner and the side are whole pixels, so that cutting is a copy and the map between crop
    and frame is exact; the square may reach over the frame's edge.

    Attributes:
        x, y: top-left corner in frame pixels (may be negative).
        side: side of the square in frame pixels.
        size: side of the resampled crop in crop pixels.
    """

    x: int
    y: int
    side: int
    size: int

    @classmethod
    def around(cls, box: Box, factor: float, size: int) -> Crop:
        """The square centred on ``box`` whose side is ``factor`` * sqrt(w * h)."""
        return cls.centred(box.cx, box.cy, factor * math.sqrt(max(box.w * box.h, 1.0)), size)

    @classmethod
    def centred(cls, cx: float, cy: float, side: float, size: int) -> Crop:
        whole = max(round(side), 4)
        whole -= whole % 2 ** max(math.floor(math.log2(whole / size)), 0)  # can be halved, see cut
        return cls(round(cx - whole / 2), round(cy - whole / 2), whole, size)

    @property
    def scale(self) -> float:
        """Crop pixels for one frame pixel."""
        return self.size / self.side

    def cut(self, frame: Image) -> Image:
        """(size, size, 3) crop of ``frame``; what lies outside the frame gets the mean colour
        of what lies inside the square."""
        height, width = frame.shape[:2]
        x0, y0 = max(self.x, 0), max(self.y, 0)
        x1, y1 = min(self.x + self.side, width), min(self.y + self.side, height)
        if x1 <= x0 or y1 <= y0:
            return np.full((self.size, self.size, 3), cv2.mean(frame)[:3], dtype=np.uint8)
        if self.side > 2 * max(width, height):
            return self._small(frame[y0:y1, x0:x1], x0 - self.x, y0 - self.y)
        inner = frame[y0:y1, x0:x1]
        if (x1 - x0, y1 - y0) != (self.side, self.side):
            border = (y0 - self.y, self.y + self.side - y1, x0 - self.x, self.x + self.side - x1)
            mean = cv2.mean(inner)
            inner = np.asarray(
                cv2.copyMakeBorder(inner, *border, cv2.BORDER_CONSTANT, value=mean), dtype=np.uint8
            )
        return _resized(inner, self.size, self.size)

    def _small(self, inner: Image, left: int, top: int) -> Image:
        """A crop that is mostly border: the part inside is scaled first, to whole crop pixels,
        since the square itself may take gigabytes."""
        x0, y0 = (min(round(at * self.scale), self.size - 1) for at in (left, top))
        height, width = inner.shape[:2]
        x1 = min(max(round((left + width) * self.scale), x0 + 1), self.size)
        y1 = min(max(round((top + height) * self.scale), y0 + 1), self.size)
        out = np.full((self.size, self.size, 3), cv2.mean(inner)[:3], dtype=np.uint8)
        out[y0:y1, x0:x1] = _resized(inner, x1 - x0, y1 - y0)
        return out

    def to_unit(self, box: Box) -> FloatArray:
        """(cx, cy, w, h) of a frame box in units of the crop's side (the crop is [0, 1]^2)."""
        return (
            np.array([(box.cx - self.x), (box.cy - self.y), box.w, box.h], dtype=np.float64)
            / self.side
        )

    def to_frame(self, unit: npt.ArrayLike) -> Box:
        """The frame box of (cx, cy, w, h) in units of the crop's side; inverse of `to_unit`."""
        cx, cy, w, h = (float(value) * self.side for value in np.asarray(unit, dtype=np.float64))
        return Box.from_cxcywh(cx + self.x, cy + self.y, w, h)


def crop_motion(old: Crop, new: Crop) -> tuple[float, float, float]:
    """(dx, dy, s) between two crops: the point u of ``new`` is the point s * u + (dx, dy) of
    ``old``, both in units of their own side; (0, 0, 1) when they agree."""
    return (new.x - old.x) / old.side, (new.y - old.y) / old.side, new.side / old.side


def clip_to_frame(box: Box, frame_size: tuple[int, int]) -> Box:
    """``box`` cut at the borders of a (width, height) frame; empty (w or h 0) when outside."""
    width, height = frame_size
    x0, y0 = min(max(box.x, 0.0), width), min(max(box.y, 0.0), height)
    x1 = min(max(box.x + box.w, 0.0), width)
    y1 = min(max(box.y + box.h, 0.0), height)
    return Box(x0, y0, x1 - x0, y1 - y0)
