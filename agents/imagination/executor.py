"""The imagination-augmented executor: the policy learns to reconstruct what was imagined (the paper, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from ...errors import InputError
from ...nn.policy import RecurrentPolicy, SessionState
from ..config import Reconstruction
from .planner import Planner
from .state import SequencePolicy, State, map_state, repeat_state


def imagination_loss(
    policy: SequencePolicy,
    state: State,
    planner: Planner,
    *,
    imagined_from: Any = None,
    reading: Reconstruction = "after",
    gamma: float = 0.99,
) -> Tensor:
    """What reconstruction adds to the loss of a recommender: `reconstruction_loss` of what `planner` imagines.

    `state` is that of M sessions, with its graph if the gradient is to reach what made it. The planner imagines from
    `imagined_from`: the states of pi^ for the same sessions, or the windows of `SeenItems`. Without it, pi^ goes on
    from `state` itself, cut off from its graph (the paper's s^_t = s_t).
    """
    if imagined_from is None:
        imagined_from = map_state(Tensor.detach, state)
    return reconstruction_loss(policy, state, planner.imagine(imagined_from), reading, gamma)


def reconstruction_loss(
    policy: SequencePolicy,
    state: State,
    imagined: Sequence[Tensor] | Tensor,
    reading: Reconstruction = "after",
    gamma: float = 0.99,
) -> Tensor:
    """Eq. 4: sum over trajectories and steps tau of gamma^tau (1 - logit of the imagined item)^2, mean over states.

    `state` is that of M sessions, `imagined` the items [K, M] of each step tau = 1..m, from a `Planner` or anywhere
    (a tensor [m, n, M] holds n chains). An item that several trajectories of a tree share counts once. The error is
    kept at the imagined item's own position, so one logit a step is computed. `reading` says in which state: ``after``
    the item was appended (an autoencoder), ``before`` it (a prediction), or a state that holds it ``alone``.
    Raises `InputError` for another reading, or items of which some continue none.
    """
    if reading not in get_args(Reconstruction):
        raise InputError(f"reading: expected one of {', '.join(get_args(Reconstruction))}, found {reading!r}")
    items = torch.cat([level.flatten() for level in imagined])
    if reading == "alone":
        read = policy.step(items, policy.initial_state(len(items)))  # type: ignore[attr-defined]
    else:
        read = _states_along(policy, state, imagined, reading)
    # All steps in one call: the gradient of the output layer is then accumulated once.
    error = 1.0 - _logit_of(policy, read, items)
    by_step = error.square().split([level.numel() for level in imagined])
    losses = [gamma**tau * squares.sum() for tau, squares in enumerate(by_step, start=1)]
    return torch.stack(losses).sum() / max(imagined[0].shape[1], 1)


def _states_along(
    policy: SequencePolicy, state: State, imagined: Sequence[Tensor] | Tensor, reading: Reconstruction
) -> State:
    """The states after, or before, every imagined item, one step's after the other's."""
    read, breadth = [], 1
    for tau, items in enumerate(imagined, start=1):
        if len(items) % breadth:
            raise InputError(f"imagined: expected a multiple of {breadth} items at step {tau}, found {len(items)}")
        before = repeat_state(state, len(items) // breadth)
        breadth = len(items)
        if reading == "after" or tau < len(imagined):
            state = policy.step(items.flatten(), before)
        read.append(state if reading == "after" else before)
    return map_state(lambda *steps: torch.cat(steps), *read)


def _logit_of(policy: SequencePolicy, state: State, items: Tensor) -> Tensor:
    if hasattr(policy, "logit_of"):
        return policy.logit_of(state, items)  # type: ignore[attr-defined]
    return policy.logits(state).gather(1, items.unsqueeze(1)).squeeze(1)


def logit_bias_share(policy: RecurrentPolicy, state: SessionState, items: Tensor) -> Tensor:
    """Mean over M states of |bias| / (|bias| + |rest|) in the logit of one of `items` [M] each.

    Near 1, the reconstruction is met by the bias alone.
    """
    bias = policy.head.bias[items]
    rest = policy.logit_of(state, items) - bias
    return torch.mean(bias.abs() / (bias.abs() + rest.abs()).clamp(min=1e-12))
