"""The bag player as a process of its own; a subscription in this process hears it over DDS."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")

from rclpy.context import Context  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from rosbags.rosbag2 import StoragePlugin, Writer  # noqa: E402
from rosbags.typesys import get_types_from_msg  # noqa: E402
from sensor_msgs.msg import CompressedImage  # noqa: E402
from vision_msgs.msg import Detection2D  # noqa: E402

from vil_tracker_core.data.sequence import Sequence  # noqa: E402
from vil_tracker_core.evaluation import bags  # noqa: E402
from vil_tracker_core.evaluation.bags import NS, make_bag, open_bag  # noqa: E402

COUNT = 20
TIMEOUT = 60.0
IMAGES = "/camera/image/compressed"
DDS = {
    "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
    "FASTRTPS_DEFAULT_PROFILES_FILE": os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"],
}


def make_sequence(seconds: float = 1.0) -> Sequence:
    boxes = np.array([[10.0 + i, 20.0, 12.0, 9.0] for i in range(COUNT)])
    boxes[3] = np.nan
    stamps = np.linspace(0.0, seconds, COUNT)
    return Sequence("car", boxes, stamps, lambda i: np.full((48, 64, 3), 10 * i, np.uint8))


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    make_bag(make_sequence(), tmp_path / "flight")
    return tmp_path / "flight"


class Listener:
    """Collects the messages of topics, in the order in which they come."""

    def __init__(self, context: Context) -> None:
        self.node = rclpy.create_node("listener", context=context)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.heard: dict[str, list[Any]] = {}

    def listen(self, topic: str, kind: type, reliability: ReliabilityPolicy) -> None:
        self.heard[topic] = []
        qos = QoSProfile(depth=2 * COUNT, reliability=reliability)
        self.node.create_subscription(kind, topic, self.heard[topic].append, qos)

    def spin_until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + TIMEOUT
        while not done():
            assert time.monotonic() < end, {name: len(got) for name, got in self.heard.items()}
            self.executor.spin_once(timeout_sec=0.05)

    def stamps(self, topic: str) -> list[int]:
        headers = [message.header.stamp for message in self.heard[topic]]
        return [stamp.sec * NS + stamp.nanosec for stamp in headers]


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    for name, value in DDS.items():
        monkeypatch.setenv(name, value)
    context = Context()
    rclpy.init(context=context)
    heard = Listener(context)
    yield heard
    heard.executor.shutdown()
    heard.node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.fixture
def player() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a player; one that still runs when the test ends is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "vil_tracker_ros.bag_player", *map(str, arguments)],
            env=os.environ | DDS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("reliability", [ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT])
def test_every_message_arrives_once_in_order_with_its_stamp(
    bag: Path, listener: Listener, player: Any, reliability: ReliabilityPolicy
) -> None:
    listener.listen(IMAGES, CompressedImage, reliability)
    listener.listen("/ground_truth", Detection2D, reliability)
    process = player(bag)
    listener.spin_until(lambda: process.poll() is not None)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert out.startswith(f"played {bag}: {2 * COUNT - 1} messages in ")
    assert out.endswith(" s at rate 1\n")
    with open_bag(bag) as reader:
        images = list(reader.images())
        truth = reader.truth()
    listener.spin_until(lambda: len(listener.heard[IMAGES]) >= COUNT)
    assert listener.stamps(IMAGES) == [image.stamp for image in images]
    assert [bytes(message.data) for message in listener.heard[IMAGES]] == [
        image.jpeg for image in images
    ]
    assert {message.header.frame_id for message in listener.heard[IMAGES]} == {"camera"}
    assert listener.stamps("/ground_truth") == list(truth)
    for message, box in zip(listener.heard["/ground_truth"], truth.values(), strict=True):
        centre = message.bbox.center.position
        assert (centre.x, centre.y) == (box.cx, box.cy)
        assert (message.bbox.size_x, message.bbox.size_y) == (box.w, box.h)


def test_rate_shortens_a_long_bag(tmp_path: Path, listener: Listener, player: Any) -> None:
    """An hour of recording is over before the time-out, and nothing is left out."""
    make_bag(make_sequence(seconds=3600.0), tmp_path / "hour", storage="sqlite3")
    listener.listen(IMAGES, CompressedImage, ReliabilityPolicy.RELIABLE)
    process = player(tmp_path / "hour", "--rate", 3600)
    listener.spin_until(lambda: process.poll() is not None)
    assert process.communicate()[0].endswith(" s at rate 3600\n")
    listener.spin_until(lambda: len(listener.heard[IMAGES]) >= COUNT)
    assert len(listener.heard[IMAGES]) == COUNT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_loop_plays_on_until_a_signal(
    bag: Path, listener: Listener, player: Any, number: signal.Signals
) -> None:
    listener.listen(IMAGES, CompressedImage, ReliabilityPolicy.RELIABLE)
    process = player(bag, "--loop", "--rate", 4)
    listener.spin_until(lambda: len(listener.heard[IMAGES]) >= COUNT + 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, err) == (130, "")
    assert out.startswith(f"stopped {bag}: ")
    assert out.count("\n") == 1
    with open_bag(bag) as reader:
        stamps = [image.stamp for image in reader.images()]
    assert listener.stamps(IMAGES)[: COUNT + 3] == stamps + stamps[:3]


def test_a_signal_ends_the_wait_for_subscriptions(
    bag: Path, listener: Listener, player: Any
) -> None:
    process = player(bag, "--wait", 600)
    listener.spin_until(lambda: listener.node.count_publishers(IMAGES) > 0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert out.startswith(f"stopped {bag}: 0 messages")
    assert err == ""


def test_only_the_named_topics_are_played(bag: Path, listener: Listener, player: Any) -> None:
    listener.listen("/ground_truth", Detection2D, ReliabilityPolicy.RELIABLE)
    # Without an image topic the player does not wait, hence --loop: nothing is heard for sure
    # in the first pass.
    process = player(bag, "--loop", "--topics", "/ground_truth")
    listener.spin_until(lambda: len(listener.heard["/ground_truth"]) > COUNT)
    assert listener.node.count_publishers(IMAGES) == 0
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT)


def test_without_a_subscription_it_says_so_and_plays_on(bag: Path, player: Any) -> None:
    process = player(bag, "--wait", 0, "--rate", 100)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    assert err == f"bag_player: no subscription to {IMAGES} after 0 s: playing on\n"
    assert out.startswith(f"played {bag}: {2 * COUNT - 1} messages")


def test_types_that_are_not_installed_are_skipped(tmp_path: Path, player: Any) -> None:
    store = bags.typestore()
    kind = "no_such_msgs/msg/Reading"
    if kind not in store.types:
        store.register(get_types_from_msg("float64 value\n", kind))
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        odd = writer.add_connection("/odd", kind, typestore=store)
        text = writer.add_connection("/text", "std_msgs/msg/String", typestore=store)
        reading, string = store.types[kind], store.types["std_msgs/msg/String"]
        writer.write(odd, 1, store.serialize_cdr(reading(value=1.0), kind))
        message = store.serialize_cdr(string(data="hello"), "std_msgs/msg/String")
        writer.write(text, 2, message)
    out, err = player(tmp_path / "bag").communicate(timeout=TIMEOUT)
    assert err == f"bag_player: skipping /odd: its message type {kind} is not installed\n"
    assert out.startswith(f"played {tmp_path / 'bag'}: 1 messages")


def test_a_bag_that_cannot_be_played_is_one_line_and_exit_code_2(
    bag: Path, tmp_path: Path, player: Any
) -> None:
    cut = tmp_path / "cut.mcap"
    cut.write_bytes((bag / "flight.mcap").read_bytes()[:-20])
    said = {
        (tmp_path / "nowhere",): "does not exist",
        (cut,): f"is truncated: its end is missing, {2 * COUNT - 1} messages",
        (bag, "--topics", "/lidar"): "has no topic /lidar, only /camera/image/compressed",
    }
    for arguments, part in said.items():
        process = player(*arguments)
        out, err = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, out) == (2, "")
        assert part in err
        assert err.count("\n") == 1


def test_help_explains_loop(player: Any) -> None:
    out, _ = player("--help").communicate(timeout=TIMEOUT)
    assert "--loop" in out
    assert "stamps jump back" in " ".join(out.split())
