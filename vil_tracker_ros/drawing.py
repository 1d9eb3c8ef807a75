"""What the tracker believes, drawn into a frame."""

from __future__ import annotations

import math
from collections.abc import Mapping

import cv2

from vil_tracker_core.geometry import FloatArray, Image
from vil_tracker_core.regions import ellipse_axes
from vil_tracker_core.tracking.online import TrackResult, TrackState

Colour = tuple[int, int, int]

COLOURS: dict[TrackState, Colour] = {
    TrackState.TRACKING: (80, 200, 60),
    TrackState.UNCERTAIN: (0, 190, 255),
    TrackState.LOST: (60, 60, 230),
}
"""BGR."""
LONGEST_LATENCY = 60.0
"""Seconds; more comes from another clock than this machine's, as in a replay."""
REFERENCE_HEIGHT = 720
"""Lines and letters are as thick and large as they should be in a frame of this height."""


def draw(frame: Image, results: Mapping[str, TrackResult], latency: float) -> Image:
    """A copy of a frame with each track's box, 95 % ellipse of its centre, state and score.

    A lost track has no box: only the ellipse that says where it is searched, and why it is lost.

    Args:
        frame: (H, W, 3) BGR.
        results: track id -> its result on this frame.
        latency: age of the frame, seconds.
    """
    out = frame.copy()
    scale = max(frame.shape[0] / REFERENCE_HEIGHT, 0.5)
    thick = max(round(2 * scale), 1)
    for track_id, result in results.items():
        colour = COLOURS[result.state]
        box = result.box
        _ellipse(out, (box.cx, box.cy), result.covariance[:2, :2], colour, max(thick // 2, 1))
        label = f"{track_id} {result.state.name} {result.score:.2f}"
        if result.state is TrackState.LOST:
            label = f"{track_id} LOST: {result.reason}"
        else:
            low, high = (box.x, box.y), (box.x + box.w, box.y + box.h)
            cv2.rectangle(out, _point(*low), _point(*high), colour, thick, cv2.LINE_AA)
        _text(out, label, (box.x, box.y - 6 * scale), colour, scale)
    age = f"{1e3 * latency:.0f} ms" if abs(latency) < LONGEST_LATENCY else "latency unknown"
    summary = age if results else f"{age}, no track"
    _text(out, summary, (8 * scale, 26 * scale), (255, 255, 255), scale)
    return out


def _ellipse(
    out: Image, centre: tuple[float, float], covariance: FloatArray, colour: Colour, thick: int
) -> None:
    long, short, angle = ellipse_axes(covariance, 0.95)
    bound = 2 * max(out.shape[:2])  # larger ones lie outside the picture anyway
    axes = (max(round(min(long, bound)), 1), max(round(min(short, bound)), 1))
    cv2.ellipse(out, _point(*centre), axes, math.degrees(angle), 0, 360, colour, thick, cv2.LINE_AA)


def _text(out: Image, text: str, at: tuple[float, float], colour: Colour, scale: float) -> None:
    """Letters on a dark plate, moved into the picture where they would leave it."""
    size, font, thick = 0.6 * scale, cv2.FONT_HERSHEY_SIMPLEX, max(round(scale), 1)
    (width, height), below = cv2.getTextSize(text, font, size, thick)
    x = min(max(at[0], 2), max(out.shape[1] - width - 2, 2))
    y = min(max(at[1], height + 2), out.shape[0] - below)
    plate = _point(x - 2, y - height - 2), _point(x + width + 2, y + below)
    cv2.rectangle(out, *plate, (30, 30, 30), cv2.FILLED)
    cv2.putText(out, text, _point(x, y), font, size, colour, thick, cv2.LINE_AA)


def _point(x: float, y: float) -> tuple[int, int]:
    """Whole pixels; OpenCV wants 32 bits, and a box may lie far outside."""
    return round(min(max(x, -30_000), 30_000)), round(min(max(y, -30_000), 30_000))
