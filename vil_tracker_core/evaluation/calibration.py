"""Fits what makes the published covariance honest, and says how honest it then is.

The tracker runs as in production, from the first box on, and the error is that of `vil-tracker
eval`: between the published box and the truth in every later frame with truth, lost or not. It is
explained by what `tracking.uncertainty` knows and by seven numbers, `weights.Calibration`: those
that make the errors likeliest, distributed as regions.py says. The boxes do not depend on them.

The distribution's heavy tails are what lets one fit serve many targets. Errors within a sequence
are alike and those of two sequences are not, and once in a while a track sits on something else;
with a normal distribution, a few such frames would set the spread for all others. For the same
reason every sequence counts the same, however long it is.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.progress import Progress
from safetensors.torch import load_file
from scipy.optimize import minimize

from vil_tracker_core import regions, weights
from vil_tracker_core.data.sequence import (
    DataError,
    Sequence,
    read_folder,
    read_folders,
    sequence_folders,
)
from vil_tracker_core.evaluation import metrics
from vil_tracker_core.evaluation.cases import Case
from vil_tracker_core.geometry import FloatArray
from vil_tracker_core.tracking.network import Network, open_network
from vil_tracker_core.tracking.online import Track, TrackerConfig, step_tracks
from vil_tracker_core.tracking.uncertainty import Uncertainty
from vil_tracker_core.weights import Calibration, Weights

LEVELS = (0.5, 0.9, 0.95)
"""Probabilities of the regions whose coverage is reported."""
LEAST_FRAMES = 30
"""With fewer, what is fitted is chance."""
BOUNDS = 0.01, 100.0
"""Of each number that is fitted."""


@dataclass(frozen=True)
class Followed:
    """A sequence as the tracker followed it, from the frame of the start (row 0) on.

    Attributes:
        name: the sequence's.
        truth, boxes: (N, 4) x, y, w, h in px; the boxes are those that the tracker published.
        uncertainty: of N frames.
    """

    name: str
    truth: FloatArray = field(repr=False)
    boxes: FloatArray = field(repr=False)
    uncertainty: Uncertainty = field(repr=False)

    @property
    def frames(self) -> int:
        """How many count: those after the start, with truth."""
        return int(metrics.visible(self.truth[1:]).sum())

    def squared(self, calibration: Calibration, dims: int) -> FloatArray:
        """`metrics.squared_distances` under this calibration."""
        covariances = self.uncertainty.covariance(calibration)
        return metrics.squared_distances(self.boxes, covariances, self.truth, dims)


def follow(
    network: Network, sequence: Sequence, advance: Callable[[], object] = lambda: None
) -> Followed:
    """Runs a net over a sequence as `online.OnlineTracker` does, and keeps what it knows.

    Args:
        network: the net; its calibration changes nothing here.
        sequence: with truth; tracking starts on the first visible frame.
        advance: called after each frame.

    Raises:
        DataError: no box to start on, or a frame that cannot be read.
    """
    case = Case(sequence)
    first = case.start
    stamps, truth = sequence.stamps[first:], sequence.boxes[first:]
    start = sequence.load(first)
    try:
        track = Track(network, start, case.start_box, float(stamps[0]), TrackerConfig())
    except ValueError as error:
        raise DataError(f"sequence {sequence.name} cannot be started: {error}") from None
    boxes, known = [track.result.box], [track.uncertainty()]
    for row in range(1, len(truth)):
        step_tracks(network, [track], sequence.load(first + row), float(stamps[row]))
        boxes.append(track.result.box)
        known.append(track.uncertainty())
        advance()
    together = Uncertainty(*(np.stack(parts) for parts in zip(*known, strict=True)))
    return Followed(sequence.name, truth, np.array(boxes), together)


def fit(runs: Many[Followed]) -> Calibration:
    """The calibration under which the errors of these runs are likeliest, see above.

    Raises:
        DataError: too few frames.
    """
    runs = [run for run in runs if run.frames]
    count = sum(run.frames for run in runs)
    if count < LEAST_FRAMES:
        raise DataError(
            f"the covariance cannot be fitted on {count} frames with truth after the start: at "
            f"least {LEAST_FRAMES} are needed, so give more sequences or longer ones"
        )
    fitted_on = f"{count} frames of {len(runs)} sequences"

    def made(logs: FloatArray) -> Calibration:
        a, b, c, d, centre, size, drift = np.exp(logs).tolist()
        return Calibration((a, b, c, d), (centre, size), drift, fitted_on)

    def surprise(logs: FloatArray) -> float:
        calibration = made(logs)
        each = [
            metrics.negative_log_likelihoods(
                run.boxes, run.uncertainty.covariance(calibration), run.truth
            ).mean()
            for run in runs
        ]
        return float(np.mean(each))

    default = Calibration()
    start = np.log([*default.spread, *default.settling, default.drift])
    low, high = np.log(BOUNDS)
    best = minimize(surprise, start, method="L-BFGS-B", bounds=[(low, high)] * len(start)).x
    return made(best)


# --- Coverage -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coverage:
    """How often the truth lies within the regions of a covariance.

    Attributes:
        split: of the data, fit or check.
        calibration: old or new.
        frames: how many.
        centre: (3,) share of frames within the `LEVELS` of the centre's ellipse (cx, cy).
        box: (3,) the same of all four coordinates.
    """

    split: str
    calibration: str
    frames: int
    centre: FloatArray
    box: FloatArray


def covered(runs: Many[Followed], calibration: Calibration, split: str, which: str) -> Coverage:
    """The coverage in runs of the tracker under a calibration, frames pooled."""
    centre, box = (
        np.concatenate([run.squared(calibration, dims) for run in runs]) for dims in (2, 4)
    )
    return Coverage(
        split,
        which,
        len(box),
        metrics.coverage(centre, LEVELS, dims=2),
        metrics.coverage(box, LEVELS, dims=4),
    )


# --- The command ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibrated:
    """Weights with a fitted calibration, and what it is worth.

    Attributes:
        weights: the tensors exactly as the file has them, half precision included.
        old: the calibration before.
        coverage: by split and calibration.
    """

    weights: Weights
    old: Calibration
    coverage: list[Coverage]


def calibrate(
    source: Path,
    root: Path,
    only: Many[str] = (),
    check: Path | None = None,
    threads: int = 1,
) -> Calibrated:
    """Fits the calibration of a weights file on sequences, and measures it there and on others.

    Args:
        source: weights file.
        root: folder of sequences in the generic layout, to fit on.
        only: names of the sequences to fit on; all by default.
        check: folder of sequences to measure on only. May be ``root``: then those that it was not
            fitted on.
        threads: CPU threads of the net.

    Raises:
        DataError: sequences that cannot be used or are not there, or too few frames.
        weights.WeightsError: the file cannot be used.
    """
    loaded = weights.load(source)
    fit_on, check_on = _splits(root, only, check)
    network = open_network(loaded, threads=threads, precision="float32")
    splits = {"fit": _follow_all(network, fit_on, "following, to fit")}
    if check_on:
        splits["check"] = _follow_all(network, check_on, "following, to check")
    old, new = loaded.calibration, fit(splits["fit"])
    coverage = [
        covered(runs, calibration, split, which)
        for split, runs in splits.items()
        for which, calibration in (("old", old), ("new", new))
    ]
    made = {
        "frames": {run.name: run.frames for run in splits["fit"] if run.frames},
        "rule": f"likeliest under a t distribution of {regions.DEGREES_OF_FREEDOM} degrees",
    }
    # `weights.load` widens to float32: the file's own tensors go into the new one
    fitted = replace(
        loaded,
        tensors=load_file(source),
        calibration=new,
        provenance={**loaded.provenance, "calibration": made},
    )
    return Calibrated(fitted, old, coverage)


def _splits(
    root: Path, only: Many[str], check: Path | None
) -> tuple[list[Sequence], list[Sequence]]:
    """(sequences to fit on, sequences to check on)."""
    present = {folder.name: folder for folder in sequence_folders(root)}
    unknown = sorted(set(only) - set(present))
    if unknown:
        raise DataError(
            f"{root} holds no sequence {', '.join(unknown)}: choose among {', '.join(present)}"
        )
    fit_on = [read_folder(folder) for name, folder in present.items() if not only or name in only]
    if check is None:
        return fit_on, []
    if Path(check).resolve() != Path(root).resolve():
        return fit_on, read_folders(check)
    rest = [read_folder(folder) for name, folder in present.items() if only and name not in only]
    if not rest:
        raise DataError(
            f"all sequences of {root} are fitted on, so none is left to check on: name some of "
            "them with --only, or check on another folder"
        )
    return fit_on, rest


def _follow_all(network: Network, sequences: Many[Sequence], title: str) -> list[Followed]:
    """`follow` of each sequence, under a progress bar."""
    with Progress(transient=True) as progress:
        total = sum(len(sequence) - 1 - Case(sequence).start for sequence in sequences)
        task = progress.add_task(title, total=total)
        return [follow(network, each, lambda: progress.advance(task)) for each in sequences]
