"""Tables and charts of the experiments in the shop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ...envs.shop.live_config import LiveShopConfig
from ..exports import has_figures
from ..statistics import percentile_interval
from ..views import Column, Figure, HeatMap, LineChart, Row, Series, Table, View
from .correlation import RESAMPLES
from .definitions import Metric, ShopExperiment
from .results import Outcome, Truth

_WAYS = {True: ("unseen", "only items new to the session are shown"), False: ("any", "any item may be shown")}
"""By `unseen_only`: part of a view's name, and what it means. The first is how a shop would serve."""

_CHARTED = (
    Metric("all", "recall", 5),
    Metric("all/repeat", "recall", 5),
    Metric("all/explore", "recall", 5),
    Metric("purchase", "recall", 5),
    Metric("purchase/explore", "recall", 5),
)
_PAIRED = (
    Metric("all", "recall", 5),
    Metric("all", "recall", 20),
    Metric("all/explore", "recall", 5),
    Metric("click", "recall", 5),
    Metric("purchase", "recall", 5),
)
_NORMAL_95 = 1.959963984540054


class Panel(NamedTuple):
    """Outcomes over one number."""

    name: str
    title: str
    x_label: str
    points: Sequence[tuple[float, Outcome]]


def views_of(
    experiment: ShopExperiment, shops: Mapping[LiveShopConfig, Outcome], capped: Mapping[int, Outcome], ties: str
) -> list[View]:
    """All views, the most telling first: by knob, by what is told of a session, shop by shop."""
    panels = [
        Panel(
            knob.replace("_", "-"),
            f"Over {knob}",
            knob,
            [
                (setting.value, shops[setting.of(experiment.base)])
                for setting in experiment.settings()
                if setting.knob == knob
            ],
        )
        for knob, _ in experiment.knobs
    ]
    if capped:
        points = [(float(cap), outcome) for cap, outcome in capped.items()]
        panels.insert(0, Panel("new-shoppers", "When only the first c events are known", "events known, c", points))
    views: list[View] = []
    if experiment.caps:
        for panel in panels:
            views += _curves(panel, ties)
    for unseen_only in _WAYS:
        views += _correlations(list(shops.values()), unseen_only)
    views += [_correlation_chart(panel) for panel in panels]
    views += [_models(outcome, ties) for outcome in (*shops.values(), *capped.values())]
    return views


def panels_of(views: Sequence[View]) -> list[list[LineChart]]:
    """The charts over what is told and over knobs, for one picture: a row a figure, what is earned first."""
    rows: dict[str, list[LineChart]] = {}
    for view in views:
        if isinstance(view, LineChart) and view.name.startswith(("gain-", "recall-")) and has_figures(view):
            rows.setdefault(view.y_label, []).append(view)
    n_panels = max(map(len, rows.values()), default=0)
    return [row for row in rows.values() if len(row) == n_panels]


def _correlations(outcomes: Sequence[Outcome], unseen_only: bool) -> list[View]:
    way, meaning = _WAYS[unseen_only]
    correlations = [outcome.correlations[unseen_only] for outcome in outcomes]
    # Off-policy estimates that were refused everywhere are in a note, not in empty columns.
    columns = tuple(
        name for name in correlations[0] if any(one[name].kendall.value is not None for one in correlations)
    )
    notes = (
        f"Served so that {meaning}. Intervals: 95 %, {RESAMPLES:,} resamples of models, test sessions and simulated "
        "sessions; off-policy estimates are not resampled.",
        *_refusals(outcomes, unseen_only),
    )
    tables = []
    for name, title in (("kendall", "Kendall's tau-b"), ("spearman", "Spearman's rho")):
        full = f"{title} of models by replay and by true value, {way} items"
        shown = tuple(Column(column, "", 2, "neither", signed=True) for column in columns)
        rows = tuple(
            Row(outcome.label, tuple(getattr(found[column], name) for column in columns))
            for outcome, found in zip(outcomes, correlations, strict=True)
        )
        tables.append(Table(f"{name}-{way}", full, shown, rows, heading="shop", notes=notes))
    regrets = [outcome.regret(unseen_only) for outcome in outcomes]
    regret = Table(
        f"regret-{way}",
        f"Reward per session lost by choosing the model that a figure puts first, {way} items",
        tuple(Column(column, "", 3, "neither") for column in columns),
        tuple(
            Row(outcome.label, tuple(Figure(regret[column]) for column in columns))
            for outcome, regret in zip(outcomes, regrets, strict=True)
        ),
        heading="shop",
        notes=(f"Against the model of the highest true value. Served so that {meaning}.",),
    )
    return [_glance(tables[0]), _pairs(outcomes, unseen_only), *tables, regret]


def _glance(table: Table) -> HeatMap:
    """The figures of a table of correlations, without their intervals."""
    rows, columns = tuple(row.label for row in table.rows), tuple(column.label for column in table.columns)
    values = tuple(tuple(figure.value for figure in row.figures) for row in table.rows)
    title = f"{table.title}, at a glance"
    return HeatMap(
        f"{table.name}-map", title, rows, columns, values, unit="", decimals=2, signed=True, notes=table.notes
    )


def _pairs(outcomes: Sequence[Outcome], unseen_only: bool) -> Table:
    way, meaning = _WAYS[unseen_only]
    metrics = [metric for metric in _PAIRED if metric in outcomes[0].metrics]
    columns: list[Column] = []
    for metric in metrics:
        columns.append(Column("pairs apart", "", 0, "neither", metric.label))
        columns += [Column(f"ahead earns {what}", "%", 0, "neither", metric.label) for what in ("more", "less")]
    rows = []
    for outcome in outcomes:
        pairs = outcome.pairs(unseen_only)
        figures: list[Figure] = []
        for found in (pairs[metric] for metric in metrics):
            shares = [n / found.apart if found.apart else None for n in (found.earns_more, found.earns_less)]
            figures += [Figure(float(found.apart)), *map(Figure, shares)]
        rows.append(Row(outcome.label, tuple(figures)))
    n_models = len(outcomes[0].models)
    return Table(
        f"pairs-{way}",
        f"Pairs of models that replay tells apart, and which of the two earns more, {way} items",
        tuple(columns),
        tuple(rows),
        heading="shop",
        notes=(
            f"Of {n_models * (n_models - 1) // 2} pairs. Apart: the 95 % interval of the paired difference excludes 0, "
            "over test sessions for replay and over simulated ones for what is earned; of the rest of the pairs apart "
            f"in replay the truth does not say which earns more. Served so that {meaning}.",
        ),
    )


def _refusals(outcomes: Sequence[Outcome], unseen_only: bool) -> list[str]:
    estimates = np.concatenate([outcome.truth[unseen_only].estimates for outcome in outcomes])
    sizes = np.concatenate([outcome.truth[unseen_only].effective_sample_size for outcome in outcomes])
    refused, largest = int(np.isnan(estimates).sum()), np.nanmax(sizes, initial=0.0)
    return [
        f"Off-policy estimates of the same policies from the test decisions: {refused:,} of {estimates.size:,} "
        f"refused; the largest effective sample size was {largest:.1f} sessions."
    ]


def _correlation_chart(panel: Panel) -> LineChart:
    series = []
    for metric in _CHARTED:
        figures = [(x, outcome.correlations[True][metric.label].kendall) for x, outcome in panel.points]
        series.append(Series.of(metric.label, figures))
    return LineChart(
        f"correlation-{panel.name}",
        f"{panel.title}: does replay rank models as the truth does?",
        panel.x_label,
        "Kendall's tau-b with the true value",
        tuple(series),
        unit="",
        notes=("Only items new to the session are shown.",),
    )


def _curves(panel: Panel, ties: str) -> list[View]:
    """What each model earns, and what replay says of it, over the panel's number."""
    first = panel.points[0][1]
    gains = [(x, [_gain(outcome.truth[True], p) for p in range(len(first.models))]) for x, outcome in panel.points]
    views: list[View] = [
        LineChart(
            f"gain-{panel.name}",
            f"{panel.title}: what recommendations earn",
            panel.x_label,
            "reward per session above chance",
            tuple(Series.of(model, [(x, row[p]) for x, row in gains]) for p, model in enumerate(first.models)),
            unit="",
            notes=("Only items new to the session are shown; chance recommends any item to the same shoppers.",),
        )
    ]
    for place, metric in enumerate(first.metrics):
        if metric not in (Metric("all", "recall", 5), Metric("all/explore", "recall", 5), Metric("new", "recall", 5)):
            continue
        figures = [(x, [_replayed(outcome, p, place) for p in range(len(first.models))]) for x, outcome in panel.points]
        views.append(
            LineChart(
                f"recall-{metric.slice.replace('/', '-')}-{panel.name}",
                f"{panel.title}: what replay says",
                panel.x_label,
                metric.label,
                tuple(Series.of(model, [(x, row[p]) for x, row in figures]) for p, model in enumerate(first.models)),
                notes=(f"Ties: {ties}.",),
            )
        )
    return views


def _models(outcome: Outcome, ties: str) -> Table:
    """Every model with its replay metrics and its true values, the one that earns most first."""
    columns = [Column(metric.label, group="Replay") for metric in outcome.metrics]
    for unseen_only in outcome.truth:
        way = _WAYS[unseen_only][0]
        group = f"True value, {way} items"
        columns += [Column(f"reward, {way}", "", 3, group=group), Column(f"above chance, {way}", "", 3, group=group)]
    best = outcome.truth[True].value
    rows = []
    for place in np.argsort(-best, kind="stable"):
        figures = [_replayed(outcome, place, metric) for metric in range(len(outcome.metrics))]
        for truth in outcome.truth.values():
            figures += [_figure(float(truth.value[place]), float(truth.error[place])), _gain(truth, place)]
        rows.append(Row(outcome.models[place], tuple(figures)))
    slug = outcome.label.replace(" = ", "-").replace(" ", "-").replace("_", "-").replace(".", "-")
    return Table(
        f"models-{slug}",
        f"Replay and truth, {outcome.label}",
        tuple(columns),
        tuple(rows),
        notes=(
            f"Mean over training seeds; ties: {ties}. Intervals: 95 %, over test sessions and over simulated ones. "
            f"Standard error of a true value: at most {max(truth.error.max() for truth in outcome.truth.values()):.3f} "
            "reward per session; between models of one shop it is smaller, as they meet the same shoppers.",
        ),
    )


def _replayed(outcome: Outcome, model: int, metric: int) -> Figure:
    value = float(outcome.replay[model, metric])
    if np.isnan(value):
        return Figure(None)
    low, high = percentile_interval(outcome.replay_draws[:, model, [metric]])
    return Figure(value, float(low[0]), float(high[0]))


def _gain(truth: Truth, model: int) -> Figure:
    return _figure(float(truth.gain[model]), float(truth.gain_error[model]))


def _figure(value: float, error: float) -> Figure:
    return Figure(value, value - _NORMAL_95 * error, value + _NORMAL_95 * error)
