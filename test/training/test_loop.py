"""The training loop: a tiny run learns, stops when asked, and goes on as if it never had."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vil_tracker_core import weights
from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.model.presets import preset
from vil_tracker_core.model.tracker import ViLTracker
from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.loop import (
    Ema,
    Progressed,
    ShareOfProcess,
    Student,
    TaughtClips,
    learning_rate,
    load_checkpoint,
    parameter_groups,
    save_checkpoint,
    train,
)

MakeConfig = Callable[..., TrainConfig]
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """A failing test must not leave the next one with a run's signal handlers."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def batch_of(config: TrainConfig, micro: int = 0) -> dict[str, Tensor]:
    clips = TaughtClips(config)
    items = [clips[micro * config.batch + index] for index in range(config.batch)]
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def logged(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def naming(name: str) -> Callable[[str], str]:
    """Puts a tensor's name before what is said about it."""
    return lambda text: f"{name}: {text}"


def decays(config: TrainConfig) -> dict[str, float]:
    """Parameter name -> weight decay."""
    student = Student(config, teacher_channels=3)
    found = {}
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    for group in parameter_groups(student, config):
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in found, f"{name} is in two groups"
            found[name] = group["weight_decay"]
    assert set(found) == set(names.values()), "a parameter is in no group"
    return found


def test_biases_norms_gains_and_positions_do_not_decay(make_config: MakeConfig) -> None:
    config = make_config(weight_decay=0.05, film_weight_decay=0.02)
    student = Student(config, teacher_channels=3)
    norms = {
        f"{path}.weight"
        for path, module in student.named_modules()
        if "Norm" in type(module).__name__
    }
    free = {name for name, decay in decays(config).items() if decay == 0}
    assert norms <= free
    for name, _ in student.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if leaf in {"bias", "scale", "skip", "norm"} or leaf.endswith(("_position", "_type")):
            assert name in free


@pytest.mark.parametrize(
    ("name", "decay"),
    [
        ("tracker.backbone.blocks.0.cell.up.weight", 0.05),
        ("tracker.backbone.blocks.3.mlp.router.weight", 0.05),
        ("tracker.backbone.embedding.stem.0.weight", 0.05),
        ("tracker.centre_head.size.2.weight", 0.05),
        ("distillation.map.weight", 0.05),
        ("tracker.film.generators.0.0.weight", 0.02),
        ("tracker.film.calibrator.2.weight", 0.02),
        ("tracker.film.projection.weight", 0.02),
        ("tracker.film.projection.bias", 0.0),
        ("tracker.film.generators.0.2.bias", 0.0),
        ("tracker.backbone.embedding.stem.1.weight", 0.0),  # of a norm
        ("tracker.backbone.embedding.search_position", 0.0),
        ("tracker.backbone.embedding.search_type", 0.0),
        ("tracker.backbone.blocks.0.scale", 0.0),
        ("tracker.backbone.norm.weight", 0.0),
    ],
)
def test_decay_of(make_config: MakeConfig, name: str, decay: float) -> None:
    assert decays(make_config(weight_decay=0.05, film_weight_decay=0.02))[name] == decay


def test_learning_rate_warms_up_and_falls(make_config: MakeConfig) -> None:
    config = make_config(steps=110, warmup=10, lr=2e-3)
    rates = [learning_rate(config, step) for step in range(110)]
    assert rates[:10] == pytest.approx([2e-4 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(2e-3)
    assert rates[60] == pytest.approx(2e-3 * (0.01 + 0.99 / 2))  # half of the way down
    assert rates[85] == pytest.approx(2e-3 * (0.01 + 0.99 * (1 - math.sqrt(0.5)) / 2))
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(config, 110) == pytest.approx(2e-5)


def test_learning_rate_without_warmup(make_config: MakeConfig) -> None:
    config = make_config(steps=5, warmup=0, lr=1e-3)
    assert learning_rate(config, 0) == pytest.approx(1e-3)
    only_warmup = make_config(steps=5, warmup=5, lr=1e-3)
    assert learning_rate(only_warmup, 4) == pytest.approx(1e-3)


def test_ema_by_hand() -> None:
    module = nn.BatchNorm1d(1, affine=True)
    ema = Ema(module, decay=0.3)
    expected = 1.0
    # (1 + step) / (10 + step): 1/10, 2/11, ... reaches 0.3 at step 3 (4/13 > 0.3)
    for step, (value, decay) in enumerate(
        [(3.0, 1 / 10), (5.0, 2 / 11), (-2.0, 3 / 12), (4.0, 0.3), (0.5, 0.3)]
    ):
        with torch.no_grad():
            module.weight.fill_(value)
        module.num_batches_tracked.fill_(10 + step)
        ema.update(module, step)
        expected = decay * expected + (1 - decay) * value
        assert ema.state["weight"].item() == pytest.approx(expected)
        assert ema.state["num_batches_tracked"].item() == 10 + step
    assert module.weight.item() == 0.5, "the average must not write into the module"


def stepped(config: TrainConfig, steps: int) -> tuple[Student, Ema, torch.optim.Optimizer]:
    """A student that has taken some steps on one batch."""
    torch.manual_seed(0)
    student = Student(config, teacher_channels=0)
    optimizer = torch.optim.AdamW(parameter_groups(student, config), lr=1e-3)
    ema = Ema(student.tracker, 0.9)
    batch = batch_of(config)
    for step in range(steps):
        student(batch)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(student.tracker, step)
    return student, ema, optimizer


def test_checkpoint_restores_everything(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    student, ema, optimizer = stepped(config, 2)
    save_checkpoint(tmp_path, student, ema, optimizer, Progressed(step=2, seconds=1.5))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]

    torch.manual_seed(1)
    other = Student(config, teacher_channels=0)
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
    batch = batch_of(config)
    for net, opt in ((student, optimizer), (other, other_optimizer)):
        net(batch)["total"].backward()
        opt.step()
    for one, two in zip(student.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-7)


def test_checkpoint_of_another_run_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    """It was made with a teacher, and this run has none."""
    config = make_config()
    taught = Student(config, teacher_channels=3)
    optimizer = torch.optim.AdamW(parameter_groups(taught, config), lr=1e-3)
    save_checkpoint(tmp_path, taught, Ema(taught.tracker, 0.9), optimizer, Progressed())
    plain = Student(config, teacher_channels=0)
    fresh = torch.optim.AdamW(parameter_groups(plain, config), lr=1e-3)
    with pytest.raises(DataError, match=r"checkpoint\.safetensors"):
        load_checkpoint(tmp_path, plain, Ema(plain.tracker, 0.9), fresh)


def test_damaged_checkpoint_is_named(make_config: MakeConfig, tmp_path: Path) -> None:
    student, ema, optimizer = stepped(make_config(), 1)
    save_checkpoint(tmp_path, student, ema, optimizer, Progressed(step=1))
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"checkpoint\.safetensors"):
        load_checkpoint(tmp_path, student, ema, optimizer)


def test_processes_share_each_batch(make_config: MakeConfig) -> None:
    config = make_config(batch=4, accumulate=2, steps=3)
    shares = [list(ShareOfProcess(config, rank, 2, 0)) for rank in range(2)]
    assert shares[0][:4] == [0, 1, 4, 5]
    assert shares[1][:4] == [2, 3, 6, 7]
    assert sorted(shares[0] + shares[1]) == list(range(24))
    assert len(ShareOfProcess(config, 0, 2, 0)) == 12


def test_share_after_a_resumption_is_the_rest(make_config: MakeConfig) -> None:
    config = make_config(batch=4, accumulate=2, steps=3)
    whole, rest = (ShareOfProcess(config, 1, 2, first) for first in (0, 4))
    assert list(rest) == list(whole)[8:]
    assert len(rest) == 4


def test_batch_that_cannot_be_shared_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(DataError, match="batch 4 is not a multiple of the 3 processes"):
        ShareOfProcess(make_config(batch=4), 0, 3, 0)


def test_total_is_the_weighted_sum(make_config: MakeConfig) -> None:
    config = make_config(frames=2, losses={"focal": 1.5, "giou": 3.0, "l1": 0.5, "nll": 0.25})
    torch.manual_seed(0)
    losses = Student(config, teacher_channels=0)(batch_of(config))
    assert set(losses) == {"focal", "giou", "l1", "nll", "total"}
    expected = 1.5 * losses["focal"] + 3 * losses["giou"] + 0.5 * losses["l1"]
    torch.testing.assert_close(losses["total"], expected + 0.25 * losses["nll"])


def test_every_parameter_learns(make_config: MakeConfig, teacher_network: Path) -> None:
    """But for those that FiLM's identity start holds back for a step."""
    teacher = {"path": teacher_network, "tensor": "inner", "block": 3}
    config = make_config(frames=2, teacher=teacher)
    torch.manual_seed(0)
    student = Student(config, teacher_channels=3)
    student(batch_of(config))["total"].backward()
    idle = [
        name for name, p in student.named_parameters() if p.grad is None or not p.grad.any().item()
    ]
    held = ("tracker.film.generators", "tracker.film.calibrator", "tracker.film.projection")
    assert [name for name in idle if not name.startswith(held)] == []
    assert "tracker.film.generators.0.2.weight" not in idle


def test_learns_one_batch(make_config: MakeConfig) -> None:
    config = make_config()
    torch.manual_seed(0)
    student = Student(config, teacher_channels=0)
    optimizer = torch.optim.AdamW(parameter_groups(student, config), lr=5e-3)
    batch = batch_of(config)
    totals = []
    for _ in range(12):
        loss = student(batch)["total"]
        totals.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert totals[-1] < 0.7 * totals[0]


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """The process gets a real signal at the end of a step."""
    update = Ema.update

    def updating(ema: Ema, module: nn.Module, at: int) -> None:
        update(ema, module, at)
        if at + 1 == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Ema, "update", updating)


def test_run_makes_weights_log_and_provenance(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(steps=3, frames=2)
    before = [signal.getsignal(number) for number in SIGNALS]
    path = train(config, tmp_path / "new" / "run")
    assert [signal.getsignal(number) for number in SIGNALS] == before

    out = path.parent
    assert {p.name for p in out.iterdir()} == {
        "checkpoint.safetensors",
        "weights.safetensors",
        "run.json",
        "log.jsonl",
    }
    lines = logged(out)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert set(line) == {"step", "focal", "giou", "l1", "nll", "total"}
        assert all(math.isfinite(value) for value in line.values())
    made = weights.load(path)
    assert made.config == preset("vil_tiny")
    assert made.provenance["step"] == 3
    assert made.provenance["config"]["data"]["hold_out"] == ["held"]
    assert json.loads((out / "run.json").read_text()) == made.provenance
    assert not made.build().training


@pytest.mark.parametrize("number", SIGNALS)
def test_resumed_equals_unbroken(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    config = make_config(steps=6, accumulate=2 if number == signal.SIGINT else 1)
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3, number)
        train(config, tmp_path / "parts")
    assert [line["step"] for line in logged(tmp_path / "parts")] == [1, 2, 3]
    assert weights.load(tmp_path / "parts" / "weights.safetensors").provenance["step"] == 3

    train(config, tmp_path / "parts", resume=True)
    whole, parts = logged(tmp_path / "whole"), logged(tmp_path / "parts")
    assert len(whole) == len(parts) == 6
    for one, two in zip(whole, parts, strict=True):
        assert one == pytest.approx(two, abs=1e-6)
    assert weights.load(tmp_path / "parts" / "weights.safetensors").provenance["step"] == 6
    one, two = (load_file(tmp_path / run / "checkpoint.safetensors") for run in ("whole", "parts"))
    assert set(one) == set(two)
    for name, value in one.items():  # the student, its average and the optimiser's
        torch.testing.assert_close(value, two[name], rtol=0, atol=1e-6, msg=naming(name))


def test_log_after_a_crash_names_each_step_once(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log went on after the last checkpoint; the resumed run does those steps again."""
    config = make_config(steps=4)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2, signal.SIGTERM)
        train(config, tmp_path)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 3, "total": 1.0}) + "\n" + '{"step": 4, "to')
    train(config, tmp_path, resume=True)
    lines = logged(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert "focal" in lines[2]


def test_nothing_to_resume_is_named(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"checkpoint\.safetensors does not exist"):
        train(make_config(), tmp_path / "nowhere", resume=True)


def test_new_run_does_not_write_over_an_old_one(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(steps=1)
    path = train(config, tmp_path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="resume"):
        train(config, tmp_path)
    assert path.read_bytes() == before


def test_accumulated_gradient_is_the_mean_over_micro_batches(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """AdamW's first average is a tenth of the gradient that it got."""
    config = make_config(steps=1, batch=2, accumulate=2, clip_norm=1e9)
    train(config, tmp_path)
    torch.manual_seed(config.seed)
    student = Student(config, teacher_channels=0)
    for micro in range(2):
        (student(batch_of(config, micro))["total"] / 2).backward()

    torch.manual_seed(9)
    restored = Student(config, teacher_channels=0)
    groups = parameter_groups(restored, config)
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    load_checkpoint(tmp_path, restored, Ema(restored.tracker, 0.9), optimizer)
    names = {id(parameter): name for name, parameter in restored.named_parameters()}
    wanted = dict(student.named_parameters())
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            gradient = wanted[name].grad
            if gradient is None:
                continue
            got = optimizer.state[parameter]["exp_avg"]
            torch.testing.assert_close(
                got,
                0.1 * gradient,
                rtol=1e-3,
                atol=1e-6,
                msg=naming(name),
            )


def test_run_with_a_teacher(make_config: MakeConfig, tmp_path: Path, teacher_network: Path) -> None:
    teacher = {"path": teacher_network, "tensor": "inner", "block": 2, "weight": 1.0}
    path = train(make_config(steps=2, teacher=teacher), tmp_path)
    for line in logged(tmp_path):
        assert 0 <= line["distill"] <= 2
    assert not any("distillation" in name for name in weights.load(path).tensors)


def test_run_starts_from_given_weights(make_config: MakeConfig, tmp_path: Path) -> None:
    torch.manual_seed(5)
    start = ViLTracker(preset("vil_tiny"))
    weights.save(tmp_path / "start.safetensors", weights.Weights(start.config, start.state_dict()))
    config = make_config(steps=1, lr=1e-9, init=tmp_path / "start.safetensors")
    made = weights.load(train(config, tmp_path / "run")).tensors
    for name, parameter in start.named_parameters():
        torch.testing.assert_close(
            made[name],
            parameter.detach(),
            rtol=1e-3,  # the file holds half precision
            atol=1e-6,
            msg=naming(name),
        )


def test_start_that_does_not_fit_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    other = ViLTracker(replace(preset("vil_tiny"), dim=48))
    path = tmp_path / "other.safetensors"
    weights.save(path, weights.Weights(other.config, other.state_dict()))
    with pytest.raises(weights.WeightsError, match=r"other\.safetensors"):
        train(make_config(init=path), tmp_path / "run")
    with pytest.raises(weights.WeightsError, match=r"gone\.safetensors"):
        train(make_config(init=tmp_path / "gone.safetensors"), tmp_path / "run")


def test_run_that_diverges_stops_and_keeps_its_weights_finite(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(steps=4, warmup=0, lr=1e30)
    with pytest.raises(ArithmeticError, match=r"step \d.*not finite"):
        train(config, tmp_path)
    assert not (tmp_path / "weights.safetensors").exists()


def test_prepared_student_gives_the_same_losses(make_config: MakeConfig) -> None:
    """Accelerate's wrapping and a DataLoader change no number."""
    config = make_config()
    torch.manual_seed(0)
    student = Student(config, teacher_channels=0)
    plain = {name: value.item() for name, value in student(batch_of(config)).items()}
    sampler = ShareOfProcess(config, 0, 1, 0)
    loader = DataLoader(TaughtClips(config), batch_size=config.batch, sampler=sampler)
    accelerator = Accelerator(mixed_precision="no", cpu=True)
    model = accelerator.prepare(student)
    made = {name: value.item() for name, value in model(next(iter(loader))).items()}
    assert made == pytest.approx(plain)
