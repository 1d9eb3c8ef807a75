"""The three forms of the mLSTM against the paper's equations, written without a stabiliser."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vil_tracker_core.model.mlstm import (
    MlstmState,
    merged,
    mlstm_chunkwise,
    mlstm_parallel,
    mlstm_recurrent,
)

FORMS = {
    "recurrent": mlstm_recurrent,
    "parallel": mlstm_parallel,
    "chunkwise": partial(mlstm_chunkwise, chunk=5),
}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def inputs(
    length: int, seed: int = 0, batch: int = 2, heads: int = 2, dim: int = 3
) -> list[Tensor]:
    """q, k, v and the pre-activations i, f, float64; gates spread enough for all to matter."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    qkv = [draw(batch, heads, length, dim) for _ in range(3)]
    return [*qkv, 3 * draw(batch, heads, length), 3 * draw(batch, heads, length)]


def part(tensors: list[Tensor], start: int, stop: int) -> list[Tensor]:
    return [tensor[:, :, start:stop] for tensor in tensors]


def written_out(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """h, C, n by equations 19 to 27 of arXiv 2405.04517, one head and one token at a time."""
    batch, heads, length, dim = q.shape
    h = torch.zeros_like(q)
    memories = torch.zeros(batch, heads, dim, dim, dtype=q.dtype)
    normalisers = torch.zeros(batch, heads, dim, dtype=q.dtype)
    for b in range(batch):
        for head in range(heads):
            C, n = memories[b, head], normalisers[b, head]
            for t in range(length):
                write = math.exp(float(i[b, head, t]))
                keep = 1 / (1 + math.exp(-float(f[b, head, t])))
                key = k[b, head, t] / math.sqrt(dim)
                C = keep * C + write * torch.outer(key, v[b, head, t])
                n = keep * n + write * key
                read = q[b, head, t]
                h[b, head, t] = C.T @ read / max(abs(float(n @ read)), 1.0)
            memories[b, head], normalisers[b, head] = C, n
    return h, memories, normalisers


def raw(state: MlstmState) -> tuple[Tensor, Tensor]:
    """C and n without the stabiliser."""
    size = torch.exp(state.m)[..., None]
    return size[..., None] * state.C, size * state.n


def assert_same_state(a: MlstmState, b: MlstmState, atol: float = 1e-9) -> None:
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=atol)


@each_form
@given(length=st.integers(1, 40), seed=st.integers(0, 10**6))
@settings(max_examples=15)
def test_equals_the_equations(form, length: int, seed: int) -> None:
    given_inputs = inputs(length, seed, batch=1)
    h, state = form(*given_inputs)
    wanted, memory, normaliser = written_out(*given_inputs)
    torch.testing.assert_close(h, wanted, rtol=1e-9, atol=1e-9)
    C, n = raw(state)
    torch.testing.assert_close(C, memory, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(n, normaliser, rtol=1e-9, atol=1e-9)


@given(
    length=st.integers(1, 40),
    chunk=st.integers(1, 45),
    seed=st.integers(0, 10**6),
    before=st.integers(0, 6),
)
@settings(max_examples=60)
def test_all_forms_agree_for_any_length_chunk_and_state(
    length: int, chunk: int, seed: int, before: int
) -> None:
    given_inputs = inputs(length, seed)
    state = mlstm_recurrent(*inputs(before, seed + 1))[1] if before else None
    wanted, wanted_state = mlstm_recurrent(*given_inputs, state)
    for form in (mlstm_parallel, partial(mlstm_chunkwise, chunk=chunk)):
        h, last = form(*given_inputs, state)
        torch.testing.assert_close(h, wanted, rtol=1e-9, atol=1e-9)
        assert_same_state(last, wanted_state)


@each_form
@given(length=st.integers(2, 40), data=st.data())
@settings(max_examples=15)
def test_a_run_in_two_parts_equals_one_run(form, length: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(1, length - 1))
    whole = inputs(length, seed=length)
    h, last = form(*whole)
    first, state = form(*part(whole, 0, at))
    second, end = form(*part(whole, at, length), state)
    torch.testing.assert_close(torch.cat([first, second], 2), h, rtol=1e-9, atol=1e-9)
    assert_same_state(end, last)


@each_form
def test_no_token_sees_a_later_one(form) -> None:
    changed = inputs(12)
    before, _ = form(*changed)
    for tensor in changed:
        tensor[:, :, 7:] += 1.0
    after, _ = form(*changed)
    torch.testing.assert_close(after[:, :, :7], before[:, :, :7], rtol=0, atol=1e-12)
    assert not torch.allclose(after[:, :, 7:], before[:, :, 7:])


def test_gradients_agree_between_the_forms() -> None:
    """Also those of the state that comes in, and through the state that goes out."""
    start = mlstm_recurrent(*inputs(4, seed=9))[1]
    aim, aim_state = torch.randn(2, 2, 17, 3).double(), torch.randn(2, 2, 3, 3).double()

    def gradients(form) -> tuple[Tensor, ...]:
        leaves = [tensor.requires_grad_() for tensor in inputs(17)]
        state = MlstmState(*(tensor.detach().clone().requires_grad_() for tensor in start))
        h, end = form(*leaves, state)
        C, n = raw(end)
        total = (h * aim).sum() + (C * aim_state).sum() + n.sum()
        return torch.autograd.grad(total, [*leaves, *state])

    wanted = gradients(mlstm_recurrent)
    assert all(gradient.abs().max() > 1e-3 for gradient in wanted)
    for form in (mlstm_parallel, FORMS["chunkwise"]):
        for got, want in zip(gradients(form), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


@each_form
def test_gradients_agree_with_finite_differences(form) -> None:
    leaves = [tensor.requires_grad_() for tensor in inputs(7, batch=1, heads=1, dim=2)]
    assert torch.autograd.gradcheck(lambda *tensors: form(*tensors)[0], leaves)


@each_form
@given(
    gates=st.lists(
        st.tuples(
            st.one_of(st.sampled_from([-50.0, 0.0, 50.0]), st.floats(-50, 50, width=32)),
            st.one_of(st.sampled_from([-50.0, 0.0, 50.0]), st.floats(-50, 50, width=32)),
        ),
        min_size=1,
        max_size=20,
    )
)
@settings(max_examples=40)
def test_extreme_gates_stay_finite_in_float32(form, gates: list[tuple[float, float]]) -> None:
    q, k, v, _, _ = (tensor.float() for tensor in inputs(len(gates), batch=1, heads=1))
    i, f = torch.tensor(gates).T[:, None, None]
    leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v, i, f)]
    h, state = form(*leaves)
    assert all(torch.isfinite(tensor).all() for tensor in (h, *state))
    for gradient in torch.autograd.grad(h.sum(), leaves):
        assert torch.isfinite(gradient).all()


@each_form
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 50.0])
def test_equal_inputs_stay_finite(form, value: float) -> None:
    """Ties in every maximum, and a normaliser of 0 where the value is 0."""
    leaves = [torch.full_like(t, value, dtype=torch.float32) for t in inputs(11)]
    leaves = [tensor.requires_grad_() for tensor in leaves]
    h, _ = form(*leaves)
    assert torch.isfinite(h).all()
    for gradient in torch.autograd.grad(h.sum(), leaves):
        assert torch.isfinite(gradient).all()


@each_form
def test_a_closed_memory_gives_the_value_of_the_only_token(form) -> None:
    """One token, wide-open gate: h = v, up to the sign of q.k."""
    q, k, v, i, f = inputs(1)
    h, _ = form(q, k, v, i + 40, f)
    sign = torch.sign((q * k).sum(-1, keepdim=True))
    torch.testing.assert_close(h, sign * v, rtol=1e-9, atol=1e-9)


@each_form
def test_a_single_token_never_reads_an_empty_memory(form) -> None:
    """The start weighs nothing, whatever the gates: an explicit empty state changes no bit."""
    tensors = inputs(6)
    h, state = form(*tensors)
    same, same_state = form(*tensors, MlstmState.empty(tensors[0]))
    torch.testing.assert_close(same, h, rtol=1e-12, atol=1e-12)
    assert_same_state(same_state, state)


def bounded_error(form, dtype: torch.dtype) -> float:
    """Largest root-mean-square error of a form on inputs of ``dtype``, relative to the output's."""
    worst = 0.0
    for seed in range(5):
        tensors = [tensor.to(dtype) for tensor in inputs(40, seed, dim=16)]
        tensors[4] += 4  # forget gates as they are in a net
        wanted, _ = mlstm_recurrent(*(tensor.double() for tensor in tensors))
        got, _ = form(*tensors)
        error = (got.double() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
        worst = max(worst, float(error))
    return worst


@each_form
def test_float32_is_close(form) -> None:
    assert bounded_error(form, torch.float32) < 1e-4


@each_form
def test_bfloat16_is_within_its_resolution(form) -> None:
    """bfloat16 resolves 2^-8; where the normaliser nearly cancels, the quotient loses more."""
    assert bounded_error(form, torch.bfloat16) < 2**-4


def state_of(seed: int) -> MlstmState:
    return mlstm_recurrent(*inputs(7, seed))[1]


@given(seed=st.integers(0, 10**6), weights=st.lists(st.floats(0, 2), min_size=2, max_size=2))
@settings(max_examples=15)
def test_merged_memories_are_their_weighed_sum(seed: int, weights: list[float]) -> None:
    one, other = state_of(seed), state_of(seed + 1)
    weight = torch.tensor(weights, dtype=torch.float64)
    (C, n), (other_C, other_n) = raw(one), raw(other)
    found_C, found_n = raw(merged(one, other, weight))
    expected_C = C + weight[:, None, None, None] * other_C
    torch.testing.assert_close(found_C, expected_C, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found_n, n + weight[:, None, None] * other_n, rtol=1e-9, atol=1e-9)


def test_merging_adds_nothing_of_an_empty_memory_or_one_without_weight() -> None:
    one, other = state_of(0), state_of(1)
    weight = torch.ones(2, dtype=torch.float64)
    empty = MlstmState.empty(inputs(1)[0])
    assert_same_state(merged(one, other, 0 * weight), one)
    assert_same_state(merged(one, empty, weight), one)
    for found, expected in zip(raw(merged(empty, one, weight)), raw(one), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_merged_memory_has_the_sums_gradient() -> None:
    """Read by later tokens, with weights that one of the two outweighs and none at all."""
    q, k, v, i, f = inputs(3, seed=5)
    for weight in (torch.tensor([0.3, 40.0]).double(), torch.zeros(2).double()):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs(4, seed=6)]

        def read(*parts: Tensor, weight: Tensor = weight) -> Tensor:
            own = mlstm_recurrent(*inputs(2, seed=7))[1]
            state = merged(own, mlstm_parallel(*parts)[1], weight)
            return mlstm_parallel(q, k, v, i, f, state)[0]

        assert torch.autograd.gradcheck(read, leaves)


def test_gates_are_kept_in_float32_at_least() -> None:
    tensors = [tensor.bfloat16() for tensor in inputs(9)]
    for form in FORMS.values():
        h, state = form(*tensors)
        assert h.dtype == torch.float32
        assert {tensor.dtype for tensor in state} == {torch.float32}


def test_no_token_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        mlstm_chunkwise(*inputs(0))
