"""A real net of random weights, and frames to run it on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vil_tracker_core.geometry import Image
from vil_tracker_core.model.presets import preset
from vil_tracker_core.model.tracker import ViLTracker
from vil_tracker_core.tracking.network import Network, TorchNetwork
from vil_tracker_core.weights import Weights

sys.path.insert(0, str(Path(__file__).parent))  # for crops.py


@pytest.fixture(scope="session")
def make_weights() -> Callable[..., Weights]:
    """make_weights(field=value, ...): the smallest preset with changes, its weights disturbed."""

    def make(seed: int = 0, **changes: Any) -> Weights:
        config = type(preset("vil_tiny")).from_dict({**preset("vil_tiny").to_dict(), **changes})
        torch.manual_seed(seed)
        model = ViLTracker(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
            # boxes about as large as the one before: else a chain of random answers grows
            # without bound, and every difference with it
            for head, bias in ((model.centre_head.size, -1.1), (model.centre_head.offset, 0.0)):
                head[-1].weight *= 0.1
                head[-1].bias.fill_(bias)
        return Weights(config, model.state_dict())

    return make


@pytest.fixture(scope="session")
def network(make_weights: Callable[..., Weights]) -> Network:
    return TorchNetwork(make_weights())


@pytest.fixture(scope="session")
def frames() -> list[Image]:
    """Eight frames of 160x120: smooth noise that drifts to the right by 2 px a frame."""
    coarse = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    wide = np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:120]
    return [np.ascontiguousarray(wide[:, 60 - 2 * k : 220 - 2 * k]) for k in range(8)]
