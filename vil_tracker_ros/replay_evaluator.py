"""Follows a bag's target through the running tracker and reports how well that went.

    ros2 launch vil_tracker_ros replay.launch.py bag:=BAG [truth:=TOPIC_OR_FILE] [out:=FOLDER]

starts the tracker, a player and this node. It reads stamps and truth from the bag itself, starts
the track on the first frame with truth, joins the tracker's answers to the truth on the stamp, and
ends with a report when the last frame is answered or the stream has gone quiet.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions

from vil_tracker_core.evaluation.benchmark import Results, Run
from vil_tracker_core.evaluation.cases import BagSource, Case, Cases
from vil_tracker_core.evaluation.peers import TrackerSpec
from vil_tracker_core.evaluation.report import write_report
from vil_tracker_core.evaluation.scoring import TrackerScore, score
from vil_tracker_ros.conversions import from_bounding_box, stamp_ns, to_bounding_box, to_time
from vil_tracker_ros.msg import Track, TrackArray
from vil_tracker_ros.processes import Stop
from vil_tracker_ros.srv import InitTrack

NS = 1_000_000_000
TRACK_ID = "replay"
READY = "ready for the"
"""Said when the bag may be played."""
LIVE, ANSWERED = "live", "live, answered frames only"
"""Names of the two scores; the second exists only where frames were not answered."""


class ReplayError(RuntimeError):
    """The replay cannot be evaluated; the message says why."""


class Replay:
    """The tracker's answers to one pass over a bag, by frame.

    Attributes:
        case: the bag's frames and truth.
        stamps: of its frames, ns.
        foreign: answers to stamps that are not the bag's.
        looped: the bag has begun again; only its first pass counts.
    """

    def __init__(self, case: Case) -> None:
        if case.first_stamp is None:
            raise ReplayError(f"{case.name} has no stamps")
        self.case = case
        offsets = np.rint(case.sequence.stamps * NS).astype(np.int64)
        self.stamps = [case.first_stamp + int(offset) for offset in offsets]
        self.foreign = 0
        self.looped = False
        self._index = {stamp: index for index, stamp in enumerate(self.stamps)}
        self._answers: dict[int, tuple[Track, float]] = {}
        self._last = -1  # frame of the last answer; a track's answers come in order

    @property
    def start_stamp(self) -> int:
        """Of the frame on which the track begins."""
        return self.stamps[self.case.start]

    @property
    def over(self) -> bool:
        """Nothing that still comes would count."""
        return self.looped or len(self.stamps) - 1 in self._answers

    @property
    def unanswered(self) -> list[int]:
        """Frames after the start that have no answer."""
        first = self.case.start + 1
        return [index for index in range(first, len(self.stamps)) if index not in self._answers]

    def take(self, message: TrackArray) -> None:
        """Takes in what the tracker says of a frame."""
        index = self._index.get(stamp_ns(message.header.stamp))
        if index is None:
            self.foreign += 1
            return
        for track in message.tracks:
            if track.id != TRACK_ID or self.looped:
                continue
            self.looped = index < self._last
            if not self.looped:
                self._last = index
                self._answers.setdefault(index, (track, message.processing))

    def run(self) -> Run:
        """The answers as a benchmark's run; a frame without one has NaN."""
        count, start = len(self.stamps), self.case.start
        frame = self.case.sequence.load(start)
        made = Run(
            start,
            (frame.shape[1], frame.shape[0]),
            boxes=np.full((count, 4), np.nan),
            scores=np.full(count, np.nan),
            covariances=np.full((count, 4, 4), np.nan),
            states=np.zeros(count, dtype=np.int8),
            seconds=np.full(count, np.nan),
        )
        made.boxes[start], made.scores[start] = self.case.start_box, 1.0
        for index, (track, processing) in self._answers.items():
            if index > start:
                made.boxes[index] = from_bounding_box(track.bbox)
                made.scores[index] = track.score
                made.covariances[index] = np.reshape(track.covariance, (4, 4))
                made.states[index] = track.state
                made.seconds[index] = processing
        return made

    def results(self) -> Results:
        """One score over all frames, where one without an answer counts as missed; and, where
        there are such, one over the answered frames alone.

        Raises:
            ReplayError: the tracker has answered nothing.
        """
        if not self._answers:
            raise ReplayError(f"the tracker answered no frame of {self.case.name}")
        missing = self.unanswered
        notes = [self.case.note] if self.case.note else []
        if missing:
            notes.append(f"{len(missing)} of {len(self.stamps)} frames were not answered")
        if self.looped:
            notes.append("the bag began again: its first pass is scored")
        if self.foreign:
            notes.append(f"{self.foreign} answers were to frames that are not the bag's")
        whole, run = replace(self.case, note="; ".join(notes)), self.run()
        results = Results(
            Cases(f"live replay of {self.case.name}", [whole]),
            [TrackerSpec(LIVE, "vil")],
            {(LIVE, whole.name): run},
        )
        if missing:
            boxes = self.case.sequence.boxes.copy()
            boxes[missing] = np.nan
            name = f"{whole.name}, answered frames only"
            kept = replace(whole, sequence=replace(self.case.sequence, name=name, boxes=boxes))
            results.cases.cases.append(kept)
            results.trackers.append(TrackerSpec(ANSWERED, "vil"))
            results.runs[ANSWERED, name] = run
        return results


class ReplayEvaluator(Node):
    """Listens to the tracker and starts its track.

    Parameters:
        bag: the bag that is played.
        truth: a topic or a file; the bag's /ground_truth by default.
        image_topic: the bag's only one by default.
        out: folder of the report.
        quiet: seconds without an answer, beyond the bag's own pauses, that end the replay.
        patience: seconds until the first answer has to be there.
    """

    def __init__(self) -> None:
        super().__init__("replay_evaluator")
        values = {
            name: self.declare_parameter(name, default).value
            for name, default in (
                ("bag", ""),
                ("truth", ""),
                ("image_topic", ""),
                ("out", "out/replay"),
                ("quiet", 5.0),
                ("patience", 120.0),
            )
        }
        if not values["bag"]:
            raise ReplayError("the parameter bag is missing: name the bag that is played")
        self.out = Path(values["out"])
        self._patience = values["patience"]
        source = BagSource(
            Path(values["bag"]), values["image_topic"] or None, values["truth"] or None
        )
        (case,) = source.read().cases
        self.replay = Replay(case)
        # a pause in the recording is no end
        self._quiet = values["quiet"] + max(np.diff(case.sequence.stamps), default=0.0)
        self._heard: float | None = None
        self._asked: Any = None
        self._init = self.create_client(InitTrack, "init_track")
        self.create_subscription(TrackArray, "tracks", self._on_tracks, QoSProfile(depth=1000))
        self.get_logger().info(f"{READY} {len(self.replay.stamps)} frames of {case.name}")

    def _on_tracks(self, message: TrackArray) -> None:
        self._heard = time.monotonic()
        self.replay.take(message)
        # the first frame from the start on is held by the tracker for `init_history`
        if self._asked is None and stamp_ns(message.header.stamp) >= self.replay.start_stamp:
            request = InitTrack.Request(
                track_id=TRACK_ID,
                bbox=to_bounding_box(self.replay.case.start_box),
                stamp=to_time(self.replay.start_stamp),
            )
            self._asked = self._init.call_async(request)

    def listen(self, executor: SingleThreadedExecutor, stop: threading.Event) -> None:
        """Returns when the replay is over; raises ReplayError where it does not begin, or ``stop``
        is set before."""
        begin = time.monotonic()
        while not self.replay.over:
            if stop.is_set():
                raise ReplayError("stopped before the end of the bag")
            executor.spin_once(timeout_sec=0.1)
            now = time.monotonic()
            if self._asked is not None and self._asked.done():
                answer = self._asked.result()
                if not answer.success:
                    raise ReplayError(f"init_track was refused: {answer.message}")
            if self._heard is None and now - begin > self._patience:
                raise ReplayError(f"nothing was heard of the tracker for {self._patience:g} s")
            if self._heard is not None and now - self._heard > self._quiet:
                return


def summary(results: Results, scores: list[TrackerScore], replay: Replay) -> str:
    """One line a score."""
    lines = [
        f"{each.name}: AUC {each.auc:.3f}, precision at 20 px {each.p20:.3f}" for each in scores
    ]
    note = results.cases.cases[0].note
    lines.append(note or f"all {len(replay.stamps)} frames were answered")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates one replay; exit status 0 with a report, 2 without."""
    stop = Stop(status=2)
    try:
        rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
        node = ReplayEvaluator()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        node.listen(executor, stop)
        results = node.replay.results()
        scores = score(results)
        page = write_report(results, scores, node.out)
        print(summary(results, scores, node.replay))
        print(f"report: {page}", flush=True)
    except (ReplayError, ValueError, OSError) as error:
        print(f"replay_evaluator: {error}", file=sys.stderr)
        return 2
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
