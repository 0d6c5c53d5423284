"""`Target`, the figures that a shop is to come near: measured on a log, or published."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from ...errors import InputError
from ..log import CLICK, PURCHASE, SessionLog
from .describe import describe

_MOST_EVENTS = 200_000

Recorded = Literal["all", "clicks", "purchases"]
"""Which events of a session a record holds."""


@dataclass(frozen=True)
class Target:
    """Figures of a shop, None where they are not known. Those of `describe` have its names and its meaning."""

    source: str
    """Where the figures are from, as tables name it."""
    recorded: Recorded = "all"
    """The events that the figures are of; the simulated log is cut to the same before it is compared."""
    shortest: int = 2
    """Events of the shortest session recorded; shorter simulated ones are left out of the comparison."""

    sessions: float | None = None
    """Sessions in all; simulated are as many, or fewer where they have more than 200,000 events."""
    items: float | None = None
    """Items in all; sets n_items."""
    items_seen: float | None = None
    """Items in a log of the size that is simulated (a check)."""
    length_mean: float | None = None
    """Events a session; fits decide_rate."""
    length_median: float | None = None
    """Events (a check)."""
    length_p90: float | None = None
    """Events (a check)."""
    length_p99: float | None = None
    """Events (a check)."""
    length_max: float | None = None
    """Events; sets max_events."""
    length_tail: float | None = None
    """Share; fits urgency_spread."""
    repeat_last: float | None = None
    """Share; fits reload."""
    repeat_earlier: float | None = None
    """Share; fits back."""
    known_transition: float | None = None
    """Share; fits follow."""
    buyer_share: float | None = None
    """Share; sets buyer_share."""
    clicks_after_purchase: float | None = None
    """Clicks; sets linger."""
    basket_mean: float | None = None
    """Purchases; fits basket_growth."""
    basket_duplicate: float | None = None
    """Share; fits rebuy_penalty."""
    basket_gap: float | None = None
    """Seconds; sets basket_gap."""
    purchase_repeat: float | None = None
    """Share; fits accessory_share and, beyond the one given, impulse_share."""
    purchase_last: float | None = None
    """Share (a check)."""
    top_tenth_share: float | None = None
    """Share; fits zipf_exponent."""
    top_item_share: float | None = None
    """Share; fits zipf_shift."""
    new_item_share: float | None = None
    """Share; fits new_item_share, which counts only items that were not on sale before."""
    gap_median: float | None = None
    """Seconds; fits dwell."""
    gap_spread: float | None = None
    """Standard deviation of log seconds; fits dwell_spread."""
    start: str | None = None
    """ISO date or time, UTC; sets start."""
    days: float | None = None
    """Days; sets days."""
    daily_swing: float | None = None
    """Sets daily_swing."""
    peak_hour: float | None = None
    """Hour, UTC; sets peak_hour."""
    weekend_lift: float | None = None
    """Sets weekend_lift."""
    busiest_hour: float | None = None
    """Multiple of the mean hour (a check)."""
    busiest_weekday: float | None = None
    """Multiple of the mean day (a check)."""
    users: float | None = None
    """Shoppers who come in all the sessions; with `visits_mean` it fits users, those who might have come included."""
    visits_mean: float | None = None
    """Sessions of a shopper who comes; fits users."""
    visits_tail: float | None = None
    """Share; fits visit_spread."""
    first_item_known: float | None = None
    """Share (a check)."""
    visit_overlap: float | None = None
    """Share, beyond chance; fits taste_persistence."""


RECSYS15_BUYER_MONTH = Target(
    source="RecSys15, buyer month (published)",
    sessions=72_274,
    items=9_167,
    length_mean=683_530 / 72_274,
    repeat_last=0.15,
    repeat_earlier=0.27,
    buyer_share=1.0,
    start="2014-09-01",
    days=30.0,
)
"""IRN paper, section 5.1: train and validation."""

RECSYS15_ALL = Target(source="RecSys15, all sessions (published)", buyer_share=509_696 / 9_249_729)
"""RecSys Challenge 2015, the organisers' counts of sessions and of those with a purchase."""

GROUPS: tuple[tuple[str, ...], ...] = (
    ("sessions", "items", "items_seen"),
    ("length_mean", "length_median", "length_p90", "length_p99", "length_max", "length_tail"),
    ("repeat_last", "repeat_earlier"),
    ("known_transition",),
    ("buyer_share", "clicks_after_purchase"),
    ("basket_mean", "basket_duplicate", "basket_gap"),
    ("purchase_repeat", "purchase_last"),
    ("top_tenth_share", "top_item_share", "new_item_share"),
    ("gap_median", "gap_spread"),
    ("start", "days"),
    ("daily_swing", "peak_hour", "weekend_lift", "busiest_hour", "busiest_weekday"),
    ("users", "visits_mean", "visits_tail", "first_item_known", "visit_overlap"),
)
"""Figures that mean little apart: of several targets the first that has one of a group gives the whole group."""

OF_THE_SIZE = ("items_seen", "known_transition", "top_tenth_share", "users")
"""Of groups that depend on how much was recorded: they are taken from the target that gives the size, or not at all."""


def target_of(log: SessionLog, source: str = "", *, seed: int = 0) -> Target:
    """The figures of a log. Of more than 200,000 events a seeded sample is measured, of whole users where it has any.

    A log without purchases, or without clicks, is taken for a record of the other kind alone, and says nothing of the
    share of buyers. Raises `InputError` for a log without events.
    """
    if not log.n_events:
        raise InputError("calibrate: the log has no events, so there is nothing to fit; give a recorded log")
    recorded: Recorded = "clicks" if not log.n_purchases else "all"
    if log.n_purchases == log.n_events:
        recorded = "purchases"
    start = np.asarray(log.time)[log.offset[:-1]]
    figures = describe(_sample(log, simulated_sessions(log.n_sessions, log.n_events / log.n_sessions), seed))
    whole = {
        "sessions": log.n_sessions,
        "items": len(np.unique(log.item)),
        "length_max": int(log.length.max()),
        "start": datetime.fromtimestamp(int(start.min()) // 10**9, UTC).replace(tzinfo=None).isoformat(),
        "days": float(start.max() - start.min()) / (86_400 * 10**9),
    }
    if log.user is not None:
        whole["users"] = len(np.unique(log.user))
    names = {field.name for field in fields(Target)} - ({"buyer_share"} if recorded == "clicks" else set())
    if recorded == "purchases":
        names = {"basket_mean", "basket_duplicate", "basket_gap"}
    # NaN, which equals nothing, is what `describe` gives where there is nothing to measure.
    known: dict[str, Any] = {name: v for name, v in {**figures, **whole}.items() if name in names and v == v}
    if log.user is None:
        known.pop("users", None)
    return Target(source or f"log of {log.n_sessions:,} sessions", recorded, int(log.length.min()), **known)


def simulated_sessions(sessions: float, length: float) -> int:
    """Of so many sessions of this mean length, those that are simulated and measured."""
    return max(1, round(min(sessions, _MOST_EVENTS / length)))


def recorded_part(log: SessionLog, recorded: Recorded, shortest: int) -> SessionLog:
    """What a record of these events, and of sessions no shorter than that, would hold of a log."""
    if recorded == "all" and shortest <= int(log.length.min()):
        return log
    kind = np.asarray(log.kind)
    kept = np.ones(log.n_events, bool) if recorded == "all" else kind == (CLICK if recorded == "clicks" else PURCHASE)
    length = np.add.reduceat(kept, log.offset[:-1], dtype=np.int64)
    long_enough = length >= max(1, shortest)
    kept &= np.repeat(long_enough, log.length)
    return SessionLog(
        item=log.item[kept],
        kind=log.kind[kept],
        time=log.time[kept],
        offset=np.concatenate([[0], np.cumsum(length[long_enough])]),
        session_id=log.session_id[long_enough],
        item_id=log.item_id,
        user=None if log.user is None else log.user[long_enough],
        notes=log.notes,
    )


def _sample(log: SessionLog, n_sessions: int, seed: int) -> SessionLog:
    if n_sessions >= log.n_sessions:
        return log
    rng = np.random.default_rng(seed)
    if log.user is None:
        return log.select(rng.choice(log.n_sessions, n_sessions, replace=False))
    _, of_user = np.unique(log.user, return_inverse=True)
    drawn = rng.random(of_user.max() + 1) < n_sessions / log.n_sessions
    return log.select(np.flatnonzero(drawn[of_user]))
