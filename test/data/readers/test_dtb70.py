"""DTB70's layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vil_tracker_core.data.readers import read_benchmark


@pytest.fixture
def dtb70(tmp_path: Path, write_frames: Callable[..., None]) -> Path:
    for name in ("StreetBasketball1", "Animal1"):
        write_frames(tmp_path / name / "img", "{:05d}.jpg", range(1, 4))
        rows = [f"{i},20,30,40" for i in range(3)]
        (tmp_path / name / "groundtruth_rect.txt").write_text("\r\n".join(rows) + "\r\n")
    return tmp_path


def test_sequences_are_read(dtb70: Path) -> None:
    videos = read_benchmark("dtb70", dtb70)
    assert [video.name for video in videos] == ["Animal1", "StreetBasketball1"]
    np.testing.assert_array_equal(videos[0].boxes[:, 0], [0, 1, 2])
    assert [int(videos[0].load(i)[0, 0, 0]) for i in range(3)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "said"), [(0, "no boxes"), (2, "2 boxes for 3 frames"), (4, "4 boxes for 3 frames")]
)
def test_truth_must_fit_the_frames(
    dtb70: Path, refused: Callable[..., None], rows: int, said: str
) -> None:
    truth = dtb70 / "Animal1" / "groundtruth_rect.txt"
    truth.write_text("1,2,3,4\n" * rows)
    refused(lambda: read_benchmark("dtb70", dtb70), truth, said)


def test_missing_truth_and_wrong_layout(dtb70: Path, refused: Callable[..., None]) -> None:
    refused(lambda: read_benchmark("dtb70", dtb70 / "Animal1"), dtb70 / "Animal1", "NAME/img")
    (dtb70 / "Animal1" / "groundtruth_rect.txt").unlink()
    refused(lambda: read_benchmark("dtb70", dtb70), "groundtruth_rect.txt", "missing")


@pytest.mark.parametrize(("rows", "said"), [(0, "no boxes"), (2, "2 boxes for 3 frames")])
def test_a_broken_sequence_is_left_out_where_that_is_asked_for(
    dtb70: Path, rows: int, said: str
) -> None:
    (dtb70 / "Animal1" / "groundtruth_rect.txt").write_text("1,2,3,4\n" * rows)
    broken: dict[str, str] = {}
    videos = read_benchmark("dtb70", dtb70, broken=broken)
    assert [video.name for video in videos] == ["StreetBasketball1"]
    assert list(broken) == ["Animal1"]
    assert said in broken["Animal1"]
    assert str(dtb70 / "Animal1") in broken["Animal1"]


def test_nothing_is_noted_of_whole_sequences(dtb70: Path) -> None:
    broken: dict[str, str] = {}
    assert len(read_benchmark("dtb70", dtb70, broken=broken)) == 2
    assert broken == {}
