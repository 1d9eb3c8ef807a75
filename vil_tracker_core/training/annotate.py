"""A teacher's boxes on videos without truth, as sequences to train on.

A trained tracker follows anything that it is shown. Shown any place of a video, it settles on what
it takes for a thing there, follows it forwards and then, from where it ended, backwards. Where both
ways agree and the thing moves, its boxes are worth learning from (Kalal et al., Forward-Backward
Error, ICPR 2010).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from rich.progress import Progress

from vil_tracker_core.data.sequence import (
    TRUTH_FILE,
    DataError,
    frame_paths,
    read_image,
    sequence_folders,
)
from vil_tracker_core.geometry import Box, Crop, FloatArray, Image, iou
from vil_tracker_core.model.presets import ModelConfig, preset
from vil_tracker_core.training.teachers import Teacher

CROPS: ModelConfig = replace(preset("vil_nano"), search_factor=5.0, search_size=256)
"""Crops wide enough for all that a teacher wants to see."""

Rng = np.random.Generator
Load = Callable[[int], Image]


@dataclass(frozen=True)
class AnnotateConfig:
    """What is asked of a track before it is kept.

    Attributes:
        tracks: kept from each video, at most.
        tries: places tried for each track that is wanted.
        frames: length of a track, at most.
        least_frames: and at least.
        start_score: the teacher's score from which it has settled on a thing.
        score: below which it has lost it.
        smallest: side of a target on its first frame, px.
        settled: IoU of two answers in a row on the first frame.
        agreed: median IoU of the two ways; every frame must have half of it.
        travel: how far its middle must get from where it was first, in extents sqrt(w * h): much of
            what a camera at rest shows stands still, and there is little to learn from it.
    """

    tracks: int = 8
    tries: int = 6
    frames: int = 60
    least_frames: int = 12
    start_score: float = 0.6
    score: float = 0.45
    smallest: float = 14.0
    settled: float = 0.8
    agreed: float = 0.6
    travel: float = 0.15


GRID = 16
"""Cells along a side of the teacher's answer."""
PLACES, LATER = 4, 3
"""Random boxes of which the one that changes most is tried, and how many frames later it does."""
SIZE_GAIN = 0.6
"""Weight of a frame's log size against that of the frame before."""


def _window() -> FloatArray:
    line = np.hanning(GRID + 2)[1:-1]
    return np.asarray(0.8 + 0.2 * np.outer(line, line))


@dataclass(frozen=True)
class _Target:
    """What a teacher was shown, and how to find it again."""

    teacher: Teacher
    template: Image

    @classmethod
    def shown(cls, teacher: Teacher, frame: Image, box: Box) -> _Target:
        crop = Crop.around(box, CROPS.template_factor, CROPS.template_size)
        return cls(teacher, _rgb(crop, frame))

    def find(self, frame: Image, near: Box) -> tuple[Box, float]:
        """The teacher's best box around a place, and its score."""
        crop = Crop.around(near, CROPS.search_factor, CROPS.search_size)
        aspect = min(max(near.w / near.h, 1 / 16), 16.0)
        answer = self.teacher.respond(self.template, _rgb(crop, frame), aspect, GRID)
        row, column = divmod(int(np.argmax(answer.score * _window())), GRID)
        return crop.to_frame(answer.boxes[:, row, column]), float(answer.score[row, column])


def _rgb(crop: Crop, frame: Image) -> Image:
    return np.ascontiguousarray(crop.cut(frame)[..., ::-1].transpose(2, 0, 1))


def settle(teacher: Teacher, frame: Image, box: Box, config: AnnotateConfig) -> Box | None:
    """The thing that the teacher sees where it is shown a box: its answer, shown to it again
    twice. None where the last two do not agree, or where the thing leaves the frame."""
    height, width = frame.shape[:2]
    same = 0.0
    for _ in range(3):
        found, score = _Target.shown(teacher, frame, box).find(frame, box)
        inside = found.x >= 0 and found.y >= 0
        inside = inside and found.x + found.w <= width and found.y + found.h <= height
        if not inside or score < config.start_score or min(found.w, found.h) < config.smallest:
            return None
        same, box = float(iou(found, box)), found
    return box if same >= config.settled else None


def follow(
    teacher: Teacher, load: Load, frames: list[int], box: Box, config: AnnotateConfig
) -> list[Box]:
    """Boxes on ``frames``, from the target's ``box`` on the first until it is lost."""
    target = _Target.shown(teacher, load(frames[0]), box)
    boxes = [box]
    for index in frames[1:]:
        last = boxes[-1]
        found, score = target.find(load(index), last)
        if score < config.score or not np.isfinite(found).all() or min(found.w, found.h) < 4:
            break
        w, h = (
            math.exp(SIZE_GAIN * math.log(new) + (1 - SIZE_GAIN) * math.log(old))
            for new, old in ((found.w, last.w), (found.h, last.h))
        )
        boxes.append(Box.from_cxcywh(found.cx, found.cy, w, h))
    return boxes


def place(rng: Rng, frame: Image, later: Image) -> Box:
    """Of some random boxes in a frame the one in which a later frame differs most, per pixel:
    before a camera at rest it mostly holds something that moves."""
    change = cv2.integral(cv2.absdiff(frame, later).max(2))

    def changed(box: Box) -> float:
        left, top, right, bottom = (round(v) for v in (box.x, box.y, box.x + box.w, box.y + box.h))
        inside = change[bottom, right] - change[top, right] - change[bottom, left]
        return float(inside + change[top, left]) / (box.w * box.h)

    return max((_box(rng, frame) for _ in range(PLACES)), key=changed)


def _box(rng: Rng, frame: Image) -> Box:
    """A random box in a frame."""
    height, width = frame.shape[:2]
    extent = math.exp(rng.uniform(math.log(22), math.log(max(0.4 * min(height, width), 23))))
    aspect = math.exp(rng.normal(0, 0.4))
    w, h = min(extent * math.sqrt(aspect), width), min(extent / math.sqrt(aspect), height)
    return Box(rng.uniform(0, width - w), rng.uniform(0, height - h), w, h)


@dataclass(frozen=True)
class Annotated:
    """A track: the frames' numbers, in order, and the mean of both ways' boxes (N, 4) xywh."""

    frames: list[int]
    boxes: FloatArray


def try_track(
    teacher: Teacher, load: Load, count: int, rng: Rng, config: AnnotateConfig
) -> Annotated | str:
    """One track from a `place` of a random frame of ``count``, or why there is none."""
    first = int(rng.integers(count))
    ahead = rng.random() < 0.5
    frames = list(range(first, count) if ahead else range(first, -1, -1))[: config.frames]
    if len(frames) < config.least_frames:
        return "too near the end"
    frame = load(first)
    later = load(frames[min(LATER, len(frames) - 1)])
    box = settle(teacher, frame, place(rng, frame, later), config)
    if box is None:
        return "no thing there"
    forth = follow(teacher, load, frames, box, config)
    if len(forth) < config.least_frames:
        return "lost"
    frames = frames[: len(forth)]
    back = follow(teacher, load, frames[::-1], forth[-1], config)[::-1]
    if len(back) < len(forth):
        return "lost on the way back"
    both = np.stack([np.array(forth), np.array(back)])
    overlaps = iou(both[0], both[1])
    if np.median(overlaps) < config.agreed or overlaps.min() < config.agreed / 2:
        return "the two ways differ"
    if _travel(both.mean(0)) < config.travel:
        return "stands still"
    order = slice(None) if ahead else slice(None, None, -1)
    return Annotated(frames[order], both.mean(0)[order])


def _travel(boxes: FloatArray) -> float:
    """Greatest distance of boxes' (N, 4) middles from the first one's, in its extents."""
    middles = boxes[:, :2] + boxes[:, 2:] / 2
    far = np.hypot(*(middles - middles[0]).T).max()
    return float(far / math.sqrt(boxes[0, 2] * boxes[0, 3]))


def _write(track: Annotated, paths: list[Path], folder: Path, origin: str) -> None:
    """The layout of `read_folder`, with links to the video's own frames."""
    (folder / "img").mkdir(parents=True)
    for number, index in enumerate(track.frames, start=1):
        path = paths[index].resolve()
        (folder / "img" / f"{number:08d}{path.suffix}").symlink_to(path)
    np.savetxt(folder / TRUTH_FILE, track.boxes, fmt="%.3f", delimiter=",")
    meta = {"name": folder.name, "origin": origin, "frames": len(track.frames)}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def annotate(
    root: Path,
    out: Path,
    teacher: Teacher,
    config: AnnotateConfig,
    seed: int = 0,
    without: tuple[str, ...] = (),
) -> Counter[str]:
    """Writes a teacher's tracks of the videos below a folder as sequences with boxes.

    Args:
        root: holds a folder with img/ for each video; truth files are not looked at.
        out: folder to make; its sequences are called VIDEO_t0, VIDEO_t1, ...
        teacher: made for `CROPS`.
        config: what is asked of a track.
        seed: of the places; with the video's number it settles all of its tracks.
        without: names of videos to leave alone, such as those held out for validation.

    Returns:
        How many tries ended how; those of "kept" were written.

    Raises:
        DataError: ``out`` exists, ``root`` holds no video, or ``without`` names an unknown one.
    """
    if out.exists():
        raise DataError(f"{out} exists already: choose another name or remove it")
    folders = sequence_folders(root)
    unknown = set(without) - {folder.name for folder in folders}
    if unknown:  # a misspelt name would let a validation video into the training
        raise DataError(f"{root} holds no {', '.join(sorted(unknown))} to leave out")
    out.mkdir(parents=True)
    ends: Counter[str] = Counter()
    with Progress() as progress:
        task = progress.add_task("annotating", total=len(folders))
        for number, folder in enumerate(folders):
            if folder.name not in without:
                rng = np.random.default_rng([seed, number])
                ends += _annotate_video(folder, out, teacher, config, rng)
            progress.update(task, advance=1, description=f"{ends['kept']} tracks")
    return ends


def _annotate_video(
    folder: Path, out: Path, teacher: Teacher, config: AnnotateConfig, rng: Rng
) -> Counter[str]:
    paths = frame_paths(folder)
    held: dict[int, Image] = {}

    def load(index: int) -> Image:
        if index not in held:
            if len(held) >= 2 * config.frames:  # of a long video only what the tracks go over
                held.clear()
            held[index] = read_image(paths[index])
        return held[index]

    ends: Counter[str] = Counter()
    for _ in range(config.tries * config.tracks):
        track = try_track(teacher, load, len(paths), rng, config)
        if isinstance(track, str):
            ends[track] += 1
            continue
        origin = f"{type(teacher).__name__}'s boxes on {folder.name}"
        _write(track, paths, out / f"{folder.name}_t{ends['kept']}", origin)
        ends["kept"] += 1
        if ends["kept"] == config.tracks:
            break
    return ends
