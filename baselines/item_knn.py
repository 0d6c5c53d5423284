"""Item-KNN: what shares training sessions with the session's last item."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import numpy as np
from scipy.sparse import csr_array, vstack

from ..envs.log import SessionBatch, SessionLog
from .config import ItemKNNConfig
from .popularity import best_first, check_vocabulary, newest_event, popularity_levels

_BLOCK = 2**22
"""Co-occurrences held at once while the index is built, 64 bytes each at the peak."""


class ItemKNN:
    """Neighbours of the last item by co-occurrence within sessions, in both directions, clicks and purchases alike.

    A session counts once for each pair of different items it holds, however often it holds them. An item is its own
    neighbour through the sessions that hold it more than once, so that it is recommended again as often as shoppers
    come back to it; ``itself=False`` puts it behind all others. The k neighbours score above zero, ties between them
    cut by lower item number; all other items score below, by training events (`popularity_levels`).
    """

    def __init__(self, config: ItemKNNConfig | None = None) -> None:
        self.config = config or ItemKNNConfig()

    def fit(self, train: SessionLog, valid: SessionLog | None = None) -> Self:
        """Count co-occurrences; `valid` is not used."""
        self.levels = popularity_levels(train)
        self.neighbours = _neighbours(train, self.config)
        return self

    def score_sessions(self, batch: SessionBatch) -> np.ndarray:
        """[P, N] float32."""
        check_vocabulary(batch, len(self.levels))
        return self._scores_after(batch.item[batch.state_events()])

    def recommend(self, history: SessionBatch, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best items and their scores after one live session, best first."""
        return best_first(self._scores_after(history.item[newest_event(history, len(self.levels))])[0], k)

    def _scores_after(self, last: np.ndarray) -> np.ndarray:
        scores = np.tile(self.levels, (len(last), 1))
        found = self.neighbours[last].tocoo()
        scores[found.row, found.col] = found.data
        if not self.config.itself:
            scores[np.arange(len(last)), last] = self.levels.min(initial=0) - 1
        return scores


def _neighbours(train: SessionLog, config: ItemKNNConfig) -> csr_array:
    """[N, N] float32: in each row the `config.k` largest similarities above zero."""
    shape = (train.n_sessions, train.n_items)
    held = csr_array((np.ones(train.n_events, np.int32), train.item, train.offset), shape, copy=True)
    held.sum_duplicates()
    again = np.bincount(held.indices[held.data > 1], minlength=train.n_items)
    held.data[:] = 1
    support = np.bincount(held.indices, minlength=train.n_items)
    discount = np.ones(train.n_items)
    if config.similarity == "cosine":
        discount = np.maximum(support + config.regularisation, 1)
    holders = held.T.tocsr()

    rows = []
    for first, end in _blocks(holders, held):
        together = holders[first:end] @ held
        together.sort_indices()
        other, item = together.indices, np.repeat(np.arange(first, end), np.diff(together.indptr))
        together.data[item == other] = again[item[item == other]] if config.itself else 0
        norm = discount[item] ** config.alpha * discount[other] ** (1 - config.alpha)
        similar = csr_array(((together.data / norm).astype(np.float32), other, together.indptr), together.shape)
        similar.eliminate_zeros()
        rows.append(_largest(similar, config.k))
    return csr_array(vstack(rows, format="csr"))


def _blocks(holders: csr_array, held: csr_array) -> Iterator[tuple[int, int]]:
    """Ranges of items with at most `_BLOCK` co-occurrences (an item with more makes a range alone)."""
    # The items of the sessions that hold an item are at least as many as the different ones among them.
    reach = np.r_[0, np.cumsum(holders @ np.diff(held.indptr))]
    first = 0
    while first < len(reach) - 1:
        end = max(int(np.searchsorted(reach, reach[first] + _BLOCK, side="right")) - 1, first + 1)
        yield first, end
        first = end


def _largest(table: csr_array, k: int) -> csr_array:
    """The k largest values of each row, ties by lower column."""
    kept = [
        start + best_first(table.data[start:end], k)[0] if end > start else np.zeros(0, np.int64)
        for start, end in zip(table.indptr[:-1].tolist(), table.indptr[1:].tolist(), strict=True)
    ]
    places = np.concatenate(kept)
    indptr = np.r_[0, np.cumsum([len(row) for row in kept])]
    return csr_array((table.data[places], table.indices[places], indptr), table.shape)
