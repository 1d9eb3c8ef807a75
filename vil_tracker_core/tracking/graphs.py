"""The net as exported graphs, in OpenVINO or onnxruntime on the CPU.

The graphs (ONNX, see model/export.py) are made once for each set of weights and kept on disk, and
so is what OpenVINO compiles them to: only the first start of all pays for it.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from abc import abstractmethod
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vil_tracker_core import model as model_package
from vil_tracker_core import weights
from vil_tracker_core.model.export import (
    FOUND,
    STEP,
    changed,
    export,
    flatten,
    start_names,
    unflatten,
)
from vil_tracker_core.model.heads import WINDOW_INFLUENCE
from vil_tracker_core.model.tracker import Memory
from vil_tracker_core.tracking.network import Network

Arrays = list[npt.NDArray[Any]]
Feed = dict[str, Tensor]
"""Of float32, but for the images' uint8."""


KEPT_BYTES = 10**9
"""Of graphs on disk, together; those used last stay."""


def cache_folder() -> Path:
    """Where exported graphs are kept: vil_tracker below the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "vil_tracker"


def _read(file: Path) -> bytes | None:
    """What `_keep` has put there, or None where it is missing or a single bit of it is another."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    with suppress(OSError):  # used just now, see `_forget`; not every disk notes that by itself
        os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))
    seal, data = content[:32], content[32:]
    return data if hashlib.sha256(data).digest() == seal else None


def _keep(file: Path, data: bytes) -> None:
    """Puts data there behind their SHA-256, whole or not at all.

    A read-only or full disk costs the next start some seconds, nothing more.
    """
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(hashlib.sha256(data).digest() + data)
        part.replace(file)
        _forget()
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _forget() -> None:
    """Removes the graphs that were used longest ago where all together are over the limit."""
    kept = [(file.stat(), file) for file in cache_folder().glob("*/*")]
    room = KEPT_BYTES
    for stat, file in sorted(kept, key=lambda each: each[0].st_atime_ns, reverse=True):
        room -= stat.st_size
        if room < 0:
            file.unlink(missing_ok=True)
            with suppress(OSError):  # others are in it
                file.parent.rmdir()


class GraphNetwork(Network):
    """A net whose starts and step are graphs; a runtime opens and runs them.

    Args:
        loaded: config, tensors and calibration.
        window_influence: as for `Network`.
        exported: its graphs, see `model.export.export`; by default those kept on disk, or new ones.
    """

    def __init__(
        self,
        loaded: weights.Weights,
        window_influence: float = WINDOW_INFLUENCE,
        exported: dict[str, bytes] | None = None,
    ) -> None:
        super().__init__(loaded, window_influence)
        self._starts = start_names(self.config)
        self.max_templates = len(self._starts)
        self._model = loaded.build()
        size = self.config.template_size
        with torch.inference_mode():
            self._like = self._model.start(torch.zeros(1, 1, 3, size, size))
        self._folder = cache_folder() / self._fingerprint(loaded)
        self._exported = exported or {}
        self._open([*self._starts, STEP])

    @abstractmethod
    def _open(self, names: list[str]) -> None:
        """Makes the graphs ready to run."""

    @abstractmethod
    def _run(self, name: str, feed: Feed) -> Arrays:
        """All outputs of a graph; ``feed`` may hold more than it takes."""

    def _fingerprint(self, loaded: weights.Weights) -> str:
        """Of all that shapes the graphs."""
        digest = hashlib.sha256(weights.checksum(loaded.tensors).encode())
        digest.update(repr((loaded.config, self.window.tolist(), torch.__version__)).encode())
        for source in sorted(Path(model_package.__path__[0]).glob("*.py")):
            digest.update(source.read_bytes())
        return digest.hexdigest()[:32]

    def _graph(self, name: str) -> bytes:
        """From the cache, or exported with all others and put there where that is possible."""
        if name not in self._exported:
            kept = _read(self._folder / f"{name}.onnx")
            if kept is not None:
                return kept
            self._exported = export(self._model, self.window)
            for other, graph in self._exported.items():
                _keep(self._folder / f"{other}.onnx", graph)
        return self._exported[name]

    def _start(self, templates: Tensor) -> Memory:
        count = templates.shape[1]
        if count > self.max_templates:
            raise ValueError(f"{count} templates: the graphs take {self.max_templates}")
        found = self._run(self._starts[count - 1], {"templates": templates})
        return unflatten(self._like, [torch.from_numpy(array) for array in found])

    def _step(
        self, search: Tensor, memory: Memory, motion: Tensor, trust: Tensor
    ) -> tuple[tuple[npt.NDArray[np.float32], ...], Memory]:
        feed = {"search": search, "motion": motion, "trust": trust}
        feed |= {f"memory_{index}": tensor for index, tensor in enumerate(flatten(memory))}
        out = self._run(STEP, feed)
        after = changed(memory, [torch.from_numpy(array) for array in out[len(FOUND) :]])
        return tuple(out[: len(FOUND)]), after


class OnnxNetwork(GraphNetwork):
    """The graphs in onnxruntime, float32.

    Args:
        loaded: config, tensors and calibration.
        window_influence: as for `Network`.
        threads: CPU threads.
        exported: as for `GraphNetwork`.
    """

    backend = "onnxruntime"

    def __init__(
        self,
        loaded: weights.Weights,
        window_influence: float = WINDOW_INFLUENCE,
        threads: int = 1,
        exported: dict[str, bytes] | None = None,
    ) -> None:
        self._threads = threads
        super().__init__(loaded, window_influence, exported)

    def _open(self, names: list[str]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # threads that wait must not spin: the camera driver and others need the cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions = {
            name: onnxruntime.InferenceSession(self._graph(name), options, ["CPUExecutionProvider"])
            for name in names
        }
        self._inputs = {
            name: [item.name for item in session.get_inputs()]
            for name, session in self._sessions.items()
        }

    def _run(self, name: str, feed: Feed) -> Arrays:
        given = {item: feed[item].numpy() for item in self._inputs[name]}
        outputs: Arrays = self._sessions[name].run(None, given)
        return outputs


@cache
def openvino_core() -> Any:
    """OpenVINO's core: one for the process, and never dropped before its end.

    Its CPU plugin gives the thread that makes it an alternate signal stack and, when it is dropped,
    takes back its own and sets the one that was there before. Of two, the later would so set that
    of the earlier, which may be freed by then: the next signal overwrites what lies there instead.
    """
    import openvino

    return openvino.Core()


def has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16, and does not only emulate it."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


FINE_GRID = 16
"""Convolutions on grids with more cells along a side than this stay float32: these see the image's
finest contrasts."""


def _is_product(op: Any) -> bool:
    """A matrix product: also a 1x1 convolution, but none of a fine grid."""
    kind = op.get_type_name()
    if kind != "Convolution":
        return bool(kind == "MatMul")
    kernel, grid = op.get_input_shape(1)[2:], op.get_output_shape(0)[2:]
    return max(kernel) == 1 and bool(max(grid) <= FINE_GRID)


def _reduce(graph: Any) -> None:
    """Has a graph's matrix products computed from bfloat16 numbers, as PyTorch's autocast does.

    OpenVINO's own switch rounds every number there is. The residuals' sums then lose what the
    blocks add, and boxes are off by up to three pixels of a 720p frame instead of a half.
    """
    from openvino import opset13

    products = [op for op in graph.get_ordered_ops() if _is_product(op)]
    rounded: dict[tuple[str, int], Any] = {}
    for op in products:
        result = op.output(0)
        users = result.get_target_inputs()
        for given in op.inputs():
            source = given.get_source_output()
            key = source.get_node().get_friendly_name(), source.get_index()
            if key not in rounded:
                rounded[key] = opset13.convert(source, "bf16").output(0)
            given.replace_source_output(rounded[key])
        back = opset13.convert(result, "f32").output(0)
        for user in users:
            user.replace_source_output(back)
    graph.validate_nodes_and_infer_types()


class _Request:
    """One run at a time of a compiled graph, in memory of its own: filling that is far quicker than
    handing over arrays with every run."""

    def __init__(self, compiled: Any) -> None:
        import openvino

        self._request = compiled.create_infer_request()
        self._inputs: dict[str, npt.NDArray[Any]] = {}
        self._given: Feed = {}
        self._outputs: Arrays = []
        for port in compiled.inputs:
            array = np.zeros(tuple(port.shape), port.element_type.to_dtype())
            self._request.set_tensor(port, openvino.Tensor(array, shared_memory=True))
            # a tensor may have the names of what it passes through besides its own
            self._inputs[next(name for name in port.names if "/" not in name)] = array
        for port in compiled.outputs:
            array = np.zeros(tuple(port.shape), port.element_type.to_dtype())
            self._request.set_tensor(port, openvino.Tensor(array, shared_memory=True))
            self._outputs.append(array)

    def start(self, feed: Feed) -> None:
        """``feed`` may hold more than the graph takes. A track's templates are the same tensors
        from frame to frame, and are there already."""
        for name, array in self._inputs.items():
            tensor = feed[name]
            if tensor is not self._given.get(name):
                np.copyto(array, tensor.numpy())
                self._given[name] = tensor
        self._request.start_async()

    def wait(self) -> Arrays:
        """All outputs."""
        self._request.wait()
        return [array.copy() for array in self._outputs]


class OpenvinoNetwork(GraphNetwork):
    """The graphs in OpenVINO: element-wise work fused, and bfloat16 where the CPU has it.

    A batch is computed row by row, at once on as many of the threads as there are rows: threads
    that each have a row of their own need not wait for one another after each small operation, as
    they do where all share one. So the step is compiled again when a batch first occurs, which
    takes about a second the first time of all.

    Args:
        loaded: config, tensors and calibration.
        window_influence: as for `Network`.
        threads: CPU threads.
        precision: of the matrix products: float32, or bfloat16 (emulated, and slow, on a CPU
            without it).
    """

    backend = "openvino"

    def __init__(
        self,
        loaded: weights.Weights,
        window_influence: float = WINDOW_INFLUENCE,
        threads: int = 1,
        precision: str = "float32",
    ) -> None:
        self.precision = precision
        self._threads = threads
        self._properties = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # beside what `_reduce` has rounded
            "ENABLE_CPU_PINNING": False,  # which cores are free is the system's to know
        }
        super().__init__(loaded, window_influence)

    def _open(self, names: list[str]) -> None:
        self._bound: dict[tuple[str, int], list[_Request]] = {}
        for name in names:
            self._requests(name, 1)

    def _requests(self, name: str, streams: int) -> list[_Request]:
        """A graph compiled for one row, and as many requests, which may run at once."""
        if (name, streams) not in self._bound:
            compiled = self._compiled(name, {**self._properties, "NUM_STREAMS": streams})
            self._bound[name, streams] = [_Request(compiled) for _ in range(streams)]
        return self._bound[name, streams]

    def _compiled(self, name: str, properties: dict[str, Any]) -> Any:
        """From the cache, or compiled and put there where that is possible."""
        import openvino

        core = openvino_core()
        made_for = (
            Path(__file__).read_bytes(),  # `_reduce` and the rest of this method
            openvino.get_version(),
            core.get_property("CPU", "FULL_DEVICE_NAME"),
            core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
            self.precision,
            properties,
        )
        key = hashlib.sha256(repr(made_for).encode()).hexdigest()[:16]
        file = self._folder / f"{name}-{key}.blob"
        kept = _read(file)
        if kept is not None:
            with suppress(RuntimeError):  # OpenVINO may still find that it was not made for here
                return core.import_model(io.BytesIO(kept), "CPU", properties)
        graph = core.read_model(self._graph(name))
        shapes = {item.any_name: item.partial_shape for item in graph.inputs}
        for shape in shapes.values():
            shape[0] = 1
        graph.reshape(shapes)
        if self.precision == "bfloat16" and name == STEP:  # a start is seldom, and lasts
            _reduce(graph)
        compiled = core.compile_model(graph, "CPU", properties)
        _keep(file, compiled.export_model().getvalue())
        return compiled

    def _run(self, name: str, feed: Feed) -> Arrays:
        count = len(next(iter(feed.values())))
        in_rows = (
            [feed]
            if count == 1
            else [
                {name: tensor[row : row + 1] for name, tensor in feed.items()}
                for row in range(count)
            ]
        )
        requests = self._requests(name, min(count, self._threads))
        rows: list[Arrays] = []
        for first in range(0, count, len(requests)):
            together = requests[: count - first]
            try:
                for row, request in enumerate(together, start=first):
                    request.start(in_rows[row])
            finally:  # none may be found still running by the next call
                found = [request.wait() for request in together]
            rows += found
        return rows[0] if count == 1 else [np.concatenate(p) for p in zip(*rows, strict=True)]
