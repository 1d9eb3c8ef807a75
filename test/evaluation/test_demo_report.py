"""evaluation.demo_report: the figures by hand, the files by looking into them."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from vil_tracker_core.evaluation.demo_report import ClipRun, FrameRecord, draw, write_report
from vil_tracker_core.geometry import Box

TRUTH = Box(40, 30, 20, 10)


def record(index: int, box: Box | None, state: int = 1, latency: float = 0.02) -> FrameRecord:
    known = box is not None
    return FrameRecord(
        stamp=index * 100_000_000,
        frame=np.full((120, 160, 3), 40, dtype=np.uint8),
        truth=TRUTH,
        box=box,
        covariance=np.diag([4.0, 1.0, 9.0, 9.0]) if known else None,
        score=0.9 if known else None,
        state=state if known else None,
        arrived=index * 0.1 + latency if known else None,
        latency=latency if known else None,
    )


@pytest.fixture
def run() -> ClipRun:
    half = Box(40, 30, 10, 10)  # half of the truth: IoU 1/2
    return ClipRun(
        "a<b",
        [
            record(0, TRUTH),
            record(1, half, state=2, latency=0.04),
            record(2, TRUTH, state=3),
            record(3, None),
        ],
    )


def test_summary_by_hand(run: ClipRun) -> None:
    # overlaps 1, 1/2, 0 (lost is no detection), 0 (no answer)
    assert run.mean_overlap == pytest.approx(1.5 / 4)
    assert run.tracked == 2
    # answers at 0.02, 0.14, 0.22 s
    assert run.fps == pytest.approx(2 / 0.2)
    assert run.summary() == (
        "demo: clip=a<b frames=4 tracked=2 iou=0.38 fps=10.0 "
        "latency_ms_p50=20.0 latency_ms_p99=39.6"
    )


def test_a_run_without_answers_has_no_figures_but_a_summary() -> None:
    silent = ClipRun("silent", [record(0, None), record(1, None)])
    assert "tracked=0 iou=0.00 fps=nan latency_ms_p50=nan" in silent.summary()


def test_drawing_marks_the_box_and_leaves_the_frame_alone(run: ClipRun) -> None:
    first = run.records[0]
    before = first.frame.copy()
    drawn = draw(first)
    np.testing.assert_array_equal(first.frame, before)
    changed = np.argwhere((drawn != before).any(axis=2))
    assert len(changed) > 50
    edge = drawn[30, 50].astype(int)
    assert edge[1] > edge[2] + 40  # green: tracking


def test_files(run: ClipRun, tmp_path: Path) -> None:
    named = ClipRun("one", run.records)
    write_report([named], tmp_path / "out")
    with (tmp_path / "out" / "detections.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert rows[1]["state"] == "uncertain"
    assert float(rows[1]["iou"]) == pytest.approx(0.5)
    assert (rows[3]["x"], rows[3]["iou"]) == ("", "0.0000")
    assert float(rows[0]["var_cx"]) == 4
    assert Image.open(tmp_path / "out" / "one.gif").n_frames == 2
    assert cv2.imread(str(tmp_path / "out" / "one.png")) is not None
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("data:image/") == 2
    assert "http" not in page.replace("https://", "http://").split("base64")[0]


def test_names_are_escaped(run: ClipRun, tmp_path: Path) -> None:
    write_report([ClipRun("a&b", run.records)], tmp_path)
    assert "a&amp;b" in (tmp_path / "index.html").read_text()
