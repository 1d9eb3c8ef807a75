"""From a configuration to clips: every kind of data is found, and what is missing is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from vil_tracker_core.data.clips import BoxedStills, Composites, Crossed, StillPatches, Videos
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


def test_crossed_videos_and_composites(make_config: MakeConfig) -> None:
    sources = clip_sources(make_config({"crossing": 0.3}).data)
    videos, composites = sources[0][1], sources[3][1]
    assert isinstance(videos, Crossed)
    assert isinstance(videos.source, Videos)
    assert isinstance(composites, Composites)
    assert (videos.share, composites.studio.crossing) == (0.3, 0.3)


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
    [("videos", "videos"), ("boxed", "boxed photographs"), ("stills", "patches of stills")],
)
def test_weight_without_data_is_refused(make_config: MakeConfig, emptied: str, name: str) -> None:
    with pytest.raises(DataError, match=f"{name} a weight but names no data"):
        clip_sources(make_config({emptied: [], "hold_out": []}).data)


def test_composites_need_photographs_only(make_config: MakeConfig) -> None:
    bare = {"cutouts": [], "videos": [], "video_weight": 0, "hold_out": []}
    sources = clip_sources(make_config(bare).data)
    assert [type(source) for _, source in sources] == [BoxedStills, StillPatches, Composites]
    none = {"stills": [], "patch_weight": 0}
    with pytest.raises(DataError, match="composites of stills a weight but names no data"):
        clip_sources(make_config(none).data)


@pytest.fixture
def lasot(tmp_path: Path) -> Path:
    """One sequence of each split, of whose three frames the second is hidden."""
    for name in ("car-1", "car-2"):
        folder = tmp_path / "lasot" / "car" / name
        (folder / "img").mkdir(parents=True)
        for index in range(3):
            cv2.imwrite(str(folder / "img" / f"{index + 1:08d}.jpg"), np.zeros((40, 60), np.uint8))
        (folder / "groundtruth.txt").write_text("10,10,20,20\n" * 3)
        (folder / "full_occlusion.txt").write_text("0,1,0")
        (folder / "out_of_view.txt").write_text("0,0,0")
    (tmp_path / "lasot" / "testing_set.txt").write_text("car-2\n")
    return tmp_path / "lasot"


def test_published_data_sets_share_the_weight_of_videos(
    make_config: MakeConfig, lasot: Path
) -> None:
    data = {"datasets": [{"layout": "lasot", "root": lasot, "weight": 2}]}
    (folders, first), (published, second), *_ = clip_sources(make_config(data).data)
    assert (folders, published) == pytest.approx((0.1, 0.2))
    assert isinstance(first, Videos)
    assert isinstance(second, Videos)
    assert [video.name for video in second.sequences] == ["car-1"], "the train split"
    assert second.sequences[0].visible.tolist() == [True, False, True]


def test_split_and_hold_out_of_a_published_data_set(make_config: MakeConfig, lasot: Path) -> None:
    data = {"videos": [], "datasets": [{"layout": "lasot", "root": lasot, "split": "test"}]}
    videos = clip_sources(make_config({**data, "hold_out": []}).data)[0][1]
    assert isinstance(videos, Videos)
    assert [video.name for video in videos.sequences] == ["car-2"]
    with pytest.raises(DataError, match="videos a weight but names no data"):
        clip_sources(make_config({**data, "hold_out": ["car-2"]}).data)


def test_coco_shares_the_weight_of_boxed_photographs(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    (tmp_path / "train2017").mkdir()
    (tmp_path / "annotations").mkdir()
    cv2.imwrite(str(tmp_path / "train2017" / "7.jpg"), np.zeros((90, 90), np.uint8))
    listed = {
        "images": [{"id": 7, "file_name": "7.jpg"}],
        "annotations": [{"image_id": 7, "bbox": [5, 6, 30, 40], "iscrowd": 0}],
    }
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(listed))
    data = {"datasets": [{"layout": "coco", "root": tmp_path}]}
    _, (folders, _), (published, coco), *_ = clip_sources(make_config(data).data)
    assert (folders, published) == pytest.approx((0.05, 0.05))
    assert isinstance(coco, BoxedStills)
    assert [path.name for path, _ in coco.items] == ["7.jpg"]
    video = coco(np.random.default_rng(0), 3, 5)
    assert (len(video), video.name) == (3, "7.jpg")


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"layout": "vot"}, "'vot'.*got10k.*coco"),
        ({"layout": "got10k", "split": "dev"}, "'dev' of got10k.*val, train, test"),
        ({"layout": "otb", "split": "train"}, "'train' of otb: it has none"),
        ({"layout": "coco", "split": "train"}, "'train' of coco.*train2017"),
        ({"layout": "otb", "weight": 0}, "weight"),
    ],
)
def test_unknown_layouts_and_splits_are_refused(
    make_config: MakeConfig, tmp_path: Path, item: dict[str, object], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        make_config({"datasets": [{"root": tmp_path, **item}]})


def test_skipped_images_are_noted_in_the_runs_file(make_config: MakeConfig, tmp_path: Path) -> None:
    for name in ("good", "broken"):
        pixels = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{name}.jpg"), pixels)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(broken.read_bytes()[:900])
    weights = {"video_weight": 0, "boxed_weight": 0, "composite_weight": 0}
    config = make_config({"stills": [tmp_path], "hold_out": [], "videos": [], **weights})
    dataset = clip_dataset(config, tmp_path / "skipped_images.txt")
    for index in range(12):
        dataset[index]
    (reason,) = clip_dataset(config, tmp_path / "skipped_images.txt").skipped.reasons()
    assert str(broken) in reason


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
    data = {"redrawn": 0.2}
    config = make_config(frames=2, steps=5, batch=4, accumulate=3, seed=9, data=data)
    dataset = clip_dataset(config)
    assert len(dataset) == 60
    assert (dataset.seed, dataset.frames) == (9, 2)
    assert (dataset.absent, dataset.redrawn) == (0.08, 0.2)
    np.testing.assert_allclose(dataset.shares, [0.3, 0.1, 0.15, 0.45])
    clips = [dataset[index] for index in range(12)]
    assert all(clip["search"].shape == (2, 3, 64, 64) for clip in clips)
    assert sum(bool(clip["visible"].any()) for clip in clips) > 6
