"""Runs the node for a long time on a camera's stream and writes down how it fared.

    python -m vil_tracker_ros.soak [--seconds 600] [--rate 30] [--size 1280x720] [--out out/soak]

The node is a process of its own. This one stands for the camera and for the operator: it sends
frames with a moving target, calls the services once a second, and accounts for every stamp. The
report is OUT/soak.json. Exit status 1: frames are neither answered nor counted as dropped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image

from vil_tracker_core.geometry import Box
from vil_tracker_core.geometry import Image as Pixels
from vil_tracker_ros.conversions import stamp_ns, to_bounding_box, to_image
from vil_tracker_ros.msg import TrackArray
from vil_tracker_ros.processes import process
from vil_tracker_ros.srv import InitTrack, StopTrack

SCENE_FRAMES = 60
"""Different frames; they are sent again and again, and the last leads to the first."""
TARGET = 64
"""Side of the target, px."""
START_TIMEOUT = 120.0
CALL_PERIOD = 1.0
"""Seconds between two calls of a service."""
SETTLING_NS = 1_000_000_000
"""After a second track's end, until frames count as those of one track alone."""
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


class SoakError(RuntimeError):
    """The run cannot go on; the message says why."""


@dataclass
class Report:
    """What came of a run. Times in ms, memory in MB (resident, the node's).

    ``latency`` is of all frames, ``alone`` of those with one track before which there was none with
    two for a second.
    """

    seconds: float
    rate: float
    size: tuple[int, int]
    sent: int
    answered: int
    dropped: int
    failed: int
    unaccounted: int
    latency_p50: float
    latency_p99: float
    latency_max: float
    alone_p50: float
    alone_p99: float
    processing_p50: float
    added_p50: float
    added_p99: float
    call_p50: float
    call_max: float
    cpu: float
    memory_start: float
    memory_end: float
    memory_max: float
    threads_start: int
    threads_end: int

    def summary(self) -> str:
        return (
            f"{self.sent} frames in {self.seconds:.0f} s: {self.answered} answered, "
            f"{self.dropped} dropped, {self.failed} failed, {self.unaccounted} unaccounted for\n"
            f"stamp to detection: {self.latency_p50:.1f} ms median, {self.latency_p99:.1f} ms p99; "
            f"with one track alone {self.alone_p50:.1f} and {self.alone_p99:.1f} ms\n"
            f"work {self.processing_p50:.1f} ms median, from arrival in the node to detection "
            f"{self.added_p50:.1f} ms median and {self.added_p99:.1f} ms p99 beyond it\n"
            f"calls: {self.call_p50:.1f} ms median, {self.call_max:.1f} ms at most\n"
            f"node: {self.cpu:.0f} % of a core, {self.memory_start:.0f} MB at first, "
            f"{self.memory_end:.0f} MB at last, {self.threads_start} and {self.threads_end} threads"
        )


def scene(size: tuple[int, int]) -> tuple[list[Pixels], list[Box]]:
    """Frames (H, W, 3) of a textured square that circles over a textured ground, and its boxes."""
    width, height = size
    random = np.random.default_rng(0)

    def texture(w: int, h: int) -> Pixels:
        coarse = random.integers(0, 255, (h // 8 + 1, w // 8 + 1, 3), dtype=np.uint8)
        return np.asarray(cv2.resize(coarse, (w, h)), dtype=np.uint8)

    ground, target = texture(width, height) // 2, texture(TARGET, TARGET) // 2 + 127
    frames, boxes = [], []
    for number in range(SCENE_FRAMES):
        angle = 2 * math.pi * number / SCENE_FRAMES
        x = round(width / 2 - TARGET / 2 + width / 8 * math.cos(angle))
        y = round(height / 2 - TARGET / 2 + height / 8 * math.sin(angle))
        frame = ground.copy()
        frame[y : y + TARGET, x : x + TARGET] = target
        frames.append(frame)
        boxes.append(Box(x, y, TARGET, TARGET))
    return frames, boxes


@dataclass(frozen=True)
class Usage:
    """What the kernel says of a process: MB resident, threads, seconds of CPU."""

    memory: float
    threads: int
    cpu: float

    @classmethod
    def of(cls, pid: int) -> Usage:
        # the name in the second field may hold blanks
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / TICKS
        return cls(int(fields[21]) * PAGE / 1e6, int(fields[17]), cpu)


class Flight(Node):
    """Camera and operator of a run."""

    def __init__(self, rate: float, size: tuple[int, int]) -> None:
        super().__init__("vil_tracker_soak")
        self.rate = rate
        frames, self.boxes = scene(size)
        self._images = [to_image(frame, Image().header) for frame in frames]
        for image in self._images:
            image.header.frame_id = "camera"
        self.sent: list[int] = []
        self.answers: dict[int, TrackArray] = {}
        self.arrivals: dict[int, float] = {}  # stamp -> seconds from stamp to arrival here
        self.dropped = 0
        self.failed = 0
        self.calls: list[float] = []
        self._camera = self.create_publisher(Image, "image", QoSProfile(depth=10))
        self.create_subscription(TrackArray, "tracks", self._on_tracks, QoSProfile(depth=1000))
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.init_track = self.create_client(InitTrack, "init_track")
        self._stop_track = self.create_client(StopTrack, "stop_track")
        self._set_parameters = self.create_client(SetParameters, "vil_tracker/set_parameters")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)

    def _on_tracks(self, message: TrackArray) -> None:
        stamp = stamp_ns(message.header.stamp)
        now = self.get_clock().now().nanoseconds
        self.answers[stamp] = message
        self.arrivals.setdefault(stamp, (now - stamp) / 1e9)
        self.dropped = message.dropped

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for item in message.status[0].values:
            if item.key == "errors":
                self.failed = int(item.value)

    def ready(self) -> bool:
        """The node is active and its services can be called."""
        clients = self.init_track, self._stop_track, self._set_parameters
        heard = self.count_subscribers("image") > 0
        return heard and all(client.service_is_ready() for client in clients)

    def spin(self, seconds: float) -> None:
        """Handles what arrives for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)

    def send(self) -> int:
        """Publishes the next frame with the present as its stamp; returns that in ns."""
        image = self._images[len(self.sent) % SCENE_FRAMES]
        now = self.get_clock().now()
        image.header.stamp = now.to_msg()
        self.sent.append(now.nanoseconds)
        self._camera.publish(image)
        return now.nanoseconds

    def send_until_answered(self) -> int:
        """Sends frames at the run's rate until the newest is answered; returns its stamp."""
        end = time.monotonic() + START_TIMEOUT
        while True:
            stamp = self.send()
            patience = time.monotonic() + 2.0
            while time.monotonic() < patience:
                self.spin(1 / self.rate)
                if stamp in self.answers:
                    return stamp
            if time.monotonic() > end:
                raise SoakError(f"no frame was answered for {START_TIMEOUT:g} s")

    def start_track(self, track_id: str, box: Box) -> Any:
        request = InitTrack.Request(track_id=track_id, bbox=to_bounding_box(box))
        return self._timed(self.init_track, request)

    def call(self, number: int) -> None:
        """One of the calls that a flight may see: a second track comes and goes, a threshold
        changes."""
        box = self.boxes[len(self.sent) % SCENE_FRAMES]
        if number % 3 == 0:
            self.start_track("second", box)
        elif number % 3 == 1:
            self._timed(self._stop_track, StopTrack.Request(track_id="second"))
        else:
            value = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=0.5)
            change = Parameter(name="patience", value=value)
            self._timed(self._set_parameters, SetParameters.Request(parameters=[change]))

    def _timed(self, client: Any, request: Any) -> Any:
        asked = time.monotonic()
        future = client.call_async(request)
        future.add_done_callback(lambda _: self.calls.append(time.monotonic() - asked))
        return future


def fly(flight: Flight, pid: int, seconds: float) -> Report:
    """The run itself: frames at fixed times, then the account."""
    flight.send_until_answered()
    base = len(flight.sent)
    dropped_before = flight.dropped
    started = flight.start_track("target", flight.boxes[(base - 1) % SCENE_FRAMES])
    begin = time.monotonic()
    usages: list[Usage] = []
    for number in range(round(seconds * flight.rate)):
        if (early := begin + number / flight.rate - time.monotonic()) > 0:
            flight.spin(early)
        else:
            flight.spin(0.001)  # late: the camera does not wait, but answers are heard
        flight.send()
        if time.monotonic() - begin >= len(usages) * CALL_PERIOD:
            flight.call(len(usages))
            usages.append(Usage.of(pid))
    taken = time.monotonic() - begin
    flight.send_until_answered()  # then nothing sent before it is still on its way
    flight.spin(2.5)  # and the diagnostics have said so
    if not started.done() or not started.result().success:
        raise SoakError("init_track was refused or not answered")
    return _account(flight, usages, taken, base, dropped_before)


def _alone(stamps: list[int], tracks: list[int]) -> list[int]:
    """The frames, by number, with one track at most, and none with more in the second before."""
    busy = -SETTLING_NS
    found = []
    for number, (stamp, count) in enumerate(zip(stamps, tracks, strict=True)):
        if count > 1:
            busy = stamp
        elif stamp - busy >= SETTLING_NS:
            found.append(number)
    return found


def _account(
    flight: Flight, usages: list[Usage], taken: float, base: int, dropped_before: int
) -> Report:
    sent = flight.sent[base:]
    answered = [stamp for stamp in sent if stamp in flight.answers]
    if not answered or not flight.calls:
        raise SoakError("the node answered no frame, or no call")
    dropped = flight.dropped - dropped_before
    latency = np.array([flight.arrivals[stamp] for stamp in answered]) * 1e3
    alone = latency[_alone(answered, [len(flight.answers[stamp].tracks) for stamp in answered])]
    if not len(alone):
        raise SoakError(f"{taken:.0f} s are too short to see one track alone: take 4 at least")
    processing = np.array([flight.answers[stamp].processing for stamp in answered]) * 1e3
    added = np.array([flight.answers[stamp].in_node for stamp in answered]) * 1e3 - processing
    calls = np.array(flight.calls) * 1e3
    # the ring of held frames fills up at first
    settled, last = usages[len(usages) // 4 :], usages[-max(len(usages) // 10, 1) :]
    return Report(
        seconds=taken,
        rate=flight.rate,
        size=(flight._images[0].width, flight._images[0].height),
        sent=len(sent),
        answered=len(answered),
        dropped=dropped,
        failed=flight.failed,
        unaccounted=len(sent) - len(answered) - dropped - flight.failed,
        latency_p50=float(np.median(latency)),
        latency_p99=float(np.percentile(latency, 99)),
        latency_max=float(latency.max()),
        alone_p50=float(np.median(alone)),
        alone_p99=float(np.percentile(alone, 99)),
        processing_p50=float(np.median(processing)),
        added_p50=float(np.median(added)),
        added_p99=float(np.percentile(added, 99)),
        call_p50=float(np.median(calls)),
        call_max=float(calls.max()),
        cpu=100 * (usages[-1].cpu - usages[0].cpu) / taken,
        memory_start=float(np.median([u.memory for u in settled[: max(len(settled) // 10, 1)]])),
        memory_end=float(np.median([u.memory for u in last])),
        memory_max=max(u.memory for u in usages),
        threads_start=settled[0].threads,
        threads_end=last[-1].threads,
    )


def run(seconds: float, rate: float, size: tuple[int, int], parameters: Sequence[str]) -> Report:
    """Starts the node with these ``NAME:=VALUE`` and flies.

    Raises:
        SoakError: the node does not start, ends, or answers nothing.
    """
    arguments = [part for value in parameters for part in ("-p", value)]
    rclpy.init(args=[])  # the command line is not for ROS to read
    flight = Flight(rate, size)
    try:
        with process("vil_tracker_ros.tracker_node", "--ros-args", *arguments) as node:
            end = time.monotonic() + START_TIMEOUT
            while not flight.ready():
                if node.poll() is not None:
                    raise SoakError(f"the node ended with status {node.returncode}")
                if time.monotonic() > end:
                    raise SoakError(f"waited {START_TIMEOUT:g} s for the node to become active")
                flight.spin(0.1)
            report = fly(flight, node.pid, seconds)
            if node.poll() is not None:
                raise SoakError(f"the node ended with status {node.returncode}")
            return report
    finally:
        flight.destroy_node()
        rclpy.try_shutdown()


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    size = int(width), int(height)
    if min(size) < 2 * TARGET:
        raise argparse.ArgumentTypeError(f"{text} is smaller than {2 * TARGET}x{2 * TARGET}")
    return size


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="soak", description="Runs the node for long on a camera's stream and reports."
    )
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=30.0, help="frames a second")
    parser.add_argument("--size", type=_size, default=(1280, 720), metavar="WxH")
    parser.add_argument("--out", type=Path, default=Path("out/soak"), help="folder of the report")
    parser.add_argument(
        "--param", action="append", default=[], metavar="NAME:=VALUE", help="a node's parameter"
    )
    options = parser.parse_args(argv)
    # a domain of its own, so that no other node on this machine takes part
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    try:
        report = run(options.seconds, options.rate, options.size, options.param)
    except (SoakError, OSError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.json").write_text(json.dumps(asdict(report), indent=1) + "\n")
    print(report.summary())
    print(f"report: {options.out / 'soak.json'}")
    return int(report.unaccounted != 0)


if __name__ == "__main__":
    sys.exit(main())
