"""vil_tracker_ros.drawing: what is drawn where, against geometry worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vil_tracker_core.geometry import Box
from vil_tracker_core.tracking.online import TrackResult, TrackState
from vil_tracker_ros.drawing import COLOURS, draw

R95 = 2.5235  # standard deviations, see test_regions.py
FRAME = np.full((720, 1280, 3), 100, dtype=np.uint8)


def result(state: TrackState = TrackState.TRACKING, box: Box | None = None) -> TrackResult:
    covariance = np.diag([900.0, 100.0, 25.0, 25.0])
    return TrackResult(box or Box(600, 300, 80, 60), 0.9, covariance, state, 1.0, "not seen")


def drawn(out: np.ndarray, x: float, y: float, colour: tuple[int, int, int]) -> bool:
    """Whether a colour lies within 3 px of a point."""
    around = out[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4].reshape(-1, 3)
    return bool((np.abs(around.astype(int) - colour).max(axis=1) < 30).any())


@pytest.mark.parametrize("state", [TrackState.TRACKING, TrackState.UNCERTAIN])
def test_box_and_ellipse_lie_where_they_should(state: TrackState) -> None:
    out = draw(FRAME, {"car": result(state)}, 0.02)
    colour = COLOURS[state]
    for x, y in [(600, 330), (680, 330), (640, 300), (640, 360)]:  # middles of the box's sides
        assert drawn(out, x, y, colour)
    for x, y in [(640 + 30 * R95, 330), (640, 330 + 10 * R95)]:  # ends of the ellipse's axes
        assert drawn(out, x, y, colour)
    assert (FRAME == 100).all()  # the frame itself is left alone


def test_the_ellipse_is_turned_as_the_covariance_is() -> None:
    turned = np.diag([900.0, 900.0, 25.0, 25.0])
    turned[0, 1] = turned[1, 0] = (
        800.0  # the long axis, of variance 1700, from top left to bottom right
    )
    out = draw(FRAME, {"car": replace(result(), covariance=turned)}, 0.02)
    end = R95 * np.sqrt(1700 / 2)
    assert drawn(out, 640 + end, 330 + end, COLOURS[TrackState.TRACKING])
    assert not drawn(out, 640 + end, 330 - end, COLOURS[TrackState.TRACKING])


def test_a_lost_track_has_no_box() -> None:
    out = draw(FRAME, {"car": result(TrackState.LOST)}, 0.02)
    colour = COLOURS[TrackState.LOST]
    assert not drawn(out, 600, 340, colour)
    assert not drawn(out, 680, 340, colour)
    assert drawn(out, 640 + 30 * R95, 330, colour)


@pytest.mark.parametrize(
    "box", [Box(-1e12, 5, 1e13, 5), Box(1270, 710, 500, 500), Box(-400, -400, 10, 10)]
)
def test_boxes_outside_the_picture_do_no_harm(box: Box) -> None:
    assert draw(FRAME, {"x": result(box=box)}, 0.0).shape == FRAME.shape


def test_an_endless_covariance_does_no_harm() -> None:
    wide = result()
    vast = TrackResult(wide.box, 0.1, np.eye(4) * 1e30, wide.state, 0.0, "")
    assert draw(FRAME, {"x": vast}, 0.0).shape == FRAME.shape


def test_tiny_frames_can_be_drawn_into() -> None:
    assert draw(np.zeros((4, 4, 3), np.uint8), {"x": result()}, 0.0).shape == (4, 4, 3)
