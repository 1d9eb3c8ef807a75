"""GOT-10k's layout: splits, labels of absence and cover, rates, and the test split's lone box."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vil_tracker_core.data.readers import read_benchmark

NAMES = {
    "train": "GOT-10k_Train_000001",
    "val": "GOT-10k_Val_000001",
    "test": "GOT-10k_Test_000001",
}
META = "[METAINFO]\nurl: https://example.org\nanno_fps: 10Hz\nobject_class: JetLev-Flyer\n"


@pytest.fixture
def got10k(tmp_path: Path, write_frames: Callable[..., None]) -> Path:
    for split, name in NAMES.items():
        folder = tmp_path / split / name
        write_frames(folder, "{:08d}.jpg", range(1, 6))
        (tmp_path / split / "list.txt").write_text(f"{name}\n")
        rows = [f"{i}.0000,20.0000,30.0000,40.0000" for i in range(5)]
        if split == "test":
            (folder / "groundtruth.txt").write_text(rows[0] + "\n")
            continue
        (folder / "groundtruth.txt").write_text("\n".join(rows) + "\n")
        (folder / "absence.label").write_text("0\n0\n1\n0\n0\n")
        (folder / "cover.label").write_text("8\n7\n3\n0\n8\n")
        (folder / "cut_by_image.label").write_text("0\n0\n1\n0\n0\n")
        (folder / "meta_info.ini").write_text(META)
    return tmp_path


@pytest.mark.parametrize("split", ["val", "train"])
def test_absent_and_wholly_covered_frames_have_no_box(got10k: Path, split: str) -> None:
    (video,) = read_benchmark("got10k", got10k, split)
    assert video.name == NAMES[split]
    assert video.visible.tolist() == [True, True, False, False, True]
    np.testing.assert_array_equal(video.boxes[4], [4, 20, 30, 40])
    np.testing.assert_allclose(video.stamps, np.arange(5) / 10)
    assert [int(video.load(i)[0, 0, 0]) for i in range(5)] == [1, 2, 3, 4, 5]


def test_validation_is_read_by_default(got10k: Path) -> None:
    (video,) = read_benchmark("got10k", got10k)
    assert video.name == NAMES["val"]


def test_test_split_knows_the_first_box_only(got10k: Path) -> None:
    (video,) = read_benchmark("got10k", got10k, "test")
    assert video.visible.tolist() == [True, False, False, False, False]


def test_order_is_that_of_the_list(got10k: Path, write_frames: Callable[..., None]) -> None:
    (got10k / "val" / NAMES["val"]).rename(got10k / "val" / "b")
    write_frames(got10k / "val" / "a", "{:08d}.jpg", range(1, 2))
    for name, text in (
        ("groundtruth.txt", "1,2,3,4"),
        ("absence.label", "0"),
        ("cover.label", "8"),
    ):
        (got10k / "val" / "a" / name).write_text(text)
    (got10k / "val" / "list.txt").write_text("b\na\n")
    videos = read_benchmark("got10k", got10k)
    assert [video.name for video in videos] == ["b", "a"]


@pytest.mark.parametrize(
    ("file", "text", "parts"),
    [
        ("groundtruth.txt", "", ("no boxes",)),
        ("groundtruth.txt", "1,2,3,4\n" * 4, ("5 flags for 4 boxes", "absence.label")),
        ("groundtruth.txt", "1,2,3,4\n" * 4 + "1,2,3\n", ("line 5", "1,2,3")),
        ("cover.label", "8\n8\n", ("2 flags for 5 boxes",)),
        ("absence.label", "no\n" * 5, ("one number a frame",)),
        ("meta_info.ini", "anno_fps: 0Hz", ("anno_fps = 0",)),
        ("00000006.jpg", "", ("5 boxes for 6 frames",)),
    ],
)
def test_broken_files_are_named(
    got10k: Path, refused: Callable[..., None], file: str, text: str, parts: tuple[str, ...]
) -> None:
    folder = got10k / "val" / NAMES["val"]
    (folder / file).write_text(text)
    named = folder if file.endswith(".jpg") else parts[-1] if "label" in parts[-1] else file
    refused(lambda: read_benchmark("got10k", got10k), named, *parts)


@pytest.mark.parametrize("file", ["groundtruth.txt", "absence.label", "cover.label"])
def test_missing_files_are_named(got10k: Path, refused: Callable[..., None], file: str) -> None:
    path = got10k / "val" / NAMES["val"] / file
    path.unlink()
    refused(lambda: read_benchmark("got10k", got10k), path, "missing")


def test_missing_image_is_named(got10k: Path, refused: Callable[..., None]) -> None:
    (got10k / "val" / NAMES["val"] / "00000003.jpg").unlink()
    refused(
        lambda: read_benchmark("got10k", got10k), "5 boxes for 4 frames", "00000003.jpg is missing"
    )


def test_wrong_layout(got10k: Path, refused: Callable[..., None]) -> None:
    refused(lambda: read_benchmark("got10k", got10k / "val"), got10k / "val" / "val", "list.txt")
    (got10k / "val" / "list.txt").write_text("gone\n")
    refused(lambda: read_benchmark("got10k", got10k), got10k / "val" / "gone")
    (got10k / "val" / "list.txt").unlink()
    refused(lambda: read_benchmark("got10k", got10k), got10k / "val" / "list.txt", "missing")
