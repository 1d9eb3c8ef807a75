"""The curriculum (ACL): how hard the clips are and what each loss counts, from progress alone.

Difficulty runs linearly from `difficulty_from` to 1. `data.clips.Difficulty` turns it into the
temporal gap between template and search and into the search crop's jitter; here it weighs losses:
far from the target, an L1 distance guides where overlaps are 0, and variances mean nothing yet.
"""

from __future__ import annotations

from vil_tracker_core.training.config import TrainConfig


def difficulty(step: float, ramp: int, start: float) -> float:
    """Difficulty in 0..1 at a step: ``start`` at step 0, 1 from step ``ramp`` on."""
    if ramp == 0:
        return 1.0
    return start + (1 - start) * min(step / ramp, 1.0)


def loss_weights(config: TrainConfig, level: float) -> dict[str, float]:
    """Loss -> its weight at a difficulty: from `easy_losses` at 0 straight to `losses` at 1."""
    hard = config.losses.model_dump()
    easy = (config.easy_losses or config.losses).model_dump()
    return {name: easy[name] + (hard[name] - easy[name]) * level for name in hard}
