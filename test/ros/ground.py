"""The ground station of the tests: publishes frames, calls services, keeps what comes back."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2D, Detection2DArray

from vil_tracker_core.geometry import Box
from vil_tracker_ros.conversions import stamp_ns, to_bounding_box, to_time
from vil_tracker_ros.msg import TrackArray
from vil_tracker_ros.srv import InitTrack, StopTrack

NODE = "vil_tracker_ros.tracker_node"
PATIENCE = 120.0  # s; never slept, only waited for at most
BOX = Box(50, 40, 30, 20)


class Ground(Node):
    """Hears all that the tracker says and stands for camera and operator."""

    def __init__(self) -> None:
        super().__init__("ground")
        self.detections: list[Detection2D] = []
        self.arrays: list[Detection2DArray] = []
        self.tracks: list[TrackArray] = []
        self.diagnostics: list[DiagnosticArray] = []
        many = QoSProfile(depth=200)
        self.create_subscription(Detection2D, "detection", self.detections.append, many)
        self.create_subscription(Detection2DArray, "detections", self.arrays.append, many)
        self.create_subscription(TrackArray, "tracks", self.tracks.append, many)
        self.create_subscription(DiagnosticArray, "/diagnostics", self.diagnostics.append, many)
        self.image = self.create_publisher(Image, "image", QoSProfile(depth=10))
        self.init = self.create_client(InitTrack, "init_track")
        self.stop = self.create_client(StopTrack, "stop_track")
        self.executor_ = SingleThreadedExecutor()
        self.executor_.add_node(self)

    def until(self, condition: Callable[[], Any], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"waited {PATIENCE:g} s for {what}"
            self.executor_.spin_once(timeout_sec=0.02)

    def call(self, client: Any, request: Any) -> Any:
        self.until(client.service_is_ready, "a service")
        future = client.call_async(request)
        self.until(future.done, "an answer")
        return future.result()

    def until_active(self) -> None:
        """The node listens to `image` and its results are heard here."""
        self.until(lambda: self.count_subscribers("image") > 0, "the node to listen")
        self.until(lambda: self.count_publishers("tracks") > 0, "the node's publisher")

    def send(self, number: int, frame: np.ndarray | None = None, **changed: Any) -> int:
        """Publishes one frame; returns its stamp in ns."""
        if frame is None:
            frame = np.full((120, 160, 3), 90, dtype=np.uint8)
            frame[40:60, 50:80] = (30, 60, 200)
        stamp = (number + 1) * 100_000_000
        message = Image(
            height=frame.shape[0],
            width=frame.shape[1],
            encoding="bgr8",
            step=3 * frame.shape[1],
            data=frame.tobytes(),
        )
        message.header.stamp, message.header.frame_id = to_time(stamp), "camera"
        for name, value in changed.items():
            setattr(message, name, value)
        self.image.publish(message)
        return stamp

    def send_first(self, number: int) -> int:
        """Publishes one frame again and again until it is answered; returns its stamp in ns.

        Each side finds the other on its own: a frame sent when the node's subscription is known
        here may still be lost, since the node need not know this publisher yet.
        """
        end = time.monotonic() + PATIENCE
        while True:
            stamp = self.send(number)
            again = time.monotonic() + 1.0
            while time.monotonic() < again:
                if self.answered(stamp):
                    return stamp
                self.executor_.spin_once(timeout_sec=0.02)
            assert time.monotonic() < end, f"waited {PATIENCE:g} s for the first frame"

    def answered(self, stamp: int) -> bool:
        """The node has sent its last message about a frame."""
        return any(stamp_ns(tracks.header.stamp) == stamp for tracks in self.tracks)

    def send_and_wait(self, number: int, **changed: Any) -> TrackArray:
        """Publishes one frame and returns what the node says of it."""
        stamp = self.send(number, **changed)
        self.until(lambda: self.answered(stamp), f"frame {number}")
        return next(t for t in reversed(self.tracks) if stamp_ns(t.header.stamp) == stamp)

    def status(self, condition: Callable[[dict[str, str]], Any] = bool) -> dict[str, str]:
        """The next diagnostics that meet a condition: its values, and its ``message`` and
        ``level``."""
        self.diagnostics.clear()
        found: list[dict[str, str]] = []

        def arrived() -> bool:
            while self.diagnostics:
                status = self.diagnostics.pop(0).status[0]
                values = {item.key: item.value for item in status.values}
                values |= {"message": status.message, "level": str(status.level[0])}
                if condition(values):
                    found.append(values)
            return bool(found)

        self.until(arrived, "such diagnostics")
        return found[0]


def request(box: Box = BOX, **changed: Any) -> InitTrack.Request:
    return InitTrack.Request(bbox=to_bounding_box(box), **changed)


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python module as a process, ended on leaving."""
    child = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
        try:
            child.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()


def ros_arguments(*parameters: str) -> list[str]:
    return ["--ros-args", *(part for value in parameters for part in ("-p", value))]


def node(*parameters: str) -> Any:
    """The tracker as a process."""
    return running(NODE, *ros_arguments(*parameters))


@contextmanager
def together(*parameters: str) -> Iterator[tuple[Ground, Any]]:
    """Ground station and tracker in this process, on one executor: `Ground.until` runs both.

    They still talk over DDS. The tracker is neither configured nor active.
    """
    from vil_tracker_ros.tracker_node import TrackerNode

    rclpy.init(args=ros_arguments(*parameters))
    ground = Ground()
    tracker = TrackerNode()
    ground.executor_.add_node(tracker)
    try:
        yield ground, tracker
    finally:
        tracker.stop_working()
        tracker.destroy_node()
        ground.destroy_node()
        rclpy.shutdown()
