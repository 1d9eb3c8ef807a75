"""FiLM temporal modulation: what the last frames looked like scales and shifts the features.

The context is a value that the caller keeps, one per track. It lives on the search grid and is
resampled when the search crop moves or zooms, so that a token's context is of its own place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vil_tracker_core.model.presets import ModelConfig


class Context(NamedTuple):
    """A running average of projected features, on a grid of tokens.

    Attributes:
        tokens: (B, S, dim).
        known: (B, S, 1) in 0..1, how much of the average a token has seen; 0 before the first
            frame and where the crop has moved to unseen ground.
    """

    tokens: Tensor
    known: Tensor

    @classmethod
    def empty(cls, batch: int, length: int, dim: int, like: Tensor) -> Context:
        return cls(like.new_zeros(batch, length, dim), like.new_zeros(batch, length, 1))


def resample(context: Context, motion: Tensor) -> Context:
    """The context as seen from a crop that has moved.

    Args:
        context: on a square grid of tokens.
        motion: (B, 3) rows (dx, dy, s): the point u of the new crop (in units of its side, the
            crop is [0, 1]^2) is the point s * u + (dx, dy) of the old crop. (0, 0, 1) is identity.
    """
    batch, length, dim = context.tokens.shape
    side = int(length**0.5)
    line = (torch.arange(side, dtype=motion.dtype, device=motion.device) + 0.5) / side
    dx, dy, zoom = motion[:, 0:1], motion[:, 1:2], motion[:, 2:3]
    x = (line * zoom + dx)[:, None, :].expand(batch, side, side)
    y = (line * zoom + dy)[:, :, None].expand(batch, side, side)
    grid = 2 * torch.stack([x, y], dim=-1) - 1  # grid_sample counts from -1 to 1
    seen = torch.cat([context.tokens * context.known, context.known], dim=-1)
    seen = seen.transpose(1, 2).unflatten(-1, (side, side))
    moved = F.grid_sample(seen, grid.to(seen.dtype), align_corners=False).flatten(2).transpose(1, 2)
    tokens, known = moved.split([dim, 1], dim=-1)
    return Context(tokens / known.clamp_min(1e-6), known)


def _generator(dim: int, hidden: int, width: int, init: str) -> nn.Sequential:
    """An MLP for gamma - 1 or beta: with its last bias at 0, gamma starts at 1 and beta at 0."""
    last = nn.Linear(hidden, width)
    nn.init.zeros_(last.bias)
    if init == "identity":
        nn.init.zeros_(last.weight)
    else:
        nn.init.normal_(last.weight, std=1e-4)
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), last)


class Film(nn.Module):
    """Makes gamma and beta for every modulated layer from the context, and renews the context.

    out = gamma' * x + beta', where a reliability r in 0..1 blends towards identity:
    gamma' = r gamma + 1 - r and beta' = r beta. `token`: every token's context makes its own pair,
    by two small MLPs a layer. `pooled`: one vector, one MLP for the pairs of all layers.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, hidden, layers = config.dim, config.film_hidden, config.film_layers
        self.pooled = config.film == "pooled"
        self.layers, self.keep = layers, config.film_keep
        widths = [2 * layers * dim] if self.pooled else [dim] * (2 * layers)
        self.generators = nn.ModuleList(
            _generator(dim, hidden, width, config.film_init) for width in widths
        )
        self.calibrator = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, 1), nn.Sigmoid()
        )
        self.projection = nn.Linear(dim, dim)

    def pairs(self, context: Context) -> list[tuple[Tensor, Tensor]]:
        """(gamma', beta') of each modulated layer, (B, S, dim) or, pooled, (B, 1, dim)."""
        tokens, known = context
        if self.pooled:
            total = known.sum(1, keepdim=True)
            tokens = (tokens * known).sum(1, keepdim=True) / total.clamp_min(1e-6)
            known = known.mean(1, keepdim=True)
        made = [generator(tokens) for generator in self.generators]
        if self.pooled:
            made = list(made[0].chunk(2 * self.layers, dim=-1))
        reliability = self.calibrator(tokens) * known
        # 1 + r (gamma - 1), written so that gamma = 1 gives exactly 1
        return [
            (1 + reliability * made[2 * layer], reliability * made[2 * layer + 1])
            for layer in range(self.layers)
        ]

    def renew(self, context: Context, features: Tensor, confidence: Tensor) -> Context:
        """The context after a frame.

        keep * old + (1 - keep) * projection(features), the new part weighted by the frame's
        confidence; a token that knows nothing yet takes the new features as they are.

        Args:
            context: resampled into this frame's crop.
            features: (B, S, dim) normalised features of this frame.
            confidence: (B,) in 0..1; 0 leaves the context as it was.
        """
        new = self.projection(features)
        trust = confidence[:, None, None]
        old_share = context.known * (1 - (1 - self.keep) * trust)
        new_share = trust * (1 - self.keep * context.known)
        total = old_share + new_share
        mixed = (old_share * context.tokens + new_share * new) / total.clamp_min(1e-6)
        return Context(mixed, total)
