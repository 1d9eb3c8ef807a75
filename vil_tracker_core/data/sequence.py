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
from rich.progress import Progress

from vil_tracker_core.geometry import FloatArray, Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
TRUTH_FILE = "groundtruth_rect.txt"


class DataError(ValueError):
    """Data that cannot be used as it is; the message names the file and the remedy."""


class ImageError(DataError):
    """An image file that is missing or cannot be decoded whole."""


def _is_cut_short(data: bytes) -> bool:
    """Whether this is a JPEG without its end, which some decoders fill with grey, silently."""
    if not data.startswith(b"\xff\xd8"):
        return False
    at = 2  # skip to the picture: a thumbnail in the segments before it has an end of its own
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    start = at if data[at : at + 2] == b"\xff\xda" else 2
    return data.rfind(b"\xff\xd9", start) < 0


def read_pixels(path: Path, mode: int = cv2.IMREAD_UNCHANGED) -> npt.NDArray[Any]:
    """The pixels of an image file, as OpenCV's reading ``mode`` gives them.

    Raises:
        ImageError: naming the file, where it is missing, cut short or no image.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path} is missing") from None
    if _is_cut_short(data):
        raise ImageError(f"{path} is cut short after {len(data)} bytes: copy it again")
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), mode) if data else None
    if pixels is None:
        raise ImageError(f"{path} is not a readable image (truncated?)")
    return np.asarray(pixels)


def read_image(path: Path) -> Image:
    """(H, W, 3) BGR uint8 of an image file; raises ImageError naming the file."""
    return np.asarray(read_pixels(path, cv2.IMREAD_COLOR), dtype=np.uint8)


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


def read_text(path: Path) -> str:
    """The text of a file; raises DataError where it is missing or not UTF-8."""
    if not path.is_file():
        raise DataError(f"{path} is missing")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a UTF-8 text: {error.reason}") from None


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        meta = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, is not valid JSON: {error.msg}") from None
    if not isinstance(meta, dict):
        raise DataError(f"{path} must hold keys and values")
    fps = meta.get("fps", 30.0)
    if not isinstance(fps, (int, float)) or not 0 < fps < math.inf:
        raise DataError(f"{path}: fps = {fps!r} is not a rate in frames a second")
    return meta


def frame_paths(folder: Path) -> list[Path]:
    """The frames of a sequence's folder, in order; raises DataError where it has no img/."""
    images = Path(folder) / "img"
    if not images.is_dir():
        raise DataError(f"{folder} has no folder img/ with the frames")
    return sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def read_folder(folder: Path, fps: float | None = None) -> Sequence:
    """A sequence kept as ``img/*.jpg``, ``groundtruth_rect.txt`` and, optionally, ``meta.json``.

    Args:
        folder: the sequence's folder.
        fps: frames a second where ``meta.json`` has no ``fps``; 30 by default.

    Raises:
        DataError: a part is missing, or frames and truth differ in number.
    """
    folder = Path(folder)
    paths = frame_paths(folder)
    truth = folder / TRUTH_FILE
    boxes = parse_boxes(read_text(truth), str(truth))
    if len(boxes) != len(paths):
        raise DataError(
            f"{truth} has {len(boxes)} boxes for {len(paths)} frames in {folder / 'img'}: "
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


def sequence_folders(root: Path) -> list[Path]:
    """The folders directly below ``root`` with images or a truth, sorted, for `read_folder`, which
    names those that lack the other; raises DataError if none has images."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    with_images = {path for path in root.iterdir() if (path / "img").is_dir()}
    if not with_images:
        raise DataError(f"{root} holds no sequence (a folder with img/ and {TRUTH_FILE})")
    return sorted(with_images | {truth.parent for truth in root.glob(f"*/{TRUTH_FILE}")})


def read_folders(root: Path) -> list[Sequence]:
    """All sequences directly below ``root``, sorted by name; raises DataError if there is none."""
    return [read_folder(folder) for folder in sequence_folders(root)]


def write_folder(sequence: Sequence, folder: Path, fps: float = 30.0, quality: int = 92) -> None:
    """Writes a sequence in the layout that `read_folder` reads; raises DataError if it exists."""
    folder = Path(folder)
    if folder.exists():
        raise DataError(f"{folder} exists already: choose another name or remove it")
    (folder / "img").mkdir(parents=True)
    with Progress() as progress:
        task = progress.add_task(f"writing {folder.name}", total=len(sequence))
        for index in range(len(sequence)):
            path, coding = (
                folder / "img" / f"{index + 1:08d}.jpg",
                [cv2.IMWRITE_JPEG_QUALITY, quality],
            )
            if not cv2.imwrite(str(path), sequence.load(index), coding):
                raise DataError(f"{path} could not be written (disk full?)")
            progress.advance(task)
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
