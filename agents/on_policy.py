"""Agents that act while they learn: rollouts of a learner's own draws, from the live shop or another environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from ..envs.rollout import Rollout, RolloutCollector
from .a3c import A3CLearner
from .sqn import SQNLearner


def acting_source(learner: A3CLearner | SQNLearner, env: VectorEnv, seed: int) -> Callable[[int], Rollout]:
    """Rollouts for ``learner.start`` in which the learner recommends what it draws, and rewards are credited to that.

    So the policy loss of an A3C, PRN or IRN is the on-policy gradient of A3C (Mnih et al. 2016), and the Q of an SQN is
    that of recommending. The state moves on with what the shopper did, which is also what supervised heads and
    cross-entropy learn. Returns look `n_ahead` rollouts ahead, so the actions are that many updates old.

    `env` has ``learner.config.lanes`` lanes and shows kinds where the config asks for them. Learning that acts is not
    resumed from checkpoints: what was drawn depends on the weights of that moment.
    """
    generator = torch.Generator(learner.device).manual_seed(seed)

    @torch.no_grad()
    def act(observation: Any) -> tuple[np.ndarray, np.ndarray]:
        policy, shown = learner.policy, observation if isinstance(observation, dict) else {"items": observation}
        items = torch.as_tensor(shown["items"], device=learner.device).long()
        kinds = torch.as_tensor(shown["kinds"], device=learner.device) if policy.config.kinds else None
        log_probability = learner.acting_logits(policy.encode(items, kinds)).log_softmax(1)
        action = torch.multinomial(log_probability.exp(), 1, generator=generator)
        return action[:, 0].cpu().numpy(), log_probability.gather(1, action)[:, 0].cpu().numpy()

    collector = RolloutCollector(env, act, seed)

    def source(n_steps: int) -> Rollout:
        rollout = collector.rollout(n_steps)
        return replace(rollout, credited_action=rollout.sampled_action)

    return source
