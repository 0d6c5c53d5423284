"""An LSTM over lanes of sessions: the state is zeroed inside an unroll wherever a session starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Unroll(torch.autograd.Function):
    """The recurrence of an LSTM (Hochreiter & Schmidhuber 1997, with forget gates) with its backward pass by hand.

    Autograd over single steps would record some twenty small operations a step; at a few dozen lanes they, not the
    arithmetic, would be the cost.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, w_hh: Tensor, h: Tensor, c: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        n_steps, n_lanes, four = gates.shape
        size = four // 4
        hidden, cell = gates.new_empty(n_steps, n_lanes, size), gates.new_empty(n_steps, n_lanes, size)
        h_before, c_before = torch.empty_like(hidden), torch.empty_like(cell)
        active = torch.empty_like(gates)
        for t in range(n_steps):
            h, c = torch.mul(h, keep[t], out=h_before[t]), torch.mul(c, keep[t], out=c_before[t])
            a = torch.addmm(gates[t], h, w_hh.t(), out=active[t])
            a[:, : 3 * size].sigmoid_()
            a[:, 3 * size :].tanh_()
            i, f, o, g = a.chunk(4, dim=1)
            c = torch.mul(f, c, out=cell[t]).addcmul_(i, g)
            h = torch.tanh(c, out=hidden[t]).mul_(o)
        ctx.save_for_backward(active, h_before, c_before, cell, w_hh, keep)
        return hidden, cell

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_cell = grads
        active, h_before, c_before, cell, w_hh, keep = ctx.saved_tensors
        n_steps, _, size = cell.shape
        d_gates = torch.empty_like(active)
        # Everything that does not depend on the recurrence is done for all steps at once.
        i, f, o, g = active.chunk(4, dim=2)
        tanh_c = torch.tanh(cell)
        dc_per_dh = o * (1 - tanh_c * tanh_c)
        do_per_dh = tanh_c * o * (1 - o)
        di_per_dc, df_per_dc, dg_per_dc = g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g)
        f_keep = f * keep
        dh_next, dc_next = torch.zeros_like(cell[0]), torch.zeros_like(cell[0])
        for t in range(n_steps - 1, -1, -1):
            dh = d_hidden[t] + dh_next
            dc = torch.addcmul(d_cell[t] + dc_next, dh, dc_per_dh[t])
            d = d_gates[t]
            torch.mul(dc, di_per_dc[t], out=d[:, :size])
            torch.mul(dc, df_per_dc[t], out=d[:, size : 2 * size])
            torch.mul(dh, do_per_dh[t], out=d[:, 2 * size : 3 * size])
            torch.mul(dc, dg_per_dc[t], out=d[:, 3 * size :])
            dh_next = torch.mm(d, w_hh).mul_(keep[t])
            dc_next = dc * f_keep[t]
        d_w_hh = d_gates.flatten(0, 1).t() @ h_before.flatten(0, 1)
        return d_gates, d_w_hh, dh_next, dc_next, None


def lstm_unroll(gates: Tensor, w_hh: Tensor, h: Tensor, c: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden and cell states after each of T steps of B lanes.

    `gates` [T, B, 4H]: what the inputs and the bias contribute to the input, forget, output and candidate gates, in
    that order. `w_hh` [4H, H]. `h`, `c` [B, H]: the carried state. `start` [T, B] bool: the state before step t is
    zero, because a session begins. Returns hidden [T, B, H] and cell [T, B, H]; gradients flow into and through both.
    """
    keep = (~start).to(gates.dtype).unsqueeze(-1)
    return _Unroll.apply(gates, w_hh, h, c, keep)  # type: ignore[return-value]


def lstm_step(gates: Tensor, w_hh: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step from `h`, `c` [B, H] with `gates` [B, 4H]; returns the next h, c [B, H]."""
    a = torch.addmm(gates, h, w_hh.t())
    size = h.shape[1]
    i, f, o = a[:, : 3 * size].sigmoid().chunk(3, dim=1)
    g = a[:, 3 * size :].tanh()
    c = f * c + i * g
    return o * c.tanh(), c
