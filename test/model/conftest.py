"""Small nets whose every part does something: random weights also where training starts at 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from vil_tracker_core.model.presets import ModelConfig
from vil_tracker_core.model.tracker import ViLTracker

SMALLEST = ModelConfig(
    name="smallest",
    template_size=32,
    search_size=64,
    match_width=6,
    dim=16,
    depth=4,
    tmoe_blocks=1,
    heads=2,
    chunk=7,
    scan="regional",
    film_every=2,
    film_hidden=4,
    head_channels=8,
    uncertainty_channels=8,
)


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    """The smallest config with every part of the net: 4 template tokens, 16 search tokens."""
    return SMALLEST


@pytest.fixture(scope="session")
def make_tracker() -> Callable[..., ViLTracker]:
    """make_tracker(field=value, ...): a float64 net in evaluation mode, weights disturbed."""

    def make(**changes: Any) -> ViLTracker:
        torch.manual_seed(0)
        model = ViLTracker(replace(SMALLEST, **changes)).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        return model

    return make


@pytest.fixture
def images() -> Callable[..., torch.Tensor]:
    """images(*shape): float64 noise in 0..255, the same at each run of a test."""
    generator = torch.Generator().manual_seed(1)

    def make(*shape: int) -> torch.Tensor:
        return 255 * torch.rand(*shape, generator=generator, dtype=torch.float64)

    return make
