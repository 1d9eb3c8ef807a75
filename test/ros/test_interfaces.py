"""What the build installs: vision_msgs as published, our own interfaces, and the executables."""

import json
import os
from pathlib import Path

import pytest
from ament_index_python import get_package_prefix, get_package_share_directory
from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message, serialize_message
from vision_msgs.msg import BoundingBox2D, Detection2D, ObjectHypothesisWithPose

from vil_tracker_ros.msg import Track, TrackArray
from vil_tracker_ros.srv import InitTrack, StopTrack


def type_hash(name: str) -> str:
    """The RIHS01 hash that rosidl computed for message ``name`` of the vision_msgs in use."""
    path = Path(get_package_share_directory("vision_msgs")) / "msg" / f"{name}.json"
    hashes = json.loads(path.read_text(encoding="utf-8"))["type_hashes"]
    return {entry["type_name"]: entry["hash_string"] for entry in hashes}[f"vision_msgs/msg/{name}"]


# The hashes of vision_msgs as published for ROS 2 Jazzy.
@pytest.mark.parametrize(
    ("name", "published"),
    [
        (
            "Detection2D",
            "RIHS01_0d12b69df5c593b3455b7346fac8205437a7d4bcb09b9e0e0b2dde787ded38ea",
        ),
        (
            "Detection2DArray",
            "RIHS01_214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968",
        ),
        (
            "BoundingBox2D",
            "RIHS01_008eacbb0cf8f26e83795547bed013eec3675485ef386ec056d80eaaf1c1ce2f",
        ),
    ],
)
def test_vision_msgs_has_the_published_type_hash(name: str, published: str) -> None:
    assert type_hash(name) == published


def box(cx: float, cy: float, w: float, h: float) -> BoundingBox2D:
    message = BoundingBox2D(size_x=w, size_y=h)
    message.center.position.x, message.center.position.y = cx, cy
    return message


def test_detection_survives_the_wire() -> None:
    sent = Detection2D(id="7", bbox=box(320.5, 240.25, 31.0, 17.0))
    sent.header.frame_id = "camera"
    sent.header.stamp = Time(sec=12, nanosec=345_678_901)
    result = ObjectHypothesisWithPose()
    result.hypothesis.class_id, result.hypothesis.score = "target", 0.75
    result.pose.pose.position.x, result.pose.pose.position.y = 320.5, 240.25
    result.pose.covariance[[0, 1, 6, 7]] = [4.0, -0.5, -0.5, 9.0]
    sent.results = [result]

    received = deserialize_message(serialize_message(sent), Detection2D)

    assert received.header == sent.header
    assert received.id == "7"
    assert received.bbox == sent.bbox
    assert len(received.results) == 1
    assert received.results[0].hypothesis == result.hypothesis
    assert received.results[0].pose.pose == result.pose.pose
    assert list(received.results[0].pose.covariance) == list(result.pose.covariance)


def test_tracks_survive_the_wire() -> None:
    covariance = [float(i) for i in range(16)]
    track = Track(
        id="car",
        state=Track.LOST,
        score=0.125,
        bbox=box(10.0, 20.0, 3.0, 4.0),
        covariance=covariance,
        started=Time(sec=1, nanosec=2),
        frames=90,
        reason="occluded",
    )
    sent = TrackArray(tracks=[track], latency=0.031, processing=0.0185, in_node=0.02)
    sent.dropped = 2**40
    sent.header.frame_id = "camera"

    received = deserialize_message(serialize_message(sent), TrackArray)

    assert (received.header, received.latency) == (sent.header, sent.latency)
    assert (received.processing, received.in_node) == (sent.processing, sent.in_node)
    assert received.dropped == sent.dropped
    (got,) = received.tracks
    assert (got.id, got.state, got.score, got.bbox) == ("car", 3, 0.125, track.bbox)
    assert list(got.covariance) == covariance
    assert (got.started, got.frames, got.reason) == (track.started, 90, "occluded")


def test_track_states_differ() -> None:
    assert (Track.TRACKING, Track.UNCERTAIN, Track.LOST) == (1, 2, 3)


def test_a_new_track_has_no_state() -> None:
    """A forgotten state must not read as one of the three."""
    assert Track().state not in (Track.TRACKING, Track.UNCERTAIN, Track.LOST)


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (
            InitTrack.Request,
            {
                "bbox": "vision_msgs/BoundingBox2D",
                "normalized": "boolean",
                "track_id": "string",
                "stamp": "builtin_interfaces/Time",
            },
        ),
        (
            InitTrack.Response,
            {
                "success": "boolean",
                "message": "string",
                "track_id": "string",
                "stamp": "builtin_interfaces/Time",
            },
        ),
        (StopTrack.Request, {"track_id": "string"}),
        (
            StopTrack.Response,
            {"success": "boolean", "message": "string", "stopped": "sequence<string>"},
        ),
    ],
)
def test_services_have_their_fields(message: type, fields: dict[str, str]) -> None:
    assert message.get_fields_and_field_types() == fields


@pytest.mark.parametrize("name", ["tracker_node", "bag_player"])
def test_executable_is_where_ros2_run_looks(name: str) -> None:
    path = Path(get_package_prefix("vil_tracker_ros")) / "lib" / "vil_tracker_ros" / name
    assert os.access(path, os.X_OK)
