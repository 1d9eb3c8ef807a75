"""TrackingNet: chunks TRAIN_0 to TRAIN_11 and TEST, each with truth files and frames.

    TRAIN_0/anno/NAME.txt         x,y,w,h a line
    TRAIN_0/frames/NAME/0.jpg ...

As many chunks are read as there are. TEST publishes the first frame's box only. There are no
flags of absence.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from vil_tracker_core.data.readers.common import (
    NumberedFrames,
    check_count,
    first_box_only,
    make_sequence,
    read_all,
    read_truth,
    subfolder,
    subfolders,
)
from vil_tracker_core.data.sequence import DataError, Sequence

SPLITS = ("train", "test")
EXPECTS = "TRAIN_0/ to TRAIN_11/ and TEST/ with anno/ and frames/ in each"


def _chunks(root: Path, split: str) -> list[Path]:
    wanted = r"TRAIN_\d+" if split == "train" else "TEST"
    chunks = [path for path in subfolders(root) if re.fullmatch(wanted, path.name)]
    if not chunks:
        raise DataError(f"{root} holds no {split} chunk of TrackingNet ({EXPECTS})")
    return sorted(chunks, key=lambda path: (len(path.name), path.name))  # TRAIN_2 before TRAIN_10


def _read_sequence(truth: Path, first_only: bool) -> Sequence:
    frames = NumberedFrames(truth.parent.parent / "frames" / truth.stem, "{}.jpg", first=0)
    boxes = read_truth(truth)
    if first_only:
        boxes = first_box_only(boxes, frames)
    check_count(truth, boxes, frames)
    return make_sequence(truth.stem, boxes, frames, "TrackingNet")


def read(root: Path, split: str, broken: dict[str, str] | None = None) -> list[Sequence]:
    """The sequences of all chunks of a split."""
    truths = []
    for chunk in _chunks(root, split):
        subfolder(chunk, "frames", f"TrackingNet ({EXPECTS})")
        found = sorted(subfolder(chunk, "anno", f"TrackingNet ({EXPECTS})").glob("*.txt"))
        if not found:
            raise DataError(f"{chunk / 'anno'} holds no truth file (NAME.txt)")
        truths += found
    read_one = partial(_read_sequence, first_only=split == "test")
    return read_all(truths, read_one, f"TrackingNet {split}", broken, lambda truth: truth.stem)
