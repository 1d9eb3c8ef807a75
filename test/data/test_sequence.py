"""The generic folder of a video: what is read, and the sentence about each way it can be broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from vil_tracker_core.data.sequence import (
    DataError,
    ImageError,
    Sequence,
    parse_boxes,
    read_folder,
    read_folders,
    read_image,
)

WriteVideo = Callable[[str, list[str], int], Path]
LINES = ["1,2,10,12", "2.5\t3\t10\t12", "nan,nan,nan,nan", "4 5 10 12"]


def one_sentence(error: pytest.ExceptionInfo[DataError], *parts: object) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text, f"{part!r} is not named in {text!r}"


def test_folder_is_read(write_video: WriteVideo) -> None:
    video = read_folder(write_video("car", LINES, 4))
    assert (video.name, len(video)) == ("car", 4)
    nan = np.nan
    expected = [[1, 2, 10, 12], [2.5, 3, 10, 12], [nan] * 4, [4, 5, 10, 12]]
    np.testing.assert_array_equal(video.boxes, expected)
    assert video.visible.tolist() == [True, True, False, True]
    np.testing.assert_allclose(video.stamps, np.arange(4) / 30)
    for index in range(4):
        frame = video.load(index)
        assert frame.shape == (32, 48, 3)
        assert frame.dtype == np.uint8
        assert (frame == index).all()


def test_frames_come_in_the_order_of_their_names(write_video: WriteVideo) -> None:
    folder = write_video("car", LINES, 4)
    images = folder / "img"
    for index, name in enumerate(["c.png", "d.png", "a.png", "b.png"], start=1):
        (images / f"{index:08d}.png").rename(images / name)
    (images / "notes.txt").write_text("not a frame")
    video = read_folder(folder)
    assert [int(video.load(index)[0, 0, 0]) for index in range(4)] == [2, 3, 0, 1]


@pytest.mark.parametrize(
    ("meta", "argument", "rate"),
    [
        ({"fps": 25}, None, 25.0),
        ({}, None, 30.0),
        ({}, 10.0, 10.0),
        ({"fps": 25}, 10.0, 25.0),  # the argument serves where the file is silent
    ],
)
def test_rate_and_origin_come_from_meta(
    write_video: WriteVideo, meta: dict[str, float], argument: float | None, rate: float
) -> None:
    folder = write_video("car", LINES, 4)
    (folder / "meta.json").write_text(json.dumps({**meta, "origin": "field trip"}))
    video = read_folder(folder, argument)
    np.testing.assert_allclose(video.stamps, np.arange(4) / rate)
    assert video.origin == "field trip"


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"fps": "quick"}', '{"fps": -5}'])
def test_broken_meta_names_its_file(write_video: WriteVideo, text: str) -> None:
    folder = write_video("car", LINES, 4)
    (folder / "meta.json").write_text(text)
    with pytest.raises(DataError) as error:
        read_folder(folder)
    one_sentence(error, folder / "meta.json")


@pytest.mark.parametrize("row", ["3,4,0,12", "3,4,10,-1", "inf,4,10,12", "3,4,nan,12"])
def test_impossible_box_is_an_absent_target(row: str) -> None:
    boxes = parse_boxes(f"1,2,10,12\n{row}\n", "truth")
    assert np.isfinite(boxes[0]).all()
    assert np.isnan(boxes[1]).all()


@pytest.mark.parametrize("line", ["1,2,3", "1,2,3,4,5", "1,2,three,4", "x,y,w,h"])
def test_malformed_line_is_named(write_video: WriteVideo, line: str) -> None:
    folder = write_video("car", ["1,2,10,12", line, "1,2,10,12"], 3)
    with pytest.raises(DataError) as error:
        read_folder(folder)
    one_sentence(error, folder / "groundtruth_rect.txt", "line 2", line)


def test_truth_one_line_short(write_video: WriteVideo) -> None:
    folder = write_video("car", LINES[:3], 4)
    with pytest.raises(DataError) as error:
        read_folder(folder)
    one_sentence(error, folder / "groundtruth_rect.txt", "3 boxes", "4 frames")


@pytest.mark.parametrize("lines", [[], ["", "  "]])
def test_empty_truth(write_video: WriteVideo, lines: list[str]) -> None:
    folder = write_video("car", lines, 4)
    with pytest.raises(DataError) as error:
        read_folder(folder)
    one_sentence(error, folder / "groundtruth_rect.txt", "no boxes")


def test_missing_truth(write_video: WriteVideo) -> None:
    folder = write_video("car", LINES, 4)
    (folder / "groundtruth_rect.txt").unlink()
    with pytest.raises(DataError) as error:
        read_folder(folder)
    one_sentence(error, folder / "groundtruth_rect.txt", "missing")


def test_truth_that_is_no_text(write_video: WriteVideo) -> None:
    folder = write_video("car", LINES, 4)
    (folder / "groundtruth_rect.txt").write_bytes(b"\xff\xfe\x00\x80\n" * 4)
    with pytest.raises(DataError) as error:
        read_folder(folder)
    one_sentence(error, folder / "groundtruth_rect.txt")


def test_missing_images(tmp_path: Path) -> None:
    (tmp_path / "groundtruth_rect.txt").write_text("1,2,3,4\n")
    with pytest.raises(DataError) as error:
        read_folder(tmp_path)
    one_sentence(error, tmp_path, "img/")


def test_broken_image_fails_only_when_it_is_loaded(write_video: WriteVideo) -> None:
    folder = write_video("car", LINES, 4)
    broken = folder / "img" / "00000003.png"
    broken.write_bytes(b"not a picture")
    video = read_folder(folder)
    assert (video.load(1) == 1).all()
    with pytest.raises(DataError) as error:
        video.load(2)
    one_sentence(error, broken, "not a readable image")
    broken.unlink()
    with pytest.raises(DataError) as error:
        video.load(2)
    one_sentence(error, broken, "missing")


def photograph(tmp_path: Path, suffix: str, *coding: int) -> Path:
    """An image file of some kilobytes."""
    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8), (120, 90))
    path = tmp_path / f"photograph{suffix}"
    cv2.imwrite(str(path), pixels, coding)
    return path


KINDS = [
    (".jpg",),
    (".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    (".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    (".png",),
    (".bmp",),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.99])
def test_image_cut_short_is_refused(
    tmp_path: Path, kind: tuple[str | int, ...], share: float
) -> None:
    """Decoders fill the rest of a JPEG with grey and give no error: training would believe it."""
    path = photograph(tmp_path, *kind)  # type: ignore[arg-type]
    assert read_image(path).std() > 20
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ImageError) as error:
        read_image(path)
    one_sentence(error, path)


def test_end_of_a_thumbnail_is_not_that_of_the_picture(tmp_path: Path) -> None:
    path = photograph(tmp_path, ".jpg")
    data = path.read_bytes()
    thumbnail = b"\xff\xe1\x00\x08xx\xff\xd8\xff\xd9"  # an application segment, 8 bytes long
    path.write_bytes(data[:2] + thumbnail + data[2:])
    whole = read_image(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ImageError, match="cut short"):
        read_image(path)
    path.write_bytes(data + b"appended by a camera")
    np.testing.assert_array_equal(read_image(path), whole)


def test_grey_image_is_read_in_colour(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((4, 5), 7, dtype=np.uint8))
    image = read_image(tmp_path / "grey.png")
    assert image.shape == (4, 5, 3)
    assert (image == 7).all()


def test_folders_are_sorted_and_others_left_alone(write_video: WriteVideo) -> None:
    for name in ("b", "a", "c"):
        folder = write_video(name, LINES, 4)
    (folder.parent / "readme.txt").write_text("about")
    (folder.parent / "empty").mkdir()
    assert [video.name for video in read_folders(folder.parent)] == ["a", "b", "c"]


def test_folder_with_a_truth_and_no_images_is_named(write_video: WriteVideo) -> None:
    folder = write_video("a", LINES, 4)
    other = folder.parent / "other_layout"
    other.mkdir()
    shutil.copy(folder / "groundtruth_rect.txt", other)
    with pytest.raises(DataError, match="other_layout has no folder img/"):
        read_folders(folder.parent)


def test_no_folder_and_no_sequence(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read_folders(tmp_path / "nowhere")
    one_sentence(error, tmp_path / "nowhere", "not a folder")
    with pytest.raises(DataError) as error:
        read_folders(tmp_path)
    one_sentence(error, tmp_path, "no sequence")


def test_boxes_and_stamps_of_different_length_are_refused() -> None:
    with pytest.raises(DataError, match=r"car.*\(3, 4\) boxes and \(2,\) stamps"):
        Sequence("car", np.ones((3, 4)), np.zeros(2), lambda index: np.zeros((1, 1, 3), np.uint8))
