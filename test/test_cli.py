"""The command `vil-tracker`, as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vil_tracker_core.data.sequence import read_folder


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = "from vil_tracker_core.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
    )


def test_help_lists_the_commands() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in ("info", "train", "flight", "demo", "bag"):
        assert command in done.stdout


def test_info_of_the_reference() -> None:
    done = run("info", "vil_s", "--json")
    values = json.loads(done.stdout)
    assert values["parameters"] == pytest.approx(36.33e6, rel=0.01)
    assert values["config"]["dim"] == 384


def test_info_of_the_shipped_weights_tells_their_origin() -> None:
    done = run("info", "vil_nano", "--json")
    values = json.loads(done.stdout)
    assert values["parameters"] < 4e6
    assert values["provenance"]["config"]["model"] == "vil_nano"
    assert len(values["calibration"]["scale"]) == 4


def test_flight_to_bag_and_back(tmp_path: Path) -> None:
    assert run("flight", str(tmp_path / "f"), "--frames", "3", "--fps", "10").returncode == 0
    made = run("bag", "make", str(tmp_path / "f"), str(tmp_path / "bag"), "--quality", "80")
    assert made.returncode == 0, made.stderr
    shown = run("bag", "info", str(tmp_path / "bag"))
    assert "/ground_truth" in shown.stdout
    sequence = read_folder(tmp_path / "f")
    assert len(sequence) == 3
    assert sequence.visible.all()
    assert sequence.stamps[1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("info", "nothing"), "'nothing' is neither a weights file"),
        (("train", "nothing.yaml"), "nothing.yaml does not exist"),
        (("bag", "info", "nothing"), "nothing"),
        (("bag", "make", "nothing", "out"), "nothing has no folder img/"),
    ],
)
def test_faults_end_in_one_sentence(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().count("\n") == 0
