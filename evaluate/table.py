"""The long table of a comparison, from which everything that people read is derived."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from ..errors import InputError
from .events import SLICES, slice_masks
from .metrics import METRICS, metric_at
from .statistics import bootstrap_sums, percentile_interval, ratio, session_sums

COLUMNS = ("model", "slice", "metric", "k", "seed", "value", "low", "high", "events")

MEAN = "mean"
"""What the column `seed` says of the mean over seeds."""

HEADLINE_K = 5
"""The K of the figures that stand for a model: repeat, explore, lift, and the interval shown."""

_IDENTITY = ["session", "position", "item", "kind"]


def headline_k(ks: Iterable[int]) -> int:
    """The K of the figures that stand alone, of those at hand."""
    at_hand = sorted(set(ks))
    return HEADLINE_K if HEADLINE_K in at_hand else at_hand[len(at_hand) // 2]


def long_table(
    events: Mapping[str, Mapping[int, pd.DataFrame]],
    ks: Sequence[int] = (3, 5, 10),
    ties: str = "expected",
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Every figure of a comparison, one row each: `COLUMNS`, for model, slice, metric, k and training seed.

    `events` holds the event table of each model and training seed (`rank_events`). One row per seed, `low..high` its
    own 95 % session-clustered bootstrap interval, and one with ``seed="mean"``: the mean over the seeds and the
    bootstrap interval of that mean, in which sessions are drawn anew and the seeds are those at hand. All models are
    resampled by the same draws, from `seed`. An empty slice has 0 events and a NaN value, and so has a metric at a K
    beyond the model's `max_k`. The column `seed` is text, so that a table reads back from CSV as it was.

    Raises `InputError` where the event tables are not of the same events.
    """
    reference = same_events(events)
    session, labels = pd.factorize(reference["session"])
    masks = slice_masks(reference)
    counts = session_sums(np.stack([masks[name] for name in SLICES], axis=1), session, len(labels))
    drawn_counts = bootstrap_sums(counts, resamples=resamples, seed=seed)
    n_events, drawn_events = (np.repeat(c, len(METRICS) * len(ks), axis=-1) for c in (counts.sum(axis=0), drawn_counts))
    parts = []
    for model, by_seed in events.items():
        totals, draws = [], []
        for frame in by_seed.values():
            values = np.stack([event_values(frame, metric, k, ties) for metric in METRICS for k in ks], axis=1)
            in_slices = [session_sums(values[masks[name]], session[masks[name]], len(labels)) for name in SLICES]
            per_session = np.concatenate(in_slices, axis=1)
            totals.append(per_session.sum(axis=0))
            draws.append(bootstrap_sums(per_session, resamples=resamples, seed=seed))
        # Sums are linear, so the bootstrap of the events' mean over seeds is the mean of the seeds' bootstraps.
        totals.append(np.mean(totals, axis=0))
        draws.append(np.mean(draws, axis=0))
        intervals = [
            (ratio(total, n_events), *percentile_interval(ratio(drawn, drawn_events)))
            for total, drawn in zip(totals, draws, strict=True)
        ]
        keys = [[model], SLICES, METRICS, ks, [*map(str, by_seed), MEAN]]
        part = pd.MultiIndex.from_product(keys, names=COLUMNS[:5]).to_frame(index=False)
        # [3, slices x metrics x ks, seeds], the last two in the order of the keys.
        part[["value", "low", "high"]] = np.stack(intervals, axis=2).reshape(3, -1).T
        part["events"] = np.repeat(n_events, len(by_seed) + 1).astype(np.int64)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def event_values(events: pd.DataFrame, metric: str, k: int, ties: str = "expected") -> np.ndarray:
    """`metric`@k of each event of one model's table, [E] in 0..1; NaN where k is beyond what it can be scored at."""
    low, high, max_k = (events[name].to_numpy() for name in ("rank_low", "rank_high", "max_k"))
    return np.where((max_k > 0) & (k > max_k), np.nan, metric_at(metric, low, high, k, ties))


def same_events(events: Mapping[str, Mapping[int, pd.DataFrame]]) -> pd.DataFrame:
    """One of the event tables by model and seed. Raises `InputError` where they are of different events, or none."""
    tables = [(model, seed, frame) for model, by_seed in events.items() for seed, frame in by_seed.items()]
    if not tables or not all(events.values()):
        raise InputError("expected the event table of at least one seed of each model; rank the models first")
    first_model, first_seed, reference = tables[0]
    for model, seed, frame in tables[1:]:
        for column in _IDENTITY:
            if not np.array_equal(frame[column].to_numpy(), reference[column].to_numpy()):
                raise InputError(
                    f"{model} (seed {seed}) and {first_model} (seed {first_seed}) were ranked on different "
                    f"events (column {column!r}); rank all models on one log"
                )
    return reference


def write_table(long: pd.DataFrame, file: str | os.PathLike[str]) -> None:
    """Write a long table as CSV, NaN as an empty field, floats so that they read back bit for bit."""
    long.to_csv(file, index=False)


def read_table(file: str | os.PathLike[str]) -> pd.DataFrame:
    """Read what `write_table` wrote. Raises `InputError` for a file that is not such a table."""
    try:
        long = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as CSV ({error}); run the comparison again") from None
    if tuple(long.columns) != COLUMNS:
        raise InputError(f"{file}:1: expected columns {', '.join(COLUMNS)}, found {', '.join(long.columns)}")
    for name in ("k", "value", "low", "high", "events"):
        long[name] = _numbers(long[name], int if name in ("k", "events") else float, f"{file}", name)
    return long


def _numbers(cells: Iterable[str], dtype: type, file: str, name: str) -> np.ndarray:
    numbers = []
    # Python's own parsing returns the very float that was written; that of read_csv may be off in the last bit.
    for line, cell in enumerate(cells, start=2):
        try:
            numbers.append(dtype(cell) if cell or dtype is int else np.nan)
        except ValueError:
            raise InputError(
                f"{file}:{line}: expected a number in column {name!r}, found {cell!r}; run the comparison again"
            ) from None
    return np.array(numbers, dtype=np.int64 if dtype is int else np.float64)
