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

__all__ = ["DAY", "SPLITS", "Dropped", "EventColumns", "Progress", "build", "repeated_content", "silent"]

Progress = Callable[[str], None]

SPLITS = ("train", "valid", "test")

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
    (`buyers_only`); order events by time; exact repeats; repeats in a basket; session length; item support; session
    length again (Hidasi et al. 2016: once each, not until nothing changes); sessions with a purchase if `buyers_cut` is
    "after"; split; vocabulary from train without valid; unseen items; session length in valid and test.

    `source` (with a ``name``) opens the manifest, `dropped` is what the reader left out, `notes` are caveats for every
    table. `surveyed` is what `survey` says of the events, where the caller knows it already. `memory` is the most that
    the process may take, in GB. Raises `InputError` where a filter leaves no session or a split none, or where what the
    first cuts leave does not fit the memory.
    """
    options.check()
    ledger = _Ledger(source["name"], progress)
    ledger.dropped.extend(dropped)
    surveyed = surveyed or survey(events.parts())
    n_events = surveyed.n_events
    if not n_events:
        raise InputError(f"{source['name']}: no events to prepare; check the input")
    sessions = _filtered(_cut(events, surveyed, options, ledger, memory), options, ledger)
    del surveyed
    parts = _splits(sessions, options, events.ordered, ledger)
    parts, n_train_items, item_id = _numbered(parts, events, options, ledger)
    parts = [part.by_start() for part in parts]
    for name, part in zip(SPLITS, parts, strict=True):
        ledger.note(name, part.counts())
        if not part.n:
            raise InputError(_empty_split(name, sessions, options, source["name"]))

    logs = [_log(part, events, item_id, n_train_items, notes) for part in parts]
    manifest = {
        "source": source,
        "options": asdict(options),
        "events_read": n_events + sum(drop.events for drop in dropped),
        "steps": ledger.steps,
        "dropped": [asdict(drop) for drop in ledger.dropped],
        "n_items": len(item_id),
        "n_train_items": n_train_items,
        "split": _describe_split(options),
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


def _filtered(sessions: Sessions, options: PrepareOptions, ledger: _Ledger) -> Sessions:
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
    if options.buyers_only and options.buyers_cut == "after":
        sessions = _buyers(sessions, ledger)
    return sessions


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


def _splits(sessions: Sessions, options: PrepareOptions, ordered: bool, ledger: _Ledger) -> list[Sessions]:
    """Train, valid and test, any of which may be empty."""
    if options.random_split is not None:
        groups = sessions.content(ordered) if options.split_by == "content" else np.arange(sessions.n)
        split = _drawn(groups, options.random_split, np.random.default_rng((options.seed, 0)))
    else:
        split = np.zeros(sessions.n, dtype=np.int8)
        moment = sessions.start if options.split_at == "start" else sessions.end
        split[moment >= moment.max() - round(options.test_days * DAY)] = SPLITS.index("test")
        rest = split == SPLITS.index("train")
        if rest.any():
            newest = moment[rest].max()
            split[rest & (moment >= newest - round(options.valid_days * DAY))] = SPLITS.index("valid")
    ledger.note("train+valid", sessions.only(sessions.events_of(split != SPLITS.index("test"))).counts())
    return [sessions.only(sessions.events_of(split == number)) for number in range(len(SPLITS))]


def _drawn(groups: np.ndarray, shares: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    """[S] split numbers: groups in random order are dealt until each split has its share of the sessions."""
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    order = rng.permutation(len(size))
    before = np.empty(len(size), dtype=np.int64)
    before[order] = np.cumsum(size[order]) - size[order]
    bounds = np.rint(np.cumsum(shares)[:2] * len(groups))
    return np.searchsorted(bounds, before, side="right").astype(np.int8)[group]


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
    part: Sessions, events: EventSource, item_id: np.ndarray, n_train_items: int, notes: Sequence[str]
) -> SessionLog:
    return SessionLog(
        item=part.item,
        kind=part.kind,
        time=part.time,
        offset=part.offset,
        session_id=events.session_id[part.number],
        item_id=item_id,
        user=None if events.user is None else events.user[part.number],
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


def _describe_split(options: PrepareOptions) -> str:
    if options.random_split is None:
        place, newest = ("first", "newest session start") if options.split_at == "start" else ("last", "newest event")
        return (
            f"by time: test is the sessions whose {place} event is within {options.test_days:g} days before the "
            f"{newest}, valid the same with {options.valid_days:g} days in what remains"
        )
    shares = " / ".join(f"{share:g}" for share in options.random_split)
    unit = "sessions" if options.split_by == "session" else "groups of sessions with identical content"
    return f"random {unit}, {shares} of the sessions, seed {options.seed}"


def _empty_split(name: str, sessions: Sessions, options: PrepareOptions, source: str) -> str:
    if options.random_split is not None:
        remedy = "too few sessions for these shares; change --random-split or loosen the filters"
    else:
        days = (int(sessions.time.max()) - int(sessions.time.min())) / DAY
        remedy = (
            f"the events span {days:.3g} days and --test-days {options.test_days:g} --valid-days "
            f"{options.valid_days:g} leave it nothing; shorten these or loosen the filters (--unseen keep)"
        )
    return f"{source}: the {name} split is empty ({sessions.n} sessions before the split): {remedy}"
