"""The imagination core: a frozen policy that says which items would come next (the paper, section 4.1)."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from .sampling import Law, sample_items
from .state import SequencePolicy, State

Policy = TypeVar("Policy", bound=SequencePolicy)


class ImaginationCore(Generic[Policy]):
    """pi^, the environment model: an imagined item is drawn from it and appended to the state, nothing else happens.

    `policy` is an ``nn.Module`` that is a `SequencePolicy`. pi^ is a frozen copy of it in evaluation mode, or with
    ``frozen_copy=False`` that very module, for instance a smaller one distilled from the policy. No gradient flows
    through anything here. Every draw comes from `generator`, on the device of the policy.
    """

    def __init__(self, policy: Policy, generator: torch.Generator, *, frozen_copy: bool = True) -> None:
        self.policy, self.generator = policy, generator
        if frozen_copy:
            self.policy = copy.deepcopy(policy)
            cast(nn.Module, self.policy).eval().requires_grad_(False).zero_grad(set_to_none=True)

    def refresh(self, policy: Policy) -> None:
        """Take over the weights of the learning policy."""
        cast(nn.Module, self.policy).load_state_dict(cast(nn.Module, policy).state_dict())

    @torch.no_grad()
    def sample(self, state: State, n: int = 1, law: Law = "gumbel") -> Tensor:
        """[n, M] items of pi^ in M states, by the laws of `sampling.sample_items`: distinct ones unless it is told."""
        return sample_items(self.policy.logits(state), n, law, self.generator)

    @torch.no_grad()
    def step(self, items: Tensor, state: State) -> State:
        """The imagined states: `items` [M] are appended."""
        return self.policy.step(items, state)


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy of the student under the softmax of the teacher, both [M, N], mean over rows (section 4.1).

    Nothing is learned by the teacher.
    """
    return nn.functional.cross_entropy(student_logits, teacher_logits.detach().softmax(dim=1))
