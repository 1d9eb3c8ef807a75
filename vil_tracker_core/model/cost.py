"""What a net costs: its parameters by part, and the arithmetic of a track's start and of a frame.

Counted are the products that PyTorch runs, by its own `FlopCounterMode`: matrix products and
convolutions, zeros of a block-diagonal matrix included. One multiply and its add are one MAC and
two FLOPs. Element-wise work is not counted: norms, activations, gates, exponentials, the causal
depthwise convolution, the resampling of the context.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vil_tracker_core.model.block import Block
from vil_tracker_core.model.presets import ModelConfig
from vil_tracker_core.model.tracker import ViLTracker, count_parameters

BYTES_FP16 = 2
"""Bytes of a parameter in half precision."""

MAX_PARAMETERS = 50_000_000
MAX_BYTES_FP16 = 500_000_000
MAX_MACS = 20_000_000_000
"""The budget of a net; MAX_MACS is of a frame. The field says FLOPs and often means MACs: the
budget does, since the reference preset alone takes 33 G FLOPs (17 G MACs)."""

T = TypeVar("T")


@dataclass(frozen=True)
class Macs:
    """Multiply-adds by part; FLOPs are twice as many."""

    stem: int
    blocks: int
    film: int
    heads: int

    @property
    def total(self) -> int:
        return self.stem + self.blocks + self.film + self.heads

    def plus(self, other: Macs) -> Macs:
        """Both pieces of work, one after the other."""
        return Macs(
            self.stem + other.stem,
            self.blocks + other.blocks,
            self.film + other.film,
            self.heads + other.heads,
        )


@dataclass(frozen=True)
class Parameters:
    """Parameters by part.

    Attributes:
        mlstm_block: one block without an MLP; 0 where there is none.
        tmoe_block: one block with a TMoE-MLP; 0 where there is none.
        embedding: the stem, its norm, positions and token types.
        backbone: the embedding, all blocks and the last norm.
        film: the modulation; 0 where it is off.
        centre_head: score, offset and size.
        uncertainty_head: log-variances.
        whole: the net.
    """

    mlstm_block: int
    tmoe_block: int
    embedding: int
    backbone: int
    film: int
    centre_head: int
    uncertainty_head: int
    whole: int


@dataclass(frozen=True)
class Cost:
    """What a net of one config costs.

    Attributes:
        parameters: by part.
        init: work of a track's start, with one template.
        frame: work of a frame with what `init` left: all of the templates in scan `regional`,
            their embedding in scan `joint`, whose blocks run the template's tokens every time.
    """

    parameters: Parameters
    init: Macs
    frame: Macs

    @property
    def frame_uncached(self) -> Macs:
        """Work of a frame that computes its template anew."""
        return self.init.plus(self.frame)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; MACs and FLOPs side by side, each by part and in total."""
        work = {"init": self.init, "frame": self.frame, "frame_uncached": self.frame_uncached}
        whole, frame = self.parameters.whole, self.frame.total
        return {
            "parameters": whole,
            "parts": asdict(self.parameters),
            "bytes_fp16": BYTES_FP16 * whole,
            "macs": {name: {**asdict(macs), "total": macs.total} for name, macs in work.items()},
            "flops": {
                name: {part: 2 * count for part, count in asdict(macs).items()}
                | {"total": 2 * macs.total}
                for name, macs in work.items()
            },
            "film_adds": {
                "parameters": self.parameters.film,
                "parameters_share": added_share(self.parameters.film, whole),
                "flops": 2 * self.frame.film,
                "flops_share": added_share(self.frame.film, frame),
            },
            "budget": {
                "parameters": {"limit": MAX_PARAMETERS, "met": whole <= MAX_PARAMETERS},
                "bytes_fp16": {
                    "limit": MAX_BYTES_FP16,
                    "met": BYTES_FP16 * whole <= MAX_BYTES_FP16,
                },
                "macs": {"limit": MAX_MACS, "met": frame <= MAX_MACS},
            },
        }


def added_share(part: int, whole: int) -> float:
    """What a part adds to the rest of the whole, as a share of that rest."""
    return part / (whole - part)


def cost(config: ModelConfig) -> Cost:
    """The cost of a config's net. Nothing is computed and no memory is taken for it."""
    with torch.device("meta"), torch.no_grad():
        model = ViLTracker(config).eval()
        template = torch.empty(1, 1, 3, config.template_size, config.template_size)
        search = torch.empty(1, 3, config.search_size, config.search_size)
        motion, trust = torch.empty(1, 3), torch.empty(1)
        memory, init = _measured(model, lambda: model.start(template))
        _, frame = _measured(model, lambda: model.step(search, memory, motion, trust))
    return Cost(_parameters(model), init, frame)


def _measured(model: ViLTracker, run: Callable[[], T]) -> tuple[T, Macs]:
    """The result of a run of the net's methods, and its work by part.

    Modules that are called claim what is counted between their start and their end; the rest is
    FiLM's, whose work lies in methods.
    """
    backbone = model.backbone
    embedding = backbone.embedding
    comparing = [] if embedding.matcher is None else list(embedding.matcher.children())
    parts: dict[str, list[nn.Module]] = {
        "stem": [embedding.stem, *comparing],
        "blocks": list(backbone.blocks),
        "heads": [model.centre_head, model.uncertainty_head],
    }
    flops = dict.fromkeys(parts, 0)
    handles = []
    with FlopCounterMode(display=False) as counter:

        def claim(part: str, sign: int) -> Callable[..., None]:
            def hook(*_: object) -> None:
                flops[part] += sign * counter.get_total_flops()

            return hook

        for part, modules in parts.items():
            for module in modules:
                handles.append(module.register_forward_pre_hook(claim(part, -1)))
                handles.append(module.register_forward_hook(claim(part, +1)))
        result = run()
    for handle in handles:
        handle.remove()
    film = counter.get_total_flops() - sum(flops.values())
    return result, Macs(flops["stem"] // 2, flops["blocks"] // 2, film // 2, flops["heads"] // 2)


def _parameters(model: ViLTracker) -> Parameters:
    blocks = [block for block in model.backbone.blocks if isinstance(block, Block)]
    plain = [count_parameters(block) for block in blocks if block.mlp is None]
    tmoe = [count_parameters(block) for block in blocks if block.mlp is not None]
    return Parameters(
        mlstm_block=plain[0] if plain else 0,
        tmoe_block=tmoe[0] if tmoe else 0,
        embedding=count_parameters(model.backbone.embedding),
        backbone=count_parameters(model.backbone),
        film=count_parameters(model.film) if model.film is not None else 0,
        centre_head=count_parameters(model.centre_head),
        uncertainty_head=count_parameters(model.uncertainty_head),
        whole=count_parameters(model),
    )
