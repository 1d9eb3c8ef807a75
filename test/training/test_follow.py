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
from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.follow import (
    NARROWEST,
    WIDEST,
    Follower,
    View,
    as_cut,
    motion_between,
    next_view,
)
from vil_tracker_core.training.phases import Stage
from vil_tracker_core.training.student import Student

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
    assert after.x + after.side / 2 == pytest.approx(last.x + last.side * box[0])
    assert after.y + after.side / 2 == pytest.approx(last.y + last.side * box[1])
    asked = 4.0 * last.side * math.sqrt(box[2] * box[3])
    proposed = new.side / REACH
    bounded = min(max(math.sqrt(asked * last.side), NARROWEST * proposed), WIDEST * proposed)
    assert after.side == pytest.approx(bounded)


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


def test_beyond_the_wide_crop_lies_its_mean() -> None:
    wide = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    cut = view_of(0.8, 0.8, 0.5).cut(wide)
    torch.testing.assert_close(cut[0, :, -1, -1], wide[0].mean((1, 2)))


def prediction(cell: tuple[int, int], side: float, batch: int = 2) -> Prediction:
    """Sure of the middle of a cell (column, row), and of a square."""
    score = torch.full((batch, GRID, GRID), 0.01)
    score[:, cell[1], cell[0]] = 0.9
    maps = torch.ones(batch, 2, GRID, GRID)
    return Prediction(score, 0.5 * maps, side * maps, torch.zeros(batch, 4, GRID, GRID))


def still_batch(box: list[float]) -> dict[str, Tensor]:
    """Two wide clips of two frames in which nothing moves."""
    return {
        "search": torch.randint(0, 256, (2, 2, 3, 2 * SIZE, 2 * SIZE), dtype=torch.uint8),
        "box": torch.tensor(box).expand(2, 2, 4),
        "visible": torch.ones(2, 2, dtype=torch.bool),
        "motion": torch.tensor([0.0, 0.0, 1.0]).expand(2, 2, 3),
    }


def test_one_clip_follows_and_the_other_does_not() -> None:
    follower = Follower(still_batch([0.5, 0.5, 0.1, 0.1]), TINY, torch.tensor([True, False]))
    first = follower.show(0)
    assert first.search.shape == (2, 3, SIZE, SIZE)
    torch.testing.assert_close(first.unit[0], torch.tensor([0.5, 0.5, 0.2, 0.2]))
    follower.learn(prediction((0, 0), side=1 / TINY.search_factor))
    second = follower.show(1)
    # the net took the first cell for the target: its middle is now the middle of the crop
    corner = 0.5 / GRID - 0.5
    torch.testing.assert_close(second.motion[0], torch.tensor([corner, corner, 1.0]))
    torch.testing.assert_close(second.unit[0, :2], torch.tensor([0.5 - corner] * 2))
    torch.testing.assert_close(second.motion[1], torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(second.unit[1], first.unit[1])
    assert second.visible.tolist() == [0.5 - corner < 1, True]


def test_a_target_out_of_the_crop_is_not_visible_and_not_followed() -> None:
    follower = Follower(still_batch([0.1, 0.5, 0.1, 0.1]), TINY, torch.tensor([True, True]))
    assert not follower.show(0).visible.any()
    follower.learn(prediction((GRID - 1, GRID - 1), side=0.25))
    torch.testing.assert_close(follower.show(1).motion[:, :2], torch.zeros(2, 2))


def test_an_absent_target_stays_absent() -> None:
    batch = still_batch([math.nan] * 4)
    batch["visible"] = torch.zeros(2, 2, dtype=torch.bool)
    shown = Follower(batch, TINY, torch.tensor([True, True])).show(0)
    assert not shown.visible.any()
    assert torch.isfinite(shown.search).all()


def test_student_follows_itself(
    make_config: Callable[..., TrainConfig], batch_of: Callable[..., dict[str, Tensor]]
) -> None:
    """The second frame's crop lies around what the first one's step has found."""
    config = make_config(frames=2, follow=1.0, data={"absent": 0.0})
    torch.manual_seed(0)
    student, batch = Student(config).eval(), batch_of(config)
    assert batch["search"].shape[-1] == REACH * SIZE
    seen = student._steps(batch, Stage())
    follower = Follower(batch, TINY, torch.ones(config.batch, dtype=torch.bool))
    for k, one in enumerate(seen):
        shown = follower.show(k)
        torch.testing.assert_close(one.unit, shown.unit, equal_nan=True)
        assert torch.equal(one.visible, shown.visible)
        follower.learn(one.step.prediction)
    assert seen[0].visible.any()
    assert not torch.allclose(
        seen[1].unit[seen[0].visible],
        View.middle(4, batch["box"]).inside(batch["box"][:, 1])[seen[0].visible],
    )
    losses = student(batch)
    losses["total"].backward()
    assert torch.isfinite(losses["total"])


def test_a_clip_that_is_not_wide_is_shown_as_cut(
    make_config: Callable[..., TrainConfig], batch_of: Callable[..., dict[str, Tensor]]
) -> None:
    batch = batch_of(make_config(frames=2))
    shown = as_cut(batch, 1)
    assert torch.equal(shown.search, batch["search"][:, 1].float())
    assert torch.equal(shown.visible, batch["visible"][:, 1])
