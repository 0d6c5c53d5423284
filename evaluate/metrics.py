"""Recall, MRR and NDCG at K of one relevant item, and the reward of a hit, from the two rank bounds, exact under ties.

The first three are a mean of per-rank gains over the ranks that the target may have: 1 for Recall, 1/r for MRR and
1/log2(r + 1) for NDCG (whose ideal is 1, as there is one relevant item), each cut off below rank K. With G the running
sum of the gains, the mean over ranks low+1..high is (G[min(high, K)] - G[min(low, K)]) / (high - low). It is the
expectation over all orders of the tied items, so that a constant scorer comes out at chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("recall", "mrr", "ndcg")

TIES = ("expected", "optimistic", "pessimistic")
"""The rules for tied scores: mean over the tied ranks, the best of them, the worst of them."""

_GAIN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "recall": np.ones_like,
    "mrr": lambda rank: 1.0 / rank,
    "ndcg": lambda rank: 1.0 / np.log2(rank + 1.0),
}


def metric_at(metric: str, rank_low: np.ndarray, rank_high: np.ndarray, k: int, ties: str = "expected") -> np.ndarray:
    """`metric`@k of each event, float64 [E] in 0..1.

    `rank_low` and `rank_high` [E] count the items that score strictly higher, and higher or equal, as `rank_bounds`
    returns them; equal bounds mark an event that no rank can satisfy (an item never trained on) and give 0.
    Raises `InputError` for an unknown metric or tie rule and for k < 1.
    """
    if metric not in _GAIN:
        raise InputError(f"metric {metric!r} is not known; choose one of {', '.join(METRICS)}")
    if ties not in TIES:
        raise InputError(f"tie rule {ties!r} is not known; choose one of {', '.join(TIES)}")
    if k < 1:
        raise InputError(f"metrics are cut at a rank k of 1 or more, found {k}")
    low, high = np.asarray(rank_low, dtype=np.int64), np.asarray(rank_high, dtype=np.int64)
    width = high - low
    if ties == "optimistic":
        high = np.minimum(low + 1, high)
    elif ties == "pessimistic":
        low = np.maximum(high - 1, low)
    total_gain = np.concatenate([[0.0], np.cumsum(_GAIN[metric](np.arange(1.0, k + 1)))])
    gained = total_gain[np.minimum(high, k)] - total_gain[np.minimum(low, k)]
    return np.where(width > 0, gained / np.maximum(high - low, 1), 0.0)


def recall(rank_low: np.ndarray, rank_high: np.ndarray, k: int, ties: str = "expected") -> np.ndarray:
    """Recall@k of each event, as `metric_at`: the probability that the target is among the best k."""
    return metric_at("recall", rank_low, rank_high, k, ties)


def mrr(rank_low: np.ndarray, rank_high: np.ndarray, k: int, ties: str = "expected") -> np.ndarray:
    """MRR@k of each event, as `metric_at`: one over the target's rank, 0 below rank k."""
    return metric_at("mrr", rank_low, rank_high, k, ties)


def ndcg(rank_low: np.ndarray, rank_high: np.ndarray, k: int, ties: str = "expected") -> np.ndarray:
    """NDCG@k of each event, as `metric_at`: 1/log2(rank + 1), 0 below rank k."""
    return metric_at("ndcg", rank_low, rank_high, k, ties)


def match_rewards(
    events: pd.DataFrame,
    k: int = 1,
    *,
    rewards: tuple[float, float] = (1.0, 5.0),
    gamma: float = 0.99,
    ties: str = "expected",
) -> np.ndarray:
    """What each event of an event table adds to its session's return under ``feedback="match"``, float64 [E].

    gamma^(position - 2) * rewards[kind] * Recall@k: the reward of a click or a purchase (default: IRN paper, section
    5.1) where the event is among the best k, discounted by the decisions before it. Summed over a session, this is the
    return in `ReplayEnv(log, slate=k, rewards=rewards)` (k = 1: without a slate) of the agent that always takes the
    best k. NaN where k is beyond the model's `max_k`.

    Raises `InputError` as `metric_at` does, and for a gamma outside 0..1.
    """
    if not 0.0 <= gamma <= 1.0:
        raise InputError(f"match_rewards: expected gamma in 0..1, found {gamma}")
    low, high, kind, position, max_k = (
        events[name].to_numpy() for name in ("rank_low", "rank_high", "kind", "position", "max_k")
    )
    gained = gamma ** (position - 2.0) * np.asarray(rewards)[kind] * recall(low, high, k, ties)
    return np.where((max_k > 0) & (k > max_k), np.nan, gained)
