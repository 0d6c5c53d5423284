"""A simulated log through the same filters and split as recorded ones."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from ..log import PreparedData
from ..sources.options import PrepareOptions
from ..sources.pipeline import EventColumns, Progress, build, silent
from .config import ShopConfig
from .shop import Shop


def prepare_shop(
    n_sessions: int,
    n_items: int,
    options: PrepareOptions,
    progress: Progress = silent,
    *,
    users: int = 0,
    taste_persistence: float = 0.0,
) -> PreparedData:
    """Simulate `n_sessions` sessions in a shop of `n_items` items and prepare them; all draws come from `options.seed`.

    `users` and `taste_persistence` are those of `ShopConfig`. Raises `InputError` for values outside their range,
    fewer users than the sessions need, or options that leave a split empty.
    """
    options.check()
    config = ShopConfig(n_items=n_items, users=users, taste_persistence=taste_persistence)
    log = Shop(config, options.seed).log(n_sessions, options.seed)
    progress(f"simulated {log.n_sessions:,} sessions, {log.n_events:,} events")
    events = EventColumns(
        session=np.repeat(np.arange(log.n_sessions), log.length),
        item=np.asarray(log.item),
        time=np.asarray(log.time),
        kind=np.asarray(log.kind),
        session_id=np.asarray(log.session_id),
        item_id=np.asarray(log.item_id),
        user=log.user,
    )
    source = {"name": "shop", "sessions": n_sessions, "items": n_items, "seed": options.seed, "shop": asdict(config)}
    return build(events, options, source=source, notes=log.notes, progress=progress)
