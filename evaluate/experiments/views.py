"""The tables and charts of each experiment, from its finished cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from ..comparison_views import (
    METRIC_LABELS,
    comparison_views,
    curves,
    difference_table,
    figure_lookup,
    figure_notes,
    metric_table,
    slice_heat_map,
    training_views,
)
from ..table import MEAN
from ..views import Column, Figure, LineChart, Row, Series, Table, View
from .claims import claims_table
from .definitions import Variant
from .published import TABLE1, TABLE2, TABLE3
from .results import Results

_METRICS = ("recall", "mrr")
_KINDS = ("purchase", "click")


def views_of(results: Results) -> list[View]:
    """All views of an experiment, the most telling first."""
    return _VIEWS[results.design.experiment.name](results)


def _table1(results: Results) -> list[View]:
    against = _labels_of(results).get(results.design.experiment.against or "")
    return comparison_views(
        results.events,
        results.long,
        results.differences(against) if against else pd.DataFrame(),
        results.training,
        ties=results.ties,
        published=TABLE1,
        paper_labels={entry.label: entry.system.label for entry in results.design.entries},
    )


def _table2(results: Results) -> list[View]:
    figures, notes = figure_lookup(results.long), figure_notes(results.long, results.ties)
    views: list[View] = []
    for kind in _KINDS:
        views += [
            _density_table(results, kind, figures, notes),
            *(_density_chart(results, kind, metric, figures) for metric in _METRICS),
        ]
    return [*views, *training_views(results.training)]


def _density_table(
    results: Results, kind: str, figures: Callable[[str, str, str, int], Figure], notes: Sequence[str]
) -> Table:
    design, k = results.design, results.ks[0]
    variants = [variant for variant in design.variants if variant.label]
    rows = []
    for model in design.models:
        label = next(entry.system.label for entry in design.entries if entry.model == model)
        cells = []
        for metric in _METRICS:
            for variant in variants:
                entry = design.find(model, variant)
                figure = Figure(None) if entry is None else figures(entry.label, kind, metric, k)
                cells.append(Figure(figure.value, figure.low, figure.high, _printed(label, kind, variant, metric, k)))
        rows.append(Row(model, tuple(cells), label))
    return Table(
        f"density-{kind}",
        f"{kind.capitalize()}s, by the share d of purchases kept in training",
        tuple(
            Column(f"{METRIC_LABELS[metric]}@{k}, {variant.label}", group=METRIC_LABELS[metric])
            for metric in _METRICS
            for variant in variants
        ),
        tuple(rows),
        notes=(
            *notes,
            "Models without a knob for d are trained on all purchases and stand under d = 1. At d = 0 an agent that "
            "learns from purchases alone has nothing to learn from, unless it imagines.",
        ),
    )


def _printed(label: str | None, kind: str, variant: Variant, metric: str, k: int) -> float | None:
    if label is None or kind != "purchase":
        return None
    return TABLE2.get((label, variant.paper, metric)) if variant.paper else TABLE1.get((label, kind, metric, k))


def _density_chart(
    results: Results, kind: str, metric: str, figures: Callable[[str, str, str, int], Figure]
) -> LineChart:
    design, k = results.design, results.ks[0]
    lines: dict[str, list[tuple[float, Figure]]] = {}
    for entry in design.entries:
        density = getattr(entry.spec.config, "density", None)
        if density is not None:
            lines.setdefault(entry.model, []).append((density, figures(entry.label, kind, metric, k)))
    return LineChart(
        f"density-{kind}-{metric}",
        f"{METRIC_LABELS[metric]}@{k} of {kind}s with fewer purchases in training",
        "share d of purchases kept",
        f"{METRIC_LABELS[metric]}@{k}",
        tuple(Series.of(model, sorted(points, key=lambda point: point[0])) for model, points in lines.items()),
    )


def _table3(results: Results) -> list[View]:
    design, k = results.design, results.ks[0]
    figures, notes = figure_lookup(results.long), figure_notes(results.long, results.ties)
    columns = [(part, metric, k) for part in ("first", "click", "purchase") for metric in _METRICS]
    published = {
        (planner, part, metric, 5): value for (planner, part, metric), value in TABLE3.items() if value is not None
    }
    rows = [(entry.label, entry.label, entry.variant.paper) for entry in design.entries]
    views: list[View] = [
        metric_table("planners", "First, clicks and purchases by planner", rows, columns, figures, notes, published)
    ]
    planned = [entry.label for entry in design.entries if entry.variant.changes]
    for base in planned[:1]:
        differences = results.differences(base, planned)
        views += [difference_table(differences, results.ties)] if len(differences) else []
    return [
        *views,
        slice_heat_map([entry.label for entry in design.entries], figures, k),
        *training_views(results.training),
    ]


def _figure3(results: Results) -> list[View]:
    views: list[View] = []
    design = results.design
    for variant in design.variants:
        labels = {entry.label: entry.model for entry in design.entries if entry.variant == variant}
        training = results.training.loc[results.training["model"].isin(list(labels))]
        for metric, heading in (("recall", "Recall"), ("mrr", "MRR")):
            scalar = f"purchase_{metric}@5"
            if scalar in training and (series := curves(training, scalar, labels)):
                name = variant.label.replace(" ", "").replace("=", "-").replace(".", "")
                views.append(
                    LineChart(
                        f"learning-{name}-{metric}",
                        f"{heading}@5 of purchases on validation over training, {variant.label}",
                        "epoch",
                        f"{heading}@5",
                        series,
                        notes=("Mean over seeds; the band is their range.",),
                    )
                )
    return [*views, *_table2(results)]


def _cold_start(results: Results) -> list[View]:
    k, long = results.ks[0], results.cold_start
    mean = long.loc[(long["seed"] == MEAN) & (long["k"] == k)]
    views: list[View] = []
    for kind in _KINDS:
        for metric in _METRICS:
            chosen = mean.loc[(mean["slice"] == kind) & (mean["metric"] == metric)]
            caps = sorted(chosen["cap"].unique())
            lines = {
                str(model): [(float(cap), _figure(row)) for cap, row in frame.set_index("cap").iterrows()]  # type: ignore[arg-type]
                for model, frame in chosen.groupby("model", sort=False)
            }
            heading = f"{METRIC_LABELS[metric]}@{k}"
            views.append(
                LineChart(
                    f"cold-start-{kind}-{metric}",
                    f"{heading} of {kind}s when only the first c events are known",
                    "events known, c",
                    heading,
                    tuple(Series.of(model, points) for model, points in lines.items()),
                )
            )
            views.append(
                Table(
                    f"cold-start-{kind}-{metric}-table",
                    f"The same in figures: {heading} of {kind}s",
                    tuple(Column(f"c = {cap}") for cap in caps),
                    tuple(
                        Row(model, tuple(figure for _, figure in points), results.entry(model).system.label)
                        for model, points in lines.items()
                    ),
                    notes=(
                        *figure_notes(results.long, results.ties),
                        "The state stops growing after c events of a session; training knows no cap.",
                    ),
                )
            )
    return [*views, *_table1(results)]


def _online(results: Results) -> list[View]:
    from .online_views import online_views

    return online_views(results)


def _ii_rnn(results: Results) -> list[View]:
    from .ii_rnn_views import ii_rnn_views

    return [*ii_rnn_views(results), *_table1(results)]


def _readings(results: Results) -> list[View]:
    figures, notes = figure_lookup(results.long), figure_notes(results.long, results.ties)
    k = results.ks[0]
    views: list[View] = [claims_table(results)]
    for kind in _KINDS:
        rows = []
        for variant in results.design.variants:
            entries = [results.design.find(model, variant) for model in results.design.models]
            cells = tuple(Figure(None) if e is None else figures(e.label, kind, "recall", k) for e in entries)
            rows.append(Row(variant.label, cells))
        columns = tuple(Column(model) for model in results.design.models)
        title = f"{kind.capitalize()} Recall@{k} under each reading"
        views.append(Table(f"readings-{kind}", title, columns, tuple(rows), heading="reading", notes=tuple(notes)))
    return [*views, *training_views(results.training)]


def _figure(row: pd.Series) -> Figure:
    value, low, high = (None if pd.isna(row.at[name]) else float(row.at[name]) for name in ("value", "low", "high"))
    return Figure(value, low, high)


def _labels_of(results: Results) -> Mapping[str, str]:
    """Labels of entries by the name of their system."""
    return {entry.system.name: entry.label for entry in results.design.entries}


_VIEWS: dict[str, Callable[[Results], list[View]]] = {
    "table1": _table1,
    "table2": _table2,
    "table3": _table3,
    "figure3": _figure3,
    "figure4-cold-start": _cold_start,
    "figure4-online": _online,
    "ii-rnn": _ii_rnn,
    "readings": _readings,
}
