"""What the node publishes beside detections, its parameters at run time, and its QoS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import rclpy
from ground import Ground, request, together
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from vil_tracker_ros.conversions import stamp_ns
from vil_tracker_ros.msg import Track


@pytest.fixture
def pair(domain: int, tiny: str) -> Iterator[tuple[Ground, Any]]:
    with together(tiny, "backend:=torch") as (ground, tracker):
        assert tracker.start()
        ground.send_first(0)
        yield ground, tracker


def double(name: str, value: float) -> Parameter:
    kind = ParameterType.PARAMETER_DOUBLE
    return Parameter(name=name, value=ParameterValue(type=kind, double_value=value))


def integer(name: str, value: int) -> Parameter:
    kind = ParameterType.PARAMETER_INTEGER
    return Parameter(name=name, value=ParameterValue(type=kind, integer_value=value))


def set_parameter(ground: Ground, *changes: Parameter) -> Any:
    client = ground.create_client(SetParameters, "vil_tracker/set_parameters")
    results = ground.call(client, SetParameters.Request(parameters=list(changes))).results
    ground.destroy_client(client)
    return results[0]


def test_the_debug_image_is_drawn_while_someone_looks(pair: tuple[Ground, Any]) -> None:
    ground, _ = pair
    assert ground.call(ground.init, request(track_id="car")).success
    seen: list[Image] = []
    watching = ground.create_subscription(Image, "debug_image", seen.append, QoSProfile(depth=10))
    numbers = iter(range(1, 10**6))

    def one_more() -> bool:
        ground.send_and_wait(next(numbers))
        return bool(seen)

    ground.until(one_more, "a debug image")
    image = seen[-1]
    assert (image.width, image.height, image.encoding) == (160, 120, "bgr8")
    assert image.header.frame_id == "camera"
    assert stamp_ns(image.header.stamp) in {stamp_ns(t.header.stamp) for t in ground.tracks}
    pixels = np.frombuffer(image.data, dtype=np.uint8).reshape(120, 160, 3)
    plain = np.full((120, 160, 3), 90, dtype=np.uint8)
    plain[40:60, 50:80] = (30, 60, 200)
    assert 50 < (pixels != plain).any(axis=2).sum() < 120 * 160 / 2
    ground.destroy_subscription(watching)
    ground.until(lambda: ground.count_subscribers("debug_image") == 0, "nobody to look")
    seen.clear()
    ground.send_and_wait(next(numbers))
    assert seen == []


def test_the_debug_image_shows_frames_without_tracks_too(pair: tuple[Ground, Any]) -> None:
    ground, _ = pair
    seen: list[Image] = []
    ground.create_subscription(Image, "debug_image", seen.append, QoSProfile(depth=10))
    numbers = iter(range(1, 10**6))
    ground.until(lambda: ground.send_and_wait(next(numbers)) and seen, "a debug image")
    assert seen[-1].width == 160


def test_nothing_pretends_to_be_a_detection_while_lost(pair: tuple[Ground, Any]) -> None:
    ground, _ = pair
    assert ground.call(ground.init, request(track_id="car")).success
    ground.send_and_wait(1)
    # unseen at any score, and lost at once
    changes = double("confident", 1.0), double("patience", 0.0)
    for change in changes:
        assert set_parameter(ground, change).successful
    assert set_parameter(ground, double("doubtful", 1.0)).successful
    ground.send_and_wait(2)
    ground.detections.clear()
    ground.arrays.clear()
    found = ground.send_and_wait(3)
    ground.until(lambda: ground.arrays, "the empty array")
    assert [track.state for track in found.tracks] == [Track.LOST]
    assert (ground.detections, ground.arrays[0].detections) == ([], [])
    assert found.tracks[0].reason
    status = ground.status(lambda values: values["message"] == "lost: car")
    assert status["level"] == "1"
    assert status["track car"].startswith("LOST")


def test_diagnostics_of_a_running_track(pair: tuple[Ground, Any]) -> None:
    ground, _ = pair
    assert ground.call(ground.init, request(track_id="car")).success
    numbers = iter(range(1, 10**6))

    def flowing(values: dict[str, str]) -> bool:
        ground.send_and_wait(next(numbers))
        return values["state"] == "active" and "track car" in values and bool(values["rate (Hz)"])

    status = ground.status(flowing)
    assert ground.diagnostics == [] or ground.diagnostics[0].status[0].name == (
        "vil_tracker: tracking"
    )
    assert float(status["rate (Hz)"]) > 0
    assert float(status["processing, mean (ms)"]) > 0
    assert int(status["frames answered"]) >= 2
    assert status["errors"] == "0"
    assert status["images from"] == "/image (publishers: 1)"


def test_parameters_change_or_are_refused_with_a_reason(pair: tuple[Ground, Any]) -> None:
    ground, tracker = pair
    assert set_parameter(ground, double("patience", 3.0)).successful
    assert tracker.values["patience"] == 3.0
    for change, words in [
        (double("patience", -1.0), "patience"),
        (double("patience", 1e9), "patience"),
        (double("patience", float("nan")), "patience"),
        (double("doubtful", 0.9), "doubtful must not be above confident"),
        (integer("max_tracks", 2), "max_tracks cannot change while the node is active"),
        (integer("threads", 1), "threads cannot change while the node is active"),
        (integer("patience", 1), "expected 'Type.DOUBLE'"),
        (double("no_such", 1.0), "undeclared"),
    ]:
        result = set_parameter(ground, change)
        assert not result.successful
        assert words in result.reason
    assert tracker.values["patience"] == 3.0
    tracker.trigger_deactivate()
    assert set_parameter(ground, integer("max_tracks", 1)).successful
    tracker.trigger_activate()
    ground.tracks.clear()
    ground.send_first(1)
    assert ground.call(ground.init, request()).success
    assert "1 tracks run already" in ground.call(ground.init, request()).message


def test_an_incompatible_publisher_is_reported(domain: int, tiny: str) -> None:
    with together(tiny, "backend:=torch", "image_reliability:=reliable") as (ground, tracker):
        ground.destroy_publisher(ground.image)
        shy = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        ground.create_publisher(Image, "image", shy)
        assert tracker.start()
        status = ground.status(lambda values: "incompatible publisher" in values)
        assert "a publisher on /image offers an incompatible RELIABILITY" in status["message"]
        assert status["level"] == "1"


def test_a_publisher_of_the_other_kind_is_reported(domain: int, tiny: str) -> None:
    with together(tiny, "backend:=torch") as (ground, tracker):
        ground.destroy_publisher(ground.image)
        # one participant cannot have two types on a topic, so this camera is another
        context = rclpy.Context()
        rclpy.init(context=context)
        camera = rclpy.create_node("camera", context=context)
        try:
            camera.create_publisher(CompressedImage, "image", QoSProfile(depth=1))
            assert tracker.start()
            status = ground.status(lambda values: "CompressedImage" in values["message"])
        finally:
            camera.destroy_node()
            rclpy.shutdown(context=context)
    assert status["message"] == (
        "no image from /image, which carries sensor_msgs/msg/CompressedImage "
        "(parameter image_transport)"
    )


def test_reliability_and_depth_are_those_of_the_parameters(domain: int, tiny: str) -> None:
    with together(tiny, "backend:=torch", "image_reliability:=reliable", "image_depth:=5") as (
        ground,
        tracker,
    ):
        assert tracker.start()
        ground.until(lambda: ground.count_subscribers("image"), "the node to listen")
        (info,) = ground.get_subscriptions_info_by_topic("/image")
        assert info.qos_profile.reliability == ReliabilityPolicy.RELIABLE
        assert tracker._subscription.qos_profile.depth == 5


def test_what_the_middleware_replaced_counts_as_dropped(pair: tuple[Ground, Any]) -> None:
    ground, _ = pair
    before = ground.send_and_wait(1).dropped
    for number in range(2, 9):  # nobody spins the tracker meanwhile: depth 1 keeps the last
        ground.send(number)
    after = ground.send_and_wait(9).dropped
    answered = sum(200_000_000 < stamp_ns(t.header.stamp) < 10**9 for t in ground.tracks)
    assert after - before == 7 - answered
    assert after > before
