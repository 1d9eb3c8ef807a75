"""A constant-velocity Kalman filter of a box's centre and size.

State x = (cx, cy, w, h, vcx, vcy, vw, vh), px and px/s; measurement z = (cx, cy, w, h).
White-noise acceleration (Bar-Shalom, Estimation with Applications to Tracking and Navigation,
6.2.2): over dt, each position-velocity pair gains q^2 [[dt^3/3, dt^2/2], [dt^2/2, dt]].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.stats import chi2

from vil_tracker_core.geometry import Box, FloatArray

MEASURED = np.eye(4, 8)
"""H: the measurement is the first half of the state."""


@cache
def gate_threshold(probability: float) -> float:
    """Squared Mahalanobis distance below which a right measurement lies with ``probability``
    (chi-squared, 4 degrees of freedom)."""
    return float(chi2.ppf(probability, df=4))


@dataclass(frozen=True)
class KalmanConfig:
    """Noise, relative to the target's extent sqrt(w * h) where it can be.

    Attributes:
        acceleration: spectral density q of the centre's acceleration, extents / s^1.5.
        growth: the same of the size's.
        start_speed: standard deviation of the unknown speed at the start, extents / s.
        start_box: standard deviation of the first box's coordinates, extents.
        independent: share of a measurement's variance that is another one in each frame. The rest
            it has in common with its neighbours, so no averaging lessens it, and a filter that
            tries lags behind a quick target.
    """

    acceleration: float = 24.0
    growth: float = 1.5
    start_speed: float = 2.0
    start_box: float = 0.03
    independent: float = 0.05


@dataclass(frozen=True)
class KalmanState:
    """Mean (8,) and covariance (8, 8) of the state."""

    mean: FloatArray
    covariance: FloatArray

    @property
    def box(self) -> Box:
        """The expected box, at least 1 px a side."""
        cx, cy, w, h = (float(value) for value in self.mean[:4])
        return Box.from_cxcywh(cx, cy, max(w, 1.0), max(h, 1.0))

    @property
    def box_covariance(self) -> FloatArray:
        """(4, 4) of (cx, cy, w, h), px^2."""
        return self.covariance[:4, :4].copy()


def _symmetric(matrix: FloatArray) -> FloatArray:
    return np.asarray((matrix + matrix.T) / 2)


def start(box: Box, config: KalmanConfig) -> KalmanState:
    """The state of a target first seen at ``box``, standing still for all we know."""
    extent = (box.w * box.h) ** 0.5
    deviation = np.repeat([config.start_box * extent, config.start_speed * extent], 4)
    mean = np.array([box.cx, box.cy, box.w, box.h, 0, 0, 0, 0], dtype=np.float64)
    return KalmanState(mean, np.diag(deviation**2))


def predict(state: KalmanState, dt: float, config: KalmanConfig) -> KalmanState:
    """The state ``dt`` >= 0 seconds later."""
    extent = (state.box.w * state.box.h) ** 0.5
    density = (extent * np.repeat([config.acceleration, config.growth], 2)) ** 2
    transition = np.eye(8)
    transition[:4, 4:] = dt * np.eye(4)
    noise = np.zeros((8, 8))
    noise[:4, :4] = np.diag(density * dt**3 / 3)
    noise[:4, 4:] = noise[4:, :4] = np.diag(density * dt**2 / 2)
    noise[4:, 4:] = np.diag(density * dt)
    covariance = transition @ state.covariance @ transition.T + noise
    return KalmanState(transition @ state.mean, _symmetric(covariance))


def innovation(
    state: KalmanState, measured: FloatArray, noise: FloatArray
) -> tuple[FloatArray, FloatArray, float]:
    """(y, S, d^2): residual (4,), its covariance (4, 4), squared Mahalanobis distance.

    Args:
        state: predicted to the measurement's time.
        measured: (4,) cx, cy, w, h.
        noise: (4, 4) covariance R of the measurement.
    """
    residual = measured - state.mean[:4]
    covariance = state.covariance[:4, :4] + noise
    return residual, covariance, float(residual @ np.linalg.solve(covariance, residual))


def update(state: KalmanState, measured: FloatArray, noise: FloatArray) -> KalmanState:
    """The state after a measurement, in Joseph's form, which keeps the covariance positive."""
    residual, covariance, _ = innovation(state, measured, noise)
    gain = np.linalg.solve(covariance, MEASURED @ state.covariance).T
    rest = np.eye(8) - gain @ MEASURED
    updated = rest @ state.covariance @ rest.T + gain @ noise @ gain.T
    return KalmanState(state.mean + gain @ residual, _symmetric(updated))
