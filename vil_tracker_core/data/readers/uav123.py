"""UAV123: ``data_seq/UAV123/VIDEO/000001.jpg`` and ``anno/UAV123/NAME.txt``.

A sequence is a video of its own name, or a part of one: car1_2 is frames 751 to 1627 of car1.
Truth is x,y,w,h a line, NaN,NaN,NaN,NaN where the target is hidden or out of the picture.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from vil_tracker_core.data.readers.common import (
    NumberedFrames,
    check_count,
    make_sequence,
    read_all,
    read_truth,
    subfolder,
)
from vil_tracker_core.data.sequence import DataError, Sequence

EXPECTS = "data_seq/UAV123/VIDEO/000001.jpg and anno/UAV123/NAME.txt"

PARTS = {
    "bird1": ((1, 253), (775, 1477), (1573, 2437)),
    "car1": ((1, 751), (751, 1627), (1627, 2629)),
    "car16": ((1, 415), (415, 1993)),
    "car6": ((1, 487), (487, 1807), (1807, 2953), (2953, 3925), (3925, 4861)),
    "car8": ((1, 1357), (1357, 2575)),
    "group1": ((1, 1333), (1333, 2515), (2515, 3925), (3925, 4873)),
    "group2": ((1, 907), (907, 1771), (1771, 2683)),
    "group3": ((1, 1567), (1567, 2827), (2827, 4369), (4369, 5527)),
    "person12": ((1, 601), (601, 1621)),
    "person14": ((1, 847), (847, 1813), (1813, 2923)),
    "person17": ((1, 1501), (1501, 2347)),
    "person19": ((1, 1243), (1243, 2791), (2791, 4357)),
    "person2": ((1, 1189), (1189, 2623)),
    "person4": ((1, 1501), (1501, 2743)),
    "person5": ((1, 877), (877, 2101)),
    "person7": ((1, 1249), (1249, 2065)),
    "person8": ((1, 1075), (1075, 1525)),
    "truck4": ((1, 577), (577, 1261)),
    "uav1": ((1, 1555), (1555, 2377), (2473, 3469)),
}
"""Numbers of the first and the last frame of the sequences VIDEO_1, VIDEO_2, ... of a video."""

RANGES = {
    f"{video}_{number}": (video, first, last)
    for video, parts in PARTS.items()
    for number, (first, last) in enumerate(parts, start=1)
}


def _read_sequence(videos: Path, truth: Path) -> Sequence:
    name, boxes = truth.stem, read_truth(truth)
    if name not in RANGES:
        frames = NumberedFrames(videos / name, "{:06d}.jpg")
        check_count(truth, boxes, frames)
        return make_sequence(name, boxes, frames, "UAV123")
    video, first, last = RANGES[name]
    frames = NumberedFrames(videos / video, "{:06d}.jpg", first)
    if len(boxes) != last - first + 1:
        raise DataError(
            f"{truth} has {len(boxes)} boxes for the frames {first} to {last} of {frames.folder}: "
            "one line a frame is needed"
        )
    for index in (0, len(boxes) - 1):
        if not frames.path(index).is_file():
            raise DataError(f"{frames.path(index)} is missing: {name} needs it")
    return make_sequence(name, boxes, frames, "UAV123")


def read(root: Path, broken: dict[str, str] | None = None) -> list[Sequence]:
    """The sequences that have a truth file, sorted by name."""
    truths = sorted(subfolder(root, "anno/UAV123", f"UAV123 ({EXPECTS})").glob("*.txt"))
    videos = subfolder(root, "data_seq/UAV123", f"UAV123 ({EXPECTS})")
    if not truths:
        raise DataError(f"{Path(root) / 'anno/UAV123'} holds no truth file (NAME.txt)")
    read_one = partial(_read_sequence, videos)
    return read_all(truths, read_one, "UAV123", broken, lambda truth: truth.stem)
