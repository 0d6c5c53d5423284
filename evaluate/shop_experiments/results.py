"""Replay metrics of the models of one shop beside what they earn, each with resamples of the sessions behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from ...envs.log import PreparedData
from ...envs.shop.catalogue import start_ns
from ...envs.shop.live import live_shop
from ...envs.shop.live_config import LiveShopConfig
from ..events import slice_masks
from ..statistics import bootstrap_sums, percentile_interval, ratio, session_sums
from ..table import event_values, same_events
from .correlation import RESAMPLES, Correlation, rank_correlation
from .definitions import ESTIMATORS, Metric
from .values import Served

_METRIC_SEED, _TRUTH_SEED, _MODEL_SEED = range(3)
"""Test sessions, simulated sessions and models are resampled independently."""


@dataclass(frozen=True, eq=False)
class Truth:
    """What P models earn, mean over training seeds."""

    value: np.ndarray
    """[P] float64, reward per session."""
    error: np.ndarray
    """[P], standard error over the simulated sessions."""
    gain: np.ndarray
    """[P], more than recommending any item to the same shoppers."""
    gain_error: np.ndarray
    """[P]."""
    draws: np.ndarray
    """[R, P], `value` in resamples of the sessions."""
    estimates: np.ndarray
    """[P, len(ESTIMATORS)], off-policy from the log; NaN where it was refused for a seed or more."""
    effective_sample_size: np.ndarray
    """[P], the largest over seeds, of the importance weights; NaN where nothing was estimated."""


class Pairs(NamedTuple):
    """Pairs of models that a replay metric tells apart, by what the truth says of them.

    Two figures are apart where the 95 % interval of their paired difference excludes 0: over test sessions for replay,
    over simulated ones for the truth. Pairs of which the truth cannot say which earns more are the rest of `apart`.
    """

    apart: int
    earns_more: int
    """Pairs whose model of the higher replay figure earns more."""
    earns_less: int


@dataclass(frozen=True, eq=False)
class Outcome:
    """P models in one shop: M replay metrics, and the truth by whether items already seen are left out."""

    label: str
    models: tuple[str, ...]
    metrics: tuple[Metric, ...]
    replay: np.ndarray
    """[P, M], shares; NaN where a slice is empty."""
    replay_draws: np.ndarray
    """[R, P, M]."""
    truth: Mapping[bool, Truth]

    def figures(self, unseen_only: bool) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
        """All that models can be ranked by without the shop: label, [P], [R, P] or None where it is not resampled."""
        for place, metric in enumerate(self.metrics):
            yield metric.label, self.replay[:, place], self.replay_draws[:, :, place]
        for place, name in enumerate(ESTIMATORS):
            yield name, self.truth[unseen_only].estimates[:, place], None

    @cached_property
    def correlations(self) -> dict[bool, dict[str, Correlation]]:
        """Of each of `figures` with the truth, by `unseen_only`."""
        return {
            unseen_only: {
                label: rank_correlation(value, truth.value, draws, truth.draws, seed=_MODEL_SEED)
                for label, value, draws in self.figures(unseen_only)
            }
            for unseen_only, truth in self.truth.items()
        }

    def pairs(self, unseen_only: bool) -> dict[Metric, Pairs]:
        """By metric, of the P (P - 1) / 2 pairs of models."""
        truth, found = _told_apart(self.truth[unseen_only].draws), {}
        for place, metric in enumerate(self.metrics):
            replay = _told_apart(self.replay_draws[:, :, place])
            agree = replay * truth
            found[metric] = Pairs(*(int(which.sum()) for which in (replay != 0, agree > 0, agree < 0)))
        return found

    def regret(self, unseen_only: bool) -> dict[str, float | None]:
        """What the best model earns more than the one that a figure puts first (equal ones: their mean)."""
        value, found = self.truth[unseen_only].value, {}
        for label, figure, _ in self.figures(unseen_only):
            known = ~np.isnan(figure)
            first = known & (figure == figure[known].max()) if known.any() else known
            found[label] = float(value.max() - value[first].mean()) if first.any() else None
        return found


def _told_apart(draws: np.ndarray) -> np.ndarray:
    """[P (P - 1) / 2], of each pair of the columns of `draws` [R, P]: 1 where the first is higher, -1 where the second
    is, 0 where they are not apart."""
    first, second = np.triu_indices(draws.shape[1], 1)
    low, high = percentile_interval(draws[:, first] - draws[:, second])
    return (low > 0).astype(np.int8) - (high < 0)


def truth_of(served: Mapping[str, Sequence[Served]], chance: Served) -> Truth:
    """From what came of each model's training seeds, and of recommending any item, over the same shoppers."""
    returns = np.stack([np.mean([one.returns for one in seeds], axis=0) for seeds in served.values()], axis=1)
    gain, root = returns - chance.returns[:, None], np.sqrt(len(returns))
    return Truth(
        value=returns.mean(axis=0),
        error=returns.std(axis=0, ddof=1) / root,
        gain=gain.mean(axis=0),
        gain_error=gain.std(axis=0, ddof=1) / root,
        draws=bootstrap_sums(returns, resamples=RESAMPLES, seed=_TRUTH_SEED) / len(returns),
        estimates=np.stack([np.mean([one.estimates for one in seeds], axis=0) for seeds in served.values()]),
        effective_sample_size=np.array([max(one.effective_sample_size for one in seeds) for seeds in served.values()]),
    )


def replay_figures(
    events: Mapping[str, Mapping[int, pd.DataFrame]],
    metrics: Sequence[Metric],
    data: PreparedData,
    config: LiveShopConfig,
    ties: str = "expected",
) -> tuple[np.ndarray, np.ndarray]:
    """[P, M] and, in resamples of the test sessions, [R, P, M]: means over seeds, models by their place in `events`."""
    reference = same_events(events)
    masks = slice_masks(reference) | _new_items(reference, data, config)
    session, labels = pd.factorize(reference["session"])
    chosen = np.stack([masks[metric.slice] for metric in metrics], axis=1)
    counts = session_sums(chosen, session, len(labels))
    sums = [counts]
    for by_seed in events.values():
        values = np.mean(
            [
                np.stack([event_values(frame, metric.metric, metric.k, ties) for metric in metrics], axis=1)
                for frame in by_seed.values()
            ],
            axis=0,
        )
        sums.append(session_sums(np.where(chosen, values, 0.0), session, len(labels)))
    stacked = np.stack(sums, axis=1).reshape(len(labels), -1)
    drawn = bootstrap_sums(stacked, resamples=RESAMPLES, seed=_METRIC_SEED).reshape(RESAMPLES, len(sums), -1)
    total = stacked.sum(axis=0).reshape(len(sums), -1)
    return ratio(total[1:], total[:1]), ratio(drawn[:, 1:], drawn[:, :1])


def _new_items(events: pd.DataFrame, data: PreparedData, config: LiveShopConfig) -> dict[str, np.ndarray]:
    """Which targets came on sale during the log, and after its training split."""
    appears = live_shop(config.shop, config.shop_seed).catalogue.appears[np.asarray(data.test.item_id) - 1]
    on_sale = appears[events["item"].to_numpy()]
    return {"new": on_sale > start_ns(config.shop), "after training": on_sale > data.train.time.max()}
