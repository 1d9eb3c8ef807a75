"""evaluation.benchmark: runs, their files, what is run again, faults, workers and ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from vil_tracker_core.data.sequence import DataError, Sequence
from vil_tracker_core.evaluation.benchmark import Results, Store, run_benchmark, run_case
from vil_tracker_core.evaluation.cases import BenchmarkSource, Case
from vil_tracker_core.evaluation.peers import PeerAnswer, parse_trackers
from vil_tracker_core.evaluation.scoring import score, short_json
from vil_tracker_core.geometry import Box, Image

MakeSequence = Callable[..., Sequence]
WriteSequence = Callable[[Sequence, Path], Path]


class StandStill:
    """Says the first box in every frame, but none in frames whose stamp is in ``silent``."""

    def __init__(self, silent: tuple[float, ...] = ()) -> None:
        self.silent, self.stamps = silent, list[float]()

    def init(self, frame: Image, box: Box, stamp: float) -> None:
        self.box = box
        self.stamps = [stamp]

    def update(self, frame: Image, stamp: float) -> PeerAnswer:
        self.stamps.append(stamp)
        return PeerAnswer(None, None) if stamp in self.silent else PeerAnswer(self.box, 0.5)


@pytest.fixture
def root(make_sequence: MakeSequence, write_sequence: WriteSequence, tmp_path: Path) -> Path:
    for name in ("a", "bb", "ccc"):
        write_sequence(make_sequence(name, count=6), tmp_path / "data")
    return tmp_path / "data"


def run(root: Path, out: Path, trackers: str = "kcf", workers: int = 1) -> Results:
    source = BenchmarkSource("folder", root)
    results = run_benchmark(source, parse_trackers(trackers), out, workers=workers)
    assert results is not None
    return results


# --- One run --------------------------------------------------------------------------------------


def test_a_run_by_hand(make_sequence: MakeSequence) -> None:
    sequence = make_sequence(count=5)
    tracker = StandStill(silent=(3 / 30,))
    found = run_case(tracker, Case(sequence))
    first = sequence.boxes[0]
    np.testing.assert_array_equal(found.boxes[[0, 1, 2, 4]], np.repeat(first[None], 4, axis=0))
    assert np.isnan(found.boxes[3]).all()
    np.testing.assert_array_equal(found.scores, [1, 0.5, 0.5, np.nan, 0.5])
    assert np.isfinite(found.seconds).tolist() == [False, True, True, True, True]
    assert tracker.stamps == sequence.stamps.tolist()
    assert (found.start, found.frame_size) == (0, (128, 96))


def test_a_run_starts_on_the_first_visible_frame_or_on_a_given_box(
    make_sequence: MakeSequence,
) -> None:
    late = make_sequence(count=5, absent=(0, 1))
    found = run_case(StandStill(), Case(late))
    assert found.start == 2
    assert np.isnan(found.boxes[:2]).all()
    np.testing.assert_array_equal(found.boxes[2], late.boxes[2])
    drawn = run_case(StandStill(), Case(late, box=Box(1, 2, 30, 40)))
    assert (drawn.start, drawn.boxes[0].tolist()) == (0, [1, 2, 30, 40])
    blind = make_sequence(count=2, absent=(0, 1))
    with pytest.raises(DataError, match="car has no box to start on"):
        run_case(StandStill(), Case(blind))


def test_a_long_sequence_keeps_no_frames(make_sequence: MakeSequence) -> None:
    sequence = make_sequence(count=3000)
    alive, most = 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def load(index: int) -> Image:
        nonlocal alive, most
        frame = sequence.load(index % 40)
        weakref.finalize(frame, gone)
        alive += 1
        most = max(most, alive)
        return frame

    found = run_case(StandStill(), Case(replace(sequence, load=load)))
    assert len(found.boxes) == 3000
    assert most <= 2


def test_our_tracker_runs_with_covariance_and_state(
    tiny_weights: Path, make_sequence: MakeSequence
) -> None:
    tracker = parse_trackers(str(tiny_weights))[0].open()
    found = run_case(tracker, Case(make_sequence(count=4)))
    assert np.isfinite(found.covariances[1:]).all()
    assert np.isnan(found.covariances[0]).all()
    assert (found.states[1:] > 0).all()


# --- Files ----------------------------------------------------------------------------------------


def test_a_run_is_kept_whole(make_sequence: MakeSequence, tmp_path: Path) -> None:
    made = run_case(StandStill(silent=(2 / 30,)), Case(make_sequence(count=4)))
    store = Store(tmp_path)
    store.save("still", "car", made, "print")
    kept = store.load("still", "car", "print")
    assert kept is not None
    assert (kept.start, kept.frame_size) == (made.start, made.frame_size)
    for name in ("boxes", "scores", "covariances", "states", "seconds"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(made, name))
    assert store.load("still", "car", "another print") is None
    assert store.load("still", "bus", "print") is None
    (tmp_path / "runs" / "still" / "car.npz").write_bytes(b"PK\x03\x04 cut")
    assert store.load("still", "car", "print") is None


def test_results_in_the_toolkits_form(make_sequence: MakeSequence, tmp_path: Path) -> None:
    made = run_case(StandStill(silent=(2 / 30,)), Case(make_sequence(count=3)))
    Store(tmp_path / "flat", origin=1).save("still", "car", made, "")
    lines = (tmp_path / "flat/boxes/still/car.txt").read_text().splitlines()
    # the origin is 1, as in OTB's files; no box is 0,0,0,0
    assert lines == ["11.000,31.000,26.000,20.000"] * 2 + ["0.000,0.000,0.000,0.000"]
    times = np.loadtxt(tmp_path / "flat/boxes/still/times/car_time.txt")
    np.testing.assert_allclose(times, np.nan_to_num(made.seconds), atol=1e-8)
    Store(tmp_path / "got", nested=True).save("still", "car", made, "")
    names = sorted(path.name for path in (tmp_path / "got/boxes/still/car").iterdir())
    assert names == ["car_001.txt", "car_time.txt"]


# --- Benchmarks -----------------------------------------------------------------------------------


def test_finished_runs_are_taken_over_until_something_changes(
    root: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    out, both = tmp_path / "out", f"kcf,{tiny_weights}"
    first = run(root, out, both)
    assert (len(first.runs), first.resumed, first.faults) == (6, 0, [])
    again = run(root, out, both)
    assert again.resumed == 6
    for key, found in again.runs.items():
        np.testing.assert_array_equal(found.seconds, first.runs[key].seconds)  # not run again
    # one sequence's frame, another's truth
    image = root / "a" / "img" / "0003.png"
    cv2.imwrite(str(image), 255 - cv2.imread(str(image)))
    truth = root / "bb" / "groundtruth_rect.txt"
    truth.write_text(truth.read_text().replace("26.000", "25.000"))
    assert run(root, out, both).resumed == 2
    assert run(root, out, "csrt").resumed == 0  # another tracker
    assert run(root, out, "kcf").resumed == 3


def test_one_fault_leaves_the_other_sequences(root: Path, tmp_path: Path) -> None:
    (root / "a" / "img" / "0004.png").write_bytes(b"\x89PNG cut")
    truth = root / "bb" / "groundtruth_rect.txt"
    truth.write_text("\n".join(truth.read_text().splitlines()[:-1]) + "\n")
    results = run(root, tmp_path / "out")
    assert list(results.runs) == [("kcf", "ccc")]
    left_out, failed = results.faults
    assert "sequence bb is left out" in left_out
    assert f"{truth} has 5 boxes for 6 frames" in left_out
    assert "one line a frame is needed" in left_out
    assert "kcf: sequence a, frame 4 of 6:" in failed
    assert "0004.png is not a readable image" in failed
    assert "replace it, or take the sequence out" in failed
    # the mended sequence is run, the others are kept
    (root / "a" / "img" / "0004.png").write_bytes((root / "a/img/0003.png").read_bytes())
    mended = run(root, tmp_path / "out")
    assert (len(mended.runs), mended.resumed, len(mended.faults)) == (2, 1, 1)


def test_a_tracker_that_refuses_a_box_is_named(
    make_sequence: MakeSequence, write_sequence: WriteSequence, tmp_path: Path
) -> None:
    small = make_sequence("small", count=3)
    small.boxes[:, 2:] = 1.0
    write_sequence(small, tmp_path / "data")
    results = run(tmp_path / "data", tmp_path / "out")
    (fault,) = results.faults
    assert "kcf: sequence small: box x=10" in fault
    assert "too small" in fault


def test_workers_give_what_one_process_gives(root: Path, tmp_path: Path) -> None:
    (root / "bb" / "img" / "0004.png").unlink()
    (root / "bb" / "img" / "0007.png").write_bytes(b"none")
    alone, shared = run(root, tmp_path / "one"), run(root, tmp_path / "two", workers=2)
    assert alone.runs.keys() == shared.runs.keys()
    for key, found in alone.runs.items():
        np.testing.assert_array_equal(found.boxes, shared.runs[key].boxes)
    assert alone.failed == shared.failed
    assert list(alone.failed) == [("kcf", "bb")]


RANK = """
import json, sys
from pathlib import Path
from vil_tracker_core.evaluation.benchmark import run_benchmark
from vil_tracker_core.evaluation.cases import BenchmarkSource
from vil_tracker_core.evaluation.peers import parse_trackers
root, out = map(Path, sys.argv[1:])
results = run_benchmark(BenchmarkSource("folder", root), parse_trackers("kcf"), out)
print(json.dumps(None if results is None else [sorted(results.runs), results.resumed,
                                               list(results.failed.values())]))
"""


def start_rank(rank: int, root: Path, out: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}
    return subprocess.Popen(
        [sys.executable, "-c", RANK, str(root), str(out)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_ranks_share_the_runs_and_rank_0_has_them_all(root: Path, tmp_path: Path) -> None:
    (root / "bb" / "img" / "0002.png").write_bytes(b"none")  # bb is rank 1's
    out = tmp_path / "out"
    Store(out).save_failure("kcf", "bb", "an older run's fault")
    os.utime(out / "runs/kcf/bb.failed.json", (1, 1))
    ranks = [start_rank(rank, root, out) for rank in (1, 0)]
    said = [json.loads(rank.communicate(timeout=120)[0]) for rank in ranks]
    assert said[0] is None
    runs, resumed, failed = said[1]
    assert runs == [["kcf", "a"], ["kcf", "ccc"]]
    assert resumed == 0
    assert len(failed) == 1
    assert "0002.png is not a readable image" in failed[0]


def test_rank_0_takes_over_from_a_rank_that_has_ended(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "ranks").mkdir(parents=True)
    (tmp_path / "out" / "ranks" / "1").write_text("ended")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len(run(root, tmp_path / "out").runs) == 3


def test_the_auc_of_csrt_equals_an_implementation_of_its_own(
    make_sequence: MakeSequence, write_sequence: WriteSequence, tmp_path: Path
) -> None:
    """Tracker and metric written down again, with nothing of ours."""
    folder = write_sequence(make_sequence(count=8, absent=(5,)), tmp_path / "data")
    truth = np.loadtxt(folder / "groundtruth_rect.txt", delimiter=",")
    frames = [cv2.imread(str(path)) for path in sorted((folder / "img").iterdir())]
    tracker = cv2.TrackerCSRT_create()
    tracker.init(frames[0], [int(v) for v in truth[0]])
    boxes = [truth[0].tolist()] + [tracker.update(frame)[1] for frame in frames[1:]]
    aucs = []
    for (x, y, w, h), (tx, ty, tw, th) in zip(boxes, truth.tolist(), strict=True):
        if np.isnan(tx):
            continue
        shared = max(min(x + w, tx + tw) - max(x, tx), 0) * max(min(y + h, ty + th) - max(y, ty), 0)
        overlap = shared / (w * h + tw * th - shared)
        aucs.append(sum(overlap > threshold / 20 for threshold in range(21)) / 21)
    results = run(tmp_path / "data", tmp_path / "out", "csrt")
    printed = short_json(score(results))
    expected = sum(aucs) / len(aucs)
    assert printed["trackers"]["csrt"]["auc"] == pytest.approx(expected, abs=1e-6)  # type: ignore[index]
