"""From events to three splits: the filters, the split, the vocabulary and the account of what was dropped.

The recipe is that of Hidasi et al. (2016, section 4), as the IRN paper (section 5.1) uses it. Every source, and the
simulated shop, ends here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ...errors import InputError
from ..log import PURCHASE, PreparedData, SessionLog
from .cuts import DAY, Survey, session_cuts, survey, survivors
from .memory import check_room
from .options import PrepareOptions
from .sessions import EventColumns, Events, EventSource, Sessions, in_order
from .splits import PER_USER_NOTE, SPLITS, describe_split, empty_split, split_numbers

__all__ = ["DAY", "SPLITS", "Dropped", "EventColumns", "Progress", "build", "repeated_content", "silent"]

Progress = Callable[[str], None]

_AFTER_ITEMS = ", after the item filter"


def silent(line: str) -> None:
    """The progress callback that shows nothing."""


@dataclass(frozen=True)
class Dropped:
    """Events that did not make it, and how many sessions went with them."""

    reason: str
    events: int
    sessions: int = 0


@dataclass(frozen=True, eq=False)
class _Ledger:
    """Counts after every step and what each step dropped: in = out + dropped, always."""

    source: str
    progress: Progress
    steps: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)

    def note(self, step: str, counts: dict[str, int]) -> None:
        self.steps.append({"step": step, **counts})
        self.progress(f"{step}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))

    def drop(self, reason: str, events: int, sessions: int) -> None:
        if events:
            self.dropped.append(Dropped(reason, events, sessions))

    def keep(self, step: str, reason: str, sessions: Sessions, events: np.ndarray) -> Sessions:
        """The marked events; `step` names what stays, `reason` what goes."""
        kept = sessions if events.all() else sessions.only(events)
        self.record(step, reason, {"sessions": sessions.n, "events": len(sessions.item)}, kept.counts())
        return kept

    def record(self, step: str, reason: str, before: dict[str, int], after: dict[str, int]) -> None:
        """A step, by the counts before and after it; raises `InputError` where it leaves nothing."""
        self.drop(reason, before["events"] - after["events"], before["sessions"] - after["sessions"])
        self.note(step, after)
        if not after["sessions"]:
            raise InputError(
                f"{self.source}: no session is left after the step {step!r} "
                f"({before['sessions']} before it); loosen this filter or check the input"
            )


def build(
    events: EventSource,
    options: PrepareOptions,
    *,
    source: dict[str, Any],
    dropped: Sequence[Dropped] = (),
    notes: Sequence[str] = (),
    progress: Progress = silent,
    surveyed: Survey | None = None,
    memory: float | None = None,
) -> PreparedData:
    """Filter, split and number the items. Same input, options and seed, same result.

    The steps: sessions that start within `latest_days` of the newest event, or in its month; sessions with a purchase
    (`buyers_only`); order events by time; exact repeats; consecutive repeats; repeats in a basket; session length; item
    support; session length again (Hidasi et al. 2016: once each, not until nothing changes); long sessions cut in
    two, whose second part has ``/2`` behind its session id; sessions with a purchase if `buyers_cut` is "after"; users
    with enough sessions; split; vocabulary from train without valid; unseen items; session length in valid and test.

    `source` (with a ``name``) opens the manifest, `dropped` is what the reader left out, `notes` are caveats for every
    table. `surveyed` is what `survey` says of the events, where the caller knows it already. `memory` is the most that
    the process may take, in GB. Raises `InputError` where a filter leaves no session or a split none, where an option
    needs users and shoppers are anonymous, or where what the first cuts leave does not fit the memory.
    """
    options.check()
    _refuse_anonymous(events, options, source["name"])
    if options.user_split != "none":
        notes = [*notes, PER_USER_NOTE]
    ledger = _Ledger(source["name"], progress)
    ledger.dropped.extend(dropped)
    surveyed = surveyed or survey(events.parts())
    n_events = surveyed.n_events
    if not n_events:
        raise InputError(f"{source['name']}: no events to prepare; check the input")
    sessions = _filtered(_cut(events, surveyed, options, ledger, memory), events, options, ledger)
    del surveyed
    parts = _splits(sessions, events, options, ledger)
    parts, n_train_items, item_id = _numbered(parts, events, options, ledger)
    parts = [part.by_start() for part in parts]
    for name, part in zip(SPLITS, parts, strict=True):
        ledger.note(name, part.counts())
        if not part.n:
            raise InputError(empty_split(name, sessions, options, source["name"]))

    logs = [_log(part, events, options, item_id, n_train_items, notes) for part in parts]
    manifest = {
        "source": source,
        "options": asdict(options),
        "events_read": n_events + sum(drop.events for drop in dropped),
        "steps": ledger.steps,
        "dropped": [asdict(drop) for drop in ledger.dropped],
        "n_items": len(item_id),
        "n_train_items": n_train_items,
        "split": describe_split(options),
        "sessions_without_purchase": {
            name: int(np.count_nonzero(part.per_session(part.kind == PURCHASE) == 0))
            for name, part in zip(SPLITS, parts, strict=True)
        },
        "overlap": _overlap(parts, events.ordered),
        "notes": list(notes),
    }
    return PreparedData(*logs, manifest=manifest)


def repeated_content(events: EventSource) -> int:
    """How many sessions repeat the content of another one before them."""
    content = in_order(Events.joined(list(events.parts()))).content(events.ordered)
    return len(content) - len(np.unique(content))


def _cut(
    events: EventSource, surveyed: Survey, options: PrepareOptions, ledger: _Ledger, memory: float | None
) -> Sessions:
    """What the cuts of whole sessions leave, in order."""
    cuts = session_cuts(surveyed, options)
    if memory is not None:
        left = surveyed.length[cuts[-1].stays] if cuts else surveyed.length
        check_room(memory, int(left.sum(dtype=np.int64)), len(left), ledger.source)
    kept, counts = survivors(events, surveyed, cuts)
    ledger.note("read", counts[0])
    for cut, before, after in zip(cuts, counts, counts[1:], strict=False):
        ledger.record(cut.step, cut.reason, before, after)
    return in_order(kept)


def _refuse_anonymous(events: EventSource, options: PrepareOptions, source: str) -> None:
    if events.user is not None:
        return
    for flag, asked in (
        (f"--user-split {options.user_split}", options.user_split != "none"),
        (f"--min-user-sessions {options.min_user_sessions}", options.min_user_sessions > 1),
    ):
        if asked:
            raise InputError(
                f"{source}: {flag} needs to know whose the sessions are, found anonymous ones; name the column of "
                "users (--user, where there is such an option) or leave it out"
            )


def _filtered(sessions: Sessions, events: EventSource, options: PrepareOptions, ledger: _Ledger) -> Sessions:
    sessions = _without_repeats(sessions, options, ledger)
    sessions = _long_enough(sessions, options, ledger, "")
    support = sessions.per_item()
    least = options.min_item_support
    sessions = ledger.keep(
        f"items of at least {least} events",
        f"events of items with fewer than {least} events",
        sessions,
        (support >= least)[sessions.item],
    )
    sessions = _long_enough(sessions, options, ledger, _AFTER_ITEMS)
    if options.max_session_length is not None:
        sessions = _short_enough(sessions, options.max_session_length, len(events.session_id), ledger)
        sessions = _long_enough(sessions, options, ledger, ", after the cut in two")
    if options.buyers_only and options.buyers_cut == "after":
        sessions = _buyers(sessions, ledger)
    if options.min_user_sessions > 1:
        sessions = _of_returning_users(sessions, events, options.min_user_sessions, ledger)
    return sessions


def _short_enough(sessions: Sessions, most: int, n_recorded: int, ledger: _Ledger) -> Sessions:
    sessions = ledger.keep(
        f"sessions of at most {2 * most} events",
        f"sessions of more than {2 * most} events",
        sessions,
        sessions.events_of(sessions.length <= 2 * most),
    )
    sessions = sessions.in_two(most, n_recorded)
    ledger.note(f"sessions of more than {most} events cut in two", sessions.counts())
    return sessions


def _of_returning_users(sessions: Sessions, events: EventSource, least: int, ledger: _Ledger) -> Sessions:
    users = _users(sessions, events)
    assert users is not None
    _, user, n = np.unique(users, return_inverse=True, return_counts=True)
    return ledger.keep(
        f"users of at least {least} sessions",
        f"sessions of users with fewer than {least} sessions",
        sessions,
        sessions.events_of((n >= least)[user]),
    )


def _users(sessions: Sessions, events: EventSource) -> np.ndarray | None:
    """[S] int32, or None; the second part of a session has its number beyond those of the source."""
    return None if events.user is None else events.user[sessions.number % len(events.session_id)]


def _buyers(sessions: Sessions, ledger: _Ledger) -> Sessions:
    buys = sessions.per_session(sessions.kind == PURCHASE) > 0
    return ledger.keep(
        f"sessions with a purchase{_AFTER_ITEMS}",
        f"sessions without a purchase{_AFTER_ITEMS}",
        sessions,
        sessions.events_of(buys),
    )


def _without_repeats(sessions: Sessions, options: PrepareOptions, ledger: _Ledger) -> Sessions:
    if options.repeats == "drop":
        sessions = ledger.keep(
            "events without exact repeats", "exact repeats of an event", sessions, _not_repeated(sessions)
        )
    if options.consecutive_repeats == "drop":
        sessions = ledger.keep(
            "events without consecutive repeats",
            "repeats of the item and kind of the event before",
            sessions,
            _differs_from_before(sessions),
        )
    if options.basket_repeats == "drop":
        sessions = ledger.keep(
            "each item bought once in a session",
            "purchases of an item that the session has bought already",
            sessions,
            _not_bought_before(sessions),
        )
    return sessions


def _not_repeated(sessions: Sessions) -> np.ndarray:
    """[E] bool: no event above is the same in session, item, time and kind."""
    tie = sessions.time[1:] == sessions.time[:-1]
    tie[sessions.offset[1:-1] - 1] = False
    # Only events that tie with a neighbour can repeat another, and these are few.
    tied = np.flatnonzero(np.r_[False, tie] | np.r_[tie, False])
    moment = np.cumsum(np.r_[True, ~tie])[tied]
    keep = np.ones(len(sessions.item), dtype=bool)
    keep[tied] = _first(sessions.kind[tied], sessions.item[tied], moment)
    return keep


def _differs_from_before(sessions: Sessions) -> np.ndarray:
    """[E] bool: a session's first event, or one of another item or kind than the event before it."""
    keep = np.ones(len(sessions.item), dtype=bool)
    keep[1:] = (sessions.item[1:] != sessions.item[:-1]) | (sessions.kind[1:] != sessions.kind[:-1])
    keep[sessions.offset[:-1]] = True
    return keep


def _not_bought_before(sessions: Sessions) -> np.ndarray:
    """[E] bool: a click, or a session's first purchase of its item."""
    bought = np.flatnonzero(sessions.kind == PURCHASE)
    session = np.searchsorted(sessions.offset, bought, side="right")
    keep = np.ones(len(sessions.item), dtype=bool)
    keep[bought] = _first(sessions.item[bought], session)
    return keep


def _first(*keys: np.ndarray) -> np.ndarray:
    """[E] bool: no row above has the same keys."""
    order = np.lexsort(keys)
    differs = np.ones(len(order), dtype=bool)
    differs[1:] = np.logical_or.reduce([key[order[1:]] != key[order[:-1]] for key in keys])
    first = np.empty(len(order), dtype=bool)
    first[order] = differs
    return first


def _long_enough(sessions: Sessions, options: PrepareOptions, ledger: _Ledger, when: str) -> Sessions:
    least = options.min_session_length
    return ledger.keep(
        f"sessions of at least {least} events{when}",
        f"sessions of fewer than {least} events{when}",
        sessions,
        sessions.events_of(sessions.length >= least),
    )


def _splits(sessions: Sessions, events: EventSource, options: PrepareOptions, ledger: _Ledger) -> list[Sessions]:
    """Train, valid and test, any of which may be empty."""
    split = split_numbers(sessions, _users(sessions, events), options, events.ordered)
    ledger.note("train+valid", sessions.only(sessions.events_of(split != SPLITS.index("test"))).counts())
    return [sessions.only(sessions.events_of(split == number)) for number in range(len(SPLITS))]


def _numbered(
    parts: list[Sessions], events: EventSource, options: PrepareOptions, ledger: _Ledger
) -> tuple[list[Sessions], int, np.ndarray]:
    """Training items first, each part of the vocabulary sorted by original id; then the rule for unseen items."""
    train, *others = parts
    occurs = np.zeros(len(events.item_id), dtype=bool)
    occurs[train.item] = True
    if options.unseen == "drop":
        kept = [part.only(occurs[part.item]) for part in others]
        _drop(ledger, "events of valid and test whose item does not occur in train", others, kept)
        long = [part.only(part.events_of(part.length >= options.min_session_length)) for part in kept]
        least = options.min_session_length
        _drop(ledger, f"sessions of valid and test left with fewer than {least} events", kept, long)
        others = long
    later = np.zeros_like(occurs)
    for part in others:
        later[part.item] = True

    vocabulary = [_sorted_by_id(np.flatnonzero(which), events.item_id) for which in (occurs, later & ~occurs)]
    known = np.concatenate(vocabulary)
    number = np.full(len(occurs), -1, dtype=np.int32)
    number[known] = np.arange(len(known), dtype=np.int32)
    renumbered = [
        Sessions(number[part.item], part.kind, part.time, part.offset, part.number) for part in (train, *others)
    ]
    return renumbered, len(vocabulary[0]), events.item_id[known]


def _drop(ledger: _Ledger, reason: str, before: list[Sessions], after: list[Sessions]) -> None:
    pairs = list(zip(before, after, strict=True))
    ledger.drop(reason, sum(len(b.item) - len(a.item) for b, a in pairs), sum(b.n - a.n for b, a in pairs))


def _sorted_by_id(codes: np.ndarray, item_id: np.ndarray) -> np.ndarray:
    return codes[np.argsort(item_id[codes], kind="stable")]


def _log(
    part: Sessions,
    events: EventSource,
    options: PrepareOptions,
    item_id: np.ndarray,
    n_train_items: int,
    notes: Sequence[str],
) -> SessionLog:
    n_recorded = len(events.session_id)
    session_id = events.session_id[part.number % n_recorded]
    if options.max_session_length is not None:
        session_id = session_id.astype(np.str_)
        session_id = np.where(part.number < n_recorded, session_id, np.char.add(session_id, "/2"))
    return SessionLog(
        item=part.item,
        kind=part.kind,
        time=part.time,
        offset=part.offset,
        session_id=session_id,
        item_id=item_id,
        user=_users(part, events),
        n_train_items=n_train_items,
        notes=tuple(notes),
    )


def _overlap(parts: list[Sessions], ordered: bool) -> dict[str, Any]:
    train, *others = [part.content(ordered) for part in parts]
    overlap: dict[str, Any] = {
        "content": "the same items and kinds" + (" in the same order" if ordered else ", in any order")
    }
    train = np.sort(train)
    for name, content in zip(SPLITS[1:], others, strict=True):
        nearest = train[np.minimum(np.searchsorted(train, content), len(train) - 1)]
        shared = int(np.count_nonzero(nearest == content))
        overlap[name] = {"sessions_also_in_train": shared, "share": round(shared / len(content), 6)}
    return overlap
