"""What a model's lists hold, whether or not they hit: how much of the catalogue, and how popular.

Both are of the lists that `rank_events` keeps with `top_k`. They are read beside accuracy, as no list is better for
being rare: a random one covers everything.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..envs.log import SessionLog
from ..errors import InputError


def listed_items(events: pd.DataFrame, k: int) -> np.ndarray:
    """The first k items of each list of an event table, int32 [E, k], -1 behind the end of a shorter list.

    Raises `InputError` for k < 1 and where the table has no lists of k items.
    """
    names = [f"top_{place}" for place in range(1, k + 1)]
    if k < 1 or names[-1] not in events:
        n_kept = sum(name.startswith("top_") for name in events)
        raise InputError(
            f"coverage and popularity at {k}: the event table has lists of {n_kept} items; "
            f"choose k in 1..{n_kept} or rank with rank_events(..., top_k={max(k, 1)})"
        )
    return events[names].to_numpy(dtype=np.int32)


def catalogue_coverage(events: pd.DataFrame, k: int, n_items: int) -> float:
    """Coverage@k: the share of `n_items` items that are among the first k of at least one list, in 0..1.

    (Aggregate diversity: Adomavicius and Kwon, "Improving aggregate recommendation diversity", 2012.) `n_items` is the
    number of items that can be recommended, `SessionLog.n_train_items`. The more events, the more is covered, so only
    models on the same events compare. NaN where k is beyond the model's `max_k`. Raises `InputError` as `listed_items`
    does.
    """
    if not _scorable(events, k).all():
        return float("nan")
    items = np.unique(listed_items(events, k))
    return float(((items >= 0) & (items < n_items)).sum() / n_items)


def average_popularity(events: pd.DataFrame, k: int, popularity: np.ndarray) -> np.ndarray:
    """Popularity@k of each event, float64 [E]: the mean `popularity` [N] of the first k items of its list.

    The mean over events is the popularity bias of Ludewig and Jannach, "Evaluation of session-based recommendation
    algorithms" (2018), where `popularity` is `item_popularity`. NaN where k is beyond the model's `max_k`. Raises
    `InputError` as `listed_items` does.
    """
    items = listed_items(events, k)
    listed = items >= 0
    total = np.where(listed, popularity[items], 0.0).sum(axis=1)
    return np.where(_scorable(events, k), total / np.maximum(listed.sum(axis=1), 1), np.nan)


def item_popularity(train: SessionLog) -> np.ndarray:
    """Training events of each item over those of the most popular one, float64 [N] in 0..1."""
    count = np.bincount(train.item, minlength=train.n_items)
    return count / max(count.max(initial=0), 1)


def _scorable(events: pd.DataFrame, k: int) -> np.ndarray:
    max_k = events["max_k"].to_numpy()
    return (max_k == 0) | (k <= max_k)
