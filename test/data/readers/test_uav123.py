"""UAV123's layout: sequences that are parts of a video, NaN where the target is absent."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from vil_tracker_core.data.readers import read_benchmark
from vil_tracker_core.data.readers.uav123 import PARTS, RANGES


@pytest.fixture
def uav123(tmp_path: Path, write_frames: Callable[..., None]) -> Path:
    """bike3 whole; bird1, of which sequences 1 and 2 are published parts."""
    frames, truth = tmp_path / "data_seq" / "UAV123", tmp_path / "anno" / "UAV123"
    truth.mkdir(parents=True)
    (truth / "att").mkdir()  # the attributes, a file a sequence
    (truth / "att" / "bike3.txt").write_text("1,0,0,0,0,0,0,0,0,0,0,0\n")
    write_frames(frames / "bike3", "{:06d}.jpg", range(1, 4))
    (truth / "bike3.txt").write_text("1,2,30,40\nNaN,NaN,NaN,NaN\n3,2,30,40\n")
    for name in ("bird1_1", "bird1_2"):
        _, first, last = RANGES[name]
        write_frames(frames / "bird1", "{:06d}.jpg", range(first, last + 1))
        rows = [f"{number},2,30,40\n" for number in range(first, last + 1)]
        (truth / f"{name}.txt").write_text("".join(rows))
    return tmp_path


def test_whole_and_parts_of_videos(uav123: Path) -> None:
    videos = read_benchmark("uav123", uav123)
    assert [video.name for video in videos] == ["bike3", "bird1_1", "bird1_2"]
    assert videos[0].visible.tolist() == [True, False, True]
    np.testing.assert_array_equal(videos[0].boxes[2], [3, 2, 30, 40])
    for video, (first, last) in zip(videos[1:], PARTS["bird1"], strict=False):
        assert len(video) == last - first + 1
        for index in (0, len(video) - 1):
            number = int(video.boxes[index, 0])
            assert int(video.load(index)[0, 0, 0]) == number % 256


def test_table_is_the_published_one() -> None:
    """123 sequences of 91 videos: 72 whole ones and these parts."""
    assert len(RANGES) == 51
    assert len(PARTS) == 19
    assert RANGES["uav1_3"] == ("uav1", 2473, 3469)
    assert RANGES["group3_4"] == ("group3", 4369, 5527)
    for parts in PARTS.values():
        assert parts[0][0] == 1
        assert all(first < last for first, last in parts)
        assert all(after[0] >= before[1] for before, after in pairwise(parts))


def test_truth_of_a_whole_video_must_fit(uav123: Path, refused: Callable[..., None]) -> None:
    truth = uav123 / "anno" / "UAV123" / "bike3.txt"
    for rows, said in ((2, "2 boxes for 3 frames"), (4, "000004.jpg is missing"), (0, "no boxes")):
        truth.write_text("1,2,3,4\n" * rows)
        refused(lambda: read_benchmark("uav123", uav123), truth, said)


def test_truth_of_a_part_must_fit(uav123: Path, refused: Callable[..., None]) -> None:
    truth = uav123 / "anno" / "UAV123" / "bird1_2.txt"
    whole = truth.read_text()
    truth.write_text(whole[: whole.rstrip().rfind("\n") + 1])
    refused(lambda: read_benchmark("uav123", uav123), truth, "702 boxes", "775 to 1477")
    truth.write_text(whole)
    (uav123 / "data_seq" / "UAV123" / "bird1" / "001477.jpg").unlink()
    refused(lambda: read_benchmark("uav123", uav123), "001477.jpg is missing", "bird1_2")


def test_wrong_layout(uav123: Path, refused: Callable[..., None]) -> None:
    inner = uav123 / "anno"
    refused(lambda: read_benchmark("uav123", inner), inner / "anno" / "UAV123", "data_seq/UAV123")
    (uav123 / "data_seq" / "UAV123" / "bike3").rename(uav123 / "bike3")
    refused(lambda: read_benchmark("uav123", uav123), "bike3", "frames are missing")


def test_broken_sequences_are_left_out_where_that_is_asked_for(uav123: Path) -> None:
    frames = uav123 / "data_seq" / "UAV123"
    for path in (frames / "bike3").iterdir():
        path.unlink()
    truth = uav123 / "anno" / "UAV123" / "bird1_1.txt"
    truth.write_text("")
    broken: dict[str, str] = {}
    videos = read_benchmark("uav123", uav123, broken=broken)
    assert [video.name for video in videos] == ["bird1_2"]
    assert sorted(broken) == ["bike3", "bird1_1"]
    assert "3 boxes for 0 frames" in broken["bike3"]
    assert broken["bird1_1"] == f"{truth} holds no boxes"
