"""The whole net as a pure function of its memory: clips, streams, batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vil_tracker_core.model.heads import decode, hann_window
from vil_tracker_core.model.mlstm import MlstmState
from vil_tracker_core.model.tracker import Memory, Step, ViLTracker, identity_motion

FRAMES = 3
Make = Callable[..., ViLTracker]

CONFIGS: dict[str, dict[str, Any]] = {
    "joint": {"scan": "joint"},
    "regional": {"scan": "regional"},
    "carry": {"memory": "carry"},
    "pooled": {"film": "pooled"},
    "film off": {"film": "off"},
    "conv stem": {"stem": "conv", "stem_channels": (4, 4, 8)},
}
each_config = pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())


@pytest.fixture
def clip(images) -> tuple[Tensor, Tensor, Tensor]:
    """Two tracks: templates, three search crops each, and how these moved."""
    motions = torch.tensor([[[0.0, 0, 1], [0.1, 0, 1], [0, -0.2, 1.2]]]).double().repeat(2, 1, 1)
    motions[1, :, :2] *= -1
    return images(2, 1, 3, 32, 32), images(2, FRAMES, 3, 64, 64), motions


def tensors(tree: Any) -> list[Tensor]:
    """All tensors of a step or a memory."""
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for part in tree or () for leaf in tensors(part)]


def assert_same(a: Any, b: Any, tolerance: float = 1e-9) -> None:
    """The heads answer in float32: their maps may differ by its rounding."""
    for one, other in zip(tensors(a), tensors(b), strict=True):
        loose = tolerance if one.dtype == torch.float64 else max(tolerance, 1e-6)
        torch.testing.assert_close(one, other, rtol=loose, atol=loose)


def stream(model: ViLTracker, templates: Tensor, searches: Tensor, motions: Tensor) -> list[Step]:
    memory = model.start(templates)
    steps = []
    for k in range(searches.shape[1]):
        trust = torch.ones(len(templates), dtype=templates.dtype)
        steps.append(model.step(searches[:, k], memory, motions[:, k], trust))
        memory = steps[-1].memory
    return steps


@each_config
def test_a_clip_equals_a_stream(make_tracker: Make, clip, changes: dict[str, Any]) -> None:
    model = make_tracker(**changes)
    for one, other in zip(model.forward_clip(*clip), stream(model, *clip), strict=True):
        assert_same(one, other, tolerance=0)


@each_config
def test_a_batch_equals_single_tracks(make_tracker: Make, clip, changes: dict[str, Any]) -> None:
    model = make_tracker(**changes)
    together = model.forward_clip(*clip)
    for n in range(2):
        alone = model.forward_clip(*(part[n : n + 1] for part in clip))
        for one, whole in zip(alone, together, strict=True):
            # the score, a float32, weighs the context
            assert_same(tensors(one), [leaf[n : n + 1] for leaf in tensors(whole)], 1e-6)


@each_config
def test_no_frame_sees_a_later_one(make_tracker: Make, clip, changes: dict[str, Any]) -> None:
    model = make_tracker(**changes)
    templates, searches, motions = clip
    before = model.forward_clip(*clip)
    changed = searches.clone()
    changed[:, -1] = 255 - changed[:, -1]
    after = model.forward_clip(templates, changed, motions)
    for k in range(FRAMES - 1):
        assert_same(before[k], after[k], tolerance=0)
    assert not torch.allclose(before[-1].features, after[-1].features)


@each_config
def test_a_step_changes_nothing_that_it_is_given(
    make_tracker: Make, clip, changes: dict[str, Any]
) -> None:
    """The same call twice gives the same: nothing is kept in the module, nothing written to."""
    model = make_tracker(**changes)
    templates, searches, motions = clip
    memory = model.step(
        searches[:, 0], model.start(templates), motions[:, 0], torch.ones(2).double()
    ).memory
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    kept = [leaf.clone() for leaf in tensors(memory)]
    one = model.step(searches[:, 1], memory, motions[:, 1], torch.ones(2).double())
    other = model.step(searches[:, 1], memory, motions[:, 1], torch.ones(2).double())
    assert_same(one, other, tolerance=0)
    assert_same(kept, memory, tolerance=0)
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())


def plain(state: MlstmState) -> tuple[Tensor, Tensor]:
    """C and n without a stabiliser."""
    weight = torch.exp(state.m)[..., None]
    return weight[..., None] * state.C, weight * state.n


def test_carried_memory_is_the_templates_and_what_the_frame_before_left(
    make_tracker: Make, clip
) -> None:
    """Even blocks run a frame from both, odd blocks run it backwards on its own."""
    model = make_tracker(memory="carry", film="off", memory_keep=0.4)
    templates, searches, motions = clip
    memory = model.start(templates)
    begins = list(memory.templates.states)
    for k, trust in enumerate((0.9, 0.3, 1.0)):
        trusts = torch.full((2,), trust, dtype=torch.float64)
        step = model.step(searches[:, k], memory, motions[:, k], trusts)
        memory = step.memory
        x, _ = model.backbone.embedding.search(searches[:, k], memory.templates.matched)
        weight = 0.4 * trust * step.prediction.score.flatten(1).amax(1).double()[:, None]
        for index, block in enumerate(model.backbone.blocks):
            own = memory.templates.states[index]
            if own is None:
                x = block(x.flip(1))[0].flip(1)
                continue
            x, after = block(x, begins[index])
            (C, n), (left_C, left_n) = plain(own.memory), plain(after.memory)
            C, n = C + weight[..., None, None] * left_C, n + weight[..., None] * left_n
            begins[index] = own._replace(memory=MlstmState(C, n, torch.zeros_like(own.memory.m)))
        expected = model.backbone.norm(x)
        torch.testing.assert_close(step.features, expected, rtol=1e-9, atol=1e-9)


def test_a_frame_that_is_not_trusted_leaves_nothing_in_a_carried_memory(
    make_tracker: Make, clip
) -> None:
    model = make_tracker(memory="carry")
    templates, searches, motions = clip
    memory = model.start(templates)
    after = model.step(searches[:, 0], memory, motions[:, 0], torch.zeros(2).double()).memory
    assert_same(after.states, memory.states)


def test_carried_memory_differs_from_reset(make_tracker: Make, clip) -> None:
    """From the second frame on, and with the same weights."""
    reset, carry = make_tracker(film="off"), make_tracker(film="off", memory="carry")
    carry.load_state_dict(reset.state_dict())
    ours, theirs = reset.forward_clip(*clip), carry.forward_clip(*clip)
    assert_same(ours[0].prediction, theirs[0].prediction)
    for k in (1, 2):
        assert (ours[k].features - theirs[k].features).abs().max() > 1e-6


@pytest.mark.parametrize("memory", ["reset", "carry"])
def test_a_frame_keeps_the_templates_as_they_were(make_tracker: Make, clip, memory: str) -> None:
    model = make_tracker(memory=memory)
    start, last = model.start(clip[0]), model.forward_clip(*clip)[-1].memory
    assert_same(last.templates, start.templates, tolerance=0)
    assert len(last.states) == len(start.states) == (0 if memory == "reset" else model.config.depth)


@pytest.mark.parametrize("scan", ["joint", "regional"])
def test_two_templates(make_tracker: Make, images, scan: str) -> None:
    model = make_tracker(scan=scan)
    templates, search = images(1, 2, 3, 32, 32), images(1, 3, 64, 64)

    def score(crops: Tensor) -> Tensor:
        motion = identity_motion(1, search)
        return model.step(search, model.start(crops), motion, search.new_ones(1)).prediction.score

    both = score(templates)
    assert both.shape == (1, 4, 4)
    assert not torch.allclose(both, score(templates[:, :1]))
    assert not torch.allclose(both, score(templates[:, 1:]))


def test_motion_of_the_first_frame_is_ignored(make_tracker: Make, clip) -> None:
    model = make_tracker()
    templates, searches, motions = clip
    moved = motions.clone()
    moved[:, 0] = torch.tensor([0.3, 0.4, 2.0])
    for one, other in zip(
        model.forward_clip(*clip), model.forward_clip(templates, searches, moved), strict=True
    ):
        assert_same(one.prediction, other.prediction, tolerance=0)


def test_prediction_has_its_documented_shape_and_range(make_tracker: Make, clip) -> None:
    model = make_tracker()
    step = model.forward_clip(*clip)[0]
    score, offset, size, log_var = step.prediction
    assert [tuple(part.shape) for part in (score, offset, size, log_var)] == [
        (2, 4, 4),
        (2, 2, 4, 4),
        (2, 2, 4, 4),
        (2, 4, 4, 4),
    ]
    assert 0 < score.min() <= score.max() < 1
    assert 0 < size.min() <= size.max() < 1
    assert step.features.shape == (2, 16, 16)
    assert isinstance(step.memory, Memory)


@each_config
def test_every_parameter_learns_from_a_clip(
    make_tracker: Make, clip, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is detached or forgotten on the way from the weights to the heads, of a net that is
    told all that there is to be told."""
    model = make_tracker(**changes).train()
    start = model.start
    box = torch.tensor([[0.4, 0.5, 0.3, 0.2]] * 2).double()

    def told(templates: Tensor) -> Memory:
        memory = start(templates)._replace(box=box)
        return memory if memory.deltas is None else memory._replace(deltas=box - 0.3)

    monkeypatch.setattr(model, "start", told)
    steps = model.forward_clip(*clip)
    total = sum(part.double().square().sum() for step in steps for part in step.prediction)
    total.backward()
    silent = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    }
    assert silent == set()


@pytest.mark.parametrize("windowed", [False, True])
def test_a_detection_is_what_is_decoded_from_all_cells(
    make_tracker: Make, clip: tuple[Tensor, Tensor, Tensor], windowed: bool
) -> None:
    model = make_tracker()
    window = hann_window(model.config.search_grid) if windowed else None
    for step in stream(model, *clip):
        assert_same(model.detect(step, window), decode(step.prediction, window))
