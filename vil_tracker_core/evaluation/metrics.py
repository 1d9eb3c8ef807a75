"""The metrics of single-object tracking, each with its exact rule.

Words: *truth* is (N, 4) boxes (x, y, w, h), a row of NaN where the target is absent; *boxes* are
the tracker's, a row of NaN where it gave none. A *visible* frame has truth. Unless a rule says
otherwise, the frame on which the tracker was started counts (its box is the one that was given, as
in the toolkits of OTB, UAV123 and LaSOT), frames without truth are left out, and a visible frame
without a box counts as overlap 0 and error infinity.

docs/metrics.md says the same for readers, and where other toolkits differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from vil_tracker_core import regions
from vil_tracker_core.geometry import FloatArray, iou, to_cxcywh

SUCCESS_THRESHOLDS: FloatArray = np.linspace(0.0, 1.0, 21)
"""Overlaps 0, 0.05, ..., 1."""
PRECISION_THRESHOLDS: FloatArray = np.arange(51, dtype=np.float64)
"""Errors of the centre of 0, 1, ..., 50 px."""
NORMALISED_THRESHOLDS: FloatArray = np.linspace(0.0, 0.5, 51)
"""Errors of the centre of 0, 0.01, ..., 0.5 target sizes."""
COVERAGE_LEVELS: FloatArray = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
"""Probabilities at which the covariance's regions are checked."""
FAILURE_FRAMES = 10
"""Visible frames of overlap 0 in a row that make a failure."""


def visible(truth: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """(N,) bool: the frame has a whole box."""
    return np.asarray(np.isfinite(np.asarray(truth, dtype=np.float64)).all(axis=-1))


def overlaps(boxes: npt.ArrayLike, truth: npt.ArrayLike) -> FloatArray:
    """(V,) overlap in each visible frame.

    Rule: intersection over union of continuous boxes (no ``+ 1``), at most 1; 0 without a box.
    """
    boxes, truth = _pair(boxes, truth)
    seen = visible(truth)
    # The sum x + w rounds, so equal boxes may come out at 1 + 1e-16 and pass "> 1".
    return np.minimum(np.nan_to_num(iou(boxes[seen], truth[seen]), nan=0.0), 1.0)


def centre_errors(boxes: npt.ArrayLike, truth: npt.ArrayLike) -> FloatArray:
    """(V,) distance of the centres in px in each visible frame; infinite without a box."""
    return np.asarray(np.hypot(*_centre_offsets(*_pair(boxes, truth)).T))


def normalised_errors(boxes: npt.ArrayLike, truth: npt.ArrayLike) -> FloatArray:
    """(V,) distance of the centres in target sizes: x over the truth's w, y over its h.

    Source: Mueller et al., TrackingNet (arXiv 1803.10794), 5.1.
    """
    boxes, truth = _pair(boxes, truth)
    size = truth[visible(truth), 2:]
    return np.asarray(np.hypot(*(_centre_offsets(boxes, truth) / size).T))


def success_curve(boxes: npt.ArrayLike, truth: npt.ArrayLike) -> FloatArray:
    """(21,) share of visible frames whose overlap is strictly above each SUCCESS_THRESHOLD."""
    return _shares(overlaps(boxes, truth)[:, None] > SUCCESS_THRESHOLDS)


def success_auc(boxes: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Success AUC: the mean of `success_curve`'s 21 values.

    Source: Wu et al., Online Object Tracking: A Benchmark (CVPR 2013).
    """
    return float(np.mean(success_curve(boxes, truth)))


def precision_curve(boxes: npt.ArrayLike, truth: npt.ArrayLike) -> FloatArray:
    """(51,) share of visible frames whose `centre_errors` is at most each PRECISION_THRESHOLD."""
    return _shares(centre_errors(boxes, truth)[:, None] <= PRECISION_THRESHOLDS)


def precision(boxes: npt.ArrayLike, truth: npt.ArrayLike, pixels: float = 20.0) -> float:
    """Precision: share of visible frames whose centre is at most ``pixels`` off."""
    return float(_shares(centre_errors(boxes, truth)[:, None] <= pixels)[0])


def normalised_precision_curve(boxes: npt.ArrayLike, truth: npt.ArrayLike) -> FloatArray:
    """(51,) share of visible frames whose `normalised_errors` is at most each threshold."""
    return _shares(normalised_errors(boxes, truth)[:, None] <= NORMALISED_THRESHOLDS)


def normalised_precision(boxes: npt.ArrayLike, truth: npt.ArrayLike, sizes: float = 0.2) -> float:
    """Normalised precision: share of visible frames whose centre is at most ``sizes`` off."""
    return float(_shares(normalised_errors(boxes, truth)[:, None] <= sizes)[0])


# --- GOT-10k --------------------------------------------------------------------------------------


def got10k_overlaps(
    boxes: npt.ArrayLike, truth: npt.ArrayLike, frame_size: tuple[int, int]
) -> FloatArray:
    """(V',) overlaps by the rule of GOT-10k, of one sequence.

    Rule: row 0, the frame of the start, is dropped. Both boxes are confined to the image as the
    toolkit does it: the corner is moved into the image, then the size is cut to what is left of it
    (a box over the left edge is shifted, not cut). Frames without truth are left out.

    Source: Huang et al., GOT-10k (arXiv 1810.11981), and its toolkit.

    Args:
        boxes, truth: (N, 4), from the frame of the start on.
        frame_size: (width, height).
    """
    boxes, truth = _pair(boxes, truth)
    return overlaps(_confined(boxes[1:], frame_size), _confined(truth[1:], frame_size))


def average_overlap(pooled: Iterable[FloatArray]) -> float:
    """AO: the mean of `got10k_overlaps` over the frames of all sequences together."""
    return _mean(_pool(pooled))


def success_rate(pooled: Iterable[FloatArray], threshold: float) -> float:
    """SR: share of the frames of all sequences together whose overlap is above ``threshold``."""
    values = _pool(pooled)
    return _mean((values > threshold).astype(np.float64))


def _confined(boxes: FloatArray, frame_size: tuple[int, int]) -> FloatArray:
    size = np.array(frame_size, dtype=np.float64)
    corner = np.clip(boxes[:, :2], 0.0, size)
    return np.concatenate([corner, np.clip(boxes[:, 2:], 0.0, size - corner)], axis=1)


# --- Long-term tracking (VOT-LT) ------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """One sequence's frames, with scores: (N, 4) boxes, (N,) scores, (N, 4) truth."""

    boxes: FloatArray
    scores: FloatArray
    truth: FloatArray


@dataclass(frozen=True)
class LongTerm:
    """Long-term precision and recall at the score threshold of the highest F, and all of them.

    Attributes:
        precision, recall, f, threshold: at the best threshold.
        curve: (T, 3) threshold, precision, recall, thresholds falling.
    """

    precision: float
    recall: float
    f: float
    threshold: float
    curve: FloatArray = field(repr=False)


def longterm(passes: Many[Pass]) -> LongTerm | None:
    """Precision, recall and F of long-term tracking (VOT-LT).

    Rule: row 0 of each sequence, the frame of the start, is dropped. At a score threshold t, a
    frame is *answered* when it has a box and its score is at least t. Precision is the mean
    overlap of the answered frames, where a frame without truth counts as overlap 0; 1 when none is
    answered. Recall is the sum of the same overlaps over the number of visible frames. Both are
    averaged over the sequences at the same t (recall over those with a visible frame), F is
    2 P R / (P + R), and t runs over every score that occurs.

    Source: Lukezic et al., Now you see me (arXiv 1804.07056), 3.

    Returns:
        None where no frame is answered at any threshold, or none is visible.
    """
    ranked = [_ranked(each) for each in passes if len(each.truth) > 1]
    thresholds = np.unique(_pool(scores for scores, _, _ in ranked))[::-1]
    if not len(thresholds) or not any(count for _, _, count in ranked):
        return None
    precisions, recalls = [], []
    for scores, sums, count in ranked:
        answered = np.searchsorted(-scores, -thresholds, side="right")
        total = np.concatenate([[0.0], sums])[answered]
        precisions.append(np.where(answered > 0, total / np.maximum(answered, 1), 1.0))
        if count:
            recalls.append(total / count)
    p, r = np.mean(precisions, axis=0), np.mean(recalls, axis=0)
    f = np.where(p + r > 0, 2 * p * r / np.where(p + r > 0, p + r, 1.0), 0.0)
    best = int(np.argmax(f))
    curve = np.stack([thresholds, p, r], axis=1)
    return LongTerm(float(p[best]), float(r[best]), float(f[best]), float(thresholds[best]), curve)


def _ranked(one: Pass) -> tuple[FloatArray, FloatArray, int]:
    """(scores falling, running sum of overlaps in that order, number of visible frames)."""
    boxes, scores, truth = one.boxes[1:], one.scores[1:], one.truth[1:]
    seen = visible(truth)
    overlap = np.zeros(len(truth))
    overlap[seen] = overlaps(boxes, truth)
    answered = visible(boxes) & np.isfinite(scores)
    order = np.argsort(-scores[answered], kind="stable")
    return scores[answered][order], np.cumsum(overlap[answered][order]), int(seen.sum())


def presence_auc(passes: Many[Pass]) -> float:
    """How well the score tells frames with the target from frames without: the area under the ROC
    curve, which is the probability that of two such frames the one with it has the higher score.

    Rule: row 0 of each sequence, the frame of the start, is dropped; so are frames without a score.
    The frames of all sequences are ranked together, equal scores sharing their ranks (the
    Mann-Whitney statistic). NaN where there is no frame of either kind.
    """
    scores = _pool(each.scores[1:] for each in passes)
    present = np.concatenate([np.empty(0, bool), *(visible(each.truth[1:]) for each in passes)])
    present, scores = present[np.isfinite(scores)], scores[np.isfinite(scores)]
    seen, absent = int(present.sum()), int((~present).sum())
    if not seen or not absent:
        return float("nan")
    above = float(rankdata(scores)[present].sum()) - seen * (seen + 1) / 2
    return above / (seen * absent)


# --- Covariance -----------------------------------------------------------------------------------


def squared_distances(
    boxes: npt.ArrayLike, covariances: npt.ArrayLike, truth: npt.ArrayLike, dims: int = 4
) -> FloatArray:
    """(C,) squared Mahalanobis distances of the truth from the box, e' C^-1 e.

    Rule: row 0, the frame of the start, is dropped; of the rest count the visible frames with a
    box and a covariance, lost or not. e = truth - box in (cx, cy, w, h).

    Args:
        boxes, truth: (N, 4) as x, y, w, h, from the frame of the start on.
        covariances: (N, 4, 4) of (cx, cy, w, h) in px^2; NaN where there is none.
        dims: 4 for the whole box, 2 for its centre.

    Raises:
        ValueError: a covariance is not positive definite.
    """
    errors, claims = _claims(boxes, covariances, truth, dims)
    if not len(errors):
        return np.empty(0)
    return np.asarray((errors * np.linalg.solve(claims, errors[..., None])[..., 0]).sum(axis=-1))


def coverage(squared: FloatArray, probabilities: npt.ArrayLike, dims: int = 4) -> FloatArray:
    """(P,) share of `squared_distances` within the region of each probability, see regions.py.

    A calibrated covariance covers what it says: the share equals the probability. NaN where
    nothing is given.
    """
    bounds = regions.squared_radius(probabilities, dims)
    if not len(squared):
        return np.full(bounds.shape, np.nan)
    return _shares(squared[:, None] <= bounds)


def negative_log_likelihoods(
    boxes: npt.ArrayLike, covariances: npt.ArrayLike, truth: npt.ArrayLike
) -> FloatArray:
    """(C,) -log p(truth; box, C) of the distribution of regions.py, in nats.

    The frames and the arguments are those of `squared_distances` with dims 4.
    """
    _, claims = _claims(boxes, covariances, truth, 4)
    log_dets = np.linalg.slogdet(claims)[1]
    squared = squared_distances(boxes, covariances, truth)
    return regions.negative_log_density(squared, log_dets, dims=4)


def _claims(
    boxes: npt.ArrayLike, covariances: npt.ArrayLike, truth: npt.ArrayLike, dims: int
) -> tuple[FloatArray, FloatArray]:
    """(C, dims) errors and (C, dims, dims) covariances of the frames that count."""
    boxes, truth = _pair(boxes, truth)
    spreads = np.asarray(covariances, dtype=np.float64)[1:, :dims, :dims]
    boxes, truth = boxes[1:], truth[1:]
    used = visible(truth) & visible(boxes) & np.isfinite(spreads).all(axis=(1, 2))
    errors = (to_cxcywh(truth[used]) - to_cxcywh(boxes[used]))[:, :dims]
    try:
        np.linalg.cholesky(spreads[used])
    except np.linalg.LinAlgError:
        raise ValueError("a covariance is not positive definite: it says nothing") from None
    return errors, spreads[used]


# --- Failures and speed ---------------------------------------------------------------------------


def failures(boxes: npt.ArrayLike, truth: npt.ArrayLike) -> int:
    """How often the target was lost: runs of at least FAILURE_FRAMES visible frames of overlap 0.

    Rule: frames without truth are left out first, so they neither count nor end a run. A run
    counts once, however long; nothing is started anew.
    """
    missed = np.concatenate([[False], overlaps(boxes, truth) == 0, [False]])
    edges = np.flatnonzero(np.diff(missed.astype(np.int8)))
    return int((edges[1::2] - edges[::2] >= FAILURE_FRAMES).sum())


def frames_per_second(seconds: Iterable[FloatArray]) -> float:
    """Speed: frames over the seconds that the tracker took for them, all sequences together.

    Rule: the time of ``update`` alone counts: neither the start nor reading the frame. NaN marks
    frames that were not timed.
    """
    times = _pool(seconds)
    times = times[np.isfinite(times)]
    return float(len(times) / times.sum()) if len(times) and times.sum() > 0 else float("nan")


# --- Helpers --------------------------------------------------------------------------------------


def _pair(boxes: npt.ArrayLike, truth: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    boxes, truth = np.asarray(boxes, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if boxes.shape != truth.shape or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes {boxes.shape} and truth {truth.shape} must both be (N, 4)")
    return boxes, truth


def _centre_offsets(boxes: FloatArray, truth: FloatArray) -> FloatArray:
    """(V, 2) px from the truth's centre to the box's in each visible frame; infinite without."""
    seen = visible(truth)
    offsets = (to_cxcywh(boxes[seen]) - to_cxcywh(truth[seen]))[:, :2]
    return np.where(visible(boxes)[seen, None], offsets, np.inf)


def _shares(hits: npt.NDArray[np.bool_]) -> FloatArray:
    """(T,) mean over the frames of (V, T); NaN where there is no frame."""
    return hits.mean(axis=0) if len(hits) else np.full(hits.shape[1], np.nan)


def _pool(parts: Iterable[FloatArray]) -> FloatArray:
    return np.concatenate([np.empty(0), *parts])


def _mean(values: FloatArray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
