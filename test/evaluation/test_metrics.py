"""evaluation.metrics: by hand, against naive loops, and against the got10k package."""

from __future__ import annotations

import math

import numpy as np
import pytest
from got10k.utils import metrics as theirs
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import multivariate_t

from vil_tracker_core.evaluation import metrics
from vil_tracker_core.evaluation.metrics import Pass
from vil_tracker_core.geometry import FloatArray

NAN4 = [math.nan] * 4
T = np.array([[0, 0, 10, 10]] * 4, dtype=float)

coordinate = st.floats(-40, 80, allow_nan=False).map(lambda v: round(v, 2))
side = st.floats(0.5, 60).map(lambda v: round(v, 2))
box = st.tuples(coordinate, coordinate, side, side)
absent = st.just(tuple(NAN4))


@st.composite
def tracks(draw: st.DrawFn) -> tuple[FloatArray, FloatArray]:
    """(N, 4) boxes and truth, either of them missing here and there."""
    count = draw(st.integers(1, 12))
    rows = [
        (draw(st.one_of(box, box, absent)), draw(st.one_of(box, box, absent))) for _ in range(count)
    ]
    boxes, truth = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    if draw(st.booleans()):  # some frames hit exactly
        boxes[0] = truth[0]
    return boxes, truth


def naive_iou(a: FloatArray, b: FloatArray) -> float:
    if math.isnan(a[0]):
        return 0.0
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    union = a[2] * a[3] + b[2] * b[3] - inter
    return min(inter / union, 1.0) if union > 0 else 0.0


def naive_error(a: FloatArray, b: FloatArray, sx: float = 1, sy: float = 1) -> float:
    if math.isnan(a[0]):
        return math.inf
    dx = (a[0] + a[2] / 2 - b[0] - b[2] / 2) / sx
    dy = (a[1] + a[3] / 2 - b[1] - b[3] / 2) / sy
    return math.sqrt(dx * dx + dy * dy)


# --- By hand --------------------------------------------------------------------------------------


def test_success_auc_by_hand() -> None:
    # overlaps 1, 1/3 (half of it shifted out), 0, none
    boxes = np.array([[0, 0, 10, 10], [5, 0, 10, 10], [20, 20, 10, 10], NAN4])
    np.testing.assert_allclose(metrics.overlaps(boxes, T), [1, 1 / 3, 0, 0])
    # above 0, .05, ... .95: 20 of 21 thresholds for the first; 0 to .3, 7 of them, for the second
    assert metrics.success_auc(boxes, T) == pytest.approx((20 + 7) / 21 / 4)
    assert metrics.success_curve(boxes, T)[0] == 0.5  # an overlap of 0 is not above 0
    assert metrics.success_curve(boxes, T)[20] == 0.0  # nor is 1 above 1


def test_frames_without_truth_are_left_out() -> None:
    truth = np.array([T[0], NAN4, T[0], NAN4])
    boxes = np.array([T[0], T[0], NAN4, NAN4])
    assert metrics.overlaps(boxes, truth).tolist() == [1, 0]
    assert metrics.precision(boxes, truth) == 0.5
    assert metrics.success_auc(boxes, truth) == pytest.approx(10 / 21)


def test_precision_counts_the_bound_itself() -> None:
    boxes = T + np.array([[0, 0, 0, 0], [12, 16, 0, 0], [12, 16.01, 0, 0], [100, 0, 0, 0]])
    assert metrics.centre_errors(boxes, T)[1] == 20
    assert metrics.precision(boxes, T) == 0.5
    curve = metrics.precision_curve(boxes, T)
    assert (curve[0], curve[19], curve[20], curve[21]) == (0.25, 0.25, 0.5, 0.75)


def test_normalised_precision_is_in_target_sizes() -> None:
    truth = np.array([[0, 0, 100, 10]] * 3, dtype=float)
    boxes = truth + np.array([[19, 0, 0, 0], [0, 1.9, 0, 0], [0, 2.1, 0, 0]])
    np.testing.assert_allclose(metrics.normalised_errors(boxes, truth), [0.19, 0.19, 0.21])
    assert metrics.normalised_precision(boxes, truth) == pytest.approx(2 / 3)
    assert metrics.normalised_precision_curve(boxes, truth)[50] == 1


def test_got10k_drops_the_first_frame_clips_and_pools() -> None:
    truth = np.array([[0, 0, 10, 10], [90, 0, 20, 10], [0, 0, 10, 10]], dtype=float)
    boxes = np.array([[50, 50, 1, 1], [90, 0, 10, 10], [0, 0, 10, 6]], dtype=float)
    one = metrics.got10k_overlaps(boxes, truth, (100, 100))
    # frame 1: the truth's part outside the image does not count
    np.testing.assert_allclose(one, [1, 0.6])
    other = np.array([0.2])
    assert metrics.average_overlap([one, other]) == pytest.approx((1 + 0.6 + 0.2) / 3)
    assert metrics.success_rate([one, other], 0.5) == pytest.approx(2 / 3)
    assert metrics.success_rate([one, other], 0.6) == pytest.approx(1 / 3)  # strictly above


def test_longterm_by_hand() -> None:
    truth = np.array([T[0], T[0], T[0], NAN4, T[0]])
    boxes = np.array([T[0], T[0], [5, 0, 10, 10], T[0], NAN4])
    scores = np.array([1.0, 0.9, 0.5, 0.4, math.nan])
    found = metrics.longterm([Pass(boxes, scores, truth)])
    assert found is not None
    # three visible frames after the start; at 0.9 one answer, right: P 1, R 1/3
    # at 0.5: P (1 + 1/3) / 2, R (1 + 1/3) / 3; at 0.4 the answer without a target costs precision
    np.testing.assert_allclose(
        found.curve, [[0.9, 1, 1 / 3], [0.5, 2 / 3, 4 / 9], [0.4, 4 / 9, 4 / 9]]
    )
    assert found.threshold == 0.5
    assert (found.precision, found.recall) == pytest.approx((2 / 3, 4 / 9))
    assert found.f == pytest.approx(2 * (2 / 3) * (4 / 9) / (2 / 3 + 4 / 9))


def test_longterm_of_nothing() -> None:
    blind = Pass(np.full((3, 4), math.nan), np.full(3, math.nan), np.repeat(T[:1], 3, axis=0))
    assert metrics.longterm([blind]) is None
    assert metrics.longterm([]) is None


def test_coverage_by_hand() -> None:
    # one standard deviation of 2 px in x only: d^2 = (e / 2)^2
    truth = np.repeat(T[:1], 5, axis=0)
    boxes = truth + np.array(
        [[9, 0, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0], [-6, 0, 0, 0], [0, 0, 0, 0]]
    )
    spread = np.repeat((np.eye(4) * 4)[None], 5, axis=0)
    spread[4] = np.nan  # says nothing there
    np.testing.assert_allclose(metrics.squared_distances(boxes, spread, truth), [0, 1, 9])
    # squared radii of the whole box: 50 % 1.42, 90 % 7.12, 95 % 12.2
    shares = metrics.coverage(np.array([0.0, 1, 9]), [0.5, 0.9, 0.95])
    np.testing.assert_allclose(shares, [2 / 3, 2 / 3, 1])
    # of its centre: 50 % .587, 80 % 1.92, 99 % 20.5
    two = metrics.squared_distances(boxes, spread, truth, dims=2)
    np.testing.assert_allclose(metrics.coverage(two, [0.5, 0.8, 0.99], dims=2), [1 / 3, 2 / 3, 1])
    assert np.isnan(metrics.coverage(np.empty(0), [0.5])).all()


def test_presence_by_hand() -> None:
    """Row 0 is dropped, and so is a frame without a score; of 3 x 2 pairs 3.5 are in order."""
    truth = np.array([T[0], T[0], NAN4, T[0], NAN4, T[0]])
    passes = [
        Pass(truth, np.array([0.0, 0.9, 0.5, 0.5, 0.8, np.nan]), truth),
        Pass(T[:2], np.array([0.0, 0.7]), T[:2]),
    ]
    above = 2 + 0.5 + 1  # 0.9 is above both, 0.5 equals one, 0.7 is above one
    assert metrics.presence_auc(passes) == pytest.approx(above / 6)
    assert math.isnan(metrics.presence_auc([passes[1]]))
    assert math.isnan(metrics.presence_auc([]))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=20))
def test_presence_equals_a_count_of_pairs(frames: list[tuple[int, bool]]) -> None:
    scores = np.array([0.0, *(score / 5 for score, _ in frames)])
    truth = np.array([T[0], *(T[0] if seen else NAN4 for _, seen in frames)])
    pairs = [(a, b) for a, seen in frames if seen for b, there in frames if not there]
    found = metrics.presence_auc([Pass(truth, scores, truth)])
    if not pairs:
        assert math.isnan(found)
        return
    assert found == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs))


def test_a_covariance_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="not positive definite"):
        metrics.squared_distances(T, np.zeros((4, 4, 4)), T)


@pytest.mark.parametrize(("missed", "expected"), [(9, 0), (10, 1), (25, 1)])
def test_a_failure_is_ten_frames_without_overlap(missed: int, expected: int) -> None:
    truth = np.repeat(T[:1], missed + 4, axis=0)
    boxes = truth.copy()
    boxes[2 : 2 + missed] += 100
    assert metrics.failures(boxes, truth) == expected
    assert metrics.failures(np.concatenate([boxes, boxes]), np.concatenate([truth] * 2)) == (
        2 * expected
    )


def test_absent_frames_neither_count_nor_end_a_failure() -> None:
    truth = np.repeat(T[:1], 14, axis=0)
    boxes = truth + 100
    boxes[0] = truth[0]
    truth[4:7] = np.nan  # 10 visible misses remain, in two parts
    assert metrics.failures(boxes, truth) == 1
    truth[13] = np.nan
    assert metrics.failures(boxes, truth) == 0


def test_speed_pools_frames() -> None:
    assert metrics.frames_per_second(
        [np.array([math.nan, 0.1, 0.1]), np.array([math.nan, 0.3])]
    ) == pytest.approx(3 / 0.5)
    assert math.isnan(metrics.frames_per_second([np.array([math.nan])]))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"must both be \(N, 4\)"):
        metrics.overlaps(T[:2], T)


# --- Against naive loops --------------------------------------------------------------------------


@given(tracks())
def test_curves_equal_naive_loops(track: tuple[FloatArray, FloatArray]) -> None:
    boxes, truth = track
    pairs = [(b, t) for b, t in zip(boxes, truth, strict=True) if not np.isnan(t).any()]
    ious = [naive_iou(b, t) for b, t in pairs]
    np.testing.assert_allclose(metrics.overlaps(boxes, truth), ious, atol=1e-12)
    if not pairs:
        assert math.isnan(metrics.success_auc(boxes, truth))
        return
    # a value on a threshold may fall on either side of it by rounding
    assume(all(abs(i * 20 - round(i * 20)) > 1e-9 for i in ious if 0 < i < 1))
    steps = [sum(i > k / 20 for i in ious) / len(ious) for k in range(21)]
    assert metrics.success_auc(boxes, truth) == pytest.approx(sum(steps) / 21, abs=1e-9)
    errors = [naive_error(b, t) for b, t in pairs]
    assume(all(abs(e - 20) > 1e-9 for e in errors))
    assert metrics.precision(boxes, truth) == sum(e <= 20 for e in errors) / len(errors)
    sized = [naive_error(b, t, t[2], t[3]) for b, t in pairs]
    np.testing.assert_allclose(
        metrics.normalised_errors(boxes, truth), sized, rtol=1e-9, atol=1e-12
    )
    run, count = 0, 0
    for value in [*ious, 1.0]:
        if value == 0:
            run += 1
        else:
            count += run >= 10
            run = 0
    assert metrics.failures(boxes, truth) == count


@given(st.lists(tracks(), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_longterm_equals_naive_loops(found: list[tuple[FloatArray, FloatArray]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    passes = [Pass(b, rng.integers(0, 4, len(b)) / 4, t) for b, t in found]
    expected: tuple[float, float, float] | None = None
    thresholds = {
        float(s)
        for one in passes
        for s, b in zip(one.scores[1:], one.boxes[1:], strict=True)
        if not math.isnan(b[0])
    }
    for threshold in sorted(thresholds, reverse=True):
        precisions, recalls = [], []
        for one in passes:
            if len(one.truth) < 2:
                continue
            total, answered, seen = 0.0, 0, 0
            for s, b, t in zip(one.scores[1:], one.boxes[1:], one.truth[1:], strict=True):
                present = not math.isnan(t[0])
                seen += present
                if s >= threshold and not math.isnan(b[0]):
                    answered += 1
                    total += naive_iou(b, t) if present else 0.0
            precisions.append(total / answered if answered else 1.0)
            if seen:
                recalls.append(total / seen)
        if not recalls:
            continue
        p, r = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
        f = 2 * p * r / (p + r) if p + r else 0.0
        if expected is None or f > expected[2] + 1e-12:
            expected = p, r, f
    result = metrics.longterm(passes)
    if expected is None:
        assert result is None
    else:
        assert result is not None
        assert result.f == pytest.approx(expected[2], abs=1e-9)


@given(st.integers(0, 2**32 - 1))
def test_nll_equals_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.concatenate([rng.uniform(0, 50, (6, 2)), rng.uniform(5, 40, (6, 2))], axis=1)
    boxes = truth + rng.normal(0, 3, (6, 4))
    roots = rng.normal(0, 2, (6, 4, 4))
    spread = roots @ roots.transpose(0, 2, 1) + np.eye(4)
    expected = [
        -multivariate_t.logpdf(
            [t[0] + t[2] / 2, t[1] + t[3] / 2, t[2], t[3]],
            [b[0] + b[2] / 2, b[1] + b[3] / 2, b[2], b[3]],
            c / 3,  # three degrees of freedom: the covariance is three times the shape
            df=3,
        )
        for b, t, c in zip(boxes[1:], truth[1:], spread[1:], strict=True)
    ]
    found = metrics.negative_log_likelihoods(boxes, spread, truth)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_a_calibrated_covariance_covers_what_it_says() -> None:
    rng = np.random.default_rng(0)
    spread = np.array([[9, 3, 0, 0], [3, 4, 0, 0], [0, 0, 2, 1], [0, 0, 1, 5]], dtype=float)
    truth = np.repeat([[10.0, 10, 40, 30]], 20_001, axis=0)
    noise = multivariate_t(shape=spread / 3, df=3, seed=rng).rvs(len(truth))
    boxes = truth + np.concatenate([noise[:, :2] - noise[:, 2:] / 2, noise[:, 2:]], axis=1)
    spreads = np.repeat(spread[None], len(truth), axis=0)
    for dims in (2, 4):
        squared = metrics.squared_distances(boxes, spreads, truth, dims)
        shares = metrics.coverage(squared, metrics.COVERAGE_LEVELS, dims)
        np.testing.assert_allclose(shares, metrics.COVERAGE_LEVELS, atol=0.015)


# --- Against the got10k package -------------------------------------------------------------------


@given(tracks())
def test_overlaps_and_errors_equal_those_of_got10k(track: tuple[FloatArray, FloatArray]) -> None:
    boxes, truth = track
    both = metrics.visible(boxes) & metrics.visible(truth)
    boxes, truth = boxes[both], truth[both]
    ious = theirs.rect_iou(boxes.copy(), truth.copy())
    np.testing.assert_allclose(metrics.overlaps(boxes, truth), ious, atol=1e-12)
    errors = theirs.center_error(boxes.copy(), truth.copy())
    np.testing.assert_allclose(metrics.centre_errors(boxes, truth), errors, atol=1e-9)
    bounded = theirs.rect_iou(boxes[1:].copy(), truth[1:].copy(), bound=(50, 40))
    np.testing.assert_allclose(metrics.got10k_overlaps(boxes, truth, (50, 40)), bounded, atol=1e-12)
