"""Events as a source delivers them, whole or in parts, and the sessions that they make once they are in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..log import PURCHASE

_PART_EVENTS = 1 << 20
_PART_SESSIONS = 1 << 18


@dataclass(frozen=True, eq=False)
class Events:
    """E events in any order; those of a session with equal times keep their order."""

    session: np.ndarray
    """[E] int, 0..S-1."""
    item: np.ndarray
    """[E] int, 0..N-1."""
    time: np.ndarray
    """[E] int64, nanoseconds since the epoch, UTC."""
    kind: np.ndarray
    """[E] uint8, CLICK or PURCHASE."""

    def only(self, events: np.ndarray | slice) -> Events:
        """The events marked in [E] bool, or those of a slice."""
        return Events(self.session[events], self.item[events], self.time[events], self.kind[events])

    @classmethod
    def joined(cls, parts: Sequence[Events]) -> Events:
        """The events of all parts, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__annotations__))


class EventSource(Protocol):
    """Where events come from. The ids may be asked for once all parts have been seen."""

    @property
    def session_id(self) -> np.ndarray:
        """[S] original ids, int64 or text."""
        ...

    @property
    def item_id(self) -> np.ndarray:
        """[N] original ids, distinct, int64 or text."""
        ...

    @property
    def user(self) -> np.ndarray | None:
        """[S] int32, or None where shoppers are anonymous, which is known before any part is seen."""
        ...

    @property
    def ordered(self) -> bool:
        """False where the source imposes the order within a session; the content of a session then ignores it."""
        ...

    def parts(self) -> Iterator[Events]:
        """All events, the same ones in every pass; there are two at most."""
        ...


@dataclass(frozen=True, eq=False)
class EventColumns:
    """Events that are in memory. Codes must be in range; a session or item without events is allowed and ignored."""

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

    def parts(self) -> Iterator[Events]:
        events = Events(self.session, self.item, self.time, self.kind)
        for start in range(0, len(self.item), _PART_EVENTS):
            yield events.only(np.s_[start : start + _PART_EVENTS])


@dataclass(frozen=True, eq=False)
class Sessions:
    """Sessions of at least one event, in order of start, events in order of time. Arrays as in `SessionLog`."""

    item: np.ndarray
    kind: np.ndarray
    time: np.ndarray
    offset: np.ndarray
    number: np.ndarray
    """[S] the session's code in its `EventSource`."""

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
        return np.add.reduceat(events, self.offset[:-1], dtype=np.int64) if self.n else np.zeros(0, np.int64)

    def per_item(self) -> np.ndarray:
        """[N] int64: events of each item."""
        n_items = int(self.item.max()) + 1 if self.n else 0
        count = np.zeros(n_items, dtype=np.int64)
        # bincount makes int64 of what it counts.
        for start in range(0, len(self.item), _PART_EVENTS):
            count += np.bincount(self.item[start : start + _PART_EVENTS], minlength=n_items)
        return count

    def only(self, events: np.ndarray) -> Sessions:
        """The events marked in [E] bool; a session that loses all its events goes."""
        left = self.per_session(events)
        offset = np.zeros(np.count_nonzero(left) + 1, dtype=np.int64)
        np.cumsum(left[left > 0], out=offset[1:])
        return Sessions(self.item[events], self.kind[events], self.time[events], offset, self.number[left > 0])

    def in_two(self, most: int, number_of_rest: int) -> Sessions:
        """Sessions of more than `most` events cut after `most`; the rest's number is `number_of_rest` higher."""
        long = np.flatnonzero(self.length > most)
        offset = np.insert(self.offset, long + 1, self.offset[long] + most)
        number = np.insert(self.number, long + 1, self.number[long] + number_of_rest)
        return Sessions(self.item, self.kind, self.time, offset, number).by_start()

    def by_start(self) -> Sessions:
        """In order of start again, where some lost their first event; ties stay as they are."""
        if (self.start[1:] >= self.start[:-1]).all():
            return self
        order = np.argsort(self.start, kind="stable")
        events = _spans(self.offset[order], self.length[order])
        offset = np.zeros(self.n + 1, dtype=np.int64)
        np.cumsum(self.length[order], out=offset[1:])
        return Sessions(self.item[events], self.kind[events], self.time[events], offset, self.number[order])

    def content(self, ordered: bool) -> np.ndarray:
        """[S] uint64 hash of the (item, kind) sequence, or of the multiset where the order is not the data's own.

        Two of S different contents collide with probability below S^2 / 2^64.
        """
        content = np.empty(self.n, dtype=np.uint64)
        for first in range(0, self.n, _PART_SESSIONS):
            offset = self.offset[first : first + _PART_SESSIONS + 1]
            events, length, offset = np.s_[offset[0] : offset[-1]], np.diff(offset), offset - offset[0]
            symbol = _mixed(self.item[events].astype(np.uint64) * np.uint64(2) + self.kind[events])
            if ordered:
                position = np.arange(len(symbol)) - np.repeat(offset[:-1], length)
                symbol = _mixed(symbol + position.astype(np.uint64))
            total = np.add.reduceat(symbol, offset[:-1])
            content[first : first + _PART_SESSIONS] = _mixed(total + length.astype(np.uint64))
        return content

    def counts(self) -> dict[str, int]:
        purchases = int(np.count_nonzero(self.kind == PURCHASE))
        return {
            "sessions": self.n,
            "events": len(self.item),
            "clicks": len(self.item) - purchases,
            "purchases": purchases,
            "items": int(np.count_nonzero(self.per_item())),
        }


def in_order(events: Events) -> Sessions:
    """Events by session and time, sessions by start; ties of events in the order of the rows, of sessions of codes."""
    # A stable sort takes little more than a look at rows that are in order already, as most files have them.
    rows = np.argsort(events.session, kind="stable")
    code = events.session[rows]
    begins = np.ones(len(rows), dtype=bool)
    np.not_equal(code[1:], code[:-1], out=begins[1:])
    first = np.flatnonzero(begins)
    code, length = code[first], np.diff(first, append=len(rows))
    time = events.time[rows]
    late = np.flatnonzero((time[1:] < time[:-1]) & ~begins[1:]) + 1
    del time, begins
    mixed_up = np.unique(np.searchsorted(first, late, side="right") - 1)
    for start in range(0, len(mixed_up), _PART_SESSIONS):
        some = mixed_up[start : start + _PART_SESSIONS]
        places = _spans(first[some], length[some])
        taken = rows[places]
        rows[places] = taken[np.lexsort((events.time[taken], events.session[taken]))]

    order = np.argsort(events.time[rows[first]], kind="stable")
    offset = np.zeros(len(order) + 1, dtype=np.int64)
    np.cumsum(length[order], out=offset[1:])
    item, kind, time = (np.empty(len(rows), column.dtype) for column in (events.item, events.kind, events.time))
    for start in range(0, len(order), _PART_SESSIONS):
        some = order[start : start + _PART_SESSIONS]
        out = np.s_[offset[start] : offset[start + len(some)]]
        taken = rows[_spans(first[some], length[some])]
        item[out], kind[out], time[out] = events.item[taken], events.kind[taken], events.time[taken]
    return Sessions(item, kind, time, offset, code[order])


def _spans(first: np.ndarray, length: np.ndarray) -> np.ndarray:
    """first, first + 1, ..., first + length - 1 of every span, one span after the other."""
    return np.arange(length.sum()) + np.repeat(first - (np.cumsum(length) - length), length)


def _mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer (Steele et al. 2014): every input bit reaches every output bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
