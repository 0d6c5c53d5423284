"""The log that each shop leaves under a known policy, split as any other, and its decisions with their propensities."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...envs.folders import new_folder
from ...envs.log import PreparedData
from ...envs.observation import session_observations
from ...envs.shop.live import live_shop
from ...envs.shop.live_config import LiveShopConfig
from ...envs.shop.logged import LoggedPolicyData, collect
from ...envs.shop.policies import SoftmaxPolicy
from ...envs.sources.options import SHOP_OPTIONS
from ...envs.sources.pipeline import EventColumns, build
from ..off_policy import LoggedDecisions

LOGGING_EPSILON = 0.1
"""Share of the logged recommendations that are any item; the others are drawn by popularity."""

OPTIONS = replace(SHOP_OPTIONS, test_days=6.0, unseen="keep")
"""A fifth of the days for testing; what comes on sale after training stays in the test split, where it is a miss."""


@dataclass(frozen=True, eq=False)
class ShopLog:
    """What a shop logged under `logging_policy`."""

    data: PreparedData
    decisions: LoggedDecisions
    """E decisions of the test sessions."""
    action: np.ndarray
    """[E], items by their number in the shop."""
    observations: dict[str, np.ndarray]
    """``items`` [E, W] and ``kinds`` [E, W], as the shop shows them."""


def logging_policy(config: LiveShopConfig) -> SoftmaxPolicy:
    """Draws items by their popularity, and any item with LOGGING_EPSILON."""
    popularity = np.log(live_shop(config.shop, config.shop_seed).catalogue.popularity)[None]
    return SoftmaxPolicy(
        lambda observations: np.repeat(popularity, len(observations["items"]), axis=0), 1.0, LOGGING_EPSILON
    )


def shop_log(config: LiveShopConfig, n_sessions: int, seed: int, logs: Path) -> ShopLog:
    """The log of a shop in a folder of `logs`, served and prepared first where there is none; whole or not at all.

    Raises `InputError` where so few sessions leave a split empty.
    """
    made_of = {
        "name": "shop served by a policy",
        "live_shop": asdict(config),
        "sessions": n_sessions,
        "seed": seed,
        "logging": {"by": "popularity", "epsilon": LOGGING_EPSILON},
    }
    folder = logs / digest([made_of, asdict(OPTIONS)])
    if not folder.exists():
        _, served = collect(logging_policy(config), config, n_sessions, seed)
        data = _prepared(served, made_of)
        with new_folder(folder) as work:
            data.save(work / "data")
            np.savez(work / "decisions.npz", allow_pickle=False, **_test_decisions(served, data, config))
    with np.load(folder / "decisions.npz") as found:
        columns = {name: found[name] for name in found.files}
    return ShopLog(
        data=PreparedData.open(folder / "data"),
        decisions=LoggedDecisions(columns["offset"], columns["reward"], columns["propensity"]),
        action=columns["action"],
        observations={name: columns[name] for name in ("items", "kinds")},
    )


def digest(content: Any) -> str:
    """Hex, of JSON values."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=12).hexdigest()


def _prepared(served: LoggedPolicyData, made_of: dict[str, Any]) -> PreparedData:
    log = served.log
    events = EventColumns(
        session=np.repeat(np.arange(log.n_sessions), log.length),
        item=log.item,
        time=log.time,
        kind=log.kind,
        session_id=log.session_id,
        item_id=log.item_id,
        user=None,
    )
    return build(events, OPTIONS, source=made_of, notes=log.notes)


def _test_decisions(served: LoggedPolicyData, data: PreparedData, config: LiveShopConfig) -> dict[str, np.ndarray]:
    """The decisions of the test sessions, as they were served: no filter has been at them."""
    sessions = np.flatnonzero(np.isin(served.log.session_id, data.test.session_id))
    length = np.diff(served.offset)[sessions]
    chosen = np.isin(np.repeat(np.arange(len(served.offset) - 1), np.diff(served.offset)), sessions)
    batch = served.log.select(sessions).batch()
    shown = session_observations(batch, config.window, config.n_items, kinds=True)
    assert isinstance(shown, dict)
    return {
        "offset": np.concatenate([[0], np.cumsum(length)]),
        "action": served.action[chosen],
        "propensity": served.propensity[chosen],
        "reward": served.reward[chosen],
        **shown,
    }
