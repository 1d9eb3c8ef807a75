"""Publishing finished weights on the Hugging Face Hub.

The token is the one that `hf auth login` keeps or HF_TOKEN holds, and HF_ENDPOINT names another
Hub: huggingface_hub reads them itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi

from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.training.config import HubConfig
from vil_tracker_core.training.provenance import RUN, WEIGHTS

_CARD = """---
library_name: vil-tracker
tags: [object-tracking, vision-lstm, drone]
---
# {name}

Weights of the ViL tracker ({model}), {step} steps. `vil-tracker info {weights}` prints their
provenance, which `{run}` repeats.
"""


def model_card(hub: HubConfig, run: dict[str, Any]) -> str:
    """The repository's README.md."""
    name, model = hub.repo.split("/")[1], run["config"]["model"]
    return _CARD.format(name=name, model=model, step=run["step"], weights=WEIGHTS, run=RUN)


@contextmanager
def _in_one_sentence(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # its HTTP errors have other bases from version to version
        said = " ".join(str(error).split())
        raise DataError(f"hub: {what}: {said or type(error).__name__}") from error


def prepare(hub: HubConfig) -> None:
    """Makes the repository where there is none; raises DataError where that is not allowed."""
    with _in_one_sentence(f"{hub.repo} cannot be written to"):
        HfApi().create_repo(hub.repo, private=hub.private, exist_ok=True)


def push(hub: HubConfig, out: Path) -> None:
    """Publishes a finished run's weights, run.json and a model card as one commit."""
    run = json.loads((out / RUN).read_text())
    files: dict[str, Path | bytes] = {
        WEIGHTS: out / WEIGHTS,
        RUN: out / RUN,
        "README.md": model_card(hub, run).encode(),
    }
    with _in_one_sentence(f"{out} was not published to {hub.repo}, the weights are whole there"):
        HfApi().create_commit(
            hub.repo,
            [
                CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
                for name, content in files.items()
            ],
            commit_message=f"{run['config']['model']}, {run['step']} steps",
        )
