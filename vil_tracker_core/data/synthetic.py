"""Short made-up videos with exact truth: objects that move over photographs, and stills panned.

Everything is a pure function of the random generator that comes in, so a seed gives the same
pixels. The videos are small and short: they exist to be cut into training clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

import cv2
import numpy as np

from vil_tracker_core.data.sequence import DataError, Sequence, read_image, read_pixels
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
        name: of the object; the same for two pictures of it.
    """

    bgra: Image
    hull: FloatArray
    name: str = ""

    @cached_property
    def span(self) -> tuple[float, float, float, float]:
        """(cx, cy, w, h) of the opaque part's bounding box, px."""
        (x0, y0), (x1, y1) = self.hull.min(axis=0).tolist(), self.hull.max(axis=0).tolist()
        return (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0

    @property
    def extent(self) -> float:
        """sqrt(w * h) of the opaque part's bounding box, px."""
        return math.sqrt(max(self.span[2] * self.span[3], 1.0))


def make_cutout(bgra: Image, name: str = "", max_side: int = 160) -> Cutout | None:
    """The cut-out of a (H, W, 4) BGRA image; None where hardly anything is opaque."""
    # before shrinking: where transparent pixels blend in, their hidden colour must not count
    alpha = cv2.merge([bgra[..., 3]] * 3)
    colour = cv2.multiply(np.ascontiguousarray(bgra[..., :3]), alpha, scale=1 / 255)
    bgra = np.asarray(cv2.merge([*cv2.split(colour), bgra[..., 3]]), dtype=np.uint8)
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
    return Cutout(bgra, hull, name)


def read_cutout(path: Path) -> Cutout | None:
    """The cut-out of a PNG with alpha; None where it has no alpha or hardly anything opaque."""
    bgra = read_pixels(path)
    if bgra.ndim != 3 or bgra.shape[2] != 4 or bgra.dtype != np.uint8:
        return None
    return make_cutout(bgra, path.name)


def masked_cutout(frame: Image, mask: Image, name: str = "") -> Cutout | None:
    """The cut-out of the object that ``mask`` (H, W) marks by values above 0 in a frame."""
    marked = (mask > 0).astype(np.uint8)
    if cv2.countNonZero(marked) < 200:
        return None
    x, y, w, h = cv2.boundingRect(marked)
    part = slice(y, y + h), slice(x, x + w)
    soft = cv2.GaussianBlur(marked[part] * 255, (3, 3), 0)
    return make_cutout(np.dstack([frame[part], soft]).astype(np.uint8), name)


def _oval(frame: Image, box: Box) -> Cutout | None:
    """The cut-out of what an ellipse inside a box shows of a frame."""
    mask = np.zeros(frame.shape[:2], dtype=np.uint8)
    middle, axes = (round(box.cx), round(box.cy)), (round(box.w / 2), round(box.h / 2))
    cv2.ellipse(mask, middle, axes, 0, 0, 360, 255, -1)
    return masked_cutout(frame, mask)


def read_masked(frame: Path, mask: Path) -> Cutout | None:
    """The cut-out of a sequence's masked object, named after the sequence."""
    name = frame.parent.parent.name
    return masked_cutout(read_image(frame), read_pixels(mask, cv2.IMREAD_GRAYSCALE), name)


def textured_shape(rng: Rng, photograph: Image) -> Cutout | None:
    """An ellipse, a box or a blob cut from a part of a photograph, in a colour of its own."""
    side = int(rng.integers(48, 129))
    height, width = photograph.shape[:2]
    part = max(min(int(side * rng.uniform(0.5, 2)), height, width), 1)
    x, y = int(rng.integers(width - part + 1)), int(rng.integers(height - part + 1))
    patch = cv2.resize(photograph[y : y + part, x : x + part], (side, side))
    paint = np.full_like(patch, rng.integers(0, 256, 3))
    patch = cv2.addWeighted(patch, 1 - (share := rng.uniform(0.2, 0.7)), paint, share, 0)
    corners = int(rng.choice([4, 40, 7]))
    angles = 2 * math.pi * (np.arange(corners) + 0.5) / corners
    reach = 0.48 * side * (rng.uniform(0.5, 1, corners) if corners == 7 else np.ones(corners))
    points = side / 2 + (reach * np.stack([np.cos(angles), np.sin(angles)])).T
    alpha = np.zeros((side, side), np.uint8)
    cv2.fillPoly(alpha, [np.round(16 * points).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return make_cutout(np.dstack([patch, alpha]).astype(np.uint8), f"shape {rng.integers(10**9)}")


@dataclass(frozen=True)
class Mover:
    """A cut-out and its course: all lengths in canvas px, angles in radians, time in frames.

    It is seen in perspective: ``tilt`` is how much nearer, as a share of its distance, its right
    and its lower end are than its middle.
    """

    cutout: Cutout
    at: FloatArray  # (2,) centre at time 0
    velocity: FloatArray  # (2,) a frame
    extent: float  # sqrt(w * h) at time 0
    growth: float  # log of the extent's growth a frame
    angle: float
    spin: float  # a frame
    aspect: float  # width stretch over height stretch
    mirrored: bool
    tilt: FloatArray  # (2,) at time 0, never beyond 0.4 in use
    tilting: FloatArray  # (2,) a frame

    def homography(self, time: float) -> FloatArray:
        """(3, 3) map from the cut-out's pixels to the canvas at a time."""
        # plain numbers: this runs a dozen times a clip, and tiny arrays would take most of it
        cx, cy, w, h = self.cutout.span
        scale = self.extent * math.exp(self.growth * time) / self.cutout.extent
        angle = self.angle + self.spin * time
        right, down = scale * math.sqrt(self.aspect), scale / math.sqrt(self.aspect)
        right = -right if self.mirrored else right
        c, s = math.cos(angle), math.sin(angle)
        u, v = (self.tilt + self.tilting * time).tolist()
        reach = math.hypot(w, h) / 2 * max(math.hypot(u, v) / 0.4, 1.0)
        u, v = u / reach, v / reach
        x, y = (self.at + self.velocity * time).tolist()
        a, b = c * right - x * u, -s * down - x * v
        d, e = s * right - y * u, c * down - y * v
        return np.array(
            [
                [a, b, x - a * cx - b * cy],
                [d, e, y - d * cx - e * cy],
                [-u, -v, 1 + u * cx + v * cy],
            ]
        )

    def box(self, time: float) -> Box:
        """The exact bounding box of the opaque part at a time, canvas px."""
        matrix = self.homography(time)
        points = self.cutout.hull @ matrix[:, :2].T + matrix[:, 2]
        points = points[:, :2] / points[:, 2:]
        (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return Box(x0, y0, x1 - x0, y1 - y0)

    def layer(self, time: float, x: int, y: int, width: int, height: int) -> Image:
        """(height, width, 4) what a window of the canvas shows of the cut-out, and its alpha."""
        matrix, bgra = self.homography(time), self.cutout.bgra
        scale = self.extent * math.exp(self.growth * time) / self.cutout.extent
        if scale < 0.6:  # shrink by area first: sampling alone would alias
            rows, columns = bgra.shape[:2]
            small = (max(round(columns * scale), 2), max(round(rows * scale), 2))
            bgra = np.asarray(cv2.resize(bgra, small, interpolation=cv2.INTER_AREA), dtype=np.uint8)
            matrix[:, 0] *= columns / small[0]
            matrix[:, 1] *= rows / small[1]
        # to OpenCV's pixel-centre coordinates, and into the window
        matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2
        matrix[0] -= (x + 0.5) * matrix[2]
        matrix[1] -= (y + 0.5) * matrix[2]
        return np.asarray(cv2.warpPerspective(bgra, matrix, (width, height)), dtype=np.uint8)

    def paint(self, canvas: Image, time: float, gain: float = 1.0) -> None:
        """Draws the cut-out onto (H, W, 3) ``canvas``, brightness times ``gain``."""
        box = self.box(time)
        x0, y0 = max(math.floor(box.x) - 2, 0), max(math.floor(box.y) - 2, 0)
        x1 = min(math.ceil(box.x + box.w) + 2, canvas.shape[1])
        y1 = min(math.ceil(box.y + box.h) + 2, canvas.shape[0])
        if x1 <= x0 or y1 <= y0:
            return
        layer = self.layer(time, x0, y0, x1 - x0, y1 - y0)
        window = canvas[y0:y1, x0:x1]
        alpha = layer[..., 3:].astype(np.float32) / 255
        mixed = window * (1 - alpha) + layer[..., :3].astype(np.float32) * gain
        np.copyto(window, np.clip(mixed, 0, 255).astype(np.uint8))


def _recoloured(rng: Rng, cutout: Cutout) -> Cutout:
    """The same object in another colour; a grey one, which has no hue, gets a tint."""
    bgr = np.ascontiguousarray(cutout.bgra[..., :3])
    hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(np.int32) + rng.integers(20, 160)) % 180
    tint = rng.permutation([1.0, rng.uniform(0.5, 1), rng.uniform(0.3, 0.7)])
    colour = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR) * tint
    return replace(cutout, bgra=np.dstack([colour, cutout.bgra[..., 3]]).astype(np.uint8))


def _painted_like(cutout: Cutout, model: Cutout) -> Cutout:
    """An object in the mean colour of another one, as far as its own allows."""
    ours, theirs = (
        c.bgra[..., :3].sum(axis=(0, 1)) / max(int(c.bgra[..., 3].sum()), 1)
        for c in (cutout, model)
    )
    gains = np.clip((theirs + 0.02) / (ours + 0.02), 0.3, 3)
    colour = np.minimum(cutout.bgra[..., :3] * gains, cutout.bgra[..., 3:])
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
        tilt=rng.normal(0, 0.1, size=2),
        tilting=rng.normal(0, 0.02, size=2),
    )


def _passing(rng: Rng, cutout: Cutout, extent: float, frames: int) -> Mover:
    """A cut-out that passes the origin closely, after the first frame of ``frames``, in which it is
    beside a target there of that extent."""
    meeting, heading = rng.uniform(1, max(frames - 1, 1)), rng.uniform(0, 2 * math.pi)
    way = np.array([math.cos(heading), math.sin(heading)])
    velocity = max(rng.uniform(0.25, 0.9), 0.9 / meeting) * extent * way
    miss = rng.normal(0, 0.2) * extent * way[::-1] * [1, -1]
    mover = _random_mover(rng, cutout, extent * math.exp(rng.normal(0, 0.12)), speed=0)
    return replace(mover, at=miss - velocity * meeting, velocity=velocity)


def _background(rng: Rng, still: Image, frames: int) -> list[Image]:
    """Views of a still under a camera that slowly pans, climbs, rolls and looks slantwise:
    (H, W, 3) canvases."""
    width, height = CANVAS
    fit = max(width / still.shape[1], height / still.shape[0])
    zoom, climb = fit * rng.uniform(1.1, 2.2), rng.normal(0, 0.01)
    roll, rolling = rng.normal(0, 0.1), rng.normal(0, 0.01)
    slant = rng.normal(0, 3e-4, size=2)  # a share of the distance for each px from the middle
    at = np.array([still.shape[1], still.shape[0]]) * rng.uniform(0.35, 0.65, size=2)
    pan = rng.normal(0, 2.0, size=2) / zoom
    middle = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
    slanted = np.array([[1, 0, 0], [0, 1, 0], [*slant, 1]])
    views = []
    for time in range(frames):
        angle, scale = roll + rolling * time, zoom * math.exp(climb * time)
        c, s = scale * math.cos(angle), scale * math.sin(angle)
        x, y = at + pan * time
        turned = np.array([[c, -s, -c * x + s * y], [s, c, -s * x - c * y], [0, 0, 1]])
        view = cv2.warpPerspective(
            still, middle @ slanted @ turned, CANVAS, borderMode=cv2.BORDER_REFLECT
        )
        views.append(np.asarray(view, dtype=np.uint8))
    return views


def hidden_share(target: Mover, occluder: Mover, time: float) -> float:
    """The part of the target's opaque pixels that an occluder covers, 0..1."""
    box, over = target.box(time), occluder.box(time)
    if intersection_area(box, over) == 0:
        return 0.0
    window = math.floor(box.x), math.floor(box.y), math.ceil(box.w) + 1, math.ceil(box.h) + 1
    opaque = target.layer(time, *window)[..., 3] > 127
    covered = opaque & (occluder.layer(time, *window)[..., 3] > 127)
    return float(covered.sum() / max(int(opaque.sum()), 1))


def _absence(rng: Rng, frames: int) -> range:
    """The frames in which a target has left the picture; in most videos none, never the first."""
    if frames < 2 or rng.random() >= 0.1:
        return range(0)
    start = int(rng.integers(1, frames))
    return range(start, int(rng.integers(start + 1, frames + 1)))


@dataclass
class Studio:
    """Composes videos from cut-outs, textured shapes and photographs.

    Attributes:
        cutouts: files of PNGs with alpha.
        masked: pairs of (frame, mask) files whose masked object serves as a cut-out.
        stills: files of photographs for backgrounds, and for the texture of shapes.
        crossing: share of the composed videos in which a look-alike crosses the target's way.
    """

    cutouts: list[Path]
    masked: list[tuple[Path, Path]]
    stills: list[Path]
    crossing: float = 0.0
    _cutout: Callable[[Path], Cutout | None] = field(
        default=lru_cache(maxsize=1000)(read_cutout), repr=False
    )
    _masked: Callable[[Path, Path], Cutout | None] = field(
        default=lru_cache(maxsize=1000)(read_masked), repr=False
    )

    def pick_cutout(self, rng: Rng, photograph: Image, unlike: str | None = None) -> Cutout:
        """A random object: in one case of seven a shape textured by the photograph, and else a
        masked object or a file's cut-out, in equal parts where there are both; none of the name
        ``unlike``."""
        kind = rng.random()
        for _ in range(50):
            if kind < 1 / 7 or not (self.masked or self.cutouts):
                found = textured_shape(rng, photograph)
            elif self.masked and (not self.cutouts or kind < 4 / 7):
                found = self._masked(*self.masked[rng.integers(len(self.masked))])
            else:
                found = self._cutout(self.cutouts[rng.integers(len(self.cutouts))])
            if found is not None and found.name == unlike:
                kind = 0.0  # a new shape is unlike all else
            elif found is not None:
                return found
        raise DataError("50 cut-outs in a row were empty: are these PNGs with alpha?")

    def _distractors(self, rng: Rng, target: Mover, photograph: Image) -> list[Mover]:
        """Up to four other objects, some of which look like the target."""
        others = []
        for _ in range(rng.integers(0, 5)):
            alike = rng.random() < 0.4
            other = target.cutout if alike else self.pick_cutout(rng, photograph)
            if alike and rng.random() < 0.5:
                other = _recoloured(rng, other)
            size = target.extent * math.exp(rng.normal(0, 0.35))
            speed = abs(rng.normal(0, 0.12)) * target.extent
            others.append(_random_mover(rng, other, size, speed, apart_from=target))
        return others

    def _look_alike(self, rng: Rng, target: Mover, photograph: Image) -> Mover:
        """Another object in the target's colours, of its size, beside its place."""
        other = self.pick_cutout(rng, photograph, unlike=target.cutout.name)
        cutout = _painted_like(other, target.cutout)
        heading = rng.uniform(0, 2 * math.pi)
        aside = rng.uniform(1.3, 1.8) * np.array([math.cos(heading), math.sin(heading)])
        mover = _random_mover(rng, cutout, target.extent, speed=0.05 * target.extent)
        return replace(mover, at=target.at + aside * target.extent)

    @cached_property
    def _masked_of(self) -> dict[str, list[tuple[Path, Path]]]:
        """A sequence's name -> its (frame, mask) files."""
        found: dict[str, list[tuple[Path, Path]]] = {}
        for frame, mask in self.masked:
            found.setdefault(frame.parent.parent.name, []).append((frame, mask))
        return found

    def _twin(self, rng: Rng, name: str) -> Cutout | None:
        """The masked object of the sequence ``name`` in one of its frames; None if it has none."""
        pairs = self._masked_of.get(name)
        return self._masked(*pairs[rng.integers(len(pairs))]) if pairs else None

    def _passer_by(self, rng: Rng, target: Mover, frames: int) -> Mover:
        """The target's like, or itself, in one case of three in another colour, that crosses its
        way."""
        cutout = self._twin(rng, target.cutout.name) or target.cutout
        if rng.random() < 1 / 3:
            cutout = _recoloured(rng, cutout)
        passer = _passing(rng, cutout, target.extent, frames)
        at, velocity = target.at + passer.at, target.velocity + passer.velocity
        return replace(passer, at=at, velocity=velocity)

    def cross(self, rng: Rng, video: Sequence) -> Sequence:
        """A real video with an object pasted into it that passes in front of the target: its like
        from another frame where there are masks, else an oval part of the target itself or any
        object.

        Where it covers more than 60 % of the target's box, the frame has no box; but a picture of
        the target is not shown there, nor in any frame without it, where it would be taken for it.
        The first frame is left as it is.
        """
        first = Box(*video.boxes[0])
        cutout = self._twin(rng, video.name)
        if cutout is None and rng.random() < 0.5:
            cutout = _oval(video.load(0), first)
        alike = cutout is not None
        cutout = cutout or self.pick_cutout(rng, video.load(0))
        passer = _passing(rng, cutout, math.sqrt(first.w * first.h), len(video))
        boxes = video.boxes.copy()
        movers: dict[int, Mover] = {}
        for time, row in enumerate(video.boxes.tolist()):
            if time == 0 or not math.isfinite(row[0]):
                continue
            box = Box(*row)
            mover = replace(passer, at=passer.at + np.array([box.cx, box.cy]))
            window = (math.floor(box.x), math.floor(box.y), math.ceil(box.w), math.ceil(box.h))
            meets = intersection_area(mover.box(time), box) > 0
            covers = meets and (mover.layer(time, *window)[..., 3] > 127).mean() > 0.6
            if covers and alike:
                continue
            movers[time] = mover
            if covers:
                boxes[time] = math.nan

        def load(index: int) -> Image:
            if index not in movers:
                return video.load(index)
            frame = video.load(index).copy()
            movers[index].paint(frame, index)
            return frame

        return replace(video, boxes=boxes, load=load)

    def _occluder(self, rng: Rng, target: Mover, photograph: Image, frames: int) -> Mover:
        """An object that meets the target half-way; from a post to a bus that hides it whole."""
        size = target.extent * rng.uniform(0.5, 1.6)
        cutout = self.pick_cutout(rng, photograph, unlike=target.cutout.name)
        occluder = _random_mover(rng, cutout, size, speed=0.2 * target.extent)
        meeting = target.at + target.velocity * frames / 2 + rng.normal(0, 0.4, 2) * target.extent
        return replace(occluder, at=meeting - occluder.velocity * frames / 2)

    def compose(self, rng: Rng, frames: int) -> Sequence:
        """A video of one target among distractors, ``frames`` long, with exact boxes.

        The box is that of the whole object, also where an occluder hides a part; NaN where more
        than 80 % is hidden, less than a quarter lies inside the picture, or the target has left.
        While it is away, another object in its colours is near its place, but no picture of it.
        """
        still = read_image(self.stills[rng.integers(len(self.stills))])
        cutout = self.pick_cutout(rng, still)
        extent = float(math.exp(rng.uniform(math.log(20), math.log(90))))
        target = _random_mover(rng, cutout, extent, speed=abs(rng.normal(0, 0.12)) * extent)
        others, away = self._distractors(rng, target, still), _absence(rng, frames)
        if away:
            others.append(self._look_alike(rng, target, still))
        occluder = self._occluder(rng, target, still, frames) if rng.random() < 0.2 else None
        passer = self._passer_by(rng, target, frames) if rng.random() < self.crossing else None
        passes_before = rng.random() < 0.5

        images, boxes = [], []
        gain, drift = rng.uniform(0.7, 1.3), rng.normal(0, 0.02)
        for time, canvas in enumerate(_background(rng, still, frames)):
            there = time not in away
            box = target.box(time)
            inside = intersection_area(box, Box(0, 0, *CANVAS)) / max(box.w * box.h, 1.0)
            hidden = hidden_share(target, occluder, time) if occluder else 0.0
            seen = there and inside >= 0.25 and hidden <= 0.8
            shown = others if there else [o for o in others if o.cutout.name != cutout.name]
            over = [occluder] if occluder else []
            # a passer-by that hides the target would be taken for it, and so where there is none
            if passer and seen and hidden + hidden_share(target, passer, time) <= 0.8:
                if passes_before:
                    over = [passer, *over]
                else:
                    shown = [*shown, passer]
            for mover in [*shown, *([target] if there else []), *over]:
                mover.paint(canvas, time, gain + drift * time)
            boxes.append(box if seen else (math.nan,) * 4)
            images.append(canvas)
        return Sequence(
            name=cutout.name,
            boxes=np.array(boxes, dtype=np.float64),
            stamps=np.arange(frames) / 30.0,
            load=images.__getitem__,
            origin="composite",
        )


def _painted_over(frame: Image, box: Box, sides: list[int]) -> Image:
    """A frame with what a box shows, and a margin, painted over by what lies beside it, mirrored.

    Of its sides (0 left, 1 right, 2 above, 3 below) the first one serves that has room for the
    whole of it; where none has, what the roomiest shows is stretched.
    """
    height, width = frame.shape[:2]
    across, down = max(0.06 * box.w, 1.0), max(0.06 * box.h, 1.0)  # half of the blending

    def grown(steps: int) -> tuple[int, int, int, int]:
        """The pixels of the box and so many steps around it, inside the frame."""
        x0, y0 = math.floor(box.x - steps * across), math.floor(box.y - steps * down)
        x1 = math.ceil(box.x + box.w + steps * across)
        y1 = math.ceil(box.y + box.h + steps * down)
        return max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)

    x0, y0, x1, y1 = grown(3)
    if x1 <= x0 or y1 <= y0:
        return frame
    w, h = x1 - x0, y1 - y0
    room = [x0 / w, (width - x1) / w, y0 / h, (height - y1) / h]
    side = max(sides, key=lambda side: min(room[side], 1.0))
    beside = (
        frame[y0:y1, max(x0 - w, 0) : x0],
        frame[y0:y1, x1 : x1 + w],
        frame[max(y0 - h, 0) : y0, x0:x1],
        frame[y1 : y1 + h, x0:x1],
    )[side]
    if beside.size == 0:  # the target fills the picture
        beside = np.full((1, 1, 3), cv2.mean(frame)[:3], dtype=np.uint8)
    patch = cv2.resize(cv2.flip(beside, 1 if side < 2 else 0), (w, h))
    alpha = np.zeros((height, width), dtype=np.float32)
    left, top, right, bottom = grown(2)
    alpha[top:bottom, left:right] = 1
    kernel = 2 * math.floor(across) + 1, 2 * math.floor(down) + 1
    blend = cv2.blur(alpha[y0:y1, x0:x1], kernel, borderType=cv2.BORDER_REPLICATE)[..., None]
    window = frame[y0:y1, x0:x1].astype(np.float32)
    mixed = window + blend * (patch.astype(np.float32) - window)
    out = frame.copy()
    out[y0:y1, x0:x1] = np.round(mixed).astype(np.uint8)
    return out


def taken_away(rng: Rng, video: Sequence) -> Sequence:
    """A video whose target is gone from some frame after the first one on: where it was, there is
    what lies beside it. Those frames have no box."""
    since, sides = int(rng.integers(1, len(video))), rng.permutation(4).tolist()
    boxes = video.boxes.copy()
    boxes[since:] = math.nan

    def load(index: int) -> Image:
        frame = video.load(index)
        if index < since or not math.isfinite(video.boxes[index, 0]):
            return frame
        return _painted_over(frame, Box(*video.boxes[index]), sides)

    return replace(video, boxes=boxes, load=load)


def pan_still(rng: Rng, image: Image, box: Box, frames: int, name: str = "still") -> Sequence:
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
        name=name,
        boxes=np.array(boxes, dtype=np.float64),
        stamps=np.arange(frames) / 30.0,
        load=images.__getitem__,
        origin="still",
    )
