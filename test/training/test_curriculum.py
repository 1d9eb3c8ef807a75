"""The curriculum: difficulty and the losses' weights from progress alone, worked by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.curriculum import difficulty, loss_weights
from vil_tracker_core.training.sources import difficulty_schedule

MakeConfig = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("step", "ramp", "start", "expected"),
    [
        (0, 50, 0.0, 0.0),
        (25, 50, 0.0, 0.5),
        (50, 50, 0.0, 1.0),
        (51, 50, 0.0, 1.0),
        (300, 50, 0.0, 1.0),
        (0, 800, 0.3, 0.3),
        (200, 800, 0.3, 0.475),  # a quarter of the way from 0.3 to 1
        (800, 800, 0.3, 1.0),
        (0, 0, 0.2, 1.0),  # no ramp: hard from the start
    ],
)
def test_difficulty_by_hand(step: int, ramp: int, start: float, expected: float) -> None:
    assert difficulty(step, ramp, start) == pytest.approx(expected)


def test_loss_weights_by_hand(make_config: MakeConfig) -> None:
    config = make_config(
        losses={"focal": 1.0, "giou": 2.0, "l1": 5.0, "nll": 0.05, "contrastive": 0.5},
        easy_losses={"focal": 1.0, "giou": 1.0, "l1": 9.0, "nll": 0.01, "contrastive": 0.0},
    )
    assert loss_weights(config, 0.0) == pytest.approx(config.easy_losses.model_dump())  # type: ignore[union-attr]
    assert loss_weights(config, 1.0) == pytest.approx(config.losses.model_dump())
    quarter = {"focal": 1.0, "giou": 1.25, "l1": 8.0, "nll": 0.02, "contrastive": 0.125}
    assert loss_weights(config, 0.25) == pytest.approx(quarter)


def test_loss_weights_without_easy_ones_do_not_change(make_config: MakeConfig) -> None:
    config = make_config(losses={"l1": 3.0})
    assert loss_weights(config, 0.0) == loss_weights(config, 1.0) == config.losses.model_dump()


def test_clips_follow_the_curriculum(make_config: MakeConfig) -> None:
    """Gap and jitter of the clips of a step are of that step's difficulty."""
    config = make_config(steps=20, batch=4, accumulate=2, difficulty_from=0.0, difficulty_steps=10)
    clips = difficulty_schedule(config)
    for step in (0, 3, 10, 15):
        assert clips(step * 8).level == pytest.approx(difficulty(step, 10, 0.0))
    easy, half, hard = (clips(8 * step) for step in (0, 5, 10))
    assert (easy.max_gap, hard.max_gap) == (5, 75)
    assert (easy.shift, half.shift, hard.shift) == pytest.approx((0.12, 0.23, 0.34))
    assert (easy.zoom, half.zoom, hard.zoom) == pytest.approx((0.08, 0.265, 0.45))
