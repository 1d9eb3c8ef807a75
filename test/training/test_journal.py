"""What a run says of itself: lines in a file, a bar in a terminal, TensorBoard's scalars."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vil_tracker_core.training import journal
from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.journal import Journal

MakeConfig = Callable[..., TrainConfig]


def note(
    config: TrainConfig, out: Path, steps: range, terminal: bool = False, first: int = 0
) -> str:
    """What is printed of steps that wait 1 s and compute 3 s each."""
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=200)
    with Journal(out, config, first, console) as taken:
        for step in steps:
            losses = {"total": 100.0 / step, "overlap": step / 100}
            taken.add(step, losses, {"learning_rate": step * 1e-3}, waited=1.0, worked=3.0)
    return shown.getvalue()


def scalars(out: Path, name: str) -> dict[int, float]:
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_lines_where_there_is_no_terminal(make_config: MakeConfig, tmp_path: Path) -> None:
    """The first report, then now and then, then the last; 4 clips in 4 s a step."""
    lines = note(make_config(steps=50), tmp_path, range(1, 51)).splitlines()
    assert [line.split(",")[0] for line in lines] == ["step 20/50", "step 50/50"]
    assert "loss 5.000, overlap 0.200, 1.0 clips/s" in lines[0]
    assert "waiting for data 25%, computing 75%" in lines[0]
    assert lines[0].endswith(" left")
    assert "loss 2.000" in lines[1]


def test_lines_come_now_and_then(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "LINE_SECONDS", 0.0)
    lines = note(make_config(steps=50), tmp_path, range(1, 51)).splitlines()
    assert [line.split(",")[0] for line in lines] == ["step 20/50", "step 40/50", "step 50/50"]


def test_bar_in_a_terminal(make_config: MakeConfig, tmp_path: Path) -> None:
    shown = note(make_config(steps=20), tmp_path, range(1, 21), terminal=True)
    assert "20/20" in shown
    assert "waiting for data 25%, computing 75%" in shown
    assert "step 20/20" not in shown, "a line as well would break the bar"


def test_every_step_is_in_the_log(make_config: MakeConfig, tmp_path: Path) -> None:
    note(make_config(steps=30), tmp_path, range(1, 8))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 8))
    assert lines[1] == {"step": 2, "total": 50.0, "overlap": 0.02}


def test_scalars(make_config: MakeConfig, tmp_path: Path) -> None:
    note(make_config(steps=50), tmp_path, range(1, 51))
    assert scalars(tmp_path, "loss/total") == pytest.approx({20: 5.0, 40: 2.5, 50: 2.0})
    assert scalars(tmp_path, "loss/overlap") == pytest.approx({20: 0.2, 40: 0.4, 50: 0.5})
    rates = {20: 0.02, 40: 0.04, 50: 0.05}
    assert scalars(tmp_path, "course/learning_rate") == pytest.approx(rates)
    assert scalars(tmp_path, "speed/clips_per_second")[50] == pytest.approx(1.0)
    assert scalars(tmp_path, "speed/waiting_share")[40] == pytest.approx(0.25)


def test_resumed_run_goes_on_where_its_checkpoint_is(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """A killed run had noted 40 steps, its checkpoint holds 30."""
    config = make_config(steps=60)
    note(config, tmp_path, range(1, 41))
    shown = note(config, tmp_path, range(31, 61), first=30)
    steps = [json.loads(x)["step"] for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))
    assert list(scalars(tmp_path, "loss/total")) == [20, 40, 60]
    # ten steps since the resumption make the first report, and their speed is theirs alone
    assert shown.startswith("step 40/60")
    assert "1.0 clips/s" in shown


def test_what_is_held_out_has_a_line_a_checkpoint(make_config: MakeConfig, tmp_path: Path) -> None:
    """A resumed run drops what was noted after the checkpoint that it begins with."""
    shown = io.StringIO()
    for first, steps in ((0, (10, 20, 30)), (20, (25, 40))):
        with Journal(tmp_path, make_config(steps=40), first, Console(file=shown)) as taken:
            for step in steps:
                taken.checked(step, step / 50)
    lines = [json.loads(line) for line in (tmp_path / "held.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "overlap": step / 50} for step in (10, 20, 25, 40)]
    assert "checkpoint after step 25: overlap 0.500 on what is held out" in shown.getvalue()
    assert scalars(tmp_path, "held/overlap")[40] == pytest.approx(0.8)
