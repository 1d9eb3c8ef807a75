"""The mLSTM in three forms that give the same result: parallel, chunkwise, recurrent.

The memory of one head is a matrix C, a normaliser n and a stabiliser m. With scaled keys
k' = k / sqrt(d), input gate exp(i) and forget gate sigmoid(f) (xLSTM, arXiv 2405.04517, eq. 19-27):

    m_t = max(log sigmoid(f_t) + m_{t-1}, i_t)
    C_t = exp(log sigmoid(f_t) + m_{t-1} - m_t) C_{t-1} + exp(i_t - m_t) k'_t v_t^T
    n_t = exp(log sigmoid(f_t) + m_{t-1} - m_t) n_{t-1} + exp(i_t - m_t) k'_t
    h_t = C_t^T q_t / max(|n_t . q_t|, exp(-m_t))

All forms take q, k, v (B, H, S, D), the gates' pre-activations i, f (B, H, S) and the state before
the first token, and return h (B, H, S, D) and the state after the last. Gates are computed in
float32 at least; the matrix products run in the type of q.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EMPTY = -1e30
"""log of the weight of an empty memory: exp(EMPTY - m) is exactly 0 for every gate's value."""

FORGET_NOTHING = 1e4
"""A forget gate's pre-activation whose log sigmoid is exactly 0."""


class MlstmState(NamedTuple):
    """What a cell remembers: C (B, H, D, D), n (B, H, D), m (B, H)."""

    C: Tensor
    n: Tensor
    m: Tensor

    @classmethod
    def empty(cls, q: Tensor) -> MlstmState:
        """The state before any token, for queries (B, H, S, D)."""
        batch, heads, _, dim = q.shape
        dtype = gate_dtype(q)
        return cls(
            q.new_zeros(batch, heads, dim, dim, dtype=dtype),
            q.new_zeros(batch, heads, dim, dtype=dtype),
            q.new_full((batch, heads), EMPTY, dtype=dtype),
        )


def merged(one: MlstmState, other: MlstmState, weight: Tensor) -> MlstmState:
    """What holds all that both hold: the sum of the C and of the n, the other's times ``weight``.

    Args:
        one: (B, ...).
        other: (B, ...).
        weight: (B,), 0 or more.
    """
    other_m = other.m + torch.log(weight.to(one.m.dtype))[:, None]
    m = torch.maximum(one.m, other_m).detach()  # see `_written`
    of_one, of_other = torch.exp(one.m - m), torch.exp(other_m - m)
    C = of_one[..., None, None] * one.C + of_other[..., None, None] * other.C
    return MlstmState(C, of_one[..., None] * one.n + of_other[..., None] * other.n, m)


def gate_dtype(q: Tensor) -> torch.dtype:
    """float32, or float64 where the inputs are."""
    return torch.promote_types(q.dtype, torch.float32)


def log_sigmoid(x: Tensor) -> Tensor:
    """log(1 / (1 + exp(-x))), finite for every x in any runtime: as the logarithm of a sigmoid,
    which is how exporters write `F.logsigmoid`, it is not."""
    return -F.softplus(-x, threshold=40.0)


def mlstm_recurrent(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: MlstmState | None = None
) -> tuple[Tensor, MlstmState]:
    """Token by token, straight from the equations: the form the others are tested against."""
    dtype = gate_dtype(q)
    C, n, m = state or MlstmState.empty(q)
    q, v, k = q.to(dtype), v.to(dtype), k.to(dtype) / q.shape[-1] ** 0.5
    log_f, i = log_sigmoid(f.to(dtype)), i.to(dtype)
    outputs = []
    for t in range(q.shape[2]):
        m_new = torch.maximum(log_f[:, :, t] + m, i[:, :, t])
        keep = torch.exp(log_f[:, :, t] + m - m_new)[..., None]
        write = torch.exp(i[:, :, t] - m_new)[..., None]
        C = keep[..., None] * C + write[..., None] * k[:, :, t, :, None] * v[:, :, t, None, :]
        n = keep * n + write * k[:, :, t]
        m = m_new
        reading = torch.einsum("bhd,bhde->bhe", q[:, :, t], C)
        weight = (n * q[:, :, t]).sum(-1).abs()
        outputs.append(reading / torch.maximum(weight, torch.exp(-m))[..., None])
    return torch.stack(outputs, dim=2), MlstmState(C, n, m)


def _written(k: Tensor, v: Tensor, source: Tensor) -> MlstmState:
    """What tokens of log-weights ``source`` (B, H, S) write: the sums of the equations of C and
    n, relative to exp(m)."""
    # The sums times exp(m) do not depend on the stabiliser m, so neither does its gradient.
    m = source.amax(dim=-1).detach()
    written = k * torch.exp(source - m[..., None])[..., None].to(k.dtype)
    C = (written.transpose(-1, -2) @ v).to(source.dtype)
    return MlstmState(C, written.sum(2, dtype=source.dtype), m)


def _read(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, source: Tensor, state: MlstmState | None
) -> Tensor:
    """h of all tokens: token t reads token s <= t with log-weight decay_t + source_s, and the
    state before with decay_t + m_0."""
    length = q.shape[2]
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    earlier = source[..., None, :].masked_fill(later, EMPTY)
    peak = earlier.amax(dim=-1).detach()
    if state is not None:
        peak = torch.maximum(peak, state.m[..., None].detach())
    scores = (q @ k.transpose(-1, -2)) * torch.exp(earlier - peak[..., None]).to(q.dtype)
    reading = (scores @ v).to(source.dtype)
    weight = scores.sum(-1, dtype=source.dtype)
    if state is not None:
        kept = torch.exp(state.m[..., None] - peak)
        reading = reading + kept[..., None] * (q @ state.C.to(q.dtype)).to(source.dtype)
        of_state = (q @ state.n[..., None].to(q.dtype))[..., 0]
        weight = weight + kept * of_state.to(source.dtype)
    return reading / torch.maximum(weight.abs(), torch.exp(-decay - peak))[..., None]


def mlstm_parallel(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: MlstmState | None = None
) -> tuple[Tensor, MlstmState]:
    """All tokens at once: quadratic in S, no loop.

    Unrolled, token t reads token s <= t with log-weight F_t - F_s + i_s, where F is the running
    sum of the log forget gates, and the state before with F_t + m_0.
    """
    k = k / q.shape[-1] ** 0.5
    decay = torch.cumsum(log_sigmoid(f.to(gate_dtype(q))), dim=-1)  # F (B, H, S)
    source = i.to(decay.dtype) - decay
    h = _read(q, k, v, decay, source, state)
    last = _written(k, v, source)
    if state is not None:
        m = torch.maximum(last.m, state.m.detach())
        new, old = torch.exp(last.m - m), torch.exp(state.m - m)
        C = new[..., None, None] * last.C + old[..., None, None] * state.C
        last = MlstmState(C, new[..., None] * last.n + old[..., None] * state.n, m)
    return h, MlstmState(last.C, last.n, last.m + decay[..., -1])


def mlstm_chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: MlstmState | None = None,
    chunk: int = 64,
) -> tuple[Tensor, MlstmState]:
    """Parallel within chunks, a short sum between them: linear in S for a fixed chunk.

    First what each chunk writes, all chunks at once; from that the state before each chunk; then
    all chunks read at once. A shorter last chunk is filled with tokens that write nothing.
    """
    heads, length, dim = q.shape[1:]
    if length == 0:
        raise ValueError("an mLSTM needs at least one token")
    if length <= chunk:
        return mlstm_parallel(q, k, v, i, f, state)
    fill = -length % chunk
    if fill:
        q, k, v = (F.pad(part, (0, 0, 0, fill)) for part in (q, k, v))
        i = F.pad(i.to(gate_dtype(i)), (0, fill), value=EMPTY)
        f = F.pad(f, (0, fill), value=FORGET_NOTHING)
    count = (length + fill) // chunk

    def chunks(part: Tensor) -> Tensor:  # (B, H, S, ...) -> (B, H * count, chunk, ...)
        out: Tensor = part.unflatten(2, (count, chunk)).flatten(1, 2)
        return out

    def by_chunk(part: Tensor) -> Tensor:  # (B, H * count, ...) -> (B, H, count, ...)
        out: Tensor = part.unflatten(1, (heads, count))
        return out

    q, k, v, i, f = (chunks(part) for part in (q, k / dim**0.5, v, i, f))
    decay = torch.cumsum(log_sigmoid(f.to(gate_dtype(q))), dim=-1)
    source = i.to(decay.dtype) - decay
    wrote = _written(k, v, source)

    # Before chunk c, what chunk j < c wrote weighs m_j - T_j + T_c in logarithm, and the first
    # state m_0 + T_c, where T_c is the log decay over all chunks before c; c = count is the end.
    total = torch.cumsum(by_chunk(decay[..., -1]), dim=-1)  # (B, H, count)
    total = F.pad(total, (1, 0))
    relative = by_chunk(wrote.m) - total[..., :-1]
    first = torch.full_like(total[..., :1], EMPTY) if state is None else state.m[..., None]
    entries = torch.cat([first, relative], dim=-1)  # (B, H, 1 + count)
    unseen = torch.ones(count + 1, count + 1, dtype=torch.bool, device=q.device).triu(1)
    entries = entries[..., None, :].masked_fill(unseen, EMPTY)  # (B, H, c, entry)
    m = entries.amax(dim=-1).detach()
    share = torch.exp(entries - m[..., None]).masked_fill(unseen, 0.0)
    C, n = by_chunk(wrote.C).flatten(3), by_chunk(wrote.n)  # (B, H, count, D * D or D)
    if state is None:
        share = share[..., 1:]
    else:
        C = torch.cat([state.C.flatten(2)[:, :, None], C], dim=2)
        n = torch.cat([state.n[:, :, None], n], dim=2)
    C, n, m = (share @ C).unflatten(-1, (dim, dim)), share @ n, m + total

    # split, and not two slices: their gradients are joined by one copy
    before, after = zip(*(part.split([count, 1], dim=2) for part in (C, n, m)), strict=True)
    h = _read(q, k, v, decay, source, MlstmState(*(part.flatten(1, 2) for part in before)))
    h = by_chunk(h).flatten(2, 3)[:, :, :length]
    return h, MlstmState(*(part[:, :, 0] for part in after))
