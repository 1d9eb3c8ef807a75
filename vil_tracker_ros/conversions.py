"""Core values as messages, and back."""

from __future__ import annotations

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import BoundingBox2D, Detection2D, ObjectHypothesisWithPose

from vil_tracker_core.geometry import Box
from vil_tracker_core.geometry import Image as Pixels
from vil_tracker_core.tracking.online import TrackResult
from vil_tracker_ros.msg import Track

NS = 1_000_000_000


def stamp_ns(stamp: Time) -> int:
    """A stamp as whole nanoseconds."""
    return int(stamp.sec) * NS + int(stamp.nanosec)


def to_time(ns: int) -> Time:
    """Whole nanoseconds as a stamp."""
    return Time(sec=ns // NS, nanosec=ns % NS)


def to_bounding_box(box: Box) -> BoundingBox2D:
    """A box (px, top-left) as centre and size."""
    message = BoundingBox2D(size_x=float(box.w), size_y=float(box.h))
    message.center.position.x, message.center.position.y = float(box.cx), float(box.cy)
    return message


def from_bounding_box(message: BoundingBox2D, scale: tuple[float, float] = (1.0, 1.0)) -> Box:
    """Centre and size as a box, x and y scaled (for normalised boxes by the image's size)."""
    position = message.center.position
    return Box.from_cxcywh(
        position.x * scale[0],
        position.y * scale[1],
        message.size_x * scale[0],
        message.size_y * scale[1],
    )


def to_detection(track_id: str, result: TrackResult, header: Header) -> Detection2D:
    """The Detection2D of a track that is not lost.

    results[0].pose.pose.position is (cx, cy, 0) and its covariance, row-major 6x6 in px^2, holds
    the centre's: [0] var cx, [1] = [6] cov, [7] var cy. The size's is in Track.covariance only.
    """
    hypothesis = ObjectHypothesisWithPose()
    hypothesis.hypothesis.class_id = "target"
    hypothesis.hypothesis.score = float(result.score)
    pose = hypothesis.pose.pose
    pose.position.x, pose.position.y = float(result.box.cx), float(result.box.cy)
    covariance = np.zeros((6, 6))
    covariance[:2, :2] = result.covariance[:2, :2]
    hypothesis.pose.covariance = covariance.flatten()
    return Detection2D(
        header=header, results=[hypothesis], bbox=to_bounding_box(result.box), id=track_id
    )


def to_track(track_id: str, result: TrackResult, started_ns: int, frames: int) -> Track:
    """The Track message of a result, lost or not."""
    return Track(
        id=track_id,
        state=int(result.state),
        score=float(result.score),
        bbox=to_bounding_box(result.box),
        covariance=result.covariance.flatten(),
        started=to_time(started_ns),
        frames=frames,
        reason=result.reason,
    )


def to_image(pixels: Pixels, header: Header) -> Image:
    """The bgr8 message of (H, W, 3) BGR pixels."""
    height, width = pixels.shape[:2]
    message = Image(header=header, height=height, width=width, encoding="bgr8", step=3 * width)
    message.data = pixels.tobytes()  # from an array, rclpy would check it number by number
    return message
