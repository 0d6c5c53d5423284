"""Self-supervised Q-learning on logged events (SQN, Xin et al., SIGIR 2020, below "the paper").

One recurrent network, two heads: cross-entropy of the next item teaches the state and ranks items, double Q-learning of
the logged rewards shapes the state as a regulariser (the paper, section 3.2). A rollout of T steps of B lanes in, one
Adam step out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ..envs.log import SessionLog
from ..envs.rollout import Rollout
from ..nn.checkpoint import part_of, prefixed
from ..nn.losses import weighted_negative_log_likelihood
from ..nn.optimizer import TableAdam
from ..nn.policy import RecurrentPolicy, SessionState
from ..nn.training import Progress, Scores, train_epochs, validated
from .a3c import network_config
from .lanes import LaneStates, Steps
from .metrics import TrainingMetrics
from .recurrent import RecurrentAgent
from .sqn_config import SQNConfig
from .training import SynchronousTrainer

LEAST_Q = 1e-6
"""Q below it counts as it in a product, so that items of no worth are still ranked by their probability."""


class SQNLearner:
    """Owns the networks, their optimisers, the states of their lanes and every random draw of the training.

    `source` gives the next rollout of T steps of B lanes. The learner is one rollout ahead of itself: the target of an
    unroll's last event needs the state after it.
    """

    def __init__(self, config: SQNConfig, n_items: int, seed: int, device: torch.device | str) -> None:
        self.config, self.device = config, torch.device(device)
        # Weights are drawn on the CPU, so that they do not depend on the device.
        weights, shape = torch.Generator().manual_seed(seed), network_config(config)  # type: ignore[arg-type]
        self.policy = RecurrentPolicy(n_items, shape, weights).to(self.device)
        if config.target == "alternating":
            other, n_learning = RecurrentPolicy(n_items, shape, weights).to(self.device), 2
        else:
            other, n_learning = copy.deepcopy(self.policy).requires_grad_(False), 1
        self.networks = (self.policy, other)
        """The one that items are ranked by, and the other one."""
        # As in `A3CLearner`: only a table that is not the output layer as well is read by rows, and not on a GPU.
        tables = ("item_table",) if not config.tied and self.device.type == "cpu" else ()
        self.optimizers = []
        for network in self.networks[:n_learning]:
            optimizer = TableAdam(dict(network.named_parameters()), config.learning_rate, tables)
            if tables:
                network.before_lookup = partial(optimizer.catch_up, "item_table")
            self.optimizers.append(optimizer)
        self.lanes = [LaneStates(network, config.lanes, config.history) for network in self.networks]
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.counters = torch.zeros(2, dtype=torch.int64)
        """Updates so far, and of them those before the last refresh of the copy."""
        self.total_events: int | None = None
        """Events of the whole training, over which the learning rate falls; None: it stays."""
        self.metrics = TrainingMetrics(self.device)

    @property
    def events(self) -> int:
        """Training events so far."""
        return int(self.counters[0]) * self.config.lanes * self.config.unroll

    def start(self, source: Callable[[int], Rollout]) -> None:
        """Begin an epoch: fresh lanes from `source`, zero states."""
        self.source = source
        for lanes in self.lanes:
            lanes.start()
        self.following = self._fetch()

    def resume(self, source: Callable[[int], Rollout], n_updates: int) -> None:
        """Go on in an epoch, after `load_state_tensors`; `source` begins it anew and is brought to its place."""
        self.source = source
        for _ in range(n_updates + 1):
            source(self.config.unroll)

    def update(self) -> None:
        """One rollout, one step of Adam of the network whose turn it is."""
        learning = int(self.counters[0]) % len(self.optimizers)
        steps, self.following = self.following, self._fetch()
        loss, optimizer = self._loss(steps, learning), self.optimizers[learning]
        if self.total_events is not None:
            done = min(self.events / self.total_events, 1.0)
            optimizer.learning_rate = self.config.learning_rate * (1 - (1 - self.config.learning_rate_end) * done)
        optimizer.zero_grad()
        loss.backward()
        self.metrics.add("gradient_norm", optimizer.step(self.config.clip_norm))
        self.counters[0] += 1
        self._refresh_when_due()

    def acting_logits(self, states: SessionState) -> Tensor:
        """[B, N] of what it recommends in `states` [B, ...] where it acts while it learns: Q, or as taught."""
        return self.policy.logits(states, None if self.config.ranking == "q" else self.policy.supervised_head)

    def flush(self) -> None:
        """Bring every weight up to date, before it is scored or copied."""
        for optimizer in self.optimizers:
            optimizer.flush()

    def _fetch(self) -> Steps:
        return Steps.of(self.source(self.config.unroll), self.config.kinds, self.device)

    def _loss(self, steps: Steps, learning: int) -> Tensor:
        """[] of one network: both terms a mean over all T B samples, the Q term weighted."""
        policy, action = self.networks[learning], steps.action.flatten()
        unrolled = self.lanes[learning].advance(steps, self.generator)
        with torch.no_grad():
            # The other network walks the same lanes, whether or not its Q is asked.
            others = self.lanes[1 - learning].advance(steps)
        states = unrolled.map(lambda part: part.flatten(0, 1))
        loss = self._supervised_loss(policy, states, action)
        if self.config.q_weight == 0:
            return loss
        target = self._target(steps, learning, unrolled, others)
        error = (target.flatten() - q_of(policy, states, steps.rewarded_action.flatten())).square().mean()
        self.metrics.add("q_loss", error.detach())
        return loss + self.config.q_weight * error

    def _supervised_loss(self, policy: RecurrentPolicy, states: SessionState, action: Tensor) -> Tensor:
        head = policy.supervised_head
        assert head is not None
        features = head.features(policy.dropped(states.hidden, self.generator))
        weight = torch.full_like(states.hidden[:, 0], 1 / len(action), requires_grad=False)
        loss, log_probability = weighted_negative_log_likelihood(
            features, policy.output_weight(head), head.bias, action, weight, head.bonus(states)
        )
        self.metrics.add("supervised_log_probability", log_probability.sum(), len(action))
        return loss

    @torch.no_grad()
    def _target(self, steps: Steps, learning: int, own: SessionState, others: SessionState) -> Tensor:
        """[T, B] r + gamma Q'(s', argmax Q(s', .)), Q that of the learning network and Q' that of the other one."""
        best = self.networks[learning].logits(self._next_states(learning, own)).argmax(dim=1)
        value = q_of(self.networks[1 - learning], self._next_states(1 - learning, others), best)
        return q_target(steps.reward, steps.done, value.view_as(steps.reward), self.config.gamma)

    def _next_states(self, number: int, states: SessionState) -> SessionState:
        """[T B, ...] of one network after each event of the steps that `states` [T, B, ...] are of.

        Where a session ends that is the first state of another session.
        """
        lanes, then = self.lanes[number], self.following
        before = lanes.tensors()
        first = lanes.advance(then._replace(item=then.item[:1], start=then.start[:1], item_kind=then.item_kind[:1]))
        lanes.load_tensors(before)
        parts = zip(states, first, strict=True)
        after = [None if a is None or b is None else torch.cat([a[1:], b]).flatten(0, 1) for a, b in parts]
        return SessionState(*after)  # type: ignore[arg-type]

    def _refresh_when_due(self) -> None:
        if self.config.target == "alternating":
            return
        updates, refreshed_at = self.counters.tolist()
        if (updates - refreshed_at) * self.config.lanes * self.config.unroll >= self.config.refresh_events:
            self.flush()
            self.networks[1].load_state_dict(self.policy.state_dict())
            self.counters[1] = updates

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that the rest of the training depends on, by name, the place in the epoch included.

        What is left is the environment, which must have given as many rollouts as this learner has taken.
        """
        tensors = {"generator": self.generator.get_state(), "counters": self.counters}
        for index, (network, lanes) in enumerate(zip(self.networks, self.lanes, strict=True)):
            tensors |= prefixed(f"network.{index}", network.state_dict()) | prefixed(f"lanes.{index}", lanes.tensors())
        for index, optimizer in enumerate(self.optimizers):
            tensors |= prefixed(f"adam.{index}", optimizer.state_tensors())
        return tensors | prefixed("following", self.following.tensors()) | prefixed("metrics", self.metrics.sums)

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state_tensors` gave."""
        for index, (network, lanes) in enumerate(zip(self.networks, self.lanes, strict=True)):
            network.load_state_dict(part_of(tensors, f"network.{index}"))
            lanes.load_tensors(part_of(tensors, f"lanes.{index}"))
        for index, optimizer in enumerate(self.optimizers):
            optimizer.load_state_tensors(part_of(tensors, f"adam.{index}"))
        self.following = Steps(**part_of(tensors, "following"))
        self.metrics.sums = part_of(tensors, "metrics")
        self.generator.set_state(tensors["generator"].cpu())
        self.counters.copy_(tensors["counters"])


def q_of(policy: RecurrentPolicy, states: SessionState, items: Tensor) -> Tensor:
    """[R] Q of states [R, ...] and one item [R] each: an entry of each row that `RecurrentPolicy.logits` gives."""
    q, bonus = policy.logit_of(states, items), policy.head.bonus(states)
    if bonus is None:
        return q
    return q + (bonus.amount * (bonus.item == items.unsqueeze(1))).sum(dim=1)


def q_target(reward: Tensor, done: Tensor, value: Tensor, gamma: float) -> Tensor:
    """[T, B] r + gamma Q(s', a') where the session goes on, and r alone where it ends."""
    return reward + gamma * value.masked_fill(done, 0.0)


class SQNAgent(RecurrentAgent):
    """Implements the `Recommender` protocol; scores are logits, Q or expected returns, as ``config.ranking`` says."""

    config: SQNConfig
    config_class = SQNConfig

    def __init__(self, config: SQNConfig | None = None, seed: int = 0, device: str = "cpu") -> None:
        super().__init__(config or SQNConfig(), seed, device)  # type: ignore[arg-type]

    def fit(
        self,
        train: SessionLog,
        valid: SessionLog | None = None,
        *,
        validate: Callable[[SQNAgent], Scores] | None = None,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """As `RecurrentAgent.fit`; `valid` is not looked at: `validate` is what sees it."""
        config = self.config
        learner = SQNLearner(config, train.n_items, self.seed, self.device)
        self.policy = learner.policy
        trainer = SynchronousTrainer(learner, train, self.seed)  # type: ignore[arg-type]
        events_per_epoch = trainer.n_updates * config.lanes * config.unroll
        n_epochs = min(config.epochs, max(config.max_events // events_per_epoch, 1))
        learner.total_events = n_epochs * events_per_epoch

        def finish() -> dict[str, float]:
            learner.flush()
            record = {"events": float(learner.events), **learner.metrics.take()}
            return record if validate is None else record | validated(validate(self))

        best = train_epochs(
            trainer,
            n_epochs,
            config.patience,
            weights=learner.policy.state_dict,
            finish=finish,
            folder=folder,
            progress=progress,
        )
        # A network of its own: the learner's hangs on its optimiser.
        self.policy = self.build(train.n_items)
        self.policy.load_state_dict(best)
        return self

    @torch.no_grad()
    def score_states(self, states: SessionState) -> Tensor:
        """[P, N] float32 of states [P, ...]."""
        policy = self._trained()
        if self.config.ranking == "q":
            return policy.logits(states)
        logits = policy.logits(states, policy.supervised_head)
        if self.config.ranking == "supervised":
            return logits
        return logits.softmax(dim=1).mul_(policy.logits(states).clamp_(min=LEAST_Q))
