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
from .options import PrepareOptions

Progress = Callable[[str], None]

DAY = 86_400 * 10**9
"""Nanoseconds."""

SPLITS = ("train", "valid", "test")


def silent(line: str) -> None:
    """The progress callback that shows nothing."""


@dataclass(frozen=True, eq=False)
class EventColumns:
    """Events as a source read them. E events in any order; those of a session with equal times keep their order.

    Codes must be in range; a session or item without events is allowed and ignored.
    """

    session: np.ndarray
    """[E] int, 0..S-1."""
    item: np.ndarray
    """[E] int, 0..N-1."""
    time: np.ndarray
    """[E] int64, nanoseconds since the epoch, UTC."""
    kind: np.ndarray
    """[E] uint8, CLICK or PURCHASE."""
    session_id: np.ndarray
    """[S] original ids, int64 or text."""
    item_id: np.ndarray
    """[N] original ids, distinct, int64 or text."""
    user: np.ndarray | None = None
    """[S] int32, or None where shoppers are anonymous."""
    ordered: bool = True
    """False where the source imposes the order within a session; the content of a session then ignores it."""


@dataclass(frozen=True)
class Dropped:
    """Events that did not make it, and how many sessions went with them."""

    reason: str
    events: int
    sessions: int = 0


@dataclass(frozen=True, eq=False)
class _Sessions:
    """Sessions of at least one event, in order of start, events in order of time. Arrays as in `SessionLog`."""

    item: np.ndarray
    kind: np.ndarray
    time: np.ndarray
    offset: np.ndarray
    number: np.ndarray
    """[S] the session's code in `EventColumns`."""

    @property
    def n(self) -> int:
        return len(self.number)

    @property
    def length(self) -> np.ndarray:
        return np.diff(self.offset)

    @property
    def start(self) -> np.ndarray:
        return self.time[self.offset[:-1]]

    @property
    def end(self) -> np.ndarray:
        return self.time[self.offset[1:] - 1]

    def events_of(self, sessions: np.ndarray) -> np.ndarray:
        """[E] bool from [S] bool."""
        return np.repeat(sessions, self.length)

    def per_session(self, events: np.ndarray) -> np.ndarray:
        """[S] int64: how many events of each session are marked in [E] bool."""
        before = np.zeros(len(events) + 1, dtype=np.int64)
        np.cumsum(events, out=before[1:])
        return np.diff(before[self.offset])

    def only(self, events: np.ndarray) -> _Sessions:
        """The events marked in [E] bool; a session that loses all its events goes."""
        left = self.per_session(events)
        offset = np.zeros(np.count_nonzero(left) + 1, dtype=np.int64)
        np.cumsum(left[left > 0], out=offset[1:])
        return _Sessions(self.item[events], self.kind[events], self.time[events], offset, self.number[left > 0])

    def content(self, ordered: bool) -> np.ndarray:
        """[S] uint64 hash of the (item, kind) sequence, or of the multiset where the order is not the data's own.

        Two of S different contents collide with probability below S^2 / 2^64.
        """
        symbol = _mixed(self.item.astype(np.uint64) * np.uint64(2) + self.kind)
        if ordered:
            position = np.arange(len(self.item)) - np.repeat(self.offset[:-1], self.length)
            symbol = _mixed(symbol + position.astype(np.uint64))
        total = np.add.reduceat(symbol, self.offset[:-1]) if self.n else np.zeros(0, np.uint64)
        return _mixed(total + self.length.astype(np.uint64))

    def counts(self) -> dict[str, int]:
        purchases = int(np.count_nonzero(self.kind == PURCHASE))
        return {
            "sessions": self.n,
            "events": len(self.item),
            "clicks": len(self.item) - purchases,
            "purchases": purchases,
            "items": int(np.count_nonzero(np.bincount(self.item))),
        }


@dataclass(frozen=True, eq=False)
class _Ledger:
    """Counts after every step and what each step dropped: in = out + dropped, always."""

    source: str
    progress: Progress
    steps: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)

    def note(self, step: str, sessions: _Sessions) -> None:
        counts = sessions.counts()
        self.steps.append({"step": step, **counts})
        self.progress(f"{step}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))

    def drop(self, reason: str, events: int, sessions: int) -> None:
        if events:
            self.dropped.append(Dropped(reason, events, sessions))

    def keep(self, step: str, reason: str, sessions: _Sessions, events: np.ndarray) -> _Sessions:
        """The marked events; `step` names what stays, `reason` what goes."""
        kept = sessions if events.all() else sessions.only(events)
        self.drop(reason, len(sessions.item) - len(kept.item), sessions.n - kept.n)
        self.note(step, kept)
        if not kept.n:
            raise InputError(
                f"{self.source}: no session is left after the step {step!r} "
                f"({sessions.n} before it); loosen this filter or check the input"
            )
        return kept


def build(
    events: EventColumns,
    options: PrepareOptions,
    *,
    source: dict[str, Any],
    dropped: Sequence[Dropped] = (),
    notes: Sequence[str] = (),
    progress: Progress = silent,
) -> PreparedData:
    """Filter, split and number the items. Same input, options and seed, same result.

    The steps: order events by time; sessions that start within `latest_days` of the newest event; sessions with a
    purchase (`buyers_only`); session length; item support; session length again (Hidasi et al. 2016: once each, not
    until nothing changes); split; vocabulary from train without valid; unseen items; session length in valid and test.

    `source` (with a ``name``) opens the manifest, `dropped` is what the reader left out, `notes` are caveats for every
    table. Raises `InputError` where a filter leaves no session or a split none.
    """
    options.check()
    ledger = _Ledger(source["name"], progress)
    ledger.dropped.extend(dropped)
    if not len(events.item):
        raise InputError(f"{source['name']}: no events to prepare; check the input")
    sessions = _in_order(events)
    ledger.note("read", sessions)
    sessions = _filtered(sessions, options, ledger)
    parts = _splits(sessions, options, events.ordered, ledger)
    parts, n_train_items, item_id = _numbered(parts, events, options, ledger)
    for name, part in zip(SPLITS, parts, strict=True):
        ledger.note(name, part)
        if not part.n:
            raise InputError(_empty_split(name, sessions, options, source["name"]))

    logs = [_log(part, events, item_id, n_train_items, notes) for part in parts]
    manifest = {
        "source": source,
        "options": asdict(options),
        "events_read": len(events.item) + sum(drop.events for drop in dropped),
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


def repeated_content(events: EventColumns) -> int:
    """How many sessions repeat the content of another one before them."""
    content = _in_order(events).content(events.ordered)
    return len(content) - len(np.unique(content))


def _in_order(events: EventColumns) -> _Sessions:
    by_time = np.lexsort((events.time, events.session))
    code = events.session[by_time]
    first = np.flatnonzero(np.r_[True, code[1:] != code[:-1]])
    start = events.time[by_time[first]]
    order = np.argsort(start, kind="stable")
    length = np.diff(np.r_[first, len(code)])[order]
    offset = np.zeros(len(order) + 1, dtype=np.int64)
    np.cumsum(length, out=offset[1:])
    rows = by_time[np.arange(len(code)) + np.repeat(first[order] - offset[:-1], length)]
    return _Sessions(events.item[rows], events.kind[rows], events.time[rows], offset, code[first[order]])


def _filtered(sessions: _Sessions, options: PrepareOptions, ledger: _Ledger) -> _Sessions:
    if options.latest_days is not None:
        earliest = int(sessions.time.max()) - round(options.latest_days * DAY)
        within = f"within the {options.latest_days:g} days before the newest event"
        sessions = ledger.keep(
            f"sessions that start {within}",
            f"sessions that do not start {within}",
            sessions,
            sessions.events_of(sessions.start >= earliest),
        )
    if options.buyers_only:
        buys = sessions.per_session(sessions.kind == PURCHASE) > 0
        sessions = ledger.keep(
            "sessions with a purchase", "sessions without a purchase", sessions, sessions.events_of(buys)
        )
    sessions = _long_enough(sessions, options, ledger, "")
    support = np.bincount(sessions.item)
    least = options.min_item_support
    sessions = ledger.keep(
        f"items of at least {least} events",
        f"events of items with fewer than {least} events",
        sessions,
        (support >= least)[sessions.item],
    )
    return _long_enough(sessions, options, ledger, ", after the item filter")


def _long_enough(sessions: _Sessions, options: PrepareOptions, ledger: _Ledger, when: str) -> _Sessions:
    least = options.min_session_length
    return ledger.keep(
        f"sessions of at least {least} events{when}",
        f"sessions of fewer than {least} events{when}",
        sessions,
        sessions.events_of(sessions.length >= least),
    )


def _splits(sessions: _Sessions, options: PrepareOptions, ordered: bool, ledger: _Ledger) -> list[_Sessions]:
    """Train, valid and test, any of which may be empty."""
    if options.random_split is not None:
        groups = sessions.content(ordered) if options.split_by == "content" else np.arange(sessions.n)
        split = _drawn(groups, options.random_split, np.random.default_rng((options.seed, 0)))
    else:
        split = np.zeros(sessions.n, dtype=np.int8)
        split[sessions.end >= sessions.end.max() - round(options.test_days * DAY)] = SPLITS.index("test")
        rest = split == SPLITS.index("train")
        if rest.any():
            newest = sessions.end[rest].max()
            split[rest & (sessions.end >= newest - round(options.valid_days * DAY))] = SPLITS.index("valid")
    ledger.note("train+valid", sessions.only(sessions.events_of(split != SPLITS.index("test"))))
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
    parts: list[_Sessions], events: EventColumns, options: PrepareOptions, ledger: _Ledger
) -> tuple[list[_Sessions], int, np.ndarray]:
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
        _Sessions(number[part.item], part.kind, part.time, part.offset, part.number) for part in (train, *others)
    ]
    return renumbered, len(vocabulary[0]), events.item_id[known]


def _drop(ledger: _Ledger, reason: str, before: list[_Sessions], after: list[_Sessions]) -> None:
    pairs = list(zip(before, after, strict=True))
    ledger.drop(reason, sum(len(b.item) - len(a.item) for b, a in pairs), sum(b.n - a.n for b, a in pairs))


def _sorted_by_id(codes: np.ndarray, item_id: np.ndarray) -> np.ndarray:
    return codes[np.argsort(item_id[codes], kind="stable")]


def _log(
    part: _Sessions, events: EventColumns, item_id: np.ndarray, n_train_items: int, notes: Sequence[str]
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


def _overlap(parts: list[_Sessions], ordered: bool) -> dict[str, Any]:
    train, *others = [part.content(ordered) for part in parts]
    overlap: dict[str, Any] = {
        "content": "the same items and kinds" + (" in the same order" if ordered else ", in any order")
    }
    for name, content in zip(SPLITS[1:], others, strict=True):
        shared = int(np.count_nonzero(np.isin(content, train)))
        overlap[name] = {"sessions_also_in_train": shared, "share": round(shared / len(content), 6)}
    return overlap


def _describe_split(options: PrepareOptions) -> str:
    if options.random_split is None:
        return (
            f"by time: test is the sessions whose last event is within {options.test_days:g} days before the newest "
            f"event, valid the same with {options.valid_days:g} days in what remains"
        )
    shares = " / ".join(f"{share:g}" for share in options.random_split)
    unit = "sessions" if options.split_by == "session" else "groups of sessions with identical content"
    return f"random {unit}, {shares} of the sessions, seed {options.seed}"


def _empty_split(name: str, sessions: _Sessions, options: PrepareOptions, source: str) -> str:
    if options.random_split is not None:
        remedy = "too few sessions for these shares; change --random-split or loosen the filters"
    else:
        days = (int(sessions.time.max()) - int(sessions.time.min())) / DAY
        remedy = (
            f"the events span {days:.3g} days and --test-days {options.test_days:g} --valid-days "
            f"{options.valid_days:g} leave it nothing; shorten these or loosen the filters (--unseen keep)"
        )
    return f"{source}: the {name} split is empty ({sessions.n} sessions before the split): {remedy}"


def _mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer (Steele et al. 2014): every input bit reaches every output bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
