"""Reward sparsity: keep a seeded share of the purchases of a training log (IRN paper, section 5.3, Table 2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from ..errors import InputError
from .log import CLICK, PURCHASE, SessionLog

Drop = Literal["event", "reward", "click"]


def keep_purchases(log: SessionLog, density: float, seed: int) -> np.ndarray:
    """[E] bool: purchases that stay (False elsewhere). The sets of one seed are nested as `density` grows.

    Exactly ``round(density * purchases)`` of them stay. Raises `InputError` for a density outside [0, 1].
    """
    if not 0 <= density <= 1:
        raise InputError(f"density: expected a share of purchases in [0, 1], found {density}; give one such as 0.1")
    purchase = np.flatnonzero(log.kind == PURCHASE)
    priority = np.random.default_rng(seed).permutation(len(purchase))
    kept = np.zeros(log.n_events, dtype=bool)
    kept[purchase[priority < round(density * len(purchase))]] = True
    return kept


def thin_purchases(
    log: SessionLog, density: float, drop: Drop = "event", seed: int = 0
) -> tuple[SessionLog, np.ndarray | None]:
    """The log with a share `density` of its purchases, and [E] bool: events whose reward is forced to 0 (or None).

    What happens to the other purchases: ``drop="event"`` deletes them (a session left empty goes too),
    ``drop="reward"`` keeps them with reward 0, ``drop="click"`` makes them clicks.
    """
    if drop not in ("event", "reward", "click"):
        raise InputError(f"drop: expected 'event', 'reward' or 'click', found {drop!r}")
    if density == 1:
        return log, None
    dropped = (log.kind == PURCHASE) & ~keep_purchases(log, density, seed)
    if drop == "reward":
        return log, dropped
    if drop == "click":
        kind = np.where(dropped, np.uint8(CLICK), log.kind)
        return _derived(log, kind=kind), None
    events_left = np.add.reduceat(~dropped, log.offset[:-1]) if log.n_events else np.zeros(0, dtype=np.int64)
    alive = events_left > 0
    stays = ~dropped
    return _derived(
        log,
        item=log.item[stays],
        kind=log.kind[stays],
        time=log.time[stays],
        offset=np.r_[0, np.cumsum(events_left[alive])].astype(np.int64),
        session_id=log.session_id[alive],
        user=None if log.user is None else log.user[alive],
    ), None


def _derived(log: SessionLog, **columns) -> SessionLog:
    # The folder and the recorded fingerprint belong to the original content.
    return replace(log, path=None, recorded_fingerprint=None, **columns)
