"""`Shop`, the simulated shop as a generator of session logs."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral

import numpy as np

from ...errors import InputError
from ..log import SessionLog
from .catalogue import Catalogue, draw_catalogue, start_ns
from .config import ShopConfig

_CHUNK = 1024
_HOUR_NS = 3_600 * 10**9


@dataclass(frozen=True, eq=False)
class Shop:
    """A shop whose catalogue follows from `config` and `seed`. Raises `InputError` for a negative seed."""

    config: ShopConfig
    seed: int = 0
    catalogue: Catalogue = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_whole("seed", self.seed, 0)
        object.__setattr__(self, "catalogue", draw_catalogue(self.config, self.seed))

    def log(self, n_sessions: int, seed: int) -> SessionLog:
        """`n_sessions` sessions, each of at least two events, in order of their start; `visits.py` says who comes.

        The same shop and seed give the same log, bit for bit; another seed gives other shoppers in the same shop.
        Items keep their numbers and have the ids 1..N, sold or not; session ids are 1..n_sessions; users, where there
        are any, 0..users - 1, and their sessions do not overlap. Without taste persistence the sessions are those of
        the shop without users. Raises `InputError` for less than one session, a negative seed, or too few users.
        """
        # Compiling takes seconds, so numba is loaded by those who need it.
        from .shopper import empty_lanes, rates_of
        from .visits import Visits, draw_visits, simulate

        _check_whole("n_sessions", n_sessions, 1)
        _check_whole("seed", seed, 0)
        rng = np.random.default_rng((self.seed, seed))
        visits, regulars = draw_visits(self.config, self.catalogue, _arrivals(self.config, n_sessions, rng), rng)
        lanes, rates = empty_lanes(1, self.config.max_events), rates_of(self.config)
        size = min(_CHUNK, n_sessions) * self.config.max_events
        buffers = (np.empty(size, np.int32), np.empty(size, np.uint8), np.empty(size, np.int64))
        length = np.zeros(n_sessions, np.int64)
        chunks = []
        for first in range(0, n_sessions, _CHUNK):
            part = slice(first, first + _CHUNK)
            some = Visits(*(column[part] for column in visits))
            n_events = simulate(some, regulars, lanes, self.catalogue, rates, buffers, length[part])
            if n_events < 0:
                raise InputError(
                    f"Shop: a session starts while every shopper is in one, found {self.config.users} users for "
                    f"{n_sessions} sessions; raise users or lower the number of sessions"
                )
            chunks.append([column[:n_events].copy() for column in buffers])
        item, kind, time = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
        return SessionLog(
            item=item,
            kind=kind,
            time=time,
            offset=np.concatenate([[0], np.cumsum(length)]),
            session_id=np.arange(1, n_sessions + 1),
            item_id=np.arange(1, self.config.n_items + 1),
            user=visits.user if self.config.users else None,
            notes=(self.note,),
        )

    @property
    def note(self) -> str:
        """The caveat that every log of the shop carries."""
        note, config = "simulated shoppers, not recorded ones", self.config
        if config.users:
            note += f"; {config.users:,} of them return, taste persistence {config.taste_persistence:g}"
        return note


def _arrivals(config: ShopConfig, n_sessions: int, rng: np.random.Generator) -> np.ndarray:
    """[S] int64 sorted starts, nanoseconds since the epoch, whole milliseconds; the rate is constant within an hour."""
    start, span = start_ns(config), config.days * 24
    hour = np.arange(np.ceil(span))
    hour_of_log = start / _HOUR_NS + hour + 0.5
    rate = 1 + config.daily_swing * np.cos(2 * np.pi * (hour_of_log % 24 - config.peak_hour) / 24)
    # The epoch began on a Thursday, so that day 2 of it was a Saturday.
    weekday = (hour_of_log // 24).astype(np.int64) % 7
    rate *= np.where((weekday == 2) | (weekday == 3), config.weekend_lift, 1.0)
    rate[-1] *= span - hour[-1]
    cumulative = np.concatenate([[0.0], np.cumsum(rate)])
    edge = np.append(hour, span)
    offset = np.interp(np.sort(rng.random(n_sessions)) * cumulative[-1], cumulative, edge)
    return start + np.floor(offset * 3.6e6).astype(np.int64) * 1_000_000


def _check_whole(name: str, value: int, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise InputError(f"Shop: {name} must be a whole number, at least {low}, found {value!r}; correct it")
