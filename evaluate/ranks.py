"""The rank kernel: where does the item that came next stand among all items?"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, prange

from ..errors import InputError

if TYPE_CHECKING:
    import torch

_BLOCK = 64
"""Items that the selection of the best looks at together."""


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

    scores = _in_memory(scores)
    if isinstance(scores, np.ndarray):
        low, high, n_finite = (np.empty(len(row), dtype=np.int32) for _ in range(3))
        _in_parallel(_count, scores, row, target, low, high, n_finite)
    else:
        low, high, n_finite = _count_torch(scores, row, target)
    _check_finite(scores, row, n_finite)
    return low, high


def top_k_items(scores: Any, k: int) -> np.ndarray:
    """The k best items of each row, int32 [P, min(k, N)], best first, equal scores in order of item number.

    So the list is the one that `Recommender.recommend` shows. `scores` as in `rank_bounds`. Raises `InputError` for
    k < 1 and where a row holds NaN or +inf.
    """
    if len(scores.shape) != 2:
        raise InputError(f"top_k_items: expected scores of shape [P, N], found {tuple(scores.shape)}")
    if k < 1:
        raise InputError(f"top_k_items: expected lists of at least 1 item, found k = {k}")
    scores = _in_memory(scores)
    items = np.zeros((scores.shape[0], min(k, scores.shape[1])), dtype=np.int32)
    if isinstance(scores, np.ndarray):
        n_finite = np.empty(len(scores), dtype=np.int32)
        _in_parallel(_select, scores, items, n_finite)
    else:
        n_finite = (scores < float("inf")).sum(1).cpu().numpy()
        # A stable sort, because `topk` leaves the order of equal scores open.
        items[:] = scores.sort(dim=1, descending=True, stable=True).indices[:, : items.shape[1]].cpu().numpy()
    _check_finite(scores, np.arange(len(items)), n_finite)
    return items


def _in_memory(scores: Any) -> Any:
    """What the kernels read: contiguous float32 or float64, or a detached torch tensor on an accelerator."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(scores, torch.Tensor):
        scores = scores.detach()
        if scores.device.type != "cpu":
            return scores
        # NumPy has no bfloat16; half precision widens without changing the order.
        scores = (scores if scores.dtype in (torch.float32, torch.float64) else scores.float()).numpy()
    elif scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float64)
    return np.ascontiguousarray(scores)


def _in_parallel(kernel: Callable[..., None], *arrays: np.ndarray) -> None:
    """Run a parallel kernel and leave torch as many threads as it had.

    Numba sets the threads of the OpenMP runtime that torch shares with it, and results of torch depend on those.
    """
    torch = sys.modules.get("torch")
    n_threads = 0 if torch is None else torch.get_num_threads()
    kernel(*arrays)
    if torch is not None:
        torch.set_num_threads(n_threads)


def _check_finite(scores: Any, row: np.ndarray, n_finite: np.ndarray) -> None:
    bad = np.flatnonzero(n_finite < scores.shape[1])
    if len(bad):
        first = int(row[bad[0]])
        values = np.array(scores[first].tolist())
        item = int(np.flatnonzero(~(values < np.inf))[0])
        raise InputError(
            f"scores row {first}: item {item} scores {values[item]}, expected a finite number or -inf "
            f"({len(bad)} of {len(row)} ranked rows are affected); run check_recommender on the model"
        )


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


@njit(parallel=True, cache=True)
def _select(scores, items, n_finite):
    n_items, k = scores.shape[1], items.shape[1]
    for r in prange(len(scores)):
        row, best, n_best, finite = scores[r], items[r], 0, 0
        for first in range(0, n_items, _BLOCK):
            block = row[first : first + _BLOCK]
            worst = row[best[k - 1]]
            # Few blocks hold one of the best, and this question vectorises.
            better = 0
            for i in range(len(block)):
                better += block[i] > worst
                finite += block[i] < np.inf
            if better == 0 and n_best == k:
                continue
            for item in range(first, first + len(block)):
                if n_best == k and not row[item] > row[best[k - 1]]:
                    continue
                n_best = min(n_best + 1, k)
                place = n_best - 1
                while place > 0 and row[best[place - 1]] < row[item]:
                    best[place] = best[place - 1]
                    place -= 1
                best[place] = item
        n_finite[r] = finite


def _count_torch(scores: torch.Tensor, row: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, ...]:
    import torch

    # Every row in order is the usual case, and needs no second copy of the scores.
    if not np.array_equal(row, np.arange(len(scores))):
        scores = scores[torch.from_numpy(row).to(scores.device)]
    own = scores.gather(1, torch.from_numpy(target).to(scores.device)[:, None])
    counts = [(scores > own).sum(1), (scores >= own).sum(1), (scores < torch.inf).sum(1)]
    low, high, n_finite = torch.stack(counts).int().cpu().numpy()
    return low, high, n_finite
