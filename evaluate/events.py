"""The event table: one row for each event to predict, with what it is and where the model ranked it.

Every figure, slice and plot is derived from these rows, and a model is never asked twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numba import njit

from ..agents.config import ValidateBy
from ..envs.history import UserHistories
from ..envs.log import CLICK, PURCHASE, SessionLog
from ..errors import InputError
from .metrics import recall
from .ranks import rank_bounds

if TYPE_CHECKING:
    from .protocol import Recommender

NO_PURCHASE, FIRST_BUY, BASKET_CONTINUATION, DUPLICATE = 0, 1, 2, 3
"""Values of the `purchase_class` column."""

SLICES = tuple(base + part for base in ("purchase", "click", "first", "all") for part in ("", "/repeat", "/explore"))


def rank_events(
    model: Recommender,
    log: SessionLog,
    *,
    train: SessionLog | None = None,
    histories: UserHistories | None = None,
    max_scores: int = 2**24,
    progress: Callable[[int, int], object] | None = None,
) -> pd.DataFrame:
    """Rank every event of `log` but the first of each session, and return the event table, in the order of the log.

    session int32 (index in the log), session_id, position int32 (in the session, from 1; the first predicted event is
    2), length int32 (of the session), kind uint8, item int32;
    purchase_class uint8: 0 no purchase; 1 first buy: nothing was bought before in the session; 2 basket continuation:
    something was, but not this item; 3 duplicate: this item was already bought in the session;
    repeat bool: the item occurs earlier in the session; seen bool: the item occurs in training;
    popularity_decile int8: see `popularity_deciles`, -1 for items not seen or where `train` is not given;
    rank_low, rank_high int32: see `rank_bounds`, both N (a miss at every K) for items not seen in training;
    max_k int16: the model's attribute `max_k`, the largest K it can be scored at (0: any).

    The model scores whole sessions, at most `max_scores` floats at once, and sees with them what their users did before
    (`SessionBatch.history`): by `histories` or, where a log has users and none are given, in `train` and `log`.
    `progress` is called with the events ranked so far and their total. Raises `InputError` where scores have the wrong
    shape, NaN or +inf.
    """
    target = log.batch().target_events()
    position, purchase_class, repeat = _history_features(log.item, log.kind, log.offset, log.n_items)
    session = np.repeat(np.arange(log.n_sessions, dtype=np.int32), log.length)[target]
    item = log.item[target]
    decile = np.full(log.n_items, -1, dtype=np.int8) if train is None else popularity_deciles(train, log.n_items)
    seen = item < log.n_train_items
    if histories is None and log.user is not None:
        histories = UserHistories(*([] if train is None or train is log else [train]), log)
    low, high = _rank(model, log, np.ones(len(target), dtype=bool), histories, max_scores, progress)
    return pd.DataFrame(
        {
            "session": session,
            "session_id": log.session_id[session],
            "position": position[target],
            "length": log.length.astype(np.int32)[session],
            "kind": log.kind[target],
            "item": item,
            "purchase_class": purchase_class[target],
            "repeat": repeat[target],
            "seen": seen,
            "popularity_decile": np.where(seen, decile[item], -1).astype(np.int8),
            "rank_low": low,
            "rank_high": high,
            "max_k": np.full(len(target), max_k_of(model), dtype=np.int16),
        }
    )


def purchase_recall(
    model: Recommender,
    log: SessionLog,
    k: int = 5,
    *,
    histories: UserHistories | None = None,
    max_scores: int = 2**24,
) -> float:
    """Recall@k over the purchases of `log`, ties in expectation.

    Only sessions with a purchase to predict are scored. A log without one gives Recall@k over all its events instead,
    and a log without any event to predict gives 0.0, so that the figure can always be compared.
    """
    return validation_recall(model, log, "purchase", k, histories=histories, max_scores=max_scores)


def validation_recall(
    model: Recommender,
    log: SessionLog,
    by: ValidateBy = "purchase",
    k: int = 5,
    *,
    histories: UserHistories | None = None,
    max_scores: int = 2**24,
) -> float:
    """The figure that training selects checkpoints by: Recall@k over purchases or clicks, or the mean of the two.

    Sessions without such an event to predict are not scored. Kinds that are not there count for nothing, as
    `purchase_recall` says. `histories` are those of `rank_events`; where a log has users and none are given, its own.
    """
    if histories is None and log.user is not None:
        histories = UserHistories(log)
    kinds = {"purchase": (PURCHASE,), "click": (CLICK,), "mean": (PURCHASE, CLICK)}[by]
    target = log.batch().target_events()
    session = np.repeat(np.arange(log.n_sessions), log.length)[target]
    asked = np.isin(log.kind[target], kinds)
    if asked.any():
        log = log.select(session[asked])
        target = log.batch().target_events()
        asked = np.isin(log.kind[target], kinds)
    else:
        asked[:] = True
    if not asked.any():
        return 0.0
    hit = recall(*_rank(model, log, asked, histories, max_scores, None), k)
    kind = log.kind[target][asked]
    return float(np.mean([hit[kind == one].mean() for one in np.unique(kind)] if by == "mean" else hit.mean()))


def slice_masks(events: pd.DataFrame) -> dict[str, np.ndarray]:
    """Which events of an event table belong to each of `SLICES`, bool [E] each.

    `first` is the event after a session's first, purchase or click; `/repeat` are items that occur earlier in the
    session, `/explore` the others.
    """
    kind, repeat = events["kind"].to_numpy(), events["repeat"].to_numpy()
    bases = {
        "purchase": kind == PURCHASE,
        "click": kind == CLICK,
        "first": events["position"].to_numpy() == 2,
        "all": np.ones(len(events), dtype=bool),
    }
    masks = {}
    for name, base in bases.items():
        masks |= {name: base, f"{name}/repeat": base & repeat, f"{name}/explore": base & ~repeat}
    return masks


def popularity_deciles(train: SessionLog, n_items: int) -> np.ndarray:
    """int8 [N]: 0 for the items that make up the most popular tenth of training events, to 9 for the rarest tenth.

    Items are ordered by their number of training events (equal ones by item number); an item's decile is the share of
    events on the items before it, in tenths, rounded down. So each decile has about a tenth of the events, not of the
    items, and an item with a third of all events leaves deciles 1 and 2 empty.
    """
    if train.n_items != n_items:
        raise InputError(
            f"popularity_deciles: the training log has {train.n_items} items and the log to rank {n_items}; "
            "use splits of one prepared folder"
        )
    count = np.bincount(train.item, minlength=n_items)
    order = np.argsort(-count, kind="stable")
    before = np.cumsum(count[order]) - count[order]
    decile = np.empty(n_items, dtype=np.int8)
    decile[order] = np.minimum(10 * before // max(train.n_events, 1), 9)
    return decile


def max_k_of(model: object) -> int:
    """The largest K at which a model's ranks mean something; 0 is any, and 1 what an agent declares that only acts."""
    return int(getattr(model, "max_k", None) or 0)


def _rank(
    model: Recommender,
    log: SessionLog,
    wanted: np.ndarray,
    histories: UserHistories | None,
    max_scores: int,
    progress: Callable[[int, int], object] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank bounds of the wanted events to predict; `wanted` is bool [P] over all of them."""
    lows, highs = [np.zeros(0, dtype=np.int32)], [np.zeros(0, dtype=np.int32)]
    done = first_session = 0
    for batch in log.batches(max_rows=max(1, max_scores // log.n_items)):
        row = np.flatnonzero(wanted[done : done + batch.n_rows])
        if len(row):
            scores = model.score_sessions(batch if histories is None else histories.attach(batch))
            where = f"{type(model).__name__}.score_sessions, sessions {first_session}.."
            if tuple(scores.shape) != (batch.n_rows, log.n_items):
                raise InputError(
                    f"{where}: expected scores of shape {(batch.n_rows, log.n_items)}, found {tuple(scores.shape)}; "
                    "run check_recommender on the model"
                )
            target = batch.item[batch.target_events()[row]]
            try:
                low, high = rank_bounds(scores, row, target)
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            unseen = target >= log.n_train_items
            low[unseen] = high[unseen] = log.n_items
            lows.append(low)
            highs.append(high)
        done += batch.n_rows
        first_session += batch.n_sessions
        if progress is not None:
            progress(done, len(wanted))
    return np.concatenate(lows), np.concatenate(highs)


@njit(cache=True)
def _history_features(item, kind, offset, n_items):
    position = np.empty(len(item), np.int32)
    purchase_class = np.zeros(len(item), np.uint8)
    repeat = np.zeros(len(item), np.bool_)
    # The last session in which each item occurred or was bought: nothing to clear between sessions.
    occurred_in = np.full(n_items, -1, np.int64)
    bought_in = np.full(n_items, -1, np.int64)
    for session in range(len(offset) - 1):
        any_bought = False
        for event in range(offset[session], offset[session + 1]):
            i = item[event]
            position[event] = event - offset[session] + 1
            repeat[event] = occurred_in[i] == session
            occurred_in[i] = session
            if kind[event] == PURCHASE:
                if bought_in[i] == session:
                    purchase_class[event] = DUPLICATE
                elif any_bought:
                    purchase_class[event] = BASKET_CONTINUATION
                else:
                    purchase_class[event] = FIRST_BUY
                bought_in[i] = session
                any_bought = True
    return position, purchase_class, repeat
