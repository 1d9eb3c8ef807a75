"""OTB's layout and its oddities: delimiters, parts of videos, two targets, pixels from 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vil_tracker_core.data.readers import LAYOUTS, read_benchmark
from vil_tracker_core.data.readers.otb import COVERED


@pytest.fixture
def add(tmp_path: Path, write_frames: Callable[..., None]) -> Callable[..., Path]:
    """A function that adds a sequence: (name, frame numbers, boxes, ...) -> its folder."""

    def write(
        name: str,
        numbers: range,
        boxes: int,
        delimiter: str = ",",
        truth: tuple[str, ...] = ("groundtruth_rect.txt",),
        pattern: str = "{:04d}.jpg",
    ) -> Path:
        write_frames(tmp_path / name / "img", pattern, numbers)
        for number, file in enumerate(truth):
            rows = [
                delimiter.join(str(v) for v in (i + 1, 10 + number, 30, 40)) for i in range(boxes)
            ]
            (tmp_path / name / file).write_text("\n".join(rows) + "\n")
        return tmp_path / name

    return write


@pytest.mark.parametrize("delimiter", [",", "\t", " ", ", "])
def test_any_delimiter_and_pixels_from_one(
    tmp_path: Path, add: Callable[..., Path], delimiter: str
) -> None:
    add("Bolt", range(1, 4), 3, delimiter)
    (video,) = read_benchmark("otb", tmp_path)
    assert video.name == "Bolt"
    np.testing.assert_array_equal(video.boxes, [[0, 9, 30, 40], [1, 9, 30, 40], [2, 9, 30, 40]])
    assert [int(video.load(i)[0, 0, 0]) for i in range(3)] == [1, 2, 3]
    assert LAYOUTS["otb"].origin == 1


@pytest.mark.parametrize("name", ["Jogging", "Skating2"])
def test_two_targets_are_two_sequences(tmp_path: Path, add: Callable[..., Path], name: str) -> None:
    add(name, range(1, 4), 3, truth=("groundtruth_rect.1.txt", "groundtruth_rect.2.txt"))
    videos = read_benchmark("otb", tmp_path)
    assert [video.name for video in videos] == [f"{name}.1", f"{name}.2"]
    assert [video.boxes[0, 1] for video in videos] == [9, 10]


def test_of_human4_the_second_target_counts(tmp_path: Path, add: Callable[..., Path]) -> None:
    add("Human4", range(1, 4), 3, truth=("groundtruth_rect.1.txt", "groundtruth_rect.2.txt"))
    assert [video.name for video in read_benchmark("otb", tmp_path)] == ["Human4.2"]


@pytest.mark.parametrize(("name", "video_length"), [("David", 770), ("Football1", 80)])
def test_truth_of_a_part_of_the_video(
    tmp_path: Path, add: Callable[..., Path], name: str, video_length: int
) -> None:
    first, last = COVERED[name]
    add(name, range(1, video_length + 1), last - first + 1)
    (video,) = read_benchmark("otb", tmp_path)
    assert int(video.load(0)[0, 0, 0]) == first % 256
    assert int(video.load(len(video) - 1)[0, 0, 0]) == last % 256


def test_parts_have_their_published_lengths() -> None:
    lengths = {name: last - first + 1 for name, (first, last) in COVERED.items()}
    assert lengths == {
        "BlurCar1": 742,
        "BlurCar3": 357,
        "BlurCar4": 380,
        "David": 471,
        "Diving": 215,
        "Football1": 74,
        "Freeman3": 460,
        "Freeman4": 283,
    }


def test_frames_that_do_not_start_at_one(tmp_path: Path, add: Callable[..., Path]) -> None:
    add("BlurCar3", range(3, 360), 357)
    add("Board", range(1, 4), 3, pattern="{:05d}.jpg")
    videos = read_benchmark("otb", tmp_path)
    assert int(videos[0].load(0)[0, 0, 0]) == 3
    assert int(videos[1].load(2)[0, 0, 0]) == 3


@pytest.mark.parametrize(
    ("rows", "said"), [(0, "no boxes"), (2, "2 boxes for 3 frames"), (4, "4 boxes for 3 frames")]
)
def test_truth_must_fit_the_frames(
    tmp_path: Path, add: Callable[..., Path], refused: Callable[..., None], rows: int, said: str
) -> None:
    folder = add("Bolt", range(1, 4), rows)
    refused(lambda: read_benchmark("otb", tmp_path), folder / "groundtruth_rect.txt", said)


def test_wrong_layout(
    tmp_path: Path, add: Callable[..., Path], refused: Callable[..., None]
) -> None:
    folder = add("Bolt", range(1, 4), 3)
    refused(lambda: read_benchmark("otb", folder), folder, "NAME/img/0001.jpg")
    (folder / "groundtruth_rect.txt").unlink()
    refused(lambda: read_benchmark("otb", tmp_path), folder / "groundtruth_rect.txt", "missing")
    (folder / "img").rename(folder / "images")
    (folder / "img").mkdir()
    refused(lambda: read_benchmark("otb", tmp_path), folder / "img", "0001.jpg")


def test_one_broken_target_of_two_is_left_out_where_that_is_asked_for(
    tmp_path: Path, add: Callable[..., Path]
) -> None:
    truth = ("groundtruth_rect.1.txt", "groundtruth_rect.2.txt")
    folder = add("Jogging", range(1, 4), 3, truth=truth)
    (folder / truth[1]).write_text("1,2,3,4\n" * 2)
    broken: dict[str, str] = {}
    assert [video.name for video in read_benchmark("otb", tmp_path, broken=broken)] == ["Jogging.1"]
    assert list(broken) == ["Jogging.2"]
    assert "2 boxes for 3 frames" in broken["Jogging.2"]
