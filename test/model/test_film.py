"""Temporal modulation: neutral at the start, one context a track, and the five known faults."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vil_tracker_core.geometry import Box, Crop, crop_motion, iou
from vil_tracker_core.model.film import Context, Film, beside, box_deltas, moved, resample
from vil_tracker_core.model.presets import ModelConfig
from vil_tracker_core.model.tracker import ViLTracker, identity_motion

GRID = 4
Make = Callable[..., ViLTracker]
MIDDLE = torch.tensor([0.5, 0.5, 0.25, 0.25])
NO_DELTAS = torch.zeros(1, 4, dtype=torch.float64)
each_kind = pytest.mark.parametrize("film", ["token", "pooled"])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def context_of(tokens: Tensor, known: float = 1.0) -> Context:
    return Context(tokens, torch.full((*tokens.shape[:2], 1), known, dtype=tokens.dtype))


def on_grid(context: Context) -> tuple[Tensor, Tensor]:
    """(B, G, G, dim) tokens and (B, G, G) known, rows first."""
    side = round(context.tokens.shape[1] ** 0.5)
    tokens = context.tokens.unflatten(1, (side, side))
    return tokens, context.known.unflatten(1, (side, side))[..., 0]


def nowhere(batch: int = 1) -> Tensor:
    """No box."""
    return torch.zeros(batch, 4, dtype=torch.float64)


def moved_by(*motion: float, batch: int = 1) -> Tensor:
    return torch.tensor([motion], dtype=torch.float64).expand(batch, 3)


# -- neutral at the start ------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("scan", ["joint", "regional"])
def test_fresh_film_is_the_identity_to_the_bit(
    config: ModelConfig, images, film: str, scan: str
) -> None:
    """Whatever context, deltas and box say, a fresh net predicts what its backbone does without."""
    torch.manual_seed(0)
    model = ViLTracker(replace(config, film=film, scan=scan)).eval()
    plain = ViLTracker(replace(config, film="off", scan=scan)).eval()
    left_out = plain.load_state_dict(model.state_dict(), strict=False)
    assert not left_out.missing_keys
    assert all(name.startswith("film.") for name in left_out.unexpected_keys)
    templates, search = images(2, 1, 3, 32, 32).float(), images(2, 3, 64, 64).float()
    context = Context(10 * noise(2, 16, config.dim).float(), torch.ones(2, 16, 1))
    ones, still = torch.ones(2), identity_motion(2, search)
    with torch.no_grad():
        memory = model.start(templates)._replace(
            context=context, deltas=0.2 * torch.ones(2, 4), box=MIDDLE.expand(2, 4)
        )
        ours = model.step(search, memory, still, ones)
        wanted = plain.step(search, plain.start(templates), still, ones)
    for one, other in zip(ours.prediction, wanted.prediction, strict=True):
        assert one.equal(other)


@each_kind
def test_no_context_is_the_identity_to_the_bit(make_tracker: Make, images, film: str) -> None:
    """The first frame of a trained net."""
    model = make_tracker(film=film)
    pairs = model.film.pairs(
        Context.empty(2, 16, 16, like=images(1)), NO_DELTAS.expand(2, 4), nowhere(2)
    )
    assert len(pairs) == 3
    for gamma, beta in pairs:
        assert gamma.eq(1).all()
        assert beta.eq(0).all()


@each_kind
def test_small_random_starts_near_the_identity(config: ModelConfig, film: str) -> None:
    torch.manual_seed(0)
    made = Film(replace(config, film=film, film_init="small_random", dim=64, film_hidden=32))
    for generator in made.generators:
        assert not generator[-1].bias.any()
        assert 0.5e-4 < generator[-1].weight.std() < 2e-4
    _, *between = made.pairs(
        context_of(noise(1, 16, 64).float()), NO_DELTAS.float(), nowhere().float()
    )
    for gamma, beta in between:
        assert 0 < (gamma - 1).abs().max() < 0.01
        assert 0 < beta.abs().max() < 0.01


@each_kind
def test_pairs_are_blended_towards_the_identity_by_reliability(
    make_tracker: Make, film: str
) -> None:
    """gamma' = r gamma + 1 - r and beta' = r beta, by the generators' own outputs."""
    made = make_tracker(film=film).film
    tokens = noise(2, 16, 16)
    source = tokens.mean(1, keepdim=True) if film == "pooled" else tokens
    r = made.calibrator(source)
    assert 0 < r.min() < r.max() < 1
    if film == "pooled":
        raw = made.generators[0](source).split(16, dim=-1)
        assert len(made.generators) == 1
    else:
        raw = [generator(source) for generator in made.generators]
    entrance, *between = made.pairs(context_of(tokens), NO_DELTAS, nowhere())
    assert entrance[0].eq(1).all(), "of what frames looked like the entrance knows nothing"
    assert entrance[1].eq(0).all()
    for layer, (gamma, beta) in enumerate(between):
        wanted = r * (1 + raw[2 * layer]) + 1 - r
        torch.testing.assert_close(gamma, wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(beta, r * raw[2 * layer + 1], rtol=1e-12, atol=1e-12)


def test_token_context_acts_on_its_own_place_only(make_tracker: Make) -> None:
    made = make_tracker(film="token").film
    tokens = noise(1, 16, 16)
    _, *before = made.pairs(context_of(tokens), NO_DELTAS, nowhere())
    tokens[0, 5] += 1
    _, *after = made.pairs(context_of(tokens), NO_DELTAS, nowhere())
    for (gamma, beta), (old_gamma, old_beta) in zip(after, before, strict=True):
        for new, old in ((gamma, old_gamma), (beta, old_beta)):
            changed = (new - old).abs().amax(2)[0] > 1e-9
            assert changed.nonzero().flatten().tolist() == [5]


def test_unknown_places_do_not_count_in_the_pooled_context(make_tracker: Make) -> None:
    made = make_tracker(film="pooled").film
    tokens, known = noise(1, 16, 16), torch.zeros(1, 16, 1).double()
    known[:, :6] = 1
    other = tokens.clone()
    other[:, 6:] = 99
    for one, two in zip(
        made.pairs(Context(tokens, known), NO_DELTAS, nowhere()),
        made.pairs(Context(other, known), NO_DELTAS, nowhere()),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


# -- what the first frame tells ------------------------------------------------------------------

sides = st.floats(0.02, 1.0)
boxes = st.tuples(st.floats(0, 1), st.floats(0, 1), sides, sides)


@given(found=boxes, drawn=boxes)
def test_deltas_take_the_answer_to_the_drawn_box(
    found: tuple[float, ...], drawn: tuple[float, ...]
) -> None:
    """R-CNN's decoding undoes them; where the boxes hardly overlap there are none."""
    a, b = (torch.tensor([box], dtype=torch.float64) for box in (found, drawn))
    dx, dy, dw, dh = box_deltas(a, b)[0].tolist()
    overlap = float(iou(Box.from_cxcywh(*found), Box.from_cxcywh(*drawn)))
    if overlap > 0.2 + 1e-9:
        cx, cy, w, h = found
        made = cx + dx * w, cy + dy * h, w * math.exp(dw), h * math.exp(dh)
        assert made == pytest.approx(drawn, abs=1e-9)
    elif overlap < 0.2 - 1e-9:
        assert (dx, dy, dw, dh) == (0, 0, 0, 0)


def test_an_answer_that_is_no_number_has_no_deltas() -> None:
    drawn = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    for index in range(4):
        found = drawn.clone()
        found[0, index] = math.nan
        assert not box_deltas(found, drawn).any()


@each_kind
def test_deltas_modulate_all_tokens_alike(make_tracker: Make, film: str) -> None:
    """By their own generator's outputs, which a usual delta reaches as 1, with a context and with
    none."""
    made = make_tracker(film=film).film
    deltas = torch.tensor([[0.05, -0.1, 0.25, 0.0], [0, 0, 0, 0]]).double()
    wanted = made.correction(4 * deltas[:1]).split(16, dim=-1)
    for context in (Context.empty(2, 16, 16, like=noise(1)), context_of(noise(2, 16, 16))):
        plain = made.pairs(context, NO_DELTAS.expand(2, 4), nowhere(2))
        pairs = made.pairs(context, deltas, nowhere(2))
        for layer, (ours, without) in enumerate(zip(pairs, plain, strict=True)):
            for part in (0, 1):
                change = ours[part] - without[part]
                expected = wanted[2 * layer + part][0].expand_as(change[0])
                torch.testing.assert_close(change[0], expected, rtol=1e-9, atol=1e-9)
                assert change[1].eq(0).all()


@each_kind
def test_a_step_is_told_of_the_deltas_and_keeps_them(make_tracker: Make, images, film: str) -> None:
    model = make_tracker(film=film)
    search, still, ones = images(1, 3, 64, 64), moved_by(0, 0, 1), torch.ones(1).double()
    start = model.start(images(1, 1, 3, 32, 32))
    assert start.deltas.eq(0).all()
    told = start._replace(deltas=torch.tensor([[0.1, 0, 0.2, -0.3]]).double())
    plain, ours = model.step(search, start, still, ones), model.step(search, told, still, ones)
    assert (ours.features - plain.features).abs().max() > 1e-3
    assert ours.memory.deltas.equal(told.deltas)


def test_without_film_there_are_no_deltas(make_tracker: Make, images) -> None:
    model = make_tracker(film="off")
    start = model.start(images(1, 1, 3, 32, 32))
    assert start.deltas is None
    step = model.step(images(1, 3, 64, 64), start, moved_by(0, 0, 1), torch.ones(1).double())
    assert step.memory.deltas is None


# -- the box of the frame before -----------------------------------------------------------------


@given(
    box=st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5), sides, sides),
    grid=st.integers(1, 9),
)
def test_each_token_is_told_how_it_lies_to_the_box(
    box: tuple[float, float, float, float], grid: int
) -> None:
    """By plain arithmetic on the edges of each cell."""
    cx, cy, w, h = box
    places, told = beside(torch.tensor([box], dtype=torch.float64), grid)
    assert told.tolist() == [[[1.0]]]
    for row in range(grid):
        for column in range(grid):
            x, y = (column + 0.5) / grid, (row + 0.5) / grid
            edges = [x - (cx - w / 2), cx + w / 2 - x, y - (cy - h / 2), cy + h / 2 - y]
            across = min(cx + w / 2, (column + 1) / grid) - max(cx - w / 2, column / grid)
            down = min(cy + h / 2, (row + 1) / grid) - max(cy - h / 2, row / grid)
            share = max(across, 0) * max(down, 0) * grid**2
            share_found, left, top, right, bottom = places[0, row * grid + column].tolist()
            assert share_found == pytest.approx(share, abs=1e-9)
            wanted = [4 * min(max(edge, -1), 1) for edge in edges]
            assert [left, right, top, bottom] == pytest.approx(wanted, abs=1e-9)


def test_no_box_says_nothing() -> None:
    """Wherever the moving crops have taken it: only its size tells that there is none."""
    none = moved(nowhere(2), torch.tensor([[0.3, -0.2, 1.5], [0, 0, 0.4]]).double())
    places, told = beside(none, 4)
    assert not places.any()
    assert not told.any()


@given(
    old=st.tuples(st.integers(-50, 50), st.integers(-50, 50), st.integers(100, 200)),
    new=st.tuples(st.integers(-50, 50), st.integers(-50, 50), st.integers(100, 200)),
    box=st.tuples(*[st.floats(1, 90)] * 4),
)
def test_the_box_stays_where_it_was_in_the_frame(
    old: tuple[int, int, int], new: tuple[int, int, int], box: tuple[float, float, float, float]
) -> None:
    before, after = (Crop(*values, size=128) for values in (old, new))
    unit = torch.from_numpy(before.to_unit(Box(*box)))[None]
    made = moved(unit, moved_by(*crop_motion(before, after)))
    np.testing.assert_allclose(made[0], after.to_unit(Box(*box)), atol=1e-9)


@each_kind
def test_the_last_box_modulates_each_token_by_how_it_lies_to_it(
    make_tracker: Make, film: str
) -> None:
    """By its own generator's outputs, beside what a context says and where there is none."""
    made, last = make_tracker(film=film).film, MIDDLE.double() * torch.ones(2, 1)
    places = beside(last, 4)[0]
    source = places.mean(1, keepdim=True) if film == "pooled" else places
    wanted = made.continuation(source).split(16, dim=-1)
    for context in (Context.empty(2, 16, 16, like=noise(1)), context_of(noise(2, 16, 16))):
        plain = made.pairs(context, NO_DELTAS.expand(2, 4), nowhere(2))
        pairs = made.pairs(context, NO_DELTAS.expand(2, 4), last)
        for layer, (ours, without) in enumerate(zip(pairs, plain, strict=True)):
            for part in (0, 1):
                change, expected = ours[part] - without[part], wanted[2 * layer + part]
                torch.testing.assert_close(change, expected, rtol=1e-9, atol=1e-9)


@each_kind
def test_a_step_moves_the_box_with_its_crop(make_tracker: Make, images, film: str) -> None:
    """Told where the target was, the net answers otherwise, and otherwise again for another box:
    the same box in the old crop's units and a crop that has moved are one with the moved box."""
    model = make_tracker(film=film)
    search, ones = images(1, 3, 64, 64), torch.ones(1).double()
    start = model.start(images(1, 1, 3, 32, 32))
    still, motion = identity_motion(1, search), moved_by(0.25, -0.25, 1)

    def features(box: Tensor, by: Tensor) -> Tensor:
        return model.step(search, start._replace(box=box), by, ones).features

    box = MIDDLE.double()[None]
    there = moved(box, motion)
    assert not torch.allclose(features(box, still), features(nowhere(), still))
    assert not torch.allclose(features(box, still), features(there, still))
    torch.testing.assert_close(features(box, motion), features(there, still))
    after = model.step(search, start._replace(box=box), motion, ones).memory.box
    torch.testing.assert_close(after, there)


# -- fault 1: tracks leaked into each other ------------------------------------------------------


@each_kind
def test_tracks_do_not_leak_into_each_other(make_tracker: Make, images, film: str) -> None:
    """Two tracks taken turns on one net see what each would see alone; nothing sits in a buffer."""
    model = make_tracker(film=film)
    assert not [name for name, _ in model.film.named_buffers()]
    clips = [(images(1, 1, 3, 32, 32), images(1, 3, 3, 64, 64)) for _ in range(2)]
    still = identity_motion(1, images(1)).unsqueeze(1).expand(1, 3, 3)
    alone = [model.forward_clip(*clip, still) for clip in clips]
    memories = [model.start(templates) for templates, _ in clips]
    for k in range(3):
        for n, (_, searches) in enumerate(clips):
            ones = torch.ones(1).double()
            step = model.step(searches[:, k], memories[n], still[:, k], ones)
            memories[n] = step.memory
            assert step.features.equal(alone[n][k].features)


# -- fault 2: the projection never trained -------------------------------------------------------


@each_kind
def test_the_projection_learns_inside_a_clip(make_tracker: Make, images, film: str) -> None:
    """The second frame's loss reaches the projection and, through it, the first frame's image;
    a clip starts anew, so nothing reaches back into the clip before."""
    model = make_tracker(film=film)
    templates, searches = images(1, 1, 3, 32, 32), images(1, 2, 3, 64, 64).requires_grad_()
    still = identity_motion(1, searches).unsqueeze(1).expand(1, 2, 3)
    first, second = model.forward_clip(templates, searches, still)
    weight = model.film.projection.weight

    first_loss = first.prediction.score.sum()
    assert torch.autograd.grad(first_loss, weight, retain_graph=True, allow_unused=True)[0] is None
    gradient, at_image = torch.autograd.grad(second.prediction.score.sum(), [weight, searches])
    assert gradient.abs().max() > 0
    assert at_image[:, 0].abs().max() > 0

    start = model.start(templates)
    assert not start.context.tokens.requires_grad
    assert not start.context.known.requires_grad


# -- fault 3: the context of another length was stretched over all tokens ------------------------


@each_kind
def test_the_context_belongs_to_the_search_grid(make_tracker: Make, images, film: str) -> None:
    """Templates are encoded without it, and it has a token for each cell of the search grid."""
    model = make_tracker(film=film, template_size=48)
    start = model.start(images(1, 1, 3, 48, 48))
    assert start.context.tokens.shape == (1, GRID**2, 16)
    step = model.step(
        images(1, 3, 64, 64), start, identity_motion(1, images(1)), torch.ones(1).double()
    )
    assert step.memory.context.tokens.shape == (1, GRID**2, 16)
    assert start.templates.features.equal(step.memory.templates.features)


@given(
    rows=st.integers(-GRID, GRID),
    columns=st.integers(-GRID, GRID),
    grid=st.just(GRID) | st.integers(1, 7),
)
@settings(max_examples=60)
def test_a_shift_by_whole_cells_moves_the_context_by_whole_cells(
    rows: int, columns: int, grid: int
) -> None:
    """In 2-D: rows and columns on their own. What comes into view is unknown."""
    tokens = noise(1, grid**2, 3)
    motion = moved_by(columns / grid, rows / grid, 1)
    moved, known = on_grid(resample(context_of(tokens), motion))
    old = tokens.unflatten(1, (grid, grid))
    for row in range(grid):
        for column in range(grid):
            r, c = row + rows, column + columns
            if 0 <= r < grid and 0 <= c < grid:
                torch.testing.assert_close(moved[0, row, column], old[0, r, c])
                assert known[0, row, column] == pytest.approx(1)
            else:
                assert known[0, row, column] == pytest.approx(0, abs=1e-12)


# -- fault 4: the crop moved and the context stayed ----------------------------------------------


@given(grid=st.integers(1, 16), known=st.sampled_from([0.0, 0.3, 1.0]))
def test_a_crop_that_stays_keeps_its_context(grid: int, known: float) -> None:
    before = context_of(noise(2, grid**2, 3), known)
    after = resample(before, moved_by(0, 0, 1, batch=2))
    torch.testing.assert_close(after.known, before.known, rtol=0, atol=1e-12)
    if known:
        torch.testing.assert_close(after.tokens, before.tokens, rtol=0, atol=1e-12)


@given(
    dx=st.floats(-0.5, 0.5),
    dy=st.floats(-0.5, 0.5),
    zoom=st.floats(0.3, 2.0),
)
def test_the_context_stays_where_it_was_in_the_frame(dx: float, dy: float, zoom: float) -> None:
    """A context that is linear in the old crop's coordinates is interpolated exactly, so each
    token of the new crop must read off its own old position, s * u + (dx, dy)."""
    grid = 8
    centre = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    ramp = torch.stack(torch.meshgrid(centre, centre, indexing="ij")[::-1], dim=-1)  # x, y
    moved, known = on_grid(resample(context_of(ramp.reshape(1, -1, 2)), moved_by(dx, dy, zoom)))
    wanted = zoom * ramp + torch.tensor([dx, dy], dtype=torch.float64)
    half = 0.5 / grid
    inside = ((wanted > half) & (wanted < 1 - half)).all(-1)
    outside = ((wanted < -half) | (wanted > 1 + half)).any(-1)
    torch.testing.assert_close(moved[0][inside], wanted[inside], rtol=0, atol=1e-9)
    torch.testing.assert_close(known[0][inside], torch.ones_like(known[0][inside]))
    assert known[0][outside].abs().sum() == 0
    assert known.min() >= 0
    assert known.max() <= 1 + 1e-9


@given(
    old=st.tuples(st.integers(-50, 50), st.integers(-50, 50), st.integers(100, 200)),
    new=st.tuples(st.integers(-50, 50), st.integers(-50, 50), st.integers(100, 200)),
)
def test_crop_motion_is_the_motion_that_film_takes(
    old: tuple[int, int, int], new: tuple[int, int, int]
) -> None:
    """The same property in frame pixels, through the geometry's own function."""
    grid = 8

    def positions(crop: Crop) -> Tensor:
        centre = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid * crop.side
        y, x = torch.meshgrid(centre + crop.y, centre + crop.x, indexing="ij")
        return torch.stack([x, y], dim=-1)

    crops = [Crop(*values, size=128) for values in (old, new)]
    before, after = (positions(crop) for crop in crops)
    motion = moved_by(*crop_motion(crops[0], crops[1]))
    moved, _ = on_grid(resample(context_of(before.reshape(1, -1, 2)), motion))
    inside = ((after >= before[0, 0]) & (after <= before[-1, -1])).all(-1)
    torch.testing.assert_close(moved[0][inside], after[inside], rtol=0, atol=1e-6)


def test_unknown_ground_does_not_dilute_what_is_known() -> None:
    """Half a cell beyond the edge a token keeps its neighbour's context and is half known."""
    tokens = torch.full((1, 16, 2), 5.0, dtype=torch.float64)
    moved, known = on_grid(resample(context_of(tokens), moved_by(0.5 / GRID, 0, 1)))
    torch.testing.assert_close(moved, torch.full_like(moved, 5.0))
    torch.testing.assert_close(known[0, 0], torch.tensor([1, 1, 1, 0.5]).double())


def test_the_net_resamples_its_context(make_tracker: Make, images) -> None:
    """A step with a moved crop equals a step whose context was moved by hand."""
    model = make_tracker()
    search, ones = images(1, 3, 64, 64), torch.ones(1).double()
    start = model.start(images(1, 1, 3, 32, 32))
    still, motion = identity_motion(1, search), moved_by(0.25, -0.25, 1)
    memory = model.step(search, start, still, ones).memory
    by_hand = memory._replace(context=resample(memory.context, motion))
    moved = model.step(search, memory, motion, ones).features
    torch.testing.assert_close(
        moved, model.step(search, by_hand, still, ones).features, rtol=1e-9, atol=1e-9
    )
    assert not torch.allclose(moved, model.step(search, memory, still, ones).features)


# -- fault 5: an occluded frame polluted the context ---------------------------------------------


def test_the_context_is_a_running_average(make_tracker: Make) -> None:
    made = make_tracker().film
    old, features = noise(1, 16, 16), noise(1, 16, 16, seed=1)
    sure = torch.ones(1).double()
    renewed = made.renew(context_of(old), features, sure)
    wanted = 0.7 * old + 0.3 * (features @ made.projection.weight.T + made.projection.bias)
    torch.testing.assert_close(renewed.tokens, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(renewed.known, torch.ones(1, 16, 1).double())

    first = made.renew(Context.empty(1, 16, 16, like=old), features, sure)
    torch.testing.assert_close(first.tokens, made.projection(features), rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def modulator(make_tracker: Make) -> Film:
    return make_tracker().film


@given(known=st.floats(0.01, 1), trust=st.floats(0, 1))
@settings(max_examples=30)
def test_a_frame_counts_by_its_confidence(modulator: Film, known: float, trust: float) -> None:
    """The new context lies between the old one and the frame's, and moves with the confidence."""
    old, features = noise(1, 16, 16), noise(1, 16, 16, seed=1)
    new = modulator.projection(features)
    confidence = torch.tensor([trust], dtype=torch.float64)
    renewed = modulator.renew(context_of(old, known), features, confidence)
    of_old, of_new = known * (1 - 0.3 * trust), trust * (1 - 0.7 * known)
    share = of_new / (of_old + of_new)
    assert share <= 0.3 + 1e-12 or known < 1
    torch.testing.assert_close(renewed.tokens, old + share * (new - old), rtol=0, atol=1e-9)
    assert renewed.known.min() >= known - 1e-12
    assert renewed.known.max() <= 1 + 1e-12


@pytest.mark.parametrize("known", [0.0, 0.4, 1.0])
def test_a_frame_without_trust_leaves_the_context(make_tracker: Make, images, known: float) -> None:
    model = make_tracker()
    search = images(2, 3, 64, 64)
    context = context_of(noise(2, 16, 16), known)
    memory = model.start(images(2, 1, 3, 32, 32))._replace(context=context)
    trust = torch.tensor([0.0, 1.0]).double()  # one track lost, the other not
    after = model.step(search, memory, identity_motion(2, search), trust).memory.context
    torch.testing.assert_close(after.known[0], context.known[0], rtol=0, atol=1e-12)
    if known:
        torch.testing.assert_close(after.tokens[0], context.tokens[0], rtol=0, atol=1e-12)
    assert (after.tokens[1] - context.tokens[1]).abs().max() > 1e-6


def test_the_scores_peak_weighs_the_update(make_tracker: Make, images) -> None:
    """No peak, no update: by the same net with its score pressed down."""
    model = make_tracker()
    search = images(1, 3, 64, 64)
    memory = model.start(images(1, 1, 3, 32, 32))._replace(context=context_of(noise(1, 16, 16)))
    change = []
    for bias in (4.0, -4.0):
        with torch.no_grad():
            model.centre_head.score[-1].weight.zero_()
            model.centre_head.score[-1].bias.fill_(bias)
            step = model.step(search, memory, identity_motion(1, search), torch.ones(1).double())
        change.append(float((step.memory.context.tokens - memory.context.tokens).abs().mean()))
    score = torch.sigmoid(torch.tensor(4.0))
    assert change[1] / change[0] == pytest.approx(float((1 - score) / score), rel=1e-3)
