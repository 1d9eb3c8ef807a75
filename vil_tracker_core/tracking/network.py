"""Runs the net on image crops: numpy in, numpy out, any number of tracks in one batch.

Three backends give the same results: PyTorch (here), OpenVINO and onnxruntime (graphs.py).
`open_network` picks one for the device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Many
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vil_tracker_core import weights
from vil_tracker_core.geometry import FloatArray, Image
from vil_tracker_core.model.export import channels_first, channels_last, map_tensors
from vil_tracker_core.model.film import box_deltas
from vil_tracker_core.model.heads import WINDOW_INFLUENCE, choice_window, decode
from vil_tracker_core.model.tracker import Memory

BACKENDS = ("auto", "openvino", "onnxruntime", "torch")
PRECISIONS = ("auto", "float32", "bfloat16")

Motion = tuple[float, float, float]


class Found(NamedTuple):
    """What the net says of one search crop, in units of the crop's side.

    Attributes:
        unit: (4,) cx, cy, w, h.
        variance: (4,) of the same.
        score: 0..1.
        seen: (G, G, C) float32, the stem's features, see recognition.py.
    """

    unit: FloatArray
    variance: FloatArray
    score: float
    seen: npt.NDArray[np.float32]


def stack(memories: Many[Memory]) -> Memory:
    """One batch of several tracks' memories."""
    if len(memories) == 1:
        return memories[0]
    out: Memory = map_tensors(lambda *tensors: torch.cat(tensors), *memories)
    return out


def unstack(memory: Memory, count: int) -> list[Memory]:
    """The single memories of a batch of ``count``."""
    if count == 1:
        return [memory]
    return [map_tensors(lambda tensor, at=at: tensor[at : at + 1], memory) for at in range(count)]


def teach(memory: Memory, found: FloatArray, drawn: FloatArray) -> Memory:
    """The memory of one track for which a box was drawn where the net had found ``found``, both
    (4,) in units of the same crop, see `film.box_deltas`."""
    if memory.deltas is None:
        return memory
    boxes = memory.deltas.new_tensor(np.stack([found, drawn]))
    return memory._replace(deltas=box_deltas(boxes[:1], boxes[1:]))


def told(memory: Memory, unit: FloatArray | None) -> Memory:
    """The memory of one track whose target was at ``unit`` (4,), see `Memory.box`; None where that
    is not known."""
    box = np.zeros((1, 4)) if unit is None else unit[None]
    return memory._replace(box=torch.from_numpy(box).to(memory.box))


class Network(ABC):
    """A loaded net. It keeps nothing of the tracks: their memory comes in and goes out.

    Args:
        loaded: config, tensors and calibration.
        window_influence: how far a Hann window favours the middle of the crop, 0..1.
    """

    backend: str
    precision: str = "float32"
    max_templates: int = 2  # how many `start` takes
    torch_threads: int = 1  # of PyTorch; more would hold up another runtime's, as they spin

    def __init__(self, loaded: weights.Weights, window_influence: float = WINDOW_INFLUENCE) -> None:
        self.config = loaded.config
        self.window = choice_window(self.config.search_grid, window_influence)
        self.calibration = loaded.calibration

    @abstractmethod
    def _start(self, templates: Tensor) -> Memory:
        """Templates (1, N, T, T, 3) uint8 RGB -> memory."""

    @abstractmethod
    def _step(
        self, search: Tensor, memory: Memory, motion: Tensor, trust: Tensor
    ) -> tuple[tuple[npt.NDArray[np.float32], ...], Memory]:
        """One frame of a batch, crops (B, S, S, 3) uint8 RGB -> (unit, log_var, score, seen) and
        the memory after it."""

    @staticmethod
    def _images(crops: Many[Image]) -> Tensor:
        """(B, S, S, 3) uint8 RGB of (S, S, 3) uint8 BGR."""
        pixels = np.empty((len(crops), *crops[0].shape), np.uint8)
        for crop, out in zip(crops, pixels, strict=True):
            cv2.cvtColor(crop, cv2.COLOR_BGR2RGB, dst=out)
        return torch.from_numpy(pixels)

    def start(self, templates: Many[Image]) -> Memory:
        """The memory of one track that begins with these template crops (T, T, 3) BGR."""
        torch.set_num_threads(self.torch_threads)
        return self._start(self._images(templates)[None])

    def renew(self, memory: Memory, templates: Many[Image]) -> Memory:
        """The memory with other templates, all else as it was; but that a carried memory begins
        anew with them."""
        fresh = self.start(templates)
        return memory._replace(templates=fresh.templates, states=fresh.states)

    def step(
        self,
        crops: Many[Image],
        memories: Many[Memory],
        motions: Many[Motion],
        trusts: Many[float],
    ) -> tuple[list[Found], list[Memory]]:
        """One frame of several tracks at once; all lists are one entry a track.

        Args:
            crops: search crops (S, S, 3) BGR.
            memories: of `start` or of the frame before.
            motions: see `geometry.crop_motion`.
            trusts: 0..1, how far the frame may change the temporal context.
        """
        torch.set_num_threads(self.torch_threads)
        # tracks with one and with two templates do not fit into one batch
        alike: dict[int, list[int]] = {}
        for row, memory in enumerate(memories):
            alike.setdefault(memory.templates.length, []).append(row)
        results: dict[int, tuple[Found, Memory]] = {}
        for rows in alike.values():
            (units, log_vars, scores, seen), after = self._step(
                self._images([crops[row] for row in rows]),
                stack([memories[row] for row in rows]),
                torch.tensor([motions[row] for row in rows], dtype=torch.float32),
                torch.tensor([trusts[row] for row in rows], dtype=torch.float32),
            )
            variances = np.exp(log_vars.astype(np.float64))
            found = map(Found, units.astype(np.float64), variances, map(float, scores), seen)
            results |= zip(rows, zip(found, unstack(after, len(rows)), strict=True), strict=True)
        ordered = [results[row] for row in range(len(memories))]
        return [found for found, _ in ordered], [memory for _, memory in ordered]


class TorchNetwork(Network):
    """The net in PyTorch, on any of its devices; in bfloat16 by autocast."""

    backend = "torch"

    def __init__(
        self,
        loaded: weights.Weights,
        window_influence: float = WINDOW_INFLUENCE,
        device: str = "cpu",
        precision: str = "float32",
        threads: int = 1,
    ) -> None:
        super().__init__(loaded, window_influence)
        self.torch_threads = threads
        self.device = torch.device(device)
        self.precision = precision
        self.model = loaded.build().to(self.device)
        self.window = self.window.to(self.device)

    @torch.inference_mode()
    def _start(self, templates: Tensor) -> Memory:
        with self._precision():
            return self.model.start(channels_first(templates.to(self.device)))

    def _precision(self) -> torch.autocast:
        reduced = self.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=reduced)

    @torch.inference_mode()
    def _step(
        self, search: Tensor, memory: Memory, motion: Tensor, trust: Tensor
    ) -> tuple[tuple[npt.NDArray[np.float32], ...], Memory]:
        device = self.device
        pixels = channels_first(search.to(device))
        with self._precision():
            step = self.model.step(pixels, memory, motion.to(device), trust.to(device))
        best = decode(step.prediction, self.window)
        given = best.unit, best.log_var, best.score, channels_last(step.seen)
        found = tuple(tensor.float().cpu().numpy() for tensor in given)
        return found, step.memory


def open_network(
    source: str | Path | weights.Weights,
    backend: str = "auto",
    device: str = "cpu",
    threads: int = 1,
    precision: str = "auto",
) -> Network:
    """The net of a weights file, of a shipped preset, or of tensors in memory.

    Args:
        source: file, preset's name, or the weights themselves.
        backend: one of `BACKENDS`; auto takes openvino on the CPU and PyTorch elsewhere.
        device: as PyTorch names it; only the torch backend runs elsewhere than on the cpu.
        threads: CPU threads.
        precision: one of `PRECISIONS`, of the matrix products; auto takes bfloat16 in OpenVINO on a
            CPU that computes in it, and float32 elsewhere. See docs/speed.md for what it changes.

    Raises:
        weights.WeightsError: the file cannot be used.
        ValueError: no such backend or precision, or not together or on that device.
    """
    _validate("backend", backend, BACKENDS)
    _validate("precision", precision, PRECISIONS)
    if backend == "auto":
        backend = "openvino" if device == "cpu" else "torch"
    if backend != "torch" and device != "cpu":
        raise ValueError(f"backend {backend} runs on the cpu, not on {device!r}")
    if backend == "onnxruntime" and precision == "bfloat16":
        raise ValueError(f"backend onnxruntime runs in float32, not in {precision}")
    if not isinstance(source, weights.Weights):
        source = weights.load(weights.find(str(source)))
    if backend == "torch":
        precision = "float32" if precision == "auto" else precision
        return TorchNetwork(source, device=device, precision=precision, threads=threads)
    from vil_tracker_core.tracking.graphs import OnnxNetwork, OpenvinoNetwork, has_bfloat16

    if backend == "onnxruntime":
        return OnnxNetwork(source, threads=threads)
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16() else "float32"
    return OpenvinoNetwork(source, threads=threads, precision=precision)


def _validate(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(allowed)}")
