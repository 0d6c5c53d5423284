"""A model trained on a shop's log, put to work in the shop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ...envs.log import PreparedData
from ...envs.replay_options import NO_KIND
from ...envs.shop.live_config import LiveShopConfig
from ...envs.shop.policies import recommender_scores


def deployed(config: LiveShopConfig, cap: int | None = None) -> LiveShopConfig:
    """The shop once its log is over: the same catalogue, and every item is on sale.

    With a `cap` the window holds whole sessions, as their first events are what the model is told.
    """
    window = config.window if cap is None else config.shop.max_events
    return replace(config, shop=replace(config.shop, new_item_share=0.0), window=window)


def shop_scores(
    model: Any, data: PreparedData, n_items: int, *, unseen_only: bool = False, cap: int | None = None
) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """Observations of the shop, with kinds, to scores [B, N] by the shop's own item numbers.

    `data` numbers items in its own way (`item_id` is the shop's number plus 1), and lacks those that the filters took
    out: these vanish from what the model is told, and like items that training never saw they score -inf. Where nothing
    is left to tell, items score by their training events. With a `cap` the model is told the first so many events of
    the window alone; `unseen_only` leaves out whatever the window holds all the same, as the shop knows what it is.
    """
    train = data.train
    n_known, n_trained = train.n_items, train.n_train_items
    shop_item = np.asarray(train.item_id, dtype=np.int64) - 1
    number = np.full(n_items + 1, n_known, dtype=np.int32)
    number[shop_item] = np.arange(n_known)
    popularity = np.bincount(train.item, minlength=n_known).astype(np.float64)
    of_model = recommender_scores(model, n_known)

    def scores(observations: dict[str, np.ndarray]) -> np.ndarray:
        shown = observations["items"]
        told = _told({"items": number[shown], "kinds": observations["kinds"]}, n_known, cap)
        known = told["items"][:, -1] != n_known
        own = np.repeat(popularity[None], len(shown), axis=0)
        if known.any():
            own[known] = of_model({name: column[known] for name, column in told.items()})
        # Column N takes the padding of the window.
        found = np.full((len(shown), n_items + 1), -np.inf)
        found[:, shop_item[:n_trained]] = own[:, :n_trained]
        if unseen_only:
            np.put_along_axis(found, shown.astype(np.int64), -np.inf, axis=1)
        return found[:, :n_items]

    return scores


def _told(observations: dict[str, np.ndarray], padding: int, cap: int | None) -> dict[str, np.ndarray]:
    """The items that are not padding, or the first `cap` of them, moved to the right of as small a window as holds."""
    items, kinds = observations["items"], observations["kinds"]
    stays = items != padding
    if cap is not None:
        stays &= np.cumsum(stays, axis=1) <= cap
    width = max(1, int(stays.sum(axis=1).max(initial=0)))
    order = np.argsort(stays, axis=1, kind="stable")[:, -width:]
    return {
        "items": np.take_along_axis(np.where(stays, items, np.int32(padding)), order, axis=1),
        "kinds": np.take_along_axis(np.where(stays, kinds, np.uint8(NO_KIND)), order, axis=1),
    }
