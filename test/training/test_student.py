"""The net as it is trained: which losses there are, what they sum to, and what they reach."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from vil_tracker_core.model import presets
from vil_tracker_core.model.film import box_deltas
from vil_tracker_core.model.heads import decode
from vil_tracker_core.model.tracker import Memory, ViLTracker, identity_motion
from vil_tracker_core.training.batches import Batch, ShareOfProcess, TaughtClips
from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.optimizer import parameter_groups
from vil_tracker_core.training.phases import Stage
from vil_tracker_core.training.student import Student, believed

MakeConfig = Callable[..., TrainConfig]
BatchOf = Callable[..., dict[str, Tensor]]
FIXED = {"focal": 1.5, "giou": 3.0, "l1": 0.5, "nll": 0.25}


def new_student(config: TrainConfig) -> Student:
    torch.manual_seed(0)
    return Student(config)


def everything(make_config: MakeConfig, folder: Path, **changes: object) -> TrainConfig:
    """Every loss there is."""
    teacher = {
        "kind": "fear_xs",
        "folder": folder,
        "block": 3,
        "feature_weight": 2.0,
        "score_weight": 0.5,
        "box_weight": 1.0,
    }
    return make_config(frames=2, teacher=teacher, losses={**FIXED, "contrastive": 0.7}, **changes)


ALL = {
    "focal": 1.5,
    "giou": 3.0,
    "l1": 0.5,
    "nll": 0.25,
    "contrastive": 0.7,
    "distill_features": 2.0,
    "distill_score": 0.5,
    "distill_boxes": 1.0,
}


def test_total_is_the_weighted_sum(make_config: MakeConfig, batch_of: BatchOf) -> None:
    config = make_config(frames=2, losses=FIXED)
    losses = new_student(config)(batch_of(config))
    assert set(losses) == {*FIXED, "total", "overlap"}
    expected = sum((FIXED[name] * losses[name] for name in FIXED), torch.zeros(()))
    torch.testing.assert_close(losses["total"], expected)
    assert 0 <= losses["overlap"] <= 1


def test_all_losses_sum_up(make_config: MakeConfig, batch_of: BatchOf, fear_folder: Path) -> None:
    config = everything(make_config, fear_folder)
    losses = new_student(config)(batch_of(config))
    assert set(losses) == {*ALL, "total", "overlap"}
    assert losses["contrastive"] > 0
    assert 0 < losses["distill_features"] <= 2
    expected = sum((ALL[name] * losses[name] for name in ALL), torch.zeros(()))
    torch.testing.assert_close(losses["total"], expected)


def test_learned_balance_leaves_the_nll_alone(
    make_config: MakeConfig, batch_of: BatchOf, fear_folder: Path
) -> None:
    config = everything(make_config, fear_folder, adaptive_losses=True)
    student = new_student(config)
    assert student.balance is not None
    assert student.balance.names == [name for name in ALL if name != "nll"]
    with torch.no_grad():
        student.balance.log_var.copy_(torch.linspace(-0.5, 0.7, 7))
    losses = student(batch_of(config))
    expected = 0.25 * losses["nll"]
    for name, log_var in zip(student.balance.names, torch.linspace(-0.5, 0.7, 7), strict=True):
        expected = expected + torch.exp(-log_var) * ALL[name] * losses[name] + log_var
    torch.testing.assert_close(losses["total"], expected)
    losses["total"].backward()
    assert student.balance.log_var.grad is not None
    assert (student.balance.log_var.grad != 0).all()


def test_curriculum_weighs_the_losses(make_config: MakeConfig, batch_of: BatchOf) -> None:
    config = make_config(losses=FIXED, easy_losses={**FIXED, "l1": 4.5, "giou": 1.0})
    losses = new_student(config)(batch_of(config), Stage(level=0.25))
    weights = {**FIXED, "l1": 3.5, "giou": 1.5}
    expected = sum((weights[name] * losses[name] for name in FIXED), torch.zeros(()))
    torch.testing.assert_close(losses["total"], expected)


@pytest.mark.parametrize("memory", ["reset", "carry"])
def test_steps_are_those_of_a_clip(make_config: MakeConfig, batch_of: BatchOf, memory: str) -> None:
    """With FiLM on the student trains exactly what the tracker does: it looks at the first frame,
    is told of its error there, and in each other frame where the target was in the one before."""
    config = make_config(frames=3, memory=memory)
    student, batch = new_student(config).eval(), batch_of(config)
    tells_apart(student, batch)
    search, motion, keeps = batch["search"].float(), batch["motion"], batch["tells"][:, 2].float()
    known = after_first(student.tracker, batch, batch["template"].float())
    assert known.deltas is not None
    assert known.deltas.any()
    assert known.box.any()
    for k, (one, *_) in enumerate(student._steps(batch, Stage())):
        two = student.tracker.step(search[:, k], known, motion[:, k], keeps)
        torch.testing.assert_close(one.prediction.score, two.prediction.score)
        torch.testing.assert_close(one.memory.context.tokens, two.memory.context.tokens)
        known = two.memory._replace(box=believed(two) * batch["tells"][:, 1:2])


def tells_apart(student: Student, batch: Batch) -> None:
    """The first boxes are drawn nearly as the net sees them, so that there are deltas; each of the
    four clips leaves something out, and one nothing."""
    first = batch["first"].float()
    memory = student.tracker.start(batch["template"][:, :1].float())
    with torch.no_grad():
        still = identity_motion(len(first), first)
        step = student.tracker.step(first, memory, still, torch.zeros(len(first)))
    batch["drawn"] = decode(step.prediction).unit * torch.tensor([1, 1, 1.2, 0.9])
    batch["tells"] = torch.cat([~torch.eye(3, dtype=torch.bool), torch.ones(1, 3).bool()])


def after_first(net: ViLTracker, batch: Batch, templates: Tensor) -> Memory:
    """The memory of a net that was told how the drawn boxes differ from its answers."""
    first = batch["first"].float()
    memory, nothing = net.start(templates), torch.zeros(len(first))
    step = net.step(first, memory, identity_motion(len(first), first), nothing)
    deltas = box_deltas(decode(step.prediction).unit, batch["drawn"]) * batch["tells"][:, :1]
    return memory._replace(deltas=deltas, box=batch["last"] * batch["tells"][:, 1:2])


def test_a_target_is_believed_to_be_where_the_net_sees_one(
    make_config: MakeConfig, batch_of: BatchOf
) -> None:
    """Else where it was before, as the crop has moved."""
    config = make_config()
    student, batch = new_student(config), batch_of(config)
    (step, *_) = student._steps(batch, Stage())[0]
    before = torch.tensor([0.4, 0.6, 0.3, 0.2]).expand(len(batch["last"]), 4)
    score = torch.full_like(step.prediction.score, 0.01)
    score[0, 1, 2] = 0.21
    step = step._replace(
        prediction=step.prediction._replace(score=score), memory=step.memory._replace(box=before)
    )
    made = believed(step)
    torch.testing.assert_close(made[0], decode(step.prediction).unit[0])
    torch.testing.assert_close(made[1:], before[1:])


def test_in_some_clips_the_net_is_told_nothing(make_config: MakeConfig, batch_of: BatchOf) -> None:
    """Else its own answers, of which it is told the error, would be of a kind never trained, and so
    would those of a lost track."""
    config = make_config(frames=3, memory="carry")
    student, batch = new_student(config).eval(), batch_of(config)
    tells_apart(student, batch)
    for tells in torch.eye(3, dtype=torch.bool):
        batch["tells"] = tells.expand(len(batch["last"]), 3)
        for k, (step, *_) in enumerate(student._steps(batch, Stage())):
            assert step.memory.deltas is not None
            assert not step.memory.deltas.requires_grad
            assert step.memory.deltas.any() == tells[0]
            assert step.memory.box[:, 2].any() == (tells[1] and (k > 0 or batch["last"].any()))
            assert step.memory.context.known.any() == tells[2]
            for own, carried in zip(step.memory.templates.states, step.memory.states, strict=True):
                if own is not None and carried is not None:
                    assert own.memory.C.equal(carried.memory.C) != tells[2]


@pytest.mark.parametrize("memory", ["reset", "carry"])
def test_a_second_template_serves_all_frames_but_the_first(
    make_config: MakeConfig, batch_of: BatchOf, memory: str
) -> None:
    """As online: the templates are renewed and a carried memory with them, the context stays."""
    config = make_config(frames=3, templates=2, memory=memory)
    student, batch = new_student(config).eval(), batch_of(config)
    assert batch["template"].shape[1] == 2
    net = student.tracker
    search, motion = batch["search"].float(), batch["motion"]
    both = net.start(batch["template"].float())
    known = after_first(net, batch, batch["template"][:, :1].float())
    for k, (step, *_) in enumerate(student._steps(batch, Stage())):
        if k == 1:
            known = known._replace(templates=both.templates, states=both.states)
        keeps = batch["tells"][:, 2].float()
        wanted = net.step(search[:, k], known, motion[:, k], keeps)
        known = wanted.memory._replace(box=believed(wanted) * batch["tells"][:, 1:2])
        torch.testing.assert_close(step.prediction.score, wanted.prediction.score)
        torch.testing.assert_close(step.prediction.size, wanted.prediction.size)


def test_film_that_is_off_changes_nothing(make_config: MakeConfig, batch_of: BatchOf) -> None:
    """Generators that would change much, were they on."""
    config = make_config(frames=3)
    student, batch = new_student(config), batch_of(config)
    student.eval()
    plain = student(batch, Stage(film=False))
    assert student.tracker.film is not None
    with torch.no_grad():
        for parameter in student.tracker.film.parameters():
            parameter.normal_()
    off, on = student(batch, Stage(film=False)), student(batch, Stage(film=True))
    for name, value in plain.items():
        assert torch.equal(off[name], value), name
    assert not torch.allclose(on["focal"], plain["focal"])


def test_every_parameter_learns(
    make_config: MakeConfig, batch_of: BatchOf, fear_folder: Path
) -> None:
    """But for those that FiLM's identity start and the matcher's hold back for a step."""
    config = everything(make_config, fear_folder, adaptive_losses=True)
    student, batch = new_student(config), batch_of(config)
    tells_apart(student.eval(), batch)
    student.train()(batch)["total"].backward()
    idle = [
        name for name, p in student.named_parameters() if p.grad is None or not p.grad.any().item()
    ]
    matcher = "tracker.backbone.embedding.matcher"
    parts = ("generators", "calibrator", "projection", "correction", "continuation")
    film = (f"tracker.film.{part}" for part in parts)
    held = (*film, matcher)
    assert [name for name in idle if not name.startswith(held)] == []
    assert f"{matcher}.project.weight" not in idle
    for part in ("generators.0", "correction", "continuation"):
        assert f"tracker.film.{part}.2.weight" not in idle


def test_bfloat16_trains_every_loss(
    make_config: MakeConfig, batch_of: BatchOf, fear_folder: Path
) -> None:
    config = everything(make_config, fear_folder, adaptive_losses=True)
    student, batch = new_student(config), batch_of(config)
    exact = student(batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses = student(batch)
    losses["total"].backward()
    for name in ("focal", "contrastive", "distill_features", "distill_boxes"):
        assert losses[name].dtype == torch.float32
        assert losses[name].item() == pytest.approx(exact[name].item(), rel=0.1)
    for name, parameter in student.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("scan", ["regional", "joint"])
def test_memory_loss_reaches_template_and_search(
    make_config: MakeConfig, batch_of: BatchOf, monkeypatch: pytest.MonkeyPatch, scan: str
) -> None:
    """In the joint scan too, whose templates' features only a frame's own pass knows."""
    tiny = replace(presets.PRESETS["vil_tiny"], name="tiny_scan", scan=scan)
    monkeypatch.setitem(presets.PRESETS, "tiny_scan", tiny)
    config = make_config(model="tiny_scan", frames=2, losses={"contrastive": 1.0})
    student = new_student(config)
    steps = student._steps(batch_of(config), Stage())
    features = [seen.step.memory.templates.features for seen in steps]
    assert all(f is not None and f.shape == (4, 4, 32) for f in features)
    losses = student(batch_of(config))
    assert math.isfinite(losses["contrastive"].item())
    losses["contrastive"].backward()
    embedding = student.tracker.backbone.embedding
    for parameter in (embedding.template_position, embedding.search_position):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_learns_one_batch(make_config: MakeConfig, batch_of: BatchOf) -> None:
    config = make_config()
    student = new_student(config)
    optimizer = torch.optim.AdamW(parameter_groups(student, config), lr=5e-3)
    batch = batch_of(config)
    made = []
    for _ in range(12):
        losses = student(batch)
        made.append(losses["total"].item())
        losses["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert made[-1] < 0.7 * made[0]


def test_prepared_student_gives_the_same_losses(make_config: MakeConfig, batch_of: BatchOf) -> None:
    """Accelerate's wrapping and a DataLoader change no number."""
    config = make_config()
    student = new_student(config)
    plain = {name: value.item() for name, value in student(batch_of(config)).items()}
    sampler = ShareOfProcess(config, 0, 1, 0)
    loader = DataLoader(TaughtClips(config), batch_size=config.batch, sampler=sampler)
    accelerator = Accelerator(mixed_precision="no", cpu=True)
    model = accelerator.prepare(student)
    made = {name: value.item() for name, value in model(next(iter(loader))).items()}
    assert made == pytest.approx(plain)
