"""Ids numbered 0, 1, 2, … in order of first appearance, a part at a time, in little memory."""

from __future__ import annotations

import numpy as np
from numba import njit

_FREE = -1
_LEAST_SLOTS = 1 << 10


class Numbering:
    """A hash table from int64 ids to their numbers: four bytes a slot beside the ids themselves.

    The probing is that of Python's `dict`: an id's low bits say where to look first, so that ids close to each other
    lie close to each other, and the higher bits come in where that place is taken.
    """

    def __init__(self) -> None:
        self._slots = np.full(_LEAST_SLOTS, _FREE, dtype=np.int32)
        self._ids = np.empty(_LEAST_SLOTS // 2, dtype=np.int64)
        self._n = 0

    def __len__(self) -> int:
        return self._n

    @property
    def ids(self) -> np.ndarray:
        """[N] int64, the distinct ids by number."""
        return self._ids[: self._n]

    def add(self, ids: np.ndarray) -> np.ndarray:
        """[E] int32 numbers of ids [E]; new ids get the next ones."""
        numbers = np.empty(len(ids), dtype=np.int32)
        done = 0
        while True:
            done, self._n = _add(ids, done, self._slots, self._ids, self._n, numbers)
            if done == len(ids):
                return numbers
            self._grow()

    def find(self, ids: np.ndarray) -> np.ndarray:
        """[E] int32 numbers of ids [E], -1 for those that were never added."""
        return _find(ids, self._slots, self._ids)

    def _grow(self) -> None:
        self._slots = np.full(2 * len(self._slots), _FREE, dtype=np.int32)
        self._ids = np.concatenate([self.ids, np.empty(len(self._slots) // 2 - self._n, dtype=np.int64)])
        _fill(self._slots, self._ids, self._n)


@njit(cache=True, nogil=True)
def _slot(slots: np.ndarray, known: np.ndarray, wanted: int) -> np.uint64:
    """The slot with the number of the wanted id, or the free one where it belongs."""
    mask = np.uint64(len(slots) - 1)
    higher = np.uint64(wanted)
    slot = higher & mask
    while slots[slot] != _FREE and known[slots[slot]] != wanted:
        higher >>= np.uint64(5)
        slot = (np.uint64(5) * slot + higher + np.uint64(1)) & mask
    return slot


@njit(cache=True, nogil=True)
def _add(ids: np.ndarray, done: int, slots: np.ndarray, known: np.ndarray, n: int, numbers: np.ndarray) -> tuple:
    for row in range(done, len(ids)):
        # Neighbouring rows are mostly of one session.
        if row > done and ids[row] == ids[row - 1]:
            numbers[row] = numbers[row - 1]
            continue
        slot = _slot(slots, known, ids[row])
        if slots[slot] == _FREE:
            if n == len(known):
                return row, n
            slots[slot], known[n] = n, ids[row]
            n += 1
        numbers[row] = slots[slot]
    return len(ids), n


@njit(cache=True, nogil=True)
def _find(ids: np.ndarray, slots: np.ndarray, known: np.ndarray) -> np.ndarray:
    numbers = np.empty(len(ids), dtype=np.int32)
    for row in range(len(ids)):
        numbers[row] = slots[_slot(slots, known, ids[row])]
    return numbers


@njit(cache=True, nogil=True)
def _fill(slots: np.ndarray, known: np.ndarray, n: int) -> None:
    for number in range(n):
        slots[_slot(slots, known, known[number])] = number
