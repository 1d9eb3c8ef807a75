"""GOT-10k: ``{train,val,test}/list.txt`` and a folder a sequence, frames and truth side by side.

    val/list.txt
    val/GOT-10k_Val_000001/00000001.jpg ...
                           groundtruth.txt     x,y,w,h a line
                           absence.label       1 where the target is out of the picture
                           cover.label         0 (wholly hidden) to 8 (wholly seen)
                           meta_info.ini       its anno_fps is the rate of the frames

The test split publishes the first frame's box only, and no labels.
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
    read_flags,
    read_names,
    read_truth,
    subfolder,
)
from vil_tracker_core.data.sequence import DataError, Sequence, read_text

SPLITS = ("val", "train", "test")
EXPECTS = "train/, val/, test/ with list.txt and a folder a sequence in each"


def _fps(folder: Path) -> float:
    """The frames' rate of meta_info.ini; 10, the data set's own, where it does not say."""
    meta = folder / "meta_info.ini"
    if not meta.is_file():
        return 10.0
    found = re.search(r"anno_fps\s*[:=]\s*(\d+(?:\.\d+)?)", read_text(meta))
    rate = float(found[1]) if found else 10.0
    if rate <= 0:
        raise DataError(f"{meta}: anno_fps = {rate:g} is not a rate in frames a second")
    return rate


def _read_sequence(folder: Path, with_labels: bool) -> Sequence:
    truth, frames = folder / "groundtruth.txt", NumberedFrames(folder, "{:08d}.jpg")
    boxes, hidden = read_truth(truth), None
    if with_labels:
        absent = read_flags(folder / "absence.label", len(boxes)) != 0
        hidden = absent | (read_flags(folder / "cover.label", len(boxes)) == 0)
    else:
        boxes = first_box_only(boxes, frames)
    check_count(truth, boxes, frames)
    return make_sequence(folder.name, boxes, frames, "GOT-10k", hidden, _fps(folder))


def read(root: Path, split: str, broken: dict[str, str] | None = None) -> list[Sequence]:
    """The sequences of a split, in the order of its list.txt."""
    home = subfolder(root, split, f"GOT-10k ({EXPECTS})")
    names = read_names(home / "list.txt")
    folders = [subfolder(home, name, "its list.txt says") for name in names]
    read_one = partial(_read_sequence, with_labels=split != "test")
    return read_all(folders, read_one, f"GOT-10k {split}", broken)
