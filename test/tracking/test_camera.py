"""How far the scene has moved: windows into one picture, whose distance is known."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vil_tracker_core.geometry import Image
from vil_tracker_core.tracking.camera import LONGER_SIDE, scene_shift, thinned

WIDTH, HEIGHT = 640, 360
_noise = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
SCENE: Image = np.asarray(cv2.resize(_noise, (1280, 720), interpolation=cv2.INTER_CUBIC), np.uint8)


def window(x: int, y: int) -> Image:
    """What a camera shows whose picture begins at (x, y) of the scene."""
    return SCENE[y : y + HEIGHT, x : x + WIDTH].copy()


def shift(before: Image, after: Image) -> np.ndarray:
    """(dx, dy) in pixels of the frames."""
    found = scene_shift(thinned(before), thinned(after))
    assert found is not None
    return found * max(before.shape[:2])


@given(dx=st.integers(-200, 200), dy=st.integers(-100, 100))
@settings(max_examples=40, deadline=None)
def test_the_scene_moves_against_the_camera(dx: int, dy: int) -> None:
    """To a pixel of the thinned frame, which is four of the frame."""
    moved = shift(window(320, 180), window(320 + dx, 180 + dy))
    assert moved == pytest.approx([-dx, -dy], abs=4.0)


def test_a_still_camera_sees_no_motion() -> None:
    assert shift(window(9, 9), window(9, 9)) == pytest.approx([0, 0], abs=1e-3)


def test_what_moves_in_the_scene_does_not_count() -> None:
    before, after = window(300, 180), window(340, 180)
    thing = np.random.default_rng(1).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    before[100:220, 100:260] = thing
    after[120:240, 250:410] = thing
    assert shift(before, after) == pytest.approx([-40, 0], abs=4.0)


def test_the_light_may_change() -> None:
    after = np.asarray(window(340, 190) * 0.6 + 20, dtype=np.uint8)
    assert shift(window(300, 180), after) == pytest.approx([-40, -10], abs=4.0)


def test_nothing_is_known_across_a_cut() -> None:
    other = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    assert scene_shift(thinned(window(300, 180)), thinned(other)) is None


def test_nothing_is_known_of_pictures_without_edges() -> None:
    blank = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    assert scene_shift(blank, blank) is None


@pytest.mark.parametrize("deviation", [1, 4, 16])
def test_a_camera_s_noise_is_no_motion(deviation: float) -> None:
    """As before a clear sky, in sixty pairs of frames."""
    random = np.random.default_rng(3)
    sky = 150 + random.normal(0, deviation, (61, 90, 160, 3))
    frames = np.clip(sky, 0, 255).astype(np.uint8)
    for before, after in itertools.pairwise(frames):
        assert scene_shift(before, after) is None


@pytest.mark.parametrize(("x", "y"), [(440, 180), (300, 180), (60, 310), (60, 360)])
def test_a_great_shift_is_not_believed(x: int, y: int) -> None:
    """By 380, 240, 130 and 180 of 640 or 360 pixels: it might as well be one the other way."""
    assert scene_shift(thinned(window(60, 180)), thinned(window(x, y))) is None


@pytest.mark.parametrize("size", [(2, 2), (8, 1), (16, 300), (31, 31)])
def test_nothing_is_known_of_pictures_that_are_too_small(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(4).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert scene_shift(picture, picture[::-1].copy()) is None


@pytest.mark.parametrize(
    ("height", "width"), [(2160, 3840), (480, 640), (640, 480), (100, 90), (2, 3)]
)
def test_a_thinned_frame_is_a_small_copy(height: int, width: int) -> None:
    frame = np.zeros((height, width, 3), np.uint8)
    small = thinned(frame)
    assert min(LONGER_SIDE, max(height, width)) <= max(small.shape[:2]) < 2 * LONGER_SIDE
    assert not np.shares_memory(frame, small)
