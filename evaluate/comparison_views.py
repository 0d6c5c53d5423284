"""Tables and charts of a comparison as views: figures by slice, differences, slices at a glance, how training went."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd

from .differences import DIFFERENCE_SLICES, FEWEST_SESSIONS
from .exports import table_console
from .seeds import rank_stability, rank_view, seed_table, seed_view
from .table import MEAN, headline_k
from .training import SECTIONS, kept_figures
from .views import Column, Figure, HeatMap, LineChart, Row, Series, Table, View

if TYPE_CHECKING:
    from rich.console import Console

METRIC_LABELS = {"recall": "Recall", "mrr": "MRR", "ndcg": "NDCG"}

Published = Mapping[tuple[str, str, str, int], float | None]
"""Printed figures by what the paper calls the model, slice, metric and K."""

_HEAT_SLICES = {
    "purchase": "Purchase",
    "purchase/repeat": "Purchase, repeat",
    "purchase/explore": "Purchase, explore",
    "click": "Click",
    "click/repeat": "Click, repeat",
    "click/explore": "Click, explore",
    "first": "First",
    "all": "All",
}

_CURVES = {
    "validation": ("Score that epochs are kept by", "Recall@5", "%"),
    "purchase_recall@5": ("Purchases on validation", "Recall@5", "%"),
    "click_recall@5": ("Clicks on validation", "Recall@5", "%"),
    "copy_any": ("Copying: an item of the session in the top 5", "share of states", "%"),
    "imagined_true": ("Imagined items that come true in the session", "share", "%"),
    "entropy": ("Entropy of the policy", "nats", ""),
    "advantage_negative_share": ("Negative advantages at policy updates", "share", "%"),
    "value_bias": ("Bias of V on validation", "reward", ""),
}
"""Scalars drawn over epochs: title, label of y, unit."""


def comparison_views(
    events: Mapping[str, Mapping[int, pd.DataFrame]],
    long: pd.DataFrame,
    differences: pd.DataFrame,
    training: pd.DataFrame,
    *,
    ties: str,
    published: Published | None = None,
    paper_labels: Mapping[str, str | None] | None = None,
    baseline: str = "most-recent",
) -> list[View]:
    """The views of a comparison from its event tables and three frames, of which the last two may be empty.

    `paper_labels` says what the paper calls a model, and `published` what it printed there.
    """
    at = headline_k(long["k"])
    views: list[View] = [
        *slice_tables(long, ties=ties, baseline=baseline, published=published, paper_labels=paper_labels)
    ]
    if len(differences):
        views.append(difference_table(differences, ties))
    views += seed_views(events, long, at, ties)
    views.append(slice_heat_map(list(dict.fromkeys(long["model"])), figure_lookup(long), at))
    if len(training):
        views += training_views(training)
    return views


def slice_tables(
    long: pd.DataFrame,
    *,
    ties: str = "expected",
    baseline: str = "most-recent",
    published: Published | None = None,
    paper_labels: Mapping[str, str | None] | None = None,
) -> list[Table]:
    """The mean over seeds of a `long_table`: purchases, their repeat and explore parts, clicks, and first events.

    Rows are the models in their order in `long`; the parts have the lift over `baseline` where it is one of them.
    """
    ks, at, notes = sorted(set(long["k"])), headline_k(long["k"]), figure_notes(long, ties)
    figures = figure_lookup(long)
    rows = [(model, model, (paper_labels or {}).get(model)) for model in dict.fromkeys(long["model"])]

    def table(name: str, *explanation: str) -> Table:
        columns = [(name, metric, k) for metric in ("recall", "mrr") for k in ks]
        title = f"{name.capitalize()}, {_n_events(long, name, at):,} events"
        return metric_table(name, title, rows, columns, figures, [*notes, *explanation], published)

    return [
        table("purchase"),
        _parts(rows, figures, at, long, baseline, notes),
        table("click"),
        table("first", "First: a session's second event, whatever it is."),
    ]


def print_table(
    long: pd.DataFrame,
    *,
    notes: Sequence[str] = (),
    ties: str = "expected",
    baseline: str = "most-recent",
    console: Console | None = None,
) -> None:
    """Print `slice_tables` and `notes` (caveats of the data) on `console` (default: standard output)."""
    from rich.console import Console

    tables = slice_tables(long, ties=ties, baseline=baseline)
    (console or Console()).print(table_console(*tables, notes=notes))


def figure_lookup(long: pd.DataFrame) -> Callable[[str, str, str, int], Figure]:
    """From model, slice, metric and K to the figure of the mean over seeds, with its interval."""
    mean = long.loc[long["seed"] == MEAN]
    table = {
        key: tuple(None if np.isnan(number) else float(number) for number in numbers)
        for *key, numbers in zip(
            mean["model"],
            mean["slice"],
            mean["metric"],
            mean["k"],
            mean[["value", "low", "high"]].to_numpy(dtype=float),
            strict=True,
        )
        for key in [tuple(key)]
    }

    def figure(model: str, slice_name: str, metric: str, k: int) -> Figure:
        value, low, high = table[model, slice_name, metric, k]
        return Figure(value, low, high)

    return figure


def figure_notes(long: pd.DataFrame, ties: str) -> list[str]:
    """What the figures are."""
    seeds = sorted({int(n) for n in long[long["seed"] != MEAN].groupby("model")["seed"].nunique()})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    plural = "" if count == "1" else "s"
    return [f"Mean over {count} seed{plural}, intervals over sessions; ties: {ties}."]


def metric_table(
    name: str,
    title: str,
    rows: Iterable[tuple[str, str, str | None]],
    columns: Sequence[tuple[str, str, int]],
    figures: Callable[[str, str, str, int], Figure],
    notes: Sequence[str] = (),
    published: Published | None = None,
) -> Table:
    """Metrics of models: rows of (label, model, what the paper calls it), columns of (slice, metric, K).

    In text only Recall at the headline K has its interval, so that six metrics fit into the width of a terminal.
    """
    headline = "recall", headline_k(k for _, _, k in columns)

    def cell(model: str, paper_label: str | None, column: tuple[str, str, int]) -> Figure:
        figure = figures(model, *column)
        printed = (published or {}).get((paper_label or "", *column))
        return Figure(figure.value, figure.low, figure.high, printed)

    slices = {column[0] for column in columns}
    return Table(
        name,
        title,
        tuple(
            Column(
                f"{METRIC_LABELS[metric]}@{k}",
                group=slice_name.capitalize() if len(slices) > 1 else "",
                interval=(metric, k) == headline,
            )
            for slice_name, metric, k in columns
        ),
        tuple(
            Row(label, tuple(cell(model, paper_label, column) for column in columns), paper_label)
            for label, model, paper_label in rows
        ),
        notes=tuple(notes),
    )


def difference_table(differences: pd.DataFrame, ties: str) -> Table:
    """`paired_differences` as a table in percentage points."""
    against, k = differences["against"].iloc[0], differences["k"].iloc[0]
    figures = {
        (model, part): Figure(
            *(None if np.isnan(number) else number / 100 for number in numbers), differs=bool(differs)
        )
        for model, part, differs, *numbers in differences[
            ["model", "slice", "differs", "points", "low", "high"]
        ].itertuples(index=False, name=None)
    }
    models = list(dict.fromkeys(differences["model"]))
    whom = f"all {len(models)} models of the column at once" if len(models) > 1 else "the model"
    return Table(
        "differences",
        f"Recall@{k} minus that of {against}",
        tuple(Column(label, better="neither", signed=True) for label in DIFFERENCE_SLICES.values()),
        tuple(Row(model, tuple(figures[model, part] for part in DIFFERENCE_SLICES)) for model in models),
        notes=(
            f"In percentage points, mean over seeds, paired; intervals over sessions of each difference alone; ties: "
            f"{ties}. They hold for the seeds at hand.",
            f"Marked ones hold for {whom} (sup-t band, Montiel Olea and Plagborg-Møller, 2019), and at least "
            f"{FEWEST_SESSIONS} sessions differ. Columns are not corrected for one another.",
        ),
    )


def seed_views(events: Mapping[str, Mapping[int, pd.DataFrame]], long: pd.DataFrame, k: int, ties: str) -> list[View]:
    """Figures with intervals that cover the choice of seeds, and how sure the order of the models is."""
    views: list[View] = []
    kinds = [kind for kind in ("purchase", "click") if _n_events(long, kind, k)]
    if kinds and max(map(len, events.values())) > 1:
        views.append(seed_view(seed_table(events, k, slices=kinds, ties=ties)))
    if kinds and len(events) > 1:
        views.append(rank_view(rank_stability(events, kinds[0], k=k, ties=ties)))
    return views


def slice_heat_map(models: Sequence[str], figures: Callable[[str, str, str, int], Figure], k: int) -> HeatMap:
    """Recall at `k` of every model in every slice."""
    return HeatMap(
        "slices",
        f"Recall@{k} by slice",
        tuple(models),
        tuple(_HEAT_SLICES.values()),
        tuple(tuple(figures(model, part, "recall", k).value for part in _HEAT_SLICES) for model in models),
        notes=("Repeat: the item occurred earlier in the session; explore: it did not.",),
    )


def training_views(training: pd.DataFrame) -> list[View]:
    """Curves over epochs, mean over the seeds that got so far, and the probes at the epochs that were kept."""
    views: list[View] = []
    for scalar, (title, y_label, unit) in _CURVES.items():
        if scalar in training:
            series = curves(training, scalar)
            if series:
                name = "curve-" + "".join(c if c.isalnum() else "-" for c in scalar)
                views.append(LineChart(name, title, "epoch", y_label, series, unit))  # type: ignore[arg-type]
    for section in SECTIONS:
        figures = kept_figures(training, section)
        if len(figures):
            views.append(
                Table(
                    f"training-{section.name}",
                    f"Training: {section.title}",
                    tuple(
                        Column(c.heading, c.unit, c.decimals, "neither") for c in section.columns if c.scalar in figures
                    ),
                    tuple(
                        Row(str(model), tuple(Figure(None if np.isnan(value) else float(value)) for value in values))
                        for model, *values in figures.itertuples(name=None)
                    ),
                    notes=(section.explanation,),
                )
            )
    return views


def curves(training: pd.DataFrame, scalar: str, labels: Mapping[str, str] | None = None) -> tuple[Series, ...]:
    """A line for each model over its epochs, from 1 on: the mean over the seeds, and their range."""
    series = []
    for model, frame in training.dropna(subset=[scalar]).groupby("model", sort=False):
        by_epoch = frame.groupby("epoch")[scalar]
        mean, low, high = (cast(pd.Series, values) for values in (by_epoch.mean(), by_epoch.min(), by_epoch.max()))
        several = len(set(frame["seed"])) > 1
        series.append(
            Series(
                (labels or {}).get(str(model), str(model)),
                tuple(float(epoch) + 1 for epoch in mean.index),
                tuple(map(float, mean)),
                tuple(map(float, low)) if several else (),
                tuple(map(float, high)) if several else (),
            )
        )
    return tuple(series)


def _parts(
    rows: Sequence[tuple[str, str, str | None]],
    figures: Callable[[str, str, str, int], Figure],
    k: int,
    long: pd.DataFrame,
    baseline: str,
    notes: Sequence[str],
) -> Table:
    """Purchases by repeat and explore, and the lift over the shortcut that every table carries."""
    has_lift = baseline in {model for _, model, _ in rows}
    base = figures(baseline, "purchase", "recall", k).value if has_lift else None

    def cells(model: str) -> tuple[Figure, ...]:
        parts = [figures(model, f"purchase/{part}", "recall", k) for part in ("repeat", "explore")]
        value = figures(model, "purchase", "recall", k).value
        lift = Figure(value / base - 1 if value is not None and base else None)
        return (*parts, lift) if has_lift else tuple(parts)

    n_repeat, n_explore = (_n_events(long, f"purchase/{part}", k) for part in ("repeat", "explore"))
    return Table(
        "purchase-parts",
        f"Purchase Recall@{k}, {n_repeat:,} repeat and {n_explore:,} explore events",
        (Column("Repeat"), Column("Explore"), *([Column("Lift", decimals=1, signed=True)] if has_lift else [])),
        tuple(Row(label, cells(model), paper_label) for label, model, paper_label in rows),
        notes=(
            *notes,
            "Repeat: the item occurred earlier in the session; explore: it did not.",
            *([f"Lift: purchase Recall@{k} relative to {baseline}."] if has_lift else []),
        ),
    )


def _n_events(long: pd.DataFrame, slice_name: str, k: int) -> int:
    chosen = long.loc[
        (long["seed"] == MEAN) & (long["slice"] == slice_name) & (long["metric"] == "recall") & (long["k"] == k)
    ]
    return int(chosen["events"].to_numpy().max())
