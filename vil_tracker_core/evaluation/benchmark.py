"""Runs trackers over sequences: in several processes, on several machines, and resumable.

Every finished run is a file of its own below the output folder. Workers and ranks exchange nothing
else, so a killed run loses the sequences in work and no more.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import cv2
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.evaluation.cases import Case, Cases, Source
from vil_tracker_core.evaluation.peers import Tracker, TrackerSpec
from vil_tracker_core.geometry import FloatArray

RUNS, BOXES, RANKS = "runs", "boxes", "ranks"
"""Folders below the output folder: our own files, the toolkits' form, signs of life."""
BEAT_S = 2.0
"""A rank writes a sign of life this often."""
SILENCE_S = 120.0
"""A rank without one for this long is taken for dead."""


class BenchmarkError(ValueError):
    """A run that cannot go on; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """One tracker's pass over one sequence; N frames.

    Attributes:
        start: index of the frame on which it was started; rows before it are NaN.
        frame_size: (width, height) of that frame.
        boxes: (N, 4) x, y, w, h; NaN where it gave none. Row ``start`` is the box given.
        scores: (N,) 0..1, NaN where it gave none.
        covariances: (N, 4, 4) of (cx, cy, w, h) in px^2, NaN where it gave none.
        states: (N,) int8 of `TrackState`, 0 where it gave none.
        seconds: (N,) that ``update`` took; NaN up to ``start``.
    """

    start: int
    frame_size: tuple[int, int]
    boxes: FloatArray = field(repr=False)
    scores: FloatArray = field(repr=False)
    covariances: FloatArray = field(repr=False)
    states: npt.NDArray[np.int8] = field(repr=False)
    seconds: FloatArray = field(repr=False)


def run_case(tracker: Tracker, case: Case, on_frame: Callable[[], object] | None = None) -> Run:
    """Runs a tracker once over a sequence; frames are read one by one and not kept.

    Args:
        tracker: started anew here.
        case: what to track.
        on_frame: called after every frame.

    Raises:
        DataError: a frame cannot be read; the message names sequence, frame and remedy.
        ValueError: the tracker refuses the box.
    """
    count, start = len(case.sequence), case.start
    boxes, scores = np.full((count, 4), np.nan), np.full(count, np.nan)
    covariances, states = np.full((count, 4, 4), np.nan), np.zeros(count, dtype=np.int8)
    seconds = np.full(count, np.nan)
    stamps = case.sequence.stamps.tolist()
    size = (0, 0)
    for index in range(start, count):
        try:
            frame = case.sequence.load(index)
        except (ValueError, OSError) as error:
            raise DataError(
                f"sequence {case.name}, frame {index + 1} of {count}: {error}; "
                "replace it, or take the sequence out"
            ) from None
        if index == start:
            size = frame.shape[1], frame.shape[0]
            tracker.init(frame, case.start_box, stamps[index])
            boxes[index], scores[index] = case.start_box, 1.0
        else:
            began = time.perf_counter()
            answer = tracker.update(frame, stamps[index])
            seconds[index] = time.perf_counter() - began
            if answer.box is not None:
                boxes[index] = answer.box
                scores[index] = 1.0 if answer.score is None else answer.score
            if answer.covariance is not None:
                covariances[index] = answer.covariance
            states[index] = answer.state or 0
        if on_frame:
            on_frame()
    return Run(start, size, boxes, scores, covariances, states, seconds)


# --- Files ----------------------------------------------------------------------------------------


class Store:
    """The files of runs below an output folder. Writes are atomic, so a reader sees all or none.

    Args:
        out: the folder.
        origin: coordinate of the first pixel in the benchmark's text files.
        nested: the text files in GOT-10k's form, a folder a sequence.
    """

    def __init__(self, out: Path, origin: int = 0, nested: bool = False) -> None:
        self.out, self.origin, self.nested = Path(out), origin, nested

    def _run(self, tracker: str, sequence: str) -> Path:
        return self.out / RUNS / tracker / f"{sequence}.npz"

    def _failure(self, tracker: str, sequence: str) -> Path:
        return self.out / RUNS / tracker / f"{sequence}.failed.json"

    def load(self, tracker: str, sequence: str, fingerprint: str) -> Run | None:
        """A finished run; None where there is none, or it is of other weights, code or data."""
        path = self._run(tracker, sequence)
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                if str(arrays["fingerprint"]) != fingerprint:
                    return None
                width, height = arrays["frame_size"].tolist()
                return Run(
                    int(arrays["start"]),
                    (width, height),
                    *(arrays[n] for n in ("boxes", "scores", "covariances", "states", "seconds")),
                )
        except (BadZipFile, EOFError, KeyError, OSError, ValueError):
            return None  # damaged: run it again

    def save(self, tracker: str, sequence: str, run: Run, fingerprint: str) -> None:
        """Keeps a run, also in the toolkits' text form, and forgets that it failed before."""
        self._save_text(tracker, sequence, run)
        path = self._run(tracker, sequence)
        with _replacing(path) as part, part.open("wb") as file:
            np.savez_compressed(file, fingerprint=np.array(fingerprint), **vars(run))
        self._failure(tracker, sequence).unlink(missing_ok=True)

    def _save_text(self, tracker: str, sequence: str, run: Run) -> None:
        """``x,y,w,h`` and seconds, one line a frame; 0,0,0,0 where there is no box, which every
        toolkit takes for overlap 0 (many fail on nan)."""
        boxes = np.nan_to_num(run.boxes + np.array([self.origin, self.origin, 0, 0]), nan=0.0)
        folder = self.out / BOXES / tracker
        files = folder / f"{sequence}.txt", folder / "times" / f"{sequence}_time.txt"
        if self.nested:
            folder = folder / sequence
            files = folder / f"{sequence}_001.txt", folder / f"{sequence}_time.txt"
        with _replacing(files[0]) as part:
            np.savetxt(part, boxes, fmt="%.3f", delimiter=",")
        with _replacing(files[1]) as part:
            np.savetxt(part, np.nan_to_num(run.seconds, nan=0.0), fmt="%.8f")

    def save_failure(self, tracker: str, sequence: str, error: str) -> None:
        """Keeps why a run failed; what an older run left is taken away."""
        self._run(tracker, sequence).unlink(missing_ok=True)
        with _replacing(self._failure(tracker, sequence)) as part:
            part.write_text(json.dumps({"error": error}) + "\n")

    def failure(self, tracker: str, sequence: str, since: float = 0.0) -> str | None:
        """Why a run failed, where that was noted no earlier than ``since`` (a file's time)."""
        path = self._failure(tracker, sequence)
        try:
            if path.stat().st_mtime < since:
                return None
            return str(json.loads(path.read_text())["error"])
        except (KeyError, OSError, ValueError):
            return None


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` when the body succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# --- The benchmark --------------------------------------------------------------------------------


class Job(NamedTuple):
    """One tracker on one sequence, by its place in the source's list."""

    tracker: TrackerSpec
    case: int
    fingerprint: str


@dataclass
class Results:
    """What a benchmark found.

    Attributes:
        cases: as read.
        trackers: in the order asked for.
        runs: (tracker, sequence) -> run.
        failed: (tracker, sequence) -> why there is no run. Sequences that could not be read are
            in ``cases.broken`` instead.
        resumed: how many runs were taken over from before.
    """

    cases: Cases
    trackers: list[TrackerSpec]
    runs: dict[tuple[str, str], Run] = field(default_factory=dict)
    failed: dict[tuple[str, str], str] = field(default_factory=dict)
    resumed: int = 0

    @property
    def faults(self) -> list[str]:
        """A sentence each for all that did not work."""
        said = [f"sequence {name} is left out: {why}" for name, why in self.cases.broken.items()]
        return said + [f"{tracker}: {why}" for (tracker, _), why in self.failed.items()]


def run_benchmark(
    source: Source, trackers: list[TrackerSpec], out: Path, *, workers: int = 1
) -> Results | None:
    """Runs every tracker on every sequence, and keeps each finished run below ``out``.

    Where the environment has a rank, as under `accelerate launch` (RANK and WORLD_SIZE of
    torchrun, or those of the MPI that it starts on CPUs), each rank takes its share of the runs;
    ``out`` must then be one folder for all of them. Rank 0 waits for the others.

    Args:
        source: where the sequences come from.
        trackers: what to run.
        out: folder for the runs; those in it that still hold are not run again.
        workers: processes on this machine (of this rank).

    Returns:
        The results; None on all ranks but 0.

    Raises:
        DataError: no sequence can be read.
        BenchmarkError: a worker process died.
    """
    world = _from_environment(WORLD_NAMES, 1)
    rank = _from_environment(RANK_NAMES, 0) if world > 1 else 0
    with _sign_of_life(Path(out), rank, world) as began:
        cases = source.read()
        store = Store(out, cases.origin, nested=cases.title == "GOT-10k")
        results = Results(cases, trackers)
        # a tracker that cannot be used ends the run before it begins
        worker = _Worker(cases, store, {tracker: tracker.open() for tracker in trackers})
        jobs = list(_jobs(cases, trackers))
        # split before what is done is taken out, so that all ranks split alike at any time
        mine = [job for job in jobs[rank::world] if not _stored(store, cases, job)]
        results.resumed = len(jobs[rank::world]) - len(mine)
        _work_off(source, worker, mine, workers)
        if rank:
            return None
        if world > 1:
            _await_others(worker, jobs, world, began)
    for job in jobs:
        key = job.tracker.name, cases.cases[job.case].name
        run = store.load(*key, job.fingerprint)
        if run is not None:
            results.runs[key] = run
        else:
            results.failed[key] = store.failure(*key) or "the run left no result"
    return results


def _jobs(cases: Cases, trackers: list[TrackerSpec]) -> Iterator[Job]:
    data = [case.fingerprint() for case in _bar(cases.cases, "checking the data")]
    for tracker in trackers:
        own = tracker.fingerprint()
        for index, print_ in enumerate(data):
            yield Job(tracker, index, hashlib.sha256(f"{own} {print_}".encode()).hexdigest())


def _stored(store: Store, cases: Cases, job: Job) -> bool:
    name = cases.cases[job.case].name
    return store.load(job.tracker.name, name, job.fingerprint) is not None


class _Worker:
    """Runs jobs; keeps the opened trackers."""

    def __init__(
        self, cases: Cases, store: Store, opened: dict[TrackerSpec, Tracker] | None = None
    ) -> None:
        self.cases, self.store = cases, store
        self._trackers = opened or {}

    def run(self, job: Job, on_frame: Callable[[], object] | None = None) -> None:
        """Runs a job and keeps its result or its failure; raises nothing but OSError (a full
        disk): one sequence's fault must not end the others."""
        case, name = self.cases.cases[job.case], job.tracker.name
        try:
            if job.tracker not in self._trackers:
                self._trackers[job.tracker] = job.tracker.open()
            run = run_case(self._trackers[job.tracker], case, on_frame)
        except DataError as error:
            self.store.save_failure(name, case.name, str(error))
        except Exception as error:  # trackers are others' code: whatever they raise
            what = str(error).strip() or type(error).__name__
            self.store.save_failure(name, case.name, f"sequence {case.name}: {what}")
            self._trackers.pop(job.tracker, None)  # its state is unknown
        else:
            self.store.save(name, case.name, run, job.fingerprint)


_worker: _Worker
"""Of this process, where it is one of several."""


def _set_up_worker(source: Source, store: Store) -> None:
    global _worker
    cv2.setNumThreads(1)
    _worker = _Worker(source.read(), store)


def _run_in_worker(job: Job) -> int:
    _worker.run(job)
    return job.case


def _work_off(source: Source, here: _Worker, jobs: list[Job], workers: int) -> None:
    """Runs the jobs, in this process or in several."""
    frames = {job: len(here.cases.cases[job.case].sequence) for job in jobs}
    with _progress() as progress:
        bar = progress.add_task("tracking", total=sum(frames.values()), unit="frames")

        def named(job: Job) -> str:
            return f"{job.tracker.name} {here.cases.cases[job.case].name}"

        if workers == 1 or len(jobs) < 2:
            done = 0
            for job in jobs:
                progress.update(bar, description=named(job))
                here.run(job, lambda: progress.advance(bar))
                done += frames[job]
                progress.update(bar, completed=done)
            return
        # spawn: a fork of a process in which torch or OpenCV started threads may hang
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(
                min(workers, len(jobs)), context, _set_up_worker, (source, here.store)
            ) as pool:
                futures = {pool.submit(_run_in_worker, job): job for job in jobs}
                for future in as_completed(futures):
                    future.result()
                    job = futures[future]
                    progress.update(bar, advance=frames[job], description=named(job))
        except BrokenProcessPool:
            raise BenchmarkError(
                "a worker process died (out of memory?); finished sequences are kept: "
                "run the same command again, with fewer --workers"
            ) from None


# --- Ranks ----------------------------------------------------------------------------------------

ENDED = "ended"
RANK_NAMES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
WORLD_NAMES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def _from_environment(names: tuple[str, ...], default: int) -> int:
    """The first of ``names`` that the environment has; the launchers differ in them."""
    return next((int(os.environ[name]) for name in names if name in os.environ), default)


@contextmanager
def _sign_of_life(out: Path, rank: int, world: int) -> Iterator[float]:
    """Touches this rank's file every BEAT_S and notes the end in it; yields its first time, by
    the clock of the folder's own file system."""
    if world == 1:
        yield 0.0
        return
    path = out / RANKS / str(rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            path.touch()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield path.stat().st_mtime
    finally:
        ended.set()
        thread.join()
        path.write_text(ENDED)


class _Ranks:
    """Which ranks are still at work, by their signs of life."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._heard: dict[int, tuple[float, float]] = {}  # the file's time, our time of seeing it

    def alive(self, rank: int) -> bool:
        path = self._folder / str(rank)
        try:
            stamp, ended = path.stat().st_mtime, path.read_text() == ENDED
        except OSError:
            stamp, ended = 0.0, False  # it may be about to start
        if rank not in self._heard or self._heard[rank][0] != stamp:
            self._heard[rank] = stamp, time.monotonic()
        return not ended and time.monotonic() - self._heard[rank][1] < SILENCE_S


def _await_others(here: _Worker, jobs: list[Job], world: int, began: float) -> None:
    """Waits until every job has a result, and runs those of ranks that have died.

    A failure that was noted before this run began may be an older run's: it is tried again too.
    """
    cases, store, ranks = here.cases, here.store, _Ranks(here.store.out / RANKS)

    def missing(job: Job) -> bool:
        name = cases.cases[job.case].name
        failed = store.failure(job.tracker.name, name, since=began) is not None
        return not failed and not _stored(store, cases, job)

    left = [(job, at % world) for at, job in enumerate(jobs) if at % world]
    while left := [(job, owner) for job, owner in left if missing(job)]:
        for job, owner in left:
            if not ranks.alive(owner) and missing(job):
                here.run(job)
        time.sleep(0.2)


# --- Progress -------------------------------------------------------------------------------------


def _progress() -> Progress:
    """On the standard error, since the standard output may carry JSON."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _bar(items: list[Case], description: str) -> Iterator[Case]:
    with _progress() as progress:
        bar = progress.add_task(description, total=len(items), unit="sequences")
        for item in items:
            yield item
            progress.advance(bar)
