"""How the weights move: parameter groups, the learning rate's course, and their average."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from vil_tracker_core.training.config import TrainConfig

MAY_BE_PUBLISHED = re.compile(r"\.stem\.trunk\.|\.matcher\.(?!project\.)")
"""What may start with published weights."""


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW's groups: matrices decay, FiLM's at their own rate; biases, norms, gains never do.
    Frozen parameters are in none, so that nothing moves them. A group's `lr_share` is its part of
    the learning rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = parameter.dim() >= 2 and "position" not in name
        decay = config.film_weight_decay if ".film." in name else config.weight_decay
        share = config.trunk_lr if MAY_BE_PUBLISHED.search(name) else 1.0
        groups.setdefault((decay if matrix else 0.0, share), []).append(parameter)
    return [
        {"params": params, "weight_decay": decay, "lr_share": share}
        for (decay, share), params in groups.items()
    ]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then half a cosine to a hundredth."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    share = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


class Ema:
    """An exponential moving average of a module's state, whole buffers copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))  # the first steps are forgotten sooner
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)
