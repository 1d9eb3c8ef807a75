"""The state of a run in one file: nets, their average, the optimiser, and how far it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.training.optimizer import Ema

FILE = "checkpoint.safetensors"


@dataclass
class Progressed:
    """What a checkpoint knows beside tensors."""

    step: int = 0
    seconds: float = 0.0


def _flat_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, item in state.items() for key, value in item.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**whole, "state": state})


def save_checkpoint(
    folder: Path, student: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer, at: Progressed
) -> None:
    """One file, written under a temporary name and renamed: a crash leaves the old one whole."""
    tensors = {f"student.{k}": v for k, v in student.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.state.items()}
    tensors |= {f"optimizer.{k}": v for k, v in _flat_optimizer(optimizer).items()}
    temporary = folder / f"{FILE}.part"
    save_file(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
        temporary,
        {"progress": json.dumps(vars(at))},
    )
    temporary.replace(folder / FILE)


def load_checkpoint(
    folder: Path, student: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer
) -> Progressed:
    """Restores all that `save_checkpoint` kept."""
    path = folder / FILE
    if not path.is_file():
        raise DataError(f"{path} does not exist: there is nothing to resume")
    try:
        with safe_open(str(path), framework="pt") as file:
            at = Progressed(**json.loads(file.metadata()["progress"]))
        tensors = load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path} is damaged and cannot be resumed: {error}") from None
    parts: dict[str, dict[str, Tensor]] = {"student": {}, "ema": {}, "optimizer": {}}
    for name, value in tensors.items():
        part, key = name.split(".", 1)
        parts[part][key] = value
    expected = {name: value.shape for name, value in student.state_dict().items()}
    if {name: value.shape for name, value in parts["student"].items()} != expected:
        raise DataError(f"{path} is of another model or teacher than this run: it does not fit")
    student.load_state_dict(parts["student"])
    ema.state = parts["ema"]
    _load_optimizer(optimizer, parts["optimizer"])
    return at
