"""The overlap on held-out sequences: of which clips, of which net, and that it changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vil_tracker_core.model.film import box_deltas
from vil_tracker_core.model.heads import decode
from vil_tracker_core.model.tracker import identity_motion
from vil_tracker_core.training.batches import tensors
from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.held import CLIPS, HeldOut
from vil_tracker_core.training.losses import iou
from vil_tracker_core.training.optimizer import Ema
from vil_tracker_core.training.sources import held_dataset
from vil_tracker_core.training.student import Student, believed

MakeConfig = Callable[..., TrainConfig]


def state(student: Student) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in student.state_dict().items()}


def test_clips_are_of_the_held_sequences_alone(make_config: MakeConfig) -> None:
    clips = held_dataset(make_config(seed=3, frames=2), 12)
    assert clips is not None
    assert {clips.sample(index)[1].name for index in range(12)} == {"held"}
    again = held_dataset(make_config(seed=4, frames=2), 12)
    assert again is not None
    for index in range(12):
        torch.testing.assert_close(tensors(clips[index]), tensors(again[index]))


def test_overlap_is_that_of_the_average(make_config: MakeConfig) -> None:
    """By a loop over single clips with the average's own net; the student keeps its weights,
    statistics and mode."""
    config = make_config(frames=2)
    torch.manual_seed(0)
    student, other = Student(config), Student(config)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ema = Ema(other.tracker, 0.9)
    before = state(student)
    made = HeldOut(config).overlap(student, ema)
    assert student.training
    torch.testing.assert_close(state(student), before, rtol=0, atol=0)

    net, clips, overlaps = other.tracker.eval(), held_dataset(config, CLIPS), []
    assert clips is not None
    for index in range(CLIPS):
        clip = tensors(clips[index])
        templates, searches = clip["template"][None].float(), clip["search"][None]
        with torch.no_grad():
            known, zero = net.start(templates), torch.zeros(1)
            still = identity_motion(1, templates)
            first = net.step(clip["first"][None].float(), known, still, zero).prediction
            deltas = box_deltas(decode(first).unit, clip["drawn"][None])
            tells = clip["tells"].float()
            known = known._replace(deltas=deltas * tells[0], box=clip["last"][None] * tells[1])
            boxes = []
            for k in range(searches.shape[1]):
                step = net.step(searches[:, k], known, clip["motion"][None, k], tells[2:])
                known = step.memory._replace(box=believed(step) * tells[1])
                boxes.append(decode(step.prediction).unit)
        overlaps += iou(torch.cat(boxes), clip["box"])[clip["visible"]].tolist()
    assert made == pytest.approx(sum(overlaps) / len(overlaps), abs=1e-5)


def test_nothing_held_out(make_config: MakeConfig) -> None:
    """Then no video is read either."""
    config = make_config(data={"hold_out": [], "videos": ["nowhere"]})
    student = Student(config)
    assert HeldOut(config).overlap(student, Ema(student.tracker, 0.9)) is None


def test_clips_that_follow(make_config: MakeConfig) -> None:
    config = make_config(frames=2, follow=1.0)
    student = Student(config)
    overlap = HeldOut(config).overlap(student, Ema(student.tracker, 0.9))
    assert overlap is not None
    assert 0 <= overlap <= 1
