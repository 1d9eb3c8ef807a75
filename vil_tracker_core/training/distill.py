"""What a net learns from a teacher (AFKD): its features, and its answers where they are right."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vil_tracker_core.model.heads import SCORE_FLOOR, Prediction
from vil_tracker_core.training.losses import boxes_of, giou, iou, weighted_mean


class FeatureDistillation(nn.Module):
    """Asks that a linear map of the student's tokens points where the teacher's features point.

    The teacher's grid is resampled to the student's. Loss: 1 - cosine, mean over cells.
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.map = nn.Linear(dim, channels)

    def forward(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        """Args: tokens (B, G * G, dim) of the student; wanted (B, channels, g, g)."""
        grid = int(tokens.shape[1] ** 0.5)
        wanted = wanted.float()
        if wanted.shape[-1] != grid:
            wanted = F.interpolate(wanted, (grid, grid), mode="bilinear", align_corners=False)
        made = self.map(tokens).float()
        return (1 - torch.cosine_similarity(made, wanted.flatten(2).transpose(1, 2), dim=-1)).mean()


class Taught(NamedTuple):
    """Teachers' answers for B samples: score (B, G, G) and boxes (B, 4, G, G), see
    `teachers.Response`."""

    score: Tensor
    boxes: Tensor


def reliability(taught: Taught, unit: Tensor, visible: Tensor) -> Tensor:
    """(B,) in 0..1: the overlap of the teacher's best box with the truth, 0 where nothing is to be
    seen. Only a teacher that is right is worth imitating.

    Args:
        taught: its answers.
        unit: (B, 4) truth as (cx, cy, w, h), NaN allowed where not visible.
        visible: (B,) bool.
    """
    best = taught.score.flatten(1).argmax(1)
    index = best[:, None, None].expand(-1, 4, 1)
    box = taught.boxes.flatten(2).gather(2, index)[..., 0]
    unit = torch.where(visible[:, None], unit, torch.full_like(unit, 0.5))
    return iou(box, unit) * visible


def score_distillation(
    score: Tensor, taught: Tensor, trust: Tensor, temperature: float = 2.0
) -> Tensor:
    """T^2 KL(teacher || student) of where in the crop the target is (arXiv 1503.02531).

    Both score maps become distributions over cells by a softmax of their logits over T. Mean over
    samples, each weighed by its trust.

    Args:
        score, taught: (B, G, G) in 0..1 of student and teacher.
        trust: (B,) in 0..1.
        temperature: T.
    """
    made, wanted = (
        (torch.logit(map_.float().flatten(1), SCORE_FLOOR) / temperature).log_softmax(1)
        for map_ in (score, taught)
    )
    divergence = (wanted.exp() * (wanted - made)).sum(1)
    return temperature**2 * (divergence * trust).mean()


def box_distillation(prediction: Prediction, taught: Taught, trust: Tensor) -> Tensor:
    """1 - GIoU of the student's with the teacher's boxes, a mean over the cells that the teacher
    calls target (score above 1/2), weighed by its score and the sample's trust (B,)."""
    weights = taught.score * (taught.score > 0.5) * trust[:, None, None]
    return weighted_mean(1 - giou(boxes_of(prediction), taught.boxes), weights)
