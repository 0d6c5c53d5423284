"""Most Popular and S-POP, and the popularity order that every memory-based baseline falls back on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import numpy as np

from ..envs.log import PURCHASE, SessionBatch, SessionLog
from ..errors import InputError
from .config import MostPopularConfig, SPopConfig


class MostPopular:
    """Every row holds the number of training events of each item."""

    def __init__(self, config: MostPopularConfig | None = None) -> None:
        self.config = config or MostPopularConfig()

    def fit(self, train: SessionLog, valid: SessionLog | None = None) -> Self:
        """Count; `valid` is not used."""
        self.begin(train.n_items)
        self._count(train.item, train.kind)
        return self

    def begin(self, n_items: int) -> None:
        """Nothing is counted yet (`evaluate.online.OnlineModel`)."""
        self.counts = np.zeros(n_items, dtype=np.float32)

    def learn(self, batch: SessionBatch, rows: np.ndarray) -> None:
        """Count the `new_events` of the rows."""
        events = new_events(batch, rows)
        self._count(batch.item[events], batch.kind[events])

    def _count(self, item: np.ndarray, kind: np.ndarray) -> None:
        counted = item if self.config.kinds == "all" else item[kind == PURCHASE]
        self.counts += np.bincount(counted, minlength=len(self.counts)).astype(np.float32)

    def score_sessions(self, batch: SessionBatch) -> np.ndarray:
        """[P, N] float32."""
        return self.score_rows(batch, np.arange(batch.n_rows))

    def score_rows(self, batch: SessionBatch, rows: np.ndarray) -> np.ndarray:
        """[R, N] float32, some of the rows of `score_sessions`."""
        check_vocabulary(batch, len(self.counts))
        return np.tile(self.counts, (len(rows), 1))

    def recommend(self, history: SessionBatch, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best items and their scores after one live session, best first."""
        newest_event(history, len(self.counts))
        return best_first(self.counts, k)


class SPop:
    """S-POP (Hidasi et al. 2016): popularity within the session so far, ties and all other items by training events.

    Scores are integers, n * (events of the item in the session) + level with the n levels of `popularity_levels`, and
    exact as float32 below 2^24. An item that never occurs in training stays last even if the session holds it.
    """

    def __init__(self, config: SPopConfig | None = None) -> None:
        self.config = config or SPopConfig()

    def fit(self, train: SessionLog, valid: SessionLog | None = None) -> Self:
        """Count; `valid` is not used."""
        self.levels = popularity_levels(train)
        self.known = known_items(train)
        return self

    def score_sessions(self, batch: SessionBatch) -> np.ndarray:
        """[P, N] float32."""
        check_vocabulary(batch, len(self.levels))
        return self._scores_after(batch, batch.state_events())

    def recommend(self, history: SessionBatch, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best items and their scores after one live session, best first."""
        return best_first(self._scores_after(history, newest_event(history, len(self.levels)))[0], k)

    def _scores_after(self, batch: SessionBatch, events: np.ndarray) -> np.ndarray:
        scores = np.tile(self.levels, (len(events), 1))
        step = -self.levels.min(initial=0)
        for row, prefix in zip(scores, prefixes(batch, events), strict=True):
            items = batch.item[prefix]
            np.add.at(row, items[self.known[items]], step)
        return scores


def popularity_levels(train: SessionLog) -> np.ndarray:
    """[N] float32 whole numbers from -n to -1, higher for more training events, n the number of different counts.

    All below zero, so that a model fills in what it has no score of its own for without touching its ranking; few
    enough (at most sqrt(2 E)) for float32 to hold exactly.
    """
    return levels_of(np.bincount(train.item, minlength=train.n_items))


def levels_of(count: np.ndarray) -> np.ndarray:
    """[N] float32, the levels of items with so many training events [N]."""
    counts, level = np.unique(count, return_inverse=True)
    return (level - len(counts)).astype(np.float32)


def new_events(batch: SessionBatch, rows: np.ndarray) -> np.ndarray:
    """[n] int64 the events that `rows` [R] have as targets, and the first events of the sessions that begin with them.

    Over rows that go on where the last ones stopped, every event of a session of two or more is in it once.
    """
    target = batch.target_events()[rows]
    first = batch.offset[:-1]
    return np.concatenate([first[np.isin(first + 1, target)], target])


def known_items(train: SessionLog) -> np.ndarray:
    """[N] bool: the items that occur in training."""
    return np.bincount(train.item, minlength=train.n_items) > 0


def prefixes(batch: SessionBatch, events: np.ndarray) -> Iterator[slice]:
    """For each event index, the events of its session up to and with it."""
    starts = batch.offset[np.searchsorted(batch.offset, events, side="right") - 1]
    return map(slice, starts.tolist(), (events + 1).tolist())


def newest_event(history: SessionBatch, n_items: int) -> np.ndarray:
    """[1] int64 index of the last event of a single live session; raises `InputError` for anything else."""
    history.check_live()
    check_vocabulary(history, n_items)
    return np.array([len(history.item) - 1])


def check_vocabulary(batch: SessionBatch, n_items: int) -> None:
    """Raises `InputError` where the batch holds an item that the model has no number for."""
    if len(batch.item) and not 0 <= batch.item.min() <= batch.item.max() < n_items:
        raise InputError(
            f"SessionBatch: items must be 0..{n_items - 1} as in training, found {batch.item.min()}.."
            f"{batch.item.max()}; prepare both logs with one vocabulary"
        )


def best_first(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The min(k, N) best of [N] scores: items and scores, best first, ties by lower item number.

    Raises `InputError` for k below 1.
    """
    if k < 1:
        raise InputError(f"recommend: k must be at least 1, found {k}")
    k = min(k, len(scores))
    worst_kept = np.partition(scores, len(scores) - k)[len(scores) - k]
    items = np.flatnonzero(scores >= worst_kept)
    items = items[np.argsort(-scores[items], kind="stable")[:k]]
    return items, scores[items]
