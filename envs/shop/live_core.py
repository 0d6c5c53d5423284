"""How shoppers respond to recommendations: the shopper of `shopper.py`, compiled for many lanes.

Every random number is a function of (seed of the session, events so far, what it is for): SplitMix64 used as a counter.
So the session of a number has the same shopper whatever was recommended in the sessions before it, and two policies
that recommend to the same shopper meet the same luck wherever their recommendations are the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..log import CLICK, PURCHASE
from ..replay_options import NO_KIND
from .catalogue import Catalogue
from .shopper import (
    BROWSING,
    BUYING,
    GAMMA,
    GONE,
    LONGEST_PAUSE,
    MIX_1,
    MIX_2,
    SHIFT_1,
    SHIFT_2,
    SHIFT_3,
    Rates,
    Shoppers,
    advance_phase,
    all_bought,
    arrive,
    browse,
    buy,
    compiled,
    normal,
    position_of,
    remember,
    uniform,
)

_START, _ARRIVE, _PERSUADE, _LOOK, _CLICK, _ACT, _PAUSE, _WALK_OUT, _DECIDE, _POLICY = range(10)
"""What a random number is for."""
_N_PURPOSES = 16


class Effects(NamedTuple):
    """The part of `LiveShopConfig` that compiled code reads; the meanings are given there."""

    strength: float
    repeat_fit: float
    attention: float
    delay: float
    delay_decay: float
    clickbait: float
    disappointment: float


class World(NamedTuple):
    """What is the same for all shoppers."""

    catalogue: Catalogue
    rates: Rates
    effects: Effects
    bait: np.ndarray
    """[N] bool."""
    start: np.ndarray
    """[M] int64, moments at which sessions start, nanoseconds since the epoch, all as likely."""


class Lanes(NamedTuple):
    """B sessions under way, beside what `Shoppers` holds of their shoppers."""

    seed: np.ndarray
    """[B] uint64, which shoppers come; the sessions of one seed are numbered from 0."""
    upcoming: np.ndarray
    """[B] int64, number of the lane's next session; of that of any lane in row 0, where they share one queue."""
    session: np.ndarray
    """[B] int64, number of the session, -1 before the first."""
    key: np.ndarray
    """[B] uint64, seed of the session."""
    time: np.ndarray
    """[B] int64, nanoseconds since the epoch, the last event."""
    buyer: np.ndarray
    """[B] bool, whether the shopper came to buy."""
    persuasion: np.ndarray
    """[B] float64."""
    n_baited: np.ndarray
    """[B] int32, bait clicked outside the intent's cluster."""
    items: np.ndarray
    """[B, W] int32, the last W items, padded on the left with N."""
    kinds: np.ndarray
    """[B, W] uint8, their kinds, padded with NO_KIND."""


def empty_sessions(n_lanes: int, window: int, padding: int) -> Lanes:
    """Lanes before their first session."""
    return Lanes(
        seed=np.zeros(n_lanes, np.uint64),
        upcoming=np.zeros(n_lanes, np.int64),
        session=np.full(n_lanes, -1, np.int64),
        key=np.zeros(n_lanes, np.uint64),
        time=np.zeros(n_lanes, np.int64),
        buyer=np.zeros(n_lanes, np.bool_),
        persuasion=np.zeros(n_lanes),
        n_baited=np.zeros(n_lanes, np.int32),
        items=np.full((n_lanes, window), padding, np.int32),
        kinds=np.full((n_lanes, window), NO_KIND, np.uint8),
    )


@compiled
def begin(world: World, shoppers: Shoppers, lanes: Lanes, which: np.ndarray, queue: bool, stride: int) -> None:
    """The lanes `which` [n] take a session each, in this order, and their shoppers click for the first time.

    In a `queue` a lane takes the next session of all; otherwise its own next one, and the one after is `stride` on.
    """
    catalogue, rates = world.catalogue, world.rates
    for row in range(len(which)):
        lane = int(which[row])
        taken_from = 0 if queue else lane
        number = lanes.upcoming[taken_from]
        lanes.upcoming[taken_from] += stride
        lanes.session[lane] = number
        lanes.key[lane] = _mixed(_mixed(lanes.seed[lane]) + np.uint64(number) * GAMMA)
        # Numbers are drawn by the count of events, which is still that of the shopper who has left.
        shoppers.n_events[lane] = 0
        _draw_for(_START, shoppers, lanes, lane)
        start = world.start[int(uniform(shoppers, lane) * len(world.start))]
        _draw_for(_ARRIVE, shoppers, lanes, lane)
        arrive(shoppers, lane, shoppers.stream[lane], start, catalogue, rates)
        lanes.time[lane], lanes.buyer[lane] = start, shoppers.buyer[lane]
        lanes.persuasion[lane], lanes.n_baited[lane] = 0.0, 0
        lanes.items[lane, :] = len(catalogue.popularity)
        lanes.kinds[lane, :] = NO_KIND
        _draw_for(_ACT, shoppers, lanes, lane)
        item = browse(shoppers, lane, catalogue, rates)
        shoppers.n_events[lane] = 1
        lanes.items[lane, -1], lanes.kinds[lane, -1] = item, CLICK
        _decide(world, shoppers, lanes, lane)


@compiled
def respond(
    world: World,
    shoppers: Shoppers,
    lanes: Lanes,
    which: np.ndarray,
    recommended: np.ndarray,
    kind: np.ndarray,
    followed: np.ndarray,
) -> None:
    """The shoppers of the lanes `which` [n] do something, each shown the items `recommended` [B, K].

    Writes `kind` [B] (of what was done; its item is the newest of the window), `followed` [B] (whether it was a click
    on a recommendation) and, in `Shoppers.phase`, GONE where that was the session's last event.
    """
    catalogue, rates = world.catalogue, world.rates
    for row in range(len(which)):
        lane = int(which[row])
        was_buying = lanes.kinds[lane, -1] == PURCHASE
        item = -1
        lanes.persuasion[lane] *= world.effects.delay_decay
        if shoppers.phase[lane] != BUYING:
            item = _look(world, shoppers, lanes, lane, recommended)
        followed[lane] = item >= 0
        _draw_for(_ACT, shoppers, lanes, lane)
        kind[lane] = CLICK
        if item >= 0:
            _click(world, shoppers, lanes, lane, item)
        elif shoppers.phase[lane] == BUYING:
            kind[lane], item = PURCHASE, buy(shoppers, lane, catalogue, rates)
        else:
            item = browse(shoppers, lane, catalogue, rates)
        pause = rates.basket_gap
        if not (was_buying and kind[lane] == PURCHASE):
            _draw_for(_PAUSE, shoppers, lanes, lane)
            pause = rates.dwell / shoppers.urgency[lane] * np.exp(rates.dwell_spread * normal(shoppers, lane))
        lanes.time[lane] += max(1, int(min(pause, LONGEST_PAUSE) * 1e3)) * 1_000_000
        shoppers.n_events[lane] += 1
        for place in range(lanes.items.shape[1] - 1):
            lanes.items[lane, place] = lanes.items[lane, place + 1]
            lanes.kinds[lane, place] = lanes.kinds[lane, place + 1]
        lanes.items[lane, -1], lanes.kinds[lane, -1] = item, kind[lane]
        # Who follows a recommendation looks on; only a session that has become too long is cut.
        if not followed[lane] or shoppers.n_events[lane] >= rates.max_events - 1:
            _decide(world, shoppers, lanes, lane)


@compiled
def policy_uniforms(shoppers: Shoppers, lanes: Lanes, out: np.ndarray) -> None:
    """A uniform number for each lane `out` [B], for the draws of a policy: it too meets the same luck again."""
    for lane in range(len(out)):
        _draw_for(_POLICY, shoppers, lanes, lane)
        out[lane] = uniform(shoppers, lane)


@compiled
def _mixed(word: np.uint64) -> np.uint64:
    word = (word ^ (word >> SHIFT_1)) * MIX_1
    word = (word ^ (word >> SHIFT_2)) * MIX_2
    return word ^ (word >> SHIFT_3)


@compiled
def _draw_for(purpose: int, shoppers: Shoppers, lanes: Lanes, lane: int) -> None:
    """From here on the lane draws the numbers for this purpose at this event."""
    counter = np.uint64(shoppers.n_events[lane] * _N_PURPOSES + purpose + 1)
    shoppers.stream[lane] = _mixed(lanes.key[lane] + counter * GAMMA)


@compiled
def _look(world: World, shoppers: Shoppers, lanes: Lanes, lane: int, recommended: np.ndarray) -> int:
    """The recommended item that the shopper clicks, from the top of the slate down, or -1; what fits persuades."""
    catalogue, effects = world.catalogue, world.effects
    _draw_for(_LOOK, shoppers, lanes, lane)
    clicked, n_fitting = -1, 0
    for position in range(recommended.shape[1]):
        looks, clicks = uniform(shoppers, lane), uniform(shoppers, lane)
        if position > 0 and looks >= effects.attention:
            break
        item = int(recommended[lane, position])
        if catalogue.appears[item] > shoppers.start[lane] or _repeats(recommended, lane, position):
            continue
        chance = effects.clickbait if world.bait[item] else 0.0
        if catalogue.cluster[item] == shoppers.cluster[lane]:
            n_fitting += 1
            distance = abs(catalogue.level[item] - shoppers.level[lane])
            chance = max(chance, effects.strength * np.exp(-world.rates.click_level_pull * distance))
        if chance > 0.0 and position_of(shoppers, lane, item) >= 0:
            chance *= effects.repeat_fit
        if clicks < chance:
            clicked = item
            break
    lanes.persuasion[lane] += n_fitting
    return clicked


@compiled
def _repeats(recommended: np.ndarray, lane: int, position: int) -> bool:
    for earlier in range(position):
        if recommended[lane, earlier] == recommended[lane, position]:
            return True
    return False


@compiled
def _click(world: World, shoppers: Shoppers, lanes: Lanes, lane: int, item: int) -> None:
    """A click on a recommendation; outside the intent's cluster it disappoints, and may become the new intent."""
    catalogue = world.catalogue
    if catalogue.cluster[item] != shoppers.cluster[lane]:
        lanes.n_baited[lane] += 1
        _draw_for(_CLICK, shoppers, lanes, lane)
        if uniform(shoppers, lane) < world.rates.drift:
            shoppers.cluster[lane] = catalogue.cluster[item]
            shoppers.level[lane] = catalogue.level[item]
    remember(shoppers, lane, item)


@compiled
def _decide(world: World, shoppers: Shoppers, lanes: Lanes, lane: int) -> None:
    """Whether to look on, to buy, to put more into the basket, or to leave."""
    effects, rates = world.effects, world.rates
    if shoppers.phase[lane] == BROWSING and lanes.n_baited[lane] > 0:
        _draw_for(_WALK_OUT, shoppers, lanes, lane)
        if uniform(shoppers, lane) >= (1.0 - effects.disappointment) ** lanes.n_baited[lane]:
            shoppers.phase[lane] = GONE
            return
    if effects.delay > 0.0:
        _draw_for(_PERSUADE, shoppers, lanes, lane)
        persuaded = uniform(shoppers, lane) < 1.0 - np.exp(-effects.delay * lanes.persuasion[lane])
        shoppers.buyer[lane] = lanes.buyer[lane] or persuaded
        is_cut = shoppers.n_events[lane] >= rates.max_events
        if persuaded and shoppers.phase[lane] == BUYING and not is_cut and not all_bought(shoppers, lane):
            return
    _draw_for(_DECIDE, shoppers, lanes, lane)
    advance_phase(shoppers, lane, rates)
