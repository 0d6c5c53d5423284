"""Observations of a batch of sessions, exactly as the replay environment would have shown them."""

from __future__ import annotations

import numpy as np

from .log import SessionBatch
from .replay_options import NO_KIND


def session_windows(batch: SessionBatch, window: int, padding: int, of: np.ndarray | None = None) -> np.ndarray:
    """[P, W], for each row of `batch` the last `window` items up to its state, oldest to newest, int32.

    Shorter states are padded on the left with `padding`. `of` [E] is another column to take windows of, in its dtype.
    """
    column = batch.item if of is None else of
    state = batch.state_events()
    first = np.repeat(batch.offset[:-1], np.maximum(np.diff(batch.offset) - 1, 0))
    event = state[:, None] + np.arange(1 - window, 1)
    inside = event >= first[:, None]
    return np.where(inside, column[np.maximum(event, 0)], column.dtype.type(padding))


def session_observations(
    batch: SessionBatch, window: int, n_items: int, kinds: bool = False
) -> np.ndarray | dict[str, np.ndarray]:
    """The observations before each event to predict: [P, W] int32 items, or with `kinds` a dict of them and uint8."""
    items = session_windows(batch, window, n_items)
    return {"items": items, "kinds": session_windows(batch, window, NO_KIND, batch.kind)} if kinds else items
