"""A GRU over sequences of different lengths, side by side, without padding."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import PackedSequence

from .recurrent import sigmoid, tanh


class Packing(NamedTuple):
    """S sequences of C events in all, side by side: all first events, the longest sequence's first, then all second
    ones, and so on."""

    event: np.ndarray
    """[C] int64 index of each event."""
    sequence: np.ndarray
    """[C] int64 number of the sequence that it is of."""
    last: np.ndarray
    """[C] bool: it is the last event of its sequence."""
    size: np.ndarray
    """[T] int64, sequences that have a first, second, ... event."""


def pack(first: np.ndarray, length: np.ndarray) -> Packing:
    """Sequences that begin at the events `first` [S] and are `length` [S] long, at least 1 each."""
    order = np.argsort(-length, kind="stable")
    size = np.searchsorted(-length[order], -np.arange(length.max(initial=0)))
    step = np.repeat(np.arange(len(size)), size)
    sequence = order[np.arange(len(step)) - np.repeat(np.cumsum(size) - size, size)]
    return Packing(first[sequence] + step, sequence, step + 1 == length[sequence], size)


def seeded_gru(units: int, generator: torch.Generator) -> nn.GRU:
    """One layer, its weights uniform within 1 / sqrt(units), as PyTorch's own, but from a generator."""
    # On no device first, because it would draw from the global generator.
    gru = nn.GRU(units, units, device="meta").to_empty(device="cpu")
    bound = 1 / math.sqrt(units)
    for parameter in gru.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return gru


def run_gru(gru: nn.GRU, inputs: Tensor, packing: Packing, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Outputs [C, H] for packed inputs [C, D], and the last one of each sequence [S, H].

    Sequences start from `initial` [S, H], or from zero.
    """
    order = torch.from_numpy(packing.sequence[: packing.size[0]]).to(inputs.device)
    if inputs.device.type == "cpu" and inputs.dtype == torch.float32:
        if initial is None:
            initial = inputs.new_zeros(len(order), gru.hidden_size)
        w_ih, w_hh, b_ih, b_hh = gru.all_weights[0]
        gates = nn.functional.linear(inputs, w_ih, b_ih)
        outputs: Tensor = _Unroll.apply(  # type: ignore[assignment]
            gates, w_hh, b_hh, initial[order], packing.size.tolist()
        )
        ends = np.flatnonzero(packing.last)
        return outputs, outputs[torch.from_numpy(ends[np.argsort(packing.sequence[ends])])]
    packed = PackedSequence(inputs, torch.from_numpy(packing.size), order, torch.argsort(order))
    result, last = gru(packed, None if initial is None else initial.unsqueeze(0))
    return result.data, last.squeeze(0)


class _Unroll(torch.autograd.Function):
    """The recurrence in float32 (Cho et al. 2014; the reset gate applied after the product, as `nn.GRU` has it).

    Autograd over single steps would record some twenty small operations a step; at a hundred sequences they, not the
    arithmetic, would be the cost. So each step is one product and one compiled loop.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, w_hh: Tensor, b_hh: Tensor, initial: Tensor, size: list[int]) -> Tensor:
        # Of every event: reset gate, update gate and what the state contributes to the candidate; the candidate; the
        # state before and after.
        active = torch.empty_like(gates)
        candidate, before, hidden = gates.new_empty(3, len(gates), w_hh.shape[1])
        before[: len(initial)] = initial
        arrays = [x.detach().numpy() for x in (gates, active, candidate, before, hidden)]
        start = 0
        for n, n_next in zip(size, [*size[1:], 0], strict=True):
            torch.addmm(b_hh, before[start : start + n], w_hh.t(), out=active[start : start + n])
            _activate(start, n, n_next, *arrays)
            start += n
        ctx.save_for_backward(active, candidate, before, w_hh)
        ctx.size = size
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_hidden: Tensor) -> tuple[Tensor | None, ...]:
        active, candidate, before, w_hh = ctx.saved_tensors
        # What flows into the sums of the state, which the reset gate scales a third of, and into those of the input.
        d_state, d_gates = torch.empty_like(active), torch.empty_like(active)
        dh, start = before.new_zeros(ctx.size[0], before.shape[1]), len(before)
        arrays = [x.detach().numpy() for x in (d_hidden.contiguous(), active, candidate, before, dh, d_state, d_gates)]
        for n in reversed(ctx.size):
            start -= n
            _differentiate(start, n, *arrays)
            dh[:n].addmm_(d_state[start : start + n], w_hh)
        return d_gates, torch.mm(d_state.t(), before), d_state.sum(0), dh, None


# Short loops, each over few arrays that might overlap, vectorise.
@njit(cache=True, error_model="numpy", fastmath={"contract"})
def _activate(start, n, n_next, gates, active, candidate, before, hidden):
    # From the state's sums in `active` to the step's activations and states, and the states before the next step.
    size = hidden.shape[1]
    for e in range(start, start + n):
        a, g, c, old, h = active[e], gates[e], candidate[e], before[e], hidden[e]
        update, contribution, g_candidate = a[size : 2 * size], a[2 * size :], g[2 * size :]
        for k in range(2 * size):
            a[k] = sigmoid(a[k] + g[k])
        for k in range(size):
            c[k] = tanh(g_candidate[k] + a[k] * contribution[k])
        for k in range(size):
            h[k] = c[k] + update[k] * (old[k] - c[k])
        if e - start < n_next:
            before[e + n] = h


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def _differentiate(start, n, d_hidden, active, candidate, before, dh, d_state, d_gates):
    # One step but for the product.
    one = np.float32(1)
    size = dh.shape[1]
    for b in range(n):
        e = start + b
        d, flows_in, c, old = dh[b], d_hidden[e], candidate[e], before[e]
        reset, update, contribution = active[e, :size], active[e, size : 2 * size], active[e, 2 * size :]
        d_reset, d_update, d_candidate = d_gates[e, :size], d_gates[e, size : 2 * size], d_gates[e, 2 * size :]
        d_contribution = d_state[e, 2 * size :]
        for k in range(size):
            d[k] += flows_in[k]
        for k in range(size):
            d_candidate[k] = d[k] * (one - update[k]) * (one - c[k] * c[k])
        for k in range(size):
            d_contribution[k] = d_candidate[k] * reset[k]
        for k in range(size):
            d_reset[k] = d_contribution[k] * contribution[k] * (one - reset[k])
        for k in range(size):
            d_update[k] = d[k] * (old[k] - c[k]) * update[k] * (one - update[k])
        for k in range(size):
            d[k] *= update[k]
        d_state[e, : 2 * size] = d_gates[e, : 2 * size]
