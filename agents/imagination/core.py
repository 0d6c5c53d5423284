"""The imagination core: a frozen policy that says which items would come next (the paper, section 4.1)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ...nn.policy import RecurrentPolicy

State = tuple[Tensor, Tensor]


class ImaginationCore:
    """pi^: a copy of the policy, refreshed now and then, and its own recurrent state over the real sessions.

    The environment model is static: an imagined item is appended to the state, nothing else happens. No gradient
    flows through anything here.
    """

    def __init__(self, policy: RecurrentPolicy, n_lanes: int, generator: torch.Generator) -> None:
        self.policy = copy.deepcopy(policy).requires_grad_(False)
        self.carried = self.policy.initial_state(n_lanes)
        self.generator = generator

    def refresh(self, policy: RecurrentPolicy) -> None:
        """Take over the weights of the learning policy; the carried state stays."""
        self.policy.load_state_dict(policy.state_dict())

    @torch.no_grad()
    def encode(self, items: Tensor, start: Tensor) -> State:
        """(h, c) [T, B, H] of pi^ in the real states of `items` [T, B]."""
        hidden, cell = self.policy.unroll(items, start, self.carried)
        self.carried = hidden[-1].clone(), cell[-1].clone()
        return hidden, cell

    @torch.no_grad()
    def first_items(self, state: State, window: Tensor | None, breadth: int) -> Tensor:
        """[n, M] distinct items each, drawn from pi^ without replacement, in the states (h, c) [M, H].

        `window` [M, W]: the last items of each state, for a policy with a copy head.

        The same law as the n largest of log pi^ + Gumbel noise (Kool et al. 2019), from n uniforms a state instead of
        N Gumbels.
        """
        probability = self._probability(state, window)
        drawn = []
        for _ in range(breadth):
            items = self._inverse_cdf(probability)
            drawn.append(items)
            probability.scatter_(1, items.unsqueeze(1), 0.0)
        return torch.stack(drawn)

    @torch.no_grad()
    def next_items(self, state: State, window: Tensor | None) -> Tensor:
        """[M] one item each, drawn from pi^ in the states (h, c) [M, H]."""
        return self._inverse_cdf(self._probability(state, window))

    @torch.no_grad()
    def step(self, items: Tensor, state: State, window: Tensor | None) -> tuple[State, Tensor | None]:
        """The imagined state and its window: `items` [M] are appended."""
        if window is not None:
            window = torch.cat([window[:, 1:], items.unsqueeze(1)], dim=1)
        return self.policy.step(items, state), window

    def _probability(self, state: State, window: Tensor | None) -> Tensor:
        """[M, N] proportional to pi^."""
        logits = self.policy.logits(state[0], window)
        return logits.sub_(logits.amax(dim=1, keepdim=True)).exp_()

    def _inverse_cdf(self, probability: Tensor) -> Tensor:
        cdf = probability.cumsum(dim=1)
        uniform = torch.rand(len(cdf), 1, generator=self.generator, device=cdf.device)
        # right=True skips items of probability 0, whose cdf equals that of the item before.
        items = torch.searchsorted(cdf, uniform * cdf[:, -1:], right=True).squeeze(1)
        return items.clamp_(max=cdf.shape[1] - 1)
