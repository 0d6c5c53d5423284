"""Draw items from the softmax of [M, N] logits: one pass over the logits, whatever the number of draws."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ...errors import InputError

Law = Literal["gumbel", "iid", "top-n"]

_BLOCK = 128
"""Columns whose weights are summed: a draw looks for its block, then for the item within it."""
_LOG2_E = np.float32(np.log2(np.e))
_LOWEST = np.float32(-127)
_EXP2 = np.array([0.9999999, 0.6931545, 0.24014182, 0.05586034, 0.00894959, 0.00189375], np.float32)
"""Polynomial of 2^x on [0, 1], interpolated at the Chebyshev nodes: relative error 1e-7."""


@torch.no_grad()
def sample_items(logits: Tensor, n: int, law: Law, generator: torch.Generator) -> Tensor:
    """[n, M] int64 items of softmax(`logits` [M, N]).

    ``gumbel``: distinct, the law of the n largest of log pi + Gumbel noise, in their order (Kool et al. 2019), which is
    that of drawing without replacement; ``iid``: with replacement; ``top-n``: the n most probable, no draw at all.
    The same law on every device, but not the same numbers. Raises `InputError` for other shapes, for more distinct
    items than there are, and on the CPU where a row holds NaN, +inf or too few finite logits.
    """
    if logits.ndim != 2:
        found = tuple(logits.shape)
        raise InputError(f"logits: expected [M, N], a row per session, found {found}; put sessions first in the state")
    if law != "iid" and n > logits.shape[1]:
        raise InputError(f"breadth: expected at most the {logits.shape[1]} items there are, found {n}")
    if law == "top-n":
        return logits.topk(n, dim=1).indices.t()
    if logits.device.type == "cpu":
        return _by_inverse_cdf(logits, n, law == "gumbel", generator)
    return _by_gumbel_noise(logits, n, law == "gumbel", generator)


def _by_gumbel_noise(logits: Tensor, n: int, distinct: bool, generator: torch.Generator) -> Tensor:
    """Few kernels and no wait for the device."""

    def noisy() -> Tensor:
        return logits - torch.empty_like(logits).exponential_(generator=generator).log_()

    if distinct and n > 1:
        return noisy().topk(n, dim=1).indices.t()
    return torch.stack([noisy().argmax(dim=1) for _ in range(n)])


def _by_inverse_cdf(logits: Tensor, n: int, distinct: bool, generator: torch.Generator) -> Tensor:
    """n uniforms a row instead of N Gumbels."""
    logits = logits.detach().float().contiguous()
    uniform = torch.rand(n, len(logits), dtype=torch.float64, generator=generator)
    drawn = np.full(uniform.shape, -1)
    _draw(logits.numpy(), logits.amax(dim=1).numpy(), uniform.numpy(), distinct, drawn)
    if drawn.min(initial=0) < 0:
        row = int((drawn < 0).any(axis=0).argmax())
        needed = n if distinct else 1
        raise InputError(f"logits: expected {needed} or more finite ones and no NaN, found fewer in row {row}")
    return torch.from_numpy(drawn)


@njit(cache=True, nogil=True)
def _draw(logits: np.ndarray, largest: np.ndarray, uniform: np.ndarray, distinct: bool, drawn: np.ndarray) -> None:
    """Fills `drawn` [n, M], -1 where there is nothing left to draw."""
    n, n_rows = drawn.shape
    weight = np.empty(logits.shape[1], np.float32)
    block_weight = np.empty((len(weight) + _BLOCK - 1) // _BLOCK, np.float32)
    for r in range(n_rows):
        _weigh(logits[r], largest[r], weight, block_weight)
        for j in range(n):
            item = _pick(weight, block_weight, uniform[j, r])
            if item < 0 and j > 0:
                # What is left is so far below what was drawn that float32 held it as 0.
                left = logits[r].copy()
                for i in range(j):
                    left[drawn[i, r]] = -np.inf
                _weigh(left, left.max(), weight, block_weight)
                item = _pick(weight, block_weight, uniform[j, r])
            if item < 0:
                break
            drawn[j, r] = item
            if distinct:
                weight[item] = 0
                block = item // _BLOCK
                block_weight[block] = weight[block * _BLOCK : (block + 1) * _BLOCK].sum()


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _weigh(logits: np.ndarray, largest: float, weight: np.ndarray, block_weight: np.ndarray) -> None:
    """weight = exp(logits - largest), and its sums by block; 0 for what is below 2^-127 or not a number.

    The exponential is spelled out because LLVM vectorises this and not a call of the C library's.
    """
    bits = np.empty(_BLOCK, np.int32)
    power_of_two = bits.view(np.float32)
    for block in range(len(block_weight)):
        x = logits[block * _BLOCK : (block + 1) * _BLOCK]
        w = weight[block * _BLOCK : (block + 1) * _BLOCK]
        for i in range(len(x)):
            y = (x[i] - largest) * _LOG2_E
            y = y if y > _LOWEST else _LOWEST
            whole = np.floor(y)
            f = y - whole
            p = _EXP2[4] + f * _EXP2[5]
            p = _EXP2[2] + f * (_EXP2[3] + f * p)
            w[i] = _EXP2[0] + f * (_EXP2[1] + f * p)
            bits[i] = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23))
        total = np.float32(0)
        for i in range(len(x)):
            w[i] *= power_of_two[i]
            total += w[i]
        block_weight[block] = total


@njit(cache=True, nogil=True)
def _pick(weight: np.ndarray, block_weight: np.ndarray, uniform: float) -> int:
    """An item in proportion to its weight, never one of weight 0; -1 where all are."""
    total = 0.0
    for block in range(len(block_weight)):
        total += block_weight[block]
    left = uniform * total
    found = -1
    for block in range(len(block_weight)):
        if block_weight[block] > 0:
            found = block
            if left < block_weight[block]:
                break
            left -= block_weight[block]
    item = -1
    if found >= 0:
        for i in range(found * _BLOCK, min((found + 1) * _BLOCK, len(weight))):
            if weight[i] > 0:
                item = i
                left -= weight[i]
                if left < 0:
                    break
    return item
