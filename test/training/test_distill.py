"""What is learned of a teacher: its features, and its answers as far as they are right."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vil_tracker_core.model.heads import Prediction
from vil_tracker_core.training.distill import (
    FeatureDistillation,
    Taught,
    box_distillation,
    reliability,
    score_distillation,
)


def test_perfect_map_costs_nothing() -> None:
    torch.manual_seed(0)
    loss = FeatureDistillation(12, 5)
    tokens = torch.randn(2, 16, 12)
    made = loss.map(tokens).detach().transpose(1, 2).unflatten(-1, (4, 4))
    assert loss(tokens, made).item() == pytest.approx(0, abs=1e-6)
    assert loss(tokens, 7 * made).item() == pytest.approx(0, abs=1e-6)  # directions alone count
    assert loss(tokens, -made).item() == pytest.approx(2, abs=1e-6)


def test_tokens_run_along_rows() -> None:
    loss = FeatureDistillation(2, 2)
    with torch.no_grad():
        loss.map.weight.copy_(torch.eye(2))
        loss.map.bias.zero_()
    tokens = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    tokens[1] = torch.tensor([0.0, 1.0])  # row 0, column 1 of 2 x 2
    wanted = torch.zeros(1, 2, 2, 2)
    wanted[0, 0] = 1
    wanted[0, :, 0, 1] = torch.tensor([0.0, 1.0])
    assert loss(tokens[None], wanted).item() == pytest.approx(0, abs=1e-6)
    assert loss(tokens[None], wanted.transpose(2, 3)).item() == pytest.approx(0.5)


def test_grid_of_the_teacher_is_resampled() -> None:
    """A map that is linear over the teacher's 8 x 8 grid is the same line on the student's 4."""
    loss = FeatureDistillation(2, 2)
    with torch.no_grad():
        loss.map.weight.copy_(torch.eye(2))
        loss.map.bias.zero_()

    def line(grid: int) -> torch.Tensor:
        at = (torch.arange(grid) + 0.5) / grid
        y, x = torch.meshgrid(at, at, indexing="ij")
        return torch.stack([1 + x, 2 - y])[None]

    tokens = line(4).flatten(2).transpose(1, 2)
    assert loss(tokens, line(8)).item() == pytest.approx(0, abs=1e-6)
    assert loss(tokens, line(8).half()).item() == pytest.approx(0, abs=1e-4)
    assert loss(tokens, line(8).flip(3)).item() > 1e-3


def test_gradient_reaches_the_tokens() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 16, 12, requires_grad=True)
    FeatureDistillation(12, 5)(tokens, torch.randn(2, 5, 8, 8)).backward()
    assert tokens.grad is not None
    assert (tokens.grad.abs().sum(-1) > 0).all()


def answers(score: Tensor, *box: float) -> Taught:
    """The same box (cx, cy, w, h) in every cell."""
    boxes = torch.tensor(box)[None, :, None, None].expand(len(score), 4, *score.shape[1:])
    return Taught(score, boxes)


def test_reliability_is_the_overlap_of_the_best_box() -> None:
    score = torch.zeros(4, 2, 2)
    score[:, 1, 0] = 0.7
    boxes = torch.zeros(4, 4, 2, 2)
    boxes[:, :, 1, 0] = torch.tensor([0.5, 0.5, 0.2, 0.2])
    truth = torch.tensor(
        [
            [0.5, 0.5, 0.2, 0.2],
            [0.6, 0.5, 0.2, 0.2],  # half of each is shared: a third of the union
            [0.9, 0.1, 0.1, 0.1],
            [math.nan] * 4,
        ]
    )
    visible = torch.tensor([True, True, True, False])
    found = reliability(Taught(score, boxes), truth, visible)
    assert found.tolist() == pytest.approx([1, 1 / 3, 0, 0], abs=1e-6)


def test_score_distillation_by_hand() -> None:
    """Two cells. Odds of 1 : 9 and 4 : 1 become, at T = 2, sqrt(1/9) = 1/3 and sqrt(4) = 2, and as
    a distribution 1/7 and 6/7; the student's odds are equal."""
    taught = torch.tensor([[[0.1, 0.8]]])
    even = torch.tensor([[[0.3, 0.3]]])
    divergence = 1 / 7 * math.log(2 / 7) + 6 / 7 * math.log(12 / 7)
    trust = torch.ones(1)
    assert score_distillation(even, taught, trust).item() == pytest.approx(4 * divergence, rel=1e-5)
    assert score_distillation(taught, taught, trust).item() == pytest.approx(0, abs=1e-6)
    both = score_distillation(
        torch.cat([even, even]), torch.cat([taught, taught]), torch.tensor([0.5, 0.0])
    )
    assert both.item() == pytest.approx(4 * divergence * 0.5 / 2, rel=1e-5)


def test_score_distillation_moves_the_peak() -> None:
    score = torch.full((1, 3, 3), 0.4, requires_grad=True)
    taught = torch.full((1, 3, 3), 0.0)
    taught[0, 2, 1] = 1.0
    score_distillation(score, taught, torch.ones(1)).backward()
    assert score.grad is not None
    assert torch.isfinite(score.grad).all()
    assert score.grad[0, 2, 1] < 0
    assert (score.grad.flatten()[[0, 1, 2, 3, 4, 5, 6, 8]] > 0).all()


def predicting(*box: float, grid: int = 2, batch: int = 1) -> Prediction:
    """(cx, cy, w, h) in every cell."""
    line = torch.arange(float(grid))
    corner = torch.stack(torch.meshgrid(line, line, indexing="xy"))
    centre = torch.tensor(box[:2])[:, None, None] * grid - corner
    size = torch.tensor(box[2:])[:, None, None].expand(2, grid, grid)
    score = torch.full((grid, grid), 0.5)
    parts = (score, centre, size, torch.zeros(4, grid, grid))
    return Prediction(*(part[None].expand(batch, *part.shape) for part in parts))


def test_box_distillation_by_hand() -> None:
    """Unit squares half a side apart: IoU 1/3, and the hull is the union."""
    prediction = predicting(0.4, 0.4, 0.2, 0.2, batch=2)
    score = torch.tensor([[[0.9, 0.4], [0.0, 0.6]]]).expand(2, 2, 2)
    taught = answers(score, 0.5, 0.4, 0.2, 0.2)
    assert box_distillation(prediction, taught, torch.ones(2)).item() == pytest.approx(2 / 3)
    # a mean over what is trusted: 0.9 and 0.6 of the first sample alone
    boxes = taught.boxes.clone()
    boxes[0, :, 1, 1] = torch.tensor([0.4, 0.4, 0.2, 0.2])
    boxes[1] = 0.9
    half = box_distillation(prediction, Taught(score, boxes), torch.tensor([1.0, 0.0]))
    assert half.item() == pytest.approx(2 / 3 * 0.9 / 1.5)


def test_box_distillation_without_trust_is_nothing() -> None:
    taught = answers(torch.full((1, 2, 2), 0.9), 0.5, 0.4, 0.2, 0.2)
    assert box_distillation(predicting(0.4, 0.4, 0.2, 0.2), taught, torch.zeros(1)).item() == 0
