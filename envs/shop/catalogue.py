"""What is on the shelves: items, their clusters, price levels and the relations between them, drawn once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from .config import ShopConfig

_NS_PER_DAY = 86_400 * 10**9


class Catalogue(NamedTuple):
    """N items in C clusters. A plain tuple of arrays, so that compiled code can read it."""

    popularity: np.ndarray
    """[N] float64, sums to 1."""
    cluster: np.ndarray
    """[N] int32, 0..C-1."""
    level: np.ndarray
    """[N] int32, price level."""
    appeal: np.ndarray
    """[N] float64, log-odds of being wanted once seen."""
    appears: np.ndarray
    """[N] int64, nanoseconds since the epoch: sessions that start earlier do not meet the item."""
    successor: np.ndarray
    """[N, K] int32, items of the same cluster that an item leads to, the likeliest first."""
    detour: np.ndarray
    """[N] int32, the item of the related cluster that an item leads to."""
    accessory: np.ndarray
    """[C, A] int32, items of the related cluster that complement a cluster, the likeliest first."""
    member: np.ndarray
    """[N] int32, items by cluster, the most popular first; that one is on sale from the beginning."""
    member_offset: np.ndarray
    """[C + 1] int64, cluster c is member[member_offset[c]:member_offset[c + 1]]."""
    member_cumulative: np.ndarray
    """[N] float64, cumulative popularity within the cluster, in the order of `member`; ends at 1."""
    cluster_cumulative: np.ndarray
    """[C] float64, cumulative popularity of the clusters; ends at 1."""


def draw_catalogue(config: ShopConfig, seed: int) -> Catalogue:
    """The catalogue of a shop; the same for the same configuration and seed, bit for bit."""
    rng = np.random.default_rng(seed)
    n, n_clusters = config.n_items, config.n_clusters
    rank = rng.permutation(n)
    popularity = (rank + 1 + config.zipf_shift) ** -float(config.zipf_exponent)
    popularity /= popularity.sum()
    cluster = (rng.permutation(n) % n_clusters).astype(np.int32)
    level = rng.integers(config.n_levels, size=n, dtype=np.int32)
    appeal = config.appeal_spread * rng.standard_normal(n)

    member = np.lexsort((rank, cluster)).astype(np.int32)
    member_offset = np.searchsorted(cluster[member], np.arange(n_clusters + 1))
    cluster_popularity = np.add.reduceat(popularity[member], member_offset[:-1])

    appears = _appearance(config, rng, flagship=member[member_offset[:-1]])
    groups = np.split(member, member_offset[1:-1])
    successor, detour, accessory = _relations(config, rng, np.log(popularity), level, groups)
    return Catalogue(
        popularity=popularity,
        cluster=cluster,
        level=level,
        appeal=appeal,
        appears=appears,
        successor=successor,
        detour=detour,
        accessory=accessory,
        member=member,
        member_offset=member_offset,
        member_cumulative=np.concatenate([_cumulative(popularity[group]) for group in groups]),
        cluster_cumulative=_cumulative(cluster_popularity),
    )


def start_ns(config: ShopConfig) -> int:
    """The first moment of the log, nanoseconds since the epoch; a date without a time zone is UTC."""
    start = datetime.fromisoformat(config.start)
    start = start if start.tzinfo else start.replace(tzinfo=UTC)
    return int(start.timestamp()) * 10**9


def _appearance(config: ShopConfig, rng: np.random.Generator, flagship: np.ndarray) -> np.ndarray:
    late = rng.random(config.n_items) < config.new_item_share
    late[flagship] = False
    day = rng.uniform(0, config.days, config.n_items)
    return start_ns(config) + np.where(late, day * _NS_PER_DAY, 0).astype(np.int64)


def _relations(
    config: ShopConfig,
    rng: np.random.Generator,
    log_popularity: np.ndarray,
    level: np.ndarray,
    groups: list[np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`successor`, `detour` and `accessory`. Clusters form one ring, in which each is related to the next."""
    smallest = min(len(group) for group in groups)
    n_successors = min(config.n_successors, smallest - 1)
    successor = np.empty((config.n_items, n_successors), dtype=np.int32)
    detour = np.empty(config.n_items, dtype=np.int32)
    accessory = np.empty((len(groups), min(config.n_accessories, smallest)), dtype=np.int32)

    def lead_to(source: np.ndarray, target: np.ndarray, count: int) -> np.ndarray:
        # Gumbel noise makes the top of the scores a draw without replacement, weighted by popularity and price.
        distance = np.abs(level[source][:, None] - level[target])
        score = log_popularity[target] - config.click_level_pull * distance + rng.gumbel(size=distance.shape)
        score[source[:, None] == target] = -np.inf
        return target[np.argsort(-score, axis=1)[:, :count]]

    ring = rng.permutation(len(groups))
    for this, related in zip(ring, np.roll(ring, -1), strict=True):
        own, other = groups[this], groups[related]
        successor[own] = lead_to(own, own, n_successors)
        detour[own] = lead_to(own, other, 1)[:, 0]
        accessory[this] = rng.choice(other, accessory.shape[1], replace=False)
    return successor, detour, accessory


def _cumulative(weight: np.ndarray) -> np.ndarray:
    total = np.cumsum(weight)
    total /= total[-1]
    return total
