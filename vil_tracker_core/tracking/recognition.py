"""What one target looks like beside its surroundings, learned while it is followed.

The net was trained to find whatever its templates show, and takes a thing of the same kind for the
target. What tells the two apart is in the stem's features; which of them, only this video says. So
each track has a linear map of its own from a cell's features to how much of the target is there,
fitted to all frames in which it was seen: a ridge regression, whose sums over the frames are all
that has to be kept. As a memory it is a matrix memory like the mLSTM's with an exact normaliser
(von Oswald et al., arXiv 2309.05858); as a tracker's part, an online classifier beside a matching
net (Danelljan et al., arXiv 1811.07628; Zhou et al., arXiv 1909.02959).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vil_tracker_core.geometry import FloatArray

Features = npt.NDArray[np.float32]
"""(G, G, C) of the cells of a crop."""

NARROW = 0.22
"""Standard deviation of the wanted response around the target's middle, in its extents, which count
as a cell at least."""
CONSTANT = 0.3
"""Beside the features, whose length is 1."""
RIDGE = 0.1
"""Weight of the squared map, in mean squares of an input."""
FIRST = 0.3
"""Share of the first frame, the only one with a drawn box, for good."""


@dataclass(frozen=True)
class _Sums:
    """Of inputs x and wanted responses y over cells: x x^T (C, C) and x y (C,)."""

    squares: Tensor
    products: Tensor

    def mixed(self, other: _Sums, share: float) -> _Sums:
        """With a share of the other ones."""
        return _Sums(
            self.squares.lerp(other.squares, share), self.products.lerp(other.products, share)
        )

    def fitted(self) -> Tensor:
        """The map (C,) with the least squared error."""
        ridged = self.squares.clone()
        ridged.diagonal().add_(RIDGE * ridged.diagonal().mean())
        fitted: Tensor = torch.linalg.solve(ridged, self.products)
        return fitted


def _inputs(seen: Features) -> Tensor:
    """(rows, columns, C) features -> (rows * columns, C + 1), of length 1 and with a constant."""
    cells = torch.from_numpy(seen).flatten(0, 1)
    unit = cells / (cells.norm(dim=1, keepdim=True) + 1e-6)
    return torch.nn.functional.pad(unit, (0, 1), value=CONSTANT)


def wanted(unit: FloatArray, grid: int) -> Tensor:
    """(G * G,) responses that are wanted where the target lies at ``unit`` (4,), (cx, cy, w, h) in
    units of the crop's side: 1 at its middle, and less by a normal distribution."""
    middles = (np.arange(grid) + 0.5) / grid
    width, height = np.maximum(unit[2:], 1 / grid) * NARROW
    across = np.exp(-0.5 * ((middles - unit[0]) / width) ** 2)
    down = np.exp(-0.5 * ((middles - unit[1]) / height) ** 2)
    return torch.from_numpy(np.outer(down, across).ravel()).float()


def _sums(seen: Features, unit: FloatArray) -> _Sums:
    """Of one frame; target and surroundings have half of the weight each."""
    x, y = _inputs(seen), wanted(unit, len(seen))
    weighed = x * (y / y.sum() + (1 - y) / (1 - y).sum())[:, None]
    return _Sums(weighed.T @ x, weighed.T @ y)


@dataclass(frozen=True)
class Recognition:
    """What is known of one target after some frames.

    Features are the stem's of a search crop; a box ``unit`` (4,) is (cx, cy, w, h) in units of that
    crop's side. It is computed on as many threads as PyTorch is told to use (`Network.step` does).
    """

    _first: _Sums
    _recent: _Sums
    _map: Tensor

    @classmethod
    def begin(cls, seen: Features, unit: FloatArray) -> Recognition:
        """From the first frame and the drawn box."""
        sums = _sums(seen, unit)
        return cls(sums, sums, sums.fitted())

    def learned(self, seen: Features, unit: FloatArray, rate: float) -> Recognition:
        """With one more frame whose box is believed, as that share of the recent ones; as it is
        where the middle of the box lies outside of the crop."""
        if not ((unit[:2] >= 0) & (unit[:2] < 1)).all():
            return self
        recent = self._recent.mixed(_sums(seen, unit), rate)
        return Recognition(self._first, recent, recent.mixed(self._first, FIRST).fitted())

    def response(self, seen: Features, unit: FloatArray) -> float:
        """How much what lies at ``unit`` is like the target: the best of the nine cells around its
        middle. Mostly .5 to .7 where it is, as no map fits exactly, and about 0 elsewhere."""
        grid = len(seen)
        column, row = np.clip((unit[:2] * grid).astype(int), 0, grid - 1)
        around = seen[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        return float((_inputs(around) @ self._map).max())
