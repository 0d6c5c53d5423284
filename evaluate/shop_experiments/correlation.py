"""Rank correlations of models by two figures, with intervals that know how few the models are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from ..statistics import percentile_interval
from ..views import Figure

RESAMPLES = 1_000
FEWEST = 3
"""Models; fewer have no order to speak of."""


class Correlation(NamedTuple):
    """Of two figures over models, None where it is not defined."""

    kendall: Figure
    """tau-b (Kendall, 1945), equal figures taken into account."""
    spearman: Figure
    n_models: int
    """With both figures."""


def rank_correlation(
    metric: np.ndarray,
    truth: np.ndarray,
    metric_draws: np.ndarray | None = None,
    truth_draws: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Correlation:
    """Correlations of `metric` [P] and `truth` [P] over models, with 95 % percentile intervals over `resamples`.

    Each resample draws P models with replacement; with `metric_draws` [R, P] and `truth_draws` [R, P] (R resamples of
    the sessions behind the figures) resample r takes its figures from row r, so that the interval covers other models
    of their kind, test sessions and simulated sessions. Models with NaN in either figure do not count. A resample in
    which a figure is the same for all says nothing and is left out.
    """
    counted = ~(np.isnan(metric) | np.isnan(truth))
    n_models = int(counted.sum())
    if n_models < FEWEST:
        return Correlation(Figure(None), Figure(None), n_models)
    draws = [
        np.repeat(value[None, counted], resamples, axis=0) if drawn is None else drawn[:, counted]
        for value, drawn in ((metric, metric_draws), (truth, truth_draws))
    ]
    pick = np.random.default_rng(seed).integers(n_models, size=(len(draws[0]), n_models))
    x, y = (np.take_along_axis(drawn, pick, axis=1) for drawn in draws)
    found = []
    for correlate in (kendall, spearman):
        (value,) = correlate(metric[None, counted], truth[None, counted])
        (low,), (high,) = percentile_interval(correlate(x, y)[:, None])
        found.append(Figure(None) if np.isnan(value) else Figure(float(value), _known(low), _known(high)))
    return Correlation(found[0], found[1], n_models)


def kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[R], tau-b of each row of `x` [R, P] and `y` [R, P]; NaN where either is constant."""
    first, second = np.triu_indices(x.shape[1], 1)
    sign_x, sign_y = (np.sign(each[:, first] - each[:, second]) for each in (x, y))
    untied = np.count_nonzero(sign_x, axis=1) * np.count_nonzero(sign_y, axis=1).astype(np.float64)
    return _over((sign_x * sign_y).sum(axis=1), np.sqrt(untied))


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[R], the correlation of the ranks in each row of `x` [R, P] and `y` [R, P]; NaN where either is constant."""
    centre = (x.shape[1] + 1) / 2
    rank_x, rank_y = (rankdata(each, axis=1) - centre for each in (x, y))
    return _over((rank_x * rank_y).sum(axis=1), np.sqrt((rank_x**2).sum(axis=1) * (rank_y**2).sum(axis=1)))


def _over(value: np.ndarray, norm: np.ndarray) -> np.ndarray:
    return np.divide(value, norm, out=np.full(len(value), np.nan), where=norm > 0)


def _known(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)
