"""One annotated video, whatever data set it comes from, and the generic folder that holds one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from rich.progress import track

from vil_tracker_core.geometry import FloatArray, Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
TRUTH_FILE = "groundtruth_rect.txt"


class DataError(ValueError):
    """Data that cannot be used as it is; the message names the file and the remedy."""


def read_image(path: Path) -> Image:
    """(H, W, 3) BGR uint8 of an image file; raises DataError naming the file."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        reason = "is missing" if not path.exists() else "is not a readable image (truncated?)"
        raise DataError(f"{path} {reason}")
    return np.asarray(image, dtype=np.uint8)


@dataclass(frozen=True)
class Sequence:
    """A video with one target's truth.

    Attributes:
        name: unique within its data set.
        boxes: (N, 4) float64, (x, y, w, h) in frame pixels; a row of NaN where the target is
            absent or unknown.
        stamps: (N,) float64 seconds since the first frame.
        load: frame index -> (H, W, 3) BGR uint8. Frames are read when asked for.
        origin: where the sequence comes from, for provenance.
    """

    name: str
    boxes: FloatArray
    stamps: FloatArray
    load: Callable[[int], Image] = field(repr=False, compare=False)
    origin: str = ""

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if self.boxes.shape != (count, 4) or self.stamps.shape != (count,):
            raise DataError(
                f"sequence {self.name}: {self.boxes.shape} boxes and {self.stamps.shape} stamps "
                "do not belong together"
            )

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def visible(self) -> npt.NDArray[np.bool_]:
        """(N,) bool: the target has a box in this frame."""
        return np.asarray(np.isfinite(self.boxes).all(axis=1))


def parse_boxes(text: str, source: str) -> FloatArray:
    """(N, 4) boxes of a truth file, one ``x,y,w,h`` a line; commas, tabs or blanks separate.

    Raises:
        DataError: naming ``source`` and the line, when a line has not four numbers.
    """
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        parts = line.replace(",", " ").split()
        try:
            row = [float(part) for part in parts]
        except ValueError:
            row = []
        if len(row) != 4:
            raise DataError(f"{source}, line {number}: expected x,y,w,h but found {line.strip()!r}")
        rows.append(row)
    if not rows:
        raise DataError(f"{source} holds no boxes")
    boxes = np.array(rows, dtype=np.float64)
    boxes[~(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1))] = np.nan
    return boxes


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a UTF-8 text: {error.reason}") from None


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        meta = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, is not valid JSON: {error.msg}") from None
    if not isinstance(meta, dict):
        raise DataError(f"{path} must hold keys and values")
    fps = meta.get("fps", 30.0)
    if not isinstance(fps, (int, float)) or not 0 < fps < math.inf:
        raise DataError(f"{path}: fps = {fps!r} is not a rate in frames a second")
    return meta


def read_folder(folder: Path, fps: float | None = None) -> Sequence:
    """A sequence kept as ``img/*.jpg``, ``groundtruth_rect.txt`` and, optionally, ``meta.json``.

    Args:
        folder: the sequence's folder.
        fps: frames a second where ``meta.json`` has no ``fps``; 30 by default.

    Raises:
        DataError: a part is missing, or frames and truth differ in number.
    """
    folder = Path(folder)
    images = folder / "img"
    if not images.is_dir():
        raise DataError(f"{folder} has no folder img/ with the frames")
    paths = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    truth = folder / TRUTH_FILE
    if not truth.is_file():
        raise DataError(f"{truth} is missing")
    boxes = parse_boxes(_read_text(truth), str(truth))
    if len(boxes) != len(paths):
        raise DataError(
            f"{truth} has {len(boxes)} boxes for {len(paths)} frames in {images}: "
            "one line a frame is needed (nan,nan,nan,nan where the target is absent)"
        )
    meta = _read_meta(folder / "meta.json")
    rate = float(meta.get("fps") or fps or 30.0)
    return Sequence(
        name=folder.name,
        boxes=boxes,
        stamps=np.arange(len(boxes)) / rate,
        load=lambda index: read_image(paths[index]),
        origin=str(meta.get("origin", "")),
    )


def read_folders(root: Path) -> list[Sequence]:
    """All sequences directly below ``root``, sorted by name; raises DataError if there is none."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    folders = sorted(path for path in root.iterdir() if (path / "img").is_dir())
    if not folders:
        raise DataError(f"{root} holds no sequence (a folder with img/ and {TRUTH_FILE})")
    return [read_folder(folder) for folder in folders]


def write_folder(sequence: Sequence, folder: Path, fps: float = 30.0, quality: int = 92) -> None:
    """Writes a sequence in the layout that `read_folder` reads; raises DataError if it exists."""
    folder = Path(folder)
    if folder.exists():
        raise DataError(f"{folder} exists already: choose another name or remove it")
    (folder / "img").mkdir(parents=True)
    for index in track(range(len(sequence)), description=f"writing {folder.name}"):
        path = folder / "img" / f"{index + 1:08d}.jpg"
        if not cv2.imwrite(str(path), sequence.load(index), [cv2.IMWRITE_JPEG_QUALITY, quality]):
            raise DataError(f"{path} could not be written (disk full?)")
    np.savetxt(folder / TRUTH_FILE, sequence.boxes, fmt="%.4f", delimiter=",")
    height, width = sequence.load(0).shape[:2]
    meta = {
        "name": folder.name,
        "origin": sequence.origin,
        "frames": len(sequence),
        "width": width,
        "height": height,
        "fps": fps,
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
