"""How a shopper behaves: one step at a time, one lane a shopper, compiled.

A shopper has a hidden intent (a cluster of items, a price level, an urgency) and goes through BROWSING, BUYING and
LINGERING to GONE. Each lane draws from a stream of its own, so that a shopper does the same whatever the others do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ..log import CLICK, PURCHASE
from .catalogue import Catalogue
from .config import ShopConfig

# Otherwise every call counts a reference to each of some fifty arrays, which costs more than what the shoppers do.
compiled = njit(cache=True, _nrt=False)  # pyright: ignore[reportCallIssue]

BROWSING, BUYING, LINGERING, GONE = 0, 1, 2, 3
"""Values of `Shoppers.phase`."""

LONGEST_PAUSE = 3_600.0
_TRIES = 30

# SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): one word of state a lane, any word a good seed.
GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
SHIFT_1, SHIFT_2, SHIFT_3, SHIFT_4 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


class Rates(NamedTuple):
    """The part of `ShopConfig` that compiled code reads, all float64; the meanings are given there."""

    n_levels: float
    buyer_share: float
    decide_rate: float
    urgency_spread: float
    commitment: float
    max_events: float
    reload: float
    back: float
    follow: float
    detour: float
    wander: float
    drift: float
    click_level_pull: float
    forgetting: float
    revisit_pull: float
    cluster_pull: float
    level_pull: float
    rebuy_penalty: float
    accessory_share: float
    impulse_share: float
    basket_growth: float
    linger: float
    dwell: float
    dwell_spread: float
    basket_gap: float
    rank_decay: float


class Shoppers(NamedTuple):
    """State of B shoppers who can see M items each (M = `ShopConfig.max_events`)."""

    stream: np.ndarray
    """[B] uint64, state of the lane's random stream."""
    start: np.ndarray
    """[B] int64, nanoseconds since the epoch, start of the session."""
    cluster: np.ndarray
    """[B] int32, the intent's cluster."""
    level: np.ndarray
    """[B] int32, the price level looked for."""
    urgency: np.ndarray
    """[B] float64, multiplies the chance to decide and divides the pauses."""
    buyer: np.ndarray
    """[B] bool, whether the session ends with a purchase."""
    phase: np.ndarray
    """[B] int8, BROWSING, BUYING, LINGERING or GONE."""
    n_events: np.ndarray
    """[B] int32, events so far."""
    n_seen: np.ndarray
    """[B] int32, distinct items so far."""
    seen: np.ndarray
    """[B, M] int32, those items, the last one last."""
    visits: np.ndarray
    """[B, M] int32, times that `seen` was clicked or bought."""
    bought: np.ndarray
    """[B, M] bool, whether `seen` is in the basket."""


def rates_of(config: ShopConfig) -> Rates:
    return Rates(*(float(getattr(config, name)) for name in Rates._fields))


def empty_lanes(n_lanes: int, max_events: int) -> Shoppers:
    """Lanes without shoppers; `arrive` puts one in."""
    return Shoppers(
        stream=np.zeros(n_lanes, np.uint64),
        start=np.zeros(n_lanes, np.int64),
        cluster=np.zeros(n_lanes, np.int32),
        level=np.zeros(n_lanes, np.int32),
        urgency=np.ones(n_lanes),
        buyer=np.zeros(n_lanes, np.bool_),
        phase=np.full(n_lanes, GONE, np.int8),
        n_events=np.zeros(n_lanes, np.int32),
        n_seen=np.zeros(n_lanes, np.int32),
        seen=np.zeros((n_lanes, max_events), np.int32),
        visits=np.zeros((n_lanes, max_events), np.int32),
        bought=np.zeros((n_lanes, max_events), np.bool_),
    )


@compiled
def uniform(shoppers: Shoppers, lane: int) -> float:
    state = shoppers.stream[lane] + GAMMA
    shoppers.stream[lane] = state
    state = (state ^ (state >> SHIFT_1)) * MIX_1
    state = (state ^ (state >> SHIFT_2)) * MIX_2
    state ^= state >> SHIFT_3
    return (state >> SHIFT_4) * 2.0**-53


@compiled
def normal(shoppers: Shoppers, lane: int) -> float:
    radius = np.sqrt(-2.0 * np.log(1.0 - uniform(shoppers, lane)))
    return radius * np.cos(2.0 * np.pi * uniform(shoppers, lane))


@compiled
def _geometric_rank(shoppers: Shoppers, lane: int, decay: float, count: int) -> int:
    # Going round the list leaves the ratios of the geometric law as they are.
    rank = 0
    while uniform(shoppers, lane) < decay:
        rank = (rank + 1) % count
    return rank


@compiled
def _draw(shoppers: Shoppers, lane: int, cumulative: np.ndarray, first: int, end: int) -> int:
    """A position in first..end-1 by the cumulative weights given there; numba's searchsorted takes long to compile."""
    mark = uniform(shoppers, lane)
    while first < end:
        middle = (first + end) // 2
        if cumulative[middle] > mark:
            end = middle
        else:
            first = middle + 1
    return first


@compiled
def _draw_cluster(shoppers: Shoppers, lane: int, catalogue: Catalogue) -> int:
    return _draw(shoppers, lane, catalogue.cluster_cumulative, 0, len(catalogue.cluster_cumulative))


@compiled
def arrive(shoppers: Shoppers, lane: int, stream: np.uint64, start: int, catalogue: Catalogue, rates: Rates) -> None:
    """Put a new shopper into a lane: intent, price level, urgency, and whether this one will buy."""
    shoppers.stream[lane] = stream
    shoppers.start[lane] = start
    shoppers.cluster[lane] = _draw_cluster(shoppers, lane, catalogue)
    shoppers.level[lane] = int(uniform(shoppers, lane) * rates.n_levels)
    spread = rates.urgency_spread
    shoppers.urgency[lane] = np.exp(spread * normal(shoppers, lane) - 0.5 * spread * spread)
    shoppers.buyer[lane] = uniform(shoppers, lane) < rates.buyer_share
    shoppers.phase[lane] = BROWSING
    shoppers.n_events[lane] = 0
    shoppers.n_seen[lane] = 0


@compiled
def step(shoppers: Shoppers, lane: int, catalogue: Catalogue, rates: Rates) -> tuple[int, int, float]:
    """The shopper's next event: (item, CLICK or PURCHASE, seconds since the last one); item -1 once gone."""
    was_buying = shoppers.phase[lane] == BUYING
    advance_phase(shoppers, lane, rates)
    phase = shoppers.phase[lane]
    if phase == GONE:
        return -1, CLICK, 0.0
    if phase == BUYING:
        kind, item = PURCHASE, buy(shoppers, lane, catalogue, rates)
    else:
        kind, item = CLICK, browse(shoppers, lane, catalogue, rates)
    shoppers.n_events[lane] += 1
    if was_buying and phase == BUYING:
        return item, kind, rates.basket_gap
    pause = rates.dwell / shoppers.urgency[lane] * np.exp(rates.dwell_spread * normal(shoppers, lane))
    return item, kind, min(pause, LONGEST_PAUSE)


@compiled
def advance_phase(shoppers: Shoppers, lane: int, rates: Rates) -> None:
    n_events = shoppers.n_events[lane]
    if n_events >= rates.max_events:
        shoppers.phase[lane] = GONE
    elif shoppers.phase[lane] == BROWSING:
        buyer = shoppers.buyer[lane]
        # A session has at least two events, and a buyer's last one is left for the purchase.
        if n_events >= (1 if buyer else 2) and (
            n_events >= rates.max_events - 1 or uniform(shoppers, lane) < rates.decide_rate * shoppers.urgency[lane]
        ):
            shoppers.phase[lane] = BUYING if buyer else GONE
    elif shoppers.phase[lane] == BUYING:
        if uniform(shoppers, lane) >= rates.basket_growth or all_bought(shoppers, lane):
            shoppers.phase[lane] = LINGERING
    if shoppers.phase[lane] == LINGERING and uniform(shoppers, lane) >= rates.linger:
        shoppers.phase[lane] = GONE


@compiled
def all_bought(shoppers: Shoppers, lane: int) -> bool:
    for position in range(shoppers.n_seen[lane]):
        if not shoppers.bought[lane, position]:
            return False
    return True


@compiled
def browse(shoppers: Shoppers, lane: int, catalogue: Catalogue, rates: Rates) -> int:
    """One click: stay, follow a transition, look for something fresh, or go back."""
    n_seen = shoppers.n_seen[lane]
    if n_seen == 0:
        item = _fresh(shoppers, lane, catalogue, rates)
    else:
        last = shoppers.seen[lane, n_seen - 1]
        choice = uniform(shoppers, lane)
        if n_seen == 1:
            choice *= 1.0 - rates.back
        if choice < rates.reload:
            item = last
        elif choice < rates.reload + rates.follow:
            item = _follow(shoppers, lane, last, catalogue, rates)
        elif choice < 1.0 - rates.back or n_seen == 1:
            item = _fresh(shoppers, lane, catalogue, rates)
        else:
            item = shoppers.seen[lane, _wanted(shoppers, lane, n_seen - 1, rates.forgetting, catalogue, rates)]
            shoppers.urgency[lane] *= 1.0 + rates.commitment
    if catalogue.cluster[item] != shoppers.cluster[lane] and uniform(shoppers, lane) < rates.drift:
        shoppers.cluster[lane] = catalogue.cluster[item]
        shoppers.level[lane] = catalogue.level[item]
    remember(shoppers, lane, item)
    return item


@compiled
def _follow(shoppers: Shoppers, lane: int, last: int, catalogue: Catalogue, rates: Rates) -> int:
    if uniform(shoppers, lane) < rates.detour:
        item = int(catalogue.detour[last])
    else:
        n_successors = catalogue.successor.shape[1]
        rank = _geometric_rank(shoppers, lane, rates.rank_decay, n_successors)
        item = int(catalogue.successor[last, rank])
    if catalogue.appears[item] <= shoppers.start[lane]:
        return item
    return _fresh(shoppers, lane, catalogue, rates)


@compiled
def _fresh(shoppers: Shoppers, lane: int, catalogue: Catalogue, rates: Rates) -> int:
    """A new item of the intent's cluster, or of any if the shopper wanders, by popularity and price level.

    Where none turns up, the most popular item of the cluster, seen or not.
    """
    cluster = int(shoppers.cluster[lane])
    if uniform(shoppers, lane) < rates.wander:
        cluster = _draw_cluster(shoppers, lane, catalogue)
    first, end = catalogue.member_offset[cluster], catalogue.member_offset[cluster + 1]
    for _ in range(_TRIES):
        item = int(catalogue.member[_draw(shoppers, lane, catalogue.member_cumulative, first, end)])
        distance = abs(catalogue.level[item] - shoppers.level[lane])
        fits = uniform(shoppers, lane) < np.exp(-rates.click_level_pull * distance)
        on_sale = catalogue.appears[item] <= shoppers.start[lane]
        if fits and on_sale and position_of(shoppers, lane, item) < 0:
            return item
    return int(catalogue.member[first])


@compiled
def buy(shoppers: Shoppers, lane: int, catalogue: Catalogue, rates: Rates) -> int:
    """One purchase: on an impulse a fresh item, otherwise one wanted after a look."""
    # No draw where nobody buys so, and the streams stay those of a shop without the knob.
    if rates.impulse_share > 0.0 and uniform(shoppers, lane) < rates.impulse_share:
        item = _fresh(shoppers, lane, catalogue, rates)
    else:
        item = _considered(shoppers, lane, catalogue, rates)
    remember(shoppers, lane, item)
    shoppers.bought[lane, shoppers.n_seen[lane] - 1] = True
    return item


@compiled
def _considered(shoppers: Shoppers, lane: int, catalogue: Catalogue, rates: Rates) -> int:
    """The item wanted most, or in its place an accessory that the shopper has not looked at."""
    item = int(shoppers.seen[lane, _wanted(shoppers, lane, shoppers.n_seen[lane], 0.0, catalogue, rates)])
    if uniform(shoppers, lane) < rates.accessory_share:
        n_accessories = catalogue.accessory.shape[1]
        rank = _geometric_rank(shoppers, lane, rates.rank_decay, n_accessories)
        accessory = int(catalogue.accessory[catalogue.cluster[item], rank])
        on_sale = catalogue.appears[accessory] <= shoppers.start[lane]
        if on_sale and position_of(shoppers, lane, accessory) < 0:
            item = accessory
    return item


@compiled
def _wanted(shoppers: Shoppers, lane: int, count: int, forgetting: float, catalogue: Catalogue, rates: Rates) -> int:
    """Position, among the first `count` seen, of the item wanted most: a logit choice by intent, price and visits."""
    best, best_utility = 0, -np.inf
    for position in range(count):
        item = shoppers.seen[lane, position]
        utility = catalogue.appeal[item] + rates.revisit_pull * np.log(shoppers.visits[lane, position])
        utility -= rates.level_pull * abs(catalogue.level[item] - shoppers.level[lane])
        utility -= forgetting * (shoppers.n_seen[lane] - 1 - position)
        if catalogue.cluster[item] == shoppers.cluster[lane]:
            utility += rates.cluster_pull
        if shoppers.bought[lane, position]:
            utility -= rates.rebuy_penalty
        # Adding Gumbel noise and taking the best is a draw from the softmax.
        utility -= np.log(-np.log(1.0 - uniform(shoppers, lane)))
        if utility > best_utility:
            best, best_utility = position, utility
    return best


@compiled
def position_of(shoppers: Shoppers, lane: int, item: int) -> int:
    for position in range(shoppers.n_seen[lane] - 1, -1, -1):
        if shoppers.seen[lane, position] == item:
            return position
    return -1


@compiled
def remember(shoppers: Shoppers, lane: int, item: int) -> None:
    """Count a visit and move the item to the end of `seen`."""
    seen, visits, bought = shoppers.seen[lane], shoppers.visits[lane], shoppers.bought[lane]
    position = position_of(shoppers, lane, item)
    n_visits, in_basket = 1, False
    if position < 0:
        position = shoppers.n_seen[lane]
        shoppers.n_seen[lane] += 1
    else:
        n_visits, in_basket = visits[position] + 1, bought[position]
    last = shoppers.n_seen[lane] - 1
    for j in range(position, last):
        seen[j], visits[j], bought[j] = seen[j + 1], visits[j + 1], bought[j + 1]
    seen[last], visits[last], bought[last] = item, n_visits, in_basket
