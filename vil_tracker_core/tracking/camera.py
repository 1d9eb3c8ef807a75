"""How far the scene has moved in the picture from one frame to the next, as the camera turns.

Phase correlation of the two frames' edges (Kuglin and Hines, The phase correlation image alignment
method, 1975): one shift for the whole picture, whatever else moves in it. Of a camera that rolls or
comes nearer it tells what is common to all parts of the picture.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from vil_tracker_core.geometry import FloatArray, Image

LONGER_SIDE = 160
"""px that a thinned frame has at least, where the frame has."""
LEAST_PEAK = 0.25
"""Share of the correlation around its peak below which the frames have no shift in common. Of noise
alone it is .15 at most at 90 x 160 px; of 99.6 % of a turning camera's frames it is more."""
GREATEST_SHIFT = 0.35
"""Share of a side beyond which a shift is not believed: one by more than a half of it, as a camera
makes that is jerked, looks like a lesser one the other way."""
LEAST_SIDE = 32
"""px of a thinned frame's shorter side below which chance makes such peaks."""


def thinned(frame: Image) -> Image:
    """A copy of every n-th pixel of a frame. Nothing is averaged, so it costs next to nothing, and
    the shift is found as well."""
    step = max(max(frame.shape[:2]) // LONGER_SIDE, 1)
    return frame[::step, ::step].copy()


def scene_shift(before: Image, after: Image) -> FloatArray | None:
    """(dx, dy) by which the scene has moved, in units of the picture's longer side; None where that
    is not known: the frames have no shift in common, as across a cut or in a clear sky, or one by
    more than a third of the picture, which might as well be one the other way.

    Args:
        before, after: two `thinned` frames of one size.
    """
    height, width = before.shape[:2]
    if min(height, width) < LEAST_SIDE:
        return None
    (dx, dy), peak = cv2.phaseCorrelate(_edges(before), _edges(after))
    if not peak >= LEAST_PEAK or max(abs(dx) / width, abs(dy) / height) > GREATEST_SHIFT:
        return None
    shift = np.round([dx, dy], 2)  # what is finer differs from run to run
    return np.asarray(shift / max(height, width), dtype=np.float64)


def _edges(picture: Image) -> npt.NDArray[np.float32]:
    """(h, w) strength of the edges, which the light changes less than the picture."""
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    across, down = (cv2.Sobel(grey, cv2.CV_32F, x, 1 - x) for x in (1, 0))
    return np.asarray(np.sqrt(cv2.magnitude(across, down)), dtype=np.float32)
