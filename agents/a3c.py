"""Advantage actor-critic on logged events (A3C, Mnih et al. 2016; the IRN paper, section 3) with optional imagination.

One synchronous learner: a rollout of T steps of B lanes in, one Adam step out. The controls `lstm` and `lstm-purchase`
are the same learner with every policy weight 1 and no value loss, which makes the policy loss cross-entropy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..envs.rollout import Rollout
from ..errors import InputError
from ..nn.copying import window_stream
from ..nn.losses import weighted_negative_log_likelihood
from ..nn.policy import NetworkConfig, RecurrentPolicy
from .config import AgentConfig
from .imagination.core import ImaginationCore
from .imagination.executor import reconstruction_loss
from .imagination.planner import TrajectoryManager


class Steps(NamedTuple):
    """A `Rollout` on the learner's device; every tensor [T, B]."""

    item: Tensor
    start: Tensor
    action: Tensor
    reward: Tensor
    done: Tensor


class A3CLearner:
    """Owns the network, its optimiser, the carried recurrent states and every random draw of the training.

    `source` gives the next rollout of T steps of B lanes. Where a return spans several events the learner looks one
    rollout ahead, so that the end of an unroll is never the end of a return.
    """

    def __init__(self, config: AgentConfig, n_items: int, seed: int, device: torch.device | str) -> None:
        if config.imagination_weight > 0 and config.breadth > n_items:
            raise InputError(f"breadth: expected at most the {n_items} items of the data, found {config.breadth}")
        self.config, self.device = config, torch.device(device)
        # Weights are drawn on the CPU, so that they do not depend on the device.
        weights = torch.Generator().manual_seed(seed)
        self.policy = RecurrentPolicy(n_items, network_config(config), weights).to(self.device)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=config.learning_rate, fused=True)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.imagination = ImaginationCore(self.policy, config.lanes, self.generator)
        self.planner = TrajectoryManager(config.breadth, config.depth)
        self.target = copy.deepcopy(self.policy).requires_grad_(False) if config.bootstrap else None
        self.looks_ahead = config.bootstrap or config.n_steps > 1
        self.events = self.refreshed_at = 0
        self.total_events: int | None = None
        """Events of the whole training, over which the learning rate falls; None: it stays."""
        self.totals: dict[str, float] = {}
        self.advantages: list[Tensor] = []

    def start(self, source: Callable[[int], Rollout]) -> None:
        """Begin an epoch: fresh lanes from `source`, zero states."""
        self.source = source
        self.carried = self.policy.initial_state(self.config.lanes)
        width = max(self.config.copy_window, 1)
        self.window = torch.full((self.config.lanes, width), self.policy.n_items, device=self.device)
        self.imagination.carried = self.policy.initial_state(self.config.lanes)
        if self.target is not None:
            self.target_carried = self.policy.initial_state(self.config.lanes)
        if self.looks_ahead:
            self.ahead, self.ahead_value = self._fetch_with_value()

    def update(self) -> None:
        """One rollout, one step of Adam."""
        config = self.config
        if self.events - self.refreshed_at >= config.refresh_events:
            self._refresh()
        steps, returns = self._returns()
        hidden, cell = self.policy.unroll(steps.item, steps.start, self.carried, self.generator)
        self.carried = hidden[-1].detach(), cell[-1].detach()
        flat_hidden, flat_returns = hidden.flatten(0, 1), returns.flatten()
        windows = self._windows(steps)

        baseline = flat_hidden.detach() if config.value_gradient == "stopped" else flat_hidden
        value = self.policy.value(baseline)
        advantage = flat_returns - value
        loss = config.value_coefficient * advantage.square().mean()
        loss = loss + self._policy_loss(flat_hidden, windows, steps, flat_returns, advantage.detach())
        if config.imagination_weight > 0 and self.events >= config.imagination_start:
            state = self.imagination.encode(steps.item, steps.start)
            state = state[0].flatten(0, 1), state[1].flatten(0, 1)
            imagined = self.planner.imagine(self.imagination, state, windows)
            imagination = reconstruction_loss(
                self.policy, (flat_hidden, cell.flatten(0, 1)), imagined, config.reconstruction, config.gamma
            )
            loss = loss + config.imagination_weight * imagination
            self._count("imagination_loss", imagination.detach())

        self._set_learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), config.clip_norm)
        self.optimizer.step()
        self.events += steps.item.numel()
        self._count("value_loss", advantage.detach().square().mean())
        self._count("gradient_norm", norm)
        self._count("updates", 1.0)

    def _windows(self, steps: Steps) -> Tensor | None:
        """[T B, W] the last items of each state, where the network has a copy head."""
        if self.config.copy_window == 0:
            return None
        windows = window_stream(self.window, steps.item, steps.start, self.policy.n_items)
        self.window = windows[-1]
        return windows.flatten(0, 1)

    def _policy_loss(
        self, hidden: Tensor, windows: Tensor | None, steps: Steps, returns: Tensor, advantage: Tensor
    ) -> Tensor:
        """-mean over all samples of weight x log pi(logged item); rewardless samples of -P add 0, but count."""
        config, action = self.config, steps.action.flatten()
        if config.policy_at == "reward":
            # The full softmax is computed only where a reward asks for it.
            rows = torch.nonzero(steps.reward.flatten() > 0).squeeze(1)
            if len(rows) == 0:
                return hidden.new_zeros(())
            hidden, action, returns, advantage = hidden[rows], action[rows], returns[rows], advantage[rows]
            windows = None if windows is None else windows[rows]
        match config.policy_weight:
            case "advantage":
                weight = advantage
            case "positive_advantage":
                weight = advantage.clamp(min=0)
            case "return":
                weight = returns
            case "one":
                weight = torch.ones_like(advantage)
        loss, log_probability = weighted_negative_log_likelihood(
            self.policy.features(hidden, self.generator),
            self.policy.output_weight,
            self.policy.output_bias,
            action,
            weight / steps.action.numel(),
            self.policy.bonus(hidden, windows),
        )
        self._count("policy_steps", float(len(action)))
        self._count("log_probability", log_probability.sum())
        if config.value_coefficient > 0:
            self.advantages.append(advantage)
        return loss

    def _returns(self) -> tuple[Steps, Tensor]:
        """The next steps and their returns [T, B]; bootstrapped from V^- of the frozen network where asked."""
        config = self.config
        if not self.looks_ahead:
            steps = self._fetch()
            return steps, steps.reward
        steps, value = self.ahead, self.ahead_value
        self.ahead, self.ahead_value = self._fetch_with_value()
        reward, done = torch.cat([steps.reward, self.ahead.reward]), torch.cat([steps.done, self.ahead.done])
        bootstrap = None if value is None or self.ahead_value is None else torch.cat([value, self.ahead_value])
        returns = n_step_return(reward, done, bootstrap, config.n_steps, config.gamma)
        return steps, returns[: config.unroll]

    def _fetch_with_value(self) -> tuple[Steps, Tensor | None]:
        steps = self._fetch()
        return steps, None if self.target is None else self._target_value(steps)

    def _fetch(self) -> Steps:
        rollout = self.source(self.config.unroll)
        columns = (getattr(rollout, name) for name in Steps._fields)
        item, start, action, reward, done = (torch.from_numpy(np.ascontiguousarray(c)).to(self.device) for c in columns)
        return Steps(item.long(), start, action.long(), reward, done)

    @torch.no_grad()
    def _target_value(self, steps: Steps) -> Tensor:
        assert self.target is not None
        hidden, cell = self.target.unroll(steps.item, steps.start, self.target_carried)
        self.target_carried = hidden[-1].clone(), cell[-1].clone()
        return self.target.value(hidden)

    def _set_learning_rate(self) -> None:
        if self.total_events is not None:
            done = min(self.events / self.total_events, 1.0)
            share = 1.0 - (1.0 - self.config.learning_rate_end) * done
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.learning_rate * share

    def _refresh(self) -> None:
        self.imagination.refresh(self.policy)
        if self.target is not None:
            self.target.load_state_dict(self.policy.state_dict())
        self.refreshed_at = self.events

    def _count(self, name: str, amount: Tensor | float) -> None:
        # Summed on the device: reading a scalar every update would make the host wait for it.
        self.totals[name] = self.totals.get(name, 0.0) + amount  # type: ignore[assignment,operator]

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on, by name; the carried states begin anew with it."""
        tensors = {f"policy.{k}": v for k, v in self.policy.state_dict().items()}
        tensors |= {f"imagination.{k}": v for k, v in self.imagination.policy.state_dict().items()}
        if self.target is not None:
            tensors |= {f"target.{k}": v for k, v in self.target.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{k}": v for k, v in moments.items()}
        tensors["generator"] = self.generator.get_state()
        tensors["counters"] = torch.tensor([self.events, self.refreshed_at])
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state_tensors` gave."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.policy.load_state_dict(part("policy."))
        self.imagination.policy.load_state_dict(part("imagination."))
        if self.target is not None:
            self.target.load_state_dict(part("target."))
        optimizer = self.optimizer.state_dict()
        for name, moment in part("adam.").items():
            index, key = name.split(".")
            optimizer["state"].setdefault(int(index), {})[key] = moment
        self.optimizer.load_state_dict(optimizer)
        self.generator.set_state(tensors["generator"].cpu())
        self.events, self.refreshed_at = tensors["counters"].tolist()

    def take_metrics(self) -> dict[str, float]:
        """Means since the last call; advantages are those at policy-gradient steps."""
        totals = {name: float(total) for name, total in self.totals.items()}
        updates, policy_steps = max(totals.get("updates", 0.0), 1.0), max(totals.get("policy_steps", 0.0), 1.0)
        per_update = ("value_loss", "gradient_norm", "imagination_loss")
        metrics = {name: totals[name] / updates for name in per_update if name in totals}
        metrics["policy_log_probability"] = totals.get("log_probability", 0.0) / policy_steps
        if self.advantages:
            advantage = torch.cat(self.advantages).cpu().numpy()
            metrics["advantage_mean"] = float(advantage.mean())
            metrics["advantage_negative_share"] = float((advantage < 0).mean())
            for percent in (1, 10, 50, 90, 99):
                metrics[f"advantage_p{percent:02d}"] = float(np.percentile(advantage, percent))
        self.totals, self.advantages = {}, []
        return metrics


def network_config(config: AgentConfig) -> NetworkConfig:
    """The network of an agent."""
    names = ("hidden_units", "embedding_dim", "tied", "dropout", "copy_window")
    return NetworkConfig(**{name: getattr(config, name) for name in names})


def n_step_return(reward: Tensor, done: Tensor, value: Tensor | None, n_steps: int, gamma: float) -> Tensor:
    """[T, B] sum of the next `n_steps` discounted rewards, never across the end of a session.

    G_t = sum_{j<n} gamma^j r_{t+j} + gamma^n V(s_{t+n}), the last term only where the session goes on that far and
    `value` [T, B] is given. Steps whose n rewards reach beyond T see zeros there; callers give enough of what follows.
    """
    n_total = len(reward)
    returns, alive = torch.zeros_like(reward), torch.ones_like(reward)
    for j in range(min(n_steps, n_total)):
        returns[: n_total - j] += gamma**j * alive[: n_total - j] * reward[j:]
        alive[: n_total - j] *= (~done[j:]).to(reward.dtype)
    if value is not None and n_steps < n_total:
        returns[: n_total - n_steps] += gamma**n_steps * alive[: n_total - n_steps] * value[n_steps:]
    return returns
