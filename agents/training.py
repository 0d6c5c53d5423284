"""How the recurrent agents are trained: epochs of rollouts from the environment, each probed and validated."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..envs.log import SessionBatch, SessionLog
from ..envs.replay import ReplayVectorEnv
from ..envs.rollout import Rollout
from ..errors import InputError
from ..nn.training import Progress, train_epochs, validated
from .a3c import A3CLearner
from .config import AgentConfig
from .probes import probe
from .recurrent import RecurrentAgent, Validate


def training_env(config: AgentConfig, train: SessionLog, seed: int, shard: tuple[int, int] = (0, 1)) -> ReplayVectorEnv:
    """The environment that an agent learns in: logged feedback, its own rewards, density and lanes.

    `shard` (w, W): of the sessions of two or more events only every W-th, from the w-th on.
    """
    return ReplayVectorEnv(
        train,
        num_envs=config.lanes,
        window=1,
        feedback="logged",
        rewards=(config.click_reward, config.purchase_reward),
        density=config.density,
        drop=config.drop,
        density_seed=seed,
        order=config.order,
        shard=shard,
    )


def updates_per_epoch(config: AgentConfig, log: SessionLog, shard: tuple[int, int] = (0, 1)) -> int:
    """Updates, at least one, that walk every session of a shard about once; `log` as the env has thinned it."""
    n_decisions = log.length - 1
    n_playable = n_decisions[n_decisions > 0][shard[0] :: shard[1]]
    return max(int(n_playable.sum()) // (config.lanes * config.unroll), 1)


class SynchronousTrainer:
    """One learner that walks its shard of the sessions, all of them by default, epoch after epoch."""

    resumes_within_epoch = True

    def __init__(self, learner: A3CLearner, train: SessionLog, seed: int, shard: tuple[int, int] = (0, 1)) -> None:
        self.learner, self.device, self.seed = learner, learner.device, seed
        # The number of the shard beyond the bits that seeds use: every shard has orders of its own.
        self.order_seed = seed * 100_003 + (shard[0] << 48)
        self.env = training_env(learner.config, train, seed, shard)
        self.n_updates = updates_per_epoch(learner.config, self.env.log, shard)
        """Updates of an epoch."""

    def updates(self, epoch: int, done: int = 0) -> Iterator[int]:
        """Train one epoch, yielding the updates done so far after each; `done` of them were done before."""
        self.env.reset(seed=self.order_seed + epoch)
        if done:
            self.learner.resume(self.env.rollout, done)
        else:
            self.learner.start(self.env.rollout)
        for update in range(done, self.n_updates):
            self.learner.update()
            yield update + 1

    def state_tensors(self) -> dict[str, Tensor]:
        """As the learner's."""
        return self.learner.state_tensors()

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """As the learner's."""
        self.learner.load_state_tensors(tensors)


class OnlineTrainer:
    """An agent that learns from a stream of rollouts as they come, at the learning rate that it starts with.

    What the learning rate would fall over is the length of the stream, which nobody knows while it lasts. Raises
    `InputError` for several workers, and for a thinned log, whose other purchases could not be ranked.
    """

    def __init__(self, agent: RecurrentAgent, train: SessionLog) -> None:
        config = agent.config
        for name, only in (("workers", 0), ("density", 1.0)):
            if getattr(config, name) != only:
                raise InputError(
                    f"online learning: expected {name}={only:g}, as every event is learned from once and in order, "
                    f"found {getattr(config, name):g}; change the model"
                )
        self.agent, self.device, self.unroll = agent, agent.device, config.unroll
        self.learner = A3CLearner(config, train.n_items, agent.seed, agent.device)
        agent.policy = self.learner.policy
        self.n_ahead = self.learner.n_ahead
        """Rollouts beyond those learned from that the first update needs: returns reach into them."""
        self.env = training_env(replace(config, order="chronological"), train, agent.seed)
        self.coming: deque[Rollout] = deque()
        self.learner.start(lambda n_steps: self.coming.popleft())

    def score_rows(self, batch: SessionBatch, rows: np.ndarray) -> Tensor:
        """As the agent's, by the weights after the last update, which it leaves alone."""
        with self.learner.read(torch.from_numpy(np.unique(batch.item).astype(np.int64)).to(self.device)):
            return self.agent.score_rows(batch, rows)

    def learn(self, rollouts: Sequence[Rollout]) -> None:
        """One update. The first one takes `n_ahead` rollouts more than the others, which take one."""
        self.coming.extend(rollouts)
        self.learner.update()

    def between(self) -> AbstractContextManager:
        """In the block the agent can be scored as the last update left it; what it does to the weights is undone."""
        return self.learner.read(torch.arange(self.learner.policy.n_items, device=self.device))

    def finish(self) -> None:
        """Give the agent a network of its own: the learner's hangs on its optimiser."""
        self.learner.optimizer.flush()
        agent, policy = self.agent, self.learner.policy
        agent.policy = agent.build(policy.n_items)
        agent.policy.load_state_dict(policy.state_dict())

    def state_tensors(self) -> dict[str, Tensor]:
        """As the learner's."""
        return self.learner.state_tensors()

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """As the learner's, which goes on with the rollouts that come next."""
        self.learner.load_state_tensors(tensors)
        self.learner.begins = False


def train_agent(
    agent: RecurrentAgent,
    train: SessionLog,
    valid: SessionLog | None,
    *,
    validate: Validate | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Train `agent` on the logged events of `train`; it ends with the weights of the best epoch on validation.

    An epoch walks every session once (the last, unfinished ones of a pass excepted) and starts with fresh lanes. A run
    that goes on from a checkpoint, of an epoch's end or of its middle, ends with the same weights as one left alone.

    With ``config.workers`` processes train shared parameters (`workers.AsynchronousTrainer`). One alone computes what
    the synchronous learner does; of two or more no two runs are alike, and checkpoints are of epochs' ends only.
    Raises `InputError` for workers on another device than the CPU, `BrokenExecutor` where one of them dies.
    """
    config = agent.config
    if config.workers and agent.device.type != "cpu":
        raise InputError(
            f"workers: {config.workers} processes can share parameters on the CPU only, found device {agent.device}; "
            "use --device cpu or workers=0"
        )
    learner = A3CLearner(config, train.n_items, agent.seed, agent.device)
    policy = agent.policy = learner.policy
    with ExitStack() as stack:
        if config.workers:
            from .workers import AsynchronousTrainer

            trainer = stack.enter_context(AsynchronousTrainer(learner, train, agent.seed))
        else:
            trainer = SynchronousTrainer(learner, train, agent.seed)
        events_per_epoch = trainer.n_updates * config.lanes * config.unroll
        n_epochs = min(config.epochs, max(config.max_events // events_per_epoch, 1))
        learner.total_events = n_epochs * events_per_epoch

        def finish() -> dict[str, float]:
            learner.optimizer.flush()
            record = {"events": float(learner.events), **learner.metrics.take()}
            if valid is not None:
                record |= probe(agent, valid)
            if validate is not None:
                record |= validated(validate(agent))
            return record

        best = train_epochs(
            trainer,
            n_epochs,
            config.patience,
            weights=policy.state_dict,
            finish=finish,
            folder=folder,
            progress=progress,
        )
    # A network of its own: the learner's hangs on its optimiser, and may lie in memory that processes share.
    agent.policy = agent.build(train.n_items)
    agent.policy.load_state_dict(best)
