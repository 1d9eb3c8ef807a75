"""vil_tracker_ros.replay_evaluator: answers joined to truth, and a whole replay over DDS."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from ground import NODE, ros_arguments, running

from vil_tracker_core.data.sequence import Sequence
from vil_tracker_core.evaluation.bags import make_bag
from vil_tracker_core.evaluation.benchmark import run_case
from vil_tracker_core.evaluation.cases import BagSource, Case
from vil_tracker_core.evaluation.scoring import score
from vil_tracker_core.geometry import Box
from vil_tracker_core.tracking.network import open_network
from vil_tracker_core.tracking.online import OnlineTracker
from vil_tracker_ros.conversions import to_bounding_box, to_time
from vil_tracker_ros.msg import Track, TrackArray
from vil_tracker_ros.replay_evaluator import (
    ANSWERED,
    LIVE,
    READY,
    TRACK_ID,
    Replay,
    ReplayError,
)

FRAMES = 12
FIRST = 1_700_000_000_000_000_000
PERIOD = 100_000_000


def sequence(rate: float = 10.0) -> Sequence:
    """A square that moves 3 px a frame; it is not there on the first frame."""
    ground = np.random.default_rng(0).integers(60, 120, (120, 160, 3), dtype=np.uint8)
    boxes = np.array([[20.0 + 3 * n, 40, 24, 20] for n in range(FRAMES)])
    boxes[0] = math.nan

    def load(number: int) -> np.ndarray:
        frame = ground.copy()
        if number:
            x = 20 + 3 * number
            frame[40:60, x : x + 24] = (30, 60, 200)
        return frame

    return Sequence("square", boxes, np.arange(FRAMES) / rate, load)


@pytest.fixture
def replay() -> Replay:
    return Replay(Case(sequence(), first_stamp=FIRST))


def answer(number: int, off: float = 0.0, track_id: str = TRACK_ID) -> TrackArray:
    box = Box(20.0 + 3 * number + off, 40, 24, 20)
    covariance = np.eye(4).flatten()
    track = Track(id=track_id, state=1, score=0.5, bbox=to_bounding_box(box), covariance=covariance)
    message = TrackArray(tracks=[track], processing=0.01)
    message.header.stamp = to_time(FIRST + number * PERIOD)
    return message


def test_answers_are_joined_to_frames_on_the_stamp(replay: Replay) -> None:
    assert replay.start_stamp == FIRST + PERIOD
    for number in range(1, FRAMES):
        assert not replay.over
        replay.take(answer(number))
    assert replay.over
    assert replay.unanswered == []
    results = replay.results()
    (live,) = score(results)
    assert (live.name, live.auc, live.p20) == (LIVE, pytest.approx(20 / 21), 1.0)
    assert results.cases.cases[0].note == ""
    assert live.sequences[0].frames == FRAMES - 1
    assert live.ms50 == pytest.approx(10)


def test_missing_answers_are_scored_both_ways(replay: Replay) -> None:
    for number in range(1, FRAMES):
        if number not in (3, 4):
            replay.take(answer(number))
    assert replay.unanswered == [3, 4]
    results = replay.results()
    live, answered = score(results)
    assert "2 of 12 frames were not answered" in results.cases.cases[0].note
    assert (live.name, answered.name) == (LIVE, ANSWERED)
    assert live.auc == pytest.approx(9 / 11 * 20 / 21)
    assert answered.auc == pytest.approx(20 / 21)
    assert answered.p20 == 1.0


def test_other_tracks_and_other_streams_are_left_out(replay: Replay) -> None:
    replay.take(answer(2, track_id="other"))
    replay.take(answer(1))
    stray = answer(5)
    stray.header.stamp = to_time(5)
    replay.take(stray)
    assert (replay.unanswered, replay.foreign) == ([*range(2, FRAMES)], 1)
    assert "1 answers were to frames that are not the bag's" in replay.results().cases.cases[0].note


def test_a_loop_ends_the_first_pass(replay: Replay) -> None:
    for number in (1, 2, 3, 3):  # the same stamp twice is no loop
        replay.take(answer(number))
    assert not replay.over
    replay.take(answer(1, off=50))
    assert replay.over
    replay.take(answer(4, off=50))
    results = replay.results()
    assert results.runs[LIVE, "square"].boxes[1].tolist() == [23, 40, 24, 20]
    assert len(replay.unanswered) == FRAMES - 4
    assert "the bag began again" in results.cases.cases[0].note


def test_no_answer_is_no_result(replay: Replay) -> None:
    with pytest.raises(ReplayError, match="answered no frame of square"):
        replay.results()


def test_live_and_offline_agree(domain: int, tiny: str, tmp_path: Path) -> None:
    bag, out = tmp_path / "square", tmp_path / "report"
    make_bag(sequence(rate=3.0), bag)  # slow enough for any machine
    topic = "/camera/image/compressed"
    remap = ("-r", f"image:={topic}")
    node = ros_arguments(tiny, "image_transport:=compressed")
    evaluator = ros_arguments(f"bag:={bag}", f"out:={out}")
    with running("vil_tracker_ros.replay_evaluator", *evaluator) as judge:
        assert judge.stdout is not None
        assert f"{READY} 12 frames of square" in judge.stdout.readline()
        with (
            running(NODE, *node, *remap),
            running("vil_tracker_ros.bag_player", str(bag), "--wait", "120"),
        ):
            said, _ = judge.communicate(timeout=240)
    assert judge.returncode == 0, said
    assert "all 12 frames were answered" in said
    (case,) = BagSource(bag).read().cases
    offline = run_case(OnlineTracker(open_network(tiny.removeprefix("weights:="))), case)
    rows = list(csv.DictReader((out / "frames_square.csv").open()))
    live = np.array([[float(row[k] or "nan") for k in "xywh"] for row in rows])
    np.testing.assert_allclose(live[-len(offline.boxes) + 1 :], offline.boxes[1:], atol=0.01)
    report = json.loads((out / "report.json").read_text())
    assert list(report["trackers"]) == [LIVE]
    assert (out / "index.html").is_file()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [((), "the parameter bag is missing"), (("bag:=nowhere",), "nowhere does not exist")],
)
def test_what_cannot_be_evaluated_ends_with_one_sentence(
    domain: int, parameters: tuple[str, ...], words: str
) -> None:
    with running("vil_tracker_ros.replay_evaluator", *ros_arguments(*parameters)) as judge:
        said, _ = judge.communicate(timeout=60)
    assert judge.returncode == 2
    assert words in said
    assert "Traceback" not in said
