"""Training clips: a template and K search crops of one target, cut from any source of videos."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypedDict

import cv2
import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from vil_tracker_core.data.augment import Look, coarsened, degrade
from vil_tracker_core.data.sequence import (
    IMAGE_SUFFIXES,
    DataError,
    ImageError,
    Sequence,
    parse_boxes,
    read_image,
)
from vil_tracker_core.data.skipped import SkippedImages
from vil_tracker_core.data.synthetic import Rng, Studio, pan_still, taken_away
from vil_tracker_core.geometry import Box, Crop, FloatArray, Image, crop_motion, intersection_area
from vil_tracker_core.model.presets import ModelConfig

Float32Array = npt.NDArray[np.float32]


class Clip(TypedDict):
    """One training sample; a batch of them is the same with a leading axis.

    template: (N, 3, T, T) uint8 RGB, the first of the frame before the search frames, a second of
    the first search frame, as the tracker would take it. first: (3, S, S) uint8 RGB, the search
    crop around the first template's box on its own frame, and drawn: (4,) float32, that box in
    units of its side. search: (K, 3, S, S) uint8 RGB. box: (K, 4) float32 centre and size in units
    of the search crop's side, NaN where absent. visible: (K,) bool. motion: (K, 3) float32, see
    `geometry.crop_motion`. last: (4,) float32, where a tracker may believe the target to have been
    before the first search frame, in units of its crop's side; all 0 for one that knows of nothing.
    tells: (3,) bool, whether the net is told of its error on the first frame; of ``last`` and
    its own boxes after it; and whether it keeps what it has seen of a frame for the next one.
    follows: () bool, whether the net shall see crops around its own boxes;
    where a share of a run's clips does, all its search crops are wide: `REACH` times the tracker's
    side, in frame and in crop pixels, and ``box``, ``visible`` and ``motion`` are of the wide
    crops.
    """

    template: Image
    first: Image
    drawn: Float32Array
    search: Image
    box: Float32Array
    visible: npt.NDArray[np.bool_]
    motion: Float32Array
    last: Float32Array
    tells: npt.NDArray[np.bool_]
    follows: npt.NDArray[np.bool_]


class VideoSource(Protocol):
    """Something that shows a target in ``frames`` frames, the first of which has a box."""

    def __call__(self, rng: Rng, frames: int, max_gap: int) -> Sequence: ...


@dataclass(frozen=True)
class Videos:
    """Real videos with truth: frames in order, forwards or backwards, up to ``max_gap`` apart."""

    sequences: list[Sequence]

    def __call__(self, rng: Rng, frames: int, max_gap: int) -> Sequence:
        sequence = self.sequences[rng.integers(len(self.sequences))]
        seen = np.flatnonzero(sequence.visible)
        first = int(seen[rng.integers(len(seen))])
        gap = int(rng.integers(1, max_gap + 1))
        after = np.concatenate([[0], np.cumsum(rng.integers(1, 4, size=frames - 2))])
        ahead, behind = len(sequence) - 1 - first, first
        direction = 1 if rng.random() < 0.5 else -1
        if gap + after[-1] > (ahead if direction > 0 else behind):
            direction = 1 if ahead >= behind else -1
        gap = max(1, min(gap, max(ahead, behind) - int(after[-1])))  # short videos, short gaps
        steps = np.concatenate([[0], gap + after])
        chosen = np.clip(first + direction * steps, 0, len(sequence) - 1)
        return Sequence(
            name=sequence.name,
            boxes=sequence.boxes[chosen],
            stamps=np.arange(frames) / 30.0,
            load=lambda index: sequence.load(int(chosen[index])),
            origin=sequence.origin,
        )


@dataclass(frozen=True)
class Crossed:
    """Another source's videos; in a share of them a pasted object passes before the target."""

    source: VideoSource
    studio: Studio
    share: float

    def __call__(self, rng: Rng, frames: int, max_gap: int) -> Sequence:
        video = self.source(rng, frames, max_gap)
        return self.studio.cross(rng, video) if rng.random() < self.share else video


@dataclass(frozen=True)
class BoxedStills:
    """Photographs with boxes, panned and zoomed into videos."""

    items: list[tuple[Path, FloatArray]]

    def __call__(self, rng: Rng, frames: int, max_gap: int) -> Sequence:
        path, boxes = self.items[rng.integers(len(self.items))]
        box = Box(*boxes[rng.integers(len(boxes))])
        return pan_still(rng, read_image(path), box, frames, path.name)


@dataclass(frozen=True)
class StillPatches:
    """Any part of any photograph as a target: teaches to find the same thing again."""

    stills: list[Path]

    def __call__(self, rng: Rng, frames: int, max_gap: int) -> Sequence:
        path = self.stills[rng.integers(len(self.stills))]
        image = read_image(path)
        height, width = image.shape[:2]
        extent = min(height, width) * math.exp(rng.uniform(math.log(0.12), math.log(0.4)))
        aspect = math.exp(rng.normal(0, 0.35))
        w, h = extent * math.sqrt(aspect), extent / math.sqrt(aspect)
        cx, cy = rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height
        return pan_still(rng, image, Box.from_cxcywh(cx, cy, w, h), frames, path.name)


@dataclass(frozen=True)
class Composites:
    """Cut-outs and textured shapes that move over photographs."""

    studio: Studio

    def __call__(self, rng: Rng, frames: int, max_gap: int) -> Sequence:
        for _ in range(20):
            video = self.studio.compose(rng, frames)
            if video.visible[0]:
                return video
        raise DataError("20 composed videos in a row began with a hidden target")


def images_below(root: Path, without: tuple[Path, ...] = ()) -> list[Path]:
    """Image files anywhere below ``root``, sorted, except those below ``without``."""
    return sorted(
        path
        for path in Path(root).rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not any(w in path.parents for w in without)
    )


def read_boxed_stills(root: Path, least_side: float = 12.0) -> list[tuple[Path, FloatArray]]:
    """JPEGs below ``root`` and the boxes of the .csv beside each, those of under ``least_side`` px
    left out."""
    items = []
    for listed in sorted(Path(root).rglob("*.csv")):
        path = listed.with_suffix(".jpg")
        if not path.is_file():
            raise DataError(f"{listed} has no image {path.name} beside it")
        if not listed.read_text().strip():
            continue
        boxes = parse_boxes(listed.read_text(), str(listed))
        boxes = boxes[np.isfinite(boxes).all(axis=1) & (boxes[:, 2:].min(axis=1) >= least_side)]
        if len(boxes):
            items.append((path, boxes))
    return items


def masked_frames(root: Path) -> list[tuple[Path, Path]]:
    """(frame, mask) files of all sequences below ``root`` that have a folder mask/."""
    pairs = []
    for mask in sorted(Path(root).glob("*/mask/*.png")):
        frames = [mask.parent.parent / "img" / f"{mask.stem}{end}" for end in IMAGE_SUFFIXES]
        pairs += [(frame, mask) for frame in frames if frame.is_file()]
    return pairs


def redrawn(rng: Rng, video: Sequence) -> Sequence:
    """The video with boxes that all take in a part of the target's, or more than it: what is to be
    followed is what was drawn, and not what a net would call the thing."""
    factor = np.exp(np.clip(rng.normal(-0.1, 0.25, size=2), -0.7, 0.4))
    shift = rng.uniform(-0.5, 0.5, size=2) * np.abs(1 - factor)
    middle = video.boxes[:, :2] + (0.5 + shift) * video.boxes[:, 2:]
    size = factor * video.boxes[:, 2:]
    return replace(video, boxes=np.concatenate([middle - size / 2, size], axis=1))


@dataclass(frozen=True)
class Difficulty:
    """How far apart and how badly centred a clip's frames are, 0 (easy) to 1."""

    level: float

    @property
    def max_gap(self) -> int:
        """Frames between the template and the first search frame."""
        return round(5 + 70 * self.level)

    @property
    def shift(self) -> float:
        """Greatest distance of the target from the search crop's centre, in sides of the crop."""
        return 0.12 + 0.22 * self.level

    @property
    def zoom(self) -> float:
        """Standard deviation of the log of the search crop's size. Too small a one teaches the net
        to trust the crop's size: a box that has grown by mistake makes the next crop grow."""
        return 0.08 + 0.37 * self.level


def _to_rgb(crop: Image) -> Image:
    return np.ascontiguousarray(crop[..., ::-1].transpose(2, 0, 1))


def _inside(unit: FloatArray) -> npt.NDArray[np.bool_]:
    """(...,) whether a box (..., 4), in units of the crop's side, has its middle in the crop."""
    middle = (unit[..., :2] > 0) & (unit[..., :2] < 1)  # not where it is NaN
    return np.asarray(np.isfinite(unit).all(axis=-1) & middle.all(axis=-1))


def coarseness(crop: Crop, density: float) -> float:
    """A crop's side in pixels of the sensor over its own pixels, at most 1.

    Args:
        crop: of a frame.
        density: pixels of the sensor for each of the frame.
    """
    return min(1.0, density / crop.scale)


BY_HAND, BY_NET = (0.03, 0.05), (0.05, 0.1)
"""Standard deviations of a box's centre, in its sides, and of the log of its sides: as a hurried
hand draws it, and as a track has it."""
REACH = 2.0
"""Side of wide search crops, in sides of the tracker's."""
LONGEST_BLUR = 7
"""A motion blur is up to this part of the tracker's crop long."""
KNOWN = 0.6
"""Share of clips in whose first search frame the net is told where the target was before."""
MISTAKEN = 0.1
"""Share of these in which that is wrong: the track has left its target."""
TELLS = (0.75, 0.65, 0.75)
"""Shares of clips in which the net is told of its error on the first frame, is told of the last
boxes, and keeps what it has seen: a tracker asks it without them too, on that first frame and while
it is lost."""
COARSE, FEWEST, MOST = 0.35, 10, 40
"""Share of clips of a coarse camera, and the pixels of such a one that a target has along its
extent: small targets in old videos."""
REDRAWS = 20
"""So many clips in a row may meet a broken image; more mean that something else is wrong."""


class ClipDataset(Dataset[Clip]):
    """Clip number i, a pure function of (seed, i): any process can make any sample.

    A clip that meets a broken image is drawn again, from other random numbers of the same (seed,
    i), and the image is noted in `skipped`.

    Args:
        sources: (weight, source) pairs; weights need not sum to 1.
        config: sizes and factors of the crops.
        frames: K, search frames a clip.
        count: how many clips there are.
        seed: of all randomness.
        difficulty: clip number -> how hard it is.
        absent: share of clips whose search crops, from some frame on, do not show the target: in a
            third of them each, they are cut beside it, they are cut from a video of another target,
            and the target is painted over with what lies beside it.
        skipped: keeps the broken images' names.
        templates: N, 1 or 2.
        redrawn: share of clips whose boxes take in less or more than their source's, see `redrawn`.
        follow: share of clips that follow the net's boxes; above 0, search crops are wide, see
            `Clip`.
    """

    def __init__(
        self,
        sources: list[tuple[float, VideoSource]],
        config: ModelConfig,
        frames: int,
        count: int,
        seed: int,
        difficulty: Callable[[int], Difficulty],
        absent: float = 0.08,
        skipped: SkippedImages | None = None,
        templates: int = 1,
        follow: float = 0.0,
        redrawn: float = 0.0,
    ) -> None:
        if not sources:
            raise DataError("no source of training clips is configured")
        weights = np.array([weight for weight, _ in sources], dtype=np.float64)
        self.shares = weights / weights.sum()
        self.sources = [source for _, source in sources]
        self.config, self.frames, self.count = config, frames, count
        self.seed, self.difficulty, self.absent = seed, difficulty, absent
        self.skipped = skipped or SkippedImages()
        self.templates, self.follow, self.redrawn = templates, follow, redrawn
        self.reach = REACH if follow > 0 else 1.0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Clip:
        return self.sample(index)[0]

    def sample(self, index: int) -> tuple[Clip, Sequence]:
        """Clip ``index`` and the video from which it was cut."""
        for attempt in range(REDRAWS):
            try:
                return self._draw(index, attempt)
            except ImageError as error:
                self.skipped.add(str(error))
                last = error
        raise DataError(f"{REDRAWS} clips in a row met a broken image, at last: {last}")

    def _draw(self, index: int, attempt: int) -> tuple[Clip, Sequence]:
        rng = np.random.default_rng([self.seed, index, attempt])
        source = self.sources[rng.choice(len(self.sources), p=self.shares)]
        difficulty = self.difficulty(index)
        video = source(rng, self.frames + 1, difficulty.max_gap)
        beside, decoy = False, None
        if rng.random() < self.absent:
            kind = rng.integers(3)
            beside = bool(kind == 0)
            if kind == 1:
                video = taken_away(rng, video)
            elif kind == 2:
                decoy = source(rng, self.frames + 1, difficulty.max_gap)
                if (decoy.origin, decoy.name) == (video.origin, video.name):  # the same target
                    beside, decoy = True, None
        if rng.random() < self.redrawn:
            video = redrawn(rng, video)
        return self.cut(rng, video, difficulty, beside, decoy), video

    def cut(
        self,
        rng: Rng,
        video: Sequence,
        difficulty: Difficulty,
        beside: bool = False,
        decoy: Sequence | None = None,
    ) -> Clip:
        """The clip of a video whose first frame shows the template.

        Args:
            rng: draws the crops and their look.
            video: the frames and the truth.
            difficulty: how hard the clip is.
            beside: cut the search crops where the target is not, from some frame on.
            decoy: cut them from this video of another target, around it, from some frame on.
        """
        config = self.config
        look = Look.random(rng)
        mirrored = bool(rng.random() < 0.5)
        drawn, frame = self._jittered(rng, Box(*video.boxes[0]), *BY_HAND), video.load(0)
        density = math.inf
        if rng.random() < COARSE:
            pixels = math.exp(rng.uniform(math.log(FEWEST), math.log(MOST)))
            density = pixels / math.sqrt(drawn.w * drawn.h)
        templates = [self._template(rng, look, drawn, frame, density)]
        around = Crop.around(drawn, config.search_factor, config.search_size)
        first, unit_drawn = around.cut(frame), around.to_unit(drawn)
        first = coarsened(look.apply(first), coarseness(around, density))

        seen_look = Look.random(rng) if rng.random() < 0.3 else look
        searches, boxes, motions = [], [], []
        crop_before: Crop | None = None
        calm = rng.random() < 0.5
        since = int(rng.integers(1, len(video)))
        last = Box(*video.boxes[0])
        for index in range(1, len(video)):
            gone = index >= since and (beside or decoy is not None)
            shown = decoy if decoy is not None and gone else video
            if shown is decoy and index == since:
                last, crop_before = Box(*shown.boxes[0]), None
            frame = shown.load(index)
            box = Box(*shown.boxes[index])
            if math.isfinite(box.x):
                last = box
            shift = difficulty.shift * rng.uniform(-1, 1, size=2) ** (3 if calm or index > 1 else 1)
            if calm and index > 1:
                shift /= 4
            side = config.search_factor * math.sqrt(last.w * last.h)
            zoom = difficulty.zoom
            if self.follow > 0 and index > 1:  # the size that the net has found shall lead
                zoom /= 4
            side *= math.exp(np.clip(rng.normal(0, zoom), -1, 1))
            if beside and gone:
                shift = self._away(rng, last, side, (frame.shape[1], frame.shape[0]))
            centre = np.array([last.cx, last.cy]) + shift * side
            size = round(self.reach * config.search_size)
            crop = Crop.centred(float(centre[0]), float(centre[1]), self.reach * side, size)
            image = seen_look.near(rng).apply(crop.cut(frame))
            blur = config.search_size / LONGEST_BLUR
            searches.append(degrade(rng, image, blur, coarseness(crop, density)))
            boxes.append(crop.to_unit(box) if shown is video else np.full(4, np.nan))
            if len(templates) < self.templates:
                if _inside(0.5 + self.reach * (boxes[-1] - 0.5)):  # in the tracker's own crop
                    found = self._jittered(rng, box, *BY_NET)
                    near = seen_look.near(rng)
                    templates.append(self._template(rng, near, found, frame, density))
                else:  # nothing to renew it with
                    templates.append(templates[0])
            if index == 1:
                before = self._believed(rng, self._narrowed(crop.to_unit(last)))
            motions.append(crop_motion(crop_before or crop, crop))
            crop_before = crop
        unit = np.array(boxes)
        motion = np.array(motions)
        if mirrored:
            templates = [cv2.flip(template, 1).astype(np.uint8) for template in templates]
            searches = [cv2.flip(search, 1).astype(np.uint8) for search in searches]
            first = cv2.flip(first, 1).astype(np.uint8)
            unit_drawn[0] = 1 - unit_drawn[0]
            unit[:, 0] = 1 - unit[:, 0]
            before[0] = 1 - before[0] if before[2] else 0.0
            motion[:, 0] = 1 - motion[:, 2] - motion[:, 0]
        visible = _inside(unit)
        return Clip(
            template=np.stack([_to_rgb(template) for template in templates]),
            first=_to_rgb(first),
            drawn=unit_drawn.astype(np.float32),
            search=np.stack([_to_rgb(search) for search in searches]),
            box=unit.astype(np.float32),
            visible=visible,
            motion=motion.astype(np.float32),
            last=before.astype(np.float32),
            tells=rng.random(3) < TELLS,
            follows=np.array(self.follow > 0 and rng.random() < self.follow),
        )

    def _template(self, rng: Rng, look: Look, box: Box, frame: Image, density: float) -> Image:
        crop = Crop.around(box, self.config.template_factor, self.config.template_size)
        template, coarse = look.apply(crop.cut(frame)), coarseness(crop, density)
        if rng.random() >= 0.3:
            return coarsened(template, coarse)
        return degrade(rng, template, self.config.template_size / LONGEST_BLUR, coarse)

    def _narrowed(self, unit: FloatArray) -> FloatArray:
        """A box of a clip's crop in units of the tracker's in its middle."""
        middle = 0.5 + self.reach * (unit[:2] - 0.5)
        return np.concatenate([middle, self.reach * unit[2:]])

    @staticmethod
    def _believed(rng: Rng, unit: FloatArray) -> FloatArray:
        """Where the target may have been taken for a frame before it is at ``unit``: mostly close
        by, at times far off, as tracks err."""
        if rng.random() >= KNOWN:
            return np.zeros(4)
        shift, zoom = np.clip(0.1 * rng.standard_t(3, size=(2, 2)), -1, 1)
        centre = unit[:2] + shift * unit[2:]
        if rng.random() < MISTAKEN:
            centre = rng.uniform(0, 1, size=2)
        return np.concatenate([centre, unit[2:] * np.exp(zoom)])

    @staticmethod
    def _jittered(rng: Rng, box: Box, shift: float, zoom: float) -> Box:
        """The box with errors of its centre and of its size, see `BY_HAND`."""
        w, h = box.w * math.exp(rng.normal(0, zoom)), box.h * math.exp(rng.normal(0, zoom))
        cx, cy = box.cx + rng.normal(0, shift) * box.w, box.cy + rng.normal(0, shift) * box.h
        return Box.from_cxcywh(cx, cy, w, h)

    @staticmethod
    def _away(rng: Rng, box: Box, side: float, frame_size: tuple[int, int]) -> FloatArray:
        """A shift, in sides of the crop, that leaves the target outside; of eight the one that
        leaves most of the frame inside, since a crop of nothing teaches nothing."""
        shifts = np.stack([rng.uniform(0.75, 1.2, 8), rng.uniform(-0.6, 0.6, 8)], axis=1)
        shifts[:, 0] *= rng.choice([-1, 1], 8)
        shifts[::2] = shifts[::2, ::-1]  # half of them up or down
        frame = Box(0, 0, *frame_size)
        shown = [
            intersection_area(
                frame, Box.from_cxcywh(box.cx + u * side, box.cy + v * side, side, side)
            )
            for u, v in shifts.tolist()
        ]
        return np.asarray(shifts[int(np.argmax(shown))])
