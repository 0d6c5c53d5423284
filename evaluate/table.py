"""Tables of a comparison: the long form that everything is derived from, and the ones that people read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..errors import InputError
from .events import SLICES, slice_masks
from .metrics import METRICS, metric_at
from .statistics import bootstrap_sums, percentile_interval, ratio, session_sums

if TYPE_CHECKING:
    from rich.console import Console, Group

COLUMNS = ("model", "slice", "metric", "k", "seed", "value", "low", "high", "events")

MEAN = "mean"
"""What the column `seed` says of the mean over seeds."""

HEADLINE_K = 5
"""The K of the figures that stand for a model: repeat, explore, lift, and the interval shown."""

_IDENTITY = ["session", "position", "item", "kind"]


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


@dataclass(frozen=True)
class _Column:
    """One column of a table for reading, a cell for each model."""

    label: str
    cells: list[str]
    best: list[bool]


def console_table(
    long: pd.DataFrame, *, notes: Sequence[str] = (), ties: str = "expected", baseline: str = "most-recent"
) -> Group:
    """The mean over seeds as stacked tables for a terminal, each within 80 columns: Purchase, its parts, Click, First.

    Rows are the models in their order in `long`, the best figure of a column is marked, and below stand `notes`
    (caveats of the data), the tie rule, the number of seeds and what the columns mean.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    models, sections = _sections(long, baseline)
    tables = []
    for title, columns in sections:
        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("model", overflow="fold", max_width=24)
        for column in columns:
            table.add_column(column.label.replace("@", "\n@"), justify="right", no_wrap=True)
        for i, model in enumerate(models):
            marked = [Text(f"{c.cells[i]}*", "bold") if c.best[i] else Text(f"{c.cells[i]} ") for c in columns]
            table.add_row(Text(model), *marked)
        tables.append(table)
    return Group(*tables, *map(Text, _footer(long, notes, ties, baseline)))


def print_table(
    long: pd.DataFrame,
    *,
    notes: Sequence[str] = (),
    ties: str = "expected",
    baseline: str = "most-recent",
    console: Console | None = None,
) -> None:
    """Print `console_table` on `console` (default: standard output)."""
    from rich.console import Console

    (console or Console()).print(console_table(long, notes=notes, ties=ties, baseline=baseline))


def markdown_table(
    long: pd.DataFrame, *, notes: Sequence[str] = (), ties: str = "expected", baseline: str = "most-recent"
) -> str:
    """The same tables and notes as `console_table` in Markdown, the best figure of a column in bold."""
    models, sections = _sections(long, baseline)
    blocks = []
    for title, columns in sections:
        lines = [f"**{title}**", "", "| model | " + " | ".join(c.label for c in columns) + " |"]
        lines.append("|---|" + "---:|" * len(columns))
        for i, model in enumerate(models):
            cells = [f"**{c.cells[i]}**" if c.best[i] else c.cells[i] for c in columns]
            lines.append(f"| {model} | " + " | ".join(cells) + " |")
        blocks.append("\n".join(lines))
    footer = [
        line.replace("* best of its column", "bold: best of its column")
        for line in _footer(long, notes, ties, baseline)
    ]
    return "\n\n".join([*blocks, "  \n".join(footer)]) + "\n"


def _sections(long: pd.DataFrame, baseline: str) -> tuple[list[str], list[tuple[str, list[_Column]]]]:
    models, ks, at = list(dict.fromkeys(long["model"])), sorted(set(long["k"])), headline_k(long)
    mean = long[long["seed"] == MEAN]
    groups = {key: group.set_index("model") for key, group in mean.groupby(["slice", "metric", "k"])}

    def column(label: str, slice_name: str, metric: str, k: int, interval: bool = False) -> _Column:
        value, low, high = groups[slice_name, metric, k].loc[models, ["value", "low", "high"]].to_numpy(dtype=float).T
        return _column(label, value, (high - low) / 2 if interval else None)

    sections = []
    for slice_name in ("purchase", "click", "first"):
        n_events = groups[slice_name, "recall", at]["events"].max()
        columns = [
            column(f"{label}@{k}", slice_name, metric, k, interval=(metric, k) == ("recall", at))
            for metric, label in (("recall", "Recall"), ("mrr", "MRR"))
            for k in ks
        ]
        sections.append((f"{slice_name.capitalize()}, {n_events:,} events", columns))

    parts, n_events = [], []
    for part in ("repeat", "explore"):
        parts.append(column(part.capitalize(), f"purchase/{part}", "recall", at, interval=True))
        n_events.append(groups[f"purchase/{part}", "recall", at]["events"].max())
    if baseline in models:
        value = groups["purchase", "recall", at].loc[models, "value"].to_numpy(dtype=float)
        base = float(value[models.index(baseline)])
        parts.append(_column("Lift", value / base - 1 if base > 0 else np.full(len(models), np.nan), sign="+"))
    title = f"Purchase Recall@{at}, {n_events[0]:,} repeat and {n_events[1]:,} explore events"
    sections.insert(1, (title, parts))
    return models, sections


def _column(label: str, values: np.ndarray, half_width: np.ndarray | None = None, sign: str = "") -> _Column:
    cells = ["" if np.isnan(value) else f"{100 * value:{sign}.{1 if sign else 2}f}" for value in values]
    # Judged as shown: of two figures that look the same neither is the better one.
    best = max((float(cell) for cell in cells if cell), default=None)
    marks = [bool(cell) and float(cell) == best for cell in cells]
    if half_width is not None:
        cells = [f"{cell} ±{100 * half:.2f}" if cell else "" for cell, half in zip(cells, half_width, strict=True)]
    return _Column(label, cells, marks)


def headline_k(long: pd.DataFrame) -> int:
    """The K of the figures that stand alone."""
    ks = sorted(set(long["k"]))
    return HEADLINE_K if HEADLINE_K in ks else ks[len(ks) // 2]


def _footer(long: pd.DataFrame, notes: Sequence[str], ties: str, baseline: str) -> list[str]:
    seeds = {int(n) for n in long[long["seed"] != MEAN].groupby("model")["seed"].nunique()}
    n_seeds = " to ".join(map(str, sorted({min(seeds), max(seeds)})))
    lines = [
        f"In %, mean over {n_seeds} seed{'' if n_seeds == '1' else 's'}; * best of its column; ties: {ties}; "
        "± half the 95 % interval over sessions.",
        "First: a session's second event. Repeat: the item occurred earlier in the session; Explore: it did not.",
    ]
    if baseline in set(long["model"]):
        lines.append(f"Lift: purchase Recall@{headline_k(long)} relative to {baseline}.")
    return [*lines, *(f"Note: {note}" for note in dict.fromkeys(notes))]
