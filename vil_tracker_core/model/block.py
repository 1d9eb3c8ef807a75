"""The mLSTM cell with its projections, the TMoE-MLP, and the residual block around them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vil_tracker_core.model.mlstm import MlstmState, mlstm_chunkwise
from vil_tracker_core.model.presets import ModelConfig

WIDEST = 96
"""Bound of the matrices into which block-diagonal maps are gathered: wide enough for a fast
product, narrow enough for few zeros."""


class CellState(NamedTuple):
    """What a cell hands on: its matrix memory and the last inputs of its causal convolution."""

    memory: MlstmState
    conv_tail: Tensor  # (B, conv_kernel - 1, inner)


class Norm(nn.Module):
    """LayerNorm over the last axis, with a weight and no bias."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.dim,), self.weight, None, eps=1e-5)


class BlockDiagonal(nn.Module):
    """The weights of a linear map of ``inner`` channels in independent blocks of ``block``
    neighbouring ones: (inner / block, block out, block in), as published ViL weights have them.

    It has no forward pass: `MlstmCell` composes such maps with what follows them.
    """

    def __init__(self, inner: int, block: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inner // block, block, block))
        nn.init.normal_(self.weight, std=math.sqrt(2 / (5 * block)))


def dense(blocks: Tensor, width: int) -> Tensor:
    """Blocks (N, b, b) on the diagonals of matrices (N * b / width, width, width), zero elsewhere.

    Multiplied by such matrices, a few zeros too many cost far less than many tiny products.
    """
    diagonal = torch.eye(width // blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    grouped = blocks.unflatten(0, (-1, len(diagonal)))
    spread = diagonal[:, None, :, None] * grouped[:, :, :, None]
    matrices: Tensor = spread.flatten(3, 4).flatten(1, 2)
    return matrices


def group_width(channels: int, block: int) -> int:
    """The widest matrices, of at most `WIDEST`, that divide ``channels`` and hold whole blocks."""
    return max(w for w in range(block, max(WIDEST, block) + 1, block) if channels % w == 0)


def composed(outer: Tensor, blocks: Tensor) -> Tensor:
    """The matrix (R, N * b) of ``outer`` (R, N * b) after the blocks (N, b, b)."""
    parts = outer.unflatten(-1, blocks.shape[:2])
    matrix: Tensor = (parts[..., None] * blocks).sum(-2).flatten(-2)
    return matrix


class CausalConv(nn.Module):
    """Depthwise causal convolution along the tokens of (B, S, C), continued from a tail."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(kernel, channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.uniform_(self.weight, -1 / math.sqrt(kernel), 1 / math.sqrt(kernel))

    def forward(self, x: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor]:
        kernel, length = self.weight.shape[0], x.shape[1]
        if tail is None:
            tail = x.new_zeros(x.shape[0], kernel - 1, x.shape[2])
        padded = torch.cat([tail.to(x.dtype), x], dim=1)
        weight = self.weight.to(x.dtype)
        out = padded[:, :length] * weight[0] + self.bias.to(x.dtype)
        for tap in range(1, kernel):
            out = out + padded[:, tap : tap + length] * weight[tap]
        return out, padded[:, length:]


class MlstmCell(nn.Module):
    """ViL's mLSTM cell (arXiv 2406.04303): (B, S, dim) and a state -> the same.

    up-projection to x and z; q and k from SiLU(conv(x)), v from x, each by its block-diagonal
    map; gates from (q, k, v); heads of matrix memory; per-head normalisation; a learnable skip of
    the convolved x; gate SiLU(z); down-projection.

    The maps are linear, so they are composed before any token is touched: with c = SiLU(conv(x)),
    q_t . k_s = c_t . (Q^T K c_s), and a gate on (q, k, v) is one on (c, x). Hence c itself serves
    as the query, and the state's C and n are those of the keys Q^T K c.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, inner = config.dim, config.inner
        self.heads, self.head_dim = config.heads, inner // config.heads
        self.chunk = config.chunk
        self.group = group_width(self.head_dim, config.qkv_block)
        self.up = nn.Linear(dim, 2 * inner, bias=False)
        self.conv = CausalConv(inner, config.conv_kernel)
        self.q = BlockDiagonal(inner, config.qkv_block)
        self.k = BlockDiagonal(inner, config.qkv_block)
        self.v = BlockDiagonal(inner, config.qkv_block)
        self.input_gate = nn.Linear(3 * inner, config.heads)
        self.forget_gate = nn.Linear(3 * inner, config.heads)
        self.norm = nn.Parameter(torch.ones(inner))
        self.skip = nn.Parameter(torch.ones(inner))
        self.down = nn.Linear(inner, dim, bias=False)

        nn.init.normal_(self.up.weight, std=math.sqrt(2 / (5 * dim)))
        nn.init.normal_(self.down.weight, std=2 / config.depth / math.sqrt(dim))
        nn.init.zeros_(self.input_gate.weight)
        nn.init.normal_(self.input_gate.bias, std=0.1)
        nn.init.zeros_(self.forget_gate.weight)
        with torch.no_grad():
            self.forget_gate.bias.copy_(torch.linspace(3.0, 6.0, config.heads, device="cpu"))

    def _gates(self, convolved: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input and forget gates' pre-activations (B, H, S)."""
        weight = torch.cat([self.input_gate.weight, self.forget_gate.weight])
        bias = torch.cat([self.input_gate.bias, self.forget_gate.bias])
        on_q, on_k, on_v = weight.chunk(3, dim=-1)
        on_convolved = composed(on_q, self.q.weight) + composed(on_k, self.k.weight)
        gates = F.linear(convolved, on_convolved, bias)
        gates = gates + F.linear(x, composed(on_v, self.v.weight))
        i, f = gates.transpose(1, 2).chunk(2, dim=1)
        return i, f

    def _by_group(self, x: Tensor) -> Tensor:
        """(B, S, inner) by groups of channels, all samples' tokens in a row: (inner / group,
        B * S, group). So a map is one product a group: a broadcast one has a slow gradient."""
        groups: Tensor = x.flatten(0, 1).unflatten(-1, (-1, self.group)).transpose(0, 1)
        return groups

    def _by_head(self, groups: Tensor, batch: int) -> Tensor:
        """The groups' channels by heads: (B, H, S, D)."""
        heads = groups.unflatten(0, (self.heads, -1)).transpose(1, 2).flatten(2)
        by_head: Tensor = heads.unflatten(1, (batch, -1)).transpose(0, 1)
        return by_head

    def forward(self, x: Tensor, state: CellState | None = None) -> tuple[Tensor, CellState]:
        batch, length, _ = x.shape
        x, z = (F.linear(x, half) for half in self.up.weight.chunk(2))
        convolved, tail = self.conv(x, state.conv_tail if state else None)
        convolved = F.silu(convolved)
        i, f = self._gates(convolved, x)
        queries = self._by_group(convolved)
        keys = queries @ dense(self.k.weight.transpose(1, 2) @ self.q.weight, self.group)
        values = self._by_group(x) @ dense(self.v.weight.transpose(1, 2), self.group)
        q, k, v = (self._by_head(groups, batch) for groups in (queries, keys, values))
        h, memory = mlstm_chunkwise(q, k, v, i, f, state.memory if state else None, self.chunk)
        h = F.layer_norm(h, (self.head_dim,), eps=1e-5)  # each head on its own
        h = h.transpose(1, 2).reshape(batch, length, -1).to(x.dtype) * self.norm.to(x.dtype)
        h = h + self.skip.to(x.dtype) * convolved
        return self.down(h * F.silu(z)), CellState(memory, tail)


class SwiGLU(nn.Module):
    """down(SiLU(gate(x)) * up(x)), no biases."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class TMoE(nn.Module):
    """A shared expert (hidden 4x) plus experts (hidden 2x) under a dense softmax router.

    out = shared(x) + sum_k gate_k(x) expert_k(x). Training's second phase freezes the shared one.
    """

    def __init__(self, dim: int, experts: int) -> None:
        super().__init__()
        self.shared = SwiGLU(dim, 4 * dim)
        self.experts = nn.ModuleList(SwiGLU(dim, 2 * dim) for _ in range(experts))
        self.router = nn.Linear(dim, experts, bias=False)

    def gates(self, x: Tensor) -> Tensor:
        """(..., experts) router weights; they sum to 1."""
        logits: Tensor = self.router(x)
        return logits.softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gates(x)
        out: Tensor = self.shared(x)
        for index, expert in enumerate(self.experts):
            out = out + gates[..., index, None] * expert(x)
        return out


class DropPath(nn.Module):
    """Drops a residual branch for whole samples in training (stochastic depth)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class Block(nn.Module):
    """x + scale * cell(norm(x)); with a TMoE-MLP, then x + mlp(norm(x)) as well."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.norm = Norm(config.dim)
        self.cell = MlstmCell(config)
        self.scale = nn.Parameter(torch.ones(config.dim))
        self.drop_path = DropPath(config.drop_path * index / max(config.depth - 1, 1))
        has_mlp = index >= config.depth - config.tmoe_blocks
        self.mlp_norm = Norm(config.dim) if has_mlp else None
        self.mlp = TMoE(config.dim, config.experts) if has_mlp else None

    def forward(self, x: Tensor, state: CellState | None = None) -> tuple[Tensor, CellState]:
        y, state = self.cell(self.norm(x), state)
        x = x + self.drop_path(self.scale.to(y.dtype) * y)
        if self.mlp is not None and self.mlp_norm is not None:
            x = x + self.drop_path(self.mlp(self.mlp_norm(x)))
        return x, state
