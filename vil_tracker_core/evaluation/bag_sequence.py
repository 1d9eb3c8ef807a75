"""A bag as a sequence: frames read when asked for, truth joined to them on the stamp."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np

from vil_tracker_core.data.sequence import DataError, Sequence, parse_boxes, read_text
from vil_tracker_core.evaluation.bags import (
    DETECTION,
    NS,
    TRUTH_TOPIC,
    BagError,
    BagReader,
    open_bag,
)
from vil_tracker_core.geometry import Box, FloatArray, Image

JOIN_NS = 500_000
"""Truth belongs to a frame at most this far from its stamp: some tools write stamps as text in
whole milliseconds, and no camera is faster than 1 000 frames a second."""
NANOSECONDS_FROM = 10**15
"""A whole number this large in a truth file is a stamp in ns: in seconds it would lie 30 million
years ahead."""


@dataclass(frozen=True)
class BagSequence:
    """What `read_bag` found.

    Attributes:
        sequence: its frames and their truth, NaN where there is none.
        first_stamp: of the first frame, ns since 1970; the sequence's stamps count from there.
        truth: where the truth comes from; empty where there is none.
        unmatched: boxes of the truth that belong to no frame.
    """

    sequence: Sequence
    first_stamp: int
    truth: str
    unmatched: int


class BagFrames:
    """A sequence's ``load`` over a bag. Reading in order takes one pass; a jump seeks anew.

    Args:
        path: the bag.
        topic: of the images.
        records: record time of each image, ns, in the bag's order.
    """

    def __init__(self, path: Path, topic: str, records: list[int]) -> None:
        self._path, self._topic, self._records = path, topic, records
        self._open = ExitStack()
        self._reader: BagReader | None = None
        self._messages: Iterator[tuple[str, int, bytes]] = iter(())
        self._next = -1

    def __call__(self, index: int) -> Image:
        if self._reader is None:
            self._reader = self._open.enter_context(open_bag(self._path))
        if index != self._next:
            self._seek(self._reader, index)
        try:
            _, _, data = next(self._messages)
        except StopIteration:
            raise BagError(f"{self._path} has changed: image {index + 1} is gone") from None
        self._next = index + 1
        frame = self._reader.decode_image(self._topic, data).frame
        if self._next == len(self._records):  # a run over many bags must not keep them all open
            self._open.close()
            self._reader, self._next = None, -1
        return frame

    def _seek(self, reader: BagReader, index: int) -> None:
        """Puts the next message to be read at ``index``."""
        record = self._records[index]
        self._messages = reader.messages([self._topic], start=record)
        for _ in range(index - bisect_left(self._records, record)):  # recorded at the same time
            next(self._messages)


def read_bag(
    path: Path, *, image_topic: str | None = None, truth: str | None = None
) -> BagSequence:
    """A bag as a sequence; only the stamps of its images are read here.

    Args:
        path: bag folder, .mcap or .db3.
        image_topic: the frames' topic; the bag's only image topic by default.
        truth: a Detection2D topic, or a file: ``x,y,w,h`` a line with one line a frame, or
            ``stamp,x,y,w,h`` with the stamp in seconds (1704067200.033) or whole nanoseconds. By
            default ``/ground_truth`` where the bag has it.

    Raises:
        BagError: the bag cannot be read, or has no such topic.
        DataError: the truth file does not fit.
    """
    path = Path(path)
    with open_bag(path) as bag:
        topic = image_topic or bag.image_topic()
        times = bag.image_times(topic)
        if not times:
            raise BagError(f"{path}: topic {topic} holds no frame")
        stamps = [stamp for _, stamp in times]
        source = truth or (TRUTH_TOPIC if TRUTH_TOPIC in bag.topics else "")
        boxes, unmatched = np.full((len(stamps), 4), np.nan), 0
        if source in bag.topics:
            boxes, unmatched = _join(bag.truth(source), stamps, f"{path}, topic {source}")
        elif source and Path(source).is_file():
            boxes, unmatched = _read_truth_file(Path(source), stamps, f"topic {topic} of {path}")
        elif source:
            topics = [name for name, kind in bag.topics.items() if kind.type == DETECTION]
            raise BagError(
                f"truth {source!r} is neither a file nor a topic of {path}, which has "
                f"{', '.join(topics) or 'none'} of type {DETECTION}"
            )
    first = stamps[0]
    name = path.stem if path.suffix in (".mcap", ".db3") else path.name
    sequence = Sequence(
        name=name,
        boxes=boxes,
        stamps=np.array([(stamp - first) / NS for stamp in stamps]),
        load=BagFrames(path, topic, [record for record, _ in times]),
        origin=f"bag {path.name}, topic {topic}",
    )
    return BagSequence(sequence, first, source, unmatched)


def _join(truth: Mapping[int, Box], stamps: list[int], source: str) -> tuple[FloatArray, int]:
    """((N, 4) the box nearest in time to each frame, within JOIN_NS, else NaN; the number of boxes
    that belong to no frame). Raises DataError where none belongs to any."""
    known = sorted(truth)
    boxes, used = np.full((len(stamps), 4), np.nan), set()
    for row, stamp in enumerate(stamps):
        at = bisect_left(known, stamp)
        near = min(known[max(at - 1, 0) : at + 1], key=lambda t: abs(t - stamp), default=None)
        if near is not None and abs(near - stamp) <= JOIN_NS:
            used.add(near)
            box = truth[near]
            if all(map(math.isfinite, box)) and box.w > 0 and box.h > 0:
                boxes[row] = box
    if known and not used:
        raise DataError(
            f"{source}: its {len(known)} stamps, {known[0] / NS:.3f} to {known[-1] / NS:.3f} s, "
            f"are those of no frame ({min(stamps) / NS:.3f} to {max(stamps) / NS:.3f} s): "
            "the truth must carry the stamps of the images' headers"
        )
    return boxes, len(known) - len(used)


def _read_truth_file(path: Path, stamps: list[int], frames: str) -> tuple[FloatArray, int]:
    """The same as `_join` gives, of a file with one line a frame or with stamps."""
    lines = read_text(path).splitlines()
    if lines and any(letter in lines[0].lower() for letter in "xyw"):  # a heading
        lines[0] = ""
    columns = len(next(filter(str.strip, lines), "").replace(",", " ").split())
    if columns == 5:
        return _join(_stamped_boxes(path, lines), stamps, str(path))
    boxes = parse_boxes("\n".join(lines), str(path))
    if len(boxes) != len(stamps):
        raise DataError(
            f"{path} has {len(boxes)} boxes for {len(stamps)} frames in {frames}: give one line a "
            "frame (nan,nan,nan,nan where the target is absent), or lines of stamp,x,y,w,h"
        )
    return boxes, 0


def _stamped_boxes(path: Path, lines: list[str]) -> dict[int, Box]:
    boxes = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parts = line.replace(",", " ").split()
        try:
            time, values = Decimal(parts[0]), [float(part) for part in parts[1:]]
            # a float holds no stamp of today to the nanosecond
            stamp = int(time) if time >= NANOSECONDS_FROM else int((time * NS).to_integral_value())
            if not 0 <= stamp < 2**63:
                raise ValueError(stamp)
            boxes[stamp] = Box(*values)
        except (InvalidOperation, OverflowError, TypeError, ValueError):
            raise DataError(
                f"{path}, line {number}: expected stamp,x,y,w,h but found {line.strip()!r}"
            ) from None
    return boxes
