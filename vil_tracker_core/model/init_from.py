"""Starts a net from published weights: ViL's (Vision-LSTM, arXiv 2406.04303), and the way back; and
FEAR-XS's, of which a mobile stem takes the trunk (see mobile.py) and a matcher what follows it.

ViL's published net of version 1 is made of our block without layer scale and MLP: even blocks scan
from the top left, odd ones from the bottom right. Three things are stored in another form:

- a norm's weight as its distance from 1;
- the causal convolution as (channels, 1, taps), ours is (taps, channels);
- one grid of positions (1, rows, columns, dim); ours are a grid for each region, flattened, and
  each is the published grid resampled in 2-D.

Three spellings of the same names are read: `VisionLSTM` (version 1), `VisionLSTM2` (version 2, in
pairs of blocks) and the training checkpoints of both (`xlstm.blocks.N.xlstm...`). Version 2 as
published has biases in its maps and norms and a 2-D convolution, for which our block has no place:
they are left, and what is taken is a weaker start than version 1.

One thing differs in any case: our stem normalises each token, the published one does not.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vil_tracker_core.model.matching import matcher_from_convolutions
from vil_tracker_core.model.mobile import trunk_from_convolutions
from vil_tracker_core.model.presets import ModelConfig
from vil_tracker_core.model.tracker import ViLTracker

MAX_BYTES = 1_000_000_000
"""Larger checkpoints are refused before they are read; ViL-B has 350 MB."""

POSITIONS = "pos_embed.embed"

FIRST_CONVOLUTION = "convolution 1.weight"
"""What `read_checkpoint` calls the first tensor of an ONNX network."""

CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; "
    "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    "d = {k: v.contiguous().clone() for k, v in d.get('state_dict', d).items()}; "
    "save_file(d, sys.argv[2])"
)
"""Python that turns a checkpoint of torch.save into safetensors without running code of it."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and what is wrong."""


class Form(NamedTuple):
    """How a published tensor becomes ours, and back."""

    ours: Callable[[Tensor], Tensor]
    published: Callable[[Tensor], Tensor]


SAME = Form(lambda t: t, lambda t: t)
NORM = Form(lambda t: t + 1, lambda t: t - 1)
CONV = Form(lambda t: t[:, 0].t(), lambda t: t.t()[:, None])

WHOLE = {
    "patch_embed.proj.weight": ("backbone.embedding.stem.weight", SAME),
    "patch_embed.proj.bias": ("backbone.embedding.stem.bias", SAME),
    "legacy_norm.weight": ("backbone.norm.weight", NORM),
}
"""Published name (of version 1) -> ours."""

BLOCK = {
    "norm.weight": ("norm.weight", NORM),
    "layer.proj_up.weight": ("cell.up.weight", SAME),
    "layer.conv1d.conv.weight": ("cell.conv.weight", CONV),
    "layer.conv1d.conv.bias": ("cell.conv.bias", SAME),
    "layer.q_proj.weight": ("cell.q.weight", SAME),
    "layer.k_proj.weight": ("cell.k.weight", SAME),
    "layer.v_proj.weight": ("cell.v.weight", SAME),
    "layer.mlstm_cell.igate.weight": ("cell.input_gate.weight", SAME),
    "layer.mlstm_cell.igate.bias": ("cell.input_gate.bias", SAME),
    "layer.mlstm_cell.fgate.weight": ("cell.forget_gate.weight", SAME),
    "layer.mlstm_cell.fgate.bias": ("cell.forget_gate.bias", SAME),
    "layer.mlstm_cell.outnorm.weight": ("cell.norm", NORM),
    "layer.learnable_skip": ("cell.skip", SAME),
    "layer.proj_down.weight": ("cell.down.weight", SAME),
}
"""The same within `blocks.N.` of the published net and `backbone.blocks.N.` of ours."""


@dataclass(frozen=True)
class Report:
    """What became of a checkpoint.

    Attributes:
        taken: published name, as the file spells it -> our names.
        left: published name -> why our net does not take it.
        fresh: our tensors that are not in the checkpoint and keep the values they had.
    """

    taken: dict[str, tuple[str, ...]]
    left: dict[str, str]
    fresh: tuple[str, ...]

    def rows(self) -> list[tuple[str, str, int]]:
        """(published, ours or why not, tensors), the same tensor of all blocks in one row."""
        lines = [(name, f"-> {' and '.join(ours)}") for name, ours in self.taken.items()]
        lines += [(name, f"not taken: {why}") for name, why in self.left.items()]
        lines += [("not in the checkpoint", _part(name)) for name in self.fresh]
        counts: dict[tuple[str, str], int] = {}
        for name, fate in lines:
            row = (_any_block(name), _any_block(fate))
            counts[row] = counts.get(row, 0) + 1
        return [(name, fate, count) for (name, fate), count in counts.items()]


def _any_block(name: str) -> str:
    return re.sub(r"(blocks\.|trunk\.|convolution )\d+\.", r"\1N.", name)


def _part(name: str) -> str:
    """The part of our net that a tensor belongs to, where the published net has no such part."""
    return re.sub(r"^(film|centre_head|uncertainty_head|.*\.(?:mlp|stem))\..*", r"\1.*", name)


def key_map(config: ModelConfig) -> dict[str, tuple[str, Form]]:
    """Published name (of version 1) -> our name and the form, for every tensor but positions."""
    names = {
        published: place
        for published, place in WHOLE.items()
        if config.stem == "patch" or not published.startswith("patch_embed.")
    }
    for index in range(config.depth):
        for published, (ours, form) in BLOCK.items():
            names[f"blocks.{index}.{published}"] = (f"backbone.blocks.{index}.{ours}", form)
    return names


def spelled_as_version_1(name: str, paired: bool) -> str:
    """A published name as `VisionLSTM` spells it.

    Args:
        name: in any of the spellings.
        paired: whether the checkpoint is `VisionLSTM2`'s, whose `norm` is what version 1 calls
            `legacy_norm`, and the other way round.
    """
    if paired:
        swapped = {"norm": "legacy_norm", "legacy_norm": "norm"}
        name = re.sub(r"^(norm|legacy_norm)\.", lambda found: f"{swapped[found[1]]}.", name)
        for half, direction in enumerate(("rowwise_from_top_left", "rowwise_from_bot_right")):
            pair = re.match(rf"blocks\.(\d+)\.{direction}\.(.*)", name)
            if pair:
                name = f"blocks.{2 * int(pair[1]) + half}.{pair[2]}"
        return name.replace(".layer.conv.", ".layer.conv1d.")
    name = name.removeprefix("xlstm.").replace("post_blocks_norm.", "legacy_norm.")
    return name.replace(".xlstm_norm.", ".norm.").replace(".xlstm.", ".layer.")


def resampled(positions: Tensor, grid: int) -> Tensor:
    """Positions (1, rows, columns, dim) on another square grid, (1, grid * grid, dim)."""
    if positions.shape[1:3] != (grid, grid):
        planes = positions.permute(0, 3, 1, 2)
        planes = F.interpolate(planes, (grid, grid), mode="bicubic", align_corners=False)
        positions = planes.permute(0, 2, 3, 1)
    return positions.flatten(1, 2)


def from_published(
    tensors: Mapping[str, Tensor], model: ViLTracker
) -> tuple[dict[str, Tensor], Report]:
    """The net's tensors with what a published checkpoint holds put in their place.

    Args:
        tensors: of `read_checkpoint`: a ViL's in any of the three spellings, or a FEAR-XS's.
        model: gives the names, the shapes and the values of what is not taken; it is not changed.

    Returns:
        all tensors of the net, and the report.

    Raises:
        CheckpointError: where no block fits, or a tensor has another shape than ours.
    """
    if FIRST_CONVOLUTION in tensors:
        return _from_convolutions(tensors, model)
    config = model.config
    names = key_map(config)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    paired = any(".rowwise_from_" in name for name in tensors)
    taken: dict[str, tuple[str, ...]] = {}
    left: dict[str, str] = {}
    for name, tensor in tensors.items():
        canonical = spelled_as_version_1(name, paired)
        if canonical == POSITIONS:
            if tensor.dim() != 4 or tensor.shape[0] != 1 or tensor.shape[3] != config.dim:
                raise _misfit(name, tensor, config, f"(1, rows, columns, {config.dim})")
            if 0 in tensor.shape:
                raise CheckpointError(f"{name} is empty")
            for ours, grid in _positions(config).items():
                state[ours] = resampled(tensor.to(state[ours].dtype), grid).clone()
            taken[name] = tuple(_positions(config))
        elif canonical in names:
            ours, form = names[canonical]
            expected = form.published(state[ours]).shape
            if tensor.shape != expected:
                raise _misfit(name, tensor, config, str(tuple(expected)))
            state[ours] = form.ours(tensor.to(state[ours].dtype)).contiguous().clone()
            taken[name] = (ours,)
        else:
            left[name] = _why_left(canonical, config)
    filled = {ours for places in taken.values() for ours in places}
    if not any(ours.startswith("backbone.blocks.") for ours in filled):
        raise CheckpointError(
            f"no block of a published ViL is among its {len(tensors)} tensors {sorted(tensors)[:3]}"
        )
    fresh = tuple(ours for ours in state if ours not in filled)
    return state, Report(taken, left, fresh)


def _from_convolutions(
    tensors: Mapping[str, Tensor], model: ViLTracker
) -> tuple[dict[str, Tensor], Report]:
    """`from_published` for an ONNX network that begins with the trunk of a mobile stem and, where
    the net has a matcher, goes on with that."""
    config, embedding = model.config, model.backbone.embedding
    if config.stem != "mobile":
        raise CheckpointError(
            f"an ONNX network starts a stem 'mobile', that of {config.name} is {config.stem!r}: "
            "choose another preset"
        )
    try:
        trunk = trunk_from_convolutions(tensors)
        names = {f"stem.trunk.{ours}": published for ours, published in trunk.items()}
        if embedding.matcher is not None:
            first = 1 + sum(ours.endswith(".weight") for ours in trunk)
            matcher = matcher_from_convolutions(tensors, first, embedding.matcher)
            names |= {f"matcher.{ours}": published for ours, published in matcher.items()}
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    taken: dict[str, tuple[str, ...]] = {}
    for name, published in names.items():
        ours = f"backbone.embedding.{name}"
        state[ours] = tensors[published].to(state[ours].dtype)
        taken[published] = (ours,)
    left = {name: "beyond what the net has of it" for name in tensors if name not in taken}
    fresh = tuple(name for name in state if (name,) not in taken.values())
    return state, Report(taken, left, fresh)


def _positions(config: ModelConfig) -> dict[str, int]:
    """Our tensors of positions -> the side of their grid."""
    return {
        "backbone.embedding.template_position": config.template_grid,
        "backbone.embedding.search_position": config.search_grid,
    }


def _misfit(name: str, tensor: Tensor, config: ModelConfig, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is {tuple(tensor.shape)}, preset {config.name} takes {expected}: choose a preset "
        "of the checkpoint's size"
    )


def _why_left(canonical: str, config: ModelConfig) -> str:
    block = re.match(r"blocks\.(\d+)\.", canonical)
    if block and int(block[1]) >= config.depth:
        return f"the preset has {config.depth} blocks"
    if block and ".conv1d." in canonical:
        return "2-D convolution: ours is causal"
    if canonical.endswith(".bias") and (block or canonical.startswith("legacy_norm.")):
        return "ours has no bias there"
    if canonical.startswith("patch_embed."):
        return f"the preset's stem is {config.stem!r}"
    if canonical.startswith(("head.", "norm.")):
        return "classifier"
    return "unknown name"


def to_published(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The backbone's tensors by the names and in the forms of `VisionLSTM`.

    The positions are the search region's. What the published net has no place for (token types,
    the stem's norm, layer scale, MLPs, FiLM, heads) is not in it, and neither is a classifier.
    """
    published = {
        name: form.published(state[ours]).contiguous().clone()
        for name, (ours, form) in key_map(config).items()
    }
    grid = config.search_grid
    positions = state["backbone.embedding.search_position"].unflatten(1, (grid, grid))
    return {POSITIONS: positions.clone(), **published}


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a published checkpoint: by their names in safetensors; of an ONNX network the
    convolutions' in its order, as `convolution 1.weight`, `convolution 1.bias` and so on.

    Raises:
        CheckpointError: naming the file: missing, too large, damaged, or a pickle, which is never
            read, as unpickling runs code that the file brings.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_BYTES // 10**6} MB")
    if path.suffix == ".onnx":
        return _convolutions(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        with path.open("rb") as plain:
            start = plain.read(4)
        if start[:1] != b"\x80" and start != b"PK\x03\x04":  # torch.save, before 1.6 and since
            raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from None
    target = shlex.quote(str(path.with_suffix(".safetensors")))
    raise CheckpointError(
        f"{path} is a pickle, which can run code as it is read, so it is not read here; make "
        f'safetensors of it with: python -c "{CONVERT}" {shlex.quote(str(path))} {target}'
    )


def _convolutions(path: Path) -> dict[str, Tensor]:
    """`read_checkpoint` of an ONNX network."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
        arrays = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    except (DecodeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable ONNX network: {error}") from None
    found: dict[str, Tensor] = {}
    count = 0
    for node in graph.node:
        if node.op_type == "Conv":
            count += 1
            for part, name in zip(("weight", "bias"), node.input[1:], strict=False):
                if name in arrays:
                    found[f"convolution {count}.{part}"] = torch.from_numpy(arrays[name].copy())
    if not found:
        raise CheckpointError(f"{path} holds no convolution")
    return found
