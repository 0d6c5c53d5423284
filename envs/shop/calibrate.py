"""Calibration: the knobs of a shop such that its logs look like a recorded one.

A knob that is a statistic of the log is read off. The others are fitted by the method of simulated moments (McFadden
1989), a figure for each: logs are simulated with the same seeds whatever the knobs are, until the figures are those of
the target, shares compared on the arcsine scale and amounts on the logarithmic one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError
from ..log import SessionLog
from .config import ShopConfig
from .describe import describe
from .shop import Shop
from .target import GROUPS, OF_THE_SIZE, Recorded, Target, recorded_part, simulated_sessions, target_of

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[int, int, str], None]

_DEFAULTS = ShopConfig()

_ROUNDS, _REFRESH = 9, 3
"""Looks at the figures, and after how many of them their slopes are measured anew."""
_STEP, _LONGEST = 0.04, 0.25
"""Of a knob's range: how far it is moved to measure a slope, and at once at most."""
_FEWEST_SESSIONS, _MOST_LOGS = 40_000, 8
"""Logs of a small source are simulated several times, until they have so many sessions together."""
_BUYERS = 5_000
"""Sessions simulated for figures of baskets alone."""
_AMOUNTS = ("length_mean", "basket_mean", "gap_median", "gap_spread", "visits_mean")
"""Figures that are not shares."""


@dataclass(frozen=True)
class _Knob:
    """A knob to be fitted, and the range that is searched."""

    name: str
    figure: str
    low: float
    high: float
    log: bool = False
    """Whether the range is searched by ratios."""

    def value(self, place: float) -> float:
        """At a place from 0 to 1 in the range."""
        if self.log:
            return self.low * (self.high / self.low) ** place
        return self.low + (self.high - self.low) * place

    def place(self, value: float) -> float:
        if self.log:
            return float(np.log(max(value, self.low) / self.low) / np.log(self.high / self.low))
        return (value - self.low) / (self.high - self.low)


_KNOBS = (
    _Knob("decide_rate", "length_mean", 0.005, 1, log=True),
    _Knob("urgency_spread", "length_tail", 0, 3),
    _Knob("reload", "repeat_last", 0, 1),
    _Knob("back", "repeat_earlier", 0, 1),
    _Knob("follow", "known_transition", 0, 1),
    _Knob("zipf_exponent", "top_tenth_share", 0, 3),
    _Knob("zipf_shift", "top_item_share", 0.1, 1_000, log=True),
    _Knob("new_item_share", "new_item_share", 0, 1),
    _Knob("basket_growth", "basket_mean", 0, 1),
    _Knob("rebuy_penalty", "basket_duplicate", 0, 12),
    _Knob("accessory_share", "purchase_repeat", 0, 1),
    _Knob("dwell", "gap_median", 1, 3_600, log=True),
    _Knob("dwell_spread", "gap_spread", 0.05, 4),
    _Knob("users", "visits_mean", 1, 20, log=True),
    _Knob("visit_spread", "visits_tail", 0, 3),
    _Knob("taste_persistence", "visit_overlap", 0, 1),
)
"""Those of `_config` that stand for more than one field: back and follow are shares of what is left to them,
accessory_share goes on into impulse_share, and users is a multiple of those who came."""

_OF_USERS = ("users", "visit_spread", "taste_persistence")

_READ_OFF: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "n_items": ("items", lambda found: max(2, int(found))),
    "max_events": ("length_max", lambda found: int(np.clip(found, 2, 10_000))),
    "buyer_share": ("buyer_share", float),
    "linger": ("clicks_after_purchase", lambda found: found / (1 + found)),
    "basket_gap": ("basket_gap", lambda found: float(np.clip(found, 0.001, 3_600))),
    "start": ("start", str),
    "days": ("days", lambda found: float(np.clip(found, 0.01, 3_650))),
    "daily_swing": ("daily_swing", lambda found: min(float(found), 1.0)),
    "peak_hour": ("peak_hour", float),
    "weekend_lift": ("weekend_lift", lambda found: float(np.clip(found, 0.001, 1_000))),
}


@dataclass(frozen=True)
class Calibration:
    """A fitted shop, and how near it comes."""

    config: ShopConfig
    target: dict[str, float]
    """By figure, in the order of `Target`."""
    achieved: dict[str, float]
    """The same figures of simulated logs, of other seeds than those of the fit."""
    source: dict[str, str]
    """By figure: the target that it was taken from."""
    knobs: dict[str, str]
    """By figure: which knobs it sets, where they are read off it, or fits, where they are searched; "" for a check."""
    left: tuple[str, ...]
    """Knobs that kept their value, since no figure says what it should be; of back and follow this is the share of the
    clicks that reload, and then back, leave to them."""
    sessions: int
    """Sessions in each of the simulated logs."""

    def frame(self) -> pd.DataFrame:
        """Columns ``figure, target, achieved, knobs, source``, a row a figure."""
        import pandas as pd

        names = list(self.target)
        columns = [[of[name] for name in names] for of in (self.target, self.achieved, self.knobs, self.source)]
        return pd.DataFrame(
            dict(zip(("figure", "target", "achieved", "knobs", "source"), [names, *columns], strict=True))
        )


def calibrate(
    sources: SessionLog | Target | Sequence[SessionLog | Target],
    *,
    config: ShopConfig = _DEFAULTS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Calibration:
    """Fit a shop to a log, to published figures, or to several of either, each for what the ones before it leave open.

    Figures that mean little apart are taken from one source (`target.GROUPS`), and those that depend on how much was
    recorded only from the source that gives the number of sessions. Knobs that no figure tells of keep their value in
    `config`, where the search starts too. `progress` is called with the logs simulated so far, the most that can be
    needed, and what is going on. The same sources, config and seed give the same result, bit for bit.

    Raises `InputError` for no source, a log without events, sources none of which says how many sessions there are, a
    hand-made target out of the range of its knob, and a negative seed.
    """
    if seed < 0:
        raise InputError(f"calibrate: seed must be 0 or more, found {seed}; correct it")
    given = [sources] if isinstance(sources, (SessionLog, Target)) else list(sources)
    targets = [target_of(one, seed=seed) if isinstance(one, SessionLog) else one for one in given]
    chosen = _choose(targets)
    size = chosen["sessions"]
    assert size.sessions is not None
    mean_length = chosen["length_mean"].length_mean if "length_mean" in chosen else None
    n_sessions = simulated_sessions(size.sessions, mean_length or 10.0)
    fraction = n_sessions / size.sessions

    wanted = {name: getattr(target, name) for name, target in chosen.items()}
    base = _read_off(config, wanted)
    knobs = [knob for knob in _KNOBS if knob.figure in wanted and ("users" in wanted or knob.name not in _OF_USERS)]
    n_logs = int(np.clip(np.ceil(_FEWEST_SESSIONS / n_sessions), 1, _MOST_LOGS))
    seeds = np.random.default_rng(seed).integers(2**31, size=(2, n_logs)).tolist()
    most = _ROUNDS + -(-_ROUNDS // _REFRESH) * len(knobs) + 1 if knobs else 1
    done = 0

    def measure(places: np.ndarray, seeds: list[int], text: str) -> dict[str, float]:
        nonlocal done
        fitted = _config(base, config, knobs, places, wanted)
        figures = _figures(_cut(fitted, fraction), chosen, n_sessions, seeds)
        done += 1
        if progress is not None:
            progress(done, most, text)
        return figures

    # A figure answers best to a knob that is not at an end of its range.
    first = np.clip(_places(knobs, config), 0.05, 0.95)
    places = _fit(knobs, first, wanted, lambda places: measure(places, seeds[0], "fitting"))
    fitted = _config(base, config, knobs, places, wanted)
    achieved = measure(places, seeds[1], "measuring")
    touched = _touched(knobs, wanted)
    shown = [name for name in wanted if name in achieved]
    return Calibration(
        config=fitted,
        target={name: float(wanted[name]) for name in shown},
        achieved={name: achieved[name] for name in shown},
        source={name: chosen[name].source for name in shown},
        knobs={name: _said(name, touched) for name in shown},
        left=tuple(field.name for field in fields(ShopConfig) if field.name not in touched),
        sessions=n_sessions,
    )


def _choose(targets: Sequence[Target]) -> dict[str, Target]:
    """By figure, the target that it is taken from."""
    sized = next((target for target in targets if target.sessions is not None), None)
    if sized is None:
        raise InputError(
            f"calibrate: expected a source that says how many sessions there are, found none among {len(targets)}; "
            "give a log with clicks, or a Target with sessions"
        )
    chosen = {}
    for group in GROUPS:
        candidates = [sized] if set(group) & set(OF_THE_SIZE) else targets
        for target in candidates:
            known = [name for name in group if getattr(target, name) is not None]
            if known:
                chosen.update(dict.fromkeys(known, target))
                break
    return chosen


def _read_off(config: ShopConfig, wanted: Mapping[str, Any]) -> ShopConfig:
    found = {name: read(wanted[figure]) for name, (figure, read) in _READ_OFF.items() if figure in wanted}
    return replace(config, **found)


def _touched(knobs: Sequence[_Knob], wanted: Mapping[str, Any]) -> dict[str, str]:
    """The figure that each field of the configuration follows, where one does."""
    read_off = {name: figure for name, (figure, _) in _READ_OFF.items() if figure in wanted}
    fitted = {knob.name: knob.figure for knob in knobs}
    if "accessory_share" in fitted:
        fitted["impulse_share"] = fitted["accessory_share"]
    return read_off | fitted


def _said(figure: str, touched: Mapping[str, str]) -> str:
    names = [name for name, of in touched.items() if of == figure]
    verb = "sets" if any(name in _READ_OFF for name in names) else "fits"
    return f"{verb} {', '.join(names)}" if names else ""


def _fit(
    knobs: Sequence[_Knob],
    first: np.ndarray,
    wanted: Mapping[str, float],
    measure: Callable[[np.ndarray], dict[str, float]],
) -> np.ndarray:
    """Places of the knobs [K] where each figure is met, or its knob is at an end of its range and too short.

    Newton's method for as many figures as knobs, slopes by finite differences and kept up by Broyden's updates.
    """
    goal = np.array([_scale(knob.figure, wanted[knob.figure]) for knob in knobs])

    def distance(places: np.ndarray) -> np.ndarray:
        figures = measure(places)
        found = np.array([_scale(knob.figure, figures.get(knob.figure, np.nan)) for knob in knobs])
        # A figure that a simulated log lacks, such as the basket of a shop where nobody buys, pulls at nothing.
        return np.nan_to_num(found - goal)

    slope = np.zeros((len(knobs), len(knobs)))
    places = best = before = first
    away_before, shortest = np.zeros(len(knobs)), np.inf
    for turn in range(_ROUNDS if knobs else 0):
        away = distance(places)
        if turn % _REFRESH == 0:
            slope = _slopes(distance, places, away)
        else:
            moved = places - before
            slope += np.outer(away - away_before - slope @ moved, moved) / (moved @ moved)
        step, stuck = _newton_step(slope, places, away)
        length = np.linalg.norm(away[~stuck])
        if length < shortest:
            best, shortest = places, length
        before, away_before = places, away
        places = np.clip(places + np.clip(step, -_LONGEST, _LONGEST), 0, 1)
        if np.array_equal(places, before):
            break
    return best


def _slopes(distance: Callable[[np.ndarray], np.ndarray], places: np.ndarray, away: np.ndarray) -> np.ndarray:
    """[K, K]: of each figure, along each knob."""
    columns = []
    for position in range(len(places)):
        step = np.zeros(len(places))
        step[position] = _STEP if places[position] + _STEP <= 1 else -_STEP
        columns.append((distance(places + step) - away) / step[position])
    return np.stack(columns, axis=1)


def _newton_step(slope: np.ndarray, places: np.ndarray, away: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The step [K], and the knobs [K] that are at an end of their range and would go on: their figures are given up."""
    stuck = np.zeros(len(places), dtype=bool)
    while True:
        step, free = np.zeros(len(places)), np.flatnonzero(~stuck)
        # A direction that hardly any figure shows is left alone.
        step[free] = np.linalg.lstsq(slope[np.ix_(free, free)], -away[free], rcond=0.02)[0]
        outward = ((places <= 0) & (step < 0)) | ((places >= 1) & (step > 0))
        if not outward.any():
            return step, stuck
        stuck |= outward


def _scale(figure: str, value: float) -> float:
    """A scale on which the noise of a figure hardly depends on its size."""
    if figure in _AMOUNTS:
        return float(np.log(max(value, 1e-6)))
    return float(2 * np.arcsin(np.sqrt(np.clip(value, 0, 1))))


def _places(knobs: Sequence[_Knob], config: ShopConfig) -> np.ndarray:
    values = {field.name: getattr(config, field.name) for field in fields(ShopConfig)}
    values["back"] = config.back / max(1 - config.reload, 1e-9)
    values["follow"] = config.follow / max(1 - config.reload - config.back, 1e-9)
    values["accessory_share"] = config.impulse_share + (1 - config.impulse_share) * config.accessory_share
    values["users"] = 1.5
    # Tastes show with about the square of the persistence, so that near 0 their slope is lost in noise.
    values["taste_persistence"] = config.taste_persistence or 0.5
    return np.array([knob.place(values[knob.name]) for knob in knobs])


def _config(
    base: ShopConfig, given: ShopConfig, knobs: Sequence[_Knob], places: np.ndarray, wanted: Mapping[str, Any]
) -> ShopConfig:
    """`base` with the knobs at these places."""
    found: dict[str, Any] = {knob.name: knob.value(float(place)) for knob, place in zip(knobs, places, strict=True)}
    # Shares of what is left, whether fitted or given, add up to at most 1 whatever the search does.
    left_by_reload = 1 - given.reload
    back = found.get("back", given.back / left_by_reload if left_by_reload else 0.0)
    left_by_both = left_by_reload - given.back
    follow = found.get("follow", given.follow / left_by_both if left_by_both else 0.0)
    reload = found.get("reload", given.reload)
    found |= {"reload": reload, "back": (1 - reload) * back, "follow": (1 - reload) * (1 - back) * follow}
    if "accessory_share" in found:
        unseen = found["accessory_share"]
        accessory = min(unseen, given.accessory_share)
        found["accessory_share"] = accessory
        found["impulse_share"] = (unseen - accessory) / (1 - accessory) if accessory < 1 else 0.0
    if "users" in found:
        found["users"] = round(found["users"] * wanted["users"])
    return replace(base, **found)


def _cut(config: ShopConfig, fraction: float) -> ShopConfig:
    """The shop with as many of its shoppers as a part of its sessions would be of."""
    return replace(config, users=max(1, round(config.users * fraction))) if config.users else config


def _figures(
    config: ShopConfig, chosen: Mapping[str, Target], n_sessions: int, seeds: Sequence[int]
) -> dict[str, float]:
    """The chosen figures, means over a shop and log of each seed, of what each target's record would hold."""
    views: set[tuple[Recorded, int]] = {(target.recorded, target.shortest) for target in chosen.values()}
    found: dict[str, list[float]] = {name: [] for name in chosen}
    # What buyers put into baskets does not depend on how many buyers there are, and few of them would say little.
    buyers, n_buyers = replace(config, buyer_share=1.0), min(n_sessions, _BUYERS)
    described: dict[tuple[Recorded, int], dict[str, float]] = {}
    for seed in seeds:
        log = Shop(config, seed).log(n_sessions, seed)
        for recorded, shortest in views:
            seen = Shop(buyers, seed).log(n_buyers, seed) if recorded == "purchases" else log
            described[recorded, shortest] = describe(recorded_part(seen, recorded, shortest))
        for name, target in chosen.items():
            found[name].append(described[target.recorded, target.shortest].get(name, np.nan))
    means = {name: float(np.nanmean(values)) for name, values in found.items() if not np.isnan(values).all()}
    return {name: value for name, value in means.items() if name not in ("sessions", "items", "users")}
