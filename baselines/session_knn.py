"""Session-KNN: what the sessions most like the current one went on to hold.

One kernel serves three published forms: SKNN (Jannach & Ludewig 2017), V-SKNN (Ludewig & Jannach 2018) and the
VMIS-kNN cut (Kersbergen et al. 2022). Training sessions are numbered by recency, 0 the one that ended last, so that an
item's posting list, newest first, is a rising list of numbers, and the candidates of a session are a merge of rising
lists. Only the m newest postings of an item are kept: the m newest of a union are among the m newest of its parts, so
the cut is exact.

While a session grows its candidates change by one merge per new item. Beside each candidate stands a mask of the
items it shares, one bit for each distinct item of the session, and similarities are sums over those bits.
"""

from __future__ import annotations

from typing import NamedTuple, Self, get_args

import numpy as np
from numba import njit, prange

from ..envs.log import SessionBatch, SessionLog
from .config import Decay, SessionKNNConfig, Similarity
from .popularity import best_first, check_vocabulary, newest_event, popularity_levels

_END = np.int32(2**31 - 1)
# Numbered as `Similarity` and `Decay` list them.
_DOT, _COSINE, _JACCARD = range(3)
_NONE, _LINEAR, _DIV, _QUADRATIC, _LOG = range(5)


class SessionKNN:
    """k nearest sessions, each giving its similarity, decayed by `decay`, to its items; the best item scores 1.

    Items that no neighbour holds score below zero, by training events (`popularity_levels`), so that every row ranks
    something, the first rows of cold sessions too. Ties between candidates of equal similarity (as float32) go to the
    session that ended later, equal ends to the later session of the log. The current item can be recommended again.
    """

    def __init__(self, config: SessionKNNConfig | None = None) -> None:
        self.config = config or SessionKNNConfig()

    def fit(self, train: SessionLog, valid: SessionLog | None = None) -> Self:
        """Index the training sessions; `valid` is not used."""
        end = train.time[train.offset[1:] - 1]
        newest_first = np.argsort(end, kind="stable")[::-1]
        item, offset = np.asarray(train.item), np.asarray(train.offset)
        index = _build_index(item, offset, newest_first, train.n_items, self.config.m)
        events = np.maximum(np.bincount(item, minlength=train.n_items), 1)
        idf = np.maximum(0.0, np.log(max(train.n_sessions, 1) / events))
        self.index = _Index(*index, 1.0 + self.config.idf_weight * idf, popularity_levels(train))
        return self

    def score_sessions(self, batch: SessionBatch) -> np.ndarray:
        """[P, N] float32. Runs on all threads of Numba; the result does not depend on their number."""
        check_vocabulary(batch, len(self.index.fallback))
        return self._scores_after(batch, batch.state_events())

    def recommend(self, history: SessionBatch, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best items and their scores after one live session, best first."""
        return best_first(self._scores_after(history, newest_event(history, len(self.index.fallback)))[0], k)

    def _scores_after(self, batch: SessionBatch, events: np.ndarray) -> np.ndarray:
        row_of_event = np.full(len(batch.item), -1)
        row_of_event[events] = np.arange(len(events))
        scores = np.empty((len(events), len(self.index.fallback)), dtype=np.float32)
        c = self.config
        knobs = _Knobs(
            k=min(c.k, c.m),
            m=c.m,
            window=c.window,
            similarity=get_args(Similarity).index(c.similarity),
            position=get_args(Decay).index(c.position),
            decay=get_args(Decay).index(c.decay),
        )
        # Copies, so that mapped, read-only and plain arrays share one compiled kernel.
        _score(self.index, knobs, np.array(batch.item), np.array(batch.offset), row_of_event, scores)
        return scores


class _Index(NamedTuple):
    """The training log as two CSR tables. S sessions by recency, N items."""

    session_offset: np.ndarray
    """[S + 1] int64 into `session_item`."""
    session_item: np.ndarray
    """int32 distinct items of each session."""
    posting_offset: np.ndarray
    """[N + 1] int64 into `posting`."""
    posting: np.ndarray
    """int32 sessions of each item, rising, that is newest first; at most m an item."""
    item_factor: np.ndarray
    """[N] float64, 1 + idf_weight * idf."""
    fallback: np.ndarray
    """[N] float32, below zero."""


class _Knobs(NamedTuple):
    k: int
    m: int
    window: int
    similarity: int
    position: int
    decay: int


@njit(cache=True)
def _build_index(item, offset, newest_first, n_items, m):
    """The four arrays of the two CSR tables."""
    n_sessions = len(newest_first)
    session_offset = np.zeros(n_sessions + 1, np.int64)
    session_item = np.empty(len(item), np.int32)
    posting_offset = np.zeros(n_items + 1, np.int64)
    latest_session = np.full(n_items, -1, np.int32)
    size = 0
    for session in range(n_sessions):
        recorded = newest_first[session]
        for e in range(offset[recorded], offset[recorded + 1]):
            i = item[e]
            if latest_session[i] != session:
                latest_session[i] = session
                session_item[size] = i
                size += 1
                posting_offset[i + 1] += 1
        session_offset[session + 1] = size

    for i in range(n_items):
        posting_offset[i + 1] = posting_offset[i] + min(posting_offset[i + 1], m)
    posting = np.empty(posting_offset[n_items], np.int32)
    filled = posting_offset[:-1].copy()
    for session in range(n_sessions):
        for p in range(session_offset[session], session_offset[session + 1]):
            i = session_item[p]
            if filled[i] < posting_offset[i + 1]:
                posting[filled[i]] = session
                filled[i] += 1
    return session_offset, session_item[:size].copy(), posting_offset, posting


@njit(parallel=True, cache=True)
def _score(index, knobs, item, offset, row_of_event, out):
    for s in prange(len(offset) - 1):
        _score_session(index, knobs, item, offset[s], offset[s + 1], row_of_event, out)


@njit(cache=True)
def _score_session(index, knobs, item, start, stop, row_of_event, out):
    """Fill the rows of events start..stop-1, one session, that have one."""
    candidate = np.empty((2, knobs.m + 1), np.int32)
    shared = np.empty((2, knobs.m), np.int64)
    held = np.empty(knobs.window, np.int32)
    latest = np.empty(knobs.window, np.int64)
    gain = np.zeros(len(index.fallback))
    touched = np.empty(len(index.fallback) + 1, np.int32)
    begin, added, n_held, now, n = -1, 0, 0, 0, 0
    for e in range(start, stop):
        if row_of_event[e] < 0:
            continue
        first = _window_start(item, start, e, knobs.window)
        if first != begin:
            # Candidates that an item now outside the window kept out may come back: start anew.
            begin, added, n_held, n = first, first, 0, 0
            candidate[now, 0] = _END
        for new in range(added, e + 1):
            slot = _find(held, n_held, item[new])
            latest[slot] = new
            if slot == n_held:
                held[slot] = item[new]
                n_held += 1
                posting = index.posting[index.posting_offset[item[new]] : index.posting_offset[item[new] + 1]]
                n = _merge(
                    candidate[now], shared[now], posting, np.int64(1) << slot, candidate[1 - now], shared[1 - now]
                )
                now = 1 - now
        added = e + 1
        weight, decay = np.empty(n_held), np.empty(n_held)
        length = e + 1 - begin
        for slot in range(n_held):
            back = e - latest[slot]
            weight[slot] = _decayed(knobs.position, back, (length - back) / length)
            decay[slot] = _decayed(knobs.decay, back + 1, 1.0 / (back + 1))
        similarity, nearest = _similarities(index, knobs.similarity, candidate[now, :n], shared[now, :n], weight, decay)
        n_touched = _add_neighbours(index, knobs.k, candidate[now, :n], similarity, nearest, gain, touched)
        _write_row(index, gain, touched[:n_touched], out[row_of_event[e]])


@njit(cache=True)
def _find(held, n_held, wanted):
    for slot in range(n_held):
        if held[slot] == wanted:
            return slot
    return n_held


@njit(cache=True)
def _window_start(item, start, e, window):
    """The first event from which on to e no more than `window` distinct items occur."""
    if e + 1 - start <= window:
        return start
    held = np.empty(window, np.int32)
    n_held = 0
    for back in range(e, start - 1, -1):
        slot = _find(held, n_held, item[back])
        if slot == window:
            return back + 1
        if slot == n_held:
            held[slot] = item[back]
            n_held += 1
    return start


@njit(cache=True)
def _merge(candidate, shared, posting, bit, merged, merged_shared):
    """The newest m of candidates (rising, closed by _END) and posting list, with their masks; returns how many.

    Free of branches on the data: which list comes next is a coin toss that no processor predicts.
    """
    i = j = n = 0
    while n < len(merged_shared):
        a = candidate[i]
        b = posting[j] if j < len(posting) else _END
        session = min(a, b)
        if session == _END:
            break
        merged[n] = session
        merged_shared[n] = (shared[i] if a == session else 0) | (bit if b == session else 0)
        i += a == session
        j += b == session
        n += 1
    merged[n] = _END
    return n


@njit(cache=True)
def _decayed(form, steps, ratio):
    """A weight `steps` back that never rises with them and never falls below zero, as some public code's linear one."""
    if form == _LINEAR:
        return max(0.0, 1.0 - 0.1 * steps)
    if form == _DIV:
        return ratio
    if form == _QUADRATIC:
        return ratio * ratio
    if form == _LOG:
        return 1.0 / np.log10(steps + 1.7)
    return 1.0


@njit(cache=True)
def _similarities(index, form, candidate, shared, weight, decay):
    """For each candidate its similarity and the decay of the latest item it shares."""
    dot, nearest = np.zeros(len(candidate)), np.zeros(len(candidate))
    for slot in range(len(weight)):
        for c in range(len(candidate)):
            has = np.float64((shared[c] >> slot) & 1)
            dot[c] += has * weight[slot]
            nearest[c] = max(nearest[c], has * decay[slot])
    similarity = np.empty(len(candidate), np.float32)
    total = weight.sum()
    for c in range(len(candidate)):
        size = index.session_offset[candidate[c] + 1] - index.session_offset[candidate[c]]
        if form == _COSINE:
            dot[c] /= np.sqrt(size)
        elif form == _JACCARD:
            dot[c] /= total + size - dot[c]
        similarity[c] = dot[c]
    return similarity, nearest


@njit(cache=True)
def _add_neighbours(index, k, candidate, similarity, nearest, gain, touched):
    """Add the k most similar candidates, ties to the newer one, to the dense `gain`; returns how many items it holds.

    The newest neighbour adds first, so that the sums do not depend on how the k were found.
    """
    threshold, ties = np.float32(0), 0
    if len(candidate) > k:
        threshold = np.partition(similarity, len(similarity) - k)[len(similarity) - k]
        ties = k - (similarity > threshold).sum()
    n_touched = 0
    for c in range(len(candidate)):
        if similarity[c] <= threshold:
            if similarity[c] < threshold or ties == 0:
                continue
            ties -= 1
        value = similarity[c] * nearest[c]
        if value <= 0:
            continue
        for p in range(index.session_offset[candidate[c]], index.session_offset[candidate[c] + 1]):
            i = index.session_item[p]
            # Free of branches, as in `_merge`: whether an item is new to the sum is as hard to predict.
            touched[n_touched] = i
            n_touched += gain[i] == 0
            gain[i] += value
    return n_touched


@njit(cache=True)
def _write_row(index, gain, touched, row):
    """Turn `gain` into scores up to 1 over the fallback, and clear it."""
    row[:] = index.fallback
    best = 0.0
    for i in touched:
        gain[i] *= index.item_factor[i]
        best = max(best, gain[i])
    for i in touched:
        row[i] = gain[i] / best
        gain[i] = 0.0
