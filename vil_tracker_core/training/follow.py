"""A clip as the tracker would see it: search crops around the boxes that the net itself has found.

Crops around the truth teach that the frame before was right and that the target lies in the middle.
Online neither holds after an error: the next crop lies around it, and the temporal context shows
it. A net that has met only its teacher's past trusts its own too much (exposure bias; Bengio et
al., arXiv 1506.03099).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vil_tracker_core.data.clips import REACH
from vil_tracker_core.model.heads import Prediction, choice_window, decode
from vil_tracker_core.model.presets import ModelConfig
from vil_tracker_core.training.batches import Batch

NARROWEST, WIDEST = 0.6, 1.7
"""Bounds of a search crop's side, in sides of the one that the clip proposes."""
INERTIA = 0.5
"""Weight of the last crop's log size against that of the box found in it, as a filter has it."""


class View(NamedTuple):
    """A search crop inside each wide crop: its corner (B, 2) as (x, y) and its side (B, 1), in
    units of the wide crop's side."""

    corner: Tensor
    side: Tensor

    @classmethod
    def middle(cls, batch: int, like: Tensor) -> View:
        """The search crop that the clip proposes."""
        side = 1 / REACH
        return cls(like.new_full((batch, 2), (1 - side) / 2), like.new_full((batch, 1), side))

    def inside(self, unit: Tensor) -> Tensor:
        """Boxes (B, 4) of the wide crops in units of the search crops' sides."""
        return torch.cat([(unit[:, :2] - self.corner) / self.side, unit[:, 2:] / self.side], dim=1)

    def cut(self, wide: Tensor) -> Tensor:
        """(B, 3, S, S) of wide crops (B, 3, REACH * S, REACH * S)."""
        size = round(wide.shape[-1] / REACH)
        line = (torch.arange(size, dtype=wide.dtype, device=wide.device) + 0.5) / size
        x, y = (2 * (self.corner[:, i : i + 1] + self.side * line) - 1 for i in (0, 1))
        rows, columns = y[:, :, None].expand(-1, size, size), x[:, None].expand(-1, size, size)
        grid = torch.stack([columns, rows], dim=-1)
        return F.grid_sample(wide, grid, padding_mode="border", align_corners=False)


def next_view(view: View, found: Tensor, motion: Tensor, factor: float) -> View:
    """The search crop around the box that was found in the last one.

    It stays within the wide crop. That lies around the truth, so a crop that reached over its edge
    would show by what it lacks on which side the target is.

    Args:
        view: the last search crop.
        found: (B, 4) box in units of its side.
        motion: (B, 3) of the wide crops, from the last frame's to this one's, see `film.resample`.
        factor: side of a search crop over the extent sqrt(w * h) of its target.
    """
    shift, zoom = motion[:, :2], motion[:, 2:]
    centre = (view.corner + view.side * found[:, :2] - shift) / zoom
    asked = factor * view.side * found[:, 2:].prod(1, keepdim=True).sqrt()
    side = view.side**INERTIA * asked ** (1 - INERTIA) / zoom
    side = side.clamp(NARROWEST / REACH, WIDEST / REACH)
    return View((centre - side / 2).clamp_min(0).minimum(1 - side), side)


def motion_between(old: View, new: View, motion: Tensor) -> Tensor:
    """(B, 3) motion of search crops whose wide crops moved by ``motion``, see `film.resample`."""
    shift, zoom = motion[:, :2], motion[:, 2:]
    moved = (zoom * new.corner + shift - old.corner) / old.side
    return torch.cat([moved, zoom * new.side / old.side], dim=1)


class Shown(NamedTuple):
    """A frame for the net: search (B, 3, S, S), its motion (B, 3), the truth (B, 4) in units of the
    search crop's side, and (B,) whether the target's middle is in it."""

    search: Tensor
    motion: Tensor
    unit: Tensor
    visible: Tensor


def as_cut(batch: Batch, k: int) -> Shown:
    """Frame k of a batch of clips whose crops are the net's as they are."""
    search, motion = batch["search"][:, k].float(), batch["motion"][:, k]
    return Shown(search, motion, batch["box"][:, k], batch["visible"][:, k])


class Follower:
    """Deals the frames of a batch of wide crops one by one.

    The first search crop is the one that the clip proposes. In clips that follow, each other lies
    around the box found in the last, as long as the target was in there, and is in the proposed
    one: else the clip's proposal is shown again, be it to find the target or to miss it.

    Args:
        batch: clips of wide crops.
        model: the net's configuration.
    """

    def __init__(self, batch: Batch, model: ModelConfig) -> None:
        self.batch, self.factor = batch, model.search_factor
        self._window = choice_window(model.search_grid)
        self._found: Tensor | None = None
        self._view = self._proposed = View.middle(len(batch["box"]), batch["box"])
        self._follows = batch["follows"]

    def show(self, k: int) -> Shown:
        """Frame k, after all before it."""
        motion, last, box = self.batch["motion"][:, k], self._view, self.batch["box"][:, k]
        visible = self.batch["visible"][:, k]
        view = self._proposed
        if self._found is not None:
            own = next_view(last, self._found, motion, self.factor)
            follows = (self._follows & visible & _holds(view.inside(box)))[:, None]
            view = View(*(torch.where(follows, a, b) for a, b in zip(own, view, strict=True)))
        unit = view.inside(box)
        visible = visible & _holds(unit)
        self._view = view
        self._follows = self.batch["follows"] & visible
        search = view.cut(self.batch["search"][:, k].float())
        return Shown(search, motion_between(last, view, motion), unit, visible)

    @torch.no_grad()
    def learn(self, prediction: Prediction) -> None:
        """Takes in what the net says of the frame shown last, read as online."""
        self._found = decode(prediction, self._window.to(prediction.score.device)).unit


def _holds(unit: Tensor) -> Tensor:
    """(B,) whether boxes (B, 4) have their middle in the crop; not where they are NaN."""
    return ((unit[:, :2] > 0) & (unit[:, :2] < 1)).all(1)
