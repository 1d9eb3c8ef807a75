"""Where weights come from: this code's commit, and the data that was seen."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vil_tracker_core.training.batches import TaughtClips
from vil_tracker_core.training.checkpoint import Progressed
from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.provenance import commit, describe_run

MakeConfig = Callable[..., TrainConfig]


def test_run_is_described(make_config: MakeConfig) -> None:
    config = make_config({"cutouts": []}, seed=7, steps=3)
    run = describe_run(config, TaughtClips(config).clips, Progressed(step=2, seconds=12.345))
    assert (run["seed"], run["step"], run["seconds"]) == (7, 2, 12.3)
    assert TrainConfig.model_validate(run["config"]) == config
    assert run["data"]["clips"] == 12
    shares = {"Videos": 0.3, "BoxedStills": 0.1, "StillPatches": 0.15, "Composites": 0.45}
    assert run["data"]["sources"] == [{"source": k, "share": v} for k, v in shares.items()]
    assert run["data"]["skipped"] == []


def git(folder: Path, *arguments: str) -> str:
    name = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *name, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_of_the_code(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git(tmp_path, "init", "-q")
    (tmp_path / "other.txt").write_text("of another project, into which we are installed\n")
    git(tmp_path, "add", "other.txt")
    git(tmp_path, "commit", "-q", "-m", "first")
    (tmp_path / "code.py").write_text("installed\n")
    assert commit(tmp_path / "code.py") == "unknown"

    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "second")
    assert commit(tmp_path / "code.py") == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "other.txt").write_text("changed\n")
    assert commit(tmp_path / "code.py") == git(tmp_path, "rev-parse", "HEAD") + "-dirty"


def test_commit_of_this_code() -> None:
    assert re.fullmatch(r"unknown|[0-9a-f]{40}(-dirty)?", commit())
