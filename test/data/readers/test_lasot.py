"""LaSOT's layout: classes of sequences, flags in one line, and the list of the test split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vil_tracker_core.data.readers import read_benchmark


@pytest.fixture
def lasot(tmp_path: Path, write_frames: Callable[..., None]) -> Path:
    for name in ("airplane-1", "airplane-2", "zebra-10"):
        folder = tmp_path / name.split("-")[0] / name
        write_frames(folder / "img", "{:08d}.jpg", range(1, 5))
        (folder / "groundtruth.txt").write_text("5,6,70,80\n0,0,0,0\n7,8,70,80\n9,9,70,80\n")
        (folder / "full_occlusion.txt").write_text("0,0,1,0")
        (folder / "out_of_view.txt").write_text("0,1,0,0")
        (folder / "nlp.txt").write_text("white airplane landing on ground\n")
    (tmp_path / "testing_set.txt").write_text("airplane-1\nzebra-10\n")
    return tmp_path


def test_test_split_is_that_of_its_list(lasot: Path) -> None:
    videos = read_benchmark("lasot", lasot)
    assert [video.name for video in videos] == ["airplane-1", "zebra-10"]
    for video in videos:
        assert video.visible.tolist() == [True, False, False, True]
        np.testing.assert_array_equal(video.boxes[3], [9, 9, 70, 80])
        assert [int(video.load(i)[0, 0, 0]) for i in range(4)] == [1, 2, 3, 4]


def test_train_split_is_the_rest_or_its_own_list(lasot: Path) -> None:
    assert [video.name for video in read_benchmark("lasot", lasot, "train")] == ["airplane-2"]
    (lasot / "training_set.txt").write_text("zebra-10\nairplane-2\n")
    names = [video.name for video in read_benchmark("lasot", lasot, "train")]
    assert names == ["zebra-10", "airplane-2"]


@pytest.mark.parametrize("file", ["full_occlusion.txt", "out_of_view.txt", "groundtruth.txt"])
def test_missing_files_are_named(lasot: Path, refused: Callable[..., None], file: str) -> None:
    path = lasot / "airplane" / "airplane-1" / file
    path.unlink()
    refused(lambda: read_benchmark("lasot", lasot), path, "missing")


def test_truth_and_flags_must_fit_the_frames(lasot: Path, refused: Callable[..., None]) -> None:
    folder = lasot / "zebra" / "zebra-10"
    (folder / "out_of_view.txt").write_text("0,1,0")
    refused(
        lambda: read_benchmark("lasot", lasot), folder / "out_of_view.txt", "3 flags", "4 boxes"
    )
    (folder / "groundtruth.txt").write_text("1,2,3,4\n" * 3)
    refused(
        lambda: read_benchmark("lasot", lasot), folder / "groundtruth.txt", "3 boxes", "4 frames"
    )
    (folder / "groundtruth.txt").write_text("\n")
    refused(lambda: read_benchmark("lasot", lasot), folder / "groundtruth.txt", "no boxes")


def test_lists_that_do_not_fit_the_tree(lasot: Path, refused: Callable[..., None]) -> None:
    (lasot / "testing_set.txt").write_text("airplane-1\nbear-4\nbear-5\n")
    refused(lambda: read_benchmark("lasot", lasot), lasot, "lacks 2", "bear-4")
    broken: dict[str, str] = {}
    (there,) = read_benchmark("lasot", lasot, broken=broken)
    assert there.name == "airplane-1"
    assert list(broken) == ["bear-4", "bear-5"]
    assert "bear/bear-4/groundtruth.txt is missing" in broken["bear-4"]
    (lasot / "testing_set.txt").write_text("\n")
    refused(lambda: read_benchmark("lasot", lasot), lasot / "testing_set.txt", "no sequence")
    (lasot / "testing_set.txt").unlink()
    for split in ("test", "train"):
        refused(
            lambda s=split: read_benchmark("lasot", lasot, s), lasot / "testing_set.txt", "missing"
        )


def test_wrong_layout(lasot: Path, refused: Callable[..., None]) -> None:
    refused(lambda: read_benchmark("lasot", lasot / "airplane"), lasot / "airplane", "CLASS-NUMBER")
