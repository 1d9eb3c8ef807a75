"""The net as ONNX graphs of its start and its step, with its memory as plain inputs and outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from vil_tracker_core.model.backbone import Templates
from vil_tracker_core.model.presets import ModelConfig
from vil_tracker_core.model.tracker import Memory, ViLTracker

OPSET = 17
FOUND = ("unit", "log_var", "score", "seen")
"""The step graph's outputs before those of the memory."""
STEP = "step"


def start_names(config: ModelConfig) -> list[str]:
    """The start graphs, one for each number of templates that a step can be given. The joint scan
    has their tokens in its step, so its graph is of one template."""
    return ["start"] if config.scan == "joint" else ["start", "start_2"]


def map_tensors(function: Callable[..., Tensor], *trees: Any) -> Any:
    """``function`` over the tensors of equal structures of (named) tuples; None stays None."""
    first = trees[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return function(*trees)
    parts = [map_tensors(function, *children) for children in zip(*trees, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def flatten(memory: Memory) -> list[Tensor]:
    """The tensors of a memory, in a fixed order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, memory)
    return found


def unflatten(like: Memory, tensors: list[Tensor]) -> Memory:
    """The inverse of `flatten` for a memory of the structure of ``like``."""
    rest: Iterator[Tensor] = iter(tensors)
    filled: Memory = map_tensors(lambda _: next(rest), like)
    return filled


def channels_first(pixels: Tensor) -> Tensor:
    """(..., H, W, 3) of any type -> (..., 3, H, W) float32."""
    last = pixels.dim() - 1  # negative axes are exported as they are, which not all runtimes take
    return pixels.permute(*range(last - 2), last, last - 2, last - 1).float()


def channels_last(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C) float32."""
    return maps.permute(0, 2, 3, 1).float()


class _Start(nn.Module):
    def __init__(self, model: ViLTracker) -> None:
        super().__init__()
        self.model = model

    def forward(self, templates: Tensor) -> list[Tensor]:
        return flatten(self.model.start(channels_first(templates)))


NO_TEMPLATES = Templates(None, None, ())


def changing(memory: Memory) -> list[Tensor]:
    """The tensors of a memory that a step changes, the last of them in `flatten`'s order: the last
    box, the context and, with `memory: carry`, the states."""
    return flatten(memory._replace(templates=NO_TEMPLATES, deltas=None))


def changed(memory: Memory, tensors: list[Tensor]) -> Memory:
    """The memory with others in the place of those `changing` ones."""
    after = unflatten(memory._replace(templates=NO_TEMPLATES, deltas=None), tensors)
    return after._replace(templates=memory.templates, deltas=memory.deltas)


class _Step(nn.Module):
    def __init__(self, model: ViLTracker, window: Tensor, like: Memory) -> None:
        super().__init__()
        self.model, self.like = model, like
        self.register_buffer("window", window)
        self.window: Tensor

    def forward(
        self, search: Tensor, motion: Tensor, trust: Tensor, memory: list[Tensor]
    ) -> tuple[Tensor, ...]:
        known = unflatten(self.like, memory)
        step = self.model.step(channels_first(search), known, motion, trust)
        found = self.model.detect(step, self.window)
        seen = channels_last(step.seen)
        return (found.unit, found.log_var, found.score, seen, *changing(step.memory))


def _exported(
    module: nn.Module, inputs: tuple[Any, ...], names: list[str], outputs: list[str]
) -> bytes:
    axes = {name: {0: "tracks"} for name in (*names, *outputs)}
    with warnings.catch_warnings(), TemporaryDirectory() as folder:
        file = Path(folder) / "graph.onnx"
        warnings.simplefilter("ignore")  # of the tracer: what is constant here is meant to be
        torch.onnx.export(
            module.eval(),  # the exporter puts back the mode that it finds
            inputs,
            file,
            input_names=names,
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
        return file.read_bytes()


@torch.no_grad()
def export(model: ViLTracker, window: Tensor) -> dict[str, bytes]:
    """ONNX models by name, of the start with one and with two templates and of a frame's step; the
    batch B is free in size.

    start, start_2: `templates` (B, N, T, T, 3), uint8 RGB -> `memory_0` ...; N is 1 or 2
    step: `search` (B, S, S, 3), uint8 RGB, `motion` (B, 3), `trust` (B,), `memory_0` ... ->
    `unit` (B, 4), `log_var` (B, 4), `score` (B,), `seen` (B, G, G, C) (the stem's features),
    `next_0` ... (the last of the memory, see `changing`)

    Args:
        model: in evaluation mode.
        window: (G, G) weight of the cells in the choice of the best.
    """
    config = model.config
    graphs: dict[str, bytes] = {}
    for count, name in reversed(list(enumerate(start_names(config), 1))):
        size = config.template_size
        templates = torch.zeros(2, count, size, size, 3, dtype=torch.uint8)
        memory = model.start(channels_first(templates))
        flat = flatten(memory)
        names = [f"memory_{index}" for index in range(len(flat))]
        graphs[name] = _exported(_Start(model), (templates,), ["templates"], names)
    search = torch.zeros(2, config.search_size, config.search_size, 3, dtype=torch.uint8)
    motion, trust = torch.tensor([[0.0, 0.0, 1.0]] * 2), torch.ones(2)
    graphs[STEP] = _exported(
        _Step(model, window, memory),
        (search, motion, trust, flat),
        ["search", "motion", "trust", *names],
        [*FOUND, *(f"next_{index}" for index in range(len(changing(memory))))],
    )
    return graphs
