"""The original UserBehavior file of Taobao (Tianchi data set 649), no header: ``user,item,category,behavior,time``.

100,150,807 events of 987,994 users, 4,162,024 items and 9,439 categories in nine days. There are no sessions in it:
users are cut where they pause.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa

from ...errors import InputError
from ..log import CLICK, PURCHASE, PreparedData
from .options import TABLE_OPTIONS, PrepareOptions, TableFormat, TaobaoFormat
from .pipeline import Dropped, EventColumns, Progress, build, silent
from .reader import ID, LOCAL_TIME, Rows, check_file, first_failure, read_csv
from .table import kind_ranks
from .user_ids import user_ids

COLUMNS = ("user", "item", "category", "behavior", "time")

FIRST_SECOND, LAST_SECOND = 1_511_539_200, 1_512_316_799
"""Unix times of the nine days described: 25 November to 3 December 2017 in China Standard Time (UTC+8)."""


def prepare_taobao(
    fmt: TaobaoFormat, options: PrepareOptions = TABLE_OPTIONS, progress: Progress = silent
) -> PreparedData:
    """Read the file, cut users into sessions where they pause for more than `fmt.gap`, then `pipeline.build`.

    Events of equal time go in the order of `fmt.click` (by default page view, favourite, cart), then purchases, then in
    that of the file. Events of other behaviours and events outside the nine days are dropped and counted; they do not
    bridge a gap. Sessions are numbered from 0, by user and time; users keep their ids. Raises `InputError` for a
    damaged line, and where no event is left.
    """
    options.check()
    fmt.check()
    fmt = replace(fmt, file=check_file(fmt.file))
    events, dropped = _events(_read(fmt, progress), fmt)
    for drop in dropped:
        progress(f"dropped {drop.events:,} events: {drop.reason}")
    source = {
        "name": "taobao",
        "files": [{"name": fmt.file.name, "bytes": fmt.file.stat().st_size}],
        "format": {**asdict(fmt), "file": fmt.file.name},
    }
    return build(events, options, source=source, dropped=dropped, progress=progress)


def _read(fmt: TaobaoFormat, progress: Progress) -> Rows:
    types = {"user": pa.int64(), fmt.item_level: pa.int64(), "behavior": ID, "time": pa.int64()}
    rows = read_csv(fmt.file, types, names=COLUMNS, quoted=False)
    progress(f"read {rows.table.num_rows:,} events from {fmt.file}")
    return rows


def _events(rows: Rows, fmt: TaobaoFormat) -> tuple[EventColumns, list[Dropped]]:
    by_name = TableFormat(fmt.file, item=fmt.item_level, kind="behavior", click=fmt.click, purchase=fmt.purchase)
    rank, dropped = kind_ranks(rows, by_name)
    user, time = user_ids(rows, "user").to_numpy(), _seconds(rows)
    kept = rank >= 0
    if fmt.outside == "drop":
        outside = kept & ((time < FIRST_SECOND) | (time > LAST_SECOND))
        kept &= ~outside
        dropped += _outside(rows, int(np.count_nonzero(outside)), int(np.count_nonzero(kept)))
    item, item_id = rows.ids(fmt.item_level)

    # A hundred million lines: what is not needed any more goes before the sort takes its share.
    del rows
    pa.default_memory_pool().release_unused()
    user, time, rank, item = user[kept], time[kept], rank[kept], item[kept]
    order = _order(user, time, rank)
    user, time, rank, item = user[order], time[order], rank[order], item[order]
    del order
    starts = np.ones(len(user), dtype=bool)
    starts[1:] = (user[1:] != user[:-1]) | (np.diff(time) > fmt.gap)
    events = EventColumns(
        session=np.cumsum(starts, dtype=np.int32) - np.int32(1),
        item=item,
        time=time * 10**9,
        kind=np.where(rank < len(fmt.click), CLICK, PURCHASE).astype(np.uint8),
        session_id=np.arange(np.count_nonzero(starts)),
        item_id=item_id,
        user=user[starts],
    )
    return events, dropped


def _outside(rows: Rows, n_outside: int, n_kept: int) -> list[Dropped]:
    days = "25 November to 3 December 2017, China Standard Time"
    if not n_kept:
        raise InputError(f"{rows.file}: no event is within {days}; check the file or give --outside keep")
    return [Dropped(f"events outside {days}", n_outside)] if n_outside else []


def _seconds(rows: Rows) -> np.ndarray:
    """[E] int64, all of them times that nanoseconds can express."""
    row = first_failure(rows.table["time"].cast(pa.timestamp("s")), LOCAL_TIME)
    if row is not None:
        raise InputError(
            f"{rows.where(row)}: time {rows.table['time'][row]} is no time in seconds (years 1678 to 2262); "
            "correct or remove the line"
        )
    return rows.int64("time")


def _order(user: np.ndarray, time: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """[E] rows by user, time and rank, equal ones as they stand."""
    users, seconds = (int(column.max()) - int(column.min()) + 1 for column in (user, time))
    ranks = int(rank.max()) + 1
    if users * seconds * ranks >= 2**63:
        return np.lexsort((rank, time, user))
    # One key in place of three, sorted in a fraction of the time where the file is nearly in order.
    key = (user.astype(np.int64) - user.min()) * seconds
    key += time - time.min()
    key *= ranks
    key += rank
    return np.argsort(key, kind="stable")
