"""The training loop of the recurrent agents: epochs of rollouts, validation, early stopping, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..envs.log import SessionLog
from ..envs.replay import ReplayVectorEnv
from ..scalars import ScalarLog
from .a3c import A3CLearner
from .checkpoint import load_checkpoint, save_checkpoint
from .config import AgentConfig
from .probes import probe
from .recurrent import RecurrentAgent, Validate


def training_env(config: AgentConfig, train: SessionLog, seed: int) -> ReplayVectorEnv:
    """The environment that an agent learns in: logged feedback, its own rewards, density and lanes."""
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
    )


def train_agent(
    agent: RecurrentAgent,
    train: SessionLog,
    valid: SessionLog | None,
    *,
    validate: Validate | None = None,
    folder: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Train `agent` on the logged events of `train`; it ends with the weights of the best epoch on validation.

    An epoch walks every session once (the last, unfinished ones of a pass excepted). Each epoch starts with fresh
    lanes, so a run that goes on from the checkpoint of an epoch ends with the same weights as one left alone.
    """
    config = agent.config
    env = training_env(config, train, agent.seed)
    n_decisions = int(np.maximum(env.log.length - 1, 0).sum())
    n_updates = max(n_decisions // (config.lanes * config.unroll), 1)
    n_epochs = min(config.epochs, max(config.max_events // (n_updates * config.lanes * config.unroll), 1))
    learner = A3CLearner(config, train.n_items, agent.seed, agent.device)
    learner.total_events = n_epochs * n_updates * config.lanes * config.unroll
    agent.policy = learner.policy

    first_epoch, best_score, best_epoch, best, history = load_checkpoint(folder, learner)
    scalars = ScalarLog(folder, history)
    for epoch in range(first_epoch, n_epochs):
        if epoch - best_epoch > config.patience:
            break
        env.reset(seed=agent.seed * 100_003 + epoch)
        learner.start(env.rollout)
        for update in range(n_updates):
            learner.update()
            if progress is not None and update % 20 == 0:
                text = f"epoch {epoch + 1}/{n_epochs}" + (f", best {best_score:.4f}" if best else "")
                progress(epoch * n_updates + update, n_epochs * n_updates, text)
        record = {"epoch": float(epoch), "events": float(learner.events), **learner.take_metrics()}
        if valid is not None:
            record |= probe(agent, valid)
        score = float(epoch) if validate is None else validate(agent)
        if validate is not None:
            record["validation"] = score
        if score > best_score:
            best_score, best_epoch = score, epoch
            best = {k: v.detach().clone() for k, v in learner.policy.state_dict().items()}
        scalars.add(record)
        if folder is not None:
            save_checkpoint(
                folder, learner, best, {"best_score": best_score, "best_epoch": best_epoch}, scalars.history
            )
    scalars.close()
    learner.policy.load_state_dict(best)
