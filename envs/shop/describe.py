"""The shape of a session log in a few figures, the same for simulated and for recorded sessions."""

from __future__ import annotations

import numpy as np

from ..log import CLICK, PURCHASE, SessionLog

_HOUR_NS = 3_600 * 10**9


def describe(log: SessionLog) -> dict[str, float]:
    """Figures of any log; a share of nothing is NaN.

    - ``sessions, items, items_seen, events, purchases``: counts; `items_seen` are the items that occur.
    - ``length_mean, length_median, length_p90, length_p99, length_max``: events a session, purchases included.
      ``length_tail``: events in the longest tenth of the sessions.
    - ``repeat_last``: of the clicks that have an event before them in their session, the share whose item is that of
      the event just before. ``repeat_earlier``: the share whose item is not that one but occurs further back. The two
      do not overlap; their sum is the share of next clicks on something already in the session.
    - ``known_transition``: of the other next clicks, the share that follow an item which the same item has followed in
      an earlier session.
    - ``buyer_share``: sessions with a purchase. ``basket_mean``: purchases in such a session. ``basket_duplicate``:
      purchases of an item bought before in the session. ``basket_gap``: median seconds between purchases that follow
      each other.
    - ``purchase_repeat``: purchases of an item that has an event, click or purchase, before it in the session;
      ``purchase_last``: of the item of the event just before.
    - ``clicks_after_purchase``: mean clicks after the first purchase, over sessions with a purchase.
    - ``top_tenth_share``: events on the most frequent tenth of the items that occur (rounded down, at least one item).
    - ``top_item_share``: events on the most frequent item.
    - ``new_item_share``: of the items that occur, those first seen after a tenth of the log's time has passed.
    - ``gap_median``: seconds between an event and the click after it. ``gap_spread``: standard deviation of their log,
      as the quartiles of a log-normal law give it; pauses below a second count as one.
    - ``days``: from the first start of a session to the last.
    - ``busiest_hour, busiest_weekday``: starts of sessions in the busiest hour of the day (UTC), and on the busiest day
      of the week, as a multiple of the mean one.
    - ``daily_swing, peak_hour, weekend_lift``: starts an hour as `ShopConfig` has them, by the first harmonic of the
      day, and a weekend's against those of working days; NaN where the log misses an hour of the day, or either.
    - ``users``: shoppers who occur, 0 where they are anonymous. ``visits_mean``: sessions of each; ``visits_tail``:
      sessions of the most frequent tenth of them.
      ``first_item_known``: of the sessions whose shopper has been here before, the share whose first item is in one of
      that shopper's earlier sessions. ``visit_overlap``: of the same sessions, the share that have an item in common
      with the shopper's last one, less the share that have one with the last one of another who returns next.
    """
    item, time = np.asarray(log.item), np.asarray(log.time)
    is_start = np.zeros(log.n_events, dtype=bool)
    is_start[log.offset[:-1]] = True
    clicked_next = ~is_start & (log.kind == CLICK)
    frequency = _falling(np.bincount(item, minlength=log.n_items))
    length = log.length
    quantile = np.quantile(length, [0.5, 0.9, 0.99, 1.0]) if len(length) else np.full(4, np.nan)
    return {
        "sessions": log.n_sessions,
        "items": log.n_items,
        "items_seen": len(frequency),
        "events": log.n_events,
        "purchases": log.n_purchases,
        "length_mean": _mean(length),
        **dict(zip(("length_median", "length_p90", "length_p99", "length_max"), quantile.tolist(), strict=True)),
        "length_tail": _tenth_share(_falling(length)),
        **_choices(log, is_start),
        "top_tenth_share": _tenth_share(frequency),
        "top_item_share": _head_share(frequency, 1),
        "new_item_share": _new_item_share(item, time),
        **_pauses(np.diff(time, prepend=0)[clicked_next] / 1e9),
        **_rhythm(time[log.offset[:-1]]),
        **_returns(log),
    }


def _choices(log: SessionLog, is_start: np.ndarray) -> dict[str, float]:
    """What is clicked and bought, given what came before in the session."""
    item, bought = np.asarray(log.item), np.asarray(log.kind) == PURCHASE
    session = np.repeat(np.arange(log.n_sessions), log.length)
    clicked_next = ~is_start & ~bought
    same_as_last = ~is_start & (item == np.roll(item, 1))
    seen_before = _occurred_before(session, item)
    n_bought = np.bincount(session[bought], minlength=log.n_sessions)
    after_purchase = _occurred_before_in_session(bought, np.asarray(log.offset)) & ~bought
    in_basket = bought & np.roll(bought, 1) & ~is_start
    pause = np.diff(np.asarray(log.time), prepend=0)[in_basket] / 1e9
    return {
        "repeat_last": _mean(same_as_last[clicked_next]),
        "repeat_earlier": _mean((seen_before & ~same_as_last)[clicked_next]),
        "known_transition": _mean(_known_transitions(session, item, is_start)[clicked_next & ~seen_before]),
        "buyer_share": _mean(n_bought > 0),
        "basket_mean": _mean(n_bought[n_bought > 0]),
        "basket_duplicate": _mean(_occurred_before(session[bought], item[bought])),
        "basket_gap": float(np.median(pause)) if len(pause) else float("nan"),
        "purchase_repeat": _mean(seen_before[bought]),
        "purchase_last": _mean(same_as_last[bought]),
        "clicks_after_purchase": _mean(np.bincount(session[after_purchase], minlength=log.n_sessions)[n_bought > 0]),
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


def _known_transitions(session: np.ndarray, item: np.ndarray, is_start: np.ndarray) -> np.ndarray:
    """[E] bool, whether item and the one before it follow each other in an earlier session; of no use at a start."""
    pair = np.roll(item, 1).astype(np.int64) * (int(item.max(initial=0)) + 1) + item
    # What crosses from one session to the next is a pair of its own.
    pair = np.where(is_start, -1 - np.arange(len(item)), pair)
    return _met_earlier(pair, session)


def _met_earlier(thing: np.ndarray, session: np.ndarray) -> np.ndarray:
    """[E] bool, whether the same number occurs in an earlier session; `session` must not fall."""
    _, first, of_thing = np.unique(thing, return_index=True, return_inverse=True)
    return session[first[of_thing]] < session


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _falling(count: np.ndarray) -> np.ndarray:
    """The counts that are not 0, the largest first."""
    return np.sort(count[count > 0])[::-1]


def _head_share(falling: np.ndarray, count: int) -> float:
    total = int(falling.sum())
    return float(falling[:count].sum() / total) if total else float("nan")


def _tenth_share(falling: np.ndarray) -> float:
    return _head_share(falling, max(1, len(falling) // 10))


def _new_item_share(item: np.ndarray, time: np.ndarray) -> float:
    if not len(item):
        return float("nan")
    order = np.argsort(time, kind="stable")
    _, first = np.unique(item[order], return_index=True)
    threshold = time.min() + 0.1 * (time.max() - time.min())
    return _mean(time[order[first]] > threshold)


def _pauses(seconds: np.ndarray) -> dict[str, float]:
    if not len(seconds):
        return {"gap_median": float("nan"), "gap_spread": float("nan")}
    low, high = np.quantile(np.log(np.maximum(seconds, 1.0)), [0.25, 0.75])
    # The quartiles of the standard normal law are 1.349 apart.
    return {"gap_median": float(np.median(seconds)), "gap_spread": float((high - low) / 1.349)}


def _rhythm(start: np.ndarray) -> dict[str, float]:
    names = ("days", "busiest_hour", "busiest_weekday", "daily_swing", "peak_hour", "weekend_lift")
    if not len(start):
        return dict.fromkeys(names, float("nan"))
    hours = start // _HOUR_NS
    by_hour = np.bincount(hours % 24, minlength=24)
    by_weekday = np.bincount(hours // 24 % 7, minlength=7)
    days = (start.max() - start.min()) / (24 * _HOUR_NS)
    busiest = by_hour.max() / by_hour.mean(), by_weekday.max() / by_weekday.mean()
    return dict(zip(names, map(float, (days, *busiest, *_harmonic(hours))), strict=True))


def _harmonic(hours: np.ndarray) -> tuple[float, float, float]:
    """Swing, peak hour and weekend lift from the hours, since the epoch, in which sessions start."""
    covered = np.arange(hours.min(), hours.max() + 1)
    exposure = np.bincount(covered % 24, minlength=24)
    if (exposure == 0).any():
        return float("nan"), float("nan"), float("nan")
    rate = np.bincount(hours % 24, minlength=24) / exposure
    turn = np.sum(rate * np.exp(2j * np.pi * (np.arange(24) + 0.5) / 24)) / rate.sum()

    def busyness(at_weekend: bool) -> float:
        """Sessions as a multiple of what the hours of the day alone would bring."""
        # The epoch began on a Thursday, so that days 2 and 3 of it were a weekend.
        there, then = (np.isin(hour // 24 % 7, (2, 3)) == at_weekend for hour in (covered, hours))
        expected = rate[covered[there] % 24].sum()
        return float(then.sum() / expected) if expected else float("nan")

    working = busyness(False)
    lift = busyness(True) / working if working else float("nan")
    return float(2 * np.abs(turn)), float(np.angle(turn) * 24 / (2 * np.pi) % 24), lift


def _returns(log: SessionLog) -> dict[str, float]:
    names = ("users", "visits_mean", "visits_tail", "first_item_known", "visit_overlap")
    if log.user is None:
        return {**dict.fromkeys(names, float("nan")), "users": 0}
    item, user = np.asarray(log.item), np.asarray(log.user)
    session = np.repeat(np.arange(log.n_sessions), log.length)
    _, of_user, visits = np.unique(user, return_inverse=True, return_counts=True)
    meeting = of_user[session] * (int(item.max(initial=0)) + 1) + item
    returned = _met_earlier(of_user, np.arange(len(user)))
    known = _met_earlier(meeting, session)
    values = (
        len(visits),
        _mean(visits),
        _tenth_share(_falling(visits)),
        _mean(known[log.offset[:-1]][returned]),
        _visit_overlap(session, item, user),
    )
    return dict(zip(names, values, strict=True))


def _visit_overlap(session: np.ndarray, item: np.ndarray, user: np.ndarray) -> float:
    by_user = np.argsort(user, kind="stable")
    earlier, later = by_user[:-1], by_user[1:]
    same = user[earlier] == user[later]
    in_order = np.argsort(later[same])
    earlier, later = earlier[same][in_order], later[same][in_order]
    # Who returns next has met about the same assortment, so that what is new or in fashion counts for neither.
    others = np.roll(earlier, -1)
    stranger = user[others] != user[later]
    n_items = int(item.max(initial=0)) + 1
    there = np.unique(session * n_items + item)

    def share(last: np.ndarray, now: np.ndarray) -> float:
        last_of = np.full(len(user), -1)
        last_of[now] = last
        in_last = np.isin(last_of[session] * n_items + item, there) & (last_of[session] >= 0)
        return _mean(np.bincount(session[in_last], minlength=len(user))[now] > 0)

    return share(earlier, later) - share(others[stranger], later[stranger])
