"""The RecSys Challenge 2015 (YooChoose) files: clicks ``session,time,item,category``, buys
``session,time,item,price,quantity``, no header, times ISO-8601 with milliseconds and Z.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...errors import InputError
from ..log import CLICK, PURCHASE, PreparedData
from .options import RECSYS15_OPTIONS, PrepareOptions
from .pipeline import Dropped, EventColumns, Progress, build, silent
from .reader import UTC_TIME, Rows, check_file, pc, read_csv, to_numpy_ids

CLICK_COLUMNS = ("session", "time", "item", "category")
BUY_COLUMNS = ("session", "time", "item", "price", "quantity")

_TYPES = {"session": pa.int64(), "time": UTC_TIME, "item": pa.int64()}

PAPER_COUNTS = {
    "train+valid": {"sessions": 72_274, "events": 683_530, "items": 9_167},
    "test": {"sessions": 7_223, "events": 63_100},
}
"""IRN paper, section 5.1."""


def prepare_recsys15(
    clicks: Path, buys: Path, options: PrepareOptions = RECSYS15_OPTIONS, progress: Progress = silent
) -> PreparedData:
    """Merge clicks and buys by time (a tie: click first, then order of the files), then `pipeline.build`.

    A row of the buys is one purchase whatever its quantity. Buys of sessions without clicks are dropped and counted.
    Raises `InputError` for a damaged line, or where none of the buys' sessions is in the clicks.
    """
    options.check()
    clicks, buys = check_file(clicks), check_file(buys)
    clicked = _read(clicks, CLICK_COLUMNS, "clicks", progress)
    bought = _read(buys, BUY_COLUMNS, "buys", progress)
    events, dropped = _merge(clicked, bought, progress)
    files = [{"name": file.name, "bytes": file.stat().st_size} for file in (clicks, buys)]
    data = build(events, options, source={"name": "recsys15", "files": files}, dropped=[dropped], progress=progress)
    ours = {step["step"]: step for step in data.manifest["steps"]}
    paper = {
        split: {"paper": counts, "ours": {name: ours[split][name] for name in counts}}
        for split, counts in PAPER_COUNTS.items()
    }
    return replace(data, manifest={**data.manifest, "paper": paper})


def _read(file: Path, columns: tuple[str, ...], what: str, progress: Progress) -> Rows:
    rows = read_csv(file, _TYPES, names=columns, quoted=False)
    progress(f"read {rows.table.num_rows:,} {what} from {file}")
    return rows


def _merge(clicked: Rows, bought: Rows, progress: Progress) -> tuple[EventColumns, Dropped]:
    sessions = clicked.table["session"].combine_chunks().dictionary_encode()
    bought_session = pc.index_in(bought.table["session"], sessions.dictionary)
    known = bought_session.is_valid()
    n_known = pc.sum(known).as_py() or 0
    if not n_known:
        raise InputError(
            f"{bought.file}: none of its {len(pc.unique(bought.table['session']))} sessions is in the clicks "
            f"({clicked.file}); give the two files of one data set"
        )
    orphans = bought.table["session"].filter(pc.invert(known))
    dropped = Dropped("buys whose session is not in the clicks", len(orphans), len(pc.unique(orphans)))
    if dropped.events:
        progress(
            f"dropped {dropped.events:,} buys of {dropped.sessions:,} sessions that are not in the clicks "
            f"({n_known:,} buys stay)"
        )
    kept = bought.table.filter(known)
    items = pa.chunked_array([*clicked.table["item"].chunks, *kept["item"].chunks], pa.int64())
    encoded = items.combine_chunks().dictionary_encode()
    n_clicks = clicked.table.num_rows
    kind = np.full(n_clicks + n_known, PURCHASE, dtype=np.uint8)
    kind[:n_clicks] = CLICK
    # Clicks stand before buys, so that the stable order by time breaks a tie in their favour.
    events = EventColumns(
        session=np.concatenate([sessions.indices.to_numpy(), bought_session.filter(known).to_numpy()]),
        item=encoded.indices.to_numpy(),
        time=np.concatenate([clicked.int64("time"), kept["time"].cast(pa.int64()).to_numpy()]),
        kind=kind,
        session_id=to_numpy_ids(sessions.dictionary),
        item_id=to_numpy_ids(encoded.dictionary),
    )
    return events, dropped
