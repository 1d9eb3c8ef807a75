"""regions: the multivariate t against its own draws, against scipy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_t

from vil_tracker_core.regions import (
    DEGREES_OF_FREEDOM,
    ellipse_axes,
    negative_log_density,
    squared_radius,
)

R95 = 2.5235
"""95 % radius of two coordinates in standard deviations: the root of .05^(-2 / 3) - 1."""


def test_radii_by_hand() -> None:
    """With two coordinates, P(r^2 > q) is (1 + q / (nu - 2))^(-nu / 2), which can be turned."""
    nu = DEGREES_OF_FREEDOM
    for p in (0.5, 0.9, 0.95):
        by_hand = (nu - 2) * ((1 - p) ** (-2 / nu) - 1)
        assert squared_radius(p, dims=2) == pytest.approx(by_hand)
    assert math.sqrt(squared_radius(0.95, dims=2)) == pytest.approx(R95, abs=1e-4)
    np.testing.assert_allclose(squared_radius([0.0, 1.0], dims=4), [0, math.inf])


@pytest.mark.parametrize("dims", [2, 4])
def test_the_regions_hold_their_share_of_draws(dims: int) -> None:
    """Drawn by definition: a normal vector over the root of an independent chi-squared's mean."""
    rng, nu, count = np.random.default_rng(0), DEGREES_OF_FREEDOM, 200_000
    normal = rng.normal(size=(count, dims)) * math.sqrt((nu - 2) / nu)  # so its covariance is 1
    squared = (normal**2).sum(axis=1) / (rng.chisquare(nu, count) / nu)
    levels = [0.1, 0.5, 0.9, 0.95, 0.99]
    shares = (squared[:, None] <= squared_radius(levels, dims)).mean(axis=0)
    np.testing.assert_allclose(shares, levels, atol=0.005)


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4]))
def test_the_density_is_scipys(seed: int, dims: int) -> None:
    rng = np.random.default_rng(seed)
    root = rng.normal(0, 2, (dims, dims))
    covariance = root @ root.T + np.eye(dims)
    errors = rng.normal(0, 5, (7, dims))
    nu = DEGREES_OF_FREEDOM
    theirs = multivariate_t(shape=covariance * (nu - 2) / nu, df=nu)
    squared = (errors @ np.linalg.inv(covariance) * errors).sum(axis=1)
    log_determinants = np.full(7, np.linalg.slogdet(covariance)[1])
    found = negative_log_density(squared, log_determinants, dims)
    np.testing.assert_allclose(found, -theirs.logpdf(errors), rtol=1e-8)


def test_the_axes_of_an_ellipse() -> None:
    major, minor, angle = ellipse_axes(np.diag([4.0, 1.0]), 0.95)
    assert (major, minor) == pytest.approx((2 * R95, R95), rel=1e-4)
    assert angle % math.pi == pytest.approx(0)
    turned = np.array([[2.5, 1.5], [1.5, 2.5]])  # variances 4 and 1, turned by 45 degrees
    major, minor, angle = ellipse_axes(turned, 0.5)
    assert (major, minor) == pytest.approx((2 * 0.7664, 0.7664), rel=1e-3)
    assert angle % math.pi == pytest.approx(math.pi / 4)
