"""LaSOT: a folder a class, in it a folder a sequence, and two files of flags in each.

    testing_set.txt                            the 280 sequences of the test split
    airplane/airplane-1/img/00000001.jpg ...
                        groundtruth.txt        x,y,w,h a line
                        full_occlusion.txt     0 or 1 a frame, all in one line
                        out_of_view.txt        likewise

The train split is training_set.txt where there is one, and else all that is not for testing.
"""

from __future__ import annotations

from pathlib import Path

from vil_tracker_core.data.readers.common import (
    NumberedFrames,
    check_count,
    make_sequence,
    read_all,
    read_flags,
    read_names,
    read_truth,
    subfolders,
)
from vil_tracker_core.data.sequence import DataError, Sequence

SPLITS = ("test", "train")
EXPECTS = "testing_set.txt and CLASS/CLASS-NUMBER/ with img/ and groundtruth.txt"


def _read_sequence(folder: Path) -> Sequence:
    truth, frames = folder / "groundtruth.txt", NumberedFrames(folder / "img", "{:08d}.jpg")
    boxes = read_truth(truth)
    check_count(truth, boxes, frames)
    hidden = read_flags(folder / "full_occlusion.txt", len(boxes)) != 0
    hidden |= read_flags(folder / "out_of_view.txt", len(boxes)) != 0
    return make_sequence(folder.name, boxes, frames, "LaSOT", hidden)


def _names_of(root: Path, split: str, present: set[str]) -> list[str]:
    listed = root / {"test": "testing_set.txt", "train": "training_set.txt"}[split]
    if listed.is_file():
        return read_names(listed)
    testing = root / "testing_set.txt"
    if split == "train" and testing.is_file():
        return sorted(present - set(read_names(testing)))
    raise DataError(f"{testing} is missing: it says which sequences are for testing")


def read(root: Path, split: str, broken: dict[str, str] | None = None) -> list[Sequence]:
    """The sequences of a split."""
    root = Path(root)
    folders = {
        folder.name: folder
        for kind in subfolders(root)
        for folder in subfolders(kind)
        if folder.name.startswith(f"{kind.name}-")
    }
    if not folders:
        raise DataError(f"{root} holds no sequence of LaSOT ({EXPECTS})")
    names = _names_of(root, split, set(folders))
    missing = [name for name in names if name not in folders]
    if missing and broken is None:
        raise DataError(
            f"{root} lacks {len(missing)} sequences of the {split} split, {missing[0]} first: "
            "unpack them, or take their names off the list"
        )
    paths = [folders.get(name, root / name.rpartition("-")[0] / name) for name in names]
    return read_all(paths, _read_sequence, f"LaSOT {split}", broken)
