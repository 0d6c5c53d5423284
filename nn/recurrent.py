"""An LSTM over lanes of sessions: the state is zeroed inside an unroll wherever a session starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Unroll(torch.autograd.Function):
    """The recurrence of an LSTM (Hochreiter & Schmidhuber 1997, with forget gates) with its backward pass by hand.

    Autograd over single steps would record some twenty small operations a step; at a few dozen lanes they, not the
    arithmetic, would be the cost. Where they would still be (float32 on the CPU) all of a step but its matrix product
    is one compiled loop.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, w_hh: Tensor, h: Tensor, c: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        n_steps, n_lanes, four = gates.shape
        active = torch.empty_like(gates, memory_format=torch.contiguous_format)
        states = (gates.new_empty(n_steps, n_lanes, four // 4) for _ in range(5))
        hidden, cell, tanh_cell, h_before, c_before = states
        keep = (~start).to(gates.dtype).unsqueeze(-1)
        torch.mul(h, keep[0], out=h_before[0])
        torch.mul(c, keep[0], out=c_before[0])
        step = _activate_compiled if _compiled(gates) else _activate
        arrays = _views(active, h_before, c_before, cell, tanh_cell, hidden, keep)
        for t in range(n_steps):
            torch.addmm(gates[t], h_before[t], w_hh.t(), out=active[t])
            step(t, *arrays)
        ctx.save_for_backward(active, h_before, c_before, tanh_cell, w_hh, keep)
        ctx.set_materialize_grads(False)
        return hidden, cell

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        active, h_before, c_before, tanh_cell, w_hh, keep = ctx.saved_tensors
        # Where nobody used the cells, or the states, an empty tensor says so.
        d_hidden, d_cell = (active.new_empty(0, 0, 0) if grad is None else grad.contiguous() for grad in grads)
        d_gates = torch.empty_like(active)
        dh, dc = torch.zeros_like(h_before[0]), torch.zeros_like(h_before[0])
        tensors = (d_hidden, d_cell, active, c_before, tanh_cell, keep, dh, dc, d_gates)
        if _compiled(active):
            arrays = _views(*tensors)
            for t in range(len(active) - 1, -1, -1):
                _differentiate_compiled(t, *arrays)
                torch.mm(d_gates[t], w_hh, out=dh).mul_(keep[t])
        else:
            _differentiate(*tensors, w_hh)
        d_w_hh = None
        if ctx.needs_input_grad[1]:
            d_w_hh = torch.mm(d_gates.flatten(0, 1).t(), h_before.flatten(0, 1))
        return d_gates, d_w_hh, dh, dc, None


def lstm_unroll(gates: Tensor, w_hh: Tensor, h: Tensor, c: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden and cell states after each of T steps of B lanes.

    `gates` [T, B, 4H]: what the inputs and the bias contribute to the input, forget, output and candidate gates, in
    that order. `w_hh` [4H, H]. `h`, `c` [B, H]: the carried state. `start` [T, B] bool: the state before step t is
    zero, because a session begins. Returns hidden [T, B, H] and cell [T, B, H]; gradients flow into and through both.
    """
    return _Unroll.apply(gates, w_hh, h, c, start)  # type: ignore[return-value]


def lstm_step(gates: Tensor, w_hh: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step from `h`, `c` [B, H] with `gates` [B, 4H]; returns the next h, c [B, H]."""
    never = torch.zeros(1, len(gates), dtype=torch.bool, device=gates.device)
    hidden, cell = lstm_unroll(gates.unsqueeze(0), w_hh, h, c, never)
    return hidden[0], cell[0]


def _compiled(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32


def _views(*tensors: Tensor) -> list:
    """What the compiled loops take; the tensors themselves where those do not apply."""
    return [x.detach().contiguous().numpy() for x in tensors] if _compiled(tensors[0]) else list(tensors)


def _activate(t, active, h_before, c_before, cell, tanh_cell, hidden, keep):
    """From the sums of step t in `active` to its activations, its state, and the state before the next step."""
    size = hidden.shape[2]
    active[t, :, : 3 * size].sigmoid_()
    active[t, :, 3 * size :].tanh_()
    i, f, o, g = active[t].chunk(4, dim=1)
    torch.mul(f, c_before[t], out=cell[t]).addcmul_(i, g)
    torch.mul(o, torch.tanh(cell[t], out=tanh_cell[t]), out=hidden[t])
    if t + 1 < len(active):
        torch.mul(hidden[t], keep[t + 1], out=h_before[t + 1])
        torch.mul(cell[t], keep[t + 1], out=c_before[t + 1])


def _differentiate(d_hidden, d_cell, active, c_before, tanh_cell, keep, dh, dc, d_gates, w_hh):
    """All steps from the last to the first; leaves in `dh`, `dc` the gradients of the carried state."""
    # Everything that does not depend on the recurrence is done for all steps at once.
    i, f, o, g = active.chunk(4, dim=2)
    dc_per_dh, do_per_dh = o * (1 - tanh_cell.square()), tanh_cell * o * (1 - o)
    di_per_dc, df_per_dc, dg_per_dc = g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g)
    f_keep = f * keep
    for t in range(len(active) - 1, -1, -1):
        if len(d_hidden):
            dh += d_hidden[t]
        if len(d_cell):
            dc += d_cell[t]
        dc.addcmul_(dh, dc_per_dh[t])
        di, df, do, dg = d_gates[t].chunk(4, dim=1)
        torch.mul(dc, di_per_dc[t], out=di)
        torch.mul(dc, df_per_dc[t], out=df)
        torch.mul(dh, do_per_dh[t], out=do)
        torch.mul(dc, dg_per_dc[t], out=dg)
        torch.mm(d_gates[t], w_hh, out=dh).mul_(keep[t])
        dc.mul_(f_keep[t])


@njit(inline="always")
def _expm1(x):
    """exp(x) - 1 in float32, by its series around the nearest multiple of log 2; a loop over it vectorises."""
    x = min(max(x, np.float32(-87)), np.float32(87))
    n = np.floor(x * np.float32(1 / np.log(2)) + np.float32(0.5))
    # log 2 in two parts, the first of few bits, so that n times it is exact.
    x = (x - n * np.float32(0.693359375)) - n * np.float32(np.log(2) - 0.693359375)
    y = np.float32(1 / 5040)
    y = y * x + np.float32(1 / 720)
    y = y * x + np.float32(1 / 120)
    y = y * x + np.float32(1 / 24)
    y = y * x + np.float32(1 / 6)
    y = y * x + np.float32(1 / 2)
    y = y * x * x + x
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return power * y + (power - np.float32(1))


@njit(inline="always")
def sigmoid(x):
    """For compiled loops, in float32; see `_expm1`."""
    return np.float32(1) / (np.float32(2) + _expm1(-x))


@njit(inline="always")
def tanh(x):
    """For compiled loops, in float32; see `_expm1`."""
    e = _expm1(np.float32(2) * x)
    return e / (e + np.float32(2))


# What lets the compiler vectorise: short loops, each over few arrays that might overlap, and indices without an offset.
@njit(cache=True, error_model="numpy", fastmath={"contract"})
def _activate_compiled(t, active, h_before, c_before, cell, tanh_cell, hidden, keep):
    size = hidden.shape[2]
    for b in range(hidden.shape[1]):
        a = active[t, b]
        i, f, o, g = a[:size], a[size : 2 * size], a[2 * size : 3 * size], a[3 * size :]
        c, c_old, tanh_c, h = cell[t, b], c_before[t, b], tanh_cell[t, b], hidden[t, b]
        for k in range(3 * size):
            a[k] = sigmoid(a[k])
        for k in range(size):
            g[k] = tanh(g[k])
        for k in range(size):
            c[k] = f[k] * c_old[k] + i[k] * g[k]
        for k in range(size):
            tanh_c[k] = tanh(c[k])
        for k in range(size):
            h[k] = o[k] * tanh_c[k]
        if t + 1 < len(active):
            kept, h_next, c_next = keep[t + 1, b, 0], h_before[t + 1, b], c_before[t + 1, b]
            for k in range(size):
                h_next[k] = kept * h[k]
            for k in range(size):
                c_next[k] = kept * c[k]


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def _differentiate_compiled(t, d_hidden, d_cell, active, c_before, tanh_cell, keep, dh, dc, d_gates):
    # Step t of `_differentiate`, but for the product.
    one = np.float32(1)
    size = dh.shape[1]
    for b in range(dh.shape[0]):
        a, d, dh_b, dc_b = active[t, b], d_gates[t, b], dh[b], dc[b]
        i, f, o, g = a[:size], a[size : 2 * size], a[2 * size : 3 * size], a[3 * size :]
        di, df, do, dg = d[:size], d[size : 2 * size], d[2 * size : 3 * size], d[3 * size :]
        c_old, tanh_c, kept = c_before[t, b], tanh_cell[t, b], keep[t, b, 0]
        if len(d_hidden) > 0:
            flows_in = d_hidden[t, b]
            for k in range(size):
                dh_b[k] += flows_in[k]
        if len(d_cell) > 0:
            flows_in = d_cell[t, b]
            for k in range(size):
                dc_b[k] += flows_in[k]
        for k in range(size):
            dc_b[k] += dh_b[k] * o[k] * (one - tanh_c[k] * tanh_c[k])
        for k in range(size):
            di[k] = dc_b[k] * g[k] * i[k] * (one - i[k])
        for k in range(size):
            df[k] = dc_b[k] * c_old[k] * f[k] * (one - f[k])
        for k in range(size):
            do[k] = dh_b[k] * tanh_c[k] * o[k] * (one - o[k])
        for k in range(size):
            dg[k] = dc_b[k] * i[k] * (one - g[k] * g[k])
        for k in range(size):
            dc_b[k] *= f[k] * kept
