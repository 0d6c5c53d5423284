"""Adam whose cost on a table of gathered rows is that of the rows touched, not of the table."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from ..errors import InputError

_SWEEP = 1024
"""Steps after which all rows of a table are brought up to date, so that no history need reach further back."""


class TableAdam:
    """`torch.optim.Adam` (Kingma & Ba 2015) in what it computes; steps on rows without a gradient are made up later.

    A parameter named in `tables` [N, D] gets its gradient as a sparse tensor (`embedding(..., sparse=True)`). A row
    that has none keeps moving under Adam as long as its first moment lasts, and those steps are made up when the row
    is next touched or asked for with `catch_up`; who reads a row without asking reads an old one. A row never touched
    costs nothing. All other parameters go through `torch.optim.Adam(fused=True)`; a parameter without a gradient is
    not stepped, as there. Tables need the CPU.

    Making up k steps takes one pass over the row, not k. A row with moments m, v after step s moves at the step s + j,
    of learning rate lr and bias corrections c1, c2, by ``a m / (sqrt(v) + e)`` with
    ``a = lr sqrt(c2) / c1 (beta1 / sqrt(beta2))^j`` and ``e = eps sqrt(c2) beta2^(-j/2)``, which hardly varies. The
    sum over a run of steps is taken to the second order in e, runs being a sixteenth of the steps before them. That is
    within 2^-18 of the way that the row makes, and far closer wherever sqrt(v) exceeds eps. Steps that have less than
    2^-28 of that way before them, those after the 186th at the usual betas, are not counted.

    One process may hand the object, pickled together with the module that it steps, to another (after `share_memory`
    of both): they then step the same parameters with the same moments, without locks (Hogwild, Niu et al. 2011).
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        learning_rate: float,
        tables: Collection[str] = (),
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not (0 <= betas[0] < math.sqrt(betas[1]) < 1 and eps > 0):
            raise InputError(f"Adam: expected 0 <= beta1 < sqrt(beta2) < 1 and eps > 0, found {betas} and {eps}")
        self.learning_rate = learning_rate
        """Of the steps to come; set it as often as you like."""
        self.parameters = dict(parameters)
        self.tables = {name: _Table(self.parameters[name], betas, eps) for name in tables}
        dense = [parameter for name, parameter in self.parameters.items() if name not in self.tables]
        self.adam = torch.optim.Adam([{"params": dense}], lr=learning_rate, betas=betas, eps=eps, fused=True)
        for parameter in dense:
            # As Adam would at the first step; by then it would be too late to share it.
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.adam.state[parameter] = {"step": step, **moments}

    def catch_up(self, table: str, rows: Tensor) -> None:
        """Bring the rows [...] int64 of a table up to date, in any order and as often as they come."""
        self.tables[table].catch_up(rows)

    def flush(self) -> None:
        """Bring all rows of all tables up to date, as before the weights are copied, scored or saved."""
        for table in self.tables.values():
            table.flush()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def step(self, clip_norm: float) -> Tensor:
        """Clip the gradients to a global norm of `clip_norm`, step, and return the norm [] from before clipping."""
        dense = [p for name, p in self.parameters.items() if name not in self.tables and p.grad is not None]
        for parameter in dense:
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
        sparse = [(table, *table.gradient()) for table in self.tables.values() if table.parameter.grad is not None]
        rows = [values for _, _, values in sparse]
        norm = torch.nn.utils.get_total_norm([*(p.grad for p in dense if p.grad is not None), *rows])
        # On the CPU a look at the norm is free and saves a pass over the gradients; elsewhere the host would wait.
        if norm.device.type != "cpu" or not norm <= clip_norm:
            torch.nn.utils.clip_grads_with_norm_(dense, clip_norm, norm)
            for values in rows:
                values.mul_(clip_norm / (norm + 1e-6))
        for group in self.adam.param_groups:
            group["lr"] = self.learning_rate
        self.adam.step()
        for table, index, values in sparse:
            table.step(index, values, self.learning_rate)
        return norm

    def state_tensors(self) -> dict[str, Tensor]:
        """All that later steps depend on beside parameters and learning rate, by name; nothing is flushed for it."""
        states = {
            name: self.tables[name].state if name in self.tables else self.adam.state[parameter]
            for name, parameter in self.parameters.items()
        }
        return {f"{name}.{key}": tensor for name, state in states.items() for key, tensor in state.items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state_tensors` gave. Raises `InputError` where the tensors are another network's."""
        own = self.state_tensors()
        differ = [k for k in {**own, **tensors} if k not in own or k not in tensors or own[k].shape != tensors[k].shape]
        if differ:
            expected, found = (tuple(part[differ[0]].shape) if differ[0] in part else None for part in (own, tensors))
            raise InputError(
                f"optimizer state: expected {differ[0]} of shape {expected}, found {found}; "
                "load the state of the same network"
            )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def share_memory(self) -> None:
        """Move the state, not the parameters, to shared memory."""
        for tensor in self.state_tensors().values():
            tensor.share_memory_()


class _Table:
    """One parameter [N, D] with its moments and the step that each of its rows has reached."""

    def __init__(self, parameter: nn.Parameter, betas: tuple[float, float], eps: float) -> None:
        self.parameter, self.betas, self.eps = parameter, betas, eps
        self.state = {
            "step": torch.zeros((), dtype=torch.int64),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            # -1: never touched.
            "reached": torch.full((len(parameter),), -1, dtype=torch.int64),
            # lr sqrt(c2) / c1 and eps sqrt(c2) of the last steps, the step t in column t mod _SWEEP.
            "history": torch.zeros(2, _SWEEP, dtype=torch.float64),
        }

    def gradient(self) -> tuple[Tensor, Tensor]:
        """Rows [n], each once, and their gradients [n, D]."""
        gradient = self.parameter.grad
        assert gradient is not None
        if not gradient.is_sparse:
            raise ValueError("a table has a dense gradient: gather its rows with embedding(..., sparse=True) only")
        gradient = gradient.coalesce()
        return gradient.indices()[0], gradient.values()

    def catch_up(self, rows: Tensor) -> None:
        index = rows.flatten().numpy()
        if len(index) and not (0 <= index.min() and index.max() < len(self.parameter)):
            raise IndexError(f"rows: expected 0..{len(self.parameter) - 1}, found {index.min()}..{index.max()}")
        _catch_up(index, int(self.state["step"]), *self._arrays())

    def flush(self) -> None:
        self.catch_up(torch.arange(len(self.parameter)))

    def step(self, rows: Tensor, gradient: Tensor, learning_rate: float) -> None:
        self.catch_up(rows)
        step = int(self.state["step"]) + 1
        correction1, correction2 = 1 - self.betas[0] ** step, math.sqrt(1 - self.betas[1] ** step)
        latest = self.state["history"][:, step % _SWEEP]
        latest[0], latest[1] = learning_rate * correction2 / correction1, self.eps * correction2
        self.state["step"].fill_(step)
        _step(rows.numpy(), step, gradient.numpy(), *self._arrays())
        if step % _SWEEP == 0:
            self.flush()

    def _arrays(self) -> tuple:
        names = ("exp_avg", "exp_avg_sq", "reached", "history")
        return self.parameter.detach().numpy(), *(self.state[name].numpy() for name in names), *self.betas


@njit(cache=True, fastmath={"reassoc", "contract"})
def _runs(reached, missed, history, beta1, beta2, runs):
    """The steps missed after step `reached` as runs [n, 3] of (sum of a, mean of e, variance of e); returns n."""
    ratio, growth = beta1 / np.sqrt(beta2), 1 / np.sqrt(beta2)
    weight = spread = 1.0
    n_runs = 0
    step = reached + 1
    end = reached + missed
    while step <= end:
        stop = min(step + 1 + step // 16, end + 1)
        total = first = second = 0.0
        for t in range(step, stop):
            weight *= ratio
            spread *= growth
            a = history[0, t % _SWEEP] * weight
            e = history[1, t % _SWEEP] * spread
            total += a
            first += a * e
            second += a * e * e
        if total > 0:
            mean = first / total
            runs[n_runs, 0] = total
            runs[n_runs, 1] = mean
            runs[n_runs, 2] = max(second / total - mean * mean, 0.0)
            n_runs += 1
        step = stop
    return n_runs


# No NaN or infinity is assumed away: a run that diverges must show it.
@njit(cache=True, error_model="numpy", fastmath={"contract", "arcp"})
def _catch_up(rows, now, table, m, v, reached, history, beta1, beta2):
    # beta1^j / sqrt(beta2)^j < 2^-28.
    horizon = int(np.ceil(-28 * np.log(2.0) / np.log(max(beta1, 1e-3) / np.sqrt(beta2))))
    runs = np.empty((horizon, 3), table.dtype)
    width = table.shape[1]
    root, total = np.empty(width, table.dtype), np.empty(width, table.dtype)
    decay = np.empty(2, table.dtype)
    for row in rows:
        last = reached[row]
        missed = now - last
        if last < 0 or missed <= 0:
            continue
        n_runs = _runs(last, min(missed, horizon), history, beta1, beta2, runs)
        p, m_row, v_row = table[row], m[row], v[row]
        for c in range(width):
            root[c] = np.sqrt(v_row[c])
            total[c] = 0
        for k in range(n_runs):
            a, e, variance = runs[k]
            for c in range(width):
                r = 1 / (root[c] + e)
                total[c] += a * r * (1 + variance * r * r)
        decay[0] = beta1**missed
        decay[1] = beta2**missed
        decay1, decay2 = decay
        for c in range(width):
            p[c] -= m_row[c] * total[c]
            m_row[c] *= decay1
            v_row[c] *= decay2
        reached[row] = now


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def _step(rows, step, gradient, table, m, v, reached, history, beta1, beta2):
    constants = np.array([beta1, 1 - beta1, beta2, 1 - beta2, *history[:, step % _SWEEP]]).astype(table.dtype)
    keep1, add1, keep2, add2, a, e = constants
    for i, row in enumerate(rows):
        p, m_row, v_row, g = table[row], m[row], v[row], gradient[i]
        for c in range(table.shape[1]):
            m_row[c] = keep1 * m_row[c] + add1 * g[c]
            v_row[c] = keep2 * v_row[c] + add2 * g[c] * g[c]
            p[c] -= a * m_row[c] / (np.sqrt(v_row[c]) + e)
        reached[row] = step
