"""The demo: both bundled clips through DDS and the node, and a report that shows what came out."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage

from vil_tracker_core.evaluation.bags import IMAGE_TOPIC, open_bag
from vil_tracker_core.evaluation.demo_report import ClipRun, FrameRecord, write_report
from vil_tracker_core.geometry import Box
from vil_tracker_ros.conversions import (
    from_bounding_box,
    stamp_ns,
    to_bounding_box,
    to_time,
)
from vil_tracker_ros.msg import Track, TrackArray
from vil_tracker_ros.processes import process
from vil_tracker_ros.srv import InitTrack, StopTrack

CLIPS = ("rendered", "real")
START_TIMEOUT = 60.0
QUIET = 3.0
"""Seconds without a result, after the player has ended, until a clip counts as over."""


class DemoError(RuntimeError):
    """The demo cannot go on; the message says why."""


def clips_folder() -> Path:
    """Where the bundled bags lie: in the installed share folder."""
    from ament_index_python.packages import get_package_share_directory

    return Path(get_package_share_directory("vil_tracker_ros")) / "clips"


@dataclass
class _Arrivals:
    """Times (s, monotonic) at which frames and answers arrived here, by stamp."""

    images: dict[int, float] = field(default_factory=dict)
    answers: dict[int, float] = field(default_factory=dict)
    tracks: dict[int, Track] = field(default_factory=dict)


class Operator(Node):
    """Stands for the person with the ground station: draws the first box, notes the answers."""

    def __init__(self) -> None:
        super().__init__("vil_tracker_demo")
        self.arrivals = _Arrivals()
        self.first_answer: int | None = None
        newest = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.create_subscription(CompressedImage, IMAGE_TOPIC, self._on_image, newest)
        self.create_subscription(TrackArray, "tracks", self._on_tracks, QoSProfile(depth=50))
        self.init_track = self.create_client(InitTrack, "init_track")
        self.stop_track = self.create_client(StopTrack, "stop_track")

    def _on_image(self, message: CompressedImage) -> None:
        self.arrivals.images[stamp_ns(message.header.stamp)] = time.monotonic()

    def _on_tracks(self, message: TrackArray) -> None:
        stamp = stamp_ns(message.header.stamp)
        if self.first_answer is None:
            self.first_answer = stamp
        for track in message.tracks:
            self.arrivals.answers[stamp] = time.monotonic()
            self.arrivals.tracks[stamp] = track


def _spin_until(executor: SingleThreadedExecutor, done, timeout: float, what: str) -> None:
    """Spins until ``done()``; raises DemoError naming ``what`` was awaited after ``timeout`` s."""
    end = time.monotonic() + timeout
    while not done():
        if time.monotonic() > end:
            raise DemoError(f"waited {timeout:g} s for {what}")
        executor.spin_once(timeout_sec=0.05)


def run_clip(executor: SingleThreadedExecutor, operator: Operator, name: str, bag: Path) -> ClipRun:
    """Plays one bag, starts the track on its first frame's truth, and collects every answer."""
    with open_bag(bag) as reader:
        truth = reader.truth()
        frames = {image.stamp: image.frame for image in reader.images()}
    stamps = sorted(frames)
    operator.arrivals, operator.first_answer = _Arrivals(), None
    # the node and the operator both have to hear the first frame
    with process("vil_tracker_ros.bag_player", str(bag), "--subscribers", "2") as player:
        _spin_until(
            executor,
            lambda: operator.first_answer is not None,
            START_TIMEOUT,
            f"the node's first answer to {bag.name}",
        )
        request = InitTrack.Request(track_id=name, stamp=to_time(stamps[0]))
        request.bbox = to_bounding_box(truth[stamps[0]])
        answer = operator.init_track.call_async(request)
        _spin_until(executor, answer.done, 10.0, "the answer of init_track")
        if not answer.result().success:
            raise DemoError(f"init_track refused: {answer.result().message}")
        _spin_until(
            executor,
            lambda: player.poll() is not None,
            60.0 + (stamps[-1] - stamps[0]) / 1e9,
            f"the end of {bag.name}",
        )
        if player.returncode != 0:
            raise DemoError(f"the player of {bag.name} ended with status {player.returncode}")
    quiet = time.monotonic()
    while stamps[-1] not in operator.arrivals.tracks and time.monotonic() - quiet < QUIET:
        executor.spin_once(timeout_sec=0.05)
    stopped = operator.stop_track.call_async(StopTrack.Request())
    _spin_until(executor, stopped.done, 10.0, "the answer of stop_track")
    return ClipRun(
        name, [_record(operator.arrivals, stamp, frames[stamp], truth) for stamp in stamps]
    )


def _record(
    arrivals: _Arrivals, stamp: int, frame: np.ndarray, truth: dict[int, Box]
) -> FrameRecord:
    track, latency = arrivals.tracks.get(stamp), None
    if stamp in arrivals.images and stamp in arrivals.answers:
        latency = arrivals.answers[stamp] - arrivals.images[stamp]
    return FrameRecord(
        stamp=stamp,
        frame=frame,
        truth=truth.get(stamp),
        box=from_bounding_box(track.bbox) if track else None,
        covariance=np.array(track.covariance).reshape(4, 4) if track else None,
        score=track.score if track else None,
        state=track.state if track else None,
        arrived=arrivals.answers.get(stamp),
        latency=latency,
    )


def run(out: Path) -> list[ClipRun]:
    """Starts the node, plays the clips, writes the report."""
    arguments = [
        "--ros-args",
        "-p",
        "image_transport:=compressed",
        "-r",
        f"image:={IMAGE_TOPIC}",
    ]
    rclpy.init()
    operator = Operator()
    executor = SingleThreadedExecutor()
    executor.add_node(operator)
    try:
        with process("vil_tracker_ros.tracker_node", *arguments) as node:
            _spin_until(
                executor,
                lambda: (
                    node.poll() is not None
                    or (
                        operator.init_track.service_is_ready()
                        and operator.count_publishers("tracks") > 0
                        and operator.count_subscribers(IMAGE_TOPIC) > 1
                    )
                ),
                START_TIMEOUT,
                "the node to become active",
            )
            if node.poll() is not None:
                raise DemoError(f"the node ended with status {node.returncode}")
            runs = []
            for name in CLIPS:
                print(f"playing {name} ...", flush=True)
                runs.append(run_clip(executor, operator, name, clips_folder() / name))
    finally:
        operator.destroy_node()
        rclpy.try_shutdown()
    write_report(runs, out)
    return runs


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; the last line sums up the real clip."""
    parser = argparse.ArgumentParser(prog="vil-tracker demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder of the report")
    options = parser.parse_args(argv)
    # a domain of its own, so that no other node on this machine takes part
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    try:
        runs = run(options.out)
    except (DemoError, ValueError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(f"report: {options.out / 'index.html'}")
    for one in runs:
        print(one.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
