"""Cold start: how well is an event ranked by what a model knew after the session's first c events?

The IRN paper's experiment (section 5.5, figure 4a and b), for every model and without its help: rows of scores are
causal, so the state that stops growing after c events is row c, and event j + 1 is ranked on row min(j, c).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..envs.history import UserHistories
from ..envs.log import SessionLog
from ..errors import InputError
from .events import ScoredBatch, default_histories, describe_events, event_table, max_k_of, score_batches

if TYPE_CHECKING:
    from .protocol import Recommender


def cold_start_ranks(
    model: Recommender,
    log: SessionLog,
    caps: Sequence[int],
    *,
    train: SessionLog | None = None,
    histories: UserHistories | None = None,
    max_scores: int = 2**24,
    progress: Callable[[int, int], object] | None = None,
) -> pd.DataFrame:
    """The event table of `rank_events` once for each cap, one below the other, with the cap in a column `cap` int32.

    `caps` are the events after which a session's state stops growing, in rising order; a last cap of 0 stands for none
    and gives the ranks of `rank_events`, as every cap does for the events that come before it. The model scores every
    session once, whatever the number of caps. The other columns describe the event as it is in its whole session.

    Arguments and errors are those of `rank_events`; raises `InputError` also for caps that are none, negative, or not
    in rising order.
    """
    # Only the last may be 0, which stands for no cap.
    limits = [*caps[:-1], *(cap or np.iinfo(np.int32).max for cap in caps[-1:])]
    if not limits or limits[0] < 1 or sorted(set(limits)) != limits:
        raise InputError(
            f"cold start: expected caps of 1 or more in rising order, 0 (no cap) last, found {list(caps)}; "
            "give for example 1, 2, 3, 0"
        )
    columns = describe_events(log, train)
    low, high = np.empty((2, len(caps), len(columns["position"])), dtype=np.int32)

    def use(scored: ScoredBatch) -> None:
        n_known = columns["position"][scored.rows] - 1
        fresh = np.arange(len(n_known))
        for i, limit in enumerate(limits):
            if i:
                # Events before the last cap were ranked on their own row already.
                fresh = np.flatnonzero(n_known > limits[i - 1])
                low[i, scored.rows], high[i, scored.rows] = low[i - 1, scored.rows], high[i - 1, scored.rows]
            row = fresh - np.maximum(n_known[fresh] - limit, 0)
            low[i, scored.rows][fresh], high[i, scored.rows][fresh] = scored.rank(fresh, row)

    score_batches(model, log, use, histories or default_histories(log, train), max_scores, progress)
    cap = np.repeat(np.asarray(caps, dtype=np.int32), low.shape[1])
    # Each column is let go once it is repeated, so that no more than the table is held.
    tiled = {name: np.tile(columns.pop(name), len(caps)) for name in list(columns)}
    return event_table({"cap": cap, **tiled}, low.ravel(), high.ravel(), max_k_of(model))
