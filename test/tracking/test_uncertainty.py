"""tracking.uncertainty: the covariance by hand, and what holds of it for any numbers."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vil_tracker_core.tracking.uncertainty import LONGEST, Uncertainty
from vil_tracker_core.weights import Calibration

positive = st.floats(0.05, 20)


def test_by_hand() -> None:
    """After one settling time, 1 - 1/e of the variance is there; two seconds' drift come on top."""
    filtered = np.array([[4, 1, 0, 0], [1, 9, 0, 0], [0, 0, 1, 0.5], [0, 0, 0.5, 16]], dtype=float)
    known = Uncertainty(filtered, np.array([1.0, 2.0, 3.0, 4.0]), np.array(2.0))
    found = known.covariance(Calibration((1.0, 2.0, 3.0, 0.5), (2.0, 1.0), 0.25))
    centre, size = 1.5 * (1 - 1 / math.e), 1.5 * (1 - 1 / math.e**2)
    expected = np.array(
        [
            [4 * centre + 1, 2 * centre, 0, 0],
            [2 * centre, 36 * centre + 2, 0, 0],
            [0, 0, 9 * size + 3, 0.75 * size],
            [0, 0, 0.75 * size, 4 * size + 4],
        ]
    )
    np.testing.assert_allclose(found, expected)


@given(
    seed=st.integers(0, 99),
    spread=st.tuples(positive, positive, positive, positive),
    settling=st.tuples(positive, positive),
    drift=positive,
    ages=st.lists(st.floats(0, 30), min_size=2, max_size=5).map(sorted),
)
def test_it_is_positive_and_grows_with_age_from_what_lasts(
    seed: int,
    spread: tuple[float, float, float, float],
    settling: tuple[float, float],
    drift: float,
    ages: list[float],
) -> None:
    rng, calibration = np.random.default_rng(seed), Calibration(spread, settling, drift)
    roots = rng.normal(size=(4, 4))
    filtered, lasting = roots @ roots.T, rng.uniform(0.1, 9, 4)
    count = len(ages)
    many = Uncertainty(
        np.tile(filtered, (count, 1, 1)), np.tile(lasting, (count, 1)), np.array(ages)
    )
    found = many.covariance(calibration)
    np.linalg.cholesky(found)
    np.testing.assert_array_equal(found, found.transpose(0, 2, 1))
    variances = np.diagonal(found, axis1=1, axis2=2)
    assert (np.diff(variances, axis=0) >= 0).all()
    for row, age in enumerate(ages):
        one = Uncertainty(filtered, lasting, np.array(age)).covariance(calibration)
        np.testing.assert_array_equal(found[row], one)
    fresh = Uncertainty(filtered, lasting, np.array(0.0)).covariance(calibration)
    np.testing.assert_array_equal(fresh, np.diag(lasting))


def test_it_does_not_widen_for_ever() -> None:
    known = [Uncertainty(np.eye(4), np.ones(4), np.array(age)) for age in (LONGEST, 3600.0)]
    old, ancient = (each.covariance(Calibration()) for each in known)
    np.testing.assert_array_equal(old, ancient)
