"""The soak run, 30 seconds of it: nothing grows, and every frame is accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vil_tracker_ros import soak

SECONDS = 30


def test_the_scene_goes_round() -> None:
    frames, boxes = soak.scene((320, 240))
    assert len(frames) == len(boxes) == soak.SCENE_FRAMES
    x, y, w, h = (int(value) for value in boxes[7])
    assert frames[7].shape == (240, 320, 3)
    assert frames[7][y : y + h, x : x + w].min() >= 127  # the target is the bright part
    steps = np.diff([*boxes, boxes[0]], axis=0)
    assert np.abs(steps).max() < 10


def test_frames_of_one_track_alone() -> None:
    """One that follows frames with two within a second does not count."""
    stamps = [10**18 + 250 * 10**6 * number for number in range(14)]
    tracks = [1, 1, 2, 2, 1, 1, 1, 1, 0, 1, 2, 1, 1, 1]
    assert soak._alone(stamps, tracks) == [0, 1, 7, 8, 9]


def test_thirty_seconds(domain: int, tiny: str, tmp_path: Path) -> None:
    arguments = ["--seconds", str(SECONDS), "--size", "640x480", "--out", str(tmp_path)]
    # few frames are held, so that their number, which hangs on the machine's speed, is no growth
    arguments += ["--param", tiny, "--param", "init_memory:=10"]
    assert soak.main(arguments) == 0
    report = json.loads((tmp_path / "soak.json").read_text())
    assert report["sent"] > SECONDS * report["rate"]
    assert report["unaccounted"] == report["failed"] == 0
    assert report["answered"] + report["dropped"] == report["sent"]
    assert report["answered"] > 0
    assert 0 < report["alone_p50"] <= report["alone_p99"] <= report["latency_max"]
    assert report["memory_end"] - report["memory_start"] < 20
    assert report["threads_end"] <= report["threads_start"]


def test_a_node_that_cannot_start_ends_the_run(
    domain: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert soak.main(["--param", "weights:=nowhere", "--out", str(tmp_path)]) == 2
    assert "the node ended with status 2" in capfd.readouterr().err
