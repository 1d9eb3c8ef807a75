"""A picture of what the trainer sees: the clips of a run, side by side, with their truth."""

from __future__ import annotations

import math

import cv2
import numpy as np

from vil_tracker_core.data.clips import Clip, ClipDataset
from vil_tracker_core.geometry import Image

TILE = 160
"""Side of a shown crop, px."""
STRIP = 18
"""Height of the line of text over a clip, px."""
WIDTH = 1280
"""The sheet is about this wide, px."""
GROUND, WHITE, GREEN, RED = (40, 40, 40), (235, 235, 235), (80, 220, 80), (60, 60, 230)


def _tile(crop: Image, colour: tuple[int, int, int]) -> Image:
    """(TILE, TILE, 3) BGR of a (3, S, S) RGB crop, framed in a colour."""
    bgr = np.ascontiguousarray(crop[::-1].transpose(1, 2, 0))
    shown = cv2.resize(bgr, (TILE, TILE), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.rectangle(shown, (0, 0), (TILE - 1, TILE - 1), colour, 2), dtype=np.uint8)


def _write(image: Image, text: str, at: tuple[int, int], colour: tuple[int, int, int]) -> None:
    plain = text.encode("ascii", "replace").decode()  # all that OpenCV's fonts have
    cv2.putText(image, plain, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA)


def _search_tile(clip: Clip, index: int, reach: float) -> Image:
    """A search crop with its box in green, or framed in red and marked as absent; of a wide one
    the middle, which is the crop that the clip proposes."""
    wide = clip["search"][index]
    edge = round(wide.shape[-1] * (1 - 1 / reach) / 2)
    crop = wide[:, edge : wide.shape[-1] - edge, edge : wide.shape[-1] - edge]
    box = clip["box"][index] * reach
    box[:2] += (1 - reach) / 2
    visible = bool(clip["visible"][index] and (abs(box[:2] - 0.5) < 0.5).all())
    tile = _tile(crop, GREEN if visible else RED)
    if visible:
        cx, cy, w, h = (box * TILE).tolist()
        low, high = (round(cx - w / 2), round(cy - h / 2)), (round(cx + w / 2), round(cy + h / 2))
        cv2.rectangle(tile, low, high, GREEN, 1)
    else:
        _write(tile, "absent", (6, TILE - 8), RED)
    return tile


def _cell(dataset: ClipDataset, index: int) -> Image:
    """One clip: a line of text, the template, and the search crops after it."""
    clip, video = dataset.sample(index)
    tiles = [_tile(template, WHITE) for template in clip["template"]]
    tiles += [_search_tile(clip, k, dataset.reach) for k in range(len(clip["search"]))]
    strip: Image = np.full((STRIP, TILE * len(tiles), 3), GROUND, dtype=np.uint8)
    _write(strip, f"{index}  {video.origin or 'video'}: {video.name}", (4, STRIP - 5), WHITE)
    return np.concatenate([strip, np.concatenate(tiles, axis=1)])


def contact_sheet(dataset: ClipDataset, count: int = 12) -> Image:
    """A labelled picture of ``count`` clips, spread evenly from a run's first to its last.

    Each clip has its number, its source and its name over it, then the template (white frame) and
    the K search crops: green with the box where the target is visible, red where it is absent.

    ``vil-tracker train CONFIG --show`` is
    ``cv2.imwrite(path, contact_sheet(clip_dataset(load_config(config))))``.

    Args:
        dataset: the clips of the run, as `training.sources.clip_dataset` makes them.
        count: how many to show, at most all.

    Returns:
        (H, W, 3) BGR uint8, about 1280 px wide.

    Raises:
        DataError: the data cannot be read.
    """
    chosen = np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(int)).tolist()
    cells = [_cell(dataset, index) for index in chosen]
    height, width = cells[0].shape[:2]
    columns = min(max(1, round(WIDTH / width)), len(cells))
    rows = math.ceil(len(cells) / columns)
    sheet: Image = np.full((rows * height, columns * width, 3), GROUND, dtype=np.uint8)
    for number, cell in enumerate(cells):
        y, x = number // columns * height, number % columns * width
        sheet[y : y + height, x : x + width] = cell
    return sheet
