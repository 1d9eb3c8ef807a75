"""The node as its own process, met over DDS by a player process and by this one."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ground import NODE, Ground, node, request, running

from vil_tracker_core import weights
from vil_tracker_core.data.sequence import Sequence
from vil_tracker_core.evaluation.bags import make_bag, open_bag
from vil_tracker_core.geometry import Box, iou
from vil_tracker_ros.conversions import from_bounding_box, stamp_ns, to_time
from vil_tracker_ros.srv import StopTrack

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "clips" / "rendered"
FRAMES = 16


@pytest.fixture(scope="module")
def slow_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first frames of the rendered clip at 4 Hz: slow enough for any machine."""
    with open_bag(CLIP) as reader:
        truth = reader.truth()
        images = [image for _, image in zip(range(FRAMES), reader.images(), strict=False)]
    bag = tmp_path_factory.mktemp("bags") / "slow"
    frames = [image.frame for image in images]
    boxes = np.array([truth[image.stamp] for image in images])
    sequence = Sequence("slow", boxes, np.arange(FRAMES) / 4, frames.__getitem__)
    make_bag(sequence, bag)
    return bag


def test_every_frame_of_a_bag_comes_back_as_a_detection(ground: Ground, slow_bag: Path) -> None:
    with open_bag(slow_bag) as reader:
        truth = reader.truth()
    stamps = sorted(truth)
    remap = ("-r", "image:=/camera/image/compressed")
    # with a queue of one, a machine that stalls for 250 ms loses a frame, as it should
    queue = ("-p", "image_reliability:=reliable", "-p", f"image_depth:={FRAMES}")
    arguments = ("--ros-args", "-p", "image_transport:=compressed", *queue, *remap)
    with running(NODE, *arguments):
        ground.until(
            lambda: ground.count_subscribers("/camera/image/compressed") > 0, "the node to listen"
        )
        with running("vil_tracker_ros.bag_player", str(slow_bag)):
            ground.until(lambda: bool(ground.arrays), "the first frame")
            answer = ground.call(
                ground.init, request(truth[stamps[0]], track_id="car", stamp=to_time(stamps[0]))
            )
            assert answer.success, answer.message
            assert (answer.track_id, stamp_ns(answer.stamp)) == ("car", stamps[0])
            ground.until(lambda: ground.answered(stamps[-1]), "the last frame's answer")
            ground.until(lambda: len(ground.detections) >= FRAMES, "all detections")
    assert [stamp_ns(found.header.stamp) for found in ground.detections] == stamps
    assert {found.id for found in ground.detections} == {"car"}
    assert {found.header.frame_id for found in ground.detections} == {"camera"}
    overlaps = [
        float(iou(from_bounding_box(found.bbox), truth[stamp]))
        for found, stamp in zip(ground.detections, stamps, strict=True)
    ]
    assert overlaps[0] == pytest.approx(1.0, abs=1e-6)
    assert np.mean(overlaps) > 0.5
    last, track = ground.detections[-1], ground.tracks[-1].tracks[0]
    covariance = np.array(last.results[0].pose.covariance).reshape(6, 6)
    whole = np.array(track.covariance).reshape(4, 4)
    np.testing.assert_array_equal(covariance[:2, :2], whole[:2, :2])
    assert covariance[2:].sum() == covariance[:, 2:].sum() == 0
    assert np.linalg.eigvalsh(whole).min() > 0
    position = last.results[0].pose.pose.position
    assert (position.x, position.y) == (last.bbox.center.position.x, last.bbox.center.position.y)


def test_bad_calls_and_bad_frames_get_a_reason_and_the_node_lives(
    ground: Ground, tiny: str
) -> None:
    with node(tiny) as child:
        ground.until_active()
        box = Box(50, 40, 30, 20)
        refusal = ground.call(ground.init, request(box))
        assert (refusal.success, refusal.message) == (False, "no image has been received yet")
        ground.send_first(0)
        assert "outside the 160x120" in ground.call(ground.init, request(Box(900, 9, 9, 9))).message
        nan = ground.call(ground.init, request(Box(float("nan"), 9, 9, 9)))
        assert "not finite" in nan.message
        old = ground.call(ground.init, request(box, stamp=to_time(77)))
        assert "no frame with stamp" in old.message
        assert "no track 'x'" in ground.call(ground.stop, StopTrack.Request(track_id="x")).message
        assert ground.call(ground.init, request(box, track_id="t")).success
        assert "in use" in ground.call(ground.init, request(box, track_id="t")).message
        ground.send(1, encoding="32FC1")
        ground.send(2, step=1)
        ground.send(3, data=b"")
        stamp = ground.send(4)
        ground.until(lambda: ground.answered(stamp), "the frame after the bad ones")
        assert [track.id for track in ground.tracks[-1].tracks] == ["t"]
        stopped = ground.call(ground.stop, StopTrack.Request())
        assert (stopped.success, stopped.stopped) == (True, ["t"])
        stamp = ground.send(5)
        ground.until(lambda: ground.answered(stamp), "a frame without tracks")
        assert ground.tracks[-1].tracks == []
        assert child.poll() is None


def test_a_normalised_box_is_scaled_to_the_image(ground: Ground, tiny: str) -> None:
    with node(tiny):
        ground.until_active()
        ground.send_first(0)
        unit = request(Box(0.25, 0.5, 0.5, 0.25), normalized=True)
        assert ground.call(ground.init, unit).success
        ground.until(lambda: bool(ground.detections), "the first detection")
    box = from_bounding_box(ground.detections[0].bbox)
    assert box == pytest.approx(Box(40, 60, 80, 30))


def test_a_node_killed_in_mid_clip_tracks_on_after_a_new_init(ground: Ground, tiny: str) -> None:
    def follow(first: int) -> None:
        ground.until_active()
        ground.send_first(first)
        assert ground.call(ground.init, request(Box(50, 40, 30, 20))).success
        stamp = ground.send(first + 1)
        ground.until(lambda: ground.answered(stamp), "the next frame")
        assert [len(tracks.tracks) for tracks in ground.tracks][-1] == 1

    with node(tiny) as child:
        follow(first=0)
        child.kill()
        child.wait()
    # DDS notices after a while; until then the dead node would count as one that listens
    ground.until(lambda: ground.count_subscribers("image") == 0, "the node to be gone")
    with node(tiny):
        follow(first=10)


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("weights:=nowhere.safetensors", "neither a weights file nor one of the shipped"),
        ("image_transport:=theora", "not one of raw, compressed"),
        ("max_tracks:=0", "max_tracks"),
    ],
)
def test_a_bad_parameter_ends_the_start_with_one_sentence(parameter: str, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", NODE, "--ros-args", "-p", parameter],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_damaged_weights_are_refused_by_name(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    content = bytearray(weights.shipped("vil_nano").read_bytes())
    content[len(content) // 2] ^= 0x10
    damaged.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-m", NODE, "--ros-args", "-p", f"weights:={damaged}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert f"{damaged} is damaged" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_node_in_the_middle_of_its_work(
    ground: Ground, tiny: str, number: signal.Signals
) -> None:
    with node(tiny) as child:
        ground.until_active()
        ground.send_first(0)
        assert ground.call(ground.init, request()).success
        for frame in range(1, 20):
            ground.send(frame)
        child.send_signal(number)
        child.send_signal(number)  # a terminal and a launch file may both pass it on
        output, _ = child.communicate(timeout=60)
        assert child.returncode == 0, output
    assert "Traceback" not in output


def test_an_ended_node_leaves_no_shared_memory(tiny: str, domain: int) -> None:
    def segments() -> set[str]:
        """Fast DDS's, of participants: 70 MB each, in memory for as long as the machine is on."""
        found = (path.name for path in Path("/dev/shm").glob("fastrtps_*"))
        return {name for name in found if re.fullmatch("fastrtps_[0-9a-f]{16}", name)}

    before = segments()
    with node(tiny) as child:
        assert child.stdout is not None
        while "active" not in child.stdout.readline():
            assert child.poll() is None
        assert segments() - before
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=60)
    assert not segments() - before


def test_a_signal_ends_the_node_while_it_loads(tiny: str, domain: int) -> None:
    with node(tiny, "backend:=onnxruntime") as child:
        # the first sign of the node, before the net is loaded
        assert child.stdout is not None
        assert "loading" in child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        output, _ = child.communicate(timeout=60)
        assert child.returncode == 0, output
    assert "active" not in output
    assert "Traceback" not in output
