"""What every replay environment understands, and the spaces that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from ..errors import InputError
from .log import KIND_NAMES
from .sparsity import Drop

Feedback = Literal["match", "logged"]
Order = Literal["chronological", "shuffled"]

NO_KIND = len(KIND_NAMES)
"""Pads a window of kinds, as N pads one of items."""


@dataclass(frozen=True)
class ReplayOptions:
    """What every replay environment understands."""

    window: int = 20
    """Items in an observation: the last ones of the session, oldest to newest, padded on the left with N."""
    kinds: bool = False
    """Observations are ``{"items": [W] int32, "kinds": [W] uint8}``: 0 click, 1 purchase, 2 where nothing is."""
    slate: int | None = None
    """Items in an action, ``MultiDiscrete([N] * slate)``, a hit if the logged item is among them; None: one item."""
    feedback: Feedback = "match"
    """"match": the reward counts only if the action is the logged item. "logged": always (IRN paper, section 3)."""
    rewards: tuple[float, float] = (1.0, 5.0)
    """Reward of a click and of a purchase (IRN paper, section 5.1; (0, 5) is its -P, (1, 5) its -F)."""
    density: float = 1.0
    """Share of the purchases that stay (IRN paper, section 5.3)."""
    drop: Drop = "event"
    """What happens to the others: the event is deleted, its reward is 0, or it becomes a click."""
    density_seed: int = 0
    """Which purchases stay; the sets of one seed are nested as `density` grows."""
    cold_start: int | None = None
    """The state stops growing after so many events (IRN paper, section 5.5); None: never."""
    order: Order = "chronological"
    """Order of the sessions in a pass; "shuffled" draws a new one each pass from the seed of `reset`."""
    shard: tuple[int, int] = (0, 1)
    """(w, W): every W-th playable session from the w-th on, for W processes that share the work; (0, 1): all."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise InputError(f"window: expected at least 1 item, found {self.window}")
        if self.slate is not None and self.slate < 1:
            raise InputError(f"slate: expected at least 1 item or None, found {self.slate}")
        if self.feedback not in ("match", "logged"):
            raise InputError(f"feedback: expected 'match' or 'logged', found {self.feedback!r}")
        if self.order not in ("chronological", "shuffled"):
            raise InputError(f"order: expected 'chronological' or 'shuffled', found {self.order!r}")
        if len(self.rewards) != 2:
            raise InputError(f"rewards: expected (click, purchase), found {self.rewards!r}")
        if self.cold_start is not None and self.cold_start < 1:
            raise InputError(f"cold_start: expected at least 1 event or None, found {self.cold_start}")
        if len(self.shard) != 2 or not 0 <= self.shard[0] < self.shard[1]:
            raise InputError(f"shard: expected (w, W) with 0 <= w < W, found {self.shard!r}")

    @classmethod
    def of(cls, options: dict[str, Any]) -> ReplayOptions:
        """From the keyword arguments of an environment. Raises `InputError` for a name that means nothing."""
        names = [field.name for field in fields(cls)]
        for name in options.keys() - set(names):
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(f"unknown option {name!r}; {hint}replay environments take {', '.join(names)}")
        return cls(**options)

    def observation_space(self, n_items: int) -> gym.spaces.Space:
        """Of one lane: Box(0, N, (window,), int32), or a Dict of it and the kinds."""
        items = gym.spaces.Box(0, n_items, shape=(self.window,), dtype=np.int32)
        if not self.kinds:
            return items
        return gym.spaces.Dict(items=items, kinds=gym.spaces.Box(0, NO_KIND, shape=(self.window,), dtype=np.uint8))

    def action_space(self, n_items: int) -> gym.spaces.Space:
        """Of one lane: Discrete(N), or MultiDiscrete([N] * slate)."""
        return gym.spaces.Discrete(n_items) if self.slate is None else gym.spaces.MultiDiscrete([n_items] * self.slate)


def reconfigured(options: ReplayOptions, changes: dict[str, Any]) -> ReplayOptions:
    """`options` with fields changed that leave the spaces alone. Raises `InputError` for others and unknown ones."""
    fixed = {"window", "kinds", "slate"} & changes.keys()
    if fixed:
        raise InputError(f"reconfigure: {', '.join(sorted(fixed))} would change the spaces; make a new environment")
    return ReplayOptions.of({**vars(options), **changes})
