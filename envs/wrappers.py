"""Experiments as wrappers: sparse purchase rewards and cold starts on a replay environment that is already made.

What they change is which events are replayed and what a state shows, which no filter on the outside could do. So they
reconfigure the environment that they wrap, whatever is between, and it must be reset before it goes on. They are the
keyword arguments of `ReplayOptions`, said later: the result is the same. Each comes twice, as Gymnasium's own wrappers
do: for one environment, and for a vector of them (ours, or Gymnasium's vectors of ours).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv, VectorWrapper

from ..errors import InputError
from .sparsity import Drop


class SparsePurchases(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Leaves a share `density` of the purchase rewards (IRN paper, section 5.3, Table 2).

    `drop` says what happens to the others and `seed` which stay, as in `thin_purchases`.
    """

    def __init__(self, env: gym.Env, density: float, drop: Drop = "event", seed: int = 0) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, density=density, drop=drop, seed=seed)
        super().__init__(env)
        _reconfigure(env, density=density, drop=drop, density_seed=seed)


class ColdStart(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """States stop growing after `events` events; later events still ask for an action (IRN paper, section 5.5)."""

    def __init__(self, env: gym.Env, events: int) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, events=events)
        super().__init__(env)
        _reconfigure(env, cold_start=events)


class VectorSparsePurchases(VectorWrapper):
    """`SparsePurchases` for a vector environment."""

    def __init__(self, env: VectorEnv, density: float, drop: Drop = "event", seed: int = 0) -> None:
        super().__init__(env)
        _reconfigure(env, density=density, drop=drop, density_seed=seed)


class VectorColdStart(VectorWrapper):
    """`ColdStart` for a vector environment."""

    def __init__(self, env: VectorEnv, events: int) -> None:
        super().__init__(env)
        _reconfigure(env, cold_start=events)


def _reconfigure(env: gym.Env | VectorEnv, **changes: Any) -> None:
    """Raises `InputError` for an environment that is none of ours."""
    base: Any = env.unwrapped
    try:
        if hasattr(base, "reconfigure"):
            base.reconfigure(**changes)
        else:
            base.call("reconfigure", **changes)
    except AttributeError:
        raise InputError(
            f"expected a replay environment of sessiongym or a vector of them, found {base}; "
            "these wrappers change what is replayed"
        ) from None
