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


def gate_dtype(q: Tensor) -> torch.dtype:
    """float32, or float64 where the inputs are."""
    return torch.promote_types(q.dtype, torch.float32)


def mlstm_recurrent(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: MlstmState | None = None
) -> tuple[Tensor, MlstmState]:
    """Token by token, straight from the equations: the form the others are tested against."""
    dtype = gate_dtype(q)
    C, n, m = state or MlstmState.empty(q)
    q, v, k = q.to(dtype), v.to(dtype), k.to(dtype) / q.shape[-1] ** 0.5
    log_f, i = F.logsigmoid(f.to(dtype)), i.to(dtype)
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


def mlstm_parallel(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: MlstmState | None = None
) -> tuple[Tensor, MlstmState]:
    """All tokens at once: quadratic in S, no loop.

    Unrolled, token t reads token s <= t with log-weight D_ts = F_t - F_s + i_s, where F is the
    running sum of the log forget gates, and the state before with F_t + m_0.
    """
    dtype = gate_dtype(q)
    length = q.shape[2]
    k = k / q.shape[-1] ** 0.5
    i = i.to(dtype)
    decay = torch.cumsum(F.logsigmoid(f.to(dtype)), dim=-1)  # F (B, H, S)
    source = i - decay  # D_ts = decay_t + source_s
    start = state.m[..., None] if state is not None else torch.full_like(i[..., :1], EMPTY)
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    earlier = source[..., None, :].masked_fill(later, EMPTY)
    # m_t - F_t. The result does not depend on the stabiliser, so neither does its gradient.
    peak = torch.maximum(earlier.amax(dim=-1), start).detach()
    m = decay + peak
    scores = (q @ k.transpose(-1, -2)) * torch.exp(earlier - peak[..., None]).to(q.dtype)
    reading = (scores @ v).to(dtype)
    weight = scores.sum(-1, dtype=dtype)
    write = torch.exp(source - peak[..., -1:])[..., None]  # share of token s in the last state
    written = k * write.to(k.dtype)
    C = (written.transpose(-1, -2) @ v).to(dtype)
    n = written.sum(2, dtype=dtype)
    if state is not None:
        kept = torch.exp(start - peak)  # share of the state before, at every token
        reading = reading + kept[..., None] * (q @ state.C.to(q.dtype)).to(dtype)
        weight = weight + kept * (q @ state.n[..., None].to(q.dtype))[..., 0].to(dtype)
        C = C + kept[..., -1, None, None] * state.C
        n = n + kept[..., -1, None] * state.n
    h = reading / torch.maximum(weight.abs(), torch.exp(-m))[..., None]
    return h, MlstmState(C, n, m[..., -1])


def mlstm_chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: MlstmState | None = None,
    chunk: int = 64,
) -> tuple[Tensor, MlstmState]:
    """Parallel within chunks, recurrent between them: linear in S for a fixed chunk.

    The last chunk may be shorter.
    """
    outputs = []
    for at in range(0, q.shape[2], chunk):
        part = slice(at, at + chunk)
        h, state = mlstm_parallel(
            q[:, :, part], k[:, :, part], v[:, :, part], i[:, :, part], f[:, :, part], state
        )
        outputs.append(h)
    if state is None:
        raise ValueError("an mLSTM needs at least one token")
    return torch.cat(outputs, dim=2), state
