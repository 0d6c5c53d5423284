"""Advantage actor-critic on logged events (A3C, Mnih et al. 2016; the IRN paper, section 3) with optional imagination.

A rollout of T steps of B lanes in, one Adam step out. The controls `lstm` and `lstm-purchase` are the same learner
with every policy weight 1 and no value loss, which makes the policy loss cross-entropy.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor

from ..envs.rollout import Rollout
from ..errors import InputError
from ..nn.checkpoint import part_of, prefixed
from ..nn.losses import entropy_regularised_loss, weighted_negative_log_likelihood
from ..nn.optimizer import TableAdam
from ..nn.policy import NetworkConfig, OutputLayer, RecurrentPolicy, SessionState
from .config import AgentConfig
from .imagining import Imagining
from .lanes import LaneStates, Steps
from .metrics import TrainingMetrics


class A3CLearner:
    """Owns the network, its optimiser, the states of its lanes and every random draw of the training.

    `source` gives the next rollout of T steps of B lanes. Where a return spans several events the learner looks ahead,
    so that the end of an unroll is never the end of a return.
    """

    def __init__(self, config: AgentConfig, n_items: int, seed: int, device: torch.device | str) -> None:
        if config.imagination_weight > 0 and config.breadth > n_items:
            raise InputError(f"breadth: expected at most the {n_items} items of the data, found {config.breadth}")
        self.config, self.device = config, torch.device(device)
        # Weights are drawn on the CPU, so that they do not depend on the device.
        weights = torch.Generator().manual_seed(seed)
        self.policy = RecurrentPolicy(n_items, network_config(config), weights).to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.lanes = LaneStates(self.policy, config.lanes, config.history)
        self.imagining = Imagining(config, self.policy, self.generator) if config.imagination_weight > 0 else None
        self.target_lanes = None
        if config.bootstrap and config.value_target == "frozen":
            target = copy.deepcopy(self.policy).requires_grad_(False)
            self.target_lanes = LaneStates(target, config.lanes, config.history)
        spans = config.n_steps if config.bootstrap else config.n_steps - 1
        self.n_ahead = -(-spans // config.unroll)
        """Rollouts that a return may reach into beyond its own."""
        # Only a table that is not the output layer as well is read by rows, and a GPU steps all rows faster than some.
        self.tables = ("item_table",) if not config.tied and self.device.type == "cpu" else ()
        self.optimizer = TableAdam(dict(self.policy.named_parameters()), config.learning_rate, self.tables)
        if self.tables:
            self.policy.before_lookup = partial(self.optimizer.catch_up, "item_table")
        self.counters = torch.zeros(2, dtype=torch.int64)
        """Training events so far, and the multiple of `refresh_events` that made the last refresh due."""
        self.counting: AbstractContextManager = nullcontext()
        """Held where events are counted or a refresh is found due and done: a lock where processes share them."""
        self.total_events: int | None = None
        """Events of the whole training, over which the learning rate falls; None: it stays."""
        self.metrics = TrainingMetrics(self.device)
        self.ahead: deque[tuple[Steps, Tensor | None]] = deque()
        self.begins = False

    @property
    def events(self) -> int:
        """Training events so far."""
        return int(self.counters[0])

    def start(self, source: Callable[[int], Rollout]) -> None:
        """Begin an epoch: fresh lanes from `source`, zero states."""
        self.source = source
        for lanes in (self.lanes, self.imagining, self.target_lanes):
            if lanes is not None:
                lanes.start()
        self.ahead.clear()
        self.begins = True

    def resume(self, source: Callable[[int], Rollout], n_updates: int) -> None:
        """Go on in an epoch, after `load_state_tensors`; `source` begins it anew and is brought to its place."""
        self.source = source
        for _ in range(n_updates + self.n_ahead):
            source(self.config.unroll)

    def update(self) -> None:
        """One rollout, one step of Adam."""
        apart = self._refresh_when_due() or self.begins
        self.begins = False
        steps, returns = self._returns()
        losses = self._losses(steps, returns, apart)
        loss = torch.stack([steps.reward.new_zeros(()), *losses.values()]).sum()
        if apart:
            self._measure_gradients(losses)
        self._set_learning_rate()
        # Purchases are rare: some rollouts have nothing to teach.
        if loss.requires_grad:
            self.optimizer.zero_grad()
            loss.backward()
            self.metrics.add("gradient_norm", self.optimizer.step(self.config.clip_norm))
        with self.counting:
            self.counters[0] += steps.n_events

    def acting_logits(self, states: SessionState) -> Tensor:
        """[B, N] of what it recommends in `states` [B, ...] where it acts while it learns."""
        return self.policy.logits(states)

    def _losses(self, steps: Steps, returns: Tensor, apart: bool) -> dict[str, Tensor]:
        """The weighted terms of the loss, each a mean over all T B samples; `apart`: supervised and policy as two."""
        config = self.config
        unrolled = self.lanes.advance(steps, self.generator)
        states = unrolled.map(lambda part: part.flatten(0, 1))
        losses = {}
        value = self.policy.value(states.hidden.detach() if config.value_gradient == "stopped" else states.hidden)
        advantage = returns - value
        if config.value_coefficient > 0 and config.learns_from_rewards:
            error = advantage.square()
            if config.value_at == "reward":
                error = error * (steps.reward.flatten() > 0)
            error = steps.masked(error)
            losses["value"] = config.value_coefficient * error.mean()
            self.metrics.add("value_loss", error.detach().mean())
        supervised = self.config.supervised_weight
        head = self.policy.supervised_head
        if supervised > 0 and (apart or head is not None or steps.credited is not None):
            losses["supervised"] = self._supervised_loss(states, steps, supervised, head)
            supervised = 0.0
        if config.learns_from_rewards or supervised > 0:
            losses["policy"] = self._policy_loss(states, steps, returns, advantage.detach(), supervised)
        if self.imagining is not None:
            losses["imagination"], error = self.imagining.loss(self.policy, states, steps, self.events)
            self.metrics.add("imagination_loss", error, float(self.imagining.weight(self.events) > 0))
        return losses

    def _policy_loss(
        self, states: SessionState, steps: Steps, returns: Tensor, advantage: Tensor, supervised: float
    ) -> Tensor:
        """-mean over all samples of weight x log pi(logged item); rewardless samples of -P add 0, but count.

        Cross-entropy is a weight `supervised` of its own on the same log pi.
        """
        config = self.config
        # Cross-entropy is of what the shopper did, a reward is for what was recommended.
        action = (steps.action if config.policy_weight == "one" else steps.rewarded_action).flatten()
        match config.policy_weight:
            case "advantage":
                weight = advantage
            case "positive_advantage":
                weight = advantage.clamp(min=0)
            case "return":
                weight = returns
            case "one":
                weight = torch.ones_like(advantage)
        updated = steps.masked(torch.ones_like(weight))
        if config.policy_at == "reward":
            updated = torch.zeros_like(weight).index_fill_(0, steps.rewarded, 1.0)
            advantage = advantage[steps.rewarded]
            if supervised == 0:
                # The full softmax is computed only where a reward asks for it.
                if len(steps.rewarded) == 0:
                    return states.hidden.new_zeros(())
                states = states.map(lambda part: part[steps.rewarded])
                action, weight, updated = (part[steps.rewarded] for part in (action, weight, updated))
        weight = weight * updated
        if supervised > 0:
            weight = weight + supervised * self._supervised(steps)
        loss, log_probability = self._likelihood(states, action, weight, updated)
        self.metrics.add("policy_log_probability", (log_probability * updated).sum(), float(len(advantage)))
        if config.value_coefficient > 0:
            self.metrics.add_advantages(advantage)
        return loss

    def _supervised(self, steps: Steps) -> Tensor:
        """[T B] 1 at the events of the supervised loss, 0 elsewhere."""
        taught = steps.masked(torch.ones_like(steps.reward).flatten())
        return taught if self.config.supervised_at == "every" else taught.index_fill_(0, steps.rewarded, 0.0)

    def _supervised_loss(self, states: SessionState, steps: Steps, weight: float, head: OutputLayer | None) -> Tensor:
        """Cross-entropy of a head, or of the policy."""
        return self._likelihood(states, steps.action.flatten(), weight * self._supervised(steps), head=head)[0]

    def _likelihood(
        self,
        states: SessionState,
        action: Tensor,
        weight: Tensor,
        entropy_at: Tensor | None = None,
        head: OutputLayer | None = None,
    ) -> tuple[Tensor, Tensor]:
        """-mean over the T B samples of a rollout of weight [R] x log pi(action [R]), and those log pi [R].

        Where `entropy_at` [R] is 1, less the weighted entropy of pi. Another `head` takes the place of pi.
        """
        config, policy, head = self.config, self.policy, head or self.policy.head
        n_samples = config.lanes * config.unroll
        features, bonus = head.features(policy.dropped(states.hidden, self.generator)), head.bonus(states)
        output = policy.output_weight(head), head.bias
        if entropy_at is None or config.entropy_weight == 0:
            return weighted_negative_log_likelihood(features, *output, action, weight / n_samples, bonus)
        entropy_weight = entropy_at * (config.entropy_weight / n_samples)
        loss, log_probability, _ = entropy_regularised_loss(
            features, *output, action, weight / n_samples, entropy_weight, bonus
        )
        return loss, log_probability

    def _measure_gradients(self, losses: dict[str, Tensor]) -> None:
        """The norm of the gradient that each term of the loss would have alone."""
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        for name, loss in losses.items():
            if not loss.requires_grad:
                continue
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            dense = [g.coalesce().values() if g.is_sparse else g for g in gradients if g is not None]
            self.metrics.add(f"gradient_norm_{name}", torch.nn.utils.get_total_norm(dense))

    def _returns(self) -> tuple[Steps, Tensor]:
        """The next steps and their returns [T B], bootstrapped where asked."""
        config = self.config
        while len(self.ahead) <= self.n_ahead:
            steps = Steps.of(self.source(config.unroll), config.kinds, self.device)
            self.ahead.append((steps, self._frozen_value(steps)))
        reward, done = (torch.cat([getattr(s, name) for s, _ in self.ahead]) for name in ("reward", "done"))
        value = None
        if config.bootstrap:
            frozen = [v for _, v in self.ahead if v is not None]
            value = torch.cat(frozen) if frozen else self._online_value()
        steps, _ = self.ahead.popleft()
        return steps, n_step_return(reward, done, value, config.n_steps, config.gamma)[: config.unroll].flatten()

    @torch.no_grad()
    def _frozen_value(self, steps: Steps) -> Tensor | None:
        """[T, B] V^- of the frozen network, as it was when the steps were fetched."""
        if self.target_lanes is None:
            return None
        return self.target_lanes.policy.value(self.target_lanes.advance(steps).hidden)

    @torch.no_grad()
    def _online_value(self) -> Tensor:
        """[(1 + n_ahead) T, B] V of the learning network in all steps at hand."""
        before = self.lanes.tensors()
        values = [self.policy.value(self.lanes.advance(steps).hidden) for steps, _ in self.ahead]
        self.lanes.load_tensors(before)
        return torch.cat(values)

    def _set_learning_rate(self) -> None:
        if self.total_events is not None:
            done = min(self.events / self.total_events, 1.0)
            share = 1.0 - (1.0 - self.config.learning_rate_end) * done
            self.optimizer.learning_rate = self.config.learning_rate * share

    def _refresh_when_due(self) -> bool:
        with self.counting:
            events, refreshed_at = self.counters.tolist()
            if events - refreshed_at < self.config.refresh_events:
                return False
            self.optimizer.flush()
            if self.imagining is not None:
                self.imagining.refresh(self.policy)
            if self.target_lanes is not None:
                self.target_lanes.policy.load_state_dict(self.policy.state_dict())
            # Not `events`: the others count on meanwhile, and from refresh to refresh that would add up.
            self.counters[1] = events - events % self.config.refresh_events
            return True

    @contextmanager
    def read(self, items: Tensor) -> Iterator[None]:
        """In the block the policy reads each of `items` [n] as the last step left it; afterwards all is as before.

        Steps that are made up in two parts are rounded twice, so a reader that left its traces would change what is
        trained. Between two updates only; without tables there is nothing to do.
        """
        kept = []
        for name in self.tables:
            table = self.optimizer.tables[name]
            moved = table.parameter.detach(), *(table.state[part] for part in ("exp_avg", "exp_avg_sq", "reached"))
            kept += [(tensor, tensor[items]) for tensor in moved]
            self.optimizer.catch_up(name, items)
        before_lookup, self.policy.before_lookup = self.policy.before_lookup, None
        try:
            yield
        finally:
            self.policy.before_lookup = before_lookup
            for tensor, rows in kept:
                tensor[items] = rows

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that the rest of the training depends on, by name, the place in the epoch included.

        What is left is the environment, which must have given as many rollouts as this learner has taken.
        """
        tensors = prefixed("policy", self.policy.state_dict()) | prefixed("lanes", self.lanes.tensors())
        tensors |= prefixed("adam", self.optimizer.state_tensors())
        if self.imagining is not None:
            tensors |= prefixed("imagining", self.imagining.state_tensors())
        if self.target_lanes is not None:
            tensors |= prefixed("target", self.target_lanes.policy.state_dict())
            tensors |= prefixed("target_lanes", self.target_lanes.tensors())
        for index, (steps, value) in enumerate(self.ahead):
            tensors |= prefixed(f"ahead.{index}", steps.tensors() | ({} if value is None else {"value": value}))
        tensors |= prefixed("metrics", self.metrics.sums)
        return tensors | {"generator": self.generator.get_state(), "counters": self.counters}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state_tensors` gave, in the epoch that `start` has begun."""
        self.policy.load_state_dict(part_of(tensors, "policy"))
        self.lanes.load_tensors(part_of(tensors, "lanes"))
        self.optimizer.load_state_tensors(part_of(tensors, "adam"))
        if self.imagining is not None:
            self.imagining.load_state_tensors(part_of(tensors, "imagining"))
        if self.target_lanes is not None:
            self.target_lanes.policy.load_state_dict(part_of(tensors, "target"))
            self.target_lanes.load_tensors(part_of(tensors, "target_lanes"))
        self.ahead.clear()
        while steps := part_of(tensors, f"ahead.{len(self.ahead)}"):
            value = steps.pop("value", None)
            self.ahead.append((Steps(**steps), value))
        self.metrics.sums = part_of(tensors, "metrics")
        self.generator.set_state(tensors["generator"].cpu())
        self.counters.copy_(tensors["counters"])


def network_config(config: AgentConfig) -> NetworkConfig:
    """The network of an agent."""
    names = ("hidden_units", "embedding_dim", "tied", "dropout", "copy_window", "kinds")
    return NetworkConfig(**{name: getattr(config, name) for name in names}, supervised=config.has_supervised_head)


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
