"""Who comes, and with what in mind: strangers, or shoppers who return.

A shopper who returns has a taste, an intent (cluster and price level) that outlives the session; the urgency, and
whether anything is bought, belong to the visit alone. With persistence p and drift d a visit starts with the taste (p),
or with a fresh intent that becomes the taste ((1 - p) d) or does not; where the intent wanders during a session does
not touch the taste. Tastes and fresh intents follow one law, so every visit by itself looks like a stranger's, and the
intents at the start of two visits of one shopper, k visits apart, are one and the same choice with the chance

    p (p + r) (1 - r)^(k - 1),  r = (1 - p) d,

and otherwise independent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .catalogue import Catalogue
from .config import ShopConfig
from .shopper import Rates, Shoppers, arrive, compiled, step

_STRANGER, _NOBODY = -1, -2


class Visits(NamedTuple):
    """S sessions to come, in order of their start."""

    stream: np.ndarray
    """[S] uint64, seed of the session's random stream."""
    start: np.ndarray
    """[S] int64, nanoseconds since the epoch."""
    user: np.ndarray
    """[S] int32, who comes, -1 for a stranger; `simulate` puts another one in the place of who is still here."""
    keeps_taste: np.ndarray
    """[S] bool, whether the session starts with the taste of its shopper."""
    changes_taste: np.ndarray
    """[S] bool, whether a fresh intent becomes the taste."""


class Regulars(NamedTuple):
    """U shoppers who return, between their visits."""

    cluster: np.ndarray
    """[U] int32, the taste's cluster."""
    level: np.ndarray
    """[U] int32, the taste's price level."""
    left: np.ndarray
    """[U] int64, nanoseconds since the epoch, last event of the last session; 0 before the first."""


def draw_visits(
    config: ShopConfig, catalogue: Catalogue, start: np.ndarray, rng: np.random.Generator
) -> tuple[Visits, Regulars]:
    """The visits that begin at `start` [S], and the shoppers who make them (U = 0 where all are strangers)."""
    n, n_users = len(start), config.users
    stream = rng.integers(2**64, size=n, dtype=np.uint64)
    taste = np.searchsorted(catalogue.cluster_cumulative, rng.random(n_users), side="right").astype(np.int32)
    level = rng.integers(config.n_levels, size=n_users, dtype=np.int32)
    regulars = Regulars(taste, level, left=np.zeros(n_users, np.int64))
    user = np.full(n, _STRANGER, np.int32)
    if n_users:
        frequency = np.exp(config.visit_spread * rng.standard_normal(n_users))
        user = rng.choice(n_users, n, p=frequency / frequency.sum()).astype(np.int32)
    keeps_taste = rng.random(n) < config.taste_persistence
    changes_taste = rng.random(n) < config.taste_drift
    return Visits(stream, start, user, keeps_taste, changes_taste), regulars


@compiled
def simulate(
    visits: Visits,
    regulars: Regulars,
    shoppers: Shoppers,
    catalogue: Catalogue,
    rates: Rates,
    columns: tuple[np.ndarray, np.ndarray, np.ndarray],
    length: np.ndarray,
) -> int:
    """Run S visits to their end, one after the other in lane 0, and return the number of their events E.

    The columns item, kind and time, each with room for S * max_events, and length [S] are written to; so are the users
    of the visits, and the tastes. Returns -1 where a session starts while every shopper is in one.
    """
    item, kind, time = columns
    event = 0
    for session in range(len(visits.start)):
        first, now = event, visits.start[session]
        user = _away(visits.user[session], now, regulars)
        if user == _NOBODY:
            return -1
        visits.user[session] = user
        arrive(shoppers, 0, visits.stream[session], now, catalogue, rates)
        if user >= 0:
            _recall(shoppers, 0, regulars, user, visits.keeps_taste[session], visits.changes_taste[session])
        while True:
            next_item, next_kind, pause = step(shoppers, 0, catalogue, rates)
            if next_item < 0:
                break
            if event > first:
                now += max(1, int(pause * 1e3)) * 1_000_000
            item[event], kind[event], time[event] = next_item, next_kind, now
            event += 1
        length[session] = event - first
        if user >= 0:
            regulars.left[user] = now
    return event


@compiled
def _away(user: int, now: int, regulars: Regulars) -> int:
    """The user, or if still in a session whoever has been away the longest, or _NOBODY if none is."""
    user = int(user)
    if user == _STRANGER or regulars.left[user] < now:
        return user
    user = int(regulars.left.argmin())
    return user if regulars.left[user] < now else _NOBODY


@compiled
def _recall(shoppers: Shoppers, lane: int, regulars: Regulars, user: int, keeps: bool, changes: bool) -> None:
    """Let the shopper who just arrived be this user."""
    if keeps:
        shoppers.cluster[lane], shoppers.level[lane] = regulars.cluster[user], regulars.level[user]
    elif changes:
        regulars.cluster[user], regulars.level[user] = shoppers.cluster[lane], shoppers.level[lane]
