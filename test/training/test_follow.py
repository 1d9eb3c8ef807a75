"""Search crops around the net's own boxes: against squares of the frame, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vil_tracker_core.data.clips import REACH
from vil_tracker_core.model.heads import Prediction
from vil_tracker_core.model.presets import preset
from vil_tracker_core.training.batches import Batch
from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.follow import (
    NARROWEST,
    WIDEST,
    Follower,
    View,
    motion_between,
    next_view,
)
from vil_tracker_core.training.phases import Stage
from vil_tracker_core.training.student import Student

MakeConfig = Callable[..., TrainConfig]
BatchOf = Callable[..., Batch]
TINY = preset("vil_tiny")
GRID, SIZE = TINY.search_grid, TINY.search_size


class Square(NamedTuple):
    """A square of the frame: corner and side, px."""

    x: float
    y: float
    side: float

    def part(self, view: View) -> Square:
        (x, y), side = view.corner[0].tolist(), view.side.item()
        return Square(self.x + self.side * x, self.y + self.side * y, self.side * side)

    def motion_to(self, new: Square) -> Tensor:
        dx, dy = (new.x - self.x) / self.side, (new.y - self.y) / self.side
        return torch.tensor([[dx, dy, new.side / self.side]], dtype=torch.float64)


def view_of(x: float, y: float, side: float) -> View:
    return View(
        torch.tensor([[x, y]], dtype=torch.float64), torch.tensor([[side]], dtype=torch.float64)
    )


places = st.floats(-0.2, 0.7)
sides = st.floats(0.3, 0.85)
squares = st.builds(Square, st.floats(-50, 300), st.floats(-50, 300), st.floats(40, 400))
boxes = st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0.02, 0.9), st.floats(0.02, 0.9))


@given(squares, squares, st.builds(view_of, places, places, sides), boxes)
def test_next_crop_lies_around_the_box(
    old: Square, new: Square, view: View, box: tuple[float, float, float, float]
) -> None:
    found = torch.tensor([box], dtype=torch.float64)
    last = old.part(view)
    after = new.part(next_view(view, found, old.motion_to(new), 4.0))
    asked = 4.0 * last.side * math.sqrt(box[2] * box[3])
    proposed = new.side / REACH
    side = min(max(math.sqrt(asked * last.side), NARROWEST * proposed), WIDEST * proposed)
    assert after.side == pytest.approx(side)
    # around the box, but within the wide crop
    x, y = last.x + last.side * box[0] - side / 2, last.y + last.side * box[1] - side / 2
    assert after.x == pytest.approx(min(max(x, new.x), new.x + new.side - side), abs=1e-6)
    assert after.y == pytest.approx(min(max(y, new.y), new.y + new.side - side), abs=1e-6)


@given(
    squares,
    squares,
    st.builds(view_of, places, places, sides),
    st.builds(view_of, places, places, sides),
)
def test_motion_is_that_of_the_squares(old: Square, new: Square, a: View, b: View) -> None:
    made = motion_between(a, b, old.motion_to(new))
    torch.testing.assert_close(made, old.part(a).motion_to(new.part(b)))


def test_a_box_seen_from_a_view() -> None:
    view = view_of(0.25, 0.4, 0.5)
    inside = view.inside(torch.tensor([[0.5, 0.5, 0.1, 0.3]], dtype=torch.float64))
    torch.testing.assert_close(
        inside, torch.tensor([[0.5, 0.2, 0.2, 0.6]], dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


def test_the_middle_is_cut_as_it_is() -> None:
    wide = 255 * torch.rand(2, 3, 32, 32)
    cut = View.middle(2, wide).cut(wide)
    torch.testing.assert_close(cut, wide[:, :, 8:24, 8:24], rtol=0, atol=1e-3)


def test_pixels_lie_where_the_view_says() -> None:
    """On a picture whose colours are its coordinates."""
    line = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    y, x = torch.meshgrid(line, line, indexing="ij")
    wide = torch.stack([x, y, 0 * x])[None]
    view = view_of(0.1, 0.3, 0.6)
    cut = view.cut(wide)
    inner = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    torch.testing.assert_close(cut[0, 0, 3], 0.1 + 0.6 * inner)
    torch.testing.assert_close(cut[0, 1, :, 5], 0.3 + 0.6 * inner)


def prediction(cell: tuple[int, int], side: float) -> Prediction:
    """Sure of the middle of a cell (column, row), and of a square."""
    score = torch.full((2, GRID, GRID), 0.01)
    score[:, cell[1], cell[0]] = 0.9
    maps = torch.ones(2, 2, GRID, GRID)
    return Prediction(score, 0.5 * maps, side * maps, torch.zeros(2, 4, GRID, GRID))


def still_batch(box: list[float], follows: tuple[bool, bool] = (True, True)) -> Batch:
    """Two wide clips of two frames in which nothing moves."""
    return {
        "search": torch.randint(0, 256, (2, 2, 3, 2 * SIZE, 2 * SIZE), dtype=torch.uint8),
        "box": torch.tensor(box).expand(2, 2, 4),
        "visible": torch.ones(2, 2, dtype=torch.bool),
        "motion": torch.tensor([0.0, 0.0, 1.0]).expand(2, 2, 3),
        "follows": torch.tensor(follows),
    }


def test_one_clip_follows_and_the_other_does_not() -> None:
    follower = Follower(still_batch([0.5, 0.5, 0.1, 0.1], (True, False)), TINY)
    first = follower.show(0)
    assert first.search.shape == (2, 3, SIZE, SIZE)
    torch.testing.assert_close(first.unit[0], torch.tensor([0.5, 0.5, 0.2, 0.2]))
    follower.learn(prediction((0, 1), side=1 / TINY.search_factor))
    second = follower.show(1)
    # the net took another cell for the target: its middle is now the middle of the crop
    shift = torch.tensor([0.5, 1.5]) / GRID - 0.5
    torch.testing.assert_close(second.motion[0], torch.cat([shift, torch.ones(1)]))
    torch.testing.assert_close(second.unit[0, :2], 0.5 - shift)
    torch.testing.assert_close(second.motion[1], torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(second.unit[1], first.unit[1])
    assert second.visible.all()


def test_the_box_is_read_with_the_trackers_window() -> None:
    """A cell near the middle counts for more than a somewhat better one in the corner."""
    found = prediction((0, 0), side=1 / TINY.search_factor)
    found.score[:, 1, 1] = 0.8
    follower = Follower(still_batch([0.5, 0.5, 0.1, 0.1]), TINY)
    follower.show(0)
    follower.learn(found)
    motion = follower.show(1).motion
    torch.testing.assert_close(motion[:, :2], torch.full((2, 2), 1.5 / GRID - 0.5))


def test_a_target_out_of_the_proposed_crop_is_missed_not_followed() -> None:
    """As in clips that are cut beside the target: it would else be in view again."""
    batch = still_batch([0.5, 0.5, 0.1, 0.1])
    batch["box"] = torch.tensor([[0.5, 0.5, 0.1, 0.1], [0.1, 0.5, 0.1, 0.1]]).expand(2, 2, 4)
    follower = Follower(batch, TINY)
    assert follower.show(0).visible.all()
    follower.learn(prediction((0, GRID // 2), side=0.25))
    second = follower.show(1)
    assert not second.visible.any()
    torch.testing.assert_close(second.motion[:, :2], torch.zeros(2, 2))


def test_after_a_miss_the_clip_proposes_again() -> None:
    follower = Follower(still_batch([0.1, 0.5, 0.1, 0.1]), TINY)
    assert not follower.show(0).visible.any()
    follower.learn(prediction((GRID - 1, GRID - 1), side=0.25))
    torch.testing.assert_close(follower.show(1).motion[:, :2], torch.zeros(2, 2))


def test_an_absent_target_stays_absent() -> None:
    batch = still_batch([math.nan] * 4)
    batch["visible"] = torch.zeros(2, 2, dtype=torch.bool)
    follower = Follower(batch, TINY)
    for k in range(2):
        shown = follower.show(k)
        assert not shown.visible.any()
        assert torch.isfinite(shown.search).all()
        assert torch.isfinite(shown.motion).all()
        follower.learn(prediction((0, 0), side=0.25))


def test_student_follows_itself(make_config: MakeConfig, batch_of: BatchOf) -> None:
    """Each step is the tracker's on the crop around what the last one has found."""
    config = make_config(frames=3, follow=1.0)
    torch.manual_seed(0)
    student, batch = Student(config).eval(), batch_of(config)
    assert batch["search"].shape[-1] == REACH * SIZE
    assert batch["follows"].all()
    follower, net = Follower(batch, TINY), student.tracker
    memory = net.start(batch["template"].float())
    moved = False
    for k, seen in enumerate(student._steps(batch, Stage())):
        shown = follower.show(k)
        step = net.step(shown.search, memory, shown.motion, batch["tells"][:, 2].float())
        memory = step.memory
        follower.learn(step.prediction)
        torch.testing.assert_close(seen.step.prediction.score, step.prediction.score)
        torch.testing.assert_close(seen.step.memory.context.tokens, memory.context.tokens)
        torch.testing.assert_close(seen.unit, shown.unit, equal_nan=True)
        assert torch.equal(seen.visible, shown.visible)
        moved |= not torch.allclose(shown.motion, batch["motion"][:, k])
    assert moved
    losses = student(batch)
    losses["total"].backward()
    assert torch.isfinite(losses["total"])
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in student.tracker.parameters())


def test_a_share_of_the_clips_follows(make_config: MakeConfig, batch_of: BatchOf) -> None:
    assert not batch_of(make_config())["follows"].any()
    some = batch_of(make_config(frames=2, follow=0.5, batch=40))["follows"]
    assert 10 < some.sum() < 30
