"""Observations of a batch of sessions, exactly as the replay environment would have shown them."""

from __future__ import annotations

import numpy as np

from .log import SessionBatch


def session_windows(batch: SessionBatch, window: int, padding: int) -> np.ndarray:
    """[P, W] int32: for each row of `batch` the last `window` items up to its state, oldest to newest.

    Shorter states are padded on the left with `padding` (N).
    """
    state = batch.state_events()
    first = np.repeat(batch.offset[:-1], np.maximum(np.diff(batch.offset) - 1, 0))
    column = state[:, None] + np.arange(1 - window, 1)
    inside = column >= first[:, None]
    return np.where(inside, batch.item[np.maximum(column, 0)], np.int32(padding)).astype(np.int32, copy=False)
