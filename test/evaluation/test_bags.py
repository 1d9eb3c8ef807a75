"""Bags: sequence -> bag -> sequence in both storages, and what is said about broken ones."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import Reader, StoragePlugin, Writer

from vil_tracker_core.data.sequence import DataError, Sequence
from vil_tracker_core.evaluation import bags
from vil_tracker_core.evaluation.bags import (
    BASE_STAMP,
    COMPRESSED_IMAGE,
    DETECTION,
    IMAGE,
    NS,
    BagError,
    Topic,
    bag_to_folder,
    make_bag,
    open_bag,
)
from vil_tracker_core.geometry import Box, Image

Storage = Literal["mcap", "sqlite3"]
STORAGES: tuple[Storage, ...] = ("mcap", "sqlite3")
SUFFIX = {"mcap": ".mcap", "sqlite3": ".db3"}
ABSENT = 3
COUNT = 8


def scene(index: int) -> Image:
    """A smooth 96x64 frame, so that JPEG stays near it, that differs from frame to frame."""
    y, x = np.mgrid[0:64, 0:96]
    planes = [x * 2, y * 3, 20 * index + (x + y) // 2]
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


@pytest.fixture
def sequence() -> Sequence:
    boxes = np.array([[10 + 1.3 * i, 20 + 0.7 * i, 12.1, 9.7] for i in range(COUNT)])
    boxes[ABSENT] = np.nan
    stamps = np.arange(COUNT) / 29.97
    return Sequence("car", boxes, stamps, scene)


def expected_stamps(sequence: Sequence) -> list[int]:
    return [int(BASE_STAMP) * NS + round(stamp * 1e9) for stamp in sequence.stamps.tolist()]


@pytest.fixture
def mcap_file(sequence: Sequence, tmp_path: Path) -> Path:
    make_bag(sequence, tmp_path / "whole")
    return tmp_path / "whole" / "whole.mcap"


# --- Round trip -----------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("bare_file", [False, True])
def test_a_bag_gives_back_its_sequence(
    sequence: Sequence, tmp_path: Path, storage: Storage, raw: bool, bare_file: bool
) -> None:
    out = tmp_path / "flight"
    make_bag(sequence, out, storage=storage, raw=raw)
    path = out / f"flight{SUFFIX[storage]}" if bare_file else out
    with open_bag(path) as bag:
        assert bag.topics == {
            "/camera/image/compressed": Topic(IMAGE if raw else COMPRESSED_IMAGE, COUNT),
            "/ground_truth": Topic(DETECTION, COUNT - 1),
        }
        assert bag.image_topic() == "/camera/image/compressed"
        assert bag.truth_topic() == "/ground_truth"
        assert bag.duration == pytest.approx((COUNT - 1) / 29.97, abs=2e-9)
        frames = list(bag.frames())
        truth = bag.truth()
    stamps = expected_stamps(sequence)
    assert [stamp for stamp, _, _ in frames] == stamps
    assert {frame_id for _, _, frame_id in frames} == {"camera"}
    for index, (_, frame, _) in enumerate(frames):
        error = np.abs(frame.astype(int) - scene(index))
        assert error.max() == 0 if raw else error.mean() < 3
    assert list(truth) == [stamp for index, stamp in enumerate(stamps) if index != ABSENT]
    for index, stamp in enumerate(stamps):
        if index != ABSENT:
            # Centre and size hold the box up to the last bit of a float64.
            np.testing.assert_allclose(truth[stamp], sequence.boxes[index], rtol=0, atol=1e-13)


@pytest.mark.parametrize("storage", STORAGES)
def test_messages_come_in_order_at_their_own_stamps(
    sequence: Sequence, tmp_path: Path, storage: Storage
) -> None:
    make_bag(sequence, tmp_path / "bag", storage=storage)
    with open_bag(tmp_path / "bag") as bag:
        everything = list(bag.messages())
        only_truth = list(bag.messages(["/ground_truth"]))
        assert list(bag.messages([])) == []
    records = [record for _, record, _ in everything]
    assert records == sorted(records)
    assert len(everything) == 2 * COUNT - 1
    assert only_truth == [message for message in everything if message[0] == "/ground_truth"]
    for topic, record, data in everything:
        kind = DETECTION if topic == "/ground_truth" else COMPRESSED_IMAGE
        message = bags.typestore().deserialize_cdr(data, kind)
        stamp = message.header.stamp  # type: ignore[attr-defined]
        assert stamp.sec * NS + stamp.nanosec == record


def test_truth_carries_name_and_score(sequence: Sequence, tmp_path: Path) -> None:
    make_bag(sequence, tmp_path / "bag", frame_id="gimbal")
    with open_bag(tmp_path / "bag") as bag:
        _, _, data = next(bag.messages(["/ground_truth"]))
    message = bags.typestore().deserialize_cdr(data, DETECTION)
    assert message.id == "car"  # type: ignore[attr-defined]
    assert message.header.frame_id == "gimbal"  # type: ignore[attr-defined]
    (result,) = message.results  # type: ignore[attr-defined]
    assert result.hypothesis.score == 1.0
    assert result.pose.pose.position.x == pytest.approx(10 + 12.1 / 2)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_same_sequence_gives_the_same_bytes(
    sequence: Sequence, tmp_path: Path, storage: Storage
) -> None:
    for parent in ("a", "b"):
        make_bag(sequence, tmp_path / parent / "bag", storage=storage)
    names = sorted(path.name for path in (tmp_path / "a" / "bag").iterdir())
    assert names == [f"bag{SUFFIX[storage]}", "metadata.yaml"]
    for name in names:
        first = (tmp_path / "a" / "bag" / name).read_bytes()
        assert first == (tmp_path / "b" / "bag" / name).read_bytes()


def test_a_bag_becomes_a_folder(sequence: Sequence, tmp_path: Path) -> None:
    make_bag(sequence, tmp_path / "bag")
    with open_bag(tmp_path / "bag") as bag:
        jpegs = [image.jpeg for image in bag.images()]
        frames = [image.frame for image in bag.images()]
    back = bag_to_folder(tmp_path / "bag", tmp_path / "car")
    assert back.name == "car"
    np.testing.assert_allclose(back.boxes, sequence.boxes, atol=1e-7)
    np.testing.assert_allclose(back.stamps, sequence.stamps, atol=1e-6)
    files = sorted((tmp_path / "car" / "img").iterdir())
    assert [file.read_bytes() for file in files] == jpegs
    assert all((back.load(index) == frames[index]).all() for index in range(COUNT))


def test_raw_frames_reach_the_folder_unchanged(sequence: Sequence, tmp_path: Path) -> None:
    make_bag(sequence, tmp_path / "bag", raw=True)
    back = bag_to_folder(tmp_path / "bag" / "bag.mcap", tmp_path / "car")
    assert all((back.load(index) == scene(index)).all() for index in range(COUNT))


def test_a_bag_without_truth_becomes_a_folder_of_nan(sequence: Sequence, tmp_path: Path) -> None:
    make_bag(sequence, tmp_path / "bag", truth_topic="/detection")
    back = bag_to_folder(tmp_path / "bag", tmp_path / "unknown")
    assert not back.visible.any()
    named = bag_to_folder(tmp_path / "bag", tmp_path / "known", truth_topic="/detection")
    assert named.visible.sum() == COUNT - 1


# --- Types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("Detection2D", "0d12b69df5c593b3455b7346fac8205437a7d4bcb09b9e0e0b2dde787ded38ea"),
        ("Detection2DArray", "214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968"),
        ("BoundingBox2D", "008eacbb0cf8f26e83795547bed013eec3675485ef386ec056d80eaaf1c1ce2f"),
    ],
)
def test_vision_msgs_have_the_published_type_hashes(name: str, published: str) -> None:
    assert bags.typestore().hash_rihs01(f"vision_msgs/msg/{name}") == f"RIHS01_{published}"


def test_the_bag_names_the_published_hash(sequence: Sequence, tmp_path: Path) -> None:
    make_bag(sequence, tmp_path / "bag")
    with Reader(tmp_path / "bag") as reader:
        digests = {connection.msgtype: connection.digest for connection in reader.connections}
    assert digests[DETECTION].startswith("RIHS01_0d12b69df5c5")


# --- Images ---------------------------------------------------------------------------------------


def write_image(out: Path, **fields: object) -> Path:
    """A bag with a single sensor_msgs/Image."""
    store = bags.typestore()
    values = {"header": bags._header(5 * NS, "cam"), "is_bigendian": 0} | fields
    with Writer(out, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/image", IMAGE, typestore=store)
        message = bags._message(IMAGE, **values)
        writer.write(connection, 5 * NS, store.serialize_cdr(message, IMAGE))
    return out


@pytest.mark.parametrize(
    ("encoding", "conversion"),
    [
        ("bgr8", None),
        ("rgb8", cv2.COLOR_BGR2RGB),
        ("bgra8", cv2.COLOR_BGR2BGRA),
        ("rgba8", cv2.COLOR_BGR2RGBA),
        ("mono8", cv2.COLOR_BGR2GRAY),
    ],
)
@pytest.mark.parametrize("padding", [0, 5])
def test_encodings_and_row_padding(
    tmp_path: Path, encoding: str, conversion: int | None, padding: int
) -> None:
    frame = scene(2)
    pixels = frame if conversion is None else cv2.cvtColor(frame, conversion)
    rows = np.pad(pixels.reshape(64, -1), ((0, 0), (0, padding)), constant_values=77)
    bag = write_image(
        tmp_path / "bag",
        height=64,
        width=96,
        encoding=encoding,
        step=rows.shape[1],
        data=rows.reshape(-1).astype(np.uint8),
    )
    with open_bag(bag) as reader:
        ((stamp, read, frame_id),) = reader.frames()
    wanted = frame if encoding != "mono8" else np.repeat(pixels[..., None], 3, axis=2)
    np.testing.assert_array_equal(read, wanted)
    assert (stamp, frame_id) == (5 * NS, "cam")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoding": "bayer_rggb8"}, "encoding 'bayer_rggb8' is not supported"),
        ({"step": 10}, "96x64 bgr8 needs 288 bytes a row, but step is 10"),
        ({"data": np.zeros(100, np.uint8)}, "data has 100 bytes"),
    ],
)
def test_an_image_that_cannot_be_read_names_itself(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    good: dict[str, object] = {
        "height": 64,
        "width": 96,
        "encoding": "bgr8",
        "step": 288,
        "data": scene(0).reshape(-1),
    }
    bag = write_image(tmp_path / "bag", **(good | change))
    with open_bag(bag) as reader, pytest.raises(BagError, match=said) as caught:
        list(reader.frames())
    assert "topic /image, stamp 5.000000000" in str(caught.value)


def test_a_broken_jpeg_names_itself_and_leaves_no_folder(
    sequence: Sequence, tmp_path: Path
) -> None:
    make_bag(sequence, tmp_path / "bag")
    file = tmp_path / "bag" / "bag.mcap"
    file.write_bytes(file.read_bytes().replace(b"\xff\xd8\xff", b"\x00\x00\x00"))
    with pytest.raises(BagError, match="format 'jpeg' are not a whole image"):
        bag_to_folder(file, tmp_path / "car")
    assert [path.name for path in tmp_path.iterdir()] == ["bag"]


# --- Refusals -------------------------------------------------------------------------------------


def one_sentence(error: BagError, path: Path) -> bool:
    text = str(error)
    return str(path) in text and "\n" not in text and "Traceback" not in text


def test_nothing_is_overwritten(sequence: Sequence, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "keep").write_text("mine")
    with pytest.raises(BagError, match="old exists already"):
        make_bag(sequence, tmp_path / "old")
    make_bag(sequence, tmp_path / "bag")
    with pytest.raises(BagError, match="old exists already"):
        bag_to_folder(tmp_path / "bag", tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["keep"]


def test_a_failure_leaves_nothing_behind(sequence: Sequence, tmp_path: Path) -> None:
    def load(index: int) -> Image:
        if index == 5:
            raise DataError("frame 5 is gone")
        return scene(index)

    broken = Sequence("car", sequence.boxes, sequence.stamps, load)
    with pytest.raises(DataError, match="frame 5 is gone"):
        make_bag(broken, tmp_path / "bag")
    assert list(tmp_path.iterdir()) == []


def test_stamps_must_rise(sequence: Sequence, tmp_path: Path) -> None:
    still = Sequence("still", sequence.boxes, np.zeros(COUNT), scene)
    with pytest.raises(BagError, match="still: its stamps do not rise"):
        make_bag(still, tmp_path / "bag")


def test_a_bag_is_a_folder_not_a_file(sequence: Sequence, tmp_path: Path) -> None:
    with pytest.raises(BagError, match=r"name it without \.mcap"):
        make_bag(sequence, tmp_path / "bag.mcap")


def test_what_is_no_bag_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "clip.mp4").write_bytes(b"video")
    (tmp_path / "text.mcap").write_text("not a bag at all")
    (tmp_path / "text.db3").write_text("not a bag at all" * 100)
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "metadata.yaml").write_text("hello: world")
    said = {
        "nowhere": "does not exist",
        "empty": "holds no metadata.yaml",
        "clip.mp4": "give a bag folder, or a .mcap or .db3 file",
        "text.mcap": "is not an MCAP file",
        "text.db3": "cannot be read as a bag",
        "yaml": "cannot be read as a bag",
    }
    for name, part in said.items():
        with pytest.raises(BagError, match=part) as caught, open_bag(tmp_path / name):
            pass
        assert one_sentence(caught.value, tmp_path / name)


def test_a_folder_without_metadata_names_the_remedy(mcap_file: Path) -> None:
    (mcap_file.parent / "metadata.yaml").unlink()
    with pytest.raises(BagError, match="ros2 bag reindex") as caught, open_bag(mcap_file.parent):
        pass
    assert str(mcap_file) in str(caught.value)


def test_topics_are_named_when_they_do_not_fit(sequence: Sequence, tmp_path: Path) -> None:
    store = bags.typestore()
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        writer.add_connection("/left", IMAGE, typestore=store)
        writer.add_connection("/right", COMPRESSED_IMAGE, typestore=store)
        writer.add_connection("/truth", DETECTION, typestore=store)
    with open_bag(tmp_path / "bag") as bag:
        with pytest.raises(BagError, match="several image topics, name one: /left, /right"):
            bag.image_topic()
        with pytest.raises(BagError, match="no topic /ground_truth, only /left"):
            bag.truth_topic()
        with pytest.raises(BagError, match="no topic /centre, only /left"):
            list(bag.frames("/centre"))
        with pytest.raises(BagError, match="/truth is vision_msgs/msg/Detection2D, not"):
            list(bag.frames("/truth"))
    with pytest.raises(BagError, match="topic /left holds no frame"):
        bag_to_folder(tmp_path / "bag", tmp_path / "out", image_topic="/left")

    with Writer(tmp_path / "blind", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        writer.add_connection("/truth", DETECTION, typestore=store)
    with open_bag(tmp_path / "blind") as bag, pytest.raises(BagError, match="no image topic, only"):
        bag.image_topic()


# --- Truncated and damaged files ------------------------------------------------------------------


def read_all(path: Path) -> None:
    with open_bag(path) as bag:
        list(bag.frames())
        bag.truth()


def record_ends(data: bytes) -> list[int]:
    """Offsets at which a record of an MCAP file ends."""
    ends, at = [], 8
    while at < len(data) - 8:
        at += 9 + struct.unpack_from("<Q", data, at + 1)[0]
        ends.append(at)
    return ends


def test_a_cut_mcap_says_what_is_whole(mcap_file: Path, tmp_path: Path) -> None:
    data = mcap_file.read_bytes()
    ends = record_ends(data)
    # Records of a small bag: header, one chunk, its two indexes, metadata, then the summary.
    part = tmp_path / "cut.mcap"
    for cut, whole in [
        (ends[1] - 10, "no message is whole"),
        (ends[2], f"{COUNT} messages over 0.2 s are whole"),
        (ends[3], f"{2 * COUNT - 1} messages over 0.2 s are whole"),
    ]:
        part.write_bytes(data[:cut])
        said = f"is truncated: its end is missing, .*{whole}"
        with pytest.raises(BagError, match=said) as caught, open_bag(part):
            pass
        assert one_sentence(caught.value, part)


@pytest.mark.parametrize("in_folder", [False, True])
def test_a_cut_anywhere_is_one_sentence(mcap_file: Path, tmp_path: Path, in_folder: bool) -> None:
    data = mcap_file.read_bytes()
    ends = record_ends(data)
    cuts = {0, 4, 8, 9, 20, len(data) // 2, len(data) - 1, len(data) - 8, len(data) - 37}
    cuts |= {end + shift for end in ends for shift in (-1, 0, 1, 5, 9)}
    folder = shutil.copytree(mcap_file.parent, tmp_path / "cut")
    file = folder / "whole.mcap"
    for cut in sorted(cut for cut in cuts if cut < len(data)):
        file.write_bytes(data[:cut])
        with pytest.raises(BagError) as caught, open_bag(folder if in_folder else file):
            pass
        assert one_sentence(caught.value, file), cut
        assert cut < 8 or "is truncated" in str(caught.value), cut


def test_an_unchunked_cut_mcap_counts_its_messages(mcap_file: Path, tmp_path: Path) -> None:
    """A recorder may write messages outside chunks; unpack the chunk to make such a file."""
    data = mcap_file.read_bytes()
    start, end = record_ends(data)[:2]
    chunk_head = 9 + 8 + 8 + 8 + 4 + 4 + 0 + 8  # opcode to records of an uncompressed chunk
    part = tmp_path / "flat.mcap"
    part.write_bytes(data[:start] + data[start + chunk_head : end - 1])
    with pytest.raises(BagError, match=f" {2 * COUNT - 2} messages over 0.2 s"), open_bag(part):
        pass


def test_a_cut_db3_is_one_sentence(sequence: Sequence, tmp_path: Path) -> None:
    make_bag(sequence, tmp_path / "whole", storage="sqlite3")
    data = (tmp_path / "whole" / "whole.db3").read_bytes()
    part = tmp_path / "cut.db3"
    for cut in [0, 50, 100, *range(4096, len(data), 4096), len(data) - 1]:
        part.write_bytes(data[:cut])
        with pytest.raises(BagError) as caught:
            read_all(part)
        assert one_sentence(caught.value, part), cut


def test_flipped_bytes_never_escape_as_anything_else(mcap_file: Path, tmp_path: Path) -> None:
    """Whatever byte of the file is wrong: it reads, or it is a BagError."""
    data = mcap_file.read_bytes()
    part = tmp_path / "flipped.mcap"
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.choice(len(data), 300, replace=False).tolist():
        part.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            read_all(part)
        except BagError as error:
            refused += one_sentence(error, part)
    assert refused > 0


def test_boxes_that_floats_hold_exactly_come_back_exactly(tmp_path: Path) -> None:
    boxes = np.array([[10.25, 20.5, 12.0, 9.75]])
    make_bag(Sequence("one", boxes, np.zeros(1), scene), tmp_path / "bag")
    with open_bag(tmp_path / "bag") as bag:
        assert list(bag.truth().values()) == [Box(10.25, 20.5, 12.0, 9.75)]
