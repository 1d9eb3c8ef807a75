"""What a camera or an operator may send that is wrong: the node says so and goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from ground import BOX, Ground, request, together
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage

from vil_tracker_core.geometry import Box
from vil_tracker_ros.conversions import stamp_ns, to_time
from vil_tracker_ros.msg import Track


@pytest.fixture
def ground(domain: int, tiny: str) -> Iterator[Ground]:
    """With an active tracker that follows `BOX`, and whose frames 0 and 1 are answered."""
    with together(tiny, "backend:=torch") as (made, tracker):
        assert tracker.start()
        made.send_first(0)
        assert made.call(made.init, request(track_id="t")).success
        assert track(made.send_and_wait(1)).frames >= 1
        yield made


def track(message: Any) -> Track:
    """The only track of a message."""
    (found,) = message.tracks
    return found


def frame(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), 90, dtype=np.uint8)


def test_a_change_of_resolution(ground: Ground) -> None:
    found = track(ground.send_and_wait(2, frame=frame(320, 240)))
    assert found.state == Track.LOST
    assert "the image changed from 160x120 to 320x240" in found.reason
    assert ground.send_and_wait(3, frame=frame(320, 240)).tracks


def test_stamps_that_jump_back(ground: Ground) -> None:
    ground.send_and_wait(50)
    ground.tracks.clear()
    found = track(ground.send_and_wait(3))
    assert found.state == Track.LOST
    assert "the stamps jumped back by 4.700 s" in found.reason
    # what was held of the time before the jump is no longer this stream's
    refusal = ground.call(ground.init, request(stamp=to_time(51 * 100_000_000)))
    assert "no frame with stamp 5.1" in refusal.message
    assert ground.call(ground.init, request(stamp=to_time(4 * 100_000_000))).success


def test_the_same_stamp_again_and_again(ground: Ground) -> None:
    for number in range(3):
        ground.tracks.clear()
        assert track(ground.send_and_wait(2)).frames >= 3 + number
    status = ground.status(lambda values: values["stamps repeated"] == "2")
    assert int(status["frames answered"]) >= 4


def test_stamps_of_zero(ground: Ground) -> None:
    ground.send(-1)
    ground.until(lambda: ground.answered(0), "the frame without a stamp")
    assert ground.send_and_wait(2).tracks


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (Box(math.nan, 40, 30, 20), "not finite"),
        (Box(50, 40, 30, math.nan), "not finite"),
        (Box(math.inf, 40, 30, 20), "not finite"),
        (Box(50, 40, -math.inf, 20), "not finite"),
        (Box(50, 40, -30, 20), "empty"),
        (Box(50, 40, 30, 0), "empty"),
        (Box(-500, -400, 30, 20), "outside the 160x120 image"),
        (Box(50, 40, 1e6, 20), "more than twice as large"),
    ],
)
def test_bad_boxes(ground: Ground, box: Box, words: str) -> None:
    for normalized in (False, True):
        refusal = ground.call(ground.init, request(box, normalized=normalized))
        assert not refusal.success
        if not normalized:
            assert words in refusal.message
    assert [one.id for one in ground.send_and_wait(2).tracks] == ["t"]


def test_images_that_cannot_be_read_are_refused_and_counted(ground: Ground) -> None:
    ground.send(2, data=frame(160, 120).tobytes()[:100])
    ground.send(3, step=1)
    ground.send(4, step=10_000)
    ground.send(5, encoding="32FC1")
    ground.send(6, encoding="32FC1")
    ground.send(7, width=2**32 - 1, height=2**32 - 1)
    ground.send(8, width=0, step=0)
    stamp = ground.send(9)
    ground.until(lambda: ground.answered(stamp), "the frame after the bad ones")
    assert [one.id for one in ground.tracks[-1].tracks] == ["t"]
    # image_depth is 1: some of them may have been replaced, and are counted as dropped
    status = ground.status(lambda values: int(values["frames answered"]) >= 3)
    refused = sum(int(v) for k, v in status.items() if k.startswith("refused "))
    assert int(status["errors"]) == refused
    assert refused + int(status["frames dropped"]) >= 7


def test_an_unknown_encoding_is_named_in_diagnostics(ground: Ground) -> None:
    def refused(values: dict[str, str]) -> bool:
        ground.send(2, encoding="32FC1")
        return "refused 32FC1" in values

    status = ground.status(refused)
    assert "encoding '32FC1' is not supported" in status["last reason"]
    refusal = ground.call(ground.init, request(track_id="u", stamp=to_time(3 * 100_000_000)))
    assert "no frame with stamp" in refusal.message  # it is not held either
    assert ground.send_and_wait(3).tracks


def test_damaged_compressed_images(domain: int, tiny: str) -> None:
    with together(tiny, "backend:=torch", "image_transport:=compressed") as (ground, tracker):
        ground.destroy_publisher(ground.image)
        images = ground.create_publisher(CompressedImage, "image", QoSProfile(depth=10))
        assert tracker.start()
        noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
        whole = cv2.imencode(".jpg", noise)[1].tobytes()

        def send(number: int, data: bytes) -> int:
            message = CompressedImage(format="jpeg", data=data)
            message.header.stamp = to_time((number + 1) * 100_000_000)
            images.publish(message)
            return stamp_ns(message.header.stamp)

        def send_until(condition: Any, data: bytes) -> None:
            numbers = iter(range(10**6))

            def again() -> bool:
                send(next(numbers), data)
                ground.executor_.spin_once(timeout_sec=0.1)
                return bool(condition())

            ground.until(again, "an answer")

        send_until(lambda: ground.tracks, whole)
        assert ground.call(ground.init, request(BOX, track_id="t")).success
        for data in (b"", b"text", whole[:10], whole[: len(whole) // 2], whole[:-1000]):
            send(10**6, data)
        ground.tracks.clear()
        send_until(lambda: ground.tracks and ground.tracks[-1].tracks, whole)
        assert ground.tracks[-1].tracks[0].id == "t"
