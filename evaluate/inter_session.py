"""What earlier sessions are worth: the comparison of II-RNN's paper (Ruocco, Skrede & Langseth 2017, section 4).

Its figures are over all events to predict, whatever their kind, and stand beside those of the RNN that sees the current
session alone. Sessions of one user are not independent, as all of them depend on what is read of that user; so where
the event tables have a column ``user`` (`comparison_events` adds it), users are what the bootstrap draws, and sessions
elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..envs.folders import read_manifest
from ..envs.log import PreparedData
from ..errors import InputError
from .compare import COMPARISON_FORMAT
from .differences import FEWEST_SESSIONS, simultaneous_interval
from .metrics import metric_at
from .plots import draw
from .runs import EVENTS, check_ks
from .statistics import bootstrap_sums, percentile_interval, ratio, session_sums
from .table import same_events
from .views import LineChart, Series

EventTables = Mapping[str, Mapping[int, pd.DataFrame]]
"""Event tables (`rank_events`) by model and training seed."""

_HEADINGS = {"recall": "Recall", "mrr": "MRR"}
_READ = ["model", "seed", "session", "position", "length", "kind", "item", "repeat", "rank_low", "rank_high", "max_k"]


def comparison_events(
    folder: str | os.PathLike[str], data: PreparedData | None = None
) -> dict[str, dict[int, pd.DataFrame]]:
    """The event tables of a comparison's folder by model and seed, in the order compared, without ids and classes.

    With `data`, the data set compared, they get a column ``user`` int32: whose session it is. Raises `InputError` for a
    folder that is no comparison, a damaged one or one of other data, and for `data` without users.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, COMPARISON_FORMAT)
    try:
        rows = pd.read_parquet(folder / EVENTS, columns=_READ)
    except (OSError, ValueError) as error:
        what = str(error).splitlines()[0]
        raise InputError(f"{folder / EVENTS}: cannot be read ({what}); run the comparison again") from None
    if data is not None:
        if manifest["data"] != data.fingerprint():
            raise InputError(
                f"{folder}: compares models on data with fingerprint {manifest['data']}, found {data.fingerprint()} in "
                f"{data.path}; give the folder that was compared (it was {manifest['data_path']})"
            )
        if data.test.user is None:
            raise InputError(f"{data.path}: has no users; leave the data out, and sessions are drawn instead of users")
        rows["user"] = data.test.user[rows["session"].to_numpy()]
    events: dict[str, dict[int, pd.DataFrame]] = {}
    for _, frame in rows.groupby(["model", "seed"], sort=False, observed=True):
        model, seed = str(frame["model"].iloc[0]), int(frame["seed"].iloc[0])
        events.setdefault(model, {})[seed] = frame.drop(columns=["model", "seed"]).reset_index(drop=True)
    return events


def ii_rnn_table(
    events: EventTables,
    against: str = "rnn",
    ks: Sequence[int] = (5, 10, 20),
    ties: str = "expected",
    resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Recall and MRR at each of `ks`, absolute and relative to `against`: one row for each model, metric and k.

    This is the form of the paper's table of all models and, on a folder prepared with ``--user-split last``, of its
    hold-one-out table. Columns: model, metric, k, then those that `first_n_rows` has too, of the mean over seeds:

    value, low..high: the figure in 0..1 and its 95 % bootstrap interval;
    percent, percent_low..percent_high: how much higher than that of `against`, in % of it (NaN where it is 0);
    points, points_low..points_high: the same in percentage points, all from the same draws, so paired;
    all_low..all_high: intervals of `points` that hold for all models of this metric and k at once
    (`simultaneous_interval`); differs: whether that one excludes 0 and at least 6 users (sessions) differ;
    events: how many are counted; seeds: of the model; drawn: "user" or "session", what the bootstrap draws, and
    n_drawn, how many there are; against and ties: as given.

    A figure at a k beyond a model's `max_k` is NaN. Raises `InputError` where `against` is not among the models, where
    the tables are not of the same events or have none, and for `ks` that are below 1, repeated or none.
    """
    check_ks(tuple(ks))
    reference, cluster, n_clusters = _clustered(events, against)
    columns = [(metric, k) for metric in _HEADINGS for k in ks]
    sums = [
        session_sums(
            np.stack([_mean_over_seeds(by_seed, *column, ties) for column in columns], axis=1), cluster, n_clusters
        )
        for by_seed in events.values()
    ]
    counts = session_sums(np.ones((len(reference), 1)), cluster, n_clusters).repeat(len(columns), axis=1)
    rows = _figures(
        list(events), against, pd.DataFrame(columns, columns=["metric", "k"]), sums, counts, resamples, seed
    )
    return _described(rows, events, _drawn(reference), against, ties)


def first_n_rows(
    events: EventTables,
    k: int = 5,
    n_max: int = 19,
    against: str = "rnn",
    ties: str = "expected",
    resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Recall@k over the first n recommendations of every session, cumulative, n = 1..`n_max` (the paper's figure 3).

    The first recommendation follows a session's first event. A session with fewer than n counts with those it has. The
    default of `n_max` fits the paper's sessions of at most 20 events; there are no rows beyond the longest session.
    Columns: model, n, k, then those of `ii_rnn_table`, with intervals that hold for all models of an n at once, not for
    all n. Raises `InputError` as that does, and for an n_max below 1.
    """
    if n_max < 1:
        raise InputError(f"first_n_rows: expected an n_max of at least 1, found {n_max}")
    reference, cluster, n_clusters = _clustered(events, against)
    n = reference["position"].to_numpy() - 1
    n_max = min(n_max, int(n.max()))
    early = n <= n_max
    place = cluster[early] * n_max + n[early] - 1

    def cumulative(values: np.ndarray) -> np.ndarray:
        by_place = np.bincount(place, weights=values[early], minlength=n_clusters * n_max)
        return by_place.reshape(n_clusters, n_max).cumsum(axis=1)

    sums = [cumulative(_mean_over_seeds(by_seed, "recall", k, ties)) for by_seed in events.values()]
    keys = pd.DataFrame({"n": np.arange(1, n_max + 1), "k": k})
    rows = _figures(list(events), against, keys, sums, cumulative(np.ones(len(reference))), resamples, seed)
    return _described(rows, events, _drawn(reference), against, ties)


def ii_rnn_markdown(table: pd.DataFrame, notes: Sequence[str] = ()) -> str:
    """Rows of `ii_rnn_table` as a table in Markdown, a model a line, with `notes` (caveats of the data) below."""
    headings = [
        f"{_HEADINGS[metric]}@{k}" for metric, k in dict.fromkeys(zip(table["metric"], table["k"], strict=True))
    ]
    against, ties, drawn, n_drawn, n_events = table[["against", "ties", "drawn", "n_drawn", "events"]].iloc[0]
    lines = ["| model | " + " | ".join(headings) + " |", "|---|" + "---:|" * len(headings)]
    for model, rows in table.groupby("model", sort=False):
        cells = []
        for value, percent, differs in rows[["value", "percent", "differs"]].itertuples(index=False, name=None):
            relative = "" if model == against or np.isnan(percent) else f" ({percent:+z.1f} %)"
            cell = "" if np.isnan(value) else f"{100 * value:.2f}{relative}"
            cells.append(f"**{cell}**" if differs else cell)
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    n_seeds = np.sort(table["seeds"].to_numpy())
    seeds = " to ".join(map(str, dict.fromkeys([n_seeds[0], n_seeds[-1]])))
    footer = [
        f"In %, mean over {seeds} seed{'' if seeds == '1' else 's'}, over {n_events:,} events of {n_drawn:,} {drawn}s; "
        f"in brackets relative to {against}; ties: {ties}. Bold: the 95 % interval of the difference, paired over "
        f"{drawn}s, that holds for all models of the column at once excludes 0, and at least {FEWEST_SESSIONS} "
        f"{drawn}s differ. Intervals hold for the seeds at hand.",
        *(f"Note: {note}" for note in notes),
    ]
    return "\n".join(lines) + "\n\n" + "  \n".join(footer) + "\n"


def first_n_plot(rows: pd.DataFrame, file: str | os.PathLike[str]) -> None:
    """Draw `first_n_rows` with their 95 % intervals, a line a model, as PNG or SVG by the ending of `file`.

    Raises `InputError` as `plots.draw` does.
    """
    draw(first_n_chart(rows), file)


def first_n_chart(rows: pd.DataFrame) -> LineChart:
    """`first_n_rows` as a chart, a line a model. Raises `InputError` for rows without figures."""
    rows = rows.dropna(subset="value")
    if rows.empty:
        raise InputError("first_n_chart: the rows have no figures; make them with first_n_rows")
    series = [
        Series(str(model), *(tuple(part[name].tolist()) for name in ("n", "value", "low", "high")))
        for model, part in rows.groupby("model", sort=False)
    ]
    k, drawn, n_drawn = rows[["k", "drawn", "n_drawn"]].iloc[0]
    return LineChart(
        "first-n",
        "The first recommendations of a session",
        "first n recommendations of a session",
        f"Recall@{k}",
        tuple(series),
        notes=(f"Bands: 95 % intervals over {n_drawn:,} {drawn}s.",),
    )


def _clustered(events: EventTables, against: str) -> tuple[pd.DataFrame, np.ndarray, int]:
    """A table of the events, and which of so many independent units each event belongs to, [E] int."""
    if against not in events:
        raise InputError(f"expected a model of the comparison ({', '.join(events)}) as `against`, found {against!r}")
    reference = same_events(events)
    if reference.empty:
        raise InputError("the event tables have no event, so there is nothing to compare; rank a longer log")
    cluster, labels = pd.factorize(reference[_drawn(reference)])
    return reference, cluster, len(labels)


def _drawn(reference: pd.DataFrame) -> str:
    return "user" if "user" in reference else "session"


def _mean_over_seeds(by_seed: Mapping[int, pd.DataFrame], metric: str, k: int, ties: str) -> np.ndarray:
    """[E], NaN where k is beyond what the model can be scored at."""
    values = []
    for frame in by_seed.values():
        low, high, max_k = (frame[name].to_numpy() for name in ("rank_low", "rank_high", "max_k"))
        values.append(np.where((max_k > 0) & (k > max_k), np.nan, metric_at(metric, low, high, k, ties)))
    return np.mean(values, axis=0)


def _described(rows: pd.DataFrame, events: EventTables, drawn: str, against: str, ties: str) -> pd.DataFrame:
    seeds = [len(events[model]) for model in rows["model"]]
    return rows.assign(seeds=seeds, drawn=drawn, against=against, ties=ties)


def _figures(
    models: list[str],
    against: str,
    keys: pd.DataFrame,
    sums: list[np.ndarray],
    counts: np.ndarray,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """The columns that `ii_rnn_table` explains, for each of M models and each of C rows of `keys`.

    `sums` holds, for each model, the sum of the metric's values over the events of each of U units, [U, C]; `counts`
    [U, C] says how many events that are.
    """
    shape, base = (len(models), len(keys)), models.index(against)
    value = ratio(np.stack([s.sum(axis=0) for s in sums]), counts.sum(axis=0))
    drawn = bootstrap_sums(np.hstack([*sums, counts]), resamples=resamples, seed=seed)
    drawn = drawn.reshape(resamples, len(models) + 1, len(keys))
    draws = ratio(drawn[:, :-1], drawn[:, -1:])
    figures = {
        "value": (value, draws),
        "percent": (100 * (ratio(value, value[base]) - 1), 100 * (ratio(draws, draws[:, [base]]) - 1)),
        "points": (100 * (value - value[base]), 100 * (draws - draws[:, [base]])),
    }
    rows = pd.DataFrame({"model": np.repeat(models, len(keys))}).join(
        pd.concat([keys] * len(models), ignore_index=True)
    )
    for name, (figure, figure_draws) in figures.items():
        low, high = percentile_interval(figure_draws.reshape(resamples, -1))
        prefix = "" if name == "value" else f"{name}_"
        rows[name], rows[f"{prefix}low"], rows[f"{prefix}high"] = figure.ravel(), low, high
    points = figures["points"][1]
    together = np.stack([simultaneous_interval(points[:, :, c]) for c in range(len(keys))], axis=2)
    rows["all_low"], rows["all_high"] = together.reshape(2, -1)
    # Sums of fractions may miss 0 by their last bits.
    differing = np.stack([(np.abs(s - sums[base]) > 1e-9).sum(axis=0) for s in sums])
    excludes_zero = (together[0] > 0) | (together[1] < 0)
    rows["differs"] = (excludes_zero & (differing >= FEWEST_SESSIONS)).ravel()
    rows["events"] = np.broadcast_to(counts.sum(axis=0).astype(np.int64), shape).ravel()
    return rows.assign(n_drawn=len(counts))
