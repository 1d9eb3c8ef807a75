"""TrackingNet's layout: chunks, frames numbered from 0 without zeros in front, a bare test set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vil_tracker_core.data.readers import read_benchmark

FRAMES = 12
"""Enough that sorting by name, where 10 comes before 2, would be seen."""


@pytest.fixture
def trackingnet(tmp_path: Path, write_frames: Callable[..., None]) -> Path:
    for chunk, name in (("TRAIN_0", "b_1"), ("TRAIN_10", "c"), ("TRAIN_2", "a"), ("TEST", "t")):
        write_frames(tmp_path / chunk / "frames" / name, "{}.jpg", range(FRAMES))
        (tmp_path / chunk / "anno").mkdir()
        rows = [f"{i}.5,2,30,40" for i in range(1 if chunk == "TEST" else FRAMES)]
        (tmp_path / chunk / "anno" / f"{name}.txt").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_chunks_and_frames_come_in_the_order_of_their_numbers(trackingnet: Path) -> None:
    videos = read_benchmark("trackingnet", trackingnet)
    assert [video.name for video in videos] == ["b_1", "a", "c"]
    for video in videos:
        assert video.visible.all()
        np.testing.assert_array_equal(video.boxes[:, 0], np.arange(FRAMES) + 0.5)
        assert [int(video.load(i)[0, 0, 0]) for i in range(FRAMES)] == list(range(FRAMES))


def test_test_split_knows_the_first_box_only(trackingnet: Path) -> None:
    (video,) = read_benchmark("trackingnet", trackingnet, "test")
    assert len(video) == FRAMES
    assert video.visible.tolist() == [True] + [False] * (FRAMES - 1)


def test_broken_truth_is_named(trackingnet: Path, refused: Callable[..., None]) -> None:
    truth = trackingnet / "TRAIN_2" / "anno" / "a.txt"
    truth.write_text("1,2,3,4\n" * 11)
    refused(lambda: read_benchmark("trackingnet", trackingnet), truth, "11 boxes for 12 frames")
    truth.write_text("1,2,3,4\n" * 13)
    refused(
        lambda: read_benchmark("trackingnet", trackingnet), truth, "13 boxes", "12.jpg is missing"
    )
    truth.write_text("")
    refused(lambda: read_benchmark("trackingnet", trackingnet), truth, "no boxes")


def test_wrong_layout(trackingnet: Path, refused: Callable[..., None]) -> None:
    inner = trackingnet / "TRAIN_0"
    refused(lambda: read_benchmark("trackingnet", inner), inner, "TRAIN_0/ to TRAIN_11/")
    (trackingnet / "TRAIN_2" / "frames").rename(trackingnet / "TRAIN_2" / "zips")
    refused(lambda: read_benchmark("trackingnet", trackingnet), trackingnet / "TRAIN_2" / "frames")


def test_missing_frames_are_named(trackingnet: Path, refused: Callable[..., None]) -> None:
    frames = trackingnet / "TRAIN_2" / "frames" / "a"
    frames.rename(frames.with_name("z"))
    refused(lambda: read_benchmark("trackingnet", trackingnet), frames, "frames are missing")
