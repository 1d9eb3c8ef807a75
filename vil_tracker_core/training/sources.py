"""From a training configuration to the data set of clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vil_tracker_core.data.clips import (
    BoxedStills,
    ClipDataset,
    Composites,
    Difficulty,
    StillPatches,
    Videos,
    VideoSource,
    images_below,
    masked_frames,
    read_boxed_stills,
)
from vil_tracker_core.data.sequence import DataError, read_folders
from vil_tracker_core.data.synthetic import Studio
from vil_tracker_core.training.config import DataConfig, TrainConfig


def _existing(folders: list[Path]) -> list[Path]:
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}, named in the training configuration, is not a folder")
    return folders


def clip_sources(data: DataConfig) -> list[tuple[float, VideoSource]]:
    """The weighted sources that a configuration names; raises DataError where one is empty."""
    held = set(data.hold_out)
    # resolved: a folder is the same folder however it is spelt
    cutout_folders = tuple(folder.resolve() for folder in _existing(data.cutouts))
    videos = [s for root in _existing(data.videos) for s in read_folders(root)]
    unknown = held - {s.name for s in videos}
    if unknown:  # a misspelt name would let a validation video into the training
        raise DataError(f"hold_out names {sorted(unknown)}, which no folder of videos holds")
    videos = [s for s in videos if s.name not in held and s.visible.sum() > 1]
    stills = [
        p for root in _existing(data.stills) for p in images_below(root.resolve(), cutout_folders)
    ]
    boxed = [item for root in _existing(data.boxed) for item in read_boxed_stills(root)]
    cutouts = [p for root in cutout_folders for p in images_below(root)]
    masked = [
        pair
        for root in data.videos
        for pair in masked_frames(root)
        if pair[0].parent.parent.name not in held
    ]
    studio = Studio(cutouts, masked, stills)
    wanted: list[tuple[str, float, bool, VideoSource]] = [
        ("videos", data.video_weight, bool(videos), Videos(videos)),
        ("boxed", data.boxed_weight, bool(boxed), BoxedStills(boxed)),
        ("stills", data.patch_weight, bool(stills), StillPatches(stills)),
        (
            "cutouts and stills",
            data.composite_weight,
            bool(stills) and bool(cutouts or masked),
            Composites(studio),
        ),
    ]
    sources = []
    for name, weight, there, source in wanted:
        if weight > 0 and not there:
            raise DataError(f"the configuration gives {name} a weight but names no data for it")
        if weight > 0:
            sources.append((weight, source))
    return sources


def difficulty_schedule(config: TrainConfig) -> Callable[[int], Difficulty]:
    """Clip number -> difficulty: linear from the start's to 1 over the configured steps."""
    per_step = config.batch * config.accumulate

    def at(index: int) -> Difficulty:
        if not config.difficulty_steps:
            return Difficulty(1.0)
        share = min(index / per_step / config.difficulty_steps, 1.0)
        return Difficulty(config.difficulty_from + (1 - config.difficulty_from) * share)

    return at


def clip_dataset(config: TrainConfig) -> ClipDataset:
    """All clips of a run, in the order in which they are used."""
    return ClipDataset(
        clip_sources(config.data),
        config.model_config_of(),
        config.frames,
        count=config.steps * config.batch * config.accumulate,
        seed=config.seed,
        difficulty=difficulty_schedule(config),
        absent=config.data.absent,
    )
