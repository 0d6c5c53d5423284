"""The imagination-augmented executor: the policy learns to reconstruct what was imagined (the paper, section 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...nn.policy import RecurrentPolicy
from ..config import Reconstruction
from .core import State


def reconstruction_loss(
    policy: RecurrentPolicy, state: State, imagined: Tensor, reading: Reconstruction, gamma: float
) -> Tensor:
    """Eq. 4: sum over trajectories j and steps tau of gamma^tau (1 - logit of the imagined item)^2, mean over states.

    `state` is (h, c) [M, H] of the learning policy in the real states, `imagined` [m, n, M] items. The error is kept
    at the imagined item's own position, so one logit a step is computed. `reading` says in which state: ``after`` the
    item was appended (an autoencoder), ``before`` it (a prediction), or a state that holds it ``alone``.
    """
    depth, breadth, n_states = imagined.shape
    h, c = (part.repeat(breadth, 1) for part in state)
    zero = policy.initial_state(breadth * n_states)
    loss = h.new_zeros(())
    for tau in range(depth):
        items = imagined[tau].flatten()
        before = h
        if reading == "alone":
            read, _ = policy.step(items, zero)
        else:
            if reading == "after" or tau + 1 < depth:
                h, c = policy.step(items, (h, c))
            read = before if reading == "before" else h
        error = 1.0 - policy.logit_of(read, items)
        loss = loss + gamma ** (tau + 1) * error.square().sum() / n_states
    return loss


def logit_bias_share(policy: RecurrentPolicy, hidden: Tensor, items: Tensor) -> Tensor:
    """Mean over states of |bias| / (|bias| + |rest|) in the logits of `items`: near 1, the loss is met by the bias."""
    bias = policy.output_bias[items].abs()
    rest = (policy.logit_of(hidden, items) - policy.output_bias[items]).abs()
    return torch.mean(bias / (bias + rest).clamp(min=1e-12))
