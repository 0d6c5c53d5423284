"""Online learning over time: how events are ranked before they are learned from, and the test split along the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pandas as pd

from ..comparison_views import METRIC_LABELS
from ..online import online_curves
from ..views import Column, Figure, LineChart, Row, Series, Table, View

if TYPE_CHECKING:
    from .results import Results

_CURVES = {"stream": "training stream, ranked before it is learned from", "test": "test split along the way"}
_KINDS = ("purchase", "click")


def online_views(results: Results) -> list[View]:
    """A chart for each curve, kind and metric, mean over seeds with their range, and where each model ends."""
    k = results.ks[0]
    frames = []
    for label, by_seed in results.folders.items():
        for seed, folder in by_seed.items():
            curves = online_curves(folder, ks=(k,), slices=_KINDS, ties=results.ties)
            frames.append(curves.assign(model=label, seed=seed))
    rows = pd.concat(frames, ignore_index=True)
    charts: list[View] = [
        _chart(rows, curve, kind, metric, k) for curve in _CURVES for kind in _KINDS for metric in ("recall", "mrr")
    ]
    return [_last(rows, results, k), *charts]


def _chart(rows: pd.DataFrame, curve: str, kind: str, metric: str, k: int) -> LineChart:
    chosen = rows[(rows["curve"] == curve) & (rows["slice"] == kind) & (rows["metric"] == metric)]
    series = []
    for model, frame in chosen.groupby("model", sort=False):
        at = frame.groupby("events_learned")["value"]
        over_seeds = [cast(pd.Series, values) for values in (at.mean(), at.min(), at.max())]
        mean, low, high = (tuple(map(float, values)) for values in over_seeds)
        several = len(set(frame["seed"])) > 1
        events = tuple(map(float, over_seeds[0].index))
        series.append(Series(str(model), events, mean, low if several else (), high if several else ()))
    notes = ("Mean over seeds; the band is their range.",)
    if curve == "stream":
        notes = (*notes, "Each point is the mean over the events since the point before.")
    return LineChart(
        f"online-{curve}-{kind}-{metric}",
        f"{METRIC_LABELS[metric]}@{k} of {kind}s, {_CURVES[curve]}",
        "events learned from",
        f"{METRIC_LABELS[metric]}@{k}",
        tuple(series),
        notes=notes,
    )


def _last(rows: pd.DataFrame, results: Results, k: int) -> Table:
    """The figures of the last moment."""
    last = rows[rows["events_learned"] == rows["events_learned"].max()]
    found = cast(pd.Series, last.groupby(["model", "curve", "slice", "metric"])["value"].mean())
    mean = dict(zip(found.index, found.to_numpy(dtype=float), strict=True))
    keys = [(curve, kind, metric) for curve in _CURVES for kind in _KINDS for metric in ("recall", "mrr")]
    return Table(
        "online",
        "At the end of the stream",
        tuple(Column(f"{METRIC_LABELS[metric]}@{k}", group=f"{curve}, {kind}s") for curve, kind, metric in keys),
        tuple(
            Row(
                label,
                tuple(Figure(mean.get((label, *key))) for key in keys),
                results.entry(label).system.label,
            )
            for label in results.folders
        ),
        notes=(
            "Mean over seeds. Stream: the last twentieth of it, ranked before it was learned from; test: the "
            f"test split under the last weights. Ties: {results.ties}. Nothing is selected on validation.",
        ),
    )
