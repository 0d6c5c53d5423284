"""The event table: one row for each event to predict, with what it is and where the model ranked it.

Every figure, slice and plot is derived from these rows, and a model is never asked twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numba import njit

from ..agents.config import ValidateBy
from ..envs.history import UserHistories
from ..envs.log import CLICK, PURCHASE, SessionBatch, SessionLog
from ..errors import InputError
from .metrics import mrr, recall
from .ranks import rank_bounds, top_k_items

if TYPE_CHECKING:
    from .protocol import Recommender

NO_PURCHASE, FIRST_BUY, BASKET_CONTINUATION, DUPLICATE = 0, 1, 2, 3
"""Values of the `purchase_class` column."""

SLICES = tuple(base + part for base in ("purchase", "click", "first", "all") for part in ("", "/repeat", "/explore"))

PURCHASE_CLASSES = {"first-buy": FIRST_BUY, "basket": BASKET_CONTINUATION, "duplicate": DUPLICATE}

POSITION_BANDS = {"2": (2, 2), "3": (3, 3), "4": (4, 4), "5": (5, 5), "6-10": (6, 10), "11+": (11, 2**31 - 1)}
"""First and last position of an event in its session."""

LENGTH_BANDS = {"2": (2, 2), "3-5": (3, 5), "6-10": (6, 10), "11-20": (11, 20), "21+": (21, 2**31 - 1)}
"""Fewest and most events of a session."""

EXTRA_SLICES = (
    *(f"class/{name}" for name in PURCHASE_CLASSES),
    *(f"position/{name}" for name in POSITION_BANDS),
    *(f"length/{name}" for name in LENGTH_BANDS),
    *(f"decile/{decile}" for decile in range(10)),
    "training/seen",
    "training/unseen",
)
"""The slices of `detailed_slices`, GROUP/PART; each group but ``class`` and ``decile`` divides all events."""


def rank_events(
    model: Recommender,
    log: SessionLog,
    *,
    train: SessionLog | None = None,
    histories: UserHistories | None = None,
    top_k: int = 0,
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
    max_k int16: the model's attribute `max_k`, the largest K it can be scored at (0: any);
    top_1 .. top_K int32, where `top_k` K is given: the model's list, best first (`top_k_items`), -1 behind the end of a
    list of fewer, N or `max_k`, items.

    The model scores whole sessions, at most `max_scores` floats at once (a longer session alone), and sees with them
    what their users did before (`SessionBatch.history`): by `histories` or, where a log has users and none are given,
    in `train` and `log`. Beside these scores nothing but the table itself grows with the events.
    `progress` is called with the events ranked so far and their total. Raises `InputError` where scores have the wrong
    shape, NaN or +inf, and for a negative `top_k`.
    """
    if top_k < 0:
        raise InputError(f"rank_events: expected top_k of 0 (no lists) or more, found {top_k}")
    columns = describe_events(log, train)
    max_k = max_k_of(model)
    low, high = np.empty((2, log.n_events - log.n_sessions), dtype=np.int32)
    top = np.full((top_k, len(low)), -1, dtype=np.int32)
    n_listed = min(top_k, log.n_items, max_k or top_k)

    def use(scored: ScoredBatch) -> None:
        low[scored.rows], high[scored.rows] = scored.rank(np.arange(len(scored.target)))
        if n_listed:
            top[:n_listed, scored.rows] = top_k_items(scored.scores, n_listed).T

    score_batches(model, log, use, histories or default_histories(log, train), max_scores, progress)
    lists = {f"top_{place}": items for place, items in enumerate(top, start=1)}
    return event_table(columns, low, high, max_k, lists)


def describe_events(log: SessionLog, train: SessionLog | None = None) -> dict[str, np.ndarray]:
    """The columns of `rank_events` that do not depend on the model, session .. popularity_decile, [P] each."""
    n_rows = log.n_events - log.n_sessions
    session, position, length, item = (np.empty(n_rows, dtype=np.int32) for _ in range(4))
    kind, purchase_class = (np.empty(n_rows, dtype=np.uint8) for _ in range(2))
    repeat = np.empty(n_rows, dtype=np.bool_)
    _describe(
        log.item, log.kind, log.offset, log.n_items, session, position, length, kind, item, purchase_class, repeat
    )
    decile = np.full(log.n_items, -1, dtype=np.int8) if train is None else popularity_deciles(train, log.n_items)
    decile[log.n_train_items :] = -1
    return {
        "session": session,
        "session_id": log.session_id[session],
        "position": position,
        "length": length,
        "kind": kind,
        "item": item,
        "purchase_class": purchase_class,
        "repeat": repeat,
        "seen": item < log.n_train_items,
        "popularity_decile": decile[item],
    }


def event_table(
    columns: dict[str, np.ndarray],
    low: np.ndarray,
    high: np.ndarray,
    max_k: int,
    more: dict[str, np.ndarray] | None = None,
) -> pd.DataFrame:
    """The event table of described events with their ranks."""
    ranks = {"rank_low": low, "rank_high": high, "max_k": np.full(len(low), max_k, dtype=np.int16)}
    return pd.DataFrame({**columns, **ranks, **(more or {})}, copy=False)


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
    return validation_scores(model, log, by, k, histories=histories, max_scores=max_scores)["validation"]


def validation_scores(
    model: Recommender,
    log: SessionLog,
    by: ValidateBy = "purchase",
    k: int = 5,
    *,
    histories: UserHistories | None = None,
    max_scores: int = 2**24,
) -> dict[str, float]:
    """What training records of an epoch: `validation_recall` as "validation", and Recall@k and MRR@k of each kind that
    it is made of, as "purchase_recall@5" and so on."""
    histories = histories or default_histories(log)
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
        return {"validation": 0.0}
    low, high = np.empty((2, len(target)), dtype=np.int32)

    def use(scored: ScoredBatch) -> None:
        row = np.flatnonzero(asked[scored.rows])
        low[scored.rows][row], high[scored.rows][row] = scored.rank(row)

    score_batches(model, log, use, histories, max_scores)
    hit, reciprocal, kind = recall(low[asked], high[asked], k), mrr(low[asked], high[asked], k), log.kind[target][asked]
    scores = {}
    for one, name in ((PURCHASE, "purchase"), (CLICK, "click")):
        if (kind == one).any():
            scores[f"{name}_recall@{k}"] = float(hit[kind == one].mean())
            scores[f"{name}_mrr@{k}"] = float(reciprocal[kind == one].mean())
    of_kinds = [hit[kind == one].mean() for one in np.unique(kind)]
    return scores | {"validation": float(np.mean(of_kinds) if by == "mean" else hit.mean())}


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


def detailed_slices(events: pd.DataFrame) -> dict[str, np.ndarray]:
    """Which events of an event table belong to each of `EXTRA_SLICES`, bool [E] each, purchases and clicks alike.

    ``class/...`` are purchases by their `purchase_class`; ``decile/...`` have the target's popularity, 0 the most
    popular; ``training/unseen`` are targets that no model can have learned. ``&`` one with one of `slice_masks` for the
    events of both.
    """
    purchase_class, position, length, decile, seen = (
        events[name].to_numpy() for name in ("purchase_class", "position", "length", "popularity_decile", "seen")
    )
    parts = [purchase_class == value for value in PURCHASE_CLASSES.values()]
    parts += [(first <= position) & (position <= last) for first, last in POSITION_BANDS.values()]
    parts += [(fewest <= length) & (length <= most) for fewest, most in LENGTH_BANDS.values()]
    parts += [decile == value for value in range(10)]
    return dict(zip(EXTRA_SLICES, [*parts, seen, ~seen], strict=True))


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


def default_histories(log: SessionLog, train: SessionLog | None = None) -> UserHistories | None:
    """What users did before, by the sessions of `train` and `log`; None for a log without users."""
    return None if log.user is None else UserHistories(*([] if train is None or train is log else [train]), log)


@dataclass(frozen=True, eq=False)
class ScoredBatch:
    """Some sessions of a log and what a model scores for them. P events to predict among N items."""

    rows: slice
    """Of these events among all events to predict of the log."""
    target: np.ndarray
    """[P] int32, the items to predict."""
    scores: Any
    """[P, N], NumPy or torch, on any device."""
    n_train_items: int
    where: str
    """What errors begin with."""

    def rank(self, event: np.ndarray, row: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """`rank_bounds` of the targets of some events [T], each on its own row of scores or on `row` [T].

        Both bounds are N, a miss at every K, for items not seen in training, whatever their score.
        """
        target = self.target[event]
        try:
            low, high = rank_bounds(self.scores, event if row is None else row, target)
        except InputError as error:
            raise InputError(f"{self.where}: {error}") from None
        unseen = target >= self.n_train_items
        low[unseen] = high[unseen] = self.scores.shape[1]
        return low, high


def score_batches(
    model: Recommender,
    log: SessionLog,
    use: Callable[[ScoredBatch], None],
    histories: UserHistories | None = None,
    max_scores: int = 2**24,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Let the model score every session of `log` once, and `use` what it scores.

    At most `max_scores` floats exist at once, or one session's where that has more, as long as `use` keeps none of
    them. `progress` is called with the events scored so far and their total. Raises `InputError` for scores of another
    shape.
    """
    done = first_session = 0
    for batch in log.batches(max_rows=max(1, max_scores // log.n_items)):
        if batch.n_rows:
            use(_scored(model, log, batch, slice(done, done + batch.n_rows), histories, first_session))
        done += batch.n_rows
        first_session += batch.n_sessions
        if progress is not None:
            progress(done, log.n_events - log.n_sessions)


def _scored(
    model: Recommender,
    log: SessionLog,
    batch: SessionBatch,
    rows: slice,
    histories: UserHistories | None,
    first_session: int,
) -> ScoredBatch:
    scores = model.score_sessions(batch if histories is None else histories.attach(batch))
    where = f"{type(model).__name__}.score_sessions, sessions {first_session}.."
    if tuple(scores.shape) != (batch.n_rows, log.n_items):
        raise InputError(
            f"{where}: expected scores of shape {(batch.n_rows, log.n_items)}, found {tuple(scores.shape)}; "
            "run check_recommender on the model"
        )
    return ScoredBatch(rows, batch.item[batch.target_events()], scores, log.n_train_items, where)


@njit(cache=True)
def _describe(item, kind, offset, n_items, session, position, length, kind_of, item_of, purchase_class, repeat):
    # The last session in which each item occurred or was bought: nothing to clear between sessions.
    occurred_in = np.full(n_items, -1, np.int64)
    bought_in = np.full(n_items, -1, np.int64)
    row = 0
    for s in range(len(offset) - 1):
        first, n_events, any_bought = offset[s], offset[s + 1] - offset[s], False
        for event in range(first, first + n_events):
            i, bought = item[event], kind[event] == PURCHASE
            if event > first:
                session[row], position[row], length[row] = s, event - first + 1, n_events
                kind_of[row], item_of[row], repeat[row] = kind[event], i, occurred_in[i] == s
                if not bought:
                    purchase_class[row] = NO_PURCHASE
                elif bought_in[i] == s:
                    purchase_class[row] = DUPLICATE
                else:
                    purchase_class[row] = BASKET_CONTINUATION if any_bought else FIRST_BUY
                row += 1
            occurred_in[i] = s
            if bought:
                bought_in[i], any_bought = s, True
