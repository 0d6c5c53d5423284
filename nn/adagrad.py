"""Adagrad with momentum that moves only the rows of a table that were touched."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from ..errors import InputError


class TableAdagrad:
    """Adagrad (Duchi et al. 2011) with momentum, as GRU4Rec is trained (Hidasi et al. 2016).

    With gradient g: ``a += g^2; v = momentum v - learning_rate g / sqrt(a + eps); p += v``, a and v from zero. A
    parameter named in `tables` [N, D] has rows that a mini-batch does not touch; these stay where they are, velocity
    included. On the CPU its gradient may be sparse (`embedding(..., sparse=True)`), rows in any order and repeated;
    of a dense one the rows that hold nothing but zeros are those not touched.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        learning_rate: float,
        momentum: float = 0.0,
        tables: Collection[str] = (),
        eps: float = 1e-6,
    ) -> None:
        if not (learning_rate > 0 and 0 <= momentum < 1 and eps > 0):
            raise InputError(
                f"Adagrad: expected learning_rate > 0, 0 <= momentum < 1 and eps > 0, "
                f"found {learning_rate}, {momentum} and {eps}"
            )
        self.learning_rate, self.momentum, self.eps = learning_rate, momentum, eps
        self.parameters, self.tables = dict(parameters), frozenset(tables)
        self.state = {
            name: {key: torch.zeros_like(p, requires_grad=False) for key in ("square_sum", "velocity")}
            for name, p in self.parameters.items()
        }
        self.places = {name: np.full(len(self.parameters[name]), -1) for name in tables}
        """Scratch space: where a row stands among those of a gradient, -1 between two steps."""

    def flush(self) -> None:
        """Nothing: rows that were not touched do not move."""

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Step every parameter that has a gradient; the gradients' content is lost."""
        for name, parameter in self.parameters.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.is_sparse:
                rows, values = gradient._indices()[0].numpy(), gradient._values().numpy()
                _step_rows(rows, self.places[name], values, *self._arrays(name))
            elif gradient.device.type == "cpu" and name not in self.tables:
                _step_all(gradient.contiguous().view(len(gradient), -1).numpy(), *self._arrays(name))
            else:
                self._step_dense(name, gradient)

    def _arrays(self, name: str) -> list[np.ndarray]:
        parameter = self.parameters[name].detach()
        tensors = [x.view(len(x), -1) for x in (parameter, *self.state[name].values())]
        constants = parameter.new_tensor([self.learning_rate, self.momentum, self.eps])
        return [x.numpy() for x in (*tensors, constants)]

    def _step_dense(self, name: str, gradient: Tensor) -> None:
        square_sum, velocity = self.state[name].values()
        square_sum.addcmul_(gradient, gradient)
        step = (velocity * self.momentum).addcdiv_(gradient, (square_sum + self.eps).sqrt_(), value=-self.learning_rate)
        touched = gradient.ne(0).any(dim=1, keepdim=True) if name in self.tables else torch.ones_like(gradient).bool()
        velocity.copy_(torch.where(touched, step, velocity))
        self.parameters[name].add_(step.mul_(touched))

    def state_tensors(self) -> dict[str, Tensor]:
        """All that later steps depend on beside parameters and learning rate, by name."""
        return {f"{name}.{key}": tensor for name, state in self.state.items() for key, tensor in state.items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state_tensors` gave. Raises `InputError` where the tensors are another network's."""
        own = self.state_tensors()
        expected, found = ({name: tuple(x.shape) for name, x in part.items()} for part in (own, tensors))
        if expected != found:
            raise InputError(f"optimizer state: expected {expected}, found {found}; load the state of the same network")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


# What lets the compiler vectorise: short loops, each over few arrays that might overlap.
@njit(cache=True, inline="always")
def _step_one(g, p, square_sum, velocity, learning_rate, momentum, eps):
    for c in range(len(p)):
        square_sum[c] += g[c] * g[c]
    for c in range(len(p)):
        g[c] *= learning_rate / np.sqrt(square_sum[c] + eps)
    for c in range(len(p)):
        velocity[c] = momentum * velocity[c] - g[c]
    for c in range(len(p)):
        p[c] += velocity[c]


# No NaN or infinity is assumed away: a run that diverges must show it.
@njit(cache=True, error_model="numpy", fastmath={"contract", "arcp"})
def _step_all(gradient, p, square_sum, velocity, constants):
    learning_rate, momentum, eps = constants
    for row in range(len(p)):
        _step_one(gradient[row], p[row], square_sum[row], velocity[row], learning_rate, momentum, eps)


@njit(cache=True, error_model="numpy", fastmath={"contract", "arcp"})
def _step_rows(rows, places, gradient, p, square_sum, velocity, constants):
    # The step is not linear in the gradient, so what repeats is summed first, where it occurred first.
    for i, row in enumerate(rows):
        if places[row] < 0:
            places[row] = i
            continue
        total, more = gradient[places[row]], gradient[i]
        for c in range(len(total)):
            total[c] += more[c]
    learning_rate, momentum, eps = constants
    for i, row in enumerate(rows):
        if places[row] == i:
            places[row] = -1
            _step_one(gradient[i], p[row], square_sum[row], velocity[row], learning_rate, momentum, eps)
