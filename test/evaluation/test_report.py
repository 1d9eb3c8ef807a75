"""evaluation.scoring and evaluation.report: the numbers by hand, the files by looking into them."""

from __future__ import annotations

import base64
import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from vil_tracker_core.data.sequence import Sequence
from vil_tracker_core.evaluation.benchmark import Results, Run
from vil_tracker_core.evaluation.cases import Case, Cases
from vil_tracker_core.evaluation.peers import TrackerSpec
from vil_tracker_core.evaluation.pictures import window_around
from vil_tracker_core.evaluation.report import STRIP_FRAMES, TILE, strip, write_report
from vil_tracker_core.evaluation.scoring import long_json, score, short_json
from vil_tracker_core.geometry import Box

MakeSequence = Callable[..., Sequence]


def made_run(sequence: Sequence, shift: float, covariance: bool = False) -> Run:
    """A run that is ``shift`` px to the right of the truth, at 50 frames a second."""
    count = len(sequence)
    boxes = sequence.boxes + np.array([shift, 0, 0, 0])
    boxes[0] = sequence.boxes[0]
    spread = np.repeat((np.eye(4) * 16)[None], count, axis=0)
    spread[0] = np.nan
    states = np.ones(count, dtype=np.int8)
    states[-1] = 3
    return Run(
        start=0,
        frame_size=(128, 96),
        boxes=boxes,
        scores=np.full(count, 0.9),
        covariances=spread if covariance else np.full((count, 4, 4), np.nan),
        states=states if covariance else np.zeros(count, dtype=np.int8),
        seconds=np.concatenate([[np.nan], np.full(count - 1, 0.02)]),
    )


@pytest.fixture
def results(make_sequence: MakeSequence) -> Results:
    cases = [
        Case(make_sequence("easy", count=5), attributes=("fog",)),
        Case(make_sequence("hard <b>", count=9), first_stamp=10**18, attributes=("fog", "rain")),
    ]
    made = Results(
        Cases("made & small", cases, broken={"cut": "cut.mcap is truncated"}),
        [TrackerSpec("ours", "vil", Path("w")), TrackerSpec("kcf", "opencv")],
    )
    made.runs = {
        ("ours", "easy"): made_run(cases[0].sequence, 0, covariance=True),
        ("ours", "hard <b>"): made_run(cases[1].sequence, 13, covariance=True),
        ("kcf", "easy"): made_run(cases[0].sequence, 26),
    }
    made.failed = {("kcf", "hard <b>"): "sequence hard <b>: out of luck"}
    return made


def test_scores_by_hand(results: Results) -> None:
    ours, kcf = score(results)
    # "easy" is hit exactly; in "hard" 8 of 9 frames overlap by 1/3 (7 of 21 thresholds)
    hard = (20 + 8 * 7) / 9 / 21
    assert ours.auc == pytest.approx((20 / 21 + hard) / 2)  # each sequence counts alike
    assert ours.ao == pytest.approx((4 * 1 + 8 / 3) / 12)  # each frame counts alike
    assert ours.sr50 == pytest.approx(4 / 12)
    assert ours.p20 == 1.0
    assert ours.np20 == pytest.approx((1 + 1 / 9) / 2)
    assert ours.fps == pytest.approx(50)
    assert (ours.ms50, ours.ms95) == pytest.approx((20, 20))
    assert ours.lost == pytest.approx((1 / 4 + 1 / 8) / 2)
    # d^2 is 0 or 13^2 / 16 = 10.6, which lies between the radii of 90 and 95 %, 7.1 and 12.2
    np.testing.assert_allclose(ours.coverage[[0, 8, 9, 10]], [4 / 12, 4 / 12, 1, 1])
    # a t of 3 degrees in 4 coordinates, shape 16 / 3 each: Gamma(3.5) / Gamma(1.5) is 2.5 * 1.5
    constant = -math.log(2.5 * 1.5) + 2 * math.log(3 * math.pi) + 2 * math.log(16 / 3)
    assert ours.nll == pytest.approx(constant + 8 / 12 * 3.5 * math.log(1 + 13**2 / 16))
    assert ours.lt is not None
    assert ours.lt.recall == pytest.approx((1 + 1 / 3) / 2)
    assert ours.by_attribute() == {
        "fog": (2, pytest.approx((20 / 21 + hard) / 2)),
        "rain": (1, pytest.approx(hard)),
    }
    assert kcf.auc == pytest.approx(20 / 21 / 5)
    assert math.isnan(kcf.nll)
    assert math.isnan(kcf.lost)
    assert kcf.failed == {"hard <b>": "sequence hard <b>: out of luck"}


def test_presence_is_of_all_sequences(results: Results) -> None:
    assert math.isnan(score(results)[0].presence)  # the target is in every frame
    results.cases.cases[1].sequence.boxes[-2:] = math.nan
    results.runs["ours", "hard <b>"].scores[-1] = 0.1
    ours = score(results)[0]
    assert ours.presence == pytest.approx((1 + 0.5) / 2)  # the other absent frame's is 0.9 as well
    assert long_json(results, [ours])["trackers"]["ours"]["presence"] == 0.75  # type: ignore[index]


def test_json_on_the_standard_output(results: Results) -> None:
    printed = json.loads(json.dumps(short_json(score(results)), allow_nan=False))
    assert list(printed) == ["trackers"]
    assert list(printed["trackers"]) == ["ours", "kcf"]
    assert list(printed["trackers"]["ours"]) == ["auc", "p20", "np20", "fps", "sequences"]
    assert list(printed["trackers"]["ours"]["sequences"]["easy"]) == ["auc", "p20", "np20", "fps"]
    assert printed["trackers"]["ours"]["sequences"]["easy"]["auc"] == pytest.approx(
        20 / 21, abs=1e-6
    )
    failed = printed["trackers"]["kcf"]["sequences"]["hard <b>"]
    assert failed["auc"] is None
    assert failed["error"] == "sequence hard <b>: out of luck"


def test_long_json_is_json(results: Results) -> None:
    found = json.loads(json.dumps(long_json(results, score(results)), allow_nan=False))
    assert found["broken"] == {"cut": "cut.mcap is truncated"}
    assert len(found["trackers"]["ours"]["success"]) == 21
    assert found["trackers"]["kcf"]["coverage"][0] is None
    assert found["trackers"]["ours"]["longterm"]["threshold"] == 0.9


def test_a_sequence_without_truth_after_the_start_is_not_scored(
    make_sequence: MakeSequence,
) -> None:
    hidden = make_sequence("hidden", count=4, absent=(1, 2, 3))
    shown = make_sequence("shown", count=4)
    results = Results(
        Cases("made", [Case(hidden), Case(shown)]),
        [TrackerSpec("kcf", "opencv")],
        runs={
            ("kcf", "hidden"): made_run(shown, 0),
            ("kcf", "shown"): made_run(shown, 13),
        },
    )
    (found,) = score(results)
    assert math.isnan(found.sequences[0].auc)
    assert found.auc == found.sequences[1].auc
    assert found.sequences[0].fps == pytest.approx(50)


def test_the_report_is_whole_and_needs_nothing_beside_it(results: Results, tmp_path: Path) -> None:
    page = write_report(results, score(results), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "index.html", "report.json", "trackers.csv", "sequences.csv", "success.png",
        "precision.png", "speed.png", "coverage.png", "frames_hard <b>.csv", "time_hard <b>.png",
    }  # fmt: skip
    text = page.read_text()
    sources = re.findall(r"src=['\"]([^'\"]{0,40})", text)
    # four plots, one over time, and the frames of two sequences (easy has 5 frames in all)
    assert len(sources) == 5 + 5 + STRIP_FRAMES
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"https?://|<script|<link|url\(", text)
    assert "<b>" not in text
    assert "hard &lt;b&gt;" in text
    assert "cut.mcap is truncated" in text
    assert "out of luck" in text
    assert text.index(">hard &lt;b&gt;</td>") < text.index(">easy</td>")  # the worst comes first
    assert "rain" in text


def test_tables(results: Results, tmp_path: Path) -> None:
    write_report(results, score(results), tmp_path)
    with (tmp_path / "trackers.csv").open() as file:
        ours, kcf = csv.DictReader(file)
    assert (ours["tracker"], ours["sequences"], ours["failed"]) == ("ours", "2", "0")
    assert float(ours["ao"]) == pytest.approx((4 + 8 / 3) / 12, abs=1e-4)
    assert (kcf["failed"], kcf["nll"]) == ("1", "")
    with (tmp_path / "sequences.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["tracker"], row["sequence"]) for row in rows] == [
        ("ours", "easy"), ("ours", "hard <b>"), ("kcf", "easy"), ("kcf", "hard <b>"),
    ]  # fmt: skip
    assert rows[3]["error"] == "sequence hard <b>: out of luck"
    with (tmp_path / "frames_hard <b>.csv").open() as file:
        frames = list(csv.DictReader(file))
    assert len(frames) == 9
    assert frames[3]["stamp_ns"] == str(10**18 + 10**8)
    assert (frames[3]["iou"], frames[3]["state"], frames[3]["ms"]) == (
        "0.3333",
        "tracking",
        "20.00",
    )
    assert frames[8]["state"] == "lost"


def test_the_strip_shows_truth_and_boxes(results: Results) -> None:
    case = results.cases.cases[1]
    run = results.runs["ours", case.name]
    pictures = strip(case, {"ours": run}, {"ours": np.full(9, 1 / 3)})
    assert len(pictures) == STRIP_FRAMES
    assert {picture.shape for picture in pictures} == {(TILE[1], TILE[0], 3)}
    blue = np.array([180, 119, 31])  # of the first tracker, BGR
    for picture in pictures[1:]:
        near = np.abs(picture.astype(int) - blue).max(axis=2) < 12
        assert near.sum() > 100
        assert (picture.min(axis=2) > 240).sum() > 50  # the truth, in white


def test_a_bag_without_truth_has_path_score_and_time(
    make_sequence: MakeSequence, tmp_path: Path
) -> None:
    sequence = make_sequence("blind", count=6)
    run = made_run(sequence, 2, covariance=True)
    unknown = Sequence("blind", np.full((6, 4), np.nan), sequence.stamps, sequence.load)
    case = Case(unknown, box=Box(*sequence.boxes[0].tolist()), first_stamp=0)
    results = Results(Cases("bag blind", [case]), [TrackerSpec("ours", "vil", Path("w"))])
    results.runs = {("ours", "blind"): run}
    page = write_report(results, score(results), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert "time_blind.png" in names
    assert "frames_blind.csv" in names
    assert not names & {"success.png", "precision.png", "speed.png", "coverage.png"}
    assert "success AUC" not in page.read_text()
    picture = re.search(r"base64,([^']+)' alt='blind over time'", page.read_text())
    assert picture is not None
    image = cv2.imdecode(np.frombuffer(base64.b64decode(picture[1]), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[1] > 1000


@pytest.mark.parametrize(
    "boxes",
    [
        [],
        [Box(10, 10, 20, 20)],
        [Box(-50, -50, 60, 60), Box(600, 400, 100, 100)],
        [Box(700, 10, 5, 5)],
        [Box(300, 200, 2, 2)],
    ],
)
def test_a_window_shows_its_boxes_and_lies_in_the_frame(boxes: list[Box]) -> None:
    x0, y0, x1, y1 = window_around(boxes, (640, 480), 4 / 3)
    assert 0 <= x0 < x1 <= 640
    assert 0 <= y0 < y1 <= 480
    assert (x1 - x0) / (y1 - y0) == pytest.approx(4 / 3, abs=0.03)
    for box in boxes:
        if box.x < 640:
            assert x0 <= max(box.x, 0)
            assert x1 >= min(box.x + box.w, 640)
