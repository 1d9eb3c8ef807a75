"""The regions of a published covariance: where the target is with a given probability.

A tracker's errors have heavier tails than a normal distribution's: most frames are better than the
covariance says, and a few, on a target that is hard to follow, far worse. The covariance is
therefore that of a multivariate t distribution, and its regions are that distribution's. At 95 %
they are about as wide as a normal one's (2.52 standard deviations of the centre instead of 2.45),
at 50 % much narrower (.77 instead of 1.18).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln
from scipy.stats import f

from vil_tracker_core.geometry import FloatArray

DEGREES_OF_FREEDOM = 3
"""Of the t distribution; docs/weights.md says what was fitted. It must be above 2: with less there
is no covariance."""
SHAPE = (DEGREES_OF_FREEDOM - 2) / DEGREES_OF_FREEDOM
"""The distribution's shape matrix, as a share of its covariance."""


def squared_radius(probability: npt.ArrayLike, dims: int) -> FloatArray:
    """Squared Mahalanobis distance within which an error lies with ``probability``.

    Of a t distribution's error e with covariance C = S nu / (nu - 2), e' S^-1 e / dims follows an F
    distribution of (dims, nu) degrees of freedom (Kotz and Nadarajah, Multivariate t Distributions
    and Their Applications, 2004, 1.4).

    Args:
        probability: 0..1, of any shape.
        dims: coordinates of the error: 4 for the whole box, 2 for its centre.
    """
    levels = np.asarray(probability, dtype=np.float64)
    return np.asarray(SHAPE * dims * f.ppf(levels, dims, DEGREES_OF_FREEDOM))


def negative_log_density(
    squared: FloatArray, log_determinants: FloatArray, dims: int
) -> FloatArray:
    """(N,) -log p of errors, in nats, by squared Mahalanobis distance (N,) and log det C (N,)."""
    nu = DEGREES_OF_FREEDOM
    constant = gammaln(nu / 2) - gammaln((nu + dims) / 2) + dims / 2 * np.log(nu * np.pi)
    log_shape = log_determinants + dims * np.log(SHAPE)
    return np.asarray(constant + log_shape / 2 + (nu + dims) / 2 * np.log1p(squared / (SHAPE * nu)))


def ellipse_axes(covariance: FloatArray, probability: float) -> tuple[float, float, float]:
    """(major, minor, angle) of the ellipse that holds a point with ``probability``.

    Half-axes in px, angle of the major one in radians from x towards y (down in an image).

    Args:
        covariance: (2, 2), px^2.
        probability: 0..1.
    """
    variances, directions = np.linalg.eigh(covariance)
    minor, major = np.sqrt(np.maximum(variances, 0.0) * squared_radius(probability, dims=2))
    x, y = directions[:, 1]
    return float(major), float(minor), float(np.arctan2(y, x))
