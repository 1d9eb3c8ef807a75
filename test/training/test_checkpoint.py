"""A checkpoint holds all of a run, and is whole or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.training.checkpoint import Progressed, load_checkpoint, save_checkpoint
from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.optimizer import Ema, parameter_groups
from vil_tracker_core.training.student import Student

MakeConfig = Callable[..., TrainConfig]
BatchOf = Callable[..., dict[str, Tensor]]
TAUGHT = {"kind": "fear_xs", "folder": "nowhere", "block": 1}


def stepped(
    config: TrainConfig, batch: dict[str, Tensor], steps: int
) -> tuple[Student, Ema, torch.optim.Optimizer]:
    """A student that has taken some steps on one batch."""
    torch.manual_seed(0)
    student = Student(config)
    optimizer = torch.optim.AdamW(parameter_groups(student, config), lr=1e-3)
    ema = Ema(student.tracker, 0.9)
    for step in range(steps):
        student(batch)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(student.tracker, step)
    return student, ema, optimizer


def test_checkpoint_restores_everything(
    make_config: MakeConfig, batch_of: BatchOf, tmp_path: Path
) -> None:
    config = make_config(adaptive_losses=True)
    batch = batch_of(config)
    student, ema, optimizer = stepped(config, batch, 2)
    save_checkpoint(tmp_path, student, ema, optimizer, Progressed(step=2, seconds=1.5))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]

    torch.manual_seed(1)
    other = Student(config)
    other_optimizer = torch.optim.AdamW(parameter_groups(other, config), lr=1e-3)
    other_ema = Ema(other.tracker, 0.9)
    assert load_checkpoint(tmp_path, other, other_ema, other_optimizer) == Progressed(2, 1.5)
    for one, two in ((student.state_dict(), other.state_dict()), (ema.state, other_ema.state)):
        assert set(one) == set(two)
        assert all(torch.equal(one[name], two[name]) for name in one)
    one_state, two_state = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert set(one_state) == set(two_state)
    for index, item in one_state.items():
        assert set(item) == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(item[key], two_state[index][key]) for key in item)
    # and the next step is the same step
    for net, opt in ((student, optimizer), (other, other_optimizer)):
        net(batch)["total"].backward()
        opt.step()
    for one, two in zip(student.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-7)


def test_checkpoint_of_another_run_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    """It was made with a teacher, and this run has none."""
    config = make_config()
    taught = Student(make_config(teacher=TAUGHT))
    optimizer = torch.optim.AdamW(parameter_groups(taught, config), lr=1e-3)
    save_checkpoint(tmp_path, taught, Ema(taught.tracker, 0.9), optimizer, Progressed())
    plain = Student(config)
    fresh = torch.optim.AdamW(parameter_groups(plain, config), lr=1e-3)
    with pytest.raises(DataError, match=r"checkpoint\.safetensors"):
        load_checkpoint(tmp_path, plain, Ema(plain.tracker, 0.9), fresh)


def test_damaged_checkpoint_is_named(
    make_config: MakeConfig, batch_of: BatchOf, tmp_path: Path
) -> None:
    config = make_config()
    student, ema, optimizer = stepped(config, batch_of(config), 1)
    save_checkpoint(tmp_path, student, ema, optimizer, Progressed(step=1))
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"checkpoint\.safetensors"):
        load_checkpoint(tmp_path, student, ema, optimizer)
