"""The II-RNN paper's tables and figure, from the cells of the experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..comparison_views import METRIC_LABELS
from ..inter_session import first_n_rows, ii_rnn_table
from ..views import Column, Figure, LineChart, Row, Series, Table, View

if TYPE_CHECKING:
    from .results import Results


def ii_rnn_views(results: Results) -> list[View]:
    """The table of all models, and Recall over the first n recommendations, in themselves and relative to the RNN."""
    users = results.data.test.user
    assert users is not None
    events = {
        label: {seed: frame.assign(user=users[frame["session"].to_numpy()]) for seed, frame in by_seed.items()}
        for label, by_seed in results.events.items()
    }
    names = {entry.system.name: entry.label for entry in results.design.entries}
    against = names.get(results.design.experiment.against or "", next(iter(events)))
    table = ii_rnn_table(events, against, results.ks, results.ties)
    first = first_n_rows(events, 5, against=against, ties=results.ties)
    return [*_tables(table, results, against), *_charts(first, against)]


def _tables(table: pd.DataFrame, results: Results, against: str) -> list[View]:
    keys = list(dict.fromkeys(zip(table["metric"], table["k"], strict=True)))
    by_model = {str(model): frame.set_index(["metric", "k"]) for model, frame in table.groupby("model", sort=False)}
    drawn, n_drawn, n_events = table[["drawn", "n_drawn", "events"]].iloc[0]
    views: list[View] = []
    for name, title, prefix, scale, extra in (
        ("ii-rnn", "All events", ("value", "low", "high"), 1.0, "In %"),
        ("ii-rnn-points", f"All events, minus {against}", ("points", "points_low", "points_high"), 0.01, "In points"),
    ):
        rows = []
        for model, frame in by_model.items():
            if scale != 1.0 and model == against:
                continue
            figures = [
                Figure(
                    *(_number(frame.at[key, column], scale) for column in prefix),
                    differs=bool(frame.at[key, "differs"]) and scale != 1.0,
                )
                for key in keys
            ]
            rows.append(Row(model, tuple(figures), results.entry(model).system.label))
        # Of differences none is the best one.
        kind: dict[str, Any] = {} if scale == 1.0 else {"better": "neither", "signed": True}
        columns = tuple(
            Column(f"{METRIC_LABELS[metric]}@{k}", group=METRIC_LABELS[metric], **kind) for metric, k in keys
        )
        notes = (
            f"{extra}, mean over seeds, {n_events:,} events of {n_drawn:,} {drawn}s, intervals over {drawn}s; ties: "
            f"{results.ties}.",
        )
        views.append(Table(name, title, columns, tuple(rows), notes=notes))
    return views


def _charts(first: pd.DataFrame, against: str) -> list[View]:
    views: list[View] = []
    for name, title, columns, scale in (
        ("first-n", "Recall@5 over the first n recommendations", ("value", "low", "high"), 1.0),
        ("first-n-points", f"The same, minus {against}, in points", ("points", "points_low", "points_high"), 0.01),
    ):
        series = tuple(
            Series(
                str(model),
                tuple(map(float, frame["n"])),
                *(tuple(_number(number, scale) for number in frame[column]) for column in columns),
            )
            for model, frame in first.groupby("model", sort=False)
            if scale == 1.0 or model != against
        )
        views.append(LineChart(name, title, "first n recommendations of every session", "Recall@5", series))
    return views


def _number(value: float, scale: float) -> float | None:
    return None if np.isnan(value) else float(value) * scale
