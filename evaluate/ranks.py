"""The rank kernel: where does the item that came next stand among all items?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, prange

from ..errors import InputError

if TYPE_CHECKING:
    import torch


def rank_bounds(scores: Any, row: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each (row, target): how many items score strictly higher, and how many higher or equal.

    `scores` [P, N], NumPy or torch, higher is better, -inf allowed; `row` [T] and `target` [T] integers, where several
    targets may share a row. The target's own score is read from the same matrix, so every target ties with itself and
    its rank lies in ``rank_low + 1 .. rank_high``. Scores on a GPU are ranked there.

    Returns `rank_low` and `rank_high`, int32 [T]. Raises `InputError` where a row that is ranked holds NaN (which would
    compare as the best rank) or +inf, or where rows and targets do not fit the scores.
    """
    if len(scores.shape) != 2:
        raise InputError(f"rank_bounds: expected scores of shape [P, N], found {tuple(scores.shape)}")
    row = np.ascontiguousarray(row, dtype=np.int64)
    target = np.ascontiguousarray(target, dtype=np.int64)
    if row.ndim != 1 or row.shape != target.shape:
        raise InputError(f"rank_bounds: expected row and target of one length, found {row.shape} and {target.shape}")
    for name, index, size in (("rows", row, scores.shape[0]), ("targets", target, scores.shape[1])):
        if len(index) and not (0 <= index.min() and index.max() < size):
            raise InputError(f"rank_bounds: expected {name} 0..{size - 1}, found {index.min()}..{index.max()}")

    torch = sys.modules.get("torch")
    if torch is not None and isinstance(scores, torch.Tensor):
        scores = scores.detach()
        if scores.device.type != "cpu":
            low, high, n_finite = _count_torch(scores, row, target)
            return _checked(low, high, n_finite, row, scores)
        # NumPy has no bfloat16; half precision widens without changing the order.
        scores = (scores if scores.dtype in (torch.float32, torch.float64) else scores.float()).numpy()
    elif scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float64)
    scores = np.ascontiguousarray(scores)
    low, high, n_finite = (np.empty(len(row), dtype=np.int32) for _ in range(3))
    n_threads = 0 if torch is None else torch.get_num_threads()
    _count(scores, row, target, low, high, n_finite)
    # Numba sets the threads of the OpenMP runtime that torch shares with it, and results of torch depend on those.
    if torch is not None:
        torch.set_num_threads(n_threads)
    return _checked(low, high, n_finite, row, scores)


def _checked(
    low: np.ndarray, high: np.ndarray, n_finite: np.ndarray, row: np.ndarray, scores: Any
) -> tuple[np.ndarray, np.ndarray]:
    bad = np.flatnonzero(n_finite < scores.shape[1])
    if len(bad):
        first = int(row[bad[0]])
        values = np.array(scores[first].tolist())
        item = int(np.flatnonzero(~(values < np.inf))[0])
        raise InputError(
            f"scores row {first}: item {item} scores {values[item]}, expected a finite number or -inf "
            f"({len(bad)} of {len(row)} ranked rows are affected); run check_recommender on the model"
        )
    return low, high


# No fastmath: it would let the compiler assume that there is no NaN. Integer sums vectorise without it.
@njit(parallel=True, cache=True)
def _count(scores, row, target, low, high, n_finite):
    for t in prange(len(row)):
        row_scores = scores[row[t]]
        own = row_scores[target[t]]
        higher = higher_or_equal = finite = 0
        for i in range(scores.shape[1]):
            score = row_scores[i]
            higher += score > own
            higher_or_equal += score >= own
            finite += score < np.inf
        low[t] = higher
        high[t] = higher_or_equal
        n_finite[t] = finite


def _count_torch(scores: torch.Tensor, row: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, ...]:
    import torch

    # Every row in order is the usual case, and needs no second copy of the scores.
    if not np.array_equal(row, np.arange(len(scores))):
        scores = scores[torch.from_numpy(row).to(scores.device)]
    own = scores.gather(1, torch.from_numpy(target).to(scores.device)[:, None])
    counts = [(scores > own).sum(1), (scores >= own).sum(1), (scores < torch.inf).sum(1)]
    low, high, n_finite = torch.stack(counts).int().cpu().numpy()
    return low, high, n_finite
