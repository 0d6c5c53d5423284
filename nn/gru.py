"""A GRU over sequences of different lengths, side by side, without padding."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import PackedSequence


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
    if inputs.device.type == "cpu":
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
    """The recurrence (Cho et al. 2014; the reset gate applied after the product, as `nn.GRU` has it).

    Autograd over single steps would record some twenty small operations a step; at a hundred sequences they, not the
    arithmetic, would be the cost.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, w_hh: Tensor, b_hh: Tensor, initial: Tensor, size: list[int]) -> Tensor:
        units = w_hh.shape[1]
        # Of every event: reset gate, update gate and what the state contributes to the candidate; the candidate.
        active, candidate, hidden = torch.empty_like(gates), *(gates.new_empty(2, len(gates), units))
        before, start = initial, 0
        for n in size:
            now, before = slice(start, start + n), before[:n]
            sums = torch.addmm(b_hh, before, w_hh.t(), out=active[now])
            both = sums[:, : 2 * units].add_(gates[now, : 2 * units]).sigmoid_()
            new = torch.addcmul(gates[now, 2 * units :], both[:, :units], sums[:, 2 * units :], out=candidate[now])
            before = torch.lerp(new.tanh_(), before, both[:, units:], out=hidden[now])
            start += n
        ctx.save_for_backward(active, candidate, hidden, w_hh, initial)
        ctx.size = size
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_hidden: Tensor) -> tuple[Tensor | None, ...]:
        active, candidate, hidden, w_hh, initial = ctx.saved_tensors
        size, units = torch.tensor(ctx.size), w_hh.shape[1]
        reset, update, contribution = active.chunk(3, dim=1)
        n_first = len(initial)
        # The step before is as many events away as there were sequences in it.
        earlier = torch.arange(n_first, len(hidden)) - torch.repeat_interleave(size[:-1], size[1:])
        before = torch.cat([initial, hidden[earlier]])
        # Everything that does not depend on the recurrence is done for all steps at once.
        factor = active.new_empty(len(active), 4, units)
        torch.mul(1 - update, 1 - candidate.square(), out=factor[:, 3])
        torch.mul(factor[:, 3], reset, out=factor[:, 2])
        torch.mul(factor[:, 2] * contribution, 1 - reset, out=factor[:, 0])
        torch.mul((before - candidate) * update, 1 - update, out=factor[:, 1])
        d_sums, dh, start = torch.empty_like(factor), torch.zeros_like(initial), len(hidden)
        for n in reversed(ctx.size):
            start -= n
            now, d_now = slice(start, start + n), dh[:n]
            d_now += d_hidden[now]
            torch.mul(factor[now], d_now.unsqueeze(1), out=d_sums[now])
            d_now.mul_(update[now]).addmm_(d_sums[now].view(n, 4 * units)[:, : 3 * units], w_hh)
        d_sums = d_sums.view(len(hidden), 4 * units)
        d_state = d_sums[:, : 3 * units]
        d_gates = torch.cat([d_sums[:, : 2 * units], d_sums[:, 3 * units :]], dim=1)
        return d_gates, torch.mm(d_state.t(), before), d_state.sum(0), dh, None
