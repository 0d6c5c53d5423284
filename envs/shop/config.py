"""`ShopConfig`, every knob of the simulated shop. Nothing heavy is imported here."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from numbers import Integral, Real
from pathlib import Path

from ...errors import InputError
from ..folders import write_json

_INFINITY = float("inf")
_SHARE = (0.0, 1.0)
_AMOUNT = (0.0, _INFINITY)


@dataclass(frozen=True)
class ShopConfig:
    """The knobs of the shop. Raises `InputError` for a value outside its range.

    Sources: "published" is the RecSys Challenge 2015 buyer month as the IRN paper counts it (9,167 items, 9.5 events a
    session); "clicks" and "buys" are measured on public samples of the same challenge; "set" is fitted so that
    `describe` of a log comes out near those, or chosen so that the log can be learned from and is not trivial.
    """

    n_items: int = 1_000
    """Items in the catalogue (published: 9,167)."""
    items_per_cluster: int = 25
    """Items that serve one purpose; there are n_items // items_per_cluster clusters, at least one (set)."""
    n_levels: int = 5
    """Price levels, 0 the cheapest (set)."""
    zipf_exponent: float = 1.1
    """Popularity of the item of rank r is proportional to (r + zipf_shift)^-zipf_exponent (clicks: its best tenth of
    the items gets 59 % of them)."""
    zipf_shift: float = 5.0
    """Ranks; flattens the head of the popularity curve (clicks: the first item gets 1.1 % of them)."""
    new_item_share: float = 0.15
    """Share of the items that come on sale during the log, at uniform times (set)."""
    appeal_spread: float = 0.6
    """Standard deviation over items of the log-odds of being bought once seen (set)."""
    n_successors: int = 5
    """Items of its own cluster that an item leads to, at most items_per_cluster - 1 (set)."""
    n_accessories: int = 3
    """Items that complement a cluster, at most items_per_cluster (set)."""
    rank_decay: float = 0.5
    """The next successor, or accessory, in its list is this much less likely than the one before it (set)."""

    start: str = "2014-09-01"
    """First day, ISO date, UTC (the challenge's last month; a Monday)."""
    days: float = 30.0
    """Days over which sessions start (published: a month)."""
    daily_swing: float = 0.9
    """Arrivals vary by 1 + daily_swing * cos over the day (buys: 0.04 at night to 2.0 times the mean)."""
    peak_hour: float = 14.0
    """Hour of the day, UTC, of most arrivals (buys: a plateau from 7 to 19)."""
    weekend_lift: float = 1.8
    """Arrivals on a day of the weekend, as a multiple of those on a working day (buys: 1.85)."""

    buyer_share: float = 1.0
    """Share of the sessions that end with a purchase (1: the buyer month; 0.055 in the whole challenge)."""
    decide_rate: float = 0.21
    """Chance after each click that a shopper of urgency 1 stops looking (set: 9.5 events a session)."""
    urgency_spread: float = 0.7
    """Standard deviation over shoppers of log urgency, whose mean is 1: the tail of session lengths (set)."""
    commitment: float = 0.1
    """Relative rise of the urgency each time the shopper goes back to an item (set)."""
    max_events: int = 200
    """Events at which a session is cut; a buyer still buys (set)."""

    reload: float = 0.135
    """Chance that a click stays with the last item (set: 15 % of next clicks, with those met by chance)."""
    back: float = 0.21
    """Chance, where there is one, that a click goes back to an earlier item (set: 27 % of next clicks)."""
    follow: float = 0.36
    """Chance that a click follows the last item's transitions; what is left is a fresh item of the intent (set)."""
    detour: float = 0.2
    """Share of the followed transitions that lead into the related cluster (set)."""
    wander: float = 0.3
    """Share of the fresh items that have nothing to do with the intent (set)."""
    drift: float = 0.2
    """Chance that a click outside the intent's cluster becomes the new intent (set)."""
    click_level_pull: float = 0.7
    """Log-odds against an item for each level between its price and the shopper's, fresh or as a transition (set)."""
    forgetting: float = 0.3
    """Log-odds against going back to an item for each other item seen since (set)."""

    revisit_pull: float = 1.0
    """Log-odds of wanting an item for each unit of log(times looked at) (set)."""
    cluster_pull: float = 2.0
    """Log-odds of wanting an item of the intent's cluster rather than another (set)."""
    level_pull: float = 0.8
    """Log-odds against wanting an item for each level between its price and the shopper's (set)."""
    rebuy_penalty: float = 3.7
    """Log-odds against buying an item of the basket again (buys: 8.6 % of the rows are such)."""
    accessory_share: float = 0.22
    """Chance that, instead of the wanted item, an accessory not looked at before is bought (set)."""
    impulse_share: float = 0.0
    """Chance that an item is bought without a look at it: a fresh one of the intent (set; for logs that do not record
    what was looked at)."""
    basket_growth: float = 0.73
    """Chance after each purchase of another; a basket also ends when everything seen is in it (buys: 2.6 rows)."""
    linger: float = 0.15
    """Chance of another click after the basket, and after each such click (set)."""

    dwell: float = 31.0
    """Median seconds before a click of a shopper of urgency 1, at most an hour (set: 55 over all clicks, most of which
    are made by the less urgent)."""
    dwell_spread: float = 1.2
    """Standard deviation of the log of those seconds (clicks: quartiles 24 and 127 s)."""
    basket_gap: float = 0.01
    """Seconds between the purchases of a basket (buys: median span of a basket 29 ms)."""

    users: int = 0
    """Shoppers who return; each session is a visit of one of them. 0: every session is a stranger's."""
    visit_spread: float = 0.7
    """Standard deviation over shoppers of the log of how often they come (set; 0.3 to 0.5 in public samples of news and
    shop users, which leave out the rare ones)."""
    taste_persistence: float = 0.0
    """Chance that a visit starts with the shopper's taste, an intent kept between visits; otherwise with an intent
    drawn afresh, as a stranger's (set). 0: earlier visits say nothing of the next."""
    taste_drift: float = 0.2
    """Chance that a fresh intent becomes the taste; 0: tastes never change, 1: the taste is the last visit's intent
    (set)."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name in _RANGES:
                _check_range(field.name, getattr(self, field.name), whole=field.type == "int")
        total = self.reload + self.follow + self.back
        if total > 1:
            raise InputError(
                f"ShopConfig: reload + follow + back must be at most 1, found {total:g}; lower one of them"
            )
        try:
            year = datetime.fromisoformat(self.start).year
        except (TypeError, ValueError):
            year = 0
        if not 1970 < year <= 2200:
            raise InputError(
                "ShopConfig: start must be an ISO date such as 2014-09-01, from 1971 to 2200, "
                f"found {self.start!r}; correct it"
            )
        if self.taste_persistence and not self.users:
            raise InputError(
                f"ShopConfig: taste_persistence {self.taste_persistence:g} needs shoppers who return, found users 0; "
                "give users"
            )

    @property
    def n_clusters(self) -> int:
        return max(1, self.n_items // self.items_per_cluster)


_RANGES: dict[str, tuple[float, float]] = {
    "n_items": (2, 100_000_000),
    "items_per_cluster": (2, 1_000),
    "n_levels": (1, 1_000),
    "zipf_exponent": (0, 10),
    "zipf_shift": _AMOUNT,
    "new_item_share": _SHARE,
    "appeal_spread": (0, 100),
    "n_successors": (1, 1_000),
    "n_accessories": (1, 1_000),
    "rank_decay": (0, 0.99),
    "days": (0.01, 3_650),
    "daily_swing": _SHARE,
    "peak_hour": (0, 24),
    "weekend_lift": (0.001, 1_000),
    "buyer_share": _SHARE,
    "decide_rate": _SHARE,
    "urgency_spread": (0, 10),
    "commitment": (0, 100),
    "max_events": (2, 10_000),
    "reload": _SHARE,
    "back": _SHARE,
    "follow": _SHARE,
    "detour": _SHARE,
    "wander": _SHARE,
    "drift": _SHARE,
    "click_level_pull": (0, 100),
    "forgetting": (0, 100),
    "revisit_pull": (0, 100),
    "cluster_pull": (0, 100),
    "level_pull": (0, 100),
    "rebuy_penalty": (0, 100),
    "accessory_share": _SHARE,
    "impulse_share": _SHARE,
    "basket_growth": _SHARE,
    "linger": _SHARE,
    "dwell": (0.001, 3_600),
    "dwell_spread": (0, 10),
    "basket_gap": (0.001, 3_600),
    "users": (0, 100_000_000),
    "visit_spread": (0, 10),
    "taste_persistence": _SHARE,
    "taste_drift": _SHARE,
}


def save_config(config: ShopConfig, file: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write the knobs as JSON, whole or not at all. Raises `InputError` as `check_config_file` does."""
    target = check_config_file(file, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    write_json(temporary, asdict(config))
    os.replace(temporary, target)


def check_config_file(file: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """`file` as a path to write. Raises `InputError` for a folder, or where it exists and `overwrite` is off."""
    target = Path(file)
    if target.is_dir():
        raise InputError(f"{target}: expected a file to write the knobs to, found a folder; name a file in it")
    if target.exists() and not overwrite:
        raise InputError(f"{target}: already exists and is not overwritten; choose another --out or pass --overwrite")
    return target


def load_config(file: str | os.PathLike[str]) -> ShopConfig:
    """What `save_config` wrote; a knob that the file does not name has its default.

    Raises `InputError` for a file that cannot be read, an unknown knob, or a value out of its range.
    """
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, RecursionError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{file}: cannot be read ({reason}); make one with `sessiongym calibrate`") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{file}:{error.lineno}: not valid JSON ({error.msg}); correct it") from None
    if not isinstance(found, dict):
        raise InputError(f"{file}: expected an object of knobs, found {type(found).__name__}; correct it")
    unknown = found.keys() - {field.name for field in fields(ShopConfig)}
    if unknown:
        raise InputError(f"{file}: {min(unknown)!r} is no knob of the shop; correct or remove it")
    try:
        return ShopConfig(**found)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _check_range(name: str, value: float, whole: bool) -> None:
    low, high = _RANGES[name]
    kind = "a whole number" if whole else "a number"
    allowed = f"{kind} from {low:.15g} to {high:.15g}" if high < _INFINITY else f"{kind}, at least {low:.15g}"
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not (is_number and low <= value <= high and value < _INFINITY):
        raise InputError(f"ShopConfig: {name} must be {allowed}, found {value!r}; correct it")
