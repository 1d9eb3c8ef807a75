"""Where weights come from: run.json, which the weights carry in their metadata as well."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import torch

from vil_tracker_core import weights
from vil_tracker_core.data.clips import ClipDataset
from vil_tracker_core.training.checkpoint import Progressed
from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.optimizer import Ema

RUN = "run.json"
WEIGHTS = "weights.safetensors"


def commit(file: Path = Path(__file__)) -> str:
    """The commit that a file of the code is of, with "-dirty" where tracked files have changed
    since; "unknown" where it is not under version control, though the folder that it is installed
    in may be."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(
            command, cwd=file.parent, capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def describe_data(clips: ClipDataset) -> dict[str, Any]:
    """How many clips there are, each source's share of them, and the images that were skipped."""
    sources = [
        {"source": type(source).__name__, "share": round(float(share), 4)}
        for source, share in zip(clips.sources, clips.shares, strict=True)
    ]
    return {"clips": len(clips), "sources": sources, "skipped": clips.skipped.reasons()}


def describe_run(config: TrainConfig, clips: ClipDataset, at: Progressed) -> dict[str, Any]:
    """What made the weights: data, config, seed, commit, duration in seconds."""
    return {
        "data": describe_data(clips),
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "step": at.step,
        "seconds": round(at.seconds, 1),
        "commit": commit(),
        "torch": torch.__version__,
    }


def save_weights(out: Path, config: TrainConfig, ema: Ema, run: dict[str, Any]) -> None:
    """The average's weights in half precision with their provenance, which run.json repeats."""
    tensors = {
        k: v.detach().cpu().half() if v.is_floating_point() else v.detach().cpu().clone()
        for k, v in ema.state.items()
    }
    weights.save(out / WEIGHTS, weights.Weights(config.model_config_of(), tensors, provenance=run))
    (out / RUN).write_text(json.dumps(run, indent=1) + "\n")
