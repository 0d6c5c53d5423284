"""Seconds that the simulated shop takes for a log of the IRN paper's size, against drawing as many popular items."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from common import CPU, N_ITEMS, interleaved, markdown, processor
from numba import njit
from sessiongym.envs.shop.config import ShopConfig
from sessiongym.envs.shop.shop import Shop

SESSIONS = 80_000
USERS = 20_000


@njit
def _draw(cumulative, item, rng):
    for event in range(len(item)):
        item[event] = np.searchsorted(cumulative, rng.random())


def table() -> str:
    """Seconds of one thread, compiled before."""
    shop = Shop(ShopConfig(n_items=N_ITEMS), seed=0)
    returning = Shop(ShopConfig(n_items=N_ITEMS, users=USERS, taste_persistence=0.8), seed=0)
    n_events = shop.log(SESSIONS, 0).n_events
    weight = 1 / np.arange(5, 5 + N_ITEMS)
    rng = np.random.default_rng(0)
    cumulative, item = np.cumsum(weight / weight.sum()), np.empty(n_events, np.int32)

    def drawn() -> float:
        _draw(cumulative, item, rng)
        return n_events

    contenders: dict[str, Callable[[], float]] = {
        f"shop, {SESSIONS:,} sessions": lambda: shop.log(SESSIONS, 0).n_events,
        f"shop, {SESSIONS:,} sessions of {USERS:,} returning shoppers": lambda: returning.log(SESSIONS, 0).n_events,
        "bare Numba loop: an item by popularity for each event": drawn,
    }
    rates = interleaved(contenders, CPU, rounds=3)
    rows = [
        [name, f"{n_events:,}", f"{n_events / rate:.2f}", f"{rate / 1e6:.2f}", "1", processor()]
        for name, rate in rates.items()
    ]
    return markdown(["what", "events", "seconds", "M events/s", "threads", "device"], rows)


if __name__ == "__main__":
    print(table())
