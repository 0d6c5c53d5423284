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
    n_sessions: int, config: ShopConfig, options: PrepareOptions, progress: Progress = silent
) -> PreparedData:
    """Simulate `n_sessions` sessions in a shop and prepare them; all draws come from `options.seed`.

    Raises `InputError` for less than one session, fewer users than the sessions need, or options that leave a split
    empty.
    """
    options.check()
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
    source = {
        "name": "shop",
        "sessions": n_sessions,
        "items": config.n_items,
        "seed": options.seed,
        "shop": asdict(config),
    }
    return build(events, options, source=source, notes=log.notes, progress=progress)
