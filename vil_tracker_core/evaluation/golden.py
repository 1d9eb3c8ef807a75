"""Regression: the bundled clips' boxes against golden files, CSV, one line a frame.

The tracker runs on onnxruntime, one thread, float32: its wheels exist for every platform of
the package, and unlike PyTorch it runs the exported graph, which is what flies.

Another CPU rounds otherwise, which moves a box by about 1e-5 px. That alone is harmless, but a
search crop lies on whole pixels: once in some thousand frames such a difference turns a corner
from .49999 to .50001, the crop moves by a pixel, the net sees other values, and the boxes of later
frames part for good, by pixels. No tolerance on such boxes tells another CPU from a fault. So a
run that is compared is *pinned*: where it would cut its crop one pixel beside the golden one, it
takes the golden one. What is left are the differences of single frames, and the bounds on them can
be narrow (`Bounds`); the number of pinned frames is bounded too, since a fault in the rounding
itself would pin many.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from vil_tracker_core import weights
from vil_tracker_core.data.sequence import DataError, Sequence, read_text
from vil_tracker_core.evaluation.bag_sequence import read_bag
from vil_tracker_core.evaluation.cases import Case
from vil_tracker_core.geometry import Box, Crop, FloatArray, Image, crop_motion, iou
from vil_tracker_core.tracking.network import Network, open_network
from vil_tracker_core.tracking.online import (
    Look,
    Track,
    TrackerConfig,
    TrackState,
    step_tracks,
)

CLIPS = ("rendered", "real")
PRESET = "vil_nano"
FRAMES = 60
"""Of each clip, the first included: some seconds of run time, and the tracker is sure in some and
in doubt in others."""
COLUMNS = (
    "frame", "x", "y", "w", "h", "score", "state",
    "sigma_cx", "sigma_cy", "sigma_w", "sigma_h", "crop_x", "crop_y", "crop_side",
)  # fmt: skip
DIGITS = (0, 5, 5, 5, 5, 7, 0, 5, 5, 5, 5, 0, 0, 0)
META_FILE = "golden.json"
Whole = npt.NDArray[np.int64]


class Bounds(NamedTuple):
    """What another CPU may change, and no fault stays within.

    Measured with two sets of weights, pinned, over 59 frames a clip, on x86; the worse of the
    clips, as greatest edge / mean edge (px) / score / sigma / share of pinned frames:

        OpenVINO or PyTorch, float32         5e-5  2e-5  5e-7  1.3e-6  0
        two threads; OpenCV without IPP      0     0     0     0       0
        net's answers off by 1e-5 of each    .008  .002  2e-5  1.4e-4  .02
        bfloat16                             .38   .11   .008  .015    .25
        one grey level in 5 % of the pixels  .06   .02   .001  .002    .08
        Kalman's acceleration 1.1 times      .6    .12   .004  .011    .37
        net's sigma 1.05 times               .6    .14   .012  .065    .59
        boxes half a pixel beside            .57   .50   0     0       .59

    (From the fourth line on, the least of several.) The bounds lie between the third line, 200
    times what other float32 runtimes do, and the fourth. So an image library that decodes or
    resizes to other grey levels is out of bounds too.

    Attributes:
        edge: of any edge of a box in any frame, px.
        mean: of the frames' greatest edge difference, px.
        score: of the score in any frame.
        sigma: of the published standard deviations, as a ratio minus 1.
        pinned: share of frames whose crop lies one pixel beside.
    """

    edge: float = 0.03
    mean: float = 0.01
    score: float = 5e-4
    sigma: float = 1e-3
    pinned: float = 0.06


BOUNDS = Bounds()
SAID = (
    "the greatest difference of a box's edge, px, is",
    "the mean of the frames' greatest edge differences, px, is",
    "the greatest difference of the score is",
    "the greatest relative difference of a standard deviation is",
    "the share of frames whose crop lies a pixel beside is",
)
"""What is said of each field of `Bounds`."""


@dataclass(frozen=True)
class Run:
    """A clip as it was tracked, from the frame after the start on.

    Attributes:
        name: the clip's.
        boxes: (N, 4) x, y, w, h, px.
        scores: (N,).
        states: (N,) of `TrackState`.
        sigmas: (N, 4) published standard deviations of (cx, cy, w, h), px.
        crops: (N, 3) x, y, side of the search crop that the tracker asked for.
    """

    name: str
    boxes: FloatArray = field(repr=False)
    scores: FloatArray = field(repr=False)
    states: Whole = field(repr=False)
    sigmas: FloatArray = field(repr=False)
    crops: Whole = field(repr=False)

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def edges(self) -> FloatArray:
        """(N, 4) left, top, right, bottom."""
        return np.concatenate([self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]], axis=1)


@dataclass(frozen=True)
class Golden:
    """The golden files' content.

    Attributes:
        checksum: SHA-256 (hex) of the weights file that the runs were made with.
        runs: one a clip.
    """

    checksum: str
    runs: dict[str, Run]


class _PinnedTrack(Track):
    """A track that takes the golden crop where its own lies no more than a pixel beside it."""

    pins: Whole | None = None

    def __init__(self, network: Network, frame: Image, box: Box, stamp: float) -> None:
        super().__init__(network, frame, box, stamp, TrackerConfig())
        self.asked: list[tuple[int, int, int]] = []

    def look(self, frame: Image, stamp: float) -> Look:
        before, row = self._crop, len(self.asked)
        look = super().look(frame, stamp)
        asked = (look.crop.x, look.crop.y, look.crop.side)
        self.asked.append(asked)
        if self.pins is None:
            return look
        x, y, side = self.pins[row].tolist()
        if asked == (x, y, side) or np.abs(np.subtract(asked, (x, y, side))).max() > 1:
            return look
        crop = self._crop = self._looked = Crop(x, y, side, look.crop.size)
        motion = crop_motion(before or crop, crop)
        return replace(look, crop=crop, image=crop.cut(frame), motion=motion)


def track_clip(
    network: Network,
    sequence: Sequence,
    frames: int = FRAMES,
    golden: Run | None = None,
    advance: Callable[[], object] = lambda: None,
) -> Run:
    """Runs a net over a clip as `online.OnlineTracker` does.

    Args:
        network: the net.
        sequence: the clip, with truth in its first frame.
        frames: how many of it, the first included.
        golden: pins the run to this one's crops.
        advance: called after each frame.
    """
    case = Case(sequence)
    first, stamps = case.start, sequence.stamps
    track = _PinnedTrack(network, sequence.load(first), case.start_box, float(stamps[first]))
    track.pins = None if golden is None else golden.crops
    results = []
    for index in range(first + 1, min(first + frames, len(sequence))):
        frame = sequence.load(index)
        results += step_tracks(network, [track], frame, float(stamps[index]))
        advance()
    return Run(
        sequence.name,
        np.array([result.box for result in results]),
        np.array([result.score for result in results]),
        np.array([int(result.state) for result in results]),
        np.array([np.sqrt(np.diag(result.covariance)) for result in results]),
        np.array(track.asked),
    )


# --- Comparison -----------------------------------------------------------------------------------


class Difference(NamedTuple):
    """Two runs of one clip; the fields of `Bounds`, and beside them:

    Attributes:
        states: frames with another state, but for those whose score lies at a threshold.
        elsewhere: frames whose crop lies more than one pixel beside.
    """

    edge: float
    mean: float
    score: float
    sigma: float
    pinned: float
    states: int
    elsewhere: int


def difference(golden: Run, run: Run) -> Difference:
    """How far two runs over the same frames are apart; raises DataError for other frames."""
    if len(golden) != len(run):
        raise DataError(
            f"clip {run.name}: {len(run)} frames were tracked, but the golden file has "
            f"{len(golden)}: renew it with `vil-tracker golden --renew`"
        )
    edges = np.abs(golden.edges - run.edges).max(axis=1)
    beside = np.abs(golden.crops - run.crops).max(axis=1)
    config = TrackerConfig()
    at_threshold = np.zeros(len(run), dtype=bool)
    for threshold in (config.doubtful, config.confident):
        at_threshold |= np.abs(golden.scores - threshold) <= BOUNDS.score
    return Difference(
        edge=float(edges.max()),
        mean=float(edges.mean()),
        score=float(np.abs(golden.scores - run.scores).max()),
        sigma=float(np.abs(run.sigmas / golden.sigmas - 1).max()),
        pinned=float((beside == 1).mean()),
        states=int(((golden.states != run.states) & ~at_threshold).sum()),
        elsewhere=int((beside > 1).sum()),
    )


def faults(golden: Run, run: Run) -> list[str]:
    """What of a run lies outside the bounds, a sentence each; empty when all is well."""
    found = difference(golden, run)
    said = [
        f"clip {run.name}: {what} {value:.3g}, more than {bound:g}"
        for what, value, bound in zip(SAID, found, BOUNDS, strict=False)
        if not value <= bound  # NaN is a fault too
    ]
    if found.states:
        first = int(np.flatnonzero(golden.states != run.states)[0])
        was, now = (TrackState(int(each.states[first])).name for each in (golden, run))
        said.append(
            f"clip {run.name}: {found.states} frames have another state, "
            f"the first at row {first}: {now} instead of {was}"
        )
    if found.elsewhere:
        first = int(np.flatnonzero(np.abs(golden.crops - run.crops).max(axis=1) > 1)[0])
        said.append(
            f"clip {run.name}: {found.elsewhere} frames are searched elsewhere, the first at row "
            f"{first}: x, y, side {run.crops[first].tolist()} instead of "
            f"{golden.crops[first].tolist()}"
        )
    return said


# --- Files ----------------------------------------------------------------------------------------


def weights_checksum() -> str:
    """SHA-256 (hex) of the shipped weights file, as `sha256sum` prints it."""
    return hashlib.sha256(weights.shipped(PRESET).read_bytes()).hexdigest()


def write(golden: Golden, folder: Path) -> None:
    """Writes one CSV a clip and `META_FILE`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, run in golden.runs.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            frames = np.arange(1, len(run) + 1)
            numbers = np.column_stack(
                [frames, run.boxes, run.scores, run.states, run.sigmas, run.crops]
            )
            for row in numbers.tolist():
                cells = zip(row, DIGITS, strict=True)
                table.writerow([f"{value:.{digits}f}" for value, digits in cells])
    meta = {"weights": PRESET, "sha256": golden.checksum, "clips": list(golden.runs)}
    (folder / META_FILE).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> Golden:
    """The golden files of a folder; raises DataError, naming the file, where they are not whole."""
    path = folder / META_FILE
    if not path.is_file():
        raise DataError(f"{path} is missing: make it with `vil-tracker golden --renew`")
    try:
        meta = json.loads(read_text(path))
        checksum, names = str(meta["sha256"]), [str(name) for name in meta["clips"]]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path} is damaged ({error!r}): renew it with `vil-tracker golden --renew`"
        ) from None
    return Golden(checksum, {name: _read_run(folder / f"{name}.csv") for name in names})


def _read_run(path: Path) -> Run:
    rows = list(csv.reader(read_text(path).splitlines()))
    try:
        if tuple(rows[0]) != COLUMNS:
            raise ValueError(f"its columns are {','.join(rows[0])}")
        table = np.array(rows[1:], dtype=np.float64)
        if table.shape != (len(rows) - 1, len(COLUMNS)) or not len(table):
            raise ValueError("it has no frames")
    except (IndexError, ValueError) as error:
        raise DataError(
            f"{path} is damaged ({error}): renew it with `vil-tracker golden --renew`"
        ) from None
    whole = table[:, [6, 11, 12, 13]].astype(np.int64)
    return Run(path.stem, table[:, 1:5], table[:, 5], whole[:, 0], table[:, 7:11], whole[:, 1:])


# --- The command ----------------------------------------------------------------------------------


def read_clips(root: Path) -> dict[str, Sequence]:
    """The bundled clips of a checkout; raises DataError where they are not there."""
    for name in CLIPS:
        if not (root / "clips" / name).is_dir():
            raise DataError(
                f"{root / 'clips' / name} is missing: name the repository's folder with --root"
            )
    return {name: read_bag(root / "clips" / name).sequence for name in CLIPS}


def golden_folder(root: Path) -> Path:
    """Where a checkout keeps its golden files."""
    return root / "test" / "golden"


def open_golden_network() -> Network:
    """The net with which golden runs are made."""
    return open_network(PRESET, backend="onnxruntime", precision="float32")


def check_weights(golden: Golden) -> None:
    """Raises DataError where the golden files belong to other weights than the shipped."""
    now = weights_checksum()
    if golden.checksum != now:
        raise DataError(
            f"the golden files belong to weights {golden.checksum[:12]}, but the shipped "
            f"{PRESET} is {now[:12]}: if that is meant, renew them with "
            "`vil-tracker golden --renew`"
        )


def track_clips(
    network: Network, clips: Mapping[str, Sequence], golden: Golden | None = None
) -> dict[str, Run]:
    """`track_clip` of each clip, pinned to the golden runs where they are given; under a progress
    bar."""
    runs = {}
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task("clips", total=len(clips) * (FRAMES - 1))
        for name, sequence in clips.items():
            pins = None if golden is None else golden.runs.get(name)
            runs[name] = track_clip(network, sequence, FRAMES, pins, lambda: progress.advance(task))
    return runs


def check(root: Path) -> tuple[dict[str, Difference], list[str]]:
    """Tracks the clips anew: (differences from the golden runs by clip, what is out of bounds).

    Args:
        root: a checkout.

    Raises:
        DataError: clips or golden files are missing, damaged, or of other weights.
    """
    clips, golden = read_clips(root), read(golden_folder(root))
    check_weights(golden)
    if set(golden.runs) != set(clips):
        raise DataError(
            f"{golden_folder(root)} has clips {', '.join(golden.runs)} instead of "
            f"{', '.join(clips)}: renew it with `vil-tracker golden --renew`"
        )
    runs = track_clips(open_golden_network(), clips, golden)
    said = [line for name, run in runs.items() for line in faults(golden.runs[name], run)]
    return {name: difference(golden.runs[name], run) for name, run in runs.items()}, said


class Change(NamedTuple):
    """What renewing did to a clip.

    Attributes:
        clip: its name.
        overlap: mean overlap with the truth, now.
        before: the same of the old golden run; None where there was none.
        edge, mean: greatest and mean edge difference between the two, px; NaN without an old one.
        states: frames whose state changed.
    """

    clip: str
    overlap: float
    before: float | None
    edge: float
    mean: float
    states: int


def renew(root: Path) -> list[Change]:
    """Writes the golden files anew and says what changed, a clip each.

    Args:
        root: a checkout.
    """
    clips, folder = read_clips(root), golden_folder(root)
    try:
        old = read(folder).runs
    except DataError:  # missing or damaged: this is the remedy
        old = {}
    runs = track_clips(open_golden_network(), clips)
    write(Golden(weights_checksum(), runs), folder)
    return [_change(old.get(name), run, clips[name]) for name, run in runs.items()]


def _change(old: Run | None, run: Run, clip: Sequence) -> Change:
    overlap = mean_overlap(run, clip)
    if old is None or len(old) != len(run):
        return Change(run.name, overlap, None, math.nan, math.nan, len(run))
    found = difference(old, run)
    states = int((old.states != run.states).sum())
    return Change(run.name, overlap, mean_overlap(old, clip), found.edge, found.mean, states)


def mean_overlap(run: Run, sequence: Sequence) -> float:
    """Mean overlap (IoU) with the truth over a run's frames with a visible target."""
    first = Case(sequence).start + 1
    return float(np.nanmean(iou(run.boxes, sequence.boxes[first : first + len(run)])))
