"""model.export: the ONNX graphs give what PyTorch gives, for any number of tracks."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import onnxruntime
import pytest
import torch

from vil_tracker_core.model.export import (
    FOUND,
    STEP,
    changed,
    changing,
    channels_first,
    export,
    flatten,
    start_names,
    unflatten,
)
from vil_tracker_core.model.heads import decode, hann_window
from vil_tracker_core.model.presets import ModelConfig, preset
from vil_tracker_core.model.tracker import ViLTracker

TINY = preset("vil_tiny")


def net(config: ModelConfig) -> ViLTracker:
    torch.manual_seed(0)
    model = ViLTracker(config).eval()
    with torch.no_grad():  # FiLM and the norms away from their identity at the start
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, memory="carry"),
        replace(TINY, film="pooled"),
        replace(TINY, film="off"),
        replace(TINY, scan="joint", stem="patch"),
    ],
    ids=["regional", "carry", "pooled", "film off", "joint"],
)
def test_three_frames_equal_pytorch(config: ModelConfig) -> None:
    """After a start with any number of templates, for any number of tracks."""
    model, window = net(config), hann_window(config.search_grid)
    graphs = {
        name: onnxruntime.InferenceSession(graph) for name, graph in export(model, window).items()
    }
    starts = start_names(config)
    assert list(graphs) == [*reversed(starts), STEP]
    for (count, name), tracks in product(enumerate(starts, 1), (1, 3)):
        three_frames_equal_pytorch(model, window, graphs[name], graphs[STEP], (tracks, count))


def three_frames_equal_pytorch(
    model: ViLTracker,
    window: torch.Tensor,
    start: onnxruntime.InferenceSession,
    step: onnxruntime.InferenceSession,
    shape: tuple[int, int],
) -> None:
    config, tracks = model.config, shape[0]
    names = [item.name for item in step.get_inputs()]
    generator = torch.Generator().manual_seed(1)

    def images(*shape: int) -> torch.Tensor:
        return torch.randint(256, (*shape, 3), dtype=torch.uint8, generator=generator)

    templates = images(*shape, config.template_size, config.template_size)
    with torch.no_grad():
        memory = model.start(channels_first(templates))
    flat = [torch.from_numpy(a) for a in start.run(None, {"templates": templates.numpy()})]
    for expected, found in zip(flatten(memory), flat, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    for number in range(3):
        search = images(tracks, config.search_size, config.search_size)
        motion = torch.tensor([[0.1 * number, -0.05, 1.1]] * tracks)
        trust = torch.ones(tracks)
        with torch.no_grad():
            result = model.step(channels_first(search), memory, motion, trust)
        memory, best = result.memory, decode(result.prediction, window)
        given = {"search": search, "motion": motion, "trust": trust}
        given |= {f"memory_{index}": tensor for index, tensor in enumerate(flat)}
        out = step.run(None, {name: given[name].numpy() for name in names})
        wanted = best.unit, best.log_var, best.score, result.seen.permute(0, 2, 3, 1)
        for name, expected in zip(FOUND, wanted, strict=True):
            np.testing.assert_allclose(
                out[FOUND.index(name)], expected.numpy(), atol=1e-4, err_msg=name
            )
        after = [torch.from_numpy(array) for array in out[len(FOUND) :]]
        assert len(after) == len(changing(memory))
        flat[len(flat) - len(after) :] = after
        for expected, found in zip(flatten(memory), flat, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_channels_come_first() -> None:
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    found = channels_first(torch.from_numpy(pixels))
    assert found.dtype is torch.float32
    np.testing.assert_array_equal(found, np.transpose(pixels, (0, 3, 1, 2)))


def test_unflatten_is_the_inverse_of_flatten() -> None:
    memory = net(TINY).start(torch.rand(2, 1, 3, 32, 32))
    again = unflatten(memory, [tensor + 1 for tensor in flatten(memory)])
    assert type(again) is type(memory)
    for before, after in zip(flatten(memory), flatten(again), strict=True):
        torch.testing.assert_close(after, before + 1)


def test_a_step_changes_the_last_tensors_of_a_memory() -> None:
    model = net(replace(TINY, memory="carry"))
    with torch.no_grad():
        memory = model.start(torch.rand(2, 1, 3, 32, 32))
        search = torch.rand(2, 3, 64, 64)
        memory = model.step(search, memory, torch.tensor([[0.0, 0.0, 1.0]] * 2), torch.ones(2))[1]
    flat, last = flatten(memory), [tensor + 1 for tensor in changing(memory)]
    assert 2 < len(last) < len(flat)
    after = changed(memory, last)
    expected = [*flat[: len(flat) - len(last)], *last]
    assert all(a is b for a, b in zip(flatten(after), expected, strict=True))


def test_exporting_leaves_the_model_in_evaluation_mode() -> None:
    model = net(TINY)
    export(model, hann_window(TINY.search_grid))
    assert not any(module.training for module in model.modules())
