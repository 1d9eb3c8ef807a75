"""Runs the net on image crops: numpy in, numpy out, any number of tracks in one batch."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vil_tracker_core import weights
from vil_tracker_core.geometry import FloatArray, Image
from vil_tracker_core.model.heads import decode, hann_window
from vil_tracker_core.model.tracker import Memory


class Found(NamedTuple):
    """What the net says of one search crop, in units of the crop's side.

    Attributes:
        unit: (4,) cx, cy, w, h.
        variance: (4,) calibrated variances of the same.
        score: 0..1.
    """

    unit: FloatArray
    variance: FloatArray
    score: float


def _tree_map(function: Callable[..., Tensor], *trees: Any) -> Any:
    """``function`` over the tensors of equal structures of (named) tuples; None stays None."""
    first = trees[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return function(*trees)
    parts = [_tree_map(function, *children) for children in zip(*trees, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def stack(memories: Many[Memory]) -> Memory:
    """One batch of several tracks' memories."""
    out: Memory = _tree_map(lambda *tensors: torch.cat(tensors), *memories)
    return out


def unstack(memory: Memory, count: int) -> list[Memory]:
    """The single memories of a batch of ``count``."""
    return [_tree_map(lambda tensor, at=at: tensor[at : at + 1], memory) for at in range(count)]


class Network:
    """A loaded net. It keeps nothing of the tracks: their memory comes in and goes out.

    Args:
        loaded: config, tensors and calibration.
        window_influence: how far a Hann window favours the middle of the crop, 0..1.
        device: where to run.
    """

    def __init__(
        self, loaded: weights.Weights, window_influence: float = 0.3, device: str = "cpu"
    ) -> None:
        self.config = loaded.config
        self.device = torch.device(device)
        self.model = loaded.build().to(self.device)
        hann = hann_window(self.config.search_grid)
        self.window = (1 - window_influence + window_influence * hann).to(self.device)
        self.scale = np.array(loaded.calibration.scale, dtype=np.float64)

    @classmethod
    def open(cls, name_or_path: str | Path, device: str = "cpu") -> Network:
        """The net of a weights file or of a shipped preset; raises `weights.WeightsError`."""
        return cls(weights.load(weights.find(str(name_or_path))), device=device)

    def _images(self, crops: Many[Image]) -> Tensor:
        batch = np.stack(crops)[..., ::-1].transpose(0, 3, 1, 2)  # BGR to RGB, channels first
        return torch.from_numpy(np.ascontiguousarray(batch)).to(self.device).float()

    @torch.inference_mode()
    def start(self, templates: Many[Image]) -> Memory:
        """The memory of one track that begins with these template crops (T, T, 3) BGR."""
        return self.model.start(self._images(templates)[None])

    @torch.inference_mode()
    def renew(self, memory: Memory, templates: Many[Image]) -> Memory:
        """The memory with other templates and the same temporal context."""
        return memory._replace(templates=self.start(templates).templates)

    @torch.inference_mode()
    def step(
        self,
        crops: Many[Image],
        memories: Many[Memory],
        motions: Many[tuple[float, float, float]],
        trusts: Many[float],
    ) -> tuple[list[Found], list[Memory]]:
        """One frame of several tracks at once; all lists are one entry a track.

        Args:
            crops: search crops (S, S, 3) BGR.
            memories: of `start` or of the frame before.
            motions: see `geometry.crop_motion`.
            trusts: 0..1, how far the frame may change the temporal context.
        """
        step = self.model.step(
            self._images(crops),
            stack(memories),
            torch.tensor(motions, dtype=torch.float32, device=self.device),
            torch.tensor(trusts, dtype=torch.float32, device=self.device),
        )
        best = decode(step.prediction, self.window)
        units = best.unit.double().cpu().numpy()
        variances = np.exp(best.log_var.double().cpu().numpy()) * self.scale**2
        scores = best.score.cpu().tolist()
        found = [Found(u, v, s) for u, v, s in zip(units, variances, scores, strict=True)]
        return found, unstack(step.memory, len(crops))
