"""OTB-100: ``NAME/img/0001.jpg`` and ``NAME/groundtruth_rect.txt``, with its known oddities.

Truth is separated by commas, tabs or blanks, as the sequence has it, and counts pixels from 1.
Jogging and Skating2 have two targets (``groundtruth_rect.1.txt`` and ``.2.txt``), of Human4 only
the second counts. Some truth files cover a part of the video.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from vil_tracker_core.data.readers.common import (
    NumberedFrames,
    image_names,
    make_sequence,
    read_all,
    read_truth,
    subfolders,
)
from vil_tracker_core.data.sequence import TRUTH_FILE, DataError, Sequence
from vil_tracker_core.geometry import FloatArray

EXPECTS = f"NAME/img/0001.jpg and NAME/{TRUTH_FILE}"
ORIGIN = 1
"""The coordinate that the truth files give to the first pixel."""

COVERED = {
    "BlurCar1": (247, 988),
    "BlurCar3": (3, 359),
    "BlurCar4": (18, 397),
    "David": (300, 770),
    "Diving": (1, 215),
    "Football1": (1, 74),
    "Freeman3": (1, 460),
    "Freeman4": (1, 283),
}
"""Numbers of the first and the last frame that the truth covers, where it is not the whole."""
LEFT_OUT = {"Human4.1"}
"""Targets with a truth file that are no part of the benchmark."""


def _name_of(truth: Path) -> str:
    """The name of a truth file's target: ``Jogging.1`` and ``Jogging.2``, or just ``Bolt``."""
    return truth.parent.name + truth.stem.removeprefix("groundtruth_rect")


def _truths(folder: Path) -> list[Path]:
    """The truth file of each target in a sequence's folder."""
    several = sorted(folder.glob("groundtruth_rect.[0-9].txt"))
    return [path for path in several if _name_of(path) not in LEFT_OUT] or [folder / TRUTH_FILE]


def _frames(folder: Path) -> tuple[NumberedFrames, int]:
    """The frames that the truth covers, and how many there are."""
    names = image_names(folder / "img")
    found = re.fullmatch(r"(\d+)(\.\w+)", names[0]) if names else None
    if found is None:
        raise DataError(f"{folder / 'img'} holds no frame named by its number (0001.jpg)")
    numbers = [int(name.partition(".")[0]) for name in names if name.partition(".")[0].isdigit()]
    first, last = COVERED.get(folder.name, (numbers[0], numbers[-1]))
    covered = sum(first <= number <= last for number in numbers)
    pattern = f"{{:0{len(found[1])}d}}{found[2]}"  # 0001.jpg, but 00001.jpg in Board
    return NumberedFrames(folder / "img", pattern, first), covered


def _from_zero(boxes: FloatArray) -> FloatArray:
    """Boxes whose first pixel is 1, in our coordinates, where it begins at 0."""
    return np.asarray(boxes - np.array([ORIGIN, ORIGIN, 0, 0]))


def _read_sequence(truth: Path) -> Sequence:
    frames, count = _frames(truth.parent)
    boxes = read_truth(truth)
    if len(boxes) != count:
        raise DataError(
            f"{truth} has {len(boxes)} boxes for {count} frames in {frames.folder}, "
            f"from number {frames.first} on: one line a frame is needed"
        )
    return make_sequence(_name_of(truth), _from_zero(boxes), frames, "OTB-100")


def read(root: Path, broken: dict[str, str] | None = None) -> list[Sequence]:
    """All targets of all sequences, sorted by name."""
    folders = [folder for folder in subfolders(root) if (folder / "img").is_dir()]
    if not folders:
        raise DataError(f"{root} holds no sequence of OTB ({EXPECTS})")
    truths = [truth for folder in folders for truth in _truths(folder)]
    return read_all(truths, _read_sequence, "OTB-100", broken, _name_of)
