"""The contact sheet shows every clip, its box where the target is, and where it is absent."""

from __future__ import annotations

import numpy as np
import pytest

from vil_tracker_core.data.clips import ClipDataset, Difficulty
from vil_tracker_core.data.contact_sheet import GREEN, RED, STRIP, TILE, contact_sheet
from vil_tracker_core.data.sequence import Sequence
from vil_tracker_core.geometry import Image
from vil_tracker_core.model.presets import PRESETS

GREY = 90


def dataset(frames: int, absent: float, count: int = 50, follow: float = 0.0) -> ClipDataset:
    """Clips of a plain grey video whose name is not ASCII."""
    video = Sequence(
        "Möwe",
        np.tile([300.0, 200, 60, 44], (frames + 1, 1)),
        np.arange(frames + 1) / 30,
        lambda index: np.full((480, 640, 3), GREY, np.uint8),
    )
    return ClipDataset(
        [(1.0, lambda rng, n, gap: video)],
        PRESETS["vil_tiny"],
        frames,
        count,
        1,
        lambda index: Difficulty(0.0),
        absent,
        follow=follow,
    )


def pixels(sheet: Image, colour: tuple[int, int, int]) -> int:
    return int((sheet == colour).all(axis=-1).sum())


@pytest.mark.parametrize(
    ("frames", "count", "columns"), [(1, 12, 4), (3, 5, 2), (1, 2, 2), (9, 2, 1)]
)
def test_size_holds_all_clips(frames: int, count: int, columns: int) -> None:
    sheet = contact_sheet(dataset(frames, 0.0), count)
    rows = -(-count // columns)
    assert sheet.shape == (rows * (TILE + STRIP), columns * (1 + frames) * TILE, 3)
    assert sheet.dtype == np.uint8


def test_visible_targets_have_a_box() -> None:
    data = dataset(1, 0.0)
    sheet = contact_sheet(data, 1)
    tile = sheet[STRIP:, TILE:]
    green = (tile == GREEN).all(axis=-1)
    green[:3] = green[-3:] = green[:, :3] = green[:, -3:] = False  # the frame
    rows, columns = np.nonzero(green)
    cx, cy, w, h = data[0]["box"][0] * TILE
    found = [columns.min(), rows.min(), columns.max(), rows.max()]
    np.testing.assert_allclose(found, [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], atol=1)
    assert pixels(sheet, RED) == 0


def test_of_wide_crops_the_proposed_one_is_shown() -> None:
    """With its box, as if it had been cut by itself."""
    narrow, wide = (contact_sheet(dataset(1, 0.0, follow=share), 1) for share in (0.0, 1.0))
    corners = []
    for sheet in (narrow, wide):
        green = (sheet[STRIP:, TILE:] == GREEN).all(axis=-1)
        green[:3] = green[-3:] = green[:, :3] = green[:, -3:] = False  # the frame
        rows, columns = np.nonzero(green)
        corners.append([columns.min(), rows.min(), columns.max(), rows.max()])
    np.testing.assert_allclose(corners[1], corners[0], atol=2)


@pytest.mark.parametrize("follow", [0.0, 1.0])
def test_absent_targets_are_marked(follow: float) -> None:
    # of one frame: of longer clips the first frames may show it
    sheet = contact_sheet(dataset(1, 1.0, follow=follow), 3)
    assert pixels(sheet, GREEN) == 0
    frame = 2 * 4 * TILE - 16
    assert 3 * frame <= pixels(sheet, RED) < 3 * (frame + 99)
    corner = sheet[STRIP + TILE - 20 : STRIP + TILE - 6, TILE + 4 : TILE + 50].astype(int)
    assert np.ptp(corner[..., 2] - corner[..., 0]) > 60, "the word is missing"


def test_few_clips_are_all_shown_once() -> None:
    sheet = contact_sheet(dataset(1, 0.0, count=3), 12)
    assert sheet.shape[1] == 3 * 2 * TILE
