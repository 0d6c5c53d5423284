"""`LiveShopConfig`, every knob of the interactive shop, and the spaces that follow. Nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from math import inf
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from ...errors import InputError
from ..replay_options import NO_KIND
from .config import ShopConfig

N_PHASES = 4
"""Browsing, buying, lingering, gone: what a shopper is at, as `reveal_intent` shows it."""


@dataclass(frozen=True)
class LiveShopConfig:
    """A shop whose shoppers respond to recommendations. Raises `InputError` for a value outside its range.

    With ``strength``, ``delay`` and ``clickbait`` 0 recommendations change nothing: the sessions follow the law of
    ``Shop(shop, shop_seed).log``. What each knob does to a shopper is written out in docs/live-shop.md.
    """

    shop: ShopConfig = field(default_factory=ShopConfig)
    """The catalogue and the shoppers, all of them strangers: `users` must be 0."""
    shop_seed: int = 0
    """Seed of the catalogue, as that of `Shop`."""

    strength: float = 0.3
    """Chance that a recommended item is clicked, in place of whatever the shopper would have done, if it is new to the
    session, of the intent's cluster and of its price level; other levels by `ShopConfig.click_level_pull` less."""
    repeat_fit: float = 0.0
    """Factor on that chance for an item that the session has seen; shoppers go back by themselves."""
    attention: float = 0.7
    """Chance to look at the next position of a slate after one looked at and not clicked (the cascade model of Craswell
    et al., WSDM 2008); the first is always looked at."""
    delay: float = 0.0
    """Purchases later: a decision against buying (at the end of the search, or of the basket) goes for it with the
    chance 1 - exp(-delay * persuasion)."""
    delay_decay: float = 0.8
    """Persuasion, 0 at first, is multiplied by this at each event; every item of the intent's cluster that the shopper
    looks at in a recommendation adds 1."""
    clickbait: float = 0.0
    """Chance that a recommended bait is clicked, whatever the intent."""
    bait_share: float = 0.1
    """Share of the items that are bait: the cheapest price level first, within it the most popular."""
    disappointment: float = 0.25
    """Chance, at each later end of a step, to walk out without buying, for each bait clicked outside the intent's
    cluster."""

    window: int = 20
    """Items in an observation: the last ones of the session, oldest to newest, padded on the left with N."""
    kinds: bool = False
    """Observations have ``kinds`` [W] uint8 beside ``items``: 0 click, 1 purchase, 2 where nothing is."""
    reveal_intent: bool = False
    """Observations have ``intent`` [3] int64 (cluster, price level, phase) and ``urgency`` [1] float32, which no agent
    of a real shop sees: for upper bounds."""
    slate: int | None = None
    """Items in an action, ``MultiDiscrete([N] * slate)``, the first shown first; None: one item."""
    feedback: Literal["all", "match"] = "all"
    """"all": every click and purchase is rewarded, so a return is what the shop earns from the session after its first
    click. "match": only those of a recommended item, as in replay."""
    rewards: tuple[float, float] = (1.0, 5.0)
    """Reward of a click and of a purchase (IRN paper, section 5.1)."""

    def __post_init__(self) -> None:
        for name, high in _HIGHEST.items():
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 <= value <= high and value < inf):
                allowed = f"0 to {high:g}" if high < inf else "0 on"
                raise InputError(f"LiveShopConfig: {name} must be a number from {allowed}, found {value!r}; correct it")
        if self.shop.users:
            raise InputError(
                f"LiveShopConfig: shoppers of the live shop are strangers, found {self.shop.users} users who return; "
                "set users=0"
            )
        if self.window < 1:
            raise InputError(f"window: expected at least 1 item, found {self.window}")
        if self.slate is not None and self.slate < 1:
            raise InputError(f"slate: expected at least 1 item or None, found {self.slate}")
        if self.feedback not in ("all", "match"):
            raise InputError(f"feedback: expected 'all' or 'match', found {self.feedback!r}")
        if len(self.rewards) != 2:
            raise InputError(f"rewards: expected (click, purchase), found {self.rewards!r}")

    @classmethod
    def of(cls, options: dict[str, Any]) -> LiveShopConfig:
        """From the keyword arguments of an environment. Raises `InputError` for a name that means nothing."""
        names = [each.name for each in fields(cls)]
        for name in options.keys() - set(names):
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(f"unknown option {name!r}; {hint}the live shop takes {', '.join(names)}")
        return cls(**options)

    @property
    def n_items(self) -> int:
        return self.shop.n_items

    @property
    def dict_observations(self) -> bool:
        """Whether an observation is a dict of arrays rather than the items alone."""
        return self.kinds or self.reveal_intent

    def observation_space(self) -> gym.spaces.Space:
        """Of one lane: Box(0, N, (window,), int32), or a Dict of it and what else is shown."""
        spaces: dict[str, gym.spaces.Space] = {
            "items": gym.spaces.Box(0, self.n_items, shape=(self.window,), dtype=np.int32)
        }
        if self.kinds:
            spaces["kinds"] = gym.spaces.Box(0, NO_KIND, shape=(self.window,), dtype=np.uint8)
        if self.reveal_intent:
            spaces["intent"] = gym.spaces.MultiDiscrete([self.shop.n_clusters, self.shop.n_levels, N_PHASES])
            spaces["urgency"] = gym.spaces.Box(0, np.inf, shape=(1,), dtype=np.float32)
        return gym.spaces.Dict(spaces) if self.dict_observations else spaces["items"]

    def action_space(self) -> gym.spaces.Space:
        """Of one lane: Discrete(N), or MultiDiscrete([N] * slate)."""
        n_items = self.n_items
        return gym.spaces.Discrete(n_items) if self.slate is None else gym.spaces.MultiDiscrete([n_items] * self.slate)


_HIGHEST = {
    "strength": 1.0,
    "repeat_fit": 1.0,
    "attention": 1.0,
    "delay": inf,
    "delay_decay": 1.0,
    "clickbait": 1.0,
    "bait_share": 1.0,
    "disappointment": 1.0,
}
"""Of the numbers from 0 on."""
