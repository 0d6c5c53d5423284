"""What a replay environment replays, and which session comes next in which lane."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..errors import InputError
from .log import SessionLog
from .replay_options import ReplayOptions
from .sparsity import thin_purchases

Assignment = Literal["queue", "strided"]

SILENCED = 2
"""Worth of a purchase whose reward is forced to 0; other events are worth what their kind is."""

_LEAST_AHEAD = 4096


class ReplaySource:
    """The events to replay, what each is worth, and the order of the sessions in a pass."""

    def __init__(self, log: SessionLog | str | os.PathLike[str], options: ReplayOptions) -> None:
        given = log if isinstance(log, SessionLog) else SessionLog.open(log)
        self.log, silenced = thin_purchases(given, options.density, options.drop, options.density_seed)
        self.item, self.offset = _column(self.log.item), _column(self.log.offset)
        self.kind = self.worth = _column(self.log.kind)
        if silenced is not None:
            self.worth = _column(np.where(silenced, np.uint8(SILENCED), self.kind))
        self.reward_of = np.array([*options.rewards, 0.0])
        """[3] float64, reward by worth."""
        # A session of one event has a state but nothing to decide.
        self.playable = np.flatnonzero(self.log.length >= 2)
        """[S'] int64, numbers in the log of the sessions to replay."""
        if len(self.playable) == 0:
            raise InputError(
                f"log {self.log.path or ''}: expected at least one session of two or more events to replay, found none "
                f"among {self.log.n_sessions} sessions; prepare it with --min-session-length 2"
            )
        shard, n_shards = options.shard
        if len(self.playable) < n_shards:
            raise InputError(
                f"shard: expected at most as many shards as there are sessions of two or more events, "
                f"{len(self.playable)}, found {n_shards}"
            )
        self.playable = self.playable[shard::n_shards]
        self.shuffled = options.order == "shuffled"
        # A queue and a single lane go from pass to pass and never look back.
        self.orders_kept = 2
        """Orders of passes in memory, [S'] int64 each; the oldest goes when another is drawn."""
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def sessions(self, seed: int, pass_number: int, place: np.ndarray) -> np.ndarray:
        """Numbers in the log of the sessions at `place` (0..S'-1) in the order of one pass."""
        return self.playable[self.order(seed, pass_number)[place] if self.shuffled else place]

    def order(self, seed: int, pass_number: int) -> np.ndarray:
        """[S'] int64, the shuffled order of one pass as indices into `playable`."""
        key = seed, pass_number
        if key not in self._orders:
            while len(self._orders) >= self.orders_kept:
                del self._orders[next(iter(self._orders))]
            self._orders[key] = np.random.default_rng([seed, pass_number]).permutation(len(self.playable))
        return self._orders[key]


class SessionQueue:
    """One order for all lanes: each session once per pass, the next one to the lowest lane without."""

    def __init__(self, source: ReplaySource, n_lanes: int) -> None:
        self._source, self._n_lanes = source, n_lanes
        self.restart(0)

    def restart(self, seed: int) -> None:
        """Back to the first session of the first pass, in the order of `seed`."""
        self._seed, self._next, self.at = seed, 0, 0
        self.upcoming = np.zeros((0, 2), np.int64)
        """[n, 2] int64 (session, pass); rows from `at` on are still to be taken."""

    def ready(self) -> None:
        """Afterwards there is a session for every lane, should all take one."""
        if len(self.upcoming) - self.at >= self._n_lanes:
            return
        ahead = np.arange(self._next, self._next + max(self._n_lanes, _LEAST_AHEAD))
        self._next += len(ahead)
        passes, place = np.divmod(ahead, len(self._source.playable))
        session = np.empty_like(place)
        for number in range(int(passes[0]), int(passes[-1]) + 1):
            among = passes == number
            session[among] = self._source.sessions(self._seed, number, place[among])
        self.upcoming = np.concatenate([self.upcoming[self.at :], np.stack([session, passes], axis=1)])
        self.at = 0

    def taken(self, lanes: np.ndarray) -> None:
        """`lanes` have taken a session each."""
        self.at += len(lanes)


class SessionStrides:
    """An order for each lane: of B lanes, lane i takes the sessions at i, i + B, i + 2B, ... of its pass."""

    def __init__(self, source: ReplaySource, lanes: Sequence[int], n_lanes: int) -> None:
        self._source, self._n_lanes = source, n_lanes
        # Lanes may have orders of their own, and those with short sessions run passes ahead.
        source.orders_kept = max(source.orders_kept, 2 * len(lanes))
        self._lanes = np.asarray(lanes)
        self._turns_per_pass = -(-(len(source.playable) - self._lanes) // n_lanes)
        self._turn = np.zeros(len(self._lanes), np.int64)
        self._seed = [0] * len(self._lanes)
        self.upcoming = np.zeros((len(self._lanes), 2), np.int64)
        """[B, 2] int64 (session, pass), the next of each lane."""
        self.at = 0

    def restart(self, seeds: dict[int, int]) -> None:
        """The lanes in `seeds` go back to the first of their sessions, each in the order of its seed."""
        lanes = np.array(list(seeds), dtype=np.int64)
        for lane, seed in seeds.items():
            self._seed[lane] = seed
        self._turn[lanes] = 0
        self._look_up(lanes)

    def ready(self) -> None:
        """There is always a session for every lane."""

    def taken(self, lanes: np.ndarray) -> None:
        """`lanes` have taken a session each."""
        self._turn[lanes] += 1
        self._look_up(lanes)

    def _look_up(self, lanes: np.ndarray) -> None:
        passes, turn = np.divmod(self._turn[lanes], self._turns_per_pass[lanes])
        place = self._lanes[lanes] + turn * self._n_lanes
        if self._source.shuffled:
            for row, lane in enumerate(lanes.tolist()):
                place[row] = self._source.order(self._seed[lane], int(passes[row]))[place[row]]
        self.upcoming[lanes, 0], self.upcoming[lanes, 1] = self._source.playable[place], passes


def _column(values: np.ndarray) -> np.ndarray:
    """Plain, contiguous and read-only, mapped or not: one form, one compilation."""
    column = np.ascontiguousarray(values).view(np.ndarray)
    column.flags.writeable = False
    return column


def order_seed(seed: int, lane: int) -> int:
    """`SyncVectorEnv` seeds lane i with seed + i; taking the lane off again gives all lanes one order."""
    return (seed - lane) % 2**64
