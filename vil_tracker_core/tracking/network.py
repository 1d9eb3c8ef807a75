"""Runs the net on image crops: numpy in, numpy out, any number of tracks in one batch.

Two backends give the same results: onnxruntime, the faster one on a CPU, and PyTorch.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vil_tracker_core import model as model_package
from vil_tracker_core import weights
from vil_tracker_core.geometry import FloatArray, Image
from vil_tracker_core.model.export import FOUND, changing, export, flatten, map_tensors, unflatten
from vil_tracker_core.model.heads import decode, hann_window
from vil_tracker_core.model.tracker import Memory

Backend = Literal["auto", "onnxruntime", "torch"]
BACKENDS: tuple[str, ...] = get_args(Backend)

Motion = tuple[float, float, float]


class Found(NamedTuple):
    """What the net says of one search crop, in units of the crop's side.

    Attributes:
        unit: (4,) cx, cy, w, h.
        variance: (4,) calibrated variances of the same.
        score: 0..1.
    """

    unit: FloatArray
    variance: FloatArray
    score: float


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


class Network(ABC):
    """A loaded net. It keeps nothing of the tracks: their memory comes in and goes out.

    Args:
        loaded: config, tensors and calibration.
        window_influence: how far a Hann window favours the middle of the crop, 0..1.
    """

    def __init__(self, loaded: weights.Weights, window_influence: float = 0.7) -> None:
        self.config = loaded.config
        hann = hann_window(self.config.search_grid)
        self.window = 1 - window_influence + window_influence * hann
        self.scale = np.array(loaded.calibration.scale, dtype=np.float64)

    @abstractmethod
    def _start(self, templates: Tensor) -> Memory:
        """Templates (1, N, 3, T, T) RGB 0..255 -> memory."""

    @abstractmethod
    def _step(
        self, search: Tensor, memory: Memory, motion: Tensor, trust: Tensor
    ) -> tuple[tuple[npt.NDArray[np.float32], ...], Memory]:
        """One frame of a batch -> (unit, log_var, score) and the memory after it."""

    @staticmethod
    def _images(crops: Many[Image]) -> Tensor:
        batch = np.stack(crops)[..., ::-1].transpose(0, 3, 1, 2)  # BGR to RGB, channels first
        return torch.from_numpy(np.ascontiguousarray(batch, dtype=np.float32))

    def start(self, templates: Many[Image]) -> Memory:
        """The memory of one track that begins with these template crops (T, T, 3) BGR."""
        return self._start(self._images(templates)[None])

    def renew(self, memory: Memory, templates: Many[Image]) -> Memory:
        """The memory with other templates and the same temporal context."""
        return memory._replace(templates=self.start(templates).templates)

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
        # tracks with one and with two templates do not fit into one batch
        alike: dict[tuple[torch.Size, ...], list[int]] = {}
        for row, memory in enumerate(memories):
            alike.setdefault(tuple(tensor.shape for tensor in flatten(memory)), []).append(row)
        results: dict[int, tuple[Found, Memory]] = {}
        for rows in alike.values():
            (units, log_vars, scores), after = self._step(
                self._images([crops[row] for row in rows]),
                stack([memories[row] for row in rows]),
                torch.tensor([motions[row] for row in rows], dtype=torch.float32),
                torch.tensor([trusts[row] for row in rows], dtype=torch.float32),
            )
            variances = np.exp(log_vars.astype(np.float64)) * self.scale**2
            found = map(Found, units.astype(np.float64), variances, map(float, scores))
            results |= zip(rows, zip(found, unstack(after, len(rows)), strict=True), strict=True)
        ordered = [results[row] for row in range(len(memories))]
        return [found for found, _ in ordered], [memory for _, memory in ordered]


class TorchNetwork(Network):
    """The net in PyTorch, on any of its devices."""

    def __init__(
        self, loaded: weights.Weights, window_influence: float = 0.7, device: str = "cpu"
    ) -> None:
        super().__init__(loaded, window_influence)
        self.device = torch.device(device)
        self.model = loaded.build().to(self.device)
        self.window = self.window.to(self.device)

    @torch.inference_mode()
    def _start(self, templates: Tensor) -> Memory:
        return self.model.start(templates.to(self.device))

    @torch.inference_mode()
    def _step(
        self, search: Tensor, memory: Memory, motion: Tensor, trust: Tensor
    ) -> tuple[tuple[npt.NDArray[np.float32], ...], Memory]:
        device = self.device
        step = self.model.step(search.to(device), memory, motion.to(device), trust.to(device))
        best = decode(step.prediction, self.window)
        found = tuple(t.float().cpu().numpy() for t in (best.unit, best.log_var, best.score))
        return found, step.memory


class OnnxNetwork(Network):
    """The net in onnxruntime on the CPU, from graphs that are exported once and then cached.

    Args:
        loaded: config, tensors and calibration.
        window_influence: as for `Network`.
        threads: CPU threads.
    """

    def __init__(
        self, loaded: weights.Weights, window_influence: float = 0.7, threads: int = 1
    ) -> None:
        import onnxruntime
        from onnxruntime.capi.onnxruntime_pybind11_state import (
            Fail,
            InvalidArgument,
            InvalidGraph,
            InvalidProtobuf,
        )

        super().__init__(loaded, window_influence)
        self._model = loaded.build()
        size = self.config.template_size
        with torch.inference_mode():
            self._like = self._model.start(torch.zeros(1, 1, 3, size, size))
        self._changed = len(changing(self._model, self._like))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # threads that wait must not spin: the camera driver and others need the cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")

        def sessions(graphs: tuple[bytes, bytes]) -> list[onnxruntime.InferenceSession]:
            providers = ["CPUExecutionProvider"]
            return [onnxruntime.InferenceSession(g, options, providers) for g in graphs]

        try:
            opened = sessions(self._graphs(loaded))
        except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf):
            opened = sessions(self._graphs(loaded, anew=True))  # the cached files are damaged
        self._start_session, self._step_session = opened
        self._names = [item.name for item in self._step_session.get_inputs()]

    def _graphs(self, loaded: weights.Weights, anew: bool = False) -> tuple[bytes, bytes]:
        """(start, step) from the cache, or exported and put there where that is possible.

        Args:
            loaded: what to export.
            anew: whether to pass over what is cached.
        """
        digest = hashlib.sha256(weights.checksum(loaded.tensors).encode())
        digest.update(repr((loaded.config, self.window.tolist(), torch.__version__)).encode())
        for source in sorted(Path(model_package.__path__[0]).glob("*.py")):
            digest.update(source.read_bytes())
        folder = cache_folder() / digest.hexdigest()[:32]
        files = [folder / "start.onnx", folder / "step.onnx"]
        if not anew and all(file.is_file() for file in files):
            return files[0].read_bytes(), files[1].read_bytes()
        graphs = export(loaded.build(), self.window)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file, graph in zip(files, graphs, strict=True):
                part = file.with_suffix(f".{os.getpid()}.part")
                part.write_bytes(graph)
                part.replace(file)
        except OSError:
            pass  # a read-only or full disk costs the next start some seconds, nothing more
        return graphs

    def _start(self, templates: Tensor) -> Memory:
        if templates.shape[1] > 1:  # the graph takes one; a second is rare enough for PyTorch
            if self.config.scan == "joint":
                raise ValueError("a second template with scan 'joint' needs backend 'torch'")
            with torch.inference_mode():
                return self._model.start(templates)
        found = self._start_session.run(None, {"templates": templates.numpy()})
        return unflatten(self._like, [torch.from_numpy(array) for array in found])

    def _step(
        self, search: Tensor, memory: Memory, motion: Tensor, trust: Tensor
    ) -> tuple[tuple[npt.NDArray[np.float32], ...], Memory]:
        flat = flatten(memory)
        given = {"search": search, "motion": motion, "trust": trust}
        given |= {f"memory_{index}": tensor for index, tensor in enumerate(flat)}
        feed = {name: given[name].numpy() for name in self._names}
        out = self._step_session.run(None, feed)
        changed = [torch.from_numpy(array) for array in out[len(FOUND) :]]
        kept = flat[: len(flat) - self._changed]
        return tuple(out[: len(FOUND)]), unflatten(self._like, [*kept, *changed])


def cache_folder() -> Path:
    """Where exported graphs are kept: vil_tracker below the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "vil_tracker"


def open_network(
    name_or_path: str | Path, backend: str = "auto", device: str = "cpu", threads: int = 1
) -> Network:
    """The net of a weights file or of a shipped preset.

    Args:
        name_or_path: file, or a preset's name.
        backend: one of `BACKENDS`; auto takes onnxruntime on the CPU and PyTorch elsewhere.
        device: as PyTorch names it; onnxruntime runs on the CPU only.
        threads: CPU threads.

    Raises:
        weights.WeightsError: the file cannot be used.
        ValueError: no such backend, or not on that device.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    if backend == "onnxruntime" and device != "cpu":
        raise ValueError(f"backend onnxruntime runs on the cpu, not on {device!r}")
    loaded = weights.load(weights.find(str(name_or_path)))
    if backend == "torch" or device != "cpu":
        torch.set_num_threads(threads)
        return TorchNetwork(loaded, device=device)
    return OnnxNetwork(loaded, threads=threads)
