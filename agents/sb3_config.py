"""What an agent trained by Stable-Baselines3 is made of. Presets are instances.

Fields of an algorithm are named as its arguments are in Stable-Baselines3 2.9, which documents them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

from ..envs.sparsity import Drop
from ..errors import InputError


def _check(config: object, least: int, names: tuple[str, ...]) -> None:
    for name in names:
        if not least <= getattr(config, name) < float("inf"):
            raise InputError(f"{name}: expected a finite number from {least}, found {getattr(config, name)}")


def _check_shares(config: object, names: tuple[str, ...]) -> None:
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise InputError(f"{name}: expected a number in [0, 1], found {getattr(config, name)}")


@dataclass(frozen=True)
class SB3Config:
    """The network, the environment and the schedule of validation, whatever the algorithm."""

    embedding_dim: int = 64
    """Size of the item embedding, which is the output layer as well."""
    hidden_units: int = 64
    """Units of the GRU that reads the window."""
    window: int = 20
    """Items in an observation."""
    kinds: bool = False
    """Observations say of each item whether it was clicked or bought."""

    click_reward: float = 1.0
    """Reward of a click that was foreseen (IRN paper, section 5.1: -F)."""
    purchase_reward: float = 5.0
    """Reward of a purchase that was foreseen (IRN paper, section 5.1)."""
    density: float = 1.0
    """Share of the training purchases that stay (IRN paper, section 5.3)."""
    drop: Drop = "event"
    """What happens to the others; see `envs.sparsity.thin_purchases`."""

    lanes: int = 32
    """Sessions walked at once."""
    learning_rate: float = 1e-3
    """Of the optimiser."""
    gamma: float = 0.0
    """Discount per event. In replay an action never changes what comes next, so its value is its own reward."""
    max_grad_norm: float = 10.0
    """Largest global norm of a gradient."""
    total_steps: int = 400_000
    """Environment steps of the training, all lanes together, rounded up to whole rollouts."""
    evaluation_steps: int = 40_000
    """Environment steps between validations, rounded up to whole rollouts."""
    patience: int = 5
    """Validations without a better score before training stops."""

    def __post_init__(self) -> None:
        _check(self, 1, ("embedding_dim", "hidden_units", "window", "lanes", "total_steps", "evaluation_steps"))
        _check(self, 0, ("patience", "learning_rate"))
        if not self.max_grad_norm > 0:
            raise InputError(f"max_grad_norm: expected a norm above 0, found {self.max_grad_norm}")
        _check_shares(self, ("gamma", "density"))
        if self.drop not in ("event", "reward", "click"):
            raise InputError(f"drop: expected one of event, reward, click, found {self.drop!r}")

    def algorithm_arguments(self) -> dict[str, Any]:
        """The fields that the algorithm takes under their own names."""
        ours = {f.name for f in fields(SB3Config)} - {"learning_rate", "gamma", "max_grad_norm"}
        ours |= {"prefill", "n_quantiles"}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ours}


@dataclass(frozen=True)
class SB3PPOConfig(SB3Config):
    """Proximal policy optimisation (Schulman et al. 2017)."""

    n_steps: int = 8
    """Steps of each lane between updates."""
    batch_size: int = 512
    """Transitions of a gradient step."""
    n_epochs: int = 2
    """Passes over a rollout."""
    gae_lambda: float = 0.95
    """Of generalised advantage estimation (Schulman et al. 2016)."""
    clip_range: float = 0.2
    """Largest change of a probability ratio that is rewarded."""
    ent_coef: float = 0.001
    """Weight of the entropy."""
    vf_coef: float = 0.5
    """Weight of the value loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, 1, ("n_steps", "n_epochs"))
        _check(self, 2, ("batch_size",))
        _check(self, 0, ("clip_range", "ent_coef", "vf_coef"))
        _check_shares(self, ("gae_lambda",))
        if self.n_steps * self.lanes < 2:
            # PPO divides advantages by their standard deviation.
            raise InputError("n_steps, lanes: expected two steps or more in a rollout, found one")


@dataclass(frozen=True)
class SB3A2CConfig(SB3Config):
    """Advantage actor-critic, synchronous (Mnih et al. 2016)."""

    n_steps: int = 4
    """Steps of each lane between updates."""
    gae_lambda: float = 1.0
    """Of generalised advantage estimation; 1 is plain n-step advantage."""
    ent_coef: float = 0.001
    """Weight of the entropy."""
    vf_coef: float = 0.5
    """Weight of the value loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, 1, ("n_steps",))
        _check(self, 0, ("ent_coef", "vf_coef"))
        _check_shares(self, ("gae_lambda",))


@dataclass(frozen=True)
class SB3DQNConfig(SB3Config):
    """Deep Q-network (Mnih et al. 2015)."""

    prefill: bool = True
    """Half of the buffer, at most, starts filled with logged transitions, the newest sessions."""
    buffer_size: int = 1_000_000
    """Transitions in the replay buffer, about 200 bytes each."""
    learning_starts: int = 0
    """Environment steps before the first gradient step."""
    batch_size: int = 256
    """Transitions of a gradient step."""
    train_freq: int = 1
    """Steps of each lane between updates."""
    gradient_steps: int = 1
    """Gradient steps of an update."""
    target_update_interval: int = 10_000
    """Environment steps between copies into the target network."""
    exploration_fraction: float = 0.1
    """Share of the training over which exploration falls to its end."""
    exploration_initial_eps: float = 0.05
    """Probability of random actions at the start."""
    exploration_final_eps: float = 0.05
    """Probability of random actions at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("buffer_size", "batch_size", "train_freq", "gradient_steps", "target_update_interval")
        _check(self, 1, counts)
        _check(self, 0, ("learning_starts",))
        _check_shares(self, ("exploration_fraction", "exploration_initial_eps", "exploration_final_eps"))
        if self.exploration_fraction == 0:
            raise InputError("exploration_fraction: expected a share above 0, found 0")


@dataclass(frozen=True)
class SB3QRDQNConfig(SB3DQNConfig):
    """Quantile-regression DQN (Dabney et al. 2018), of sb3-contrib."""

    n_quantiles: int = 8
    """Quantiles of the return; memory grows with batch_size x n_quantiles x items."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, 1, ("n_quantiles",))


_ACTING: dict[str, Any] = {
    "lanes": 256,
    "learning_rate": 3e-3,
    "total_steps": 1_000_000,
    "evaluation_steps": 100_000,
}
"""Who learns from its own hits alone needs more of them, and many in one gradient, since they are rare."""

SB3_PRESETS: dict[str, dict[str, SB3Config]] = {
    "practical": {
        "sb3-ppo": SB3PPOConfig(**_ACTING),
        "sb3-a2c": SB3A2CConfig(**_ACTING),
        "sb3-dqn": SB3DQNConfig(),
        "sb3-qrdqn": SB3QRDQNConfig(),
    },
    "default": {
        "sb3-ppo": SB3PPOConfig(
            lanes=1,
            learning_rate=3e-4,
            gamma=0.99,
            max_grad_norm=0.5,
            n_steps=2048,
            batch_size=64,
            n_epochs=10,
            ent_coef=0.0,
        ),
        "sb3-a2c": SB3A2CConfig(lanes=1, learning_rate=7e-4, gamma=0.99, max_grad_norm=0.5, n_steps=5, ent_coef=0.0),
        "sb3-dqn": SB3DQNConfig(
            lanes=1,
            learning_rate=1e-4,
            gamma=0.99,
            prefill=False,
            learning_starts=100,
            batch_size=32,
            train_freq=4,
            exploration_initial_eps=1.0,
        ),
        "sb3-qrdqn": SB3QRDQNConfig(
            lanes=1,
            learning_rate=5e-5,
            gamma=0.99,
            max_grad_norm=float("inf"),
            prefill=False,
            learning_starts=100,
            batch_size=32,
            train_freq=4,
            exploration_fraction=0.005,
            exploration_initial_eps=1.0,
            exploration_final_eps=0.01,
            n_quantiles=200,
        ),
    },
}
"""Configurations by preset and name; ``default`` has Stable-Baselines3's own hyperparameters, for one lane."""

CONFIG_CLASSES = {cls.__name__: cls for cls in (SB3PPOConfig, SB3A2CConfig, SB3DQNConfig, SB3QRDQNConfig)}
"""By name, as `agent.json` holds it."""


def check_installed(config: SB3Config) -> None:
    """Raises `InputError` where the algorithm is of sb3-contrib and that is not installed."""
    if isinstance(config, SB3QRDQNConfig) and find_spec("sb3_contrib") is None:
        raise InputError("sb3-qrdqn: expected the package sb3-contrib, found none; pip install 'sessiongym[contrib]'")
