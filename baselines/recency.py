"""Most Recent: the session as a stack."""

from __future__ import annotations

from typing import Self

import numpy as np

from ..envs.log import PURCHASE, SessionBatch, SessionLog
from .config import MostRecentConfig
from .popularity import best_first, check_vocabulary, known_items, newest_event, popularity_levels, prefixes


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
        for row, prefix in zip(scores, prefixes(batch, events), strict=True):
            items, kinds = batch.item[prefix], batch.kind[prefix]
            place = np.arange(1, len(items) + 1)
            if self.config.bought == "last":
                place[~np.isin(items, items[kinds == PURCHASE])] += len(items)
            known = self.known[items]
            # Where an item repeats, NumPy keeps the value assigned last: its newest place.
            row[items[known]] = place[known]
        return scores
