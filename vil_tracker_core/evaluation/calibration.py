"""Fits the scale that makes the net's variances honest, and says how honest they then are.

The net gives a variance for each coordinate of its box, and the tracker multiplies it by the square
of a scale (`weights.Calibration`). Trained variances are those of the training's crops; on videos
they are too small, which this corrects by one number a coordinate.

The tracker runs as in production, from the first box on, and the error is taken where the variance
is claimed: between the net's answer and the truth, in units of the search crop, before the Kalman
filter. Only frames count in which the track is not lost and the answer overlaps the truth: an
error there is the net's own. Once the tracker sits on something else, the error is as large as the
picture, whatever the net claims, and no scale is right; the score and the state say that, not the
covariance.

The filter takes the errors of successive frames for independent. They are not: a box that is too
wide stays too wide for a while. So the *published* covariance, the filter's, covers less than the
net's own does, and this scale does not make up for it; both are reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.progress import Progress
from safetensors.torch import load_file

from vil_tracker_core import weights
from vil_tracker_core.data.sequence import (
    DataError,
    Sequence,
    read_folder,
    read_folders,
    sequence_folders,
)
from vil_tracker_core.evaluation import metrics
from vil_tracker_core.evaluation.cases import Case
from vil_tracker_core.geometry import Box, FloatArray, iou
from vil_tracker_core.tracking.network import Network, open_network
from vil_tracker_core.tracking.online import Track, TrackerConfig
from vil_tracker_core.weights import Calibration, Weights

LEVELS = (0.5, 0.9, 0.95)
"""Probabilities of the regions whose coverage is reported."""
ONE_SIGMA = math.erf(1 / math.sqrt(2))
"""0.683, the share of a normal distribution's draws that lie within one standard deviation."""
LEAST_FRAMES = 30
"""With fewer, the quantile of the errors is chance."""
LEAST_OF_A_SEQUENCE = 10
"""A sequence of fewer frames does not count."""

Scale = tuple[float, float, float, float]


@dataclass(frozen=True)
class Followed:
    """A sequence as the tracker followed it, from the frame of the start (row 0) on.

    Attributes:
        name: the sequence's.
        truth, boxes: (N, 4) x, y, w, h in px; the boxes are those that the tracker published.
        covariances: (N, 4, 4) published with them, px^2 of (cx, cy, w, h).
        ratios: (N, 4) error of the net's answer in (cx, cy, w, h) over the standard deviation that
            the net claims without a scale; NaN in frames that do not count.
    """

    name: str
    truth: FloatArray = field(repr=False)
    boxes: FloatArray = field(repr=False)
    covariances: FloatArray = field(repr=False)
    ratios: FloatArray = field(repr=False)

    @property
    def counted(self) -> FloatArray:
        """(M, 4) ratios of the frames that count."""
        return np.asarray(self.ratios[np.isfinite(self.ratios).all(axis=1)])


def follow(
    network: Network, sequence: Sequence, advance: Callable[[], object] = lambda: None
) -> Followed:
    """Runs a net over a sequence as `online.OnlineTracker` does, and keeps what it claims.

    Args:
        network: the net, with whatever scale it has; the ratios do not depend on it but by the
            path that the tracker takes.
        sequence: with truth; tracking starts on the first visible frame.
        advance: called after each frame.

    Raises:
        DataError: no box to start on, or a frame that cannot be read.
    """
    case = Case(sequence)
    first, config = case.start, TrackerConfig()
    stamps, truth = sequence.stamps[first:], sequence.boxes[first:]
    try:
        track = Track(network, sequence.load(first), case.start_box, float(stamps[0]), config)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"sequence {sequence.name} cannot be started: {error}") from None
    boxes, covariances = [track.result.box], [track.result.covariance]
    ratios = np.full((len(truth), 4), np.nan)
    for row in range(1, len(truth)):
        frame = sequence.load(first + row)
        look = track.look(frame, float(stamps[row]))
        (found,), (memory,) = network.step([look.image], [look.memory], [look.motion], [look.trust])
        result = track.learn(frame, found, memory)
        boxes.append(result.box)
        covariances.append(result.covariance)
        answer = look.crop.to_frame(found.unit)
        if not track.lost and iou(answer, truth[row]) > 0:
            claimed = np.sqrt(found.variance) / network.scale
            ratios[row] = (look.crop.to_unit(Box(*truth[row])) - found.unit) / claimed
        advance()
    return Followed(sequence.name, truth, np.array(boxes), np.array(covariances), ratios)


def fit_scale(sequences: Many[FloatArray]) -> Scale:
    """The scale of each coordinate for a sequence that is yet to come.

    In each sequence it is the one that puts 68.3 % of the errors within one sigma. That is the
    share of a normal distribution, so a normal error gets its own standard deviation. Maximum
    likelihood (the root mean square of the ratios) does so too, but errors have heavy tails, and
    there a few frames with the box on half the target would set it for all others.

    Errors within a sequence are alike, those of two sequences are not: a new target brings a level
    of its own. Its variance is, in expectation, the mean of the sequences' variances, so the scale
    is the root mean square of theirs, however many frames each has.

    Args:
        sequences: for each, (M, 4) error over the claimed standard deviation, see
            `Followed.counted`.

    Raises:
        DataError: too few frames, or a coordinate without an error that a scale could fit.
    """
    enough = [ratios for ratios in sequences if len(ratios) >= LEAST_OF_A_SEQUENCE]
    count = sum(map(len, enough))
    if count < LEAST_FRAMES:
        raise DataError(
            f"the scale cannot be fitted on {count} frames in which the target is followed: at "
            f"least {LEAST_FRAMES} are needed, so give more sequences or other weights"
        )
    each = [np.quantile(np.abs(ratios), ONE_SIGMA, axis=0) for ratios in enough]
    scale = [float(value) for value in np.sqrt(np.mean(np.square(each), axis=0))]
    if not all(0 < value < math.inf for value in scale):
        raise DataError(
            f"the errors of (cx, cy, w, h) give the scale {scale}, which is not four positive "
            "numbers: is the truth the tracker's own output?"
        )
    return scale[0], scale[1], scale[2], scale[3]


# --- Coverage -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Regions:
    """How often the truth lies within the regions of a covariance.

    Attributes:
        split: of the data, fit or check.
        scale: with which the tracker ran, old or new.
        claim: one of `CLAIMS`.
        frames: how many.
        centre: (3,) share of frames within the `LEVELS` of the centre's ellipse (cx, cy).
        box: (3,) the same of all four coordinates.
    """

    split: str
    scale: str
    claim: str
    frames: int
    centre: FloatArray
    box: FloatArray


CLAIMS = ("net, counted", "tracker, counted", "tracker, all")
"""Whose covariance, and in the frames that count or in all of them. The first is what was fitted.
The last is the rule of `vil-tracker eval`: every frame with truth
after the start, lost or not."""


def regions(runs: Many[Followed], scale: Scale, split: str, which: str) -> list[Regions]:
    """The coverage of each of `CLAIMS` in runs of a tracker with this scale, frames pooled."""
    net = np.concatenate([run.counted for run in runs]) / np.array(scale)
    squared = {
        CLAIMS[0]: {dims: np.asarray((net[:, :dims] ** 2).sum(axis=1)) for dims in (2, 4)},
        CLAIMS[1]: {dims: _squared(runs, dims, counted=True) for dims in (2, 4)},
        CLAIMS[2]: {dims: _squared(runs, dims, counted=False) for dims in (2, 4)},
    }
    return [
        Regions(
            split,
            which,
            claim,
            len(distances[4]),
            metrics.coverage(distances[2], LEVELS, dims=2),
            metrics.coverage(distances[4], LEVELS, dims=4),
        )
        for claim, distances in squared.items()
    ]


def _squared(runs: Many[Followed], dims: int, counted: bool) -> FloatArray:
    """`metrics.squared_distances` of the published covariances, of all runs."""
    parts = []
    for run in runs:
        truth = np.where(np.isfinite(run.ratios), run.truth, np.nan) if counted else run.truth
        parts.append(metrics.squared_distances(run.boxes, run.covariances, truth, dims))
    return np.concatenate(parts)


# --- The command ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibrated:
    """Weights with a fitted calibration, and what it is worth.

    Attributes:
        weights: the tensors exactly as the file has them, half precision included.
        old: the calibration before.
        regions: coverage by split, scale and claim.
    """

    weights: Weights
    old: Calibration
    regions: list[Regions]


def calibrate(
    source: Path,
    root: Path,
    only: Many[str] = (),
    check: Path | None = None,
    threads: int = 1,
) -> Calibrated:
    """Fits the scale of a weights file on sequences, and measures it there and on others.

    Args:
        source: weights file.
        root: folder of sequences in the generic layout, to fit on.
        only: names of the sequences to fit on; all by default.
        check: folder of sequences to measure on only. May be ``root``: then those that the scale
            was not fitted on.
        threads: CPU threads of the net.

    Raises:
        DataError: sequences that cannot be used or are not there, or too few frames.
        weights.WeightsError: the file cannot be used.
    """
    loaded = weights.load(source)
    fit_on, check_on = _splits(root, only, check)
    network = open_network(loaded, threads=threads, precision="float32")
    runs = _follow_all(network, fit_on, "fit, old scale")
    scale = fit_scale([run.counted for run in runs])
    fitted = _with_scale(loaded, scale, runs)

    old = loaded.calibration.scale
    found = regions(runs, old, "fit", "old")
    if check_on:
        runs = _follow_all(network, check_on, "check, old scale")
        found += regions(runs, old, "check", "old")
    network = open_network(fitted, threads=threads, precision="float32")
    runs = _follow_all(network, fit_on, "fit, new scale")
    found += regions(runs, scale, "fit", "new")
    if check_on:
        runs = _follow_all(network, check_on, "check, new scale")
        found += regions(runs, scale, "check", "new")
    # `weights.load` widens to float32: the file's own tensors go into the new one
    return Calibrated(replace(fitted, tensors=load_file(source)), loaded.calibration, found)


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


def _with_scale(loaded: Weights, scale: Scale, runs: Many[Followed]) -> Weights:
    """The weights with a new calibration, and on what it was fitted in their provenance."""
    frames = {run.name: len(run.counted) for run in runs}
    total = sum(frames.values())
    fitted_on = f"{total} frames of {len(frames)} sequences: {', '.join(frames)}"
    made = {
        "frames": frames,
        "rule": f"{ONE_SIGMA:.1%} of a sequence's errors within one sigma, variances averaged",
        "scale_before": list(loaded.calibration.scale),
    }
    return replace(
        loaded,
        calibration=Calibration(scale, fitted_on),
        provenance={**loaded.provenance, "calibration": made},
    )
