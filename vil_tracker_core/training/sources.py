"""From a training configuration to the data set of clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vil_tracker_core.data.clips import (
    BoxedStills,
    ClipDataset,
    Composites,
    Crossed,
    Difficulty,
    StillPatches,
    Videos,
    VideoSource,
    images_below,
    masked_frames,
    read_boxed_stills,
)
from vil_tracker_core.data.readers import coco, read_benchmark
from vil_tracker_core.data.sequence import DataError, Sequence, read_folders
from vil_tracker_core.data.skipped import SkippedImages
from vil_tracker_core.data.synthetic import Studio
from vil_tracker_core.training.config import DataConfig, TrainConfig
from vil_tracker_core.training.curriculum import difficulty

Weighted = list[tuple[float, VideoSource]]


def _existing(folders: list[Path]) -> list[Path]:
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}, named in the training configuration, is not a folder")
    return folders


def _read_videos(data: DataConfig, held_out: bool = False) -> list[tuple[float, list[Sequence]]]:
    """(weight, sequences to train on) of the video folders and of each video data set; or those
    that are held out of it."""
    read: list[tuple[float, list[Sequence]]] = []
    if data.videos:
        read.append((1.0, [s for root in _existing(data.videos) for s in read_folders(root)]))
    for item in data.datasets:
        if item.layout != "coco":
            sequences = read_benchmark(item.layout, item.root, item.wanted_split())
            read.append((item.weight, sequences))
    held = set(data.hold_out)
    unknown = held - {s.name for _, sequences in read for s in sequences}
    if unknown:  # a misspelt name would let a validation video into the training
        raise DataError(f"hold_out names {sorted(unknown)}, which no data set of videos holds")
    kept = [
        (weight, [s for s in sequences if (s.name in held) == held_out and s.visible.sum() > 1])
        for weight, sequences in read
    ]
    return [(weight, sequences) for weight, sequences in kept if sequences]


def _read_boxed(data: DataConfig) -> Weighted:
    """(weight, source) of the folders of boxed photographs and of each COCO."""
    items = [item for root in _existing(data.boxed) for item in read_boxed_stills(root)]
    sources: Weighted = [(1.0, BoxedStills(items))] if items else []
    for item in data.datasets:
        if item.layout == "coco":
            read = coco.read(item.root, item.wanted_split() or "")
            sources.append((item.weight, BoxedStills(read)))
    return sources


def clip_sources(data: DataConfig) -> Weighted:
    """The weighted sources that a configuration names; raises DataError where one is empty."""
    # resolved: a folder is the same folder however it is spelt
    cutout_folders = tuple(folder.resolve() for folder in _existing(data.cutouts))
    videos: Weighted = [(weight, Videos(found)) for weight, found in _read_videos(data)]
    boxed = _read_boxed(data)
    stills = [
        p for root in _existing(data.stills) for p in images_below(root.resolve(), cutout_folders)
    ]
    cutouts = [p for root in cutout_folders for p in images_below(root)]
    masked = [
        pair
        for root in data.videos
        for pair in masked_frames(root)
        if pair[0].parent.parent.name not in data.hold_out
    ]
    studio = Studio(cutouts, masked, stills, data.crossing)
    if data.crossing > 0:
        videos = [(weight, Crossed(source, studio, data.crossing)) for weight, source in videos]
    wanted: list[tuple[str, float, Weighted]] = [
        ("videos", data.video_weight, videos),
        ("boxed photographs", data.boxed_weight, boxed),
        ("patches of stills", data.patch_weight, [(1.0, StillPatches(stills))] if stills else []),
        (
            "composites of stills",
            data.composite_weight,
            [(1.0, Composites(studio))] if stills else [],
        ),
    ]
    sources: Weighted = []
    for name, weight, found in wanted:
        if weight > 0 and not found:
            raise DataError(f"the configuration gives {name} a weight but names no data for it")
        if weight > 0:
            whole = sum(share for share, _ in found)
            sources += [(weight * share / whole, source) for share, source in found]
    return sources


def difficulty_schedule(config: TrainConfig) -> Callable[[int], Difficulty]:
    """Clip number -> difficulty, as the curriculum has it at the step that uses the clip."""
    per_step = config.batch * config.accumulate

    def at(index: int) -> Difficulty:
        step = index / per_step
        return Difficulty(difficulty(step, config.difficulty_steps, config.difficulty_from))

    return at


def clip_dataset(config: TrainConfig, skipped: Path | None = None) -> ClipDataset:
    """All clips of a run, in the order in which they are used.

    Args:
        config: the run.
        skipped: a text file in which every process and loader worker notes the broken images that
            it skips, see `SkippedImages`; `ClipDataset.skipped.reasons()` reads them back.
    """
    return ClipDataset(
        clip_sources(config.data),
        config.model_config_of(),
        config.frames,
        count=config.steps * config.batch * config.accumulate,
        seed=config.seed,
        difficulty=difficulty_schedule(config),
        absent=config.data.absent,
        skipped=SkippedImages(skipped),
        templates=config.templates,
        follow=config.follow,
        redrawn=config.data.redrawn,
    )


def held_dataset(config: TrainConfig, count: int) -> ClipDataset | None:
    """Clips of the sequences that a run holds out, the same for every run with this many `frames`
    and `templates` and this `follow`: no crossings, no absences, full difficulty. None where it
    holds out none."""
    if not config.data.hold_out:  # and reads nothing: data sets are large
        return None
    held = [s for _, sequences in _read_videos(config.data, held_out=True) for s in sequences]
    return ClipDataset(
        [(1.0, Videos(held))],
        config.model_config_of(),
        config.frames,
        count,
        seed=0,
        difficulty=lambda index: Difficulty(1.0),
        absent=0.0,
        templates=config.templates,
        follow=config.follow,
    )
