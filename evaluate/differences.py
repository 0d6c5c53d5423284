"""Paired differences: every model of a comparison against one of them, on the same events and the same resamples.

Two intervals that overlap do not say that two models are level, because both models meet the same sessions. The
interval of their difference does. But where ten models equal an eleventh, one of the ten intervals leaves 0 out more
often than one time in twenty, so a difference is marked by intervals that hold for all models at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ..errors import InputError
from .events import slice_masks
from .statistics import bootstrap_sums, percentile_interval, ratio, session_sums
from .table import HEADLINE_K, event_values, same_events

DIFFERENCE_SLICES = {
    "purchase": "Purchase",
    "purchase/repeat": "Repeat",
    "purchase/explore": "Explore",
    "click": "Click",
    "first": "First",
}
"""The slices compared, and their headings."""

FEWEST_SESSIONS = 6
"""Of fewer sessions that differ, all in one direction, a sign test has p > 0.05 (2 / 2^5); a bootstrap of them may have
an interval without 0 all the same."""


def paired_differences(
    events: Mapping[str, Mapping[int, pd.DataFrame]],
    against: str,
    k: int = HEADLINE_K,
    ties: str = "expected",
    resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Recall@k of every other model minus that of `against`, one row for each model and slice, in percentage points.

    `events` is as for `long_table`; a model's hits are averaged over its seeds event by event first, however many it
    has. Columns: model, against, slice, metric, k; points, the difference; low..high, its 95 % session-clustered
    bootstrap interval, paired: both models are resampled by the same draws; all_low..all_high, the intervals of
    `simultaneous_interval` over the models of the slice, each slice by itself; differs, whether that one excludes 0 and
    at least 6 sessions differ; events, of the slice. An empty slice is NaN, and so is a model that cannot be scored
    at k. The default of `resamples` is above that of the table because simultaneous intervals have thinner tails.

    Raises `InputError` where `against` is not in `events` or alone there, and where the tables are not of the same
    events.
    """
    if against not in events or len(events) == 1:
        raise InputError(
            f"paired_differences: expected one of several models ({', '.join(events)}) as `against`, found {against!r};"
            " give the event tables of at least two models and name one"
        )
    reference = same_events(events)
    slices = slice_masks(reference)
    masks = [slices[name] for name in DIFFERENCE_SLICES]
    session, labels = pd.factorize(reference["session"])
    models = [model for model in events if model != against]
    base = _mean_recall(events[against], k, ties)
    differences = [100 * (_mean_recall(events[model], k, ties) - base) for model in models]
    # A column of ones counts the events.
    columns = np.stack([*differences, np.ones(len(reference))], axis=1)
    sums = np.stack([session_sums(columns[m], session[m], len(labels)) for m in masks], axis=1)
    drawn = bootstrap_sums(sums.reshape(len(labels), -1), resamples=resamples, seed=seed)
    parts = []
    for i, (name, drawn_sums) in enumerate(zip(DIFFERENCE_SLICES, np.hsplit(drawn, len(masks)), strict=True)):
        total, draws = sums[:, i].sum(axis=0), ratio(drawn_sums[:, :-1], drawn_sums[:, -1:])
        low, high = percentile_interval(draws)
        all_low, all_high = simultaneous_interval(draws)
        # Sums of fractions may miss 0 by their last bits.
        enough = (np.abs(sums[:, i, :-1]) > 1e-9).sum(axis=0) >= FEWEST_SESSIONS
        part = pd.DataFrame({"model": models, "against": against, "slice": name, "metric": "recall", "k": k})
        part["points"] = ratio(total[:-1], total[-1:])
        part["low"], part["high"], part["all_low"], part["all_high"] = low, high, all_low, all_high
        part["differs"] = ((all_low > 0) | (all_high < 0)) & enough
        part["events"] = int(total[-1])
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def simultaneous_interval(draws: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals of the columns of `draws` [R, M] that hold together in `confidence` of the draws.

    All have the same share of draws outside, the largest with which enough draws lie inside every interval at once:
    the quantile-based sup-t band (Montiel Olea and Plagborg-Møller, "Simultaneous confidence bands", Journal of Applied
    Econometrics, 2019, algorithm 2). Never narrower than `percentile_interval`, the same for one column, and narrower
    than Bonferroni's correction where columns go together. It is fitted to the tails of the draws, so it wants
    thousands: with 500 it is too narrow. Draws with a NaN and columns of nothing else do not count.
    """
    counted = draws[:, ~np.isnan(draws).all(axis=0)]
    counted = pd.DataFrame(counted[~np.isnan(counted).any(axis=1)])
    if counted.empty:
        return percentile_interval(draws, confidence)
    # The share of draws that are at least as far out, in the column where a draw is farthest out.
    share = np.minimum(counted.rank(method="max", pct=True), (-counted).rank(method="max", pct=True)).min(axis=1)
    first_inside = np.sort(share)[int((1 - confidence) * len(share))]
    tail = min(first_inside - 1 / len(share), (1 - confidence) / 2)
    return percentile_interval(draws, 1 - 2 * tail)


def _mean_recall(by_seed: Mapping[int, pd.DataFrame], k: int, ties: str) -> np.ndarray:
    """[E], NaN where k is beyond what the model can be scored at."""
    return np.mean([event_values(frame, "recall", k, ties) for frame in by_seed.values()], axis=0)
