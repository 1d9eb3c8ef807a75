"""How long a tracker takes, stage by stage, beside OpenCV's trackers on the same frames.

All trackers see a frame, one after the other, before any sees the next, so that whatever else the
machine does falls on all of them alike. Times are of `time.perf_counter`, warm-up left out.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
from rich.progress import track as progress_of

from vil_tracker_core import weights
from vil_tracker_core.data.flight import render_flight
from vil_tracker_core.evaluation.peers import OPENCV, OpenCvTracker
from vil_tracker_core.geometry import Box, Image
from vil_tracker_core.model.presets import PRESETS
from vil_tracker_core.model.tracker import ViLTracker
from vil_tracker_core.tracking.network import Network, open_network
from vil_tracker_core.tracking.online import Track, TrackerConfig

WIDTH, HEIGHT = 1280, 720
STAGES = ("crop", "forward", "decode", "filter")
"""Cutting and converting the search crop; the network, which ends with the best cell's box;
variances; mapping to the frame, gating, the Kalman filter, and the covariance that is published."""

WARM_UP = 10
INITS = 7


def scene(length: int = 60) -> Callable[[int], tuple[Image, Box]]:
    """Frame number -> a 720p frame and its target's box: a rendered flight of ``length`` frames,
    forwards and backwards without end. A scene that a tracker can follow: one that lost its
    target would be timed on a search crop that has grown."""
    flight = render_flight(2, length, (WIDTH, HEIGHT))
    frames = [flight.load(number) for number in progress_of(range(length), description="rendering")]

    def frame(number: int) -> tuple[Image, Box]:
        at = number % (2 * length - 2)
        at = min(at, 2 * length - 2 - at)
        return frames[at], Box(*flight.boxes[at].tolist())

    return frame


@dataclass
class Timed:
    """What was measured of one tracker.

    Attributes:
        name: what was run.
        threads: CPU threads.
        tracks: targets in one batch; times are of a frame with all of them.
        init_ms: times of `init`.
        update_ms: times of a whole `update`.
        stages_ms: times of its stages, for our own networks.
        opened_mb: growth of the process when it was opened.
    """

    name: str
    threads: int
    tracks: int = 1
    init_ms: list[float] = field(default_factory=list)
    update_ms: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=dict)
    opened_mb: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Medians and 95th percentiles, ms."""

        def of(times: list[float]) -> dict[str, float]:
            median, p95 = np.percentile(times, [50, 95])
            return {"median_ms": round(float(median), 3), "p95_ms": round(float(p95), 3)}

        return {
            "name": self.name,
            "threads": self.threads,
            "tracks": self.tracks,
            "opened_mb": round(self.opened_mb, 1),
            "init": of(self.init_ms),
            "update": of(self.update_ms),
            "stages": {name: of(times) for name, times in self.stages_ms.items()},
        }


class PeerRun:
    """One of OpenCV's trackers under the clock."""

    def __init__(self, kind: str, threads: int) -> None:
        self.timed = Timed(kind, threads)
        self._tracker = OpenCvTracker(kind)

    def init(self, frame: Image, box: Box) -> None:
        tick = perf_counter()
        self._tracker.init(frame, box, 0.0)
        self.timed.init_ms.append(1e3 * (perf_counter() - tick))

    def update(self, frame: Image, stamp: float) -> None:
        tick = perf_counter()
        self._tracker.update(frame, stamp)
        self.timed.update_ms.append(1e3 * (perf_counter() - tick))


class NetworkRun:
    """A network and the tracks it moves, under the clock. As `online.step_tracks`, in stages."""

    def __init__(self, name: str, network: Network, threads: int, tracks: int) -> None:
        label = f"{name} {network.backend} {network.precision}"
        self.timed = Timed(label, threads, tracks)
        self.timed.stages_ms = {stage: [] for stage in STAGES}
        self._network, self._count = network, tracks
        self._tracks: list[Track] = []
        self._forward = (0.0, 0.0)
        inner = network._step

        def forward(*inputs: Any) -> Any:
            started = perf_counter()
            outputs = inner(*inputs)
            self._forward = (started, perf_counter())
            return outputs

        setattr(network, "_step", forward)  # noqa: B010 - mypy: a method is assigned on purpose

    def init(self, frame: Image, box: Box) -> None:
        tick = perf_counter()
        self._tracks = [Track(self._network, frame, box, 0.0, TrackerConfig())]
        self.timed.init_ms.append(1e3 * (perf_counter() - tick))
        for _ in range(self._count - 1):
            self._tracks.append(Track(self._network, frame, box, 0.0, TrackerConfig()))

    def update(self, frame: Image, stamp: float) -> None:
        begin = perf_counter()
        looks = [track.look(frame, stamp) for track in self._tracks]
        found, memories = self._network.step(
            [look.image for look in looks],
            [look.memory for look in looks],
            [look.motion for look in looks],
            [look.trust for look in looks],
        )
        decoded = perf_counter()
        for track, one, memory in zip(self._tracks, found, memories, strict=True):
            track.learn(frame, one, memory)
        end = perf_counter()
        marks = (begin, *self._forward, decoded, end)
        for stage, before, after in zip(STAGES, marks, marks[1:], strict=False):
            self.timed.stages_ms[stage].append(1e3 * (after - before))
        self.timed.update_ms.append(1e3 * (end - begin))


def _loaded(model: str) -> weights.Weights:
    """Weights of a file or preset; random ones of a preset that none are shipped for."""
    if model in PRESETS and not weights.shipped(model).is_file():
        torch.manual_seed(0)
        net = ViLTracker(PRESETS[model])
        return weights.Weights(net.config, net.state_dict())
    return weights.load(weights.find(model))


def resident_mb() -> float:
    """Memory of this process that is in RAM now, MB; its greatest so far where /proc is absent."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True)
class BenchConfig:
    """What to measure: every combination of models, backends, precisions, threads and tracks.

    Attributes:
        models: presets or weights files.
        backends: see `network.BACKENDS`.
        precisions: see `network.PRECISIONS`.
        threads: CPU threads, for the peers too.
        tracks: targets in a batch.
        frames: counted frames of each.
        peers: whether CSRT and KCF run beside them.
    """

    models: tuple[str, ...] = ("vil_nano",)
    backends: tuple[str, ...] = ("auto",)
    precisions: tuple[str, ...] = ("auto",)
    threads: tuple[int, ...] = (1, 2)
    tracks: tuple[int, ...] = (1,)
    frames: int = 200
    peers: bool = True


def _runs(config: BenchConfig, threads: int) -> Iterator[PeerRun | NetworkRun]:
    for kind in ("csrt", "kcf"):
        if config.peers and kind in OPENCV:
            yield PeerRun(kind, threads)
    choices = product(config.models, config.backends, config.precisions, config.tracks)
    for model, backend, precision, tracks in choices:
        before = resident_mb()
        network = open_network(
            _loaded(model), backend=backend, threads=threads, precision=precision
        )
        run = NetworkRun(Path(model).stem, network, threads, tracks)
        run.timed.opened_mb = resident_mb() - before
        yield run


def bench(config: BenchConfig) -> dict[str, Any]:
    """Measures and returns {"machine": …, "memory_mb": …, "runs": [`Timed.summary` …]}."""
    frame_of = scene()
    summaries: list[dict[str, Any]] = []
    memory: list[dict[str, float]] = []
    for threads in config.threads:
        cv2.setNumThreads(threads)
        torch.set_num_threads(threads)
        runs = list(_runs(config, threads))
        first, box = frame_of(0)
        for _ in range(INITS):
            for run in runs:
                run.init(first, box)
        label = f"{threads} thread{'s' if threads > 1 else ''}"
        settled = 0.0
        for number in progress_of(range(1, WARM_UP + config.frames + 1), description=label):
            frame, _ = frame_of(number)
            for run in runs:
                run.update(frame, number / 30)
            if number == WARM_UP:
                settled = resident_mb()
        memory.append({"threads": threads, "first": settled, "last": resident_mb()})
        for run in runs:
            run.timed.init_ms = run.timed.init_ms[1:]
            run.timed.update_ms = run.timed.update_ms[WARM_UP:]
            for times in run.timed.stages_ms.values():
                del times[:WARM_UP]
            summaries.append(run.timed.summary())
    machine = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }
    return {
        "machine": machine,
        "frame": [WIDTH, HEIGHT],
        "frames": config.frames,
        "memory_mb": memory,
        "runs": summaries,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), "")


def against_csrt(result: dict[str, Any]) -> list[float]:
    """Each run's cost of one track as a share of CSRT's with as many threads; NaN without it."""
    csrt = {
        run["threads"]: run["update"]["median_ms"]
        for run in result["runs"]
        if run["name"] == "csrt"
    }
    return [
        run["update"]["median_ms"] / run["tracks"] / csrt.get(run["threads"], math.nan)
        for run in result["runs"]
    ]


def chart(result: dict[str, Any], path: Path) -> None:
    """A bar a run: the median of an update, our own in stages."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    runs = result["runs"]
    labels = [_label(run) for run in runs]
    figure, axes = plt.subplots(figsize=(9, 0.45 * len(runs) + 1.4), layout="constrained")
    for row, run in enumerate(runs):
        if not run["stages"]:
            axes.barh(row, run["update"]["median_ms"], color="0.6")
            continue
        left = 0.0
        for index, stage in enumerate(STAGES):
            width = run["stages"][stage]["median_ms"]
            named = stage if not axes.get_legend_handles_labels()[1].count(stage) else None
            axes.barh(row, width, left=left, color=f"C{index}", label=named)
            left += width
    for row, run in enumerate(runs):
        axes.plot(run["update"]["p95_ms"], row, "|", color="k", markersize=12)
    axes.set_yticks(range(len(runs)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("ms a frame (median; stroke: 95th percentile)")
    axes.set_title(f"update() on {WIDTH}x{HEIGHT} frames, {result['machine']['cpu']}", fontsize=10)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _label(run: dict[str, Any]) -> str:
    tracks = f", {run['tracks']} tracks" if run["tracks"] > 1 else ""
    return f"{run['name']}, {run['threads']} thr{tracks}"


def write(result: dict[str, Any], folder: Path) -> None:
    """bench.json and bench.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(result, indent=1) + "\n")
    chart(result, folder / "bench.png")
