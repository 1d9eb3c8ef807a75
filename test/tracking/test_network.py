"""The net behind numpy: channel order, batches, the window."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from crops import crops_of, run

from vil_tracker_core import weights
from vil_tracker_core.geometry import Image
from vil_tracker_core.model.export import flatten
from vil_tracker_core.model.heads import decode, hann_window
from vil_tracker_core.model.tracker import identity_motion
from vil_tracker_core.tracking.network import (
    Found,
    Network,
    TorchNetwork,
    open_network,
    stack,
    teach,
    told,
    unstack,
)
from vil_tracker_core.weights import Weights, WeightsError

STILL = (0.0, 0.0, 1.0)
Make = Callable[..., Weights]


def assert_same(a: Found, b: Found) -> None:
    np.testing.assert_allclose(a.unit, b.unit, rtol=0, atol=1e-5)
    np.testing.assert_allclose(a.variance, b.variance, rtol=1e-4)
    assert a.score == pytest.approx(b.score, abs=1e-5)
    np.testing.assert_allclose(a.seen, b.seen, rtol=0, atol=1e-4)


def test_crops_are_bgr_and_the_net_sees_rgb(network: Network, frames: list[Image]) -> None:
    """The same numbers as the model's own call on RGB tensors."""
    template, search = crops_of(frames, 32)[0], crops_of(frames, 64)[1]
    found, _ = network.step([search], [network.start([template])], [STILL], [1.0])

    def tensor(crop: Image) -> torch.Tensor:
        rgb = np.stack([crop[..., 2], crop[..., 1], crop[..., 0]])
        return torch.tensor(rgb, dtype=torch.float32)[None]

    with torch.no_grad():
        memory = network.model.start(tensor(template)[None])
        image = tensor(search)
        step = network.model.step(image, memory, identity_motion(1, image), torch.ones(1))
    window = 0.3 + 0.7 * hann_window(4)
    wanted = decode(step.prediction, window)
    np.testing.assert_allclose(found[0].unit, wanted.unit[0], atol=1e-6)
    np.testing.assert_allclose(found[0].variance, wanted.log_var[0].exp(), rtol=1e-5)
    assert found[0].score == pytest.approx(float(wanted.score), abs=1e-6)
    np.testing.assert_allclose(found[0].seen, step.seen[0].permute(1, 2, 0), atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{}, {"scan": "joint"}, {"memory": "carry"}, {"film": "pooled"}, {"film": "off"}],
    ids=str,
)
def test_a_batch_equals_single_tracks_over_time(
    make_weights: Make, frames: list[Image], changes: dict[str, str]
) -> None:
    network = TorchNetwork(make_weights(**changes))
    templates, searches = crops_of(frames, 32), crops_of(frames, 64)
    together = [network.start([template]) for template in templates]
    alone = [network.start([template]) for template in templates]
    for _ in range(3):
        found, together = run(network, searches, together)
        for n, search in enumerate(searches):
            (one,), (alone[n],) = run(network, [search], [alone[n]])
            assert_same(found[n], one)


@pytest.mark.parametrize("scan", ["joint", "regional"])
def test_tracks_with_one_and_with_two_templates_share_a_batch(
    make_weights: Make, frames: list[Image], scan: str
) -> None:
    """Their second templates come at different frames, so any mix meets in one step."""
    network = TorchNetwork(make_weights(scan=scan))
    templates, searches = crops_of(frames, 32), crops_of(frames, 64)
    memories = [network.start(templates[:n]) for n in (1, 2, 1)]
    found, after = run(network, searches, memories)
    assert len(after) == 3
    for n, search in enumerate(searches):
        (one,), _ = run(network, [search], [memories[n]])
        assert_same(found[n], one)
    again, _ = run(network, searches, after)
    for n, search in enumerate(searches):
        (one,), _ = run(network, [search], [after[n]])
        assert_same(again[n], one)


def test_stack_and_unstack_are_inverse(network: Network, frames: list[Image]) -> None:
    memories = [network.start([template]) for template in crops_of(frames, 32)]
    back = unstack(stack(memories), 3)
    for one, other in zip(memories, back, strict=True):
        assert one.context.tokens.equal(other.context.tokens)
        assert one.templates.features is not None
        assert one.templates.features.equal(other.templates.features)
        for a, b in zip(one.templates.states, other.templates.states, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert a.memory.C.equal(b.memory.C)
                assert a.conv_tail.equal(b.conv_tail)


@pytest.mark.parametrize("memory", ["reset", "carry"])
def test_renewed_templates_leave_the_context(
    make_weights: Make, frames: list[Image], memory: str
) -> None:
    """A carried memory begins anew with them."""
    network = TorchNetwork(make_weights(memory=memory))
    templates, searches = crops_of(frames, 32), crops_of(frames, 64)
    _, (before,) = run(network, searches[:1], [network.start(templates[:1])])
    renewed, fresh = network.renew(before, templates[:2]), network.start(templates[:2])
    assert renewed.context.tokens.equal(before.context.tokens)
    assert renewed.context.known.any()
    assert len(renewed.states) == len(fresh.states) == (0 if memory == "reset" else 4)
    anew = before._replace(templates=fresh.templates, states=fresh.states)
    for one, other in zip(flatten(renewed), flatten(anew), strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("film", ["token", "off"])
def test_a_net_is_told_of_its_error(make_weights: Make, frames: list[Image], film: str) -> None:
    """Which renewed templates leave as it is, as they do the last box."""
    network = TorchNetwork(make_weights(film=film))
    templates = crops_of(frames, 32)
    memory = network.start(templates[:1])
    taught = teach(memory, np.array([0.5, 0.4, 0.2, 0.3]), np.array([0.52, 0.4, 0.2, 0.6]))
    if film == "off":
        assert taught is memory
        return
    torch.testing.assert_close(taught.deltas, torch.tensor([[0.1, 0.0, 0.0, math.log(2)]]))
    assert taught._replace(deltas=memory.deltas) == memory
    there = told(taught, np.array([0.5, 0.4, 0.2, 0.3]))
    torch.testing.assert_close(there.box, torch.tensor([[0.5, 0.4, 0.2, 0.3]]))
    renewed = network.renew(there, templates[:2])
    assert renewed.deltas is there.deltas
    assert renewed.box is there.box
    assert not told(there, None).box.any()


def test_no_trust_leaves_the_context(network: Network, frames: list[Image]) -> None:
    templates, searches = crops_of(frames, 32), crops_of(frames, 64)
    _, (memory,) = run(network, searches[:1], [network.start(templates[:1])])
    _, (after,) = network.step(searches[1:2], [memory], [STILL], [0.0])
    torch.testing.assert_close(after.context.tokens, memory.context.tokens, rtol=0, atol=1e-5)


def test_a_found_target_is_in_units_of_the_crop(network: Network, frames: list[Image]) -> None:
    templates, searches = crops_of(frames, 32), crops_of(frames, 64)
    found, _ = run(network, searches, [network.start([template]) for template in templates])
    for one in found:
        assert one.unit.shape == one.variance.shape == (4,)
        assert one.unit.dtype == one.variance.dtype == np.float64
        assert (one.variance > 0).all()
        assert type(one.score) is float
        assert 0 < one.score < 1


def test_opens_a_file_and_names_what_it_cannot_open(
    make_weights: Make, frames: list[Image], tmp_path: Path
) -> None:
    path = tmp_path / "net.safetensors"
    loaded = make_weights()
    weights.save(path, loaded)
    opened = open_network(path, backend="torch")
    assert opened.config == loaded.config
    template, search = crops_of(frames, 32)[0], crops_of(frames, 64)[0]
    results = []
    for network in (opened, TorchNetwork(loaded)):
        (found,), _ = run(network, [search], [network.start([template])])
        results.append(found)
    assert_same(*results)
    with pytest.raises(WeightsError, match=r"nowhere\.safetensors"):
        open_network(tmp_path / "nowhere.safetensors")


def test_an_impossible_backend_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="'tensorrt' is not one of auto, openvino, onnxruntime, torch"
    ):
        open_network("vil_nano", backend="tensorrt")
    with pytest.raises(ValueError, match="runs on the cpu, not on 'cuda'"):
        open_network("vil_nano", backend="onnxruntime", device="cuda")
