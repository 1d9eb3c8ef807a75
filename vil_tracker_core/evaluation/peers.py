"""Trackers behind one small protocol: ours, OpenCV's, and any ONNX network of two inputs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import cv2
import numpy as np

import vil_tracker_core
from vil_tracker_core.geometry import (
    Box,
    Crop,
    FloatArray,
    Image,
    clip_to_frame,
    validate_box,
)

# torch comes with our own tracker only: a worker that runs OpenCV's starts without it
if TYPE_CHECKING:
    from vil_tracker_core.tracking.online import TrackerConfig, TrackState
    from vil_tracker_core.weights import Weights


class Answer(Protocol):
    """What a tracker says of one frame; None for what it does not say.

    ``box`` in frame pixels, ``score`` 0..1, ``covariance`` (4, 4) of (cx, cy, w, h) in px^2.
    """

    @property
    def box(self) -> Box | None: ...
    @property
    def score(self) -> float | None: ...
    @property
    def covariance(self) -> FloatArray | None: ...
    @property
    def state(self) -> TrackState | None: ...


class Tracker(Protocol):
    """Follows one target. Frames are (H, W, 3) BGR uint8, stamps seconds."""

    def init(self, frame: Image, box: Box, stamp: float) -> object:
        """Starts on a box; raises ValueError where the box is not usable."""
        ...

    def update(self, frame: Image, stamp: float) -> Answer:
        """The target in the next frame."""
        ...


class PeerAnswer(NamedTuple):
    """The `Answer` of a tracker that knows neither covariance nor states."""

    box: Box | None
    score: float | None
    covariance: FloatArray | None = None
    state: TrackState | None = None


# --- OpenCV ---------------------------------------------------------------------------------------

OPENCV: dict[str, Callable[[], Any]] = {
    "csrt": lambda: cv2.TrackerCSRT_create(),  # type: ignore[attr-defined, unused-ignore]
    "kcf": lambda: cv2.TrackerKCF_create(),  # type: ignore[attr-defined, unused-ignore]
    "mil": lambda: cv2.TrackerMIL_create(),  # type: ignore[attr-defined, unused-ignore]
}
SMALLEST = {"csrt": 2, "kcf": 2, "mil": 5}
"""Shortest side of a box in px that OpenCV's implementation takes; MIL never returns below."""


class OpenCvTracker:
    """One of OpenCV's trackers with its default parameters.

    The box is rounded to whole pixels, since they take nothing else, and cut at the frame's edge.
    Where OpenCV says that the target is not found, or fails on a frame, the answer has no box.
    MIL draws samples from a generator that cannot be seeded from outside: no two runs are alike.

    Args:
        kind: a key of `OPENCV`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._tracker: Any = None

    def init(self, frame: Image, box: Box, stamp: float) -> None:
        size = frame.shape[1], frame.shape[0]
        inside = clip_to_frame(validate_box(box, size), size)
        whole = [round(inside.x), round(inside.y), round(inside.w), round(inside.h)]
        least = SMALLEST[self.kind]
        if min(whole[2:]) < least:
            raise ValueError(
                f"{self.kind} cannot start on a box of {whole[2]}x{whole[3]} px: "
                f"it needs {least} px a side"
            )
        self._tracker = OPENCV[self.kind]()
        try:
            self._tracker.init(frame, whole)
        except cv2.error as error:
            raise ValueError(f"{self.kind} cannot start on {box}: {error.err}") from None

    def update(self, frame: Image, stamp: float) -> PeerAnswer:
        if self._tracker is None:
            raise RuntimeError("update() needs an init() before it")
        try:
            found, box = self._tracker.update(frame)
        except cv2.error:  # a box that left the frame fails an assertion inside
            found, box = False, None
        return PeerAnswer(Box(*map(float, box)), 1.0) if found else PeerAnswer(None, None)


# --- ONNX -----------------------------------------------------------------------------------------


class OnnxTracker:
    """Any one-file ONNX network that finds a template in a search crop.

    Inputs, float32 of 0..255, channels first: ``template`` (1, 3, T, T), the target's crop in the
    first frame, and ``search`` (1, 3, S, S), the crop around the last box. Outputs: ``box`` (1, 4),
    (cx, cy, w, h) in units of the search crop's side (the crop is [0, 1]^2), and ``score`` (1,),
    0..1. Normalising is the network's own business.

    The file's metadata may hold ``template_factor`` and ``search_factor``, a crop's side over
    sqrt(w * h) of the box (2 and 4), and ``colour``, rgb or bgr (rgb).

    Args:
        path: the .onnx file.
        threads: CPU threads.

    Raises:
        ValueError: the file is not such a network; the message says why.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        import onnxruntime

        if not path.is_file():
            raise ValueError(f"{path} does not exist")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has one type of its own for each kind of fault
            raise ValueError(f"{path} is not an ONNX file that can be run: {error}") from None
        inputs = {item.name: item for item in self._session.get_inputs()}
        outputs = {item.name for item in self._session.get_outputs()}
        if set(inputs) != {"template", "search"} or not outputs >= {"box", "score"}:
            raise ValueError(
                f"{path} has inputs {sorted(inputs)} and outputs {sorted(outputs)}, but a tracker "
                "needs inputs template and search, and outputs box and score (docs/evaluate.md)"
            )
        self._template_side = self._side(path, inputs["template"])
        self._search_side = self._side(path, inputs["search"])
        meta = self._session.get_modelmeta().custom_metadata_map
        self._colour = meta.get("colour", "rgb")
        try:
            self._template_factor = float(meta.get("template_factor", 2.0))
            self._search_factor = float(meta.get("search_factor", 4.0))
        except ValueError:
            self._template_factor = self._search_factor = 0.0
        in_range = all(1 <= f <= 16 for f in (self._template_factor, self._search_factor))
        if self._colour not in ("rgb", "bgr") or not in_range:
            raise ValueError(
                f"{path} has metadata {meta}: colour must be rgb or bgr, template_factor and "
                "search_factor numbers from 1 to 16"
            )
        self._template: Any = None
        self._box = Box(0.0, 0.0, 0.0, 0.0)

    @staticmethod
    def _side(path: Path, item: Any) -> int:
        shape = item.shape
        side = shape[-1]
        if not isinstance(side, int) or len(shape) != 4 or shape[1:] != [3, side, side]:
            raise ValueError(
                f"{path}: input {item.name} is {shape}, not a fixed [1, 3, side, side]"
            )
        return side

    def _tensor(self, crop: Image) -> Any:
        pixels = crop[..., ::-1] if self._colour == "rgb" else crop
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32)

    def init(self, frame: Image, box: Box, stamp: float) -> None:
        self._box = validate_box(box, (frame.shape[1], frame.shape[0]))
        crop = Crop.around(self._box, self._template_factor, self._template_side)
        self._template = self._tensor(crop.cut(frame))

    def update(self, frame: Image, stamp: float) -> PeerAnswer:
        if self._template is None:
            raise RuntimeError("update() needs an init() before it")
        crop = Crop.around(self._box, self._search_factor, self._search_side)
        feed = {"template": self._template, "search": self._tensor(crop.cut(frame))}
        unit, score = self._session.run(["box", "score"], feed)
        box = crop.to_frame(np.asarray(unit, dtype=np.float64).reshape(-1)[:4])
        try:
            self._box = validate_box(box, (frame.shape[1], frame.shape[0]))
        except ValueError:  # searched around the last good box again
            return PeerAnswer(None, None)
        return PeerAnswer(box, float(np.asarray(score).reshape(-1)[0]))


# --- Choosing one ---------------------------------------------------------------------------------

Kind = Literal["vil", "opencv", "onnx"]
CHOICES = "a shipped preset (vil_nano), a weights file, csrt, kcf, mil, or onnx:FILE"
NETWORK_CHANGES = ("backend", "precision")
"""What may be changed besides the fields of `ModelConfig` and of `TrackerConfig`."""


class Opened(NamedTuple):
    """One of our trackers with what its name changes, ready to be built."""

    loaded: Weights
    config: TrackerConfig
    network: dict[str, str]


def changed(loaded: Weights, changes: Iterable[tuple[str, str]]) -> Opened:
    """Our tracker with some settings changed, such as ``film`` to ``off``.

    Args:
        loaded: the weights; tensors that a changed net does not have are left out.
        changes: (name, value) of `ModelConfig`, of `TrackerConfig`, or of `NETWORK_CHANGES`.

    Raises:
        ValueError: no such setting, no such value, or the net needs tensors that are not there.
    """
    from vil_tracker_core.tracking.online import TrackerConfig
    from vil_tracker_core.weights import Weights, WeightsError, expected_tensors

    model, config = loaded.config, TrackerConfig()
    network: dict[str, str] = {}
    for name, value in changes:
        try:
            if name in NETWORK_CHANGES:
                network[name] = value
            elif isinstance(getattr(model, name, None), (int, float, str)):
                model = replace(model, **{name: type(getattr(model, name))(value)})
            elif isinstance(getattr(config, name, None), (int, float)):
                config = replace(config, **{name: type(getattr(config, name))(value)})
            else:
                raise ValueError("there is no such setting")
        except ValueError as error:
            raise ValueError(f"{name}={value}: {error}") from None
    if model == loaded.config:
        return Opened(loaded, config, network)
    kept = expected_tensors(model)
    tensors = {name: tensor for name, tensor in loaded.tensors.items() if name in kept}
    made = Weights(model, tensors, loaded.calibration, loaded.provenance)
    try:
        made.check()
    except WeightsError as error:
        raise ValueError(str(error)) from None
    return Opened(made, config, network)


@dataclass(frozen=True)
class TrackerSpec:
    """A tracker by name, to be opened in any process.

    Attributes:
        name: of its results: the file's stem, or OpenCV's name in lower case.
        kind: whose it is.
        path: of weights or network; None for OpenCV's.
        threads: CPU threads.
        device: where our network runs, as PyTorch names it.
        changes: of our tracker's settings, see `changed`.
    """

    name: str
    kind: Kind
    path: Path | None = None
    threads: int = 1
    device: str = "cpu"
    changes: tuple[tuple[str, str], ...] = ()

    def open(self) -> Tracker:
        """A tracker ready for `init`; raises ValueError saying what is wrong with its file."""
        cv2.setNumThreads(self.threads)
        if self.path is None:
            return OpenCvTracker(self.name)
        if self.kind == "onnx":
            return OnnxTracker(self.path, self.threads)
        from vil_tracker_core import weights
        from vil_tracker_core.tracking.network import open_network
        from vil_tracker_core.tracking.online import OnlineTracker

        loaded, config, network = changed(weights.load(self.path), self.changes)
        opened = open_network(loaded, device=self.device, threads=self.threads, **network)
        return OnlineTracker(opened, config)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that its boxes and its speed depend on: the file with its config
        and calibration, the thresholds, the code, and the libraries that run it."""
        parts: list[object] = [
            self.name,
            self.kind,
            self.threads,
            self.device,
            self.changes,
            code_version(self.kind),
        ]
        parts.append(cv2.__version__)  # it cuts the crops of the others too
        if self.path is not None:
            parts.append(hashlib.sha256(self.path.read_bytes()).hexdigest())
        if self.kind == "vil":
            from vil_tracker_core.tracking.online import TrackerConfig

            parts.append(TrackerConfig())
        if self.kind != "opencv":
            parts += [_installed(name) for name in ("torch", "onnxruntime", "openvino")]
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def code_version(kind: Kind) -> str:
    """The package's version and a hash of the modules that a kind of tracker runs through."""
    root = Path(vil_tracker_core.__file__).parent
    files = [root / "geometry.py", Path(__file__)]
    if kind == "vil":
        files.append(root / "weights/__init__.py")
        files += [file for name in ("model", "tracking") for file in (root / name).glob("*.py")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return f"{vil_tracker_core.__version__} {digest.hexdigest()}"


def parse_trackers(text: str, threads: int = 1, device: str = "cpu") -> list[TrackerSpec]:
    """The trackers of a list with commas, such as ``vil_nano,csrt,onnx:net.onnx``.

    Our own may be followed by changed settings: ``vil_nano+film=off+template_every=0``.

    Raises:
        ValueError: an entry is none of `CHOICES`, or two have the same name.
    """
    specs: list[TrackerSpec] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        if item.lower() in OPENCV:
            spec = TrackerSpec(item.lower(), "opencv", None, threads)
        elif item.startswith("onnx:"):
            path = Path(item.removeprefix("onnx:"))
            if not path.is_file():
                raise ValueError(f"tracker {item!r}: {path} does not exist")
            spec = TrackerSpec(_file_name(path.stem), "onnx", path.resolve(), threads)
        else:
            from vil_tracker_core import weights

            source, *settings = re.split(r"\+(?=\w+=)", item)
            try:
                path = weights.find(source)
            except weights.WeightsError:
                raise ValueError(f"tracker {source!r} is not {CHOICES}") from None
            changes = tuple(
                (name, value) for name, _, value in (s.partition("=") for s in settings)
            )
            name = _file_name("+".join([path.stem, *settings]))
            spec = TrackerSpec(name, "vil", path.resolve(), threads, device, changes)
            if changes:
                try:
                    changed(weights.load(path), changes)
                except ValueError as error:
                    raise ValueError(f"tracker {item!r}: {error}") from None
        if spec.name in {other.name for other in specs}:
            raise ValueError(f"two trackers are named {spec.name!r}: rename one of the files")
        specs.append(spec)
    if not specs:
        raise ValueError(f"no tracker is named: give {CHOICES}")
    return specs


def _file_name(name: str) -> str:
    """``name`` with what no file name should hold replaced."""
    return re.sub(r"[^\w.+=-]", "_", name)
