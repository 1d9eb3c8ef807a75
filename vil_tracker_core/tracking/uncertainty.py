"""What a track's published covariance is made of.

On real video errors hold on (neighbouring frames' correlate by 0.5 to 0.9), so a filtered box is
hardly surer than one measurement. Nor is an error there from the start: shortly after the first
box, the target looks as it did when it was drawn, and only as it turns, moves and changes does the
net's idea of it part from the truth, quickly at first, and then more slowly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vil_tracker_core.geometry import FloatArray
from vil_tracker_core.weights import Calibration

LONGEST = 15.0
"""Seconds after which the covariance no longer widens with age: about as long as the longest
sequences that the shipped weights were fitted on."""


class Uncertainty(NamedTuple):
    """What is known of a box's errors in (cx, cy, w, h), in one frame or, along a first axis, many.

    Attributes:
        filtered: (..., 4, 4) px^2: the filter's covariance and the last measurement's.
        lasting: (..., 4) px^2: variances that stay as long as the track, see `online.Track`.
        age: (...) seconds since the first box.
    """

    filtered: FloatArray
    lasting: FloatArray
    age: FloatArray

    def covariance(self, calibration: Calibration) -> FloatArray:
        """(..., 4, 4) px^2: the lasting variances, and what is filtered, scaled on both sides by
        spread * ((1 - exp(-age / settling)) * (1 + drift * age))^1/2."""
        age = np.minimum(self.age, LONGEST)[..., None]
        built = -np.expm1(-age / np.repeat(calibration.settling, 2))
        factor = np.array(calibration.spread) * np.sqrt(built * (1 + calibration.drift * age))
        scaled = self.filtered * (factor[..., :, None] * factor[..., None, :])
        return np.asarray(scaled + self.lasting[..., :, None] * np.eye(4))
