"""The shape of a session log in a few figures, the same for simulated and for recorded sessions."""

from __future__ import annotations

import numpy as np

from ..log import PURCHASE, SessionLog


def describe(log: SessionLog) -> dict[str, float]:
    """Figures of any log; a share of nothing is NaN.

    - ``sessions, items, items_seen, events, purchases``: counts; `items_seen` are the items that occur.
    - ``length_mean, length_median, length_p90, length_p99, length_max``: events a session, purchases included.
    - ``repeat_last``: of the clicks that have an event before them in their session, the share whose item is that of
      the event just before. ``repeat_earlier``: the share whose item is not that one but occurs further back. The two
      do not overlap; their sum is the share of next clicks on something already in the session.
    - ``buyer_share``: sessions with a purchase. ``basket_mean``: purchases in such a session. ``basket_duplicate``:
      purchases of an item bought before in the session.
    - ``purchase_repeat``: purchases of an item that has an event, click or purchase, before it in the session;
      ``purchase_last``: of the item of the event just before.
    - ``clicks_after_purchase``: mean clicks after the first purchase, over sessions with a purchase.
    - ``top_tenth_share``: events on the most frequent tenth of the items that occur (rounded down, at least one item).
    - ``top_item_share``: events on the most frequent item.
    - ``new_item_share``: of the items that occur, those first seen after a tenth of the log's time has passed.
    - ``gap_median``: seconds between an event and the click after it.
    - ``busiest_hour, busiest_weekday``: starts of sessions in the busiest hour of the day (UTC), and on the busiest day
      of the week, as a multiple of the mean one.
    - ``users``: shoppers who occur, 0 where they are anonymous. ``visits_mean``: sessions of each.
      ``first_item_known``: of the sessions whose shopper has been here before, the share whose first item is in one of
      that shopper's earlier sessions.
    """
    item, kind, time = np.asarray(log.item), np.asarray(log.kind), np.asarray(log.time)
    session = np.repeat(np.arange(log.n_sessions), log.length)
    has_before = np.ones(log.n_events, dtype=bool)
    has_before[log.offset[:-1]] = False
    bought = kind == PURCHASE
    clicked_next = has_before & ~bought
    same_as_last = has_before & (item == np.roll(item, 1))
    seen_before = _occurred_before(session, item)
    n_bought = np.bincount(session[bought], minlength=log.n_sessions)
    after_purchase = _occurred_before_in_session(bought, np.asarray(log.offset)) & ~bought
    frequency = np.sort(np.bincount(item, minlength=log.n_items))[::-1]
    n_seen = int(np.count_nonzero(frequency))
    length = log.length
    quantile = np.quantile(length, [0.5, 0.9, 0.99, 1.0]) if len(length) else np.full(4, np.nan)
    return {
        "sessions": log.n_sessions,
        "items": log.n_items,
        "items_seen": n_seen,
        "events": log.n_events,
        "purchases": log.n_purchases,
        "length_mean": _mean(length),
        **dict(zip(("length_median", "length_p90", "length_p99", "length_max"), quantile.tolist(), strict=True)),
        "repeat_last": _mean(same_as_last[clicked_next]),
        "repeat_earlier": _mean((seen_before & ~same_as_last)[clicked_next]),
        "buyer_share": _mean(n_bought > 0),
        "basket_mean": _mean(n_bought[n_bought > 0]),
        "basket_duplicate": _mean(_occurred_before(session[bought], item[bought])),
        "purchase_repeat": _mean(seen_before[bought]),
        "purchase_last": _mean(same_as_last[bought]),
        "clicks_after_purchase": _mean(np.bincount(session[after_purchase], minlength=log.n_sessions)[n_bought > 0]),
        "top_tenth_share": _head_share(frequency, max(1, n_seen // 10)),
        "top_item_share": _head_share(frequency, 1),
        "new_item_share": _new_item_share(item, time),
        "gap_median": float(np.median(np.diff(time, prepend=0)[clicked_next]) / 1e9) if clicked_next.any() else np.nan,
        **_rhythm(time[log.offset[:-1]]),
        **_returns(log.user, session, item, np.asarray(log.offset)),
    }


def _occurred_before(session: np.ndarray, item: np.ndarray) -> np.ndarray:
    """[E] bool, whether the same item occurs earlier in the same session."""
    order = np.lexsort((item, session))
    again = np.zeros(len(item), dtype=bool)
    again[order[1:]] = (np.diff(session[order]) == 0) & (np.diff(item[order]) == 0)
    return again


def _occurred_before_in_session(flag: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """[E] bool, whether an earlier event of the session is flagged."""
    before = np.concatenate([[0], np.cumsum(flag)])
    return before[:-1] > np.repeat(before[offset[:-1]], np.diff(offset))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _head_share(frequency: np.ndarray, count: int) -> float:
    total = int(frequency.sum())
    return float(frequency[:count].sum() / total) if total else float("nan")


def _new_item_share(item: np.ndarray, time: np.ndarray) -> float:
    if not len(item):
        return float("nan")
    order = np.argsort(time, kind="stable")
    _, first = np.unique(item[order], return_index=True)
    threshold = time.min() + 0.1 * (time.max() - time.min())
    return _mean(time[order[first]] > threshold)


def _rhythm(start: np.ndarray) -> dict[str, float]:
    if not len(start):
        return {"busiest_hour": float("nan"), "busiest_weekday": float("nan")}
    hours = start // (3_600 * 10**9)
    by_hour = np.bincount(hours % 24, minlength=24)
    by_weekday = np.bincount(hours // 24 % 7, minlength=7)
    return {
        "busiest_hour": float(by_hour.max() / by_hour.mean()),
        "busiest_weekday": float(by_weekday.max() / by_weekday.mean()),
    }


def _returns(user: np.ndarray | None, session: np.ndarray, item: np.ndarray, offset: np.ndarray) -> dict[str, float]:
    if user is None:
        return {"users": 0, "visits_mean": float("nan"), "first_item_known": float("nan")}
    _, earliest, of_user = np.unique(user, return_index=True, return_inverse=True)
    returned = earliest[of_user] < np.arange(len(user))
    meeting = of_user[session] * (int(item.max(initial=0)) + 1) + item
    _, first_event, of_meeting = np.unique(meeting, return_index=True, return_inverse=True)
    known = session[first_event[of_meeting]] < session
    return {
        "users": len(earliest),
        "visits_mean": len(user) / len(earliest) if len(earliest) else float("nan"),
        "first_item_known": _mean(known[offset[:-1]][returned]),
    }
