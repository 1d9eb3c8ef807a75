"""From a configuration to clips: every kind of data is found, and what is missing is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vil_tracker_core.data.clips import BoxedStills, Composites, StillPatches, Videos
from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.sources import clip_dataset, clip_sources, difficulty_schedule

MakeConfig = Callable[..., TrainConfig]


def test_every_kind_of_source_with_its_weight(make_config: MakeConfig) -> None:
    data = make_config({"boxed_weight": 0.2}).data
    sources = clip_sources(data)
    assert [(weight, type(source)) for weight, source in sources] == [
        (0.3, Videos),
        (0.2, BoxedStills),
        (0.15, StillPatches),
        (0.45, Composites),
    ]


def test_sources_hold_what_the_folders_hold(make_config: MakeConfig) -> None:
    videos, boxed, patches, composites = (s for _, s in clip_sources(make_config().data))
    assert isinstance(videos, Videos)
    assert [video.name for video in videos.sequences] == ["car", "cat"]
    assert isinstance(boxed, BoxedStills)
    assert [(path.name, len(boxes)) for path, boxes in boxed.items] == [("street.jpg", 2)]
    assert isinstance(patches, StillPatches)
    assert [path.name for path in patches.stills] == ["0.jpg", "1.jpg"]
    assert isinstance(composites, Composites)
    assert [path.name for path in composites.studio.cutouts] == ["0.png", "1.png"]


def test_held_out_videos_are_not_seen(make_config: MakeConfig) -> None:
    sources = clip_sources(make_config({"hold_out": ["held", "car"]}).data)
    videos, composites = sources[0][1], sources[3][1]
    assert isinstance(videos, Videos)
    assert isinstance(composites, Composites)
    assert [video.name for video in videos.sequences] == ["cat"]
    assert {frame.parents[1].name for frame, _ in composites.studio.masked} == {"cat"}


def test_held_out_name_that_does_not_exist_is_refused(make_config: MakeConfig) -> None:
    """A misspelt name would let the validation videos into the training."""
    with pytest.raises(DataError, match=r"hold_out.*'hold'"):
        clip_sources(make_config({"hold_out": ["hold"]}).data)


@pytest.mark.parametrize(
    ("emptied", "name"),
    [("videos", "videos"), ("boxed", "boxed"), ("stills", "stills")],
)
def test_weight_without_data_is_refused(make_config: MakeConfig, emptied: str, name: str) -> None:
    with pytest.raises(DataError, match=f"{name} a weight but names no data"):
        clip_sources(make_config({emptied: [], "hold_out": []}).data)


def test_composites_need_cutouts_or_masks(make_config: MakeConfig, training_folder: Path) -> None:
    from_masks = make_config({"cutouts": []}).data
    assert len(clip_sources(from_masks)) == 4
    bare = {"cutouts": [], "videos": [], "video_weight": 0, "hold_out": []}
    with pytest.raises(DataError, match="cutouts and stills"):
        clip_sources(make_config(bare).data)


def test_weight_of_nothing_leaves_a_source_out(make_config: MakeConfig) -> None:
    data = {"boxed": [], "boxed_weight": 0, "video_weight": 0, "composite_weight": 0}
    sources = clip_sources(make_config(data).data)
    assert [type(source) for _, source in sources] == [StillPatches]


@pytest.mark.parametrize("kind", ["videos", "boxed", "stills", "cutouts"])
def test_missing_folder_is_named(make_config: MakeConfig, tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match=r"nowhere.*is not a folder"):
        clip_sources(make_config({kind: [tmp_path / "nowhere"]}).data)


def test_cutouts_are_no_photographs_however_they_are_spelt(
    make_config: MakeConfig, training_folder: Path
) -> None:
    spelt = training_folder / "still" / ".." / "still" / "stamps"
    patches = clip_sources(make_config({"cutouts": [spelt]}).data)[2][1]
    assert isinstance(patches, StillPatches)
    assert [path.name for path in patches.stills] == ["0.jpg", "1.jpg"]


def test_difficulty_is_linear_and_then_stays(make_config: MakeConfig) -> None:
    config = make_config(batch=4, accumulate=2, difficulty_from=0.2, difficulty_steps=10)
    level = difficulty_schedule(config)
    levels = [level(step * 8).level for step in (0, 5, 10, 50)]
    assert levels == pytest.approx([0.2, 0.6, 1.0, 1.0])
    assert level(7).level < level(8).level


def test_difficulty_without_steps_is_full(make_config: MakeConfig) -> None:
    level = difficulty_schedule(make_config(difficulty_steps=0, difficulty_from=0.2))
    assert level(0).level == 1.0


def test_dataset_holds_the_clips_of_the_run(make_config: MakeConfig) -> None:
    config = make_config(frames=2, steps=5, batch=4, accumulate=3, seed=9)
    dataset = clip_dataset(config)
    assert len(dataset) == 60
    assert (dataset.seed, dataset.frames, dataset.absent) == (9, 2, 0.08)
    np.testing.assert_allclose(dataset.shares, [0.3, 0.1, 0.15, 0.45])
    clips = [dataset[index] for index in range(12)]
    assert all(clip["search"].shape == (2, 3, 64, 64) for clip in clips)
    assert sum(bool(clip["visible"].any()) for clip in clips) > 6
