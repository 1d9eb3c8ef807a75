"""The losses of tracking, each a function of predictions and truth on the search grid.

B samples, G x G cells. Boxes are (cx, cy, w, h) in units of the search crop's side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vil_tracker_core.model.heads import Prediction, encode

REGRESSION_FLOOR = 0.2
"""Cells whose target score is below this are not asked for a box."""


def target_map(unit: Tensor, visible: Tensor, grid: int) -> Tensor:
    """(B, G, G) score to aim at: 1 in the centre's cell, a Gaussian around it (CornerNet, arXiv
    1808.01244) as wide as the target (sigma a sixth of its side, at least half a cell); all 0
    where the target is not visible.

    Args:
        unit: (B, 4) boxes; NaN allowed where not visible.
        visible: (B,) bool.
    """
    unit = torch.where(visible[:, None], unit, torch.full_like(unit, 0.5))
    cells, _ = encode(unit, grid)
    corner = torch.stack([cells % grid, cells // grid], dim=1).to(unit.dtype)
    sigma = (unit[:, 2:] * grid / 6).clamp_min(0.5)
    line = torch.arange(grid, device=unit.device, dtype=unit.dtype)
    bells = torch.exp(-0.5 * ((line - corner[..., None]) / sigma[..., None]) ** 2)  # (B, 2, G)
    return bells[:, 1, :, None] * bells[:, 0, None, :] * visible[:, None, None]


def focal_loss(score: Tensor, target: Tensor, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """CornerNet's focal loss of a score map, summed over cells, mean over samples.

    -(1 - p)^alpha log p in cells whose target is 1, -(1 - y)^beta p^alpha log(1 - p) elsewhere.
    """
    hit = target == 1
    positive = (1 - score) ** alpha * score.log()
    negative = (1 - target) ** beta * score**alpha * (1 - score).log()
    return -torch.where(hit, positive, negative).flatten(1).sum(1).mean()


def boxes_of(prediction: Prediction) -> Tensor:
    """(B, 4, G, G) box that each cell predicts."""
    grid = prediction.score.shape[-1]
    line = torch.arange(grid, device=prediction.score.device, dtype=prediction.offset.dtype)
    corner = torch.stack(torch.meshgrid(line, line, indexing="xy"))
    return torch.cat([(prediction.offset + corner) / grid, prediction.size], dim=1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (arXiv 1902.09630) of boxes (B, 4, ...) as (cx, cy, w, h), in [-1, 1]."""
    a_low, a_high = a[:, :2] - a[:, 2:] / 2, a[:, :2] + a[:, 2:] / 2
    b_low, b_high = b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2
    shared = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp_min(0).prod(1)
    union = a[:, 2:].prod(1) + b[:, 2:].prod(1) - shared
    hull = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).prod(1)
    return shared / union.clamp_min(1e-9) - (hull - union) / hull.clamp_min(1e-9)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """sum(values * weights) / sum(weights); 0 where all weights are 0."""
    return (values * weights).sum() / weights.sum().clamp_min(1e-6)


def gaussian_nll(error: Tensor, log_var: Tensor) -> Tensor:
    """0.5 (error^2 / var + log var): the negative log-likelihood up to a constant."""
    return 0.5 * (error**2 * torch.exp(-log_var) + log_var)


def tracking_losses(prediction: Prediction, unit: Tensor, visible: Tensor) -> dict[str, Tensor]:
    """focal, giou, l1 and nll of one frame's prediction.

    Boxes are asked of all cells near the centre, weighed by the target score. The nll trains the
    variance only: its error is detached.

    Args:
        prediction: of B samples.
        unit: (B, 4) truth, NaN allowed where not visible.
        visible: (B,) bool.
    """
    target = target_map(unit, visible, prediction.score.shape[-1])
    unit = torch.where(visible[:, None], unit, torch.full_like(unit, 0.5))
    weights = target * (target > REGRESSION_FLOOR)
    made = boxes_of(prediction)
    truth = unit[:, :, None, None].expand_as(made)
    error = made - truth
    nll = gaussian_nll(error.detach(), prediction.log_var).mean(1)
    return {
        "focal": focal_loss(prediction.score, target),
        "giou": weighted_mean(1 - giou(made, truth), weights),
        "l1": weighted_mean(error.abs().mean(1), weights),
        "nll": weighted_mean(nll, weights),
    }
