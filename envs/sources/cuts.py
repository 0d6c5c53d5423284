"""The cuts that need to know no more of a session than when it starts and whether it buys.

They come first, part by part, so that nothing but what survives them is put in order or held in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ..log import PURCHASE
from .options import PrepareOptions
from .sessions import Events, EventSource

DAY = 86_400 * 10**9
"""Nanoseconds."""


@dataclass(frozen=True, eq=False)
class Survey:
    """What one pass over the events says of S sessions."""

    length: np.ndarray
    """[S] int32 events."""
    start: np.ndarray
    """[S] int64, time of the first event."""
    buys: np.ndarray
    """[S] bool."""
    newest: int
    """Time of the newest event of all."""

    @property
    def n_events(self) -> int:
        return int(self.length.sum(dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Cut:
    """One step that keeps whole sessions."""

    step: str
    """Names what stays."""
    reason: str
    """Names what goes."""
    stays: np.ndarray
    """[S] bool."""


def survey(parts: Iterable[Events]) -> Survey:
    """One pass over all events."""
    latest = np.iinfo(np.int64).max
    length, start, buys = np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, bool)
    n_sessions, newest = 0, -latest - 1
    for events in parts:
        if not len(events.item):
            continue
        n_sessions = max(n_sessions, int(events.session.max()) + 1)
        if n_sessions > len(length):
            room = 2 * n_sessions - len(length)
            length, buys = np.append(length, np.zeros(room, np.int32)), np.append(buys, np.zeros(room, bool))
            start = np.append(start, np.full(room, latest))
        np.add.at(length, events.session, np.ones(len(events.session), np.int32))
        np.minimum.at(start, events.session, events.time)
        buys[events.session[events.kind == PURCHASE]] = True
        newest = max(newest, int(events.time.max()))
    return Survey(length[:n_sessions], start[:n_sessions], buys[:n_sessions], newest)


def session_cuts(survey: Survey, options: PrepareOptions) -> list[Cut]:
    """The cuts that the options ask for, in the order in which they are made; each leaves out what the last one did."""
    cuts, stays = [], survey.length > 0
    if options.latest_month or options.latest_days is not None:
        if options.latest_month:
            month = np.datetime64(survey.newest, "ns").astype("datetime64[M]")
            earliest = int(month.astype("datetime64[ns]").astype(np.int64))
            when = f"in {month}, the month of the newest event"
        else:
            earliest = survey.newest - round((options.latest_days or 0) * DAY)
            when = f"within the {options.latest_days:g} days before the newest event"
        stays = stays & (survey.start >= earliest)
        cuts.append(Cut(f"sessions that start {when}", f"sessions that do not start {when}", stays))
    if options.buyers_only and options.buyers_cut == "before":
        cuts.append(Cut("sessions with a purchase", "sessions without a purchase", stays & survey.buys))
    return cuts


def survivors(source: EventSource, survey: Survey, cuts: list[Cut]) -> tuple[Events, list[dict[str, int]]]:
    """The events that survive all cuts, and the counts before and after each: a second pass over all events."""
    tallies = [_Tally(np.zeros(len(source.item_id), dtype=bool)) for _ in range(len(cuts) + 1)]
    kept = []
    for events in source.parts():
        tallies[0].add(events)
        for cut, tally in zip(cuts, tallies[1:], strict=True):
            events = events.only(cut.stays[events.session])
            tally.add(events)
        kept.append(events)
    sessions = [np.count_nonzero(survey.length), *(np.count_nonzero(cut.stays) for cut in cuts)]
    counts = [tally.counts(int(n)) for tally, n in zip(tallies, sessions, strict=True)]
    return Events.joined(kept), counts


@dataclass(eq=False)
class _Tally:
    seen: np.ndarray
    """[N] bool: items among the events so far."""
    events: int = field(default=0, init=False)
    purchases: int = field(default=0, init=False)

    def add(self, events: Events) -> None:
        self.seen[events.item] = True
        self.events += len(events.item)
        self.purchases += int(np.count_nonzero(events.kind == PURCHASE))

    def counts(self, sessions: int) -> dict[str, int]:
        """As `Sessions.counts` gives them."""
        return {
            "sessions": sessions,
            "events": self.events,
            "clicks": self.events - self.purchases,
            "purchases": self.purchases,
            "items": int(np.count_nonzero(self.seen)),
        }
