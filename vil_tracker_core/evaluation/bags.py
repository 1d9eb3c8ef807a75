"""Rosbags without a ROS install: a sequence to a bag and back, and a bag's frames with truth.

A bag holds the frames as ``sensor_msgs`` images and the truth as ``vision_msgs/Detection2D``
messages that carry the header of the image they belong to, so the two are joined on the stamp.
MCAP and sqlite3 bags are written and read by the ``rosbags`` library. Stamps are whole
nanoseconds since 1970 throughout.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar, cast

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from vil_tracker_core.data.sequence import TRUTH_FILE, DataError, Sequence, read_folder
from vil_tracker_core.geometry import Box, Image
from vil_tracker_core.images import compressed_to_bgr, image_to_bgr

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
IMAGE_TYPES = (IMAGE, COMPRESSED_IMAGE)
DETECTION = "vision_msgs/msg/Detection2D"

IMAGE_TOPIC = "/camera/image/compressed"
TRUTH_TOPIC = "/ground_truth"

BASE_STAMP = 1_704_067_200.0
"""Stamp of a made bag's first frame, 2024-01-01 00:00 UTC: the same input gives the same bag."""

NS = 1_000_000_000

# rosbags brings the common interfaces; these are the messages of vision_msgs 4 (Humble and later).
VISION_MSGS = {
    "Point2D": "float64 x\nfloat64 y\n",
    "Pose2D": "Point2D position\nfloat64 theta\n",
    "BoundingBox2D": "Pose2D center\nfloat64 size_x\nfloat64 size_y\n",
    "ObjectHypothesis": "string class_id\nfloat64 score\n",
    "ObjectHypothesisWithPose": (
        "ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose\n"
    ),
    "Detection2D": (
        "std_msgs/Header header\n"
        "ObjectHypothesisWithPose[] results\n"
        "BoundingBox2D bbox\n"
        "string id\n"
    ),
    "Detection2DArray": "std_msgs/Header header\nDetection2D[] detections\n",
}

MCAP_MARK = b"\x89MCAP0\r\n"
"""First and last bytes of every whole MCAP file."""

T = TypeVar("T")


class BagError(DataError):
    """A bag that cannot be read or made; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Topic:
    """A topic of a bag: its message type (``package/msg/Name``) and its number of messages."""

    type: str
    count: int


@cache
def typestore() -> Typestore:
    """The message types of ROS 2 Jazzy and of vision_msgs."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for name, text in VISION_MSGS.items():
        store.register(get_types_from_msg(text, f"vision_msgs/msg/{name}"))
    return store


# --- Sequence to bag and back ---------------------------------------------------------------------


def make_bag(
    sequence: Sequence,
    out: Path,
    *,
    image_topic: str = IMAGE_TOPIC,
    truth_topic: str = TRUTH_TOPIC,
    frame_id: str = "camera",
    quality: int = 90,
    storage: Literal["mcap", "sqlite3"] = "mcap",
    raw: bool = False,
    start: float = BASE_STAMP,
) -> None:
    """Writes ``sequence`` as the bag folder ``out``, all of it or nothing.

    Every message is recorded at its header's stamp. Truth is written only for the frames in
    which the target is visible: ``id`` is the sequence's name, ``bbox`` the box, the score 1.

    Args:
        sequence: the frames and their truth; its stamps must rise from frame to frame.
        out: the bag's folder; must not exist.
        image_topic, truth_topic: where the frames and the truth go.
        frame_id: the camera's coordinate frame, in every header.
        quality: JPEG quality, 0 to 100; unused when ``raw``.
        storage: the bag's file format.
        raw: write ``sensor_msgs/Image`` (bgr8) rather than JPEG ``sensor_msgs/CompressedImage``.
        start: stamp of the sequence's time 0, in seconds since 1970.

    Raises:
        BagError: ``out`` exists, or the stamps do not rise.
        DataError: a frame cannot be read.
    """
    out = Path(out)
    if out.suffix in (".mcap", ".db3"):
        raise BagError(f"{out}: a bag is a folder, name it without {out.suffix}")
    stamps = round(start * NS) + np.rint(sequence.stamps * NS).astype(np.int64)
    if (np.diff(stamps) <= 0).any():
        raise BagError(f"sequence {sequence.name}: its stamps do not rise from frame to frame")
    visible = sequence.visible
    store = typestore()
    image_type = IMAGE if raw else COMPRESSED_IMAGE
    plugin = StoragePlugin[storage.upper()]
    with _all_or_nothing(out) as part, Writer(part, version=9, storage_plugin=plugin) as writer:
        images = writer.add_connection(image_topic, image_type, typestore=store)
        truths = writer.add_connection(truth_topic, DETECTION, typestore=store)
        for index in _progress(range(len(sequence)), f"bag {sequence.name}", len(sequence)):
            stamp, frame = int(stamps[index]), sequence.load(index)
            header = _header(stamp, frame_id)
            image = _raw_image(header, frame) if raw else _jpeg_image(header, frame, quality)
            writer.write(images, stamp, store.serialize_cdr(image, image_type))
            if visible[index]:
                truth = _detection(header, Box(*sequence.boxes[index].tolist()), sequence.name)
                writer.write(truths, stamp, store.serialize_cdr(truth, DETECTION))


def bag_to_folder(
    bag: Path, out: Path, *, image_topic: str | None = None, truth_topic: str | None = None
) -> Sequence:
    """Writes a bag's frames and truth as the sequence folder ``out``, all of it or nothing.

    JPEG messages are copied byte for byte, all others become PNG. A frame without truth gets a
    line of nan. A folder knows only a frame rate, so single stamps become their mean rate.

    Args:
        bag: the bag to read, as in `open_bag`.
        out: the folder to make; must not exist.
        image_topic: the frames' topic; by default the bag's only image topic.
        truth_topic: the truth's topic; by default ``/ground_truth``, and where the bag has no
            such topic all frames are without truth.

    Returns:
        The sequence, read from ``out``.

    Raises:
        BagError: ``out`` exists, or the bag cannot be read.
    """
    out = Path(out)
    with open_bag(bag) as reader, _all_or_nothing(out) as part:
        topic = image_topic or reader.image_topic()
        has_truth = truth_topic is not None or TRUTH_TOPIC in reader.topics
        boxes = reader.truth(truth_topic) if has_truth else {}
        (part / "img").mkdir(parents=True)
        stamps: list[int] = []
        images = reader.images(topic)
        for image in _progress(images, f"folder {out.name}", reader.topics[topic].count):
            stamps.append(image.stamp)
            if image.jpeg is not None:
                (part / "img" / f"{len(stamps):06d}.jpg").write_bytes(image.jpeg)
            else:
                cv2.imwrite(str(part / "img" / f"{len(stamps):06d}.png"), image.frame)
        if not stamps:
            raise BagError(f"{reader.path}: topic {topic} holds no frame")
        lines = [_truth_line(boxes.get(stamp)) for stamp in stamps]
        (part / TRUTH_FILE).write_text("".join(lines))
        meta = {"fps": _mean_rate(stamps), "origin": f"bag {reader.path.name}, topic {topic}"}
        (part / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    return read_folder(out)


def _truth_line(box: Box | None) -> str:
    values = box or (float("nan"),) * 4
    # Ten digits drop what centre-to-corner arithmetic leaves behind (99.99999999999999).
    return ",".join(f"{value:.10g}" for value in values) + "\n"


def _mean_rate(stamps: list[int]) -> float:
    """Frames a second of stamps in ns; 30 where they do not tell (one frame, a looped bag)."""
    span = stamps[-1] - stamps[0]
    return round((len(stamps) - 1) * NS / span, 6) if span > 0 else 30.0


@contextmanager
def _all_or_nothing(out: Path) -> Iterator[Path]:
    """A path to build a folder at, which becomes ``out`` when the body succeeds.

    Its last part is ``out``'s own name, since a bag names its files after its folder.
    """
    if out.exists():
        raise BagError(f"{out} exists already: remove it or choose another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        part = Path(scratch) / out.name
        yield part
        part.rename(out)


def _progress(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    return track(items, description, total=total, console=Console(stderr=True))


# --- Messages -------------------------------------------------------------------------------------


def _message(name: str, **fields: object) -> Any:
    """A message of type ``name``; rosbags makes its class at run time, hence Any."""
    return cast(Any, typestore().types[name])(**fields)


def _header(stamp: int, frame_id: str) -> Any:
    time = _message("builtin_interfaces/msg/Time", sec=stamp // NS, nanosec=stamp % NS)
    return _message("std_msgs/msg/Header", stamp=time, frame_id=frame_id)


def _stamp(header: Any) -> int:
    """Nanoseconds since 1970 of a std_msgs/Header."""
    return int(header.stamp.sec) * NS + int(header.stamp.nanosec)


def _raw_image(header: Any, frame: Image) -> Any:
    height, width = frame.shape[:2]
    return _message(
        IMAGE,
        header=header,
        height=height,
        width=width,
        encoding="bgr8",
        is_bigendian=0,
        step=3 * width,
        data=np.ascontiguousarray(frame).reshape(-1),
    )


def _jpeg_image(header: Any, frame: Image, quality: int) -> Any:
    _, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return _message(COMPRESSED_IMAGE, header=header, format="jpeg", data=data.reshape(-1))


def _detection(header: Any, box: Box, name: str) -> Any:
    pose = _message(
        "geometry_msgs/msg/Pose",
        position=_message("geometry_msgs/msg/Point", x=box.cx, y=box.cy, z=0.0),
        orientation=_message("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0),
    )
    result = _message(
        "vision_msgs/msg/ObjectHypothesisWithPose",
        hypothesis=_message("vision_msgs/msg/ObjectHypothesis", class_id="target", score=1.0),
        pose=_message("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=np.zeros(36)),
    )
    centre = _message("vision_msgs/msg/Point2D", x=box.cx, y=box.cy)
    bbox = _message(
        "vision_msgs/msg/BoundingBox2D",
        center=_message("vision_msgs/msg/Pose2D", position=centre, theta=0.0),
        size_x=box.w,
        size_y=box.h,
    )
    return _message(DETECTION, header=header, results=[result], bbox=bbox, id=name)


# --- Reading --------------------------------------------------------------------------------------


class BagImage(NamedTuple):
    """An image message, decoded.

    Attributes:
        stamp: the header's stamp in ns.
        frame: (H, W, 3) BGR uint8.
        frame_id: the header's coordinate frame.
        jpeg: the message's own bytes where they are a JPEG file.
    """

    stamp: int
    frame: Image
    frame_id: str
    jpeg: bytes | None


class BagReader:
    """An open bag; made by `open_bag`.

    Attributes:
        path: the bag's folder or file.
        topics: name -> type and count, sorted by name.
        duration: seconds from the first message to the last.
    """

    def __init__(self, path: Path, reader: Reader) -> None:
        self.path = path
        self.duration = max(reader.duration - 1, 0) / NS  # the library counts one ns past the end
        counts: dict[str, Topic] = {}
        for connection in sorted(reader.connections, key=lambda connection: connection.topic):
            before = counts.get(connection.topic, Topic(connection.msgtype, 0))
            if before.type != connection.msgtype:
                raise BagError(
                    f"{path}: topic {connection.topic} has two types, "
                    f"{before.type} and {connection.msgtype}"
                )
            counts[connection.topic] = Topic(before.type, before.count + connection.msgcount)
        self.topics = counts
        self._reader = reader

    def image_topic(self) -> str:
        """The bag's only image topic; raises BagError where there is none or a choice."""
        names = [name for name, topic in self.topics.items() if topic.type in IMAGE_TYPES]
        if not names:
            raise BagError(f"{self.path} has no image topic, only {self._listed()}")
        if len(names) > 1:
            raise BagError(f"{self.path} has several image topics, name one: {', '.join(names)}")
        return names[0]

    def truth_topic(self) -> str:
        """``/ground_truth``; raises BagError where the bag has none.

        No other detections are taken for the truth unasked: they may be a tracker's output.
        """
        if TRUTH_TOPIC in self.topics:
            return TRUTH_TOPIC
        raise BagError(f"{self.path} has no topic {TRUTH_TOPIC}, only {self._listed()}")

    def messages(
        self, topics: Collection[str] | None = None, start: int | None = None
    ) -> Iterator[tuple[str, int, bytes]]:
        """Yields (topic, record time in ns, CDR bytes) in the order recorded.

        Args:
            topics: the topics to read; all by default.
            start: record time in ns of the first message wanted; the bag's first by default.

        Raises:
            BagError: a topic is not in the bag, or the bag is damaged.
        """
        wanted = set(self.topics if topics is None else topics)
        if missing := sorted(wanted - self.topics.keys()):
            raise BagError(f"{self.path} has no topic {', '.join(missing)}, only {self._listed()}")
        connections = [item for item in self._reader.connections if item.topic in wanted]
        if not connections:  # to the library, none means all
            return
        with _one_sentence(self.path):
            for connection, record, data in self._reader.messages(connections, start=start):
                yield connection.topic, record, data

    def images(self, topic: str | None = None) -> Iterator[BagImage]:
        """Yields the decoded image messages of ``topic`` (by default the only image topic).

        Raises:
            BagError: no such image topic, or an image cannot be read.
        """
        topic = topic or self.image_topic()
        self._check_type(topic, IMAGE_TYPES)
        for _, _, data in self.messages([topic]):
            yield self.decode_image(topic, data)

    def decode_image(self, topic: str, data: bytes) -> BagImage:
        """The image of a message of `messages`; raises BagError naming its stamp and the fault."""
        message = self._message(topic, data)
        compressed = self.topics[topic].type == COMPRESSED_IMAGE
        decode: Callable[[Any], Image] = compressed_to_bgr if compressed else image_to_bgr
        stamp = _stamp(message.header)
        try:
            frame = decode(message)
        except ValueError as error:
            raise BagError(
                f"{self.path}, topic {topic}, stamp {stamp // NS}.{stamp % NS:09d}: {error}"
            ) from None
        first = message.data[:3].tobytes() if compressed else b""
        jpeg = message.data.tobytes() if first == b"\xff\xd8\xff" else None
        return BagImage(stamp, frame, message.header.frame_id, jpeg)

    def image_times(self, topic: str | None = None) -> list[tuple[int, int]]:
        """(record time, header's stamp) in ns of every image of ``topic``, none decoded."""
        topic = topic or self.image_topic()
        self._check_type(topic, IMAGE_TYPES)
        return [
            (record, _stamp(self._message(topic, data).header))
            for _, record, data in self.messages([topic])
        ]

    def frames(self, topic: str | None = None) -> Iterator[tuple[int, Image, str]]:
        """Yields (stamp in ns, (H, W, 3) BGR uint8, frame id) of every image; see `images`."""
        for image in self.images(topic):
            yield image.stamp, image.frame, image.frame_id

    def truth(self, topic: str | None = None) -> dict[int, Box]:
        """Stamp in ns -> box of the Detection2D messages of ``topic`` (``/ground_truth``)."""
        topic = topic or self.truth_topic()
        self._check_type(topic, (DETECTION,))
        boxes = {}
        for _, _, data in self.messages([topic]):
            message = self._message(topic, data)
            centre, bbox = message.bbox.center.position, message.bbox
            boxes[_stamp(message.header)] = Box.from_cxcywh(
                centre.x, centre.y, bbox.size_x, bbox.size_y
            )
        return boxes

    def _check_type(self, topic: str, types: Collection[str]) -> None:
        """Raises BagError where a topic of the bag has none of ``types``."""
        if topic in self.topics and self.topics[topic].type not in types:
            raise BagError(
                f"{self.path}: topic {topic} is {self.topics[topic].type}, not {' or '.join(types)}"
            )

    def _message(self, topic: str, data: bytes) -> Any:
        with _one_sentence(self.path):
            return typestore().deserialize_cdr(data, self.topics[topic].type)

    def _listed(self) -> str:
        return ", ".join(f"{name} ({topic.type})" for name, topic in self.topics.items()) or "none"


@contextmanager
def open_bag(path: Path) -> Iterator[BagReader]:
    """Opens a bag folder, or a single ``.mcap`` or ``.db3`` file, for reading.

    Raises:
        BagError: the path is missing, is no bag, or is truncated.
    """
    path = Path(path)
    _check_files(path)
    with _one_sentence(path):
        reader = Reader(path)
        reader.open()
    try:
        with _one_sentence(path):
            bag = BagReader(path, reader)
        yield bag
    finally:
        reader.close()


def _check_files(path: Path) -> None:
    """Raises BagError for what the bag library does not say in a helpful way."""
    if not path.exists():
        raise BagError(f"{path} does not exist")
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".mcap", ".db3"))
        if not (path / "metadata.yaml").is_file():
            if not files:
                raise BagError(f"{path} is not a bag: it holds no metadata.yaml, .mcap or .db3")
            raise BagError(
                f"{path} has no metadata.yaml (was the recorder killed?): "
                f"open {files[0]} itself, or run `ros2 bag reindex {path}`"
            )
    elif path.suffix in (".mcap", ".db3"):
        files = [path]
    else:
        raise BagError(f"{path} is not a bag: give a bag folder, or a .mcap or .db3 file")
    for file in files:
        if file.suffix == ".mcap":
            _check_mcap(file)


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """Turns what the bag library raises into a BagError that names ``path``.

    On a damaged file that may be anything, from its own errors to struct.error and TypeError.
    """
    try:
        yield
    except BagError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise BagError(f"{path} cannot be read as a bag: {reason}") from error


# --- Truncated MCAP files -------------------------------------------------------------------------

# https://mcap.dev/spec: a file is a mark, records (a byte of opcode, 8 of length, the content),
# a mark. The recorder writes the closing mark last, so a killed recorder or an unfinished copy
# leaves a file without it.
_MESSAGE, _MESSAGE_INDEX = 0x05, 0x07
_RECORD = struct.Struct("<BQ")
_MESSAGE_HEAD = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_INDEX_ENTRY = struct.Struct("<QQ")  # log time, offset


def _check_mcap(path: Path) -> None:
    """Raises BagError, saying what is whole, where an MCAP file does not run to its end."""
    with path.open("rb") as file:
        if file.read(len(MCAP_MARK)) != MCAP_MARK:
            raise BagError(f"{path} is not an MCAP file: it does not begin with MCAP's mark")
        size = file.seek(0, 2)
        file.seek(max(size - len(MCAP_MARK), len(MCAP_MARK)))
        if file.read() == MCAP_MARK:
            return
        file.seek(len(MCAP_MARK))
        times = list(_whole_messages(file, size))
    if not times:
        raise BagError(f"{path} is truncated: its end is missing, and no message is whole")
    raise BagError(
        f"{path} is truncated: its end is missing, {len(times)} messages over "
        f"{(max(times) - min(times)) / NS:.1f} s are whole; "
        f"`mcap recover {path} -o recovered.mcap` saves them"
    )


def _whole_messages(file: BinaryIO, size: int) -> Iterator[int]:
    """Yields the log times of the messages that an MCAP file of ``size`` bytes holds whole.

    Messages in chunks are counted by the index that follows each chunk, without unpacking it.
    """
    while len(head := file.read(_RECORD.size)) == _RECORD.size:
        opcode, length = _RECORD.unpack(head)
        end = file.tell() + length
        if end > size:
            return
        if opcode == _MESSAGE:
            yield _MESSAGE_HEAD.unpack(file.read(_MESSAGE_HEAD.size))[2]
        elif opcode == _MESSAGE_INDEX:
            entries = file.read(length)[6:]  # behind the channel and the array's length
            for time, _ in _INDEX_ENTRY.iter_unpack(entries):
                yield time
        file.seek(end)
