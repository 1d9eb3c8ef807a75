"""What changes in the course of a run, and what is frozen.

Phase 1 trains everything, FiLM from `film_from` on, under the curriculum. Phase 2 starts from its
weights: the shared TMoE experts are frozen, FiLM is on, and the losses of memory and teacher join.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from vil_tracker_core.model.block import TMoE
from vil_tracker_core.model.mobile import MobileTrunk
from vil_tracker_core.model.tracker import ViLTracker
from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.curriculum import difficulty


class Stage(NamedTuple):
    """Where a run stands: its difficulty in 0..1, and whether FiLM modulates."""

    level: float = 1.0
    film: bool = True


def stage_at(config: TrainConfig, step: int) -> Stage:
    """The stage of the step of that number (from 0)."""
    return Stage(
        level=difficulty(step, config.difficulty_steps, config.difficulty_from),
        film=step >= config.film_from,
    )


def freeze_shared_experts(tracker: nn.Module) -> None:
    """Takes the shared TMoE experts out of the training: no gradient and no decay reaches them."""
    for module in tracker.modules():
        if isinstance(module, TMoE):
            module.shared.requires_grad_(False)


def freeze_trunk(tracker: nn.Module, layers: int) -> None:
    """Takes the first layers of a mobile stem's trunk out of the training."""
    for module in tracker.modules():
        if isinstance(module, MobileTrunk):
            for layer in list(module)[:layers]:
                layer.requires_grad_(False)


def hold_film(tracker: ViLTracker) -> None:
    """Drops FiLM's gradients before an optimiser step, which then neither moves nor decays it."""
    if tracker.film is not None:
        for parameter in tracker.film.parameters():
            parameter.grad = None
