"""From frames to results on a thread of its own: the newest frame wins, services never wait.

Knows nothing of nodes or topics; frames are any objects that a function can decode.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vil_tracker_core.geometry import Box, Image, validate_box
from vil_tracker_core.tracking.multi import MultiTracker
from vil_tracker_core.tracking.network import Network
from vil_tracker_core.tracking.online import TrackerConfig, TrackResult

NS = 1_000_000_000
LONGEST_ID = 64
"""Characters of a track's id; it is sent with every frame."""
FIRST_ROUND = 8
"""Frames of a track's first round of catching up, where it has missed no more."""
GRACE = 0.5
"""Seconds that `Pipeline.close` waits for the frame in hand."""


def stamp_text(ns: int) -> str:
    """Seconds with all nine digits: a float has only some hundreds of ns in these years."""
    return f"{ns // NS}.{ns % NS:09d}"


class Refused(ValueError):
    """A request that cannot be met; the message tells the caller why."""


@dataclass(eq=False)
class Frame:
    """A frame as received. ``message`` is decoded only when it is worked on.

    Attributes:
        stamp_ns: in the camera's clock.
        message: what `Pipeline`'s decoder takes.
        size: (width, height) in px.
        memory: bytes that it takes while it is held.
        replaced: a newer one came before work on it began; counted as dropped.
        arrived: when it was received, by the monotonic clock, seconds.
    """

    stamp_ns: int
    message: Any
    size: tuple[int, int]
    memory: int
    replaced: bool = False
    arrived: float = field(default_factory=time.monotonic)


@dataclass
class TrackInfo:
    """What is known of a track beside its last result."""

    started_ns: int
    frames: int = 0


@dataclass(frozen=True)
class FrameResult:
    """Tracks' results on one frame.

    Attributes:
        frame: the frame.
        image: its pixels, (H, W, 3) BGR; None where no track needed them.
        results, infos: one entry a track.
        processing: how long the work took, seconds.
        dropped: frames since the start that were sent but have not been worked on.
        late: a track that catches up has seen a frame of the past.
    """

    frame: Frame
    image: Image | None
    results: dict[str, TrackResult]
    infos: dict[str, TrackInfo]
    processing: float
    dropped: int = 0
    late: bool = False


@dataclass(frozen=True)
class _Start:
    track_id: str
    frame: Frame
    box: Box


@dataclass
class _Late:
    """A track that follows the frames it has missed, until it can join the others.

    It does so in rounds, each with half as many frames as the one before at most, evenly chosen
    from those missed meanwhile. So it ends even where work is slower than the camera.
    """

    tracks: MultiTracker
    frames: deque[Frame]
    seen_ns: int
    limit: int


class Pipeline:
    """Runs tracks on a worker thread.

    Args:
        network: the net of all tracks.
        config: their thresholds.
        decode: message -> (H, W, 3) BGR; may raise ValueError.
        publish: called on the worker with each frame's results.
        report: called on the worker with a sentence when a frame or a track fails.
        history: seconds of frames to hold for boxes drawn in the past.
        memory: bytes that these frames may take; the newest is held in any case.
        max_tracks: tracks at once.
    """

    def __init__(
        self,
        network: Network,
        config: TrackerConfig,
        decode: Callable[[Any], Image],
        publish: Callable[[FrameResult], None],
        report: Callable[[str], None],
        history: float,
        memory: int,
        max_tracks: int,
    ) -> None:
        self._tracks = MultiTracker(network, config)  # this and _late are the worker's own
        self._late: list[_Late] = []
        self._decode, self._publish, self._report = decode, publish, report
        self._history_ns, self._memory, self._max_tracks = int(history * NS), memory, max_tracks
        self._changed = threading.Condition()
        self._waiting: Frame | None = None
        self._held: deque[Frame] = deque()
        self._held_memory = 0
        self._starts: list[_Start] = []
        self._stops: set[str] = set()
        self._config: TrackerConfig | None = None  # one that the worker has yet to take over
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
                self._held_memory = 0
            self._held.append(frame)
            self._held_memory += frame.memory
            while (
                frame.stamp_ns - self._held[0].stamp_ns > self._history_ns
                or self._held_memory > self._memory
            ) and len(self._held) > 1:
                self._held_memory -= self._held.popleft().memory
            if self._waiting is not None:
                self._waiting.replaced = True
                self._dropped += 1
            self._waiting = frame
            self._changed.notify_all()

    def miss(self, frames: int) -> None:
        """Counts frames that were sent but not received as dropped."""
        with self._changed:
            self._dropped += frames

    def configure(self, config: TrackerConfig) -> None:
        """Gives running and coming tracks other thresholds, from the next frame on."""
        with self._changed:
            self._config = config
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
            frame = self._frame_at(stamp_ns) if stamp_ns else self._held[-1]
            if len(track_id) > LONGEST_ID:
                raise Refused(f"the track id has {len(track_id)} letters, {LONGEST_ID} at most")
            if track_id in self._infos:
                raise Refused(f"track id {track_id!r} is in use")
            if len(self._infos) >= self._max_tracks:
                raise Refused(
                    f"{len(self._infos)} tracks run already (parameter max_tracks): stop one first"
                )
            try:
                box = validate_box(to_box(*frame.size), frame.size)
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
                raise Refused(f"there is no track {track_id[:LONGEST_ID]!r} (running: {running})")
            stopped = [track_id] if track_id else list(self._infos)
            for name in stopped:
                del self._infos[name]
            self._starts = [start for start in self._starts if start.track_id not in stopped]
            self._stops.update(stopped)
            self._changed.notify_all()
            return stopped

    def close(self) -> bool:
        """Ends the worker; all tracks are gone. Nothing is published after this has returned.

        Returns:
            Whether the worker is done. A frame in hand that takes longer than `GRACE` is left to
            end by itself.
        """
        with self._changed:
            self._running = False
            self._changed.notify_all()
        self._thread.join(GRACE)
        return not self._thread.is_alive()

    def _frame_at(self, stamp_ns: int) -> Frame:
        for frame in self._held:
            if frame.stamp_ns == stamp_ns:
                return frame
        first, last = (stamp_text(self._held[at].stamp_ns) for at in (0, -1))
        raise Refused(
            f"no frame with stamp {stamp_text(stamp_ns)} is held; there are {len(self._held)} "
            f"frames from {first} to {last} (parameters init_history, init_memory)"
        )

    # the worker

    def _work(self) -> None:
        worked_ns = -1  # stamp of the last frame that all tracks but late ones have seen
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if not self._running:
                    return
                frame, self._waiting = self._waiting, None
                starts, self._starts = self._starts, []
                stops, self._stops = self._stops, set()
                config, self._config = self._config, None
            self._stop(stops)
            if config:
                for tracks in (self._tracks, *(late.tracks for late in self._late)):
                    tracks.configure(config)
            for start in starts:
                if start.frame is not frame:
                    self._start_on_past(start, worked_ns)
            if frame:
                self._step(frame, [start for start in starts if start.frame is frame])
                worked_ns = frame.stamp_ns
            if self._late:
                self._catch_up(self._late[0], worked_ns)

    def _has_work(self) -> bool:
        asked = self._waiting or self._starts or self._stops or self._config
        return bool(not self._running or asked or self._late)

    def _stop(self, stops: set[str]) -> None:
        for name in stops & set(self._tracks.ids):
            self._tracks.remove(name)
        self._late = [late for late in self._late if not stops & set(late.tracks.ids)]

    def _step(self, frame: Frame, starts: Sequence[_Start]) -> None:
        """Moves all tracks but late ones to a new frame, and starts those whose first it is."""
        if not self._tracks.ids and not starts:
            self._answer(FrameResult(frame, None, {}, {}, 0.0))
            return
        tick = time.monotonic()
        results: dict[str, TrackResult] = {}
        try:
            image = self._decode(frame.message)
            if self._tracks.ids:
                results = self._tracks.update(image, frame.stamp_ns / NS)
        except Exception as error:
            self._report(f"a frame could not be worked on: {error}")
            for start in starts:
                self._give_up(start, error)
            return
        for start in starts:
            results |= self._begin(self._tracks, start, image)
        self._answer(FrameResult(frame, image, results, {}, time.monotonic() - tick))

    def _begin(self, tracks: MultiTracker, start: _Start, image: Image) -> dict[str, TrackResult]:
        """Adds a track; its first result, or none where that failed."""
        try:
            first = tracks.add(start.track_id, image, start.box, start.frame.stamp_ns / NS)
        except Exception as error:
            self._give_up(start, error)
            return {}
        return {start.track_id: first}

    def _give_up(self, start: _Start, error: Exception) -> None:
        self._report(f"track {start.track_id} could not start: {error}")
        with self._changed:
            self._infos.pop(start.track_id, None)

    def _start_on_past(self, start: _Start, worked_ns: int) -> None:
        """Starts a track that joins the others once it has caught up."""
        tick = time.monotonic()
        alone = MultiTracker(self._tracks.network, self._tracks.config)
        try:
            image = self._decode(start.frame.message)
        except Exception as error:
            self._give_up(start, error)
            return
        first = self._begin(alone, start, image)
        if not first:
            return
        taken = time.monotonic() - tick
        self._answer(FrameResult(start.frame, image, first, {}, taken, late=True))
        seen_ns = start.frame.stamp_ns
        missed = self._missed(seen_ns, worked_ns)
        if missed:
            limit = max(len(missed), FIRST_ROUND)
            self._late.append(_Late(alone, deque(missed), seen_ns, limit))
        else:
            self._tracks.adopt(alone)

    def _missed(self, seen_ns: int, worked_ns: int) -> list[Frame]:
        """Held frames that the other tracks have seen and one that has seen ``seen_ns`` has not."""
        with self._changed:
            return [frame for frame in self._held if seen_ns < frame.stamp_ns <= worked_ns]

    def _catch_up(self, late: _Late, worked_ns: int) -> None:
        """One frame of a late track; the others get their turn between any two."""
        frame = late.frames.popleft()
        late.seen_ns = frame.stamp_ns
        tick = time.monotonic()
        try:
            image = self._decode(frame.message)
            results = late.tracks.update(image, frame.stamp_ns / NS)
        except Exception as error:
            self._report(f"a frame could not be worked on: {error}")
        else:
            taken = time.monotonic() - tick
            self._answer(FrameResult(frame, image, results, {}, taken, late=True))
        if late.frames:
            return
        late.limit //= 2
        missed = self._missed(late.seen_ns, worked_ns)
        if missed and late.limit:
            stride = -(-len(missed) // late.limit)
            late.frames.extend(missed[::-stride][::-1])  # the newest is one of them
        else:
            self._late.remove(late)
            self._tracks.adopt(late.tracks)

    def _answer(self, done: FrameResult) -> None:
        """Publishes results of the tracks that have not been stopped meanwhile."""
        with self._changed:
            if not self._running:
                return
            if done.frame.replaced:  # a track that catches up sees it after all
                done.frame.replaced = False
                self._dropped -= 1
            done = replace(done, dropped=self._dropped)
            for name in done.results:
                if name in self._infos:
                    self._infos[name].frames += 1
                    done.infos[name] = TrackInfo(**vars(self._infos[name]))
        for name in done.results.keys() - done.infos.keys():
            del done.results[name]
        try:
            self._publish(done)
        except Exception as error:
            self._report(f"results could not be published: {error}")
