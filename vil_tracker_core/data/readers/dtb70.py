"""DTB70: a folder a sequence, ``NAME/img/00001.jpg`` and ``NAME/groundtruth_rect.txt``."""

from __future__ import annotations

from pathlib import Path

from vil_tracker_core.data.readers.common import (
    NumberedFrames,
    check_count,
    make_sequence,
    read_all,
    read_truth,
    subfolders,
)
from vil_tracker_core.data.sequence import TRUTH_FILE, DataError, Sequence

EXPECTS = f"NAME/img/00001.jpg and NAME/{TRUTH_FILE}"


def _read_sequence(folder: Path) -> Sequence:
    truth, frames = folder / TRUTH_FILE, NumberedFrames(folder / "img", "{:05d}.jpg")
    boxes = read_truth(truth)
    check_count(truth, boxes, frames)
    return make_sequence(folder.name, boxes, frames, "DTB70")


def read(root: Path, broken: dict[str, str] | None = None) -> list[Sequence]:
    """All sequences, sorted by name."""
    folders = [folder for folder in subfolders(root) if (folder / "img").is_dir()]
    if not folders:
        raise DataError(f"{root} holds no sequence of DTB70 ({EXPECTS})")
    return read_all(folders, _read_sequence, "DTB70", broken)
