"""The two phases: what is off, what is frozen, and that a frozen part does not move at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vil_tracker_core import weights
from vil_tracker_core.model import film as film_module
from vil_tracker_core.model.presets import preset
from vil_tracker_core.model.tracker import ViLTracker
from vil_tracker_core.training.config import TrainConfig, load_config
from vil_tracker_core.training.loop import train
from vil_tracker_core.training.phases import Stage, stage_at

MakeConfig = Callable[..., TrainConfig]
CONFIGS = Path(__file__).parents[2] / "config" / "train"


def test_stage_by_hand(make_config: MakeConfig) -> None:
    config = make_config(steps=300, difficulty_from=0.0, difficulty_steps=50, film_from=30)
    assert stage_at(config, 0) == Stage(level=0.0, film=False)
    assert stage_at(config, 29) == Stage(level=pytest.approx(0.58), film=False)
    assert stage_at(config, 30) == Stage(level=pytest.approx(0.6), film=True)
    assert stage_at(config, 50) == stage_at(config, 299) == Stage(level=1.0, film=True)


def test_reference_phase_1() -> None:
    """Over 300 epochs: hard from epoch 50 on, FiLM from epoch 30 on, nothing frozen."""
    config = load_config(CONFIGS / "vil_s_phase1.yaml")
    epoch = config.epoch_steps
    assert config.steps == 300 * epoch
    assert stage_at(config, 0) == Stage(level=0.0, film=False)
    assert stage_at(config, 25 * epoch) == Stage(level=0.5, film=False)
    assert not stage_at(config, 30 * epoch - 1).film
    assert stage_at(config, 30 * epoch).film
    assert stage_at(config, 50 * epoch - 1).level < 1
    assert stage_at(config, 50 * epoch) == Stage(level=1.0, film=True)
    assert config.model_config_of() == preset("vil_s")
    assert not config.freeze_shared_experts
    assert not config.adaptive_losses
    assert config.losses.contrastive == 0
    assert config.teacher is None


def test_reference_phase_2() -> None:
    """Over 100 epochs, from phase 1's weights."""
    first, config = (load_config(CONFIGS / f"vil_s_phase{phase}.yaml") for phase in (1, 2))
    assert config.steps == 100 * config.epoch_steps
    assert config.model == first.model
    assert config.init == Path("runs/vil_s_phase1/weights.safetensors")
    assert stage_at(config, 0) == Stage(level=1.0, film=True)
    assert config.freeze_shared_experts
    assert config.adaptive_losses
    assert config.losses.contrastive > 0
    assert config.frames > 1, "without a second frame FiLM has no context"


def start_of(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """Weights to start from, in which FiLM is not at identity, as a file and as tensors."""
    torch.manual_seed(3)
    tracker = ViLTracker(preset("vil_tiny"))
    with torch.no_grad():
        for parameter in tracker.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    path = tmp_path / "start.safetensors"
    weights.save(path, weights.Weights(tracker.config, tracker.state_dict()))
    return path, {k: v.clone() for k, v in tracker.state_dict().items()}


def trained(out: Path) -> dict[str, Tensor]:
    """The tracker of a run's checkpoint, not its average."""
    tensors = load_file(out / "checkpoint.safetensors")
    start = "student.tracker."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_frozen_experts_do_not_move(make_config: MakeConfig, tmp_path: Path) -> None:
    """Nor decay, at a rate at which everything else is much changed."""
    path, before = start_of(tmp_path)
    config = make_config(
        init=path, steps=2, frames=2, lr=1e-2, weight_decay=10.0, freeze_shared_experts=True
    )
    train(config, tmp_path / "run")
    shared = {name for name in before if ".mlp.shared." in name}
    assert len(shared) == 3
    changed = moved(before, trained(tmp_path / "run"))
    assert not changed & shared
    assert {name for name in before if ".mlp.experts." in name} <= changed
    assert "backbone.blocks.0.cell.up.weight" in changed


def test_unfrozen_experts_move(make_config: MakeConfig, tmp_path: Path) -> None:
    path, before = start_of(tmp_path)
    train(make_config(init=path, steps=1, lr=1e-2), tmp_path / "run")
    shared = {name for name in before if ".mlp.shared." in name}
    assert shared <= moved(before, trained(tmp_path / "run"))


def test_film_joins_when_its_time_has_come(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # hardly an answer of an untrained net overlaps with its drawn box, without which no deltas
    monkeypatch.setattr(film_module, "ALIKE", -1.0)
    path, before = start_of(tmp_path)
    film = {name for name in before if name.startswith("film.")}
    values = {"init": path, "frames": 2, "lr": 1e-2, "film_weight_decay": 10.0, "film_from": 2}
    train(make_config(steps=2, **values), tmp_path / "off")
    assert not moved(before, trained(tmp_path / "off")) & film
    train(make_config(steps=3, **values), tmp_path / "on")
    assert film <= moved(before, trained(tmp_path / "on"))
