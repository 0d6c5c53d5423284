"""Confidence intervals by resampling sessions.

Events of one session are not independent, sessions are; so whole sessions are drawn with replacement (the cluster
bootstrap: Field and Welsh, "Bootstrapping clustered data", 2007) and each figure is a ratio of two sums over the drawn
sessions: of the metric's values and of the events counted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_CHUNK = 2**22
"""Draw counts held at once, as float64."""


class Interval(NamedTuple):
    """Point estimates with a percentile interval, each float64 [M]."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def session_bootstrap(
    values: np.ndarray,
    session: np.ndarray,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of each column of `values` [E, M] over its events, with a session-clustered percentile interval.

    `session` [E] says which session an event belongs to (any labels, any order). NaN means that the event does not
    count in that column: slices are columns with NaN outside. For a mean over training seeds, average the values of
    the seeds event by event first. A column without events is NaN throughout.
    """
    values = np.asarray(values, dtype=np.float64)
    codes = np.unique(np.asarray(session), return_inverse=True)[1]
    counted = ~np.isnan(values)
    n_sessions = int(codes.max()) + 1 if len(codes) else 0
    sums = session_sums(np.where(counted, values, 0.0), codes, n_sessions)
    counts = session_sums(counted, codes, n_sessions)
    drawn = bootstrap_sums(np.hstack([sums, counts]), resamples=resamples, seed=seed)
    draws = ratio(*np.hsplit(drawn, 2))
    return Interval(ratio(sums.sum(axis=0), counts.sum(axis=0)), *percentile_interval(draws, confidence))


def session_sums(values: np.ndarray, session: np.ndarray, n_sessions: int) -> np.ndarray:
    """Sums over the events of each session: `values` [E, M], `session` [E] in 0..S-1, result float64 [S, M]."""
    sums = np.empty((n_sessions, values.shape[1]))
    for column in range(values.shape[1]):
        sums[:, column] = np.bincount(session, weights=values[:, column], minlength=n_sessions)
    return sums


def bootstrap_sums(per_session: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """Column sums over `resamples` multinomial draws of S sessions out of S: [S, M] to [resamples, M].

    The draws depend on `seed`, `resamples` and S alone, so that figures of several models over the same sessions are
    paired draw by draw, and their differences can be taken before the percentiles.
    """
    n_sessions = len(per_session)
    sums = np.zeros((resamples, per_session.shape[1]))
    if n_sessions == 0:
        return sums
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // n_sessions)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        weights = np.empty((rows, n_sessions))
        for row in range(rows):
            # Counting uniform draws is a multinomial sample, several times faster than Generator.multinomial.
            weights[row] = np.bincount(rng.integers(n_sessions, size=n_sessions), minlength=n_sessions)
        sums[start : start + rows] = weights @ per_session
    return sums


def ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """sums / counts, NaN where nothing was counted."""
    return np.divide(sums, counts, out=np.full(np.broadcast_shapes(sums.shape, counts.shape), np.nan), where=counts > 0)


def percentile_interval(draws: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The central `confidence` part of each column of `draws` [R, M].

    Resamples that drew no event of a column (NaN) are left out; a column that never counted an event is NaN.
    """
    low, high = np.full((2, draws.shape[1]), np.nan)
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    counted = ~np.isnan(draws)
    whole = counted.all(axis=0)
    if len(draws) and whole.any():
        low[whole], high[whole] = np.percentile(draws[:, whole], tails, axis=0)
    for column in np.flatnonzero(~whole & counted.any(axis=0)):
        low[column], high[column] = np.percentile(draws[counted[:, column], column], tails)
    return low, high
