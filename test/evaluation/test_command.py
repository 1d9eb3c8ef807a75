"""`vil-tracker eval` and `vil-tracker bag eval`, as processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from vil_tracker_core.data.sequence import Sequence
from vil_tracker_core.evaluation.bags import make_bag

MakeSequence = Callable[..., Sequence]
WriteSequence = Callable[[Sequence, Path], Path]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "from vil_tracker_core.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=180,
    )


def test_eval_prints_json_alone_and_its_status_tells_of_faults(
    make_sequence: MakeSequence, write_sequence: WriteSequence, tmp_path: Path
) -> None:
    for name in ("a", "bb"):
        write_sequence(make_sequence(name, count=4), tmp_path / "data")
    (tmp_path / "data/bb/img/0003.png").write_bytes(b"none")
    done = run("eval", "folder", "data", "--tracker", "kcf", "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == ["trackers"]
    assert found["trackers"]["kcf"]["auc"] == found["trackers"]["kcf"]["sequences"]["a"]["auc"]
    assert "0003.png" in found["trackers"]["kcf"]["sequences"]["bb"]["error"]
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("vil-tracker: kcf: sequence bb, frame 3 of 4: data/bb/img/0003.png is")
    assert (tmp_path / "out/eval/index.html").is_file()


def test_eval_of_nothing_is_one_sentence(tmp_path: Path) -> None:
    done = run("eval", "folder", "nowhere", "--tracker", "kcf", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "vil-tracker: nowhere is not a folder: give one that holds sequences"
    )


def test_bag_eval_with_a_box_and_no_truth(make_sequence: MakeSequence, tmp_path: Path) -> None:
    make_bag(replace(make_sequence(count=5), boxes=np.full((5, 4), np.nan)), tmp_path / "bag")
    arguments = ("bag", "eval", "bag", "--tracker", "kcf", "--out", "o")
    done = run(*arguments, "--box", "10,30,26,20", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "report: o/index.html" in done.stdout
    assert (tmp_path / "o/time_bag.png").is_file()
    assert len((tmp_path / "o/frames_bag.csv").read_text().splitlines()) == 6
    wrong = run(*arguments, "--box", "ten", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr.strip()) == (
        2,
        "vil-tracker: --box 'ten' is not x,y,w,h in pixels",
    )
