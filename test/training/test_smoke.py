"""config/train/smoke.yaml: the whole pipeline from this repository's own files."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
from typer.testing import CliRunner

from vil_tracker_core.cli import app
from vil_tracker_core.training.config import load_config
from vil_tracker_core.training.loop import train

ROOT = Path(__file__).parents[2]
SMOKE = Path("config/train/smoke.yaml")


def test_loss_falls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first quarter of it, in one process."""
    monkeypatch.chdir(ROOT)
    config = load_config(SMOKE)
    data = config.data.model_copy(update={"workers": 0})
    train(config.model_copy(update={"data": data, "steps": 25}), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    totals = [line["total"] for line in lines]
    assert sum(totals[-5:]) < 0.7 * sum(totals[:5])
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["data"]["skipped"] == []


def test_contact_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, ["train", str(SMOKE), "--out", str(tmp_path / "new"), "--show"])
    assert done.exit_code == 0, done.output
    path = tmp_path / "new" / "contact_sheet.jpg"
    assert str(path) in done.output
    sheet = cv2.imread(str(path))
    assert sheet is not None
    assert sheet.std() > 20
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing is trained"
