"""How the weights move: which of them decay, the learning rate's course, and their average."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from vil_tracker_core.model.matching import PUBLISHED
from vil_tracker_core.model.mobile import TRUNK_LAYERS
from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.optimizer import Ema, learning_rate, parameter_groups
from vil_tracker_core.training.student import Student

MakeConfig = Callable[..., TrainConfig]
TAUGHT = {"kind": "fear_xs", "folder": "nowhere", "block": 1}


def decays(config: TrainConfig) -> dict[str, float]:
    """Parameter name -> weight decay."""
    student = Student(config)
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
    config = make_config(weight_decay=0.05, film_weight_decay=0.02, teacher=TAUGHT)
    student = Student(config)
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
    assert (
        decays(make_config(weight_decay=0.05, film_weight_decay=0.02, teacher=TAUGHT))[name]
        == decay
    )


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


def test_frozen_parameters_are_in_no_group(make_config: MakeConfig) -> None:
    config = make_config(freeze_shared_experts=True)
    student = Student(config)
    moved = {id(p) for group in parameter_groups(student, config) for p in group["params"]}
    shared = [p for name, p in student.named_parameters() if ".mlp.shared." in name]
    assert len(shared) == 3
    assert not moved & {id(p) for p in shared}
    assert len(moved) + 3 == len(list(student.parameters()))


def test_what_was_published_has_a_rate_of_its_own_and_decays_as_the_rest(
    make_config: MakeConfig,
) -> None:
    config = make_config(model="vil_nano", trunk_lr=0.1, weight_decay=0.05)
    student = Student(config)
    embedding = student.tracker.backbone.embedding
    assert embedding.matcher is not None
    known = [embedding.stem.trunk, *(embedding.matcher.get_submodule(n) for n in PUBLISHED)]
    trunk = {id(p) for module in known for p in module.parameters()}
    groups = parameter_groups(student, config)
    for group in groups:
        for parameter in group["params"]:
            assert group["lr_share"] == (0.1 if id(parameter) in trunk else 1.0)
            assert group["weight_decay"] == (0.05 if parameter.dim() >= 2 else 0.0) or (
                id(parameter) not in trunk
            )
    assert {group["lr_share"] for group in groups} == {0.1, 1.0}


@pytest.mark.parametrize("layers", [0, 1, 7, TRUNK_LAYERS])
def test_frozen_layers_of_a_trunk_are_the_first(make_config: MakeConfig, layers: int) -> None:
    student = Student(make_config(model="vil_nano", freeze_trunk=layers))
    stem = student.tracker.backbone.embedding.stem
    assert len(stem.trunk) == TRUNK_LAYERS
    for index, layer in enumerate(stem.trunk):
        assert all(p.requires_grad == (index >= layers) for p in layer.parameters())
    assert all(p.requires_grad for p in stem.project.parameters())
