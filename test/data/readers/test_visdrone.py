"""VisDrone-SOT's layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vil_tracker_core.data.readers import read_benchmark

NAMES = ["uav0000003_00000_s", "uav0000014_00667_s"]


@pytest.fixture
def visdrone(tmp_path: Path, write_frames: Callable[..., None]) -> Path:
    (tmp_path / "annotations").mkdir()
    for name in NAMES:
        write_frames(tmp_path / "sequences" / name, "img{:07d}.jpg", range(1, 4))
        (tmp_path / "annotations" / f"{name}.txt").write_text("1,2,30,40\n0,0,0,0\n3,4,30,40\n")
    return tmp_path


def test_sequences_are_read(visdrone: Path) -> None:
    videos = read_benchmark("visdrone", visdrone)
    assert [video.name for video in videos] == NAMES
    assert videos[0].visible.tolist() == [True, False, True]
    np.testing.assert_array_equal(videos[0].boxes[2], [3, 4, 30, 40])
    assert [int(videos[0].load(i)[0, 0, 0]) for i in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "said"),
    [(0, "no boxes"), (2, "2 boxes for 3 frames"), (4, "img0000004.jpg is missing")],
)
def test_truth_must_fit_the_frames(
    visdrone: Path, refused: Callable[..., None], rows: int, said: str
) -> None:
    truth = visdrone / "annotations" / f"{NAMES[1]}.txt"
    truth.write_text("1,2,3,4\n" * rows)
    refused(lambda: read_benchmark("visdrone", visdrone), truth, said)


def test_missing_truth_and_wrong_layout(visdrone: Path, refused: Callable[..., None]) -> None:
    inner = visdrone / "sequences"
    refused(lambda: read_benchmark("visdrone", inner), inner / "annotations", "VisDrone-SOT")
    (visdrone / "annotations" / f"{NAMES[0]}.txt").unlink()
    refused(lambda: read_benchmark("visdrone", visdrone), f"{NAMES[0]}.txt", "missing")
