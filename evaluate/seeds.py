"""Figures over training seeds, and how far the order of the models hangs on the seeds and sessions at hand.

A model's figure depends on the sessions that it is tested on and on the seed that it was trained with. Every seed meets
the same sessions, so the two are crossed, and both are drawn with replacement: sessions for all seeds and models at
once, seeds for each model by itself (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics, 2007). A figure
over more than three seeds is the interquartile mean (Agarwal et al., "Deep reinforcement learning at the edge of the
statistical precipice", NeurIPS 2021), which one failed training does not move; of fewer it is the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..errors import InputError
from .events import slice_masks
from .statistics import bootstrap_sums, percentile_interval, ratio, session_sums
from .table import HEADLINE_K, event_values, same_events
from .views import Column, Figure, HeatMap, Row, Table

MOST_SEEDS_OF_A_MEAN = 3
"""Above this many the figure is the interquartile mean: a quarter of fewer than four is less than one seed."""

_METRICS = {"recall": "Recall", "mrr": "MRR", "ndcg": "NDCG"}


class SeedSummary(NamedTuple):
    """Figures over seeds with a 95 % interval that covers the choice of both seeds and sessions, each float64 [M]."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class RankStability:
    """How often each model comes out at each place when sessions and seeds are drawn anew."""

    slice: str
    metric: str
    k: int
    places: pd.DataFrame
    """A row for each of M models (the index), best first. value: its figure over seeds; holds: how probably the next
    row's figure is below this one's (NaN in the last row); 1..M: the probability of each place. Equal figures share
    their places, and count half in `holds`."""
    tau: pd.DataFrame
    """Kendall's tau-b between the orders under any two seeds, a row and a column for each seed that all models have (a
    model of one seed has it under all); NaN where all figures are equal."""
    left_out: tuple[str, ...]
    """Models without a figure: k is beyond what they can be scored at."""

    @property
    def agreement(self) -> float:
        """Mean of tau over the pairs of seeds, NaN where there is none."""
        pairs = self.tau.to_numpy()[np.triu_indices(len(self.tau), 1)]
        return float(np.nanmean(pairs)) if np.isfinite(pairs).any() else float("nan")


def over_seeds(figures: np.ndarray, axis: int = 0) -> np.ndarray:
    """The mean of up to three seeds; the interquartile mean of more: without the lowest and highest quarter of them.

    Where a quarter is no whole number it is rounded down (`scipy.stats.trim_mean`, as the paper's own library does).
    """
    from scipy.stats import trim_mean

    return trim_mean(figures, 0.25, axis=axis)


def seed_summary(sums: np.ndarray, counts: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> SeedSummary:
    """`over_seeds` of K seeds for each of M figures, with intervals from seeds and sessions drawn with replacement.

    `sums` [K, S, M] holds what the metric sums to over the events of each of S sessions under each seed, and `counts`
    [S, M] how many events those are (`session_sums`). Sessions are drawn by the draws of `bootstrap_sums`. A figure
    without events is NaN. Two or three seeds say little about the seeds not drawn, and the interval is then too narrow
    where seeds matter more than sessions. Raises `InputError` for shapes that do not fit.
    """
    if sums.ndim != 3 or len(sums) == 0 or sums.shape[1:] != counts.shape:
        raise InputError(
            f"seed_summary: expected sums of shape [seeds, sessions, figures] and counts of [sessions, figures], found "
            f"{sums.shape} and {counts.shape}"
        )
    return _summary(sums, counts, _figures_by_seed([sums], counts, resamples, seed)[0], seed)


def seed_table(
    events: Mapping[str, Mapping[int, pd.DataFrame]],
    k: int = HEADLINE_K,
    slices: Sequence[str] = ("purchase", "click", "first"),
    metric: str = "recall",
    ties: str = "expected",
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """How each model does over its seeds: one row for each model and slice.

    `events` is as for `long_table`. Columns: model, slice, metric, k; statistic, "mean" or "iqm"; value, low, high as
    `seed_summary` gives them; mean, lowest and highest of the seeds; seeds, their number; events, of the slice. NaN
    where the slice is empty or k is beyond what the model can be scored at. Raises `InputError` as `same_events` does,
    and for an unknown slice.
    """
    parts = []
    by_model, counts = _per_session(events, slices, metric, k, ties)
    figures = _figures_by_seed(list(by_model.values()), counts, resamples, seed)
    for (model, sums), drawn in zip(by_model.items(), figures, strict=True):
        part = pd.DataFrame({"model": model, "slice": list(slices), "metric": metric, "k": k})
        part["statistic"] = "mean" if len(sums) <= MOST_SEEDS_OF_A_MEAN else "iqm"
        part["value"], part["low"], part["high"] = _summary(sums, counts, drawn, seed)
        by_seed = ratio(sums.sum(axis=1), counts.sum(axis=0))
        part["mean"], part["lowest"], part["highest"] = by_seed.mean(axis=0), by_seed.min(axis=0), by_seed.max(axis=0)
        part["seeds"], part["events"] = len(sums), counts.sum(axis=0).astype(np.int64)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def seed_view(table: pd.DataFrame) -> Table:
    """What `seed_table` made, as a table: the figure with its interval, and the lowest and highest seed."""
    metric, k = table["metric"].iloc[0], table["k"].iloc[0]
    columns, n_seeds = [], sorted(set(table["seeds"]))
    for name, rows in table.groupby("slice", sort=False):
        group = f"{str(name).capitalize()}, {rows['events'].max():,} events"
        columns.append(Column(f"{_METRICS[metric]}@{k}", group=group))
        columns += [Column(label, better="neither", group=group) for label in ("lowest", "highest")]
    rows = []
    for model, part in table.groupby("model", sort=False):
        figures = []
        for numbers in part[["value", "low", "high", "lowest", "highest"]].to_numpy(float):
            value, low, high, lowest, highest = map(_or_none, numbers)
            figures += [Figure(value, low, high), Figure(lowest), Figure(highest)]
        rows.append(Row(str(model), tuple(figures)))
    which = (
        f"Over {_range(n_seeds)} seed{'' if n_seeds == [1] else 's'}: the mean of up to {MOST_SEEDS_OF_A_MEAN}, the "
        "interquartile mean of more (Agarwal et al., 2021). Intervals: 95 %, seeds and sessions both drawn with "
        "replacement, so they cover the choice of seeds too; lowest and highest: of the seeds."
    )
    few = "Fewer than 5 seeds: where seeds matter more than sessions, these intervals are too narrow."
    notes = (which, few) if n_seeds[0] < 5 else (which,)
    return Table(f"seeds-{metric}-{k}", f"{_METRICS[metric]}@{k} over seeds", tuple(columns), tuple(rows), notes=notes)


def rank_stability(
    events: Mapping[str, Mapping[int, pd.DataFrame]],
    slice_name: str = "purchase",
    metric: str = "recall",
    k: int = HEADLINE_K,
    ties: str = "expected",
    resamples: int = 2000,
    seed: int = 0,
) -> RankStability:
    """How often each model comes out at each place when sessions, and the seeds of each model, are drawn anew.

    `events` is as for `long_table`; sessions are drawn for all models at once. Raises `InputError` as `same_events`
    does, for an unknown slice, and where fewer than two models have a figure.
    """
    by_model, counts = _per_session(events, [slice_name], metric, k, ties)
    points = {model: ratio(sums.sum(axis=1), counts.sum(axis=0))[:, 0] for model, sums in by_model.items()}
    models = [model for model, figures in points.items() if not np.isnan(figures).any()]
    if len(models) < 2:
        raise InputError(
            f"rank_stability: expected at least two models with {metric}@{k} over {slice_name}, found {len(models)}; "
            "compare more models, or choose a slice with events and a smaller k"
        )
    value = np.array([over_seeds(points[model]) for model in models])
    order = np.argsort(-value, kind="stable")
    models, value = [models[i] for i in order], value[order]
    figures = _figures_by_seed([by_model[model] for model in models], counts, resamples, seed)
    rng = _seed_generator(seed)
    # Equal sums of fractions, added up in another order, differ in their last bits.
    draws = np.concatenate([_draw_seeds(drawn, rng) for drawn in figures], axis=1).round(12)
    draws = draws[~np.isnan(draws).any(axis=1)]
    higher, equal = draws[:, None, :] > draws[:, :, None], draws[:, None, :] == draws[:, :, None]
    first, n_equal = higher.sum(axis=2)[:, :, None], equal.sum(axis=2)[:, :, None]
    place = np.arange(len(models))
    shares = ((first <= place) & (place < first + n_equal)) / n_equal
    ahead = (draws[:, :-1] > draws[:, 1:]) + 0.5 * (draws[:, :-1] == draws[:, 1:])
    places = pd.DataFrame(shares.mean(axis=0), index=pd.Index(models, name="model"), columns=place + 1)
    places.insert(0, "value", value)
    places.insert(1, "holds", [*ahead.mean(axis=0), np.nan])
    tau = _tau_between_seeds({model: dict(zip(events[model], points[model], strict=True)) for model in models})
    left_out = tuple(model for model in events if model not in models)
    return RankStability(slice_name, metric, k, places, tau, left_out)


def rank_view(stability: RankStability) -> HeatMap:
    """The probabilities of the places as a heat map, a row a model."""
    places = stability.places
    models, what = list(places.index), f"{_METRICS[stability.metric]}@{stability.k}, {stability.slice}"
    shares = places.drop(columns=["value", "holds"])
    neighbours = [
        f"{model} above {below}: {100 * share:.0f} %"
        for model, below, share in zip(models, models[1:], places["holds"], strict=False)
    ]
    notes = [
        "How often each model comes out at each place when sessions and seeds are drawn anew, in %.",
        f"The order of neighbours holds in: {'; '.join(neighbours)}.",
    ]
    if not np.isnan(stability.agreement):
        notes.append(f"Kendall's tau between the orders under two seeds: {stability.agreement:.2f} in the mean.")
    if stability.left_out:
        notes.append(f"Left out, without a figure at K = {stability.k}: {', '.join(stability.left_out)}.")
    return HeatMap(
        f"places-{stability.slice.replace('/', '-')}-{stability.metric}-{stability.k}",
        f"Places by {what}",
        tuple(models),
        tuple(map(str, shares.columns)),
        tuple(tuple(row) for row in shares.to_numpy().tolist()),
        notes=tuple(notes),
    )


def _per_session(
    events: Mapping[str, Mapping[int, pd.DataFrame]], slices: Sequence[str], metric: str, k: int, ties: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Each model's sums [seeds, sessions, slices], and the counts [sessions, slices] that all models share."""
    reference = same_events(events)
    masks = slice_masks(reference)
    unknown = [name for name in slices if name not in masks]
    if unknown or not slices:
        raise InputError(f"slices: expected some of {', '.join(masks)}, found {', '.join(unknown) or 'none'}")
    session, labels = pd.factorize(reference["session"])
    inside = np.stack([masks[name] for name in slices], axis=1)
    counts = session_sums(inside, session, len(labels))

    def sums(frame: pd.DataFrame) -> np.ndarray:
        values = event_values(frame, metric, k, ties)[:, None]
        return session_sums(np.where(inside, values, 0.0), session, len(labels))

    return {model: np.stack([sums(frame) for frame in by_seed.values()]) for model, by_seed in events.items()}, counts


def _figures_by_seed(sums: Sequence[np.ndarray], counts: np.ndarray, resamples: int, seed: int) -> list[np.ndarray]:
    """Of each model, [R, K, M]: the figures of its K seeds in each draw of the sessions, the same draws for all."""
    columns = [by_session for model in sums for by_session in model]
    drawn = bootstrap_sums(np.concatenate([*columns, counts], axis=1), resamples=resamples, seed=seed)
    drawn = drawn.reshape(resamples, len(columns) + 1, counts.shape[1])
    return np.split(ratio(drawn[:, :-1], drawn[:, -1:]), np.cumsum([len(model) for model in sums])[:-1], axis=1)


def _summary(sums: np.ndarray, counts: np.ndarray, drawn: np.ndarray, seed: int) -> SeedSummary:
    value = over_seeds(ratio(sums.sum(axis=1), counts.sum(axis=0)))
    return SeedSummary(value, *percentile_interval(_draw_seeds(drawn, _seed_generator(seed))))


def _draw_seeds(figures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`over_seeds` of as many seeds as there are, drawn with replacement in each draw: [R, K, ...] to [R, ...]."""
    n_draws, n_seeds = figures.shape[:2]
    if n_seeds == 1:
        return figures[:, 0]
    chosen = rng.integers(n_seeds, size=(n_draws, n_seeds))
    return over_seeds(figures[np.arange(n_draws)[:, None], chosen], axis=1)


def _seed_generator(seed: int) -> np.random.Generator:
    """Apart from the draws of sessions, which `bootstrap_sums` takes from `seed` itself."""
    return np.random.default_rng((seed, 1))


def _tau_between_seeds(points: Mapping[str, Mapping[int, float]]) -> pd.DataFrame:
    from scipy.stats import kendalltau

    several = [set(by_seed) for by_seed in points.values() if len(by_seed) > 1]
    seeds = sorted(set.intersection(*several)) if several else []
    figures = {
        seed: [next(iter(by_seed.values())) if len(by_seed) == 1 else by_seed[seed] for by_seed in points.values()]
        for seed in seeds
    }
    tau = pd.DataFrame(np.eye(len(seeds)), index=seeds, columns=seeds)
    for one, other in combinations(seeds, 2):
        tau.loc[one, other] = tau.loc[other, one] = kendalltau(figures[one], figures[other])[0]
    return tau


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _range(numbers: Sequence[int]) -> str:
    return " to ".join(map(str, dict.fromkeys([numbers[0], numbers[-1]])))
