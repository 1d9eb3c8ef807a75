"""Plays a rosbag into ROS 2, where ``ros2 bag play`` is not installed.

    python -m vil_tracker_ros.bag_player BAG [--rate R] [--loop] [--topics NAME ...] [--wait S]

Messages are published as the bytes that were recorded, so header stamps stay as they were.
Publishers are reliable, so that best-effort (sensor-data) and reliable subscriptions both match.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rclpy
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from vil_tracker_core.evaluation.bags import IMAGE_TYPES, NS, BagError, BagReader, open_bag
from vil_tracker_ros.processes import Stop

QOS = QoSProfile(
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.VOLATILE,
    history=HistoryPolicy.KEEP_LAST,
    depth=10,
)
POLL = 0.02
"""Seconds between two looks at a count of subscriptions."""
SETTLE = 1.0
"""Seconds between the last match and the first message, and between the last message and the end.

Best-effort subscriptions tell nothing, so only time helps: one that the publisher has found may
not have found the publisher yet and loses what is sent until then; and what it has not taken from
shared memory when the publisher leaves is gone.
"""
ACK_TIMEOUT = 5.0
"""Seconds given to reliable subscriptions at the end to acknowledge the last messages."""

EXIT_BAD_BAG = 2
EXIT_STOPPED = 130


class Player:
    """Publishes a bag's messages at their recorded times.

    Attributes:
        publishers: topic -> publisher, for the topics whose message type is installed.
        sent: messages published so far.

    All waiting and playing ends where ``stop`` is set.
    """

    def __init__(
        self,
        bag: BagReader,
        node: Node,
        topics: Sequence[str],
        rate: float,
        stop: threading.Event,
    ) -> None:
        self.publishers: dict[str, Publisher] = {}
        self.sent = 0
        self._bag = bag
        self._rate = rate
        self._stop = stop
        self._started = self._ended = math.nan
        for topic in topics:
            kind = bag.topics[topic].type
            try:
                self.publishers[topic] = node.create_publisher(message_class(kind), topic, QOS)
            except (ImportError, AttributeError, ValueError):
                say(f"skipping {topic}: its message type {kind} is not installed")
        if not any(bag.topics[topic].count for topic in self.publishers):
            raise BagError(f"{bag.path} holds no message that can be played")

    def wait_for_subscriptions(self, timeout: float, wanted: int) -> None:
        """Waits until each image topic has ``wanted`` subscriptions that are ready to hear it.

        After ``timeout`` seconds without them it says so and returns.
        """
        end = time.monotonic() + timeout
        while not self._stop.is_set() and (unheard := self._unheard_images(wanted)):
            if time.monotonic() >= end:
                few = "no subscription" if wanted == 1 else f"fewer than {wanted} subscriptions"
                say(f"{few} to {', '.join(unheard)} after {timeout:g} s: playing on")
                return
            self._stop.wait(POLL)
        self._stop.wait(SETTLE)

    def _unheard_images(self, wanted: int) -> list[str]:
        return [
            topic
            for topic, publisher in self.publishers.items()
            if self._bag.topics[topic].type in IMAGE_TYPES
            and publisher.get_subscription_count() < wanted
        ]

    def play(self, loop: bool) -> bool:
        """Publishes the bag once, or again and again; returns when all is acknowledged, False where
        it was stopped before.

        Every message is due at a fixed time of the monotonic clock, so that delays do not add
        up; a message that is late is sent at once, none is left out.
        """
        self._started = time.monotonic()
        passes = 0
        while passes == 0 or loop:
            if not self._play_once(self._started + passes * self._pass_length()):
                return False
            passes += 1
        if not self._wait_until_acknowledged():
            return False
        self._ended = time.monotonic()
        self._stop.wait(SETTLE)
        return True

    def _play_once(self, start: float) -> bool:
        first: int | None = None
        for topic, record, data in self._bag.messages(list(self.publishers)):
            first = record if first is None else first
            due = start + (record - first) / NS / self._rate
            if self._stop.wait(max(due - time.monotonic(), 0.0)):
                return False
            self.publishers[topic].publish(data)
            self.sent += 1
        return True

    def _pass_length(self) -> float:
        """Seconds from one pass's start to the next: the bag and one mean interval.

        A bag that lasts no time, with a single message say, passes once a second.
        """
        busiest = max(self._bag.topics[topic].count for topic in self.publishers)
        seconds = self._bag.duration * (1 + 1 / max(busiest - 1, 1)) or 1.0
        return seconds / self._rate

    def _wait_until_acknowledged(self) -> bool:
        end = time.monotonic() + ACK_TIMEOUT
        for topic, publisher in self.publishers.items():
            # in short steps, because nothing can interrupt the wait itself
            while not publisher.wait_for_all_acked(Duration(seconds=POLL)):
                if self._stop.is_set():
                    return False
                if time.monotonic() >= end:
                    say(f"a subscription to {topic} did not acknowledge all messages")
                    break
        return True

    def summary(self) -> str:
        """One line: what was played, how much of it, and for how long."""
        played = math.isfinite(self._ended)
        end = self._ended if played else time.monotonic()
        seconds = end - self._started if self.sent else 0.0
        return (
            f"{'played' if played else 'stopped'} {self._bag.path}: "
            f"{self.sent} messages in {seconds:.2f} s at rate {self._rate:g}"
        )


def message_class(kind: str) -> Any:
    """The Python class of a message type ``package/msg/Name``.

    Raises:
        ImportError, AttributeError, ValueError: there is no such class here.
    """
    package, folder, name = kind.split("/")
    return getattr(importlib.import_module(f"{package}.{folder}"), name)


def say(text: str) -> None:
    print(f"bag_player: {text}", file=sys.stderr, flush=True)


def positive(text: str) -> float:
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bag_player",
        description="Publishes the topics of a rosbag (MCAP or sqlite3) at the recorded times, "
        "with the header stamps that were recorded.",
    )
    parser.add_argument("bag", type=Path, help="a bag folder, or a .mcap or .db3 file")
    parser.add_argument("--rate", type=positive, default=1.0, help="speed, 2 plays twice as fast")
    parser.add_argument(
        "--loop",
        action="store_true",
        help="begin again at the end, until stopped; stamps jump back to the bag's start each time",
    )
    parser.add_argument("--topics", nargs="+", metavar="NAME", help="play these topics only")
    parser.add_argument(
        "--wait",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="how long to wait for a subscription to each image topic (default: 10, 0: do not)",
    )
    parser.add_argument(
        "--subscribers",
        type=int,
        default=1,
        metavar="N",
        help="how many subscriptions to each image topic to wait for (default: 1)",
    )
    return parser.parse_args(arguments)


def play_bag(
    bag: BagReader, options: argparse.Namespace, argv: Sequence[str], stop: threading.Event
) -> int:
    """Plays an open bag and prints one line about it; returns the exit code."""
    topics = options.topics or list(bag.topics)
    if unknown := [topic for topic in topics if topic not in bag.topics]:
        raise BagError(
            f"{bag.path} has no topic {', '.join(unknown)}, only {', '.join(bag.topics)}"
        )
    rclpy.init(args=list(argv), signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("bag_player", enable_rosout=False, start_parameter_services=False)
    try:
        player = Player(bag, node, topics, options.rate, stop)
        player.wait_for_subscriptions(options.wait, options.subscribers)
        to_the_end = player.play(options.loop)
        print(player.summary(), flush=True)
        return 0 if to_the_end else EXIT_STOPPED
    finally:
        node.destroy_node()
        rclpy.shutdown()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the player on ``argv`` (program name first); returns the exit code.

    0: played to the end; 2: the bag cannot be played; 130: stopped by SIGINT or SIGTERM.
    """
    argv = sys.argv if argv is None else argv
    options = parse(remove_ros_args(list(argv))[1:])
    stop = Stop(EXIT_STOPPED)
    try:
        with open_bag(options.bag) as bag:
            return play_bag(bag, options, argv, stop)
    except BagError as error:
        say(str(error))
        return EXIT_BAD_BAG


if __name__ == "__main__":
    sys.exit(main())
