"""VisDrone-SOT: ``sequences/NAME/img0000001.jpg`` and ``annotations/NAME.txt``.

Each archive (train, val, test-dev) unpacks to a folder of its own with these two in it.
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
    subfolders,
)
from vil_tracker_core.data.sequence import DataError, Sequence

EXPECTS = "sequences/NAME/img0000001.jpg and annotations/NAME.txt"


def _read_sequence(annotations: Path, folder: Path) -> Sequence:
    truth = annotations / f"{folder.name}.txt"
    boxes, frames = read_truth(truth), NumberedFrames(folder, "img{:07d}.jpg")
    check_count(truth, boxes, frames)
    return make_sequence(folder.name, boxes, frames, "VisDrone-SOT")


def read(root: Path, broken: dict[str, str] | None = None) -> list[Sequence]:
    """All sequences, sorted by name."""
    annotations = subfolder(root, "annotations", f"VisDrone-SOT ({EXPECTS})")
    folders = subfolders(subfolder(root, "sequences", f"VisDrone-SOT ({EXPECTS})"))
    if not folders:
        raise DataError(f"{root} holds no sequence of VisDrone-SOT ({EXPECTS})")
    return read_all(folders, partial(_read_sequence, annotations), "VisDrone-SOT", broken)
