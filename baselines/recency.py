"""Most Recent: the session as a stack."""

from __future__ import annotations

from typing import Self

import numpy as np

from ..envs.log import PURCHASE, SessionBatch, SessionLog
from .config import MostRecentConfig
from .popularity import best_first, check_vocabulary, levels_of, new_events, newest_event, prefixes


class MostRecent:
    """The session's items, newest on top, an item seen again moves up; below them all others by training events.

    Ruocco et al. 2017 fill the unfilled places at random; popularity is the honest choice. With ``bought="last"``
    items already bought in the session come behind its other items, newest first among themselves. An item that never
    occurs in training stays last even if the session holds it.
    """

    def __init__(self, config: MostRecentConfig | None = None) -> None:
        self.config = config or MostRecentConfig()

    def fit(self, train: SessionLog, valid: SessionLog | None = None) -> Self:
        """Count; `valid` is not used."""
        self.begin(train.n_items)
        self._count(train.item)
        self.known = self.count > 0
        return self

    def begin(self, n_items: int) -> None:
        """Nothing is counted yet, and any item may come (`evaluate.online.OnlineModel`)."""
        self.count = np.zeros(n_items, dtype=np.int64)
        self.levels = levels_of(self.count)
        self.known = np.ones(n_items, dtype=bool)

    def learn(self, batch: SessionBatch, rows: np.ndarray) -> None:
        """Count the `new_events` of the rows."""
        self._count(batch.item[new_events(batch, rows)])

    def _count(self, item: np.ndarray) -> None:
        self.count += np.bincount(item, minlength=len(self.count))
        self.levels = levels_of(self.count)

    def score_sessions(self, batch: SessionBatch) -> np.ndarray:
        """[P, N] float32."""
        return self.score_rows(batch, np.arange(batch.n_rows))

    def score_rows(self, batch: SessionBatch, rows: np.ndarray) -> np.ndarray:
        """[R, N] float32, some of the rows of `score_sessions`."""
        check_vocabulary(batch, len(self.levels))
        return self._scores_after(batch, batch.state_events()[rows])

    def recommend(self, history: SessionBatch, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best items and their scores after one live session, best first."""
        return best_first(self._scores_after(history, newest_event(history, len(self.levels)))[0], k)

    def _scores_after(self, batch: SessionBatch, events: np.ndarray) -> np.ndarray:
        scores = np.tile(self.levels, (len(events), 1))
        for row, prefix in zip(scores, prefixes(batch, events), strict=True):
            items, kinds = batch.item[prefix], batch.kind[prefix]
            place = np.arange(1, len(items) + 1)
            if self.config.bought == "last":
                place[~np.isin(items, items[kinds == PURCHASE])] += len(items)
            known = self.known[items]
            # Where an item repeats, NumPy keeps the value assigned last: its newest place.
            row[items[known]] = place[known]
        return scores
