"""Short made-up videos with exact truth: cut-outs that move over photographs, and stills panned.

Everything is a pure function of the random generator that comes in, so a seed gives the same
pixels. The videos are small and short: they exist to be cut into training clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from vil_tracker_core.data.sequence import DataError, Sequence, read_image
from vil_tracker_core.geometry import Box, FloatArray, Image, intersection_area

CANVAS = (384, 320)
"""(width, height) of a composed frame, px."""

Rng = np.random.Generator


@dataclass(frozen=True)
class Cutout:
    """An object with its transparency.

    Attributes:
        bgra: (H, W, 4) uint8, colour multiplied by alpha.
        hull: (N, 2) float64 convex hull of the opaque part, in pixels of ``bgra``.
    """

    bgra: Image
    hull: FloatArray

    @property
    def extent(self) -> float:
        """sqrt(w * h) of the opaque part's bounding box, px."""
        w, h = np.ptp(self.hull, axis=0)
        return math.sqrt(max(float(w * h), 1.0))


def make_cutout(bgra: Image, max_side: int = 160) -> Cutout | None:
    """The cut-out of a (H, W, 4) BGRA image; None where hardly anything is opaque."""
    # before shrinking: where transparent pixels blend in, their hidden colour must not count
    alpha = bgra[..., 3:].astype(np.float32) / 255
    colour = (bgra[..., :3] * alpha + 0.5).astype(np.uint8)
    bgra = np.concatenate([colour, bgra[..., 3:]], axis=-1)
    scale = max_side / max(bgra.shape[:2])
    if scale < 1:
        bgra = np.asarray(
            cv2.resize(bgra, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), dtype=np.uint8
        )
    opaque = bgra[..., 3] > 127
    if opaque.sum() < 64 or min(bgra.shape[:2]) < 8:
        return None
    rows = np.flatnonzero(opaque.any(axis=1))  # the hull needs only the ends of each row
    left = opaque[rows].argmax(axis=1)
    right = opaque.shape[1] - opaque[rows, ::-1].argmax(axis=1)
    ends = [np.stack([x, rows + dy], axis=1) for x in (left, right) for dy in (0, 1)]
    hull = cv2.convexHull(np.concatenate(ends).astype(np.int32))[:, 0].astype(np.float64)
    return Cutout(bgra, hull)


def read_cutout(path: Path) -> Cutout | None:
    """The cut-out of a PNG with alpha; None where it has no alpha or hardly anything opaque."""
    bgra = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if bgra is None:
        raise DataError(f"{path} is not a readable image")
    if bgra.ndim != 3 or bgra.shape[2] != 4 or bgra.dtype != np.uint8:
        return None
    return make_cutout(np.asarray(bgra, dtype=np.uint8))


def masked_cutout(frame: Image, mask: Image) -> Cutout | None:
    """The cut-out of the object that ``mask`` (H, W) marks by values above 0 in a frame."""
    rows, columns = np.nonzero(mask)
    if len(rows) < 200:
        return None
    part = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    soft = cv2.GaussianBlur((mask[part] > 0).astype(np.uint8) * 255, (3, 3), 0)
    return make_cutout(np.dstack([frame[part], soft]).astype(np.uint8))


@dataclass(frozen=True)
class Mover:
    """A cut-out and its course: all lengths in canvas px, angles in radians, time in frames."""

    cutout: Cutout
    at: FloatArray  # (2,) centre at time 0
    velocity: FloatArray  # (2,) a frame
    extent: float  # sqrt(w * h) at time 0
    growth: float  # log of the extent's growth a frame
    angle: float
    spin: float  # a frame
    aspect: float  # width stretch over height stretch
    mirrored: bool

    def affine(self, time: float) -> FloatArray:
        """(2, 3) map from the cut-out's pixels to the canvas at a time."""
        scale = self.extent * math.exp(self.growth * time) / self.cutout.extent
        angle = self.angle + self.spin * time
        stretch = np.diag([scale * math.sqrt(self.aspect), scale / math.sqrt(self.aspect)])
        if self.mirrored:
            stretch[0, 0] *= -1
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        linear = turn @ stretch
        middle = (self.cutout.hull.min(axis=0) + self.cutout.hull.max(axis=0)) / 2
        place = self.at + self.velocity * time
        return np.concatenate([linear, (place - linear @ middle)[:, None]], axis=1)

    def box(self, time: float) -> Box:
        """The exact bounding box of the opaque part at a time, canvas px."""
        matrix = self.affine(time)
        points = self.cutout.hull @ matrix[:, :2].T + matrix[:, 2]
        low, high = points.min(axis=0), points.max(axis=0)
        return Box(*low.tolist(), *(high - low).tolist())

    def paint(self, canvas: Image, time: float, gain: float = 1.0) -> None:
        """Draws the cut-out onto (H, W, 3) ``canvas``, brightness times ``gain``."""
        box = self.box(time)
        x0, y0 = max(math.floor(box.x) - 2, 0), max(math.floor(box.y) - 2, 0)
        x1 = min(math.ceil(box.x + box.w) + 2, canvas.shape[1])
        y1 = min(math.ceil(box.y + box.h) + 2, canvas.shape[0])
        if x1 <= x0 or y1 <= y0:
            return
        matrix, bgra = self.affine(time), self.cutout.bgra
        scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
        if scale < 0.6:  # shrink by area first: sampling alone would alias
            height, width = bgra.shape[:2]
            small = (max(round(width * scale), 2), max(round(height * scale), 2))
            bgra = np.asarray(cv2.resize(bgra, small, interpolation=cv2.INTER_AREA), dtype=np.uint8)
            matrix = matrix.copy()
            matrix[:, 0] *= width / small[0]
            matrix[:, 1] *= height / small[1]
        # to OpenCV's pixel-centre coordinates, and into the window
        matrix = matrix.copy()
        matrix[:, 2] += matrix[:, :2] @ np.array([0.5, 0.5]) - 0.5 - np.array([x0, y0])
        layer = cv2.warpAffine(bgra, matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
        window = canvas[y0:y1, x0:x1]
        alpha = layer[..., 3:].astype(np.float32) / 255
        mixed = window * (1 - alpha) + layer[..., :3].astype(np.float32) * gain
        np.copyto(window, np.clip(mixed, 0, 255).astype(np.uint8))


def _hue_shifted(cutout: Cutout, shift: int) -> Cutout:
    """The same object in another colour; ``shift`` in OpenCV's hue units (180 a turn)."""
    hsv = cv2.cvtColor(np.ascontiguousarray(cutout.bgra[..., :3]), cv2.COLOR_BGR2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(np.int32) + shift) % 180
    colour = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    return replace(cutout, bgra=np.dstack([colour, cutout.bgra[..., 3]]).astype(np.uint8))


def _random_mover(
    rng: Rng, cutout: Cutout, extent: float, speed: float, apart_from: Mover | None = None
) -> Mover:
    width, height = CANVAS
    heading = rng.uniform(0, 2 * math.pi)
    for _ in range(20):
        at = rng.uniform((0.2 * width, 0.2 * height), (0.8 * width, 0.8 * height))
        # a look-alike that covers the target would make the truth ambiguous
        if apart_from is None or np.hypot(*(at - apart_from.at)) > extent + apart_from.extent:
            break
        at = at + np.array([width, 0])  # no room found: outside the picture
    return Mover(
        cutout=cutout,
        at=at,
        velocity=speed * np.array([math.cos(heading), math.sin(heading)]),
        extent=extent,
        growth=float(rng.normal(0, 0.02)),
        angle=float(rng.normal(0, 0.25)),
        spin=float(rng.normal(0, 0.02)),
        aspect=float(math.exp(rng.normal(0, 0.12))),
        mirrored=bool(rng.random() < 0.5),
    )


def _background(rng: Rng, still: Image, frames: int) -> list[Image]:
    """Views of a still under a slow camera: (H, W, 3) canvases."""
    width, height = CANVAS
    fit = max(width / still.shape[1], height / still.shape[0])
    zoom = fit * rng.uniform(1.1, 2.2)
    at = np.array([still.shape[1], still.shape[0]]) * rng.uniform(0.35, 0.65, size=2)
    pan = rng.normal(0, 2.0, size=2) / zoom
    views = []
    for time in range(frames):
        centre = at + pan * time
        matrix = np.array([[zoom, 0, 0], [0, zoom, 0]], dtype=np.float64)
        matrix[:, 2] = np.array([width, height]) / 2 - zoom * centre
        view = cv2.warpAffine(
            still, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        views.append(np.asarray(view, dtype=np.uint8))
    return views


def _hidden_share(box: Box, occluder: Mover | None, time: float) -> float:
    """Bound on how much of ``box`` an occluder's box covers, 0..1."""
    if occluder is None:
        return 0.0
    return intersection_area(box, occluder.box(time)) / max(box.w * box.h, 1.0)


@dataclass
class Studio:
    """Composes videos from cut-outs and photographs.

    Attributes:
        cutouts: files of PNGs with alpha.
        masked: pairs of (frame, mask) files whose masked object serves as a cut-out.
        stills: files of photographs for backgrounds.
    """

    cutouts: list[Path]
    masked: list[tuple[Path, Path]]
    stills: list[Path]
    _cutout: Callable[[Path], Cutout | None] = field(
        default=lru_cache(maxsize=2000)(read_cutout), repr=False
    )

    def pick_cutout(self, rng: Rng) -> Cutout:
        """A random cut-out, masked objects and files in equal parts where there are both."""
        for _ in range(50):
            if self.masked and (not self.cutouts or rng.random() < 0.5):
                frame, mask = self.masked[rng.integers(len(self.masked))]
                found = masked_cutout(read_image(frame), read_image(mask)[..., 0])
            else:
                found = self._cutout(self.cutouts[rng.integers(len(self.cutouts))])
            if found is not None:
                return found
        raise DataError("50 cut-outs in a row were empty: are these PNGs with alpha?")

    def compose(self, rng: Rng, frames: int) -> Sequence:
        """A video of one target among distractors, ``frames`` long, with exact boxes.

        The box is that of the whole object, also where an occluder hides a part; NaN where more
        than 80 % is hidden or less than a quarter lies inside the picture.
        """
        still = read_image(self.stills[rng.integers(len(self.stills))])
        cutout = self.pick_cutout(rng)
        extent = float(math.exp(rng.uniform(math.log(20), math.log(90))))
        target = _random_mover(rng, cutout, extent, speed=abs(rng.normal(0, 0.12)) * extent)
        others = []
        for _ in range(rng.integers(0, 5)):
            alike = rng.random() < 0.4
            other = cutout if alike else self.pick_cutout(rng)
            if alike and rng.random() < 0.5:
                other = _hue_shifted(other, int(rng.integers(20, 160)))
            size = extent * math.exp(rng.normal(0, 0.35))
            speed = abs(rng.normal(0, 0.12)) * extent
            others.append(_random_mover(rng, other, size, speed, apart_from=target))
        occluder = None
        if rng.random() < 0.2:
            size = extent * rng.uniform(0.4, 0.9)
            occluder = _random_mover(rng, self.pick_cutout(rng), size, speed=0.2 * extent)
            meeting = target.at + target.velocity * frames / 2 + rng.normal(0, 0.4, 2) * extent
            occluder = replace(occluder, at=meeting - occluder.velocity * frames / 2)

        images, boxes = [], []
        gain, drift = rng.uniform(0.7, 1.3), rng.normal(0, 0.02)
        for time, canvas in enumerate(_background(rng, still, frames)):
            light = gain + drift * time
            for mover in [*others, target, *([occluder] if occluder else [])]:
                mover.paint(canvas, time, light)
            box = target.box(time)
            inside = intersection_area(box, Box(0, 0, *CANVAS)) / max(box.w * box.h, 1.0)
            seen = inside >= 0.25 and _hidden_share(box, occluder, time) <= 0.8
            boxes.append(box if seen else (math.nan,) * 4)
            images.append(canvas)
        return Sequence(
            name="composite",
            boxes=np.array(boxes, dtype=np.float64),
            stamps=np.arange(frames) / 30.0,
            load=images.__getitem__,
            origin="composite",
        )


def pan_still(rng: Rng, image: Image, box: Box, frames: int) -> Sequence:
    """Views of one photograph under a moving, zooming, slightly rolling camera.

    The box of a rolled view is the bounding box of the rolled box, so roll is kept small.
    """
    shrink = min(1.0, 90.0 / math.sqrt(box.w * box.h))  # large objects are shown smaller
    if shrink < 1:
        image = np.asarray(
            cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA),
            dtype=np.uint8,
        )
        box = Box(*(shrink * value for value in box))
    extent = math.sqrt(box.w * box.h)
    beyond = cv2.mean(image)  # as crops show it; a reflection would show the target twice
    size = np.array([min(image.shape[1], 512), min(image.shape[0], 512)])
    middle = np.array([box.cx, box.cy])
    home = np.clip(middle, 0.2 * size, 0.8 * size)  # where in the view the box stays, about
    corners = np.array([[box.x, box.y], [box.x + box.w, box.y + box.h]])
    corners = np.concatenate([corners, np.stack([corners[:, 0], corners[::-1, 1]], axis=1)])
    images, boxes = [], []
    for _ in range(frames):
        roll, zoom, stretch = rng.normal(0, 0.03), rng.normal(0, 0.12), rng.normal(0, 0.06)
        turn = np.array([[math.cos(roll), -math.sin(roll)], [math.sin(roll), math.cos(roll)]])
        linear = turn @ np.diag([math.exp(zoom + stretch), math.exp(zoom - stretch)])
        place = home + rng.normal(0, 0.2, size=2) * extent
        moved = (corners - middle) @ linear.T + place
        low, high = moved.min(axis=0), moved.max(axis=0)
        boxes.append([*low, *(high - low)])
        offset = place - linear @ middle + linear @ np.array([0.5, 0.5]) - 0.5
        view = cv2.warpAffine(
            image,
            np.concatenate([linear, offset[:, None]], axis=1),
            size.tolist(),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=beyond,
        )
        images.append(np.asarray(view, dtype=np.uint8))
    return Sequence(
        name="still",
        boxes=np.array(boxes, dtype=np.float64),
        stamps=np.arange(frames) / 30.0,
        load=images.__getitem__,
        origin="still",
    )
