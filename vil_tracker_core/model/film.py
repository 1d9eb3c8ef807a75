"""FiLM temporal modulation: what is known from a track's earlier frames scales and shifts the
features.

Three values say it, which the caller keeps, one set per track:

- the context, what the last frames looked like. It lives on the search grid and is resampled when
  the search crop moves or zooms, so that a token's context is of its own place;
- the box that the target had in the last frame. Each token is told how it lies to it;
- the deltas of the first frame, the one where the truth is known: how the box that was drawn there
  differs from what the net takes for the whole of the target (the man for his face).
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


USUAL_DELTA = 0.25
"""Deltas are seldom larger; by this they are divided for the generator."""
ALIKE = 0.2
"""Overlap of an answer with the drawn box up to which the net sees something else altogether."""


def box_deltas(found: Tensor, drawn: Tensor) -> Tensor:
    """What takes an answer to the box that was drawn: (B, 4) as (dx / w, dy / h, log of the ratio
    of the widths, of the heights), w and h the answer's (R-CNN's targets, arXiv 1311.2524).

    Args:
        found: (B, 4) the net's answers, (cx, cy, w, h).
        drawn: (B, 4) the boxes, in the same units.

    Returns:
        all 0 where the two hardly overlap.
    """
    middle, size = found.split(2, dim=1)
    wanted, extent = drawn.split(2, dim=1)
    low = torch.maximum(middle - size / 2, wanted - extent / 2)
    high = torch.minimum(middle + size / 2, wanted + extent / 2)
    shared = (high - low).clamp_min(0).prod(1)
    alike = shared > ALIKE * (size.prod(1) + extent.prod(1) - shared)
    deltas = torch.cat([(wanted - middle) / size, (extent / size).log()], dim=1)
    return torch.where(alike[:, None], deltas, torch.zeros_like(deltas))


def moved(unit: Tensor, motion: Tensor) -> Tensor:
    """Boxes (B, 4) of a crop in units of the next one's side, see `resample`."""
    return torch.cat([unit[:, :2] - motion[:, :2], unit[:, 2:]], dim=1) / motion[:, 2:]


BESIDE = 5
"""How many numbers say how a token lies to a box, see `beside`."""


def beside(unit: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """How each token lies to a box of its crop.

    Args:
        unit: (B, 4) boxes (cx, cy, w, h) in units of the crop's side; of no size where there is
            none.
        grid: tokens along a side.

    Returns:
        (B, grid * grid, 5) the share of the token that the box covers, and how far its left, top,
        right and bottom lie from the token's middle, outwards, in quarters of the crop's side and
        at most one side; all 0 where there is no box.
        (B, 1, 1) 1 where there is one, else 0.
    """
    middles = (torch.arange(grid, dtype=unit.dtype, device=unit.device) + 0.5) / grid
    low, high = unit[:, :2] - unit[:, 2:] / 2, unit[:, :2] + unit[:, 2:] / 2
    before = middles - low[:, :, None]  # (B, 2, grid): along x and along y
    after = high[:, :, None] - middles
    half = 0.5 / grid
    covered = (before.clamp(-half, half) + after.clamp(-half, half)).clamp_min(0) * grid
    share = covered[:, 1, :, None] * covered[:, 0, None, :]
    left, right = (x[:, 0, None, :].expand_as(share) for x in (before, after))
    top, bottom = (x[:, 1, :, None].expand_as(share) for x in (before, after))
    edges = 4 * torch.stack([left, top, right, bottom], dim=-1).clamp(-1, 1)
    given = (unit[:, 2:3] > 0).to(unit.dtype)[:, :, None]
    return torch.cat([share[..., None], edges], dim=-1).flatten(1, 2) * given, given


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
    """Makes gamma and beta for every modulated layer from context, last box and deltas, and renews
    the context.

    out = gamma' * x + beta', where a reliability r in 0..1 blends towards identity:
    gamma' = r gamma + 1 - r and beta' = r beta. `token`: every token's context makes its own pair,
    by two small MLPs a layer. `pooled`: one vector, one MLP for the pairs of all layers. To these
    one MLP adds what the deltas ask for, for all tokens alike, and one what the last box does, for
    each token (pooled: for their mean); nothing where there are none. These two modulate what
    enters the first block as well, so that what every block remembers is of marked tokens.
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
        told = 2 * (1 + layers) * dim
        self.correction = _generator(4, hidden, told, config.film_init)
        self.continuation = _generator(BESIDE, hidden, told, config.film_init)

    def pairs(self, context: Context, deltas: Tensor, last: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(gamma', beta') of the entrance and of each modulated layer, (B, S, dim) or, pooled,
        (B, 1, dim).

        Args:
            context: resampled into this frame's crop.
            deltas: (B, 4) of the track's first frame, see `box_deltas`.
            last: (B, 4) box of the frame before, in units of this crop's side, see `beside`.
        """
        tokens, known = context
        places, told = beside(last, int(tokens.shape[1] ** 0.5))
        if self.pooled:
            places = places.mean(1, keepdim=True)
            total = known.sum(1, keepdim=True)
            tokens = (tokens * known).sum(1, keepdim=True) / total.clamp_min(1e-6)
            known = known.mean(1, keepdim=True)
        made = [generator(tokens) for generator in self.generators]
        if self.pooled:
            made = list(made[0].chunk(2 * self.layers, dim=-1))
        reliability = self.calibrator(tokens) * known
        # (B, 1, 1): OpenVINO 2026.4 crashes on a factor (B, 1) right behind the generator
        corrects = deltas.abs().sum(1).gt(0).to(deltas.dtype)[:, None, None]
        correction = self.correction(deltas / USUAL_DELTA)[:, None] * corrects
        added = correction + self.continuation(places) * told
        gamma, beta, *added = added.chunk(2 * (1 + self.layers), dim=-1)
        # 1 + r (gamma - 1), written so that gamma = 1 gives exactly 1
        between = [reliability * one + other for one, other in zip(made, added, strict=True)]
        changes = [gamma, beta, *between]
        return [(1 + changes[2 * k], changes[2 * k + 1]) for k in range(1 + self.layers)]

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
