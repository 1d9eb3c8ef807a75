"""Where the target is, how large it is, and how wrong that may be."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vil_tracker_core.model.presets import ModelConfig

SCORE_FLOOR = 1e-4
"""Scores are clamped to [floor, 1 - floor], so that their logarithms stay finite."""

LOG_VAR_CENTRE, LOG_VAR_RANGE = -6.0, 6.0
"""Log-variances, in units of the crop's side squared, lie within centre +- range."""


class Prediction(NamedTuple):
    """What the heads say of each cell of the search grid; lengths in units of the crop's side.

    Attributes:
        score: (B, G, G) in (0, 1), that the target's centre lies in the cell.
        offset: (B, 2, G, G) in cells, from the cell's top-left corner to the centre (x, y);
            beyond [0, 1] where a neighbour holds the centre.
        size: (B, 2, G, G) in (0, 1), width and height.
        log_var: (B, 4, G, G) log-variances of (cx, cy, w, h).
    """

    score: Tensor
    offset: Tensor
    size: Tensor
    log_var: Tensor


class Detection(NamedTuple):
    """The best cell's box: unit (B, 4) as (cx, cy, w, h), log_var (B, 4), score (B,)."""

    unit: Tensor
    log_var: Tensor
    score: Tensor


def _conv(dim: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(dim, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.SiLU()
    )


class Pointwise(nn.Conv2d):
    """A 1x1 convolution in float32, whatever precision the layers before it run in: as a bfloat16
    number, the logit of a size is off by up to a pixel of a 720p frame.

    Written as a sum of products, which autocast leaves as it is.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        products = x.to(self.weight.dtype)[:, None] * self.weight
        return products.sum(2) + self.bias[:, None, None]


def tower_at(tower: nn.Sequential, maps: Tensor, cells: Tensor) -> Tensor:
    """What a tower of 3x3 convolutions and a last 1x1 one says of one cell a sample, from that
    cell's surroundings alone: (B, D, G, G) and flat cell indices (B,) -> (B, C)."""
    grid, reach = maps.shape[-1], len(tower) - 1
    around = torch.arange(-reach, reach + 1, device=maps.device)
    places = torch.stack([cells // grid, cells % grid])[..., None] + around  # rows, columns
    rows, columns = places.clamp(0, grid - 1)
    at = (rows[:, :, None] * grid + columns[:, None]).flatten(1)
    x = maps.flatten(2).gather(2, at[:, None].expand(-1, maps.shape[1], -1))
    x = x.unflatten(2, (2 * reach + 1, 2 * reach + 1))
    inside = ((places >= 0) & (places < grid)).to(x.dtype)
    for layer in tower[:-1].children():
        convolution, norm, act = layer.children()
        x = x * inside[0][:, None, :, None] * inside[1][:, None, None, :]  # zero beyond the rim
        x = act(norm(F.conv2d(x, convolution.get_parameter("weight"))))
        inside = inside[..., 1:-1]
    out: Tensor = tower[-1](x)
    return out[..., 0, 0]


class CentreHead(nn.Module):
    """Three towers of 3x3 convolutions: score, offset, size."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, width = config.dim, config.head_channels
        self.score, self.offset, self.size = (
            nn.Sequential(_conv(dim, width), _conv(width, width // 2), Pointwise(width // 2, out))
            for out in (1, 2, 2)
        )
        with torch.no_grad():  # a score of 0.1 before training
            self.score.get_parameter("2.bias").fill_(-2.19)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        score = self.score(x)[:, 0].float().sigmoid().clamp(SCORE_FLOOR, 1 - SCORE_FLOOR)
        return score, self.offset(x).float() + 0.5, self.size(x).float().sigmoid()

    def at(self, x: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Offset and size (B, 2) at flat cell indices (B,)."""
        offset, size = (tower_at(tower, x, cells).float() for tower in (self.offset, self.size))
        return offset + 0.5, size.sigmoid()


class UncertaintyHead(nn.Module):
    """Log-variances of (cx, cy, w, h) at each cell; only the peak's are used."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.uncertainty_channels
        self.net = nn.Sequential(_conv(config.dim, width), Pointwise(width, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self._bounded(self.net(x))

    def at(self, x: Tensor, cells: Tensor) -> Tensor:
        """(B, 4) at flat cell indices (B,)."""
        return self._bounded(tower_at(self.net, x, cells))

    @staticmethod
    def _bounded(x: Tensor) -> Tensor:
        return LOG_VAR_CENTRE + LOG_VAR_RANGE * torch.tanh(x.float() / LOG_VAR_RANGE)


def at_cells(maps: Tensor, cells: Tensor) -> Tensor:
    """(B, C) values of (B, C, G, G) maps at flat cell indices (B,)."""
    index = cells[:, None, None].expand(-1, maps.shape[1], 1)
    return maps.flatten(2).gather(2, index)[..., 0]


def hann_window(grid: int) -> Tensor:
    """(G, G) outer product of two Hann windows, 1 near the middle and above 0 at the rim."""
    line = torch.hann_window(grid + 2, periodic=False, dtype=torch.float64)[1:-1]
    return (line[:, None] * line[None, :]).float()


WINDOW_INFLUENCE = 0.7
"""How far the tracker favours the middle of its search crop, unless told otherwise."""


def choice_window(grid: int, influence: float = WINDOW_INFLUENCE) -> Tensor:
    """(G, G) weight of the cells in the choice of the best: a Hann window over a floor."""
    return 1 - influence + influence * hann_window(grid)


def peak(score: Tensor, window: Tensor | None = None) -> Tensor:
    """The flat index (B,) of the cell with the highest score (B, G, G); ``window`` (G, G) weighs
    the choice only."""
    weighed = score if window is None else score * window
    return weighed.flatten(1).argmax(1)


def centre(cells: Tensor, offset: Tensor, grid: int) -> Tensor:
    """(B, 2) in units of the crop's side, of offsets (B, 2) from the corners of cells (B,)."""
    corner = torch.stack([cells % grid, cells // grid], dim=1)
    return (corner + offset) / grid


def decode(prediction: Prediction, window: Tensor | None = None) -> Detection:
    """The box of the `peak`."""
    cells = peak(prediction.score, window)
    middle = centre(cells, at_cells(prediction.offset, cells), prediction.score.shape[-1])
    unit = torch.cat([middle, at_cells(prediction.size, cells)], dim=1)
    score = prediction.score.flatten(1).gather(1, cells[:, None])[:, 0]
    return Detection(unit, at_cells(prediction.log_var, cells), score)


def encode(unit: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """The cell (B,) and the offset (B, 2) whose `decode` is the centre of ``unit`` (B, 4).

    Centres outside the crop are put into the nearest cell; their offset is clamped to [0, 1].
    """
    at = unit[:, :2] * grid
    corner = at.floor().clamp(0, grid - 1)
    cells = (corner[:, 1] * grid + corner[:, 0]).long()
    return cells, (at - corner).clamp(0, 1)
