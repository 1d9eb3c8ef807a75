"""Choosing a reader by the name of its layout, and what is not there."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from vil_tracker_core.data.readers import LAYOUTS, read_benchmark
from vil_tracker_core.data.readers.common import NumberedFrames
from vil_tracker_core.data.sequence import DataError

PUBLISHED = {"got10k", "lasot", "trackingnet", "uav123", "dtb70", "visdrone", "otb"}


def test_every_published_layout_is_there() -> None:
    assert set(LAYOUTS) == PUBLISHED | {"folder"}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_empty_and_missing_folders_are_refused(
    tmp_path: Path, refused: Callable[..., None], layout: str
) -> None:
    refused(lambda: read_benchmark(layout, tmp_path / "gone"), tmp_path / "gone", "not a folder")
    refused(lambda: read_benchmark(layout, tmp_path), tmp_path)


def test_unknown_layout_and_split(tmp_path: Path, refused: Callable[..., None]) -> None:
    refused(lambda: read_benchmark("vot", tmp_path), "'vot'", "got10k", "folder")
    refused(lambda: read_benchmark("got10k", tmp_path, "dev"), "'dev'", "val, train, test")
    refused(lambda: read_benchmark("otb", tmp_path, "test"), "OTB-100", "'test'", "leave it out")


def test_generic_folder(tmp_path: Path, write_frames: Callable[..., None]) -> None:
    write_frames(tmp_path / "car" / "img", "{:08d}.png", range(1, 3))
    (tmp_path / "car" / "groundtruth_rect.txt").write_text("1,2,3,4\nnan,nan,nan,nan\n")
    (video,) = read_benchmark("folder", tmp_path)
    assert video.visible.tolist() == [True, False]
    write_frames(tmp_path / "dog" / "img", "{:08d}.png", range(1, 3))
    broken: dict[str, str] = {}
    assert [v.name for v in read_benchmark("folder", tmp_path, broken=broken)] == ["car"]
    assert broken == {"dog": f"{tmp_path / 'dog' / 'groundtruth_rect.txt'} is missing"}


def test_frames_travel_to_another_process(tmp_path: Path) -> None:
    frames = NumberedFrames(tmp_path, "{:04d}.jpg", 7)
    assert pickle.loads(pickle.dumps(frames)).path(3) == tmp_path / "0010.jpg"


def test_a_gap_in_the_numbers_is_named_when_it_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0002\.jpg is missing"):
        NumberedFrames(tmp_path, "{:04d}.jpg")(1)


def test_frames_of_another_name_are_refused_at_once(
    tmp_path: Path, write_frames: Callable[..., None], refused: Callable[..., None]
) -> None:
    write_frames(tmp_path / "car" / "img", "{:04d}.jpg", range(1, 3))
    (tmp_path / "car" / "groundtruth_rect.txt").write_text("1,2,3,4\n" * 2)
    refused(
        lambda: read_benchmark("dtb70", tmp_path), "2 boxes for 2 frames", "00001.jpg is missing"
    )
