"""The cell and its parts against formulations with explicit matrices and torch's convolution."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vil_tracker_core.model.block import (
    Block,
    BlockDiagonal,
    CausalConv,
    CellState,
    DropPath,
    MlstmCell,
    TMoE,
    composed,
    dense,
)
from vil_tracker_core.model.mlstm import mlstm_recurrent
from vil_tracker_core.model.presets import ModelConfig, preset
from vil_tracker_core.model.tracker import count_parameters


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def disturbed(module: torch.nn.Module) -> torch.nn.Module:
    """In float64, each weight away from its start, so that every term counts."""
    torch.manual_seed(0)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return module


def matrix_of(layer: BlockDiagonal) -> Tensor:
    """The (inner, inner) matrix of a block-diagonal map."""
    return torch.block_diag(*layer.weight.unbind(0))


@pytest.mark.parametrize(
    ("inner", "block", "heads"), [(16, 4, 2), (12, 2, 3), (8, 1, 2), (8, 4, 1)]
)
def test_a_dense_matrix_a_head_is_the_block_diagonal_map(
    inner: int, block: int, heads: int
) -> None:
    layer = disturbed(BlockDiagonal(inner, block))
    matrices = dense(layer.weight, inner // heads)
    assert matrices.shape == (heads, inner // heads, inner // heads)
    assert torch.block_diag(*matrices.unbind(0)).equal(matrix_of(layer))


@given(rows=st.integers(1, 5), block=st.sampled_from([1, 2, 4]), count=st.integers(1, 6))
def test_composed_is_the_product_of_the_two_matrices(rows: int, block: int, count: int) -> None:
    layer = disturbed(BlockDiagonal(block * count, block))
    outer = noise(rows, block * count)
    wanted = outer @ matrix_of(layer)
    torch.testing.assert_close(composed(outer, layer.weight), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_causal_conv_is_torchs_convolution(kernel: int, length: int) -> None:
    layer = disturbed(CausalConv(6, kernel))
    x = noise(2, length, 6)
    out, tail = layer(x, None)
    padded = F.pad(x.transpose(1, 2), (kernel - 1, 0))
    wanted = F.conv1d(padded, layer.weight.T[:, None], layer.bias, groups=6)
    torch.testing.assert_close(out, wanted.transpose(1, 2), rtol=1e-12, atol=1e-12)
    assert tail.equal(padded.transpose(1, 2)[:, length:])


@given(lengths=st.lists(st.integers(1, 6), min_size=2, max_size=5))
@settings(max_examples=25)
def test_causal_conv_goes_on_from_its_tail(lengths: list[int]) -> None:
    layer = disturbed(CausalConv(3, 4))
    x = noise(1, sum(lengths), 3)
    whole, last = layer(x, None)
    tail, parts = None, []
    for piece in x.split(lengths, dim=1):
        out, tail = layer(piece, tail)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-14)
    assert tail is not None
    assert tail.equal(last)


def written_out(cell: MlstmCell, x: Tensor) -> Tensor:
    """ViL's cell, step by step with plain matrices."""
    inner = cell.down.weight.shape[1]
    up = x @ cell.up.weight.T
    x_inner, z = up[..., :inner], up[..., inner:]
    padded = F.pad(x_inner.transpose(1, 2), (cell.conv.weight.shape[0] - 1, 0))
    convolved = F.silu(
        F.conv1d(padded, cell.conv.weight.T[:, None], cell.conv.bias, groups=inner).transpose(1, 2)
    )
    q, k = convolved @ matrix_of(cell.q).T, convolved @ matrix_of(cell.k).T
    v = x_inner @ matrix_of(cell.v).T
    gates_of = torch.cat([q, k, v], -1)
    i, f = (
        (gates_of @ gate.weight.T + gate.bias).transpose(1, 2)
        for gate in (cell.input_gate, cell.forget_gate)
    )
    by_head = [torch.stack(part.chunk(cell.heads, dim=-1), dim=1) for part in (q, k, v)]
    h, _ = mlstm_recurrent(*by_head, i, f)
    h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    h = torch.cat(list(h.unbind(1)), dim=-1) * cell.norm + cell.skip * convolved
    return (h * F.silu(z)) @ cell.down.weight.T


def test_cell_is_the_papers_cell(config: ModelConfig) -> None:
    cell = disturbed(MlstmCell(config))
    x = noise(2, 11, config.dim)
    torch.testing.assert_close(cell(x)[0], written_out(cell, x), rtol=1e-9, atol=1e-9)


def test_gates_start_as_published(config: ModelConfig) -> None:
    cell = MlstmCell(replace(config, heads=4))
    assert not cell.forget_gate.weight.any()
    assert not cell.input_gate.weight.any()
    torch.testing.assert_close(cell.forget_gate.bias.detach(), torch.tensor([3.0, 4.0, 5.0, 6.0]))


@given(length=st.integers(2, 24), data=st.data())
@settings(max_examples=20)
def test_a_cell_run_in_two_parts_equals_one_run(
    config: ModelConfig, length: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(1, length - 1))
    cell = disturbed(MlstmCell(config))
    x = noise(2, length, config.dim, seed=length)
    whole, last = cell(x)
    first, state = cell(x[:, :at])
    second, end = cell(x[:, at:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-9, atol=1e-9)
    for one, other in zip(flat(end), flat(last), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def flat(state: CellState) -> tuple[Tensor, ...]:
    return (*state.memory, state.conv_tail)


def test_a_later_token_never_changes_an_earlier_output(config: ModelConfig) -> None:
    block = disturbed(Block(config, config.depth - 1))
    x = noise(1, 12, config.dim)
    before, _ = block(x)
    x[:, 5:] += 1.0
    after, _ = block(x)
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=0, atol=1e-12)
    assert (after[:, 5:] - before[:, 5:]).abs().amin(dim=2).min() > 0


def test_block_is_residual(config: ModelConfig) -> None:
    """With the layer scale and the MLP's outputs at 0 a block does nothing."""
    block = disturbed(Block(config, config.depth - 1))
    x = noise(1, 6, config.dim)
    with torch.no_grad():
        block.scale.zero_()
        for expert in (block.mlp.shared, *block.mlp.experts):
            expert.down.weight.zero_()
    assert block(x)[0].equal(x)


def test_only_the_last_blocks_carry_an_mlp(config: ModelConfig) -> None:
    has_mlp = [
        Block(replace(config, tmoe_blocks=2), i).mlp is not None for i in range(config.depth)
    ]
    assert has_mlp == [False, False, True, True]


def test_tmoe_is_the_gated_sum_of_its_experts() -> None:
    mlp = disturbed(TMoE(8, 3))
    x = noise(2, 5, 8)
    gates = torch.exp(x @ mlp.router.weight.T)
    gates = gates / gates.sum(-1, keepdim=True)
    torch.testing.assert_close(mlp.gates(x), gates)
    torch.testing.assert_close(mlp.gates(x).sum(-1), torch.ones(2, 5).double())

    def swiglu(expert: torch.nn.Module) -> Tensor:
        gate = x @ expert.gate.weight.T
        return (gate * torch.sigmoid(gate) * (x @ expert.up.weight.T)) @ expert.down.weight.T

    wanted = swiglu(mlp.shared)
    for index, expert in enumerate(mlp.experts):
        wanted = wanted + gates[..., index, None] * swiglu(expert)
    torch.testing.assert_close(mlp(x), wanted, rtol=1e-12, atol=1e-12)


def test_the_shared_expert_can_be_frozen_alone() -> None:
    mlp = disturbed(TMoE(8, 3))
    mlp.shared.requires_grad_(False)
    before = {name: value.clone() for name, value in mlp.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in mlp.parameters() if p.requires_grad], lr=1.0)
    mlp(noise(2, 5, 8)).square().sum().backward()
    optimizer.step()
    moved = {name for name, value in mlp.state_dict().items() if not value.equal(before[name])}
    assert moved == {name for name in before if not name.startswith("shared.")}


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25)
    out = layer(torch.ones(4000, 2, 3))
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert out.flatten(1).std(dim=1).max() == 0
    assert out.mean() == pytest.approx(1.0, abs=0.05)
    x = noise(3, 2)
    assert layer.eval()(x) is x


def test_drop_path_grows_linearly_with_depth(config: ModelConfig) -> None:
    deep = replace(config, drop_path=0.3)
    rates = [Block(deep, index).drop_path.rate for index in range(4)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(("index", "millions"), [(0, 0.92), (23, 6.23)])
def test_parameters_of_the_reference_blocks(index: int, millions: float) -> None:
    with torch.device("meta"):
        block = Block(preset("vil_s"), index)
    assert count_parameters(block) / 1e6 == pytest.approx(millions, rel=0.01)
