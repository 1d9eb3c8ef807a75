"""evaluation.bag_sequence: frames in any order, truth of a topic or a file, joined on the stamp."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from vil_tracker_core.data.sequence import DataError, Sequence
from vil_tracker_core.evaluation.bag_sequence import JOIN_NS, read_bag
from vil_tracker_core.evaluation.bags import BASE_STAMP, NS, BagError, make_bag

MakeSequence = Callable[..., Sequence]
FIRST = int(BASE_STAMP) * NS


@pytest.fixture
def sequence(make_sequence: MakeSequence) -> Sequence:
    return make_sequence("car", absent=(4,))


@pytest.fixture
def bag(sequence: Sequence, tmp_path: Path) -> Path:
    make_bag(sequence, tmp_path / "bag", raw=True, truth_topic="/my/truth")
    return tmp_path / "bag"


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("raw", [True, False])
def test_a_bag_is_its_sequence(
    sequence: Sequence, tmp_path: Path, storage: Literal["mcap", "sqlite3"], raw: bool
) -> None:
    make_bag(sequence, tmp_path / "bag", storage=storage, raw=raw)
    found = read_bag(tmp_path / "bag")
    assert (found.first_stamp, found.truth, found.unmatched) == (FIRST, "/ground_truth", 0)
    np.testing.assert_allclose(found.sequence.boxes, sequence.boxes, atol=1e-9)
    np.testing.assert_allclose(found.sequence.stamps, sequence.stamps, atol=1e-9)
    for index in range(len(sequence)):
        error = np.abs(found.sequence.load(index).astype(int) - sequence.load(index))
        assert error.max() == 0 if raw else error.mean() < 4


def test_frames_come_in_any_order(sequence: Sequence, bag: Path) -> None:
    found = read_bag(bag, truth="/my/truth").sequence
    for index in (0, 1, 7, 3, 11, 11, 0, 2, 3):
        np.testing.assert_array_equal(found.load(index), sequence.load(index))


def test_without_a_truth_all_is_unknown(bag: Path) -> None:
    found = read_bag(bag)  # a topic of another name is not taken for the truth unasked
    assert found.truth == ""
    assert not found.sequence.visible.any()
    with pytest.raises(BagError, match=r"'/other' is neither a file nor a topic .* has /my/truth"):
        read_bag(bag, truth="/other")
    with pytest.raises(BagError, match="is sensor_msgs/msg/Image, not vision_msgs"):
        read_bag(bag, truth="/camera/image/compressed")


def test_truth_from_a_file_with_a_line_a_frame(
    sequence: Sequence, bag: Path, tmp_path: Path
) -> None:
    path = tmp_path / "truth.txt"
    np.savetxt(path, sequence.boxes, fmt="%.3f", delimiter=",")
    np.testing.assert_array_equal(read_bag(bag, truth=str(path)).sequence.boxes, sequence.boxes)
    np.savetxt(path, sequence.boxes[:-1], fmt="%.3f", delimiter=",")
    with pytest.raises(DataError, match=r"has 11 boxes for 12 frames in topic .*one line a frame"):
        read_bag(bag, truth=str(path))


@pytest.mark.parametrize("form", ["ns", "seconds", "milliseconds kept"])
def test_truth_from_a_file_with_stamps(
    form: str, sequence: Sequence, bag: Path, tmp_path: Path
) -> None:
    lines = ["stamp,x,y,w,h"]
    for index in (2, 0, 7):  # in any order, and not every frame
        stamp = FIRST + round(index / 30 * NS)
        seconds = f"{stamp // NS}.{stamp % NS:09d}"
        text = {"ns": str(stamp), "seconds": seconds, "milliseconds kept": f"{stamp / NS:.3f}"}
        lines.append(f"{text[form]}," + ",".join(map(str, sequence.boxes[index])))
    stray = FIRST + 3 * NS
    lines.append(f"{stray},1,2,3,4")
    path = tmp_path / "truth.csv"
    path.write_text("\n".join(lines) + "\n")
    found = read_bag(bag, truth=str(path))
    np.testing.assert_array_equal(np.flatnonzero(found.sequence.visible), [0, 2, 7])
    np.testing.assert_array_equal(found.sequence.boxes[7], sequence.boxes[7])
    assert found.unmatched == 1


def test_truth_that_is_off_in_time_is_no_frames(bag: Path, tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    late = FIRST + JOIN_NS + 1
    path.write_text(f"{late},1,2,3,4\n")
    with pytest.raises(DataError, match=r"its 1 stamps, .* are those of no frame"):
        read_bag(bag, truth=str(path))
    path.write_text(f"{late - 1},1,2,3,4\n")
    assert read_bag(bag, truth=str(path)).sequence.visible[0]


@pytest.mark.parametrize("line", ["now,1,2,3,4", "1,2,3,4,x", "1,2,3", "1e400,1,2,3,4"])
def test_a_wrong_line_is_named(line: str, bag: Path, tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text(f"{FIRST},1,2,3,4\n\n{line}\n")
    with pytest.raises(DataError, match=r"truth.csv, line 3: expected stamp,x,y,w,h"):
        read_bag(bag, truth=str(path))


def test_a_looped_bag_keeps_its_jump(sequence: Sequence, tmp_path: Path) -> None:
    """Recorded on while the player began anew: the headers' stamps fall, the record's rise."""
    from rosbags.rosbag2 import StoragePlugin, Writer

    from vil_tracker_core.evaluation import bags

    store = bags.typestore()
    with Writer(tmp_path / "loop", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        images = writer.add_connection("/image", bags.IMAGE, typestore=store)
        truths = writer.add_connection("/ground_truth", bags.DETECTION, typestore=store)
        for at in range(8):
            index = at % 4
            header = bags._header(NS + index * NS // 10, "camera")
            frame = bags._raw_image(header, sequence.load(index))
            writer.write(images, (10 + at) * NS, store.serialize_cdr(frame, bags.IMAGE))
            box = bags._detection(header, bags.Box(*sequence.boxes[index].tolist()), "car")
            writer.write(truths, (10 + at) * NS, store.serialize_cdr(box, bags.DETECTION))
    found = read_bag(tmp_path / "loop").sequence
    np.testing.assert_allclose(found.stamps, [0, 0.1, 0.2, 0.3] * 2)
    np.testing.assert_allclose(found.boxes[4:], sequence.boxes[:4])
    np.testing.assert_array_equal(found.load(5), sequence.load(1))


def test_a_broken_image_names_its_stamp_and_only_when_read(
    make_sequence: MakeSequence, tmp_path: Path
) -> None:
    sequence = make_sequence(count=3)
    make_bag(sequence, tmp_path / "bag", storage="sqlite3")
    file = tmp_path / "bag" / "bag.db3"
    data = bytearray(file.read_bytes())
    data[data.rindex(b"\xff\xd8\xff") : data.rindex(b"\xff\xd8\xff") + 3] = b"\0\0\0"
    file.write_bytes(bytes(data))
    found = read_bag(tmp_path / "bag").sequence
    read, broken = 0, 0
    for index in range(3):
        try:
            read += found.load(index).shape == (96, 128, 3)
        except BagError as error:
            broken += "stamp 1704067200." in str(error)
    assert (read, broken) == (2, 1)


def test_a_bag_without_frames_says_so(sequence: Sequence, tmp_path: Path) -> None:
    empty = replace(sequence, boxes=np.empty((0, 4)), stamps=np.empty(0))
    make_bag(empty, tmp_path / "empty")
    with pytest.raises(BagError, match="holds no frame"):
        read_bag(tmp_path / "empty")
