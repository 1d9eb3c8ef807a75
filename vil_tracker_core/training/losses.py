"""The losses of tracking, each a function of predictions and truth on the search grid.

B samples, G x G cells. Boxes are (cx, cy, w, h) in units of the search crop's side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vil_tracker_core.model.heads import Prediction, decode, encode
from vil_tracker_core.training.parallel import process_mean

REGRESSION_FLOOR = 0.2
"""Cells whose target score is below this are not asked for a box."""

BACKGROUND_CEILING = 0.05
"""Cells whose target score is below this are background; between the two they are neither."""


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


def _areas(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Intersection, union and hull of boxes (B, 4, ...) as (cx, cy, w, h)."""
    a_low, a_high = a[:, :2] - a[:, 2:] / 2, a[:, :2] + a[:, 2:] / 2
    b_low, b_high = b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2
    shared = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp_min(0).prod(1)
    union = a[:, 2:].prod(1) + b[:, 2:].prod(1) - shared
    hull = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).prod(1)
    return shared, union, hull


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (B, 4, ...) as (cx, cy, w, h), in [0, 1]."""
    shared, union, _ = _areas(a, b)
    return shared / union.clamp_min(1e-9)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (arXiv 1902.09630) of boxes (B, 4, ...) as (cx, cy, w, h), in [-1, 1]."""
    shared, union, hull = _areas(a, b)
    return shared / union.clamp_min(1e-9) - (hull - union) / hull.clamp_min(1e-9)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """sum(values * weights) / sum(weights); 0 where all weights are 0.

    With several processes the sum of weights is its mean over them, so that the mean of their
    results is the result of all samples in one process.
    """
    return (values * weights).sum() / process_mean(weights.sum()).clamp_min(1e-6)


def gaussian_nll(error: Tensor, log_var: Tensor) -> Tensor:
    """0.5 (error^2 / var + log var): the negative log-likelihood up to a constant."""
    return 0.5 * (error**2 * torch.exp(-log_var) + log_var)


def tracking_losses(prediction: Prediction, unit: Tensor, visible: Tensor) -> dict[str, Tensor]:
    """focal, giou, l1 and nll of one frame's prediction.

    Boxes are asked of all cells near the centre, weighed by the target score. The nll is that of
    the net's answer, the best cell's, wherever that is: the error whose variance the tracker reads.
    It trains the variance only.

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
    answer = decode(prediction)
    nll = gaussian_nll((answer.unit - unit).detach(), answer.log_var).mean(1)
    return {
        "focal": focal_loss(prediction.score, target),
        "giou": weighted_mean(1 - giou(made, truth), weights),
        "l1": weighted_mean((made - truth).abs().mean(1), weights),
        "nll": weighted_mean(nll, visible.to(nll.dtype)),
    }


def target_memory(features: Tensor, grid: int, factor: float) -> Tensor:
    """(B, D) mean of the template tokens that show the target.

    Args:
        features: (B, N * grid * grid, D) of N templates.
        grid: tokens along a side of a template.
        factor: side of the template crop over that of the target, which lies in its middle.
    """
    line = (torch.arange(grid, device=features.device) + 0.5) / grid
    inside = (line - 0.5).abs() <= max(0.5 / factor, 0.5 / grid) + 1e-6  # at least the middle
    kept = (inside[:, None] & inside).flatten()
    memory: Tensor = features.unflatten(1, (-1, grid * grid))[:, :, kept].mean((1, 2))
    return memory


def memory_contrastive(
    memory: Tensor, features: Tensor, target: Tensor, temperature: float = 0.1
) -> Tensor:
    """Asks that the target's cells resemble what is remembered of it more than its surroundings.

    InfoNCE (arXiv 1807.03748) on cosines: each target cell's -log of its share in the sum over
    itself and the frame's background; mean over target cells, weighed by the target score. What
    looks like the target in the same frame is the hardest negative there is, and no other sample
    is needed, so the loss does not depend on how clips are dealt to processes.

    Args:
        memory: (B, D) see `target_memory`.
        features: (B, G * G, D) of the search region.
        target: (B, G, G) see `target_map`; all 0 where nothing is to be seen.
        temperature: by which cosines are divided.
    """
    target = target.flatten(1)
    alike = F.cosine_similarity(features.float(), memory.float()[:, None], dim=-1) / temperature
    background = alike.masked_fill(target > BACKGROUND_CEILING, -1e4).logsumexp(1)
    lost = torch.logaddexp(alike, background[:, None]) - alike
    return weighted_mean(lost, target * (target > REGRESSION_FLOOR))


class AdaptiveWeights(nn.Module):
    """ADW: the balance of losses learned as homoscedastic uncertainty (arXiv 1705.07115).

    sum_i exp(-s_i) loss_i + s_i, s_i the log-variance that the loss's task is given; it starts
    at 0, where the balance is that of the fixed weights. Only for losses that are never negative:
    at the optimum s_i = log(loss_i).
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self.log_var = nn.Parameter(torch.zeros(len(names)))

    def forward(self, losses: dict[str, Tensor]) -> Tensor:
        values = torch.stack([losses[name] for name in self.names])
        return (torch.exp(-self.log_var) * values + self.log_var).sum()
