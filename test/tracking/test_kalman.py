"""The filter against a textbook's plain covariance form, and its covariance over long walks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from vil_tracker_core.geometry import Box, FloatArray
from vil_tracker_core.tracking import kalman
from vil_tracker_core.tracking.kalman import KalmanConfig, KalmanState

CONFIG = KalmanConfig()
BOX = Box(100, 50, 40, 30)
steps = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 10**6)), min_size=1, max_size=6)


def random_noise(rng: np.random.Generator, size: float = 4.0) -> FloatArray:
    """(4, 4) a full covariance, px^2."""
    root = rng.normal(size=(4, 4)) * size
    return root @ root.T + 0.25 * np.eye(4)


def textbook_predict(state: KalmanState, dt: float) -> tuple[FloatArray, FloatArray]:
    """F and Q from the continuous model by Van Loan's method: one matrix exponential."""
    extent = math.sqrt(state.box.w * state.box.h)
    drift = np.zeros((8, 8))
    drift[:4, 4:] = np.eye(4)
    diffusion = np.zeros((8, 8))
    for n, density in enumerate([CONFIG.acceleration] * 2 + [CONFIG.growth] * 2):
        diffusion[4 + n, 4 + n] = (density * extent) ** 2
    block = np.block([[-drift, diffusion], [np.zeros((8, 8)), drift.T]]) * dt
    powers = scipy.linalg.expm(block)
    transition = powers[8:, 8:].T
    noise = transition @ powers[:8, 8:]
    return transition @ state.mean, transition @ state.covariance @ transition.T + noise


def textbook_update(
    mean: FloatArray, covariance: FloatArray, measured: FloatArray, noise: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """K = P H' S^-1, P = (I - K H) P."""
    H = np.zeros((4, 8))
    H[:, :4] = np.eye(4)
    gain = covariance @ H.T @ np.linalg.inv(H @ covariance @ H.T + noise)
    return mean + gain @ (measured - H @ mean), (np.eye(8) - gain @ H) @ covariance


@given(walk=steps)
def test_equals_the_textbook(walk: list[tuple[float, int]]) -> None:
    state = kalman.start(BOX, CONFIG)
    for dt, seed in walk:
        rng = np.random.default_rng(seed)
        mean, covariance = textbook_predict(state, dt)
        state = kalman.predict(state, dt, CONFIG)
        np.testing.assert_allclose(state.mean, mean, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(state.covariance, covariance, rtol=1e-9, atol=1e-7)
        measured, noise = mean[:4] + rng.normal(size=4) * 5, random_noise(rng)
        mean, covariance = textbook_update(state.mean, state.covariance, measured, noise)
        state = kalman.update(state, measured, noise)
        np.testing.assert_allclose(state.mean, mean, rtol=1e-9, atol=1e-7)
        np.testing.assert_allclose(state.covariance, covariance, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_covariance_stays_symmetric_positive_definite(seed: int) -> None:
    """10 000 steps of random length, noise and jumps, some without a measurement."""
    rng = np.random.default_rng(seed)
    state = kalman.start(BOX, CONFIG)
    truth = state.mean[:4].copy()
    for _ in range(10_000):
        state = kalman.predict(state, rng.uniform(0, 1) * rng.integers(0, 2), CONFIG)
        truth[:2] += rng.normal(size=2) * 10
        truth[2:] = np.clip(truth[2:] * np.exp(rng.normal(size=2) * 0.05), 4, 400)
        if rng.random() < 0.9:
            size = 10 ** rng.uniform(-3, 2)
            state = kalman.update(state, truth + rng.normal(size=4), random_noise(rng, size))
        assert (state.covariance == state.covariance.T).all()
        np.linalg.cholesky(state.covariance)  # raises where it is not positive definite
        assert np.isfinite(state.mean).all()


@given(seed=st.integers(0, 10**6))
def test_no_time_changes_nothing(seed: int) -> None:
    state = kalman.update(
        kalman.predict(kalman.start(BOX, CONFIG), 0.1, CONFIG),
        np.array([120.0, 65, 40, 30]) + np.random.default_rng(seed).normal(size=4),
        np.eye(4),
    )
    after = kalman.predict(state, 0.0, CONFIG)
    np.testing.assert_array_equal(after.mean, state.mean)
    np.testing.assert_array_equal(after.covariance, state.covariance)


@given(first=st.floats(0, 1), second=st.floats(0, 1))
def test_two_steps_of_time_equal_one(first: float, second: float) -> None:
    """Where the size stands still; the noise is relative to the box at the start of a step."""
    state = kalman.start(BOX, CONFIG)
    state.mean[4:6] = (30, -20)
    twice = kalman.predict(kalman.predict(state, first, CONFIG), second, CONFIG)
    once = kalman.predict(state, first + second, CONFIG)
    np.testing.assert_allclose(twice.mean, once.mean, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(twice.covariance, once.covariance, rtol=1e-9, atol=1e-9)


@given(dt=st.floats(0.001, 1), more=st.floats(0.001, 1))
def test_uncertainty_grows_with_time(dt: float, more: float) -> None:
    state = kalman.start(BOX, CONFIG)
    soon, later = (kalman.predict(state, t, CONFIG) for t in (dt, dt + more))
    assert (np.diag(later.covariance) > np.diag(soon.covariance)).all()
    assert (np.diag(soon.covariance) > np.diag(state.covariance)).all()


@pytest.mark.parametrize("probability", [0.5, 0.9, 0.95, 0.999])
def test_gate_threshold_is_the_chi_squared_quantile(probability: float) -> None:
    """On 4 degrees of freedom the distribution is 1 - exp(-x/2) (1 + x/2)."""
    x = kalman.gate_threshold(probability)
    assert 1 - math.exp(-x / 2) * (1 + x / 2) == pytest.approx(probability, abs=1e-9)
    assert scipy.special.gammainc(2, x / 2) == pytest.approx(probability, abs=1e-9)


def test_gate_passes_right_measurements_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    state = kalman.predict(kalman.start(BOX, CONFIG), 0.1, CONFIG)
    noise = random_noise(rng)
    spread = state.box_covariance + noise
    drawn = rng.multivariate_normal(state.mean[:4], spread, size=4000)
    passed = [kalman.innovation(state, z, noise)[2] < kalman.gate_threshold(0.9) for z in drawn]
    assert np.mean(passed) == pytest.approx(0.9, abs=0.02)


def test_innovation_is_the_squared_mahalanobis_distance() -> None:
    state = kalman.start(BOX, CONFIG)
    noise = random_noise(np.random.default_rng(1))
    residual, covariance, distance = kalman.innovation(state, np.array([123.0, 66, 41, 28]), noise)
    np.testing.assert_allclose(residual, [3, 1, 1, -2])
    np.testing.assert_allclose(covariance, state.covariance[:4, :4] + noise)
    assert distance == pytest.approx(residual @ np.linalg.inv(covariance) @ residual)


def test_speed_is_learned_from_positions() -> None:
    """A target at 60 px/s to the right, seen at 30 Hz."""
    state = kalman.start(BOX, CONFIG)
    for k in range(1, 61):
        state = kalman.predict(state, 1 / 30, CONFIG)
        state = kalman.update(state, np.array([120.0 + 2 * k, 65, 40, 30]), 0.25 * np.eye(4))
    assert state.mean[4:] == pytest.approx([60, 0, 0, 0], abs=1.0)
    assert kalman.predict(state, 0.5, CONFIG).box.cx == pytest.approx(240 + 30, abs=2.0)


def test_start_knows_the_box_and_not_the_speed() -> None:
    state = kalman.start(BOX, CONFIG)
    extent = math.sqrt(40 * 30)
    assert state.box == BOX
    np.testing.assert_array_equal(state.mean[4:], 0)
    np.testing.assert_allclose(np.sqrt(np.diag(state.covariance)[:4]), 0.03 * extent)
    np.testing.assert_allclose(np.sqrt(np.diag(state.covariance)[4:]), 2.0 * extent)
    assert (state.covariance == np.diag(np.diag(state.covariance))).all()


def test_the_expected_box_is_never_inverted() -> None:
    state = KalmanState(np.array([10.0, 10, -5, 0.2, 0, 0, 0, 0]), np.eye(8))
    assert state.box == Box(9.5, 9.5, 1, 1)


def test_box_covariance_is_a_copy() -> None:
    state = kalman.start(BOX, CONFIG)
    state.box_covariance[:] = 0
    assert state.covariance[0, 0] > 0
