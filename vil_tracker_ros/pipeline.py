"""From frames to results on a thread of its own: the newest frame wins, services never wait.

Knows nothing of nodes or topics; frames are any objects that a function can decode.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vil_tracker_core.geometry import Box, Image, validate_box
from vil_tracker_core.tracking.multi import MultiTracker
from vil_tracker_core.tracking.online import TrackResult

NS = 1_000_000_000
MAX_HELD = 90
"""Frames that are held at most, however long the history is."""


class Refused(ValueError):
    """A request that cannot be met; the message tells the caller why."""


@dataclass(frozen=True)
class Frame:
    """A frame as received. ``message`` is decoded only when it is worked on."""

    stamp_ns: int
    message: Any


@dataclass
class TrackInfo:
    """What is known of a track beside its last result."""

    started_ns: int
    frames: int = 0


@dataclass(frozen=True)
class FrameResult:
    """All tracks' results on one frame, and how long the work took (s)."""

    frame: Frame
    results: dict[str, TrackResult]
    infos: dict[str, TrackInfo]
    processing: float
    dropped: int


@dataclass(frozen=True)
class _Start:
    track_id: str
    frame: Frame
    box: Box


class Pipeline:
    """Runs a `MultiTracker` on a worker thread.

    Args:
        tracker: the tracks; only the worker touches them.
        decode: message -> (H, W, 3) BGR; may raise ValueError.
        size_of: message -> (width, height); may raise ValueError.
        publish: called on the worker with each frame's results.
        report: called on the worker with a sentence when a frame or a track fails.
        history: seconds of frames to hold for boxes drawn in the past.
        max_tracks: tracks at once.
    """

    def __init__(
        self,
        tracker: MultiTracker,
        decode: Callable[[Any], Image],
        size_of: Callable[[Any], tuple[int, int]],
        publish: Callable[[FrameResult], None],
        report: Callable[[str], None],
        history: float,
        max_tracks: int,
    ) -> None:
        self._tracker, self._decode, self._size_of = tracker, decode, size_of
        self._publish, self._report = publish, report
        self._history_ns, self._max_tracks = int(history * NS), max_tracks
        self._changed = threading.Condition()
        self._waiting: Frame | None = None
        self._held: deque[Frame] = deque(maxlen=MAX_HELD)
        self._starts: list[_Start] = []
        self._stops: set[str] = set()
        self._infos: dict[str, TrackInfo] = {}  # accepted tracks, started or about to
        self._running = True
        self._dropped = 0
        self._count = 0
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def offer(self, frame: Frame) -> None:
        """Takes a frame; one that still waits is replaced and counted as dropped."""
        with self._changed:
            if self._held and frame.stamp_ns < self._held[-1].stamp_ns:
                self._held.clear()  # time jumped back: the past is no longer this stream's
            self._held.append(frame)
            while frame.stamp_ns - self._held[0].stamp_ns > self._history_ns:
                self._held.popleft()
            self._dropped += self._waiting is not None
            self._waiting = frame
            self._changed.notify_all()

    def start_track(
        self, to_box: Callable[[int, int], Box], track_id: str, stamp_ns: int
    ) -> tuple[Frame, str]:
        """Accepts a track, or raises Refused. Returns the frame it starts on and the track's id;
        the work follows.

        Args:
            to_box: (width, height) of that frame -> the box in its pixels.
            track_id: a free id, or empty for the pipeline's choice.
            stamp_ns: stamp of the frame that the box was drawn on, 0 for the newest.
        """
        with self._changed:
            if not self._held:
                raise Refused("no image has been received yet")
            frame = self._held[-1]
            if stamp_ns:
                frame = self._frame_at(stamp_ns)
            if track_id in self._infos:
                raise Refused(f"track id {track_id!r} is in use")
            if len(self._infos) >= self._max_tracks:
                raise Refused(
                    f"{len(self._infos)} tracks run already (parameter max_tracks): stop one first"
                )
            try:
                size = self._size_of(frame.message)
                box = validate_box(to_box(*size), size)
            except ValueError as error:
                raise Refused(str(error)) from None
            if not track_id:
                self._count += 1
                while f"track_{self._count}" in self._infos:
                    self._count += 1
                track_id = f"track_{self._count}"
            self._infos[track_id] = TrackInfo(frame.stamp_ns)
            self._starts.append(_Start(track_id, frame, box))
            self._changed.notify_all()
            return frame, track_id

    def stop_track(self, track_id: str) -> list[str]:
        """Ends one track, or all for an empty id; raises Refused where there is none of that id."""
        with self._changed:
            if track_id and track_id not in self._infos:
                running = ", ".join(self._infos) or "none"
                raise Refused(f"there is no track {track_id!r} (running: {running})")
            stopped = [track_id] if track_id else list(self._infos)
            for name in stopped:
                del self._infos[name]
            self._starts = [start for start in self._starts if start.track_id not in stopped]
            self._stops.update(stopped)
            self._changed.notify_all()
            return stopped

    def close(self) -> None:
        """Ends the worker after the frame in hand; all tracks are gone."""
        with self._changed:
            self._running = False
            self._changed.notify_all()
        self._thread.join()

    def _frame_at(self, stamp_ns: int) -> Frame:
        for frame in self._held:
            if frame.stamp_ns == stamp_ns:
                return frame
        first, last = self._held[0].stamp_ns / NS, self._held[-1].stamp_ns / NS
        raise Refused(
            f"no frame with stamp {stamp_ns / NS:.9f} is held; there are {len(self._held)} frames "
            f"from {first:.9f} to {last:.9f} (parameter init_history)"
        )

    def _work(self) -> None:
        worked_ns = -1  # stamp of the last frame that all tracks have seen
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: not self._running or self._waiting or self._starts or self._stops
                )
                if not self._running:
                    return
                frame, self._waiting = self._waiting, None
                starts, self._starts = self._starts, []
                stops, self._stops = self._stops, set()
                held, dropped = list(self._held), self._dropped
            for name in stops:
                if name in self._tracker.ids:
                    self._tracker.remove(name)
            if frame:
                worked_ns = frame.stamp_ns
            for start in starts:
                # the frame in hand is worked on below, with all tracks at once
                missed = [f for f in held if start.frame.stamp_ns < f.stamp_ns <= worked_ns]
                self._begin(start, [f for f in missed if f is not frame])
            if frame and not any(start.frame is frame for start in starts):
                self._step(self._tracker, frame, dropped)

    def _begin(self, start: _Start, later: list[Frame]) -> None:
        """Starts a track on its frame and lets it catch up with the frames received since."""
        alone = MultiTracker(self._tracker.network, self._tracker.config)
        tick = time.monotonic()
        try:
            image = self._decode(start.frame.message)
            first = alone.add(start.track_id, image, start.box, start.frame.stamp_ns / NS)
        except Exception as error:
            self._report(f"track {start.track_id} could not start: {error}")
            with self._changed:
                self._infos.pop(start.track_id, None)
            return
        self._answer(start.frame, {start.track_id: first}, time.monotonic() - tick, 0)
        for frame in later:
            self._step(alone, frame, 0)
        self._tracker.adopt(alone)

    def _step(self, tracker: MultiTracker, frame: Frame, dropped: int) -> None:
        if not tracker.ids:
            self._answer(frame, {}, 0.0, dropped)
            return
        tick = time.monotonic()
        try:
            results = tracker.update(self._decode(frame.message), frame.stamp_ns / NS)
        except Exception as error:
            self._report(f"frame {frame.stamp_ns / NS:.9f} could not be worked on: {error}")
            return
        self._answer(frame, results, time.monotonic() - tick, dropped)

    def _answer(
        self, frame: Frame, results: dict[str, TrackResult], processing: float, dropped: int
    ) -> None:
        with self._changed:
            infos = {}
            for name in results:
                if name in self._infos:
                    self._infos[name].frames += 1
                    infos[name] = TrackInfo(**vars(self._infos[name]))
        kept = {name: result for name, result in results.items() if name in infos}
        self._publish(FrameResult(frame, kept, infos, processing, dropped))
