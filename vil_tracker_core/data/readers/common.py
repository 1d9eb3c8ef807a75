"""What the readers share: frames named by number, truth files, files of flags, lists of names."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import Progress

from vil_tracker_core.data.sequence import (
    IMAGE_SUFFIXES,
    DataError,
    Sequence,
    parse_boxes,
    read_image,
    read_text,
)
from vil_tracker_core.geometry import FloatArray, Image


@dataclass(frozen=True)
class NumberedFrames:
    """Frame files whose names are numbers, as a sequence's ``load``.

    No list of paths is kept: the largest data set has 14 million frames.

    Attributes:
        folder: where the files lie.
        pattern: a name with the number left out, as for `str.format`: ``{:08d}.jpg``.
        first: number of the first frame.
    """

    folder: Path
    pattern: str
    first: int = 1

    def path(self, index: int) -> Path:
        return self.folder / self.pattern.format(self.first + index)

    def __call__(self, index: int) -> Image:
        return read_image(self.path(index))


def subfolder(root: Path, name: str, layout: str) -> Path:
    """``root / name``; raises DataError saying what ``layout`` expects where it is no folder."""
    folder = Path(root) / name
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: is {root} laid out as {layout}?")
    return folder


def subfolders(root: Path) -> list[Path]:
    """The folders directly in ``root``, sorted; raises DataError where it is no folder."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    return sorted(path for path in root.iterdir() if path.is_dir())


def read_names(path: Path) -> list[str]:
    """The names in a list such as testing_set.txt, one a line; raises DataError if it is empty."""
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path} names no sequence")
    return names


def read_truth(path: Path) -> FloatArray:
    """(N, 4) boxes of a truth file; raises DataError naming the file where it is missing, empty
    or malformed."""
    if not path.is_file():
        raise DataError(f"{path} is missing: each sequence needs its truth file")
    return parse_boxes(read_text(path), str(path))


def read_flags(path: Path, count: int) -> npt.NDArray[np.int64]:
    """(count,) whole numbers, one a frame, separated by commas or white space.

    Raises:
        DataError: the file is missing, holds something else, or another number of flags.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: without it nobody knows where the target is hidden")
    parts = read_text(path).replace(",", " ").split()
    try:
        flags = np.array([int(float(part)) for part in parts], dtype=np.int64)
    except (ValueError, OverflowError):
        raise DataError(f"{path} must hold one number a frame and nothing else") from None
    if len(flags) != count:
        raise DataError(f"{path} holds {len(flags)} flags for {count} boxes: one a frame is needed")
    return flags


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def image_names(folder: Path) -> list[str]:
    """The names of the images in a folder, sorted; raises DataError where it is no folder."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: the sequence's frames are missing")
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_image(entry.name))


def check_count(truth: Path, boxes: FloatArray, frames: NumberedFrames) -> None:
    """Raises DataError where the folder does not hold one image a box, the first one of the name
    that the layout says."""
    present = image_names(frames.folder)
    if len(present) == len(boxes) and frames.path(0).name in present:
        return
    known, names = set(present), (frames.path(index).name for index in range(len(boxes)))
    missing = next((name for name in names if name not in known), None)
    raise DataError(
        f"{truth} has {len(boxes)} boxes for {len(present)} frames in {frames.folder}: "
        "one line a frame is needed" + (f", and {missing} is missing" if missing else "")
    )


def first_box_only(boxes: FloatArray, frames: NumberedFrames) -> FloatArray:
    """(N, 4) one row a frame where only the first frame's truth is published: NaN after it."""
    count = len(image_names(frames.folder))
    if len(boxes) != 1 or not count:
        return boxes
    return np.concatenate([boxes, np.full((count - 1, 4), np.nan)])


def make_sequence(
    name: str,
    boxes: FloatArray,
    frames: NumberedFrames,
    origin: str,
    hidden: npt.NDArray[np.bool_] | None = None,
    fps: float = 30.0,
) -> Sequence:
    """The sequence of (N, 4) boxes and their frames; rows where ``hidden`` (N,) become NaN."""
    if hidden is not None:
        boxes = np.where(hidden[:, None], np.nan, boxes)
    return Sequence(name, boxes, np.arange(len(boxes)) / fps, frames, origin)


def read_all(
    paths: list[Path],
    read: Callable[[Path], Sequence],
    title: str,
    broken: dict[str, str] | None = None,
    name_of: Callable[[Path], str] = lambda folder: folder.name,
) -> list[Sequence]:
    """``read`` of each path, under a progress bar: a large data set takes a minute.

    Args:
        paths: what ``read`` takes, one a sequence.
        read: gives the sequence of a path; raises DataError or OSError where it is broken.
        title: of the progress bar.
        broken: gains name -> why of each broken sequence, which is left out; with None the first
            one ends the reading.
        name_of: gives the sequence's name from its path, also where it cannot be read.
    """
    # rich's track() is not for this: it hangs when an error leaves its loop
    with Progress(transient=True) as progress:
        task = progress.add_task(title, total=len(paths))
        sequences = []
        for path in paths:
            try:
                sequences.append(read(path))
            except (DataError, OSError) as error:
                if broken is None:
                    raise
                broken[name_of(path)] = str(error)
            progress.advance(task)
        return sequences
