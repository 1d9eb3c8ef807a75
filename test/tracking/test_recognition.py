"""What a track learns of its target's look: a ridge regression over all its frames."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vil_tracker_core.tracking.recognition import CONSTANT, FIRST, RIDGE, Recognition, wanted

GRID, WIDTH = 7, 12
MIDDLE = np.array([0.5, 0.5, 0.3, 0.3])


def scene(
    rng: np.random.Generator, things: dict[tuple[float, float], np.ndarray], noise: float = 0.1
) -> np.ndarray:
    """Features (GRID, GRID, WIDTH) of a background of its own, and around the middles (x, y), in
    crop units, those of the things."""
    seen = np.zeros((GRID, GRID, WIDTH))
    seen[..., 0] = 1
    at = (np.arange(GRID) + 0.5) / GRID
    for (x, y), look in things.items():
        near = np.exp(-0.5 * ((at[:, None] - y) ** 2 + (at - x) ** 2) / 0.1**2)
        seen += near[..., None] * (look - seen)
    return (seen + noise * rng.normal(size=seen.shape)).astype(np.float32)


def look(*parts: float) -> np.ndarray:
    return np.array([*parts, *[0.0] * (WIDTH - len(parts))])


KIND = (0.3, 1.0, 1.0)  # what two of a kind have in common
TARGET, OTHER = look(*KIND, 1.0, 0.0), look(*KIND, 0.0, 1.0)


def test_it_is_the_weighed_ridge_regression_over_the_frames() -> None:
    """Against the least squares of all rows at once, in float64, each frame's with its weight."""
    rng = np.random.default_rng(3)
    frames = [rng.normal(size=(GRID, GRID, WIDTH)).astype(np.float32) for _ in range(3)]
    units = [np.array([x, 0.45, 0.3, 0.4]) for x in (0.5, 0.4, 0.62)]
    rate = 0.25
    known = Recognition.begin(frames[0], units[0])
    for seen, unit in zip(frames[1:], units[1:], strict=True):
        known = known.learned(seen, unit, rate)
    recent = np.array([(1 - rate) ** 2, rate * (1 - rate), rate])
    shares = (1 - FIRST) * recent + FIRST * np.array([1, 0, 0])
    rows, targets = [], []
    squares = 0.0
    for seen, unit, share in zip(frames, units, shares, strict=True):
        x = seen.reshape(-1, WIDTH).astype(float)
        x = np.c_[x / np.linalg.norm(x, axis=1, keepdims=True), np.full(len(x), CONSTANT)]
        at = (np.arange(GRID) + 0.5) / GRID
        y = np.exp(
            -0.5 * ((at[:, None] - unit[1]) / (0.22 * unit[3])) ** 2
            - 0.5 * ((at - unit[0]) / (0.22 * unit[2])) ** 2
        ).ravel()
        weight = np.sqrt(share * (y / y.sum() + (1 - y) / (1 - y).sum()))
        squares += ((weight[:, None] * x) ** 2).sum()
        rows.append(weight[:, None] * x)
        targets.append(weight * y)
    width = WIDTH + 1
    rows.append(np.sqrt(RIDGE * squares / width) * np.eye(width))
    targets.append(np.zeros(width))
    expected = np.linalg.lstsq(np.concatenate(rows), np.concatenate(targets), rcond=None)[0]
    np.testing.assert_allclose(known._map.numpy(), expected, atol=2e-5)


def test_the_wanted_response_is_at_the_target_and_no_wider() -> None:
    found = wanted(np.array([0.5, 3.5 / 7, 1 / 7, 3 / 7]), 7).reshape(7, 7).numpy()
    assert found.argmax() == 3 * 7 + 3
    assert found[3, 3] == pytest.approx(1)
    assert found[2, 3] == pytest.approx(np.exp(-0.5 * (1 / (3 * 0.22)) ** 2))
    assert found[3, 2] == pytest.approx(np.exp(-0.5 * (1 / 0.22) ** 2), rel=1e-4)


def test_it_tells_the_target_from_another_of_its_kind_that_was_beside_it() -> None:
    rng = np.random.default_rng(0)
    both = {(0.5, 0.5): TARGET, (0.85, 0.5): OTHER}
    known = Recognition.begin(scene(rng, both), MIDDLE)
    for _ in range(5):
        known = known.learned(scene(rng, both), MIDDLE, 0.15)
    later = scene(rng, {(0.2, 0.5): OTHER, (0.8, 0.5): TARGET})
    there, beside, nothing = (
        known.response(later, np.array([x, y, 0.3, 0.3]))
        for x, y in ((0.8, 0.5), (0.2, 0.5), (0.5, 0.9))
    )
    assert there > 0.4
    assert beside < 0.5 * there
    assert nothing < 0.25 * there


def test_it_learns_how_the_target_has_changed() -> None:
    """Its look turns over to another, step by step; the first frame alone would not know it."""
    rng = np.random.default_rng(1)
    first = Recognition.begin(scene(rng, {(0.5, 0.5): TARGET}), MIDDLE)
    known = first
    turned = look(0.3, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
    for part in np.linspace(0, 1, 30):
        now = scene(rng, {(0.5, 0.5): (1 - part) * TARGET + part * turned})
        known = known.learned(now, MIDDLE, 0.15)
    now = scene(rng, {(0.5, 0.5): turned})
    assert known.response(now, MIDDLE) > 0.4
    assert first.response(now, MIDDLE) < 0.2


def test_a_rate_of_nothing_learns_nothing() -> None:
    rng = np.random.default_rng(2)
    first = Recognition.begin(scene(rng, {(0.5, 0.5): TARGET}), MIDDLE)
    after = first.learned(scene(rng, {(0.5, 0.5): OTHER}), MIDDLE, 0.0)
    np.testing.assert_allclose(after._map.numpy(), first._map.numpy(), atol=1e-5)


@pytest.mark.parametrize("unit", [(-0.01, 0.5), (0.5, 1.0), (np.nan, 0.5)])
def test_a_box_with_its_middle_outside_of_the_crop_is_not_learned(unit: tuple[float, ...]) -> None:
    rng = np.random.default_rng(2)
    first = Recognition.begin(scene(rng, {(0.5, 0.5): TARGET}), MIDDLE)
    assert first.learned(scene(rng, {}), np.array([*unit, 0.3, 0.3]), 0.15) is first


@given(
    cx=st.floats(0, 0.999),
    cy=st.floats(0, 0.999),
    w=st.floats(0, 1),
    h=st.floats(0, 1),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_box_and_any_features_give_a_finite_map(
    cx: float, cy: float, w: float, h: float, scale: float, seed: int
) -> None:
    """A box of no size or the whole crop's, features that are all zero or huge."""
    rng = np.random.default_rng(seed)
    unit = np.array([cx, cy, w, h])
    seen = (scale * rng.normal(size=(GRID, GRID, WIDTH))).astype(np.float32)
    known = Recognition.begin(seen, unit).learned(seen, unit, 0.15)
    response = known.response(seen, unit)
    assert np.isfinite(known._map.numpy()).all()
    assert -2 < response < 2


def test_the_response_is_of_the_nine_cells_around_and_stays_in_the_crop() -> None:
    rng = np.random.default_rng(4)
    known = Recognition.begin(scene(rng, {(0.5, 0.5): TARGET}, noise=0), MIDDLE)
    now = scene(rng, {(0.5, 0.5): TARGET}, noise=0)
    beside, two_off = (np.array([0.5 + n / GRID, 0.5, 0.3, 0.3]) for n in (1, 2.01))
    assert known.response(now, beside) == known.response(now, MIDDLE)
    assert known.response(now, two_off) < known.response(now, MIDDLE)
    corner = scene(rng, {(1.0, 1.0): TARGET}, noise=0)
    assert known.response(corner, np.array([1.2, 1.0, 0.3, 0.3])) > 0.3
