"""Weights as safetensors, with the model's config, calibration and provenance in the metadata."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vil_tracker_core.model.presets import ModelConfig
from vil_tracker_core.model.tracker import ViLTracker

FORMAT = "vil-tracker-1"
MAX_BYTES = 500_000_000
"""Larger files are refused before they are read."""


class WeightsError(ValueError):
    """Weights that cannot be used; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Calibration:
    """What makes the published covariance honest, see `tracking.uncertainty`.

    Attributes:
        spread: factors of the standard deviations of (cx, cy, w, h).
        settling: seconds in which the variance of the centre and that of the size build up to
            1 - 1/e of what the spread says.
        drift: share of that variance which each further second adds.
        fitted_on: what data, in words.
    """

    spread: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    settling: tuple[float, float] = (0.5, 0.5)
    drift: float = 0.1
    fitted_on: str = "nothing"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """Raises ValueError where a number is missing or not positive."""
        if "scale" in values:
            raise ValueError("its calibration is of an older form: make the file anew")
        a, b, c, d = _positive(values, "spread", 4)
        centre, size = _positive(values, "settling", 2)
        drift = values.get("drift")
        if not _is_positive(drift):
            raise ValueError(f"the calibration's drift {drift!r} is not a positive number")
        return cls((a, b, c, d), (centre, size), drift, str(values["fitted_on"]))


def _positive(values: dict[str, Any], name: str, count: int) -> list[float]:
    found = values.get(name)
    if not isinstance(found, list) or len(found) != count or not all(map(_is_positive, found)):
        raise ValueError(f"the calibration's {name} {found!r} is not {count} positive numbers")
    return found


def _is_positive(value: object) -> TypeGuard[float]:
    return type(value) in (int, float) and 0 < value < math.inf  # type: ignore[operator]


class _Unfilled(TorchFunctionMode):
    """Leaves out drawing normal numbers: for tensors without memory PyTorch would import its
    compiler to do so, which takes 1.5 s."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if func is nn.init.normal_:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def expected_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Name -> a tensor of the shape that the config's net has; no memory is taken for them."""
    with torch.device("meta"), _Unfilled():
        return ViLTracker(config).state_dict()


@dataclass(frozen=True)
class Weights:
    """A weights file's content."""

    config: ModelConfig
    tensors: dict[str, Tensor]
    calibration: Calibration = Calibration()
    provenance: dict[str, Any] = field(default_factory=dict)

    def build(self) -> ViLTracker:
        """The net, in evaluation mode, with these weights; raises WeightsError on a mismatch."""
        self.check()
        model = ViLTracker(self.config)
        model.load_state_dict(self.tensors)
        return model.eval()

    def check(self) -> None:
        """Raises WeightsError where the tensors are not those of the config's net."""
        expected = expected_tensors(self.config)
        missing = sorted(set(expected) - set(self.tensors))
        unknown = sorted(set(self.tensors) - set(expected))
        if missing or unknown:
            raise WeightsError(
                f"weights do not fit {self.config.name}: "
                f"{len(missing)} tensors are missing {missing[:3]}, "
                f"{len(unknown)} are unknown {unknown[:3]}"
            )
        for name, tensor in self.tensors.items():
            if tensor.shape != expected[name].shape:
                raise WeightsError(
                    f"weights do not fit {self.config.name}: {name} is {tuple(tensor.shape)}, "
                    f"expected {tuple(expected[name].shape)}"
                )
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise WeightsError(f"weights hold values that are not finite in {name}")


def shipped(name: str) -> Path:
    """Where the shipped weights of a preset lie (whether or not they exist)."""
    return Path(__file__).parent / f"{name}.safetensors"


def find(name_or_path: str) -> Path:
    """A weights file from its path or a shipped preset's name; raises WeightsError."""
    for candidate in (shipped(name_or_path), Path(name_or_path)):
        if candidate.is_file():
            return candidate
    known = sorted(path.stem for path in Path(__file__).parent.glob("*.safetensors"))
    raise WeightsError(
        f"{name_or_path!r} is neither a weights file nor one of the shipped: {', '.join(known)}"
    )


def save(path: Path, weights: Weights) -> None:
    """Writes to a temporary name and renames, so that a failure leaves the old file whole."""
    metadata = {
        "format": FORMAT,
        "config": json.dumps(weights.config.to_dict()),
        "calibration": json.dumps(vars(weights.calibration)),
        "provenance": json.dumps(weights.provenance),
    }
    metadata["checksum"] = _seal(metadata, weights.tensors)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    save_file({k: v.contiguous() for k, v in weights.tensors.items()}, temporary, metadata)
    temporary.replace(path)


def load(path: Path) -> Weights:
    """Reads a weights file without running anything in it.

    Half-precision tensors are returned as float32.

    Raises:
        WeightsError: naming the file and what is wrong with it: too large, damaged, of another
            format, of an unknown config.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} does not exist")
    if path.stat().st_size > MAX_BYTES:
        raise WeightsError(f"{path} is larger than {MAX_BYTES // 10**6} MB")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from None
    if metadata.get("format") != FORMAT:
        raise WeightsError(f"{path} is not a weights file of this project ({FORMAT})")
    if metadata.pop("checksum", "") != _seal(metadata, tensors):
        raise WeightsError(f"{path} is damaged: its checksum does not fit its content")
    try:
        config = ModelConfig.from_dict(json.loads(metadata["config"]))
        calibration = Calibration.from_dict(json.loads(metadata["calibration"]))
        provenance = json.loads(metadata["provenance"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} has metadata that cannot be used: {error}") from None
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    weights = Weights(config, tensors, calibration, provenance)
    try:
        weights.check()
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    return weights


def _seal(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of the metadata and of the tensors' `checksum`."""
    text = json.dumps(metadata, sort_keys=True) + checksum(tensors)
    return hashlib.sha256(text.encode()).hexdigest()


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes, so that one flipped bit is noticed."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        kind = (name, str(tensors[name].dtype), tuple(tensors[name].shape))
        digest.update(repr(kind).encode())
        flat = tensors[name].detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
