"""`SB3Agent`: an algorithm of Stable-Baselines3 that learns by acting in the replay environment, as a recommender.

Training goes in rounds, each of which ends with a validation and a checkpoint. A round begins with fresh lanes and with
random streams of its own, so a PPO or A2C that goes on from a checkpoint ends with the same weights as one left alone.
DQN and QR-DQN do not: the checkpoint leaves the replay buffer out, which begins again with the logged transitions and
without the agent's own steps.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from ..envs.log import SessionLog
from ..envs.replay import ReplayVectorEnv
from ..envs.replay_options import ReplayOptions
from ..envs.sb3 import SB3VecEnv, fill_replay_buffer
from ..nn.checkpoint import (
    load_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    part_of,
    prefixed,
    save_checkpoint,
    save_last,
)
from ..nn.training import Scores, validated
from ..scalars import ScalarLog
from .sb3 import SB3Recommender, TiedActorCriticPolicy, TiedDQNPolicy
from .sb3_config import (
    CONFIG_CLASSES,
    SB3A2CConfig,
    SB3Config,
    SB3DQNConfig,
    SB3PPOConfig,
    SB3QRDQNConfig,
    check_installed,
)

Validate = Callable[["SB3Agent"], Scores]
Progress = Callable[[int, int, str], None]

_COUNTERS = ("num_timesteps", "_n_updates", "_n_calls", "_episode_num")
"""Attributes of an algorithm that its schedules depend on; not all have all."""


class SB3Agent(SB3Recommender):
    """Implements the `Recommender` protocol; what a score is, `SB3Recommender` says."""

    def __init__(self, config: SB3Config, seed: int = 0, device: str = "cpu") -> None:
        check_installed(config)
        self.config, self.seed, self.device = config, seed, torch.device(device)

    def fit(
        self,
        train: SessionLog,
        valid: SessionLog | None = None,
        *,
        validate: Validate | None = None,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Train on `train`; keep the weights with the best `validate` score, or the last where there is none.

        With a `folder` scalars and a checkpoint a round are written there, and training goes on from one it finds.
        """
        with _own_randomness(self.device):
            model: Any = make_model(self.config, train, self.seed, self.device)
            super().__init__(model)
            rounds = _Rounds(self, model, validate, folder, progress)
            if not rounds.stopped:
                if isinstance(self.config, SB3DQNConfig) and self.config.prefill:
                    room = self.config.buffer_size // 2
                    fill_replay_buffer(model, train, newest=room, **_options(self.config, self.seed))
                remaining = self.config.total_steps - model.num_timesteps
                model.learn(remaining, callback=rounds, reset_num_timesteps=False, log_interval=None)
            rounds.close()
        return self

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``agent.json``."""
        save_file({k: v.detach().clone().contiguous() for k, v in self.weights().items()}, folder / "model.safetensors")
        content = {
            "algorithm": type(self.config).__name__,
            "n_items": int(self.policy.action_space.n),
            "seed": self.seed,
            "config": asdict(self.config),
        }
        (folder / "agent.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> SB3Agent:
        """The agent that `save` wrote."""
        content: dict[str, Any] = json.loads((folder / "agent.json").read_text(encoding="utf-8"))
        agent = cls(CONFIG_CLASSES[content["algorithm"]](**content["config"]), content["seed"], device)
        options, n_items = ReplayOptions(window=agent.config.window, kinds=agent.config.kinds), content["n_items"]
        _, policy, arguments = algorithm_of(agent.config)
        with _own_randomness(agent.device):
            made = policy(options.observation_space(n_items), options.action_space(n_items), lambda _: 0.0, **arguments)
        SB3Recommender.__init__(agent, made.to(agent.device))
        agent.set_weights(load_file(folder / "model.safetensors", device=str(agent.device)))
        return agent

    def weights(self) -> dict[str, Tensor]:
        """What scores depend on, by name; each tensor once, and no target network."""
        return {name: w for name, w in self.policy.named_parameters() if "_target." not in name}

    @torch.no_grad()
    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Raises KeyError for weights of another network."""
        for name, weight in self.weights().items():
            weight.copy_(weights[name])


def make_model(config: SB3Config, train: SessionLog, seed: int, device: torch.device | str) -> BaseAlgorithm:
    """The algorithm, untrained, on the replay environment of `train`, where a reward counts if the action is right."""
    env = ReplayVectorEnv(
        train,
        num_envs=config.lanes,
        copy=False,
        window=config.window,
        kinds=config.kinds,
        feedback="match",
        order="shuffled",
        **_options(config, seed),
    )
    algorithm, policy, arguments = algorithm_of(config)
    model: BaseAlgorithm = algorithm(
        policy,
        SB3VecEnv(env),
        policy_kwargs=arguments,
        stats_window_size=config.evaluation_steps,
        seed=seed,
        device=device,
        **config.algorithm_arguments(),
    )
    # The algorithm's own logger would make a folder in the temporary one for every training, and leave it there.
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def _options(config: SB3Config, seed: int) -> dict[str, Any]:
    """Options of a replay environment that logged transitions have as well."""
    rewards = (config.click_reward, config.purchase_reward)
    return {"rewards": rewards, "density": config.density, "drop": config.drop, "density_seed": seed}


def algorithm_of(config: SB3Config) -> tuple[Any, Any, dict[str, Any]]:
    """Algorithm, policy and the policy's keyword arguments."""
    size = {"embedding_dim": config.embedding_dim, "hidden_units": config.hidden_units}
    arguments: dict[str, Any] = {"features_extractor_kwargs": size}
    match config:
        case SB3PPOConfig():
            return PPO, TiedActorCriticPolicy, arguments
        case SB3A2CConfig():
            return A2C, TiedActorCriticPolicy, arguments
        case SB3QRDQNConfig():
            from sb3_contrib import QRDQN

            from .sb3_quantiles import TiedQRDQNPolicy

            return QRDQN, TiedQRDQNPolicy, {**arguments, "n_quantiles": config.n_quantiles}
        case SB3DQNConfig():
            return DQN, TiedDQNPolicy, arguments
    raise TypeError(f"no algorithm for {type(config).__name__}")


class _Rounds(BaseCallback):
    """Validation, checkpoint and early stopping, between two rollouts, where no data is under way."""

    model: BaseAlgorithm

    def __init__(
        self,
        agent: SB3Agent,
        model: BaseAlgorithm,
        validate: Validate | None,
        folder: Path | None,
        progress: Progress | None,
    ) -> None:
        super().__init__()
        self.agent, self.config, self.device, self.model = agent, agent.config, agent.device, model
        self.validate, self.folder, self.progress = validate, folder, progress
        self.marks = load_checkpoint(folder, self)
        self.scalars = ScalarLog(folder, self.marks.history)
        self.round_end = 0
        self.under_way = False

    @property
    def stopped(self) -> bool:
        done = self.model.num_timesteps >= self.config.total_steps
        return done or self.marks.epoch - self.marks.best_epoch > self.config.patience

    def _on_rollout_start(self) -> None:
        steps, total = self.model.num_timesteps, self.config.total_steps
        if steps >= self.round_end:
            if self.under_way:
                self._finish()
            if not self.stopped:
                self._begin()
        if self.progress is not None:
            text = f"step {steps:,} of {total:,}" + (f", best {self.marks.best_score:.4f}" if self.marks.best else "")
            self.progress(steps, total, text)

    def _on_step(self) -> bool:
        return self.under_way

    def _on_training_end(self) -> None:
        if self.under_way:
            self._finish()

    def close(self) -> None:
        self.scalars.close()
        if self.folder is not None:
            save_last(self.folder, self.agent.weights())
        self.agent.set_weights(self.marks.best)

    def _begin(self) -> None:
        model = self.model
        assert model.env is not None and model.ep_info_buffer is not None
        model.set_random_seed((self.agent.seed * 100_003 + self.marks.epoch) % 2**32)
        # What a learn() that starts here would do.
        model._last_obs = model.env.reset()  # type: ignore[assignment]
        model._last_episode_starts = np.ones(model.env.num_envs, dtype=bool)
        model.ep_info_buffer.clear()
        self.round_end = model.num_timesteps + self.config.evaluation_steps
        self.under_way = True

    def _finish(self) -> None:
        self.under_way = False
        marks = self.marks
        record = {"epoch": float(marks.epoch), "events": float(self.model.num_timesteps), **self._metrics()}
        if self.validate is not None:
            record |= validated(self.validate(self.agent))
        marks.keep_best(record.get("validation", record["epoch"]), marks.epoch, self.agent.weights())
        self.scalars.add(record)
        marks.history = self.scalars.history
        if self.folder is not None:
            save_checkpoint(self.folder, self, marks)

    def _metrics(self) -> dict[str, float]:
        """The newest scalars of the algorithm, and the mean return of the sessions that ended in the round."""
        metrics = {
            name.partition("/")[2]: float(value)
            for name, value in self.model.logger.name_to_value.items()
            if name.startswith("train/") and np.isfinite(value)
        }
        if self.model.ep_info_buffer:
            metrics["episode_return"] = float(np.mean([episode["r"] for episode in self.model.ep_info_buffer]))
        return metrics

    def state_tensors(self) -> dict[str, Tensor]:
        """Weights, moments and counters; the random streams and lanes of a round begin with it."""
        policy: BasePolicy = self.model.policy
        tensors = {f"policy.{name}": weight.detach() for name, weight in policy.named_parameters()}
        tensors |= prefixed("optimizer", optimizer_tensors(policy.optimizer))
        tensors["counters"] = torch.tensor([getattr(self.model, name, 0) for name in _COUNTERS])
        return tensors

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state_tensors` gave."""
        policy: BasePolicy = self.model.policy
        for name, weight in policy.named_parameters():
            weight.copy_(tensors[f"policy.{name}"])
        load_optimizer_tensors(policy.optimizer, part_of(tensors, "optimizer"))
        for name, count in zip(_COUNTERS, tensors["counters"].tolist(), strict=True):
            setattr(self.model, name, count)


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Stable-Baselines3 draws from the generators that the whole process shares; they are as before afterwards."""
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - it is what is drawn from
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002
