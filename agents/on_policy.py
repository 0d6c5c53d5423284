"""A3C that acts: rollouts of the learner's own sampled actions, from the live shop or any environment like it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from ..envs.rollout import Rollout, RolloutCollector
from .a3c import A3CLearner


def acting_source(learner: A3CLearner, env: VectorEnv, seed: int) -> Callable[[int], Rollout]:
    """Rollouts for ``learner.start``, in which `action` is what the learner itself drew and `reward` what it earned.

    With them the learner's loss is the on-policy gradient of A3C (Mnih et al. 2016): the state still moves on with what
    the shopper did. Its returns look `n_ahead` rollouts ahead, so the actions are that many updates old.
    """
    generator = torch.Generator(learner.device).manual_seed(seed)

    @torch.no_grad()
    def act(observation: Any) -> tuple[np.ndarray, np.ndarray]:
        policy, shown = learner.policy, observation if isinstance(observation, dict) else {"items": observation}
        items = torch.as_tensor(shown["items"], device=learner.device).long()
        kinds = torch.as_tensor(shown["kinds"], device=learner.device) if policy.config.kinds else None
        log_probability = policy.logits(policy.encode(items, kinds)).log_softmax(1)
        action = torch.multinomial(log_probability.exp(), 1, generator=generator)
        return action[:, 0].cpu().numpy(), log_probability.gather(1, action)[:, 0].cpu().numpy()

    collector = RolloutCollector(env, act, seed)

    def source(n_steps: int) -> Rollout:
        rollout = collector.rollout(n_steps)
        assert rollout.sampled_action is not None
        return replace(rollout, action=rollout.sampled_action)

    return source
