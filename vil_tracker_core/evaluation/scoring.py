"""From runs to numbers: a sequence's scores and a tracker's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from vil_tracker_core.evaluation import metrics
from vil_tracker_core.evaluation.benchmark import Results, Run
from vil_tracker_core.evaluation.cases import Case
from vil_tracker_core.geometry import FloatArray
from vil_tracker_core.tracking.online import TrackState

NAN = float("nan")


@dataclass(frozen=True)
class SequenceScore:
    """One run's numbers, by the rules of `metrics`; NaN where nothing is known.

    Attributes:
        name: of the sequence.
        frames: from the start on.
        auc, p20, np20: success AUC, precision at 20 px, normalised precision at 0.2.
        ao, sr50, sr75: GOT-10k's, of this sequence alone.
        failures: runs of frames without any overlap.
        coverage90: share of frames within the 90 % region of the whole box.
        nll: mean negative log likelihood, nats.
        lost: share of frames in which the tracker said that it had lost the target.
        fps, ms50, ms95: speed, and quantiles of a frame's time in ms.
        success, precision: (21,) and (51,) curves.
        overlaps: (N,) of every frame, NaN where there is no truth.
        attributes: of the sequence.
        note: what a reader should know.
    """

    name: str
    frames: int
    auc: float
    p20: float
    np20: float
    ao: float
    sr50: float
    sr75: float
    failures: float
    coverage90: float
    nll: float
    lost: float
    fps: float
    ms50: float
    ms95: float
    success: FloatArray = field(repr=False)
    precision: FloatArray = field(repr=False)
    overlaps: FloatArray = field(repr=False)
    attributes: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class TrackerScore:
    """A tracker's numbers over all sequences that it finished.

    auc, p20, np20, failures and lost are means over the sequences with truth, each counting alike;
    ao, sr50, sr75, presence, coverage, nll, fps and times pool the frames of all; lt is VOT-LT's.

    Attributes:
        coverage, centre_coverage: (11,) at metrics.COVERAGE_LEVELS, of the whole box and of the
            centre; NaN where the tracker gives no covariance.
        sequences: in the source's order.
        failed: sequence -> why there is no run.
    """

    name: str
    auc: float
    p20: float
    np20: float
    ao: float
    sr50: float
    sr75: float
    failures: float
    nll: float
    lost: float
    fps: float
    ms50: float
    ms95: float
    lt: metrics.LongTerm | None
    presence: float
    success: FloatArray = field(repr=False)
    precision: FloatArray = field(repr=False)
    normalised: FloatArray = field(repr=False)
    coverage: FloatArray = field(repr=False)
    centre_coverage: FloatArray = field(repr=False)
    sequences: list[SequenceScore] = field(repr=False)
    failed: dict[str, str] = field(default_factory=dict)

    def by_attribute(self) -> dict[str, tuple[int, float]]:
        """Attribute -> (sequences that have it, mean of their AUC), sorted by name."""
        words = sorted({word for each in self.sequences for word in each.attributes})
        having = {word: [s.auc for s in self.sequences if word in s.attributes] for word in words}
        return {word: (len(aucs), mean(aucs)) for word, aucs in having.items()}


def mean(values: Iterable[float]) -> float:
    """The mean of the finite values; NaN where there is none."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else NAN


def score_run(case: Case, run: Run) -> SequenceScore:
    """A run's numbers. Frames before the start are no part of it; a sequence whose truth ends with
    the start, as in the hidden test splits, has none but those of speed."""
    boxes, truth = run.boxes[run.start :], case.sequence.boxes[run.start :]
    times = run.seconds[np.isfinite(run.seconds)] * 1e3
    states = run.states[run.start + 1 :]
    common = {
        "name": case.name,
        "frames": len(truth),
        "lost": float(np.mean(states == TrackState.LOST)) if len(states) and states.any() else NAN,
        "fps": metrics.frames_per_second([run.seconds]),
        "ms50": float(np.quantile(times, 0.5)) if len(times) else NAN,
        "ms95": float(np.quantile(times, 0.95)) if len(times) else NAN,
        "attributes": case.attributes,
        "note": case.note,
    }
    overlaps = np.full(len(case.sequence), np.nan)
    if not case.scored:
        unknown = dict.fromkeys(
            ("auc", "p20", "np20", "ao", "sr50", "sr75", "failures", "coverage90", "nll"), NAN
        )
        nothing = {"success": np.full(21, NAN), "precision": np.full(51, NAN)}
        return SequenceScore(**common, **unknown, **nothing, overlaps=overlaps)  # type: ignore[arg-type]
    seen = np.flatnonzero(metrics.visible(truth))
    overlaps[run.start + seen] = metrics.overlaps(boxes, truth)
    confined = metrics.got10k_overlaps(boxes, truth, run.frame_size)
    spreads = run.covariances[run.start :]
    squared = metrics.squared_distances(boxes, spreads, truth)
    return SequenceScore(
        **common,  # type: ignore[arg-type]
        auc=metrics.success_auc(boxes, truth),
        p20=metrics.precision(boxes, truth),
        np20=metrics.normalised_precision(boxes, truth),
        ao=metrics.average_overlap([confined]),
        sr50=metrics.success_rate([confined], 0.5),
        sr75=metrics.success_rate([confined], 0.75),
        failures=metrics.failures(boxes, truth),
        coverage90=float(metrics.coverage(squared, [0.9])[0]),
        nll=mean(metrics.negative_log_likelihoods(boxes, spreads, truth).tolist()),
        success=metrics.success_curve(boxes, truth),
        precision=metrics.precision_curve(boxes, truth),
        overlaps=overlaps,
    )


def score_tracker(results: Results, name: str) -> TrackerScore:
    """A tracker's numbers over the sequences that it finished."""
    finished = [
        (case, results.runs[name, case.name])
        for case in results.cases.cases
        if (name, case.name) in results.runs
    ]
    sequences = [score_run(case, run) for case, run in finished]
    scored = [(case, run) for case, run in finished if case.scored]
    parts = [(r.boxes[r.start :], c.sequence.boxes[r.start :], r) for c, r in scored]
    confined = [metrics.got10k_overlaps(b, t, r.frame_size) for b, t, r in parts]
    spreads = [r.covariances[r.start :] for _, _, r in parts]
    squared = {
        dims: np.concatenate(
            [np.empty(0)]
            + [
                metrics.squared_distances(b, spread, t, dims)
                for (b, t, _), spread in zip(parts, spreads, strict=True)
            ]
        )
        for dims in (4, 2)
    }
    nll = [
        metrics.negative_log_likelihoods(b, spread, t)
        for (b, t, _), spread in zip(parts, spreads, strict=True)
    ]
    passes = [metrics.Pass(b, r.scores[r.start :], t) for b, t, r in parts]
    times = np.concatenate([np.empty(0), *(run.seconds for _, run in finished)]) * 1e3
    times = times[np.isfinite(times)]
    return TrackerScore(
        name=name,
        auc=mean(s.auc for s in sequences),
        p20=mean(s.p20 for s in sequences),
        np20=mean(s.np20 for s in sequences),
        ao=metrics.average_overlap(confined),
        sr50=metrics.success_rate(confined, 0.5),
        sr75=metrics.success_rate(confined, 0.75),
        failures=mean(s.failures for s in sequences),
        nll=mean(np.concatenate([np.empty(0), *nll]).tolist()),
        lost=mean(s.lost for s in sequences),
        fps=metrics.frames_per_second(run.seconds for _, run in finished),
        ms50=float(np.quantile(times, 0.5)) if len(times) else NAN,
        ms95=float(np.quantile(times, 0.95)) if len(times) else NAN,
        lt=metrics.longterm(passes),
        presence=metrics.presence_auc(passes),
        success=_mean_curve([s.success for s in sequences], 21),
        precision=_mean_curve([s.precision for s in sequences], 51),
        normalised=_mean_curve([metrics.normalised_precision_curve(b, t) for b, t, _ in parts], 51),
        coverage=metrics.coverage(squared[4], metrics.COVERAGE_LEVELS),
        centre_coverage=metrics.coverage(squared[2], metrics.COVERAGE_LEVELS, dims=2),
        sequences=sequences,
        failed={seq: why for (tracker, seq), why in results.failed.items() if tracker == name},
    )


def score(results: Results) -> list[TrackerScore]:
    """Every tracker's numbers, in the order asked for."""
    return [score_tracker(results, tracker.name) for tracker in results.trackers]


def _mean_curve(curves: list[FloatArray], length: int) -> FloatArray:
    known = [curve for curve in curves if np.isfinite(curve).all()]
    return np.mean(known, axis=0) if known else np.full(length, np.nan)


SHORT = ("auc", "p20", "np20", "fps")


def short_json(scores: list[TrackerScore]) -> dict[str, object]:
    """What `--json` prints: ``{"trackers": {NAME: {auc, p20, np20, fps, sequences: {...}}}}``.

    A number that is not known is null. A sequence without a run has nulls and ``error``.
    """
    trackers: dict[str, object] = {}
    for each in scores:
        sequences: dict[str, object] = {s.name: _numbers(s, SHORT) for s in each.sequences}
        for name, why in each.failed.items():
            sequences[name] = {**dict.fromkeys(SHORT), "error": why}
        trackers[each.name] = {**_numbers(each, SHORT), "sequences": sequences}
    return {"trackers": trackers}


LONG = (
    "auc", "p20", "np20", "ao", "sr50", "sr75", "failures", "nll", "lost", "fps", "ms50", "ms95",
)  # fmt: skip


def long_json(results: Results, scores: list[TrackerScore]) -> dict[str, object]:
    """All numbers, for report.json."""
    trackers: dict[str, object] = {}
    for each in scores:
        lt = each.lt
        trackers[each.name] = {
            **_numbers(each, (*LONG, "presence")),
            "longterm": lt and _numbers(lt, ("precision", "recall", "f", "threshold")),
            "success": _list(each.success),
            "precision": _list(each.precision),
            "normalised_precision": _list(each.normalised),
            "coverage": _list(each.coverage),
            "centre_coverage": _list(each.centre_coverage),
            "attributes": {
                k: {"sequences": n, "auc": a} for k, (n, a) in each.by_attribute().items()
            },
            "sequences": {
                s.name: {"frames": s.frames, **_numbers(s, (*LONG, "coverage90"))}
                for s in each.sequences
            },
            "failed": each.failed,
        }
    return {
        "title": results.cases.title,
        "broken": results.cases.broken,
        "coverage_levels": _list(metrics.COVERAGE_LEVELS),
        "trackers": trackers,
    }


def _number(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def _numbers(of: object, names: Iterable[str]) -> dict[str, float | None]:
    return {name: _number(getattr(of, name)) for name in names}


def _list(values: FloatArray) -> list[float | None]:
    return [_number(value) for value in values]
