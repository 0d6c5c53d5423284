"""The monthly files of REES46's "eCommerce behavior data from multi category store" and of its sibling shops.

Header ``event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session``, times such as
``2019-10-01 00:00:00 UTC``.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...errors import InputError
from ..log import PreparedData
from .options import TABLE_OPTIONS, PrepareOptions, Rees46Format, TableFormat
from .pipeline import Dropped, EventColumns, Progress, build, silent
from .reader import ID, LOCAL_TIME, UTC_TIME, Rows, check_file, first_failure, header, pc, read_csv, require_columns
from .table import event_columns
from .user_ids import user_ids

_ZONE = " UTC"


def prepare_rees46(
    fmt: Rees46Format, options: PrepareOptions = TABLE_OPTIONS, progress: Progress = silent
) -> PreparedData:
    """Read the files as one log, its sessions those of the column user_session, then `pipeline.build`.

    Events of equal time in a session go in the order of `fmt.click` (by default view, cart), then purchases, then in
    that of the files. Dropped and counted: events without a session, events of sessions that name more than one user,
    event types that are neither click nor purchase. Users keep their ids. Raises `InputError` for a damaged line.
    """
    options.check()
    fmt.check()
    files = [check_file(file) for file in fmt.files]
    source = {
        "name": "rees46",
        "files": [{"name": file.name, "bytes": file.stat().st_size} for file in files],
        "format": {**asdict(fmt), "files": [file.name for file in files]},
    }
    events, dropped = _events(replace(fmt, files=files), progress)
    for drop in dropped:
        progress(f"dropped {drop.events:,} events: {drop.reason}")
    return build(events, options, source=source, dropped=dropped, progress=progress)


def _events(fmt: Rees46Format, progress: Progress) -> tuple[EventColumns, list[Dropped]]:
    item = f"{fmt.item_level}_id"
    rows = _one_log([_read(file, item, progress) for file in fmt.files])
    rows, without = _with_a_session(rows)
    rows, shared = _of_one_user(rows)
    columns = TableFormat(
        rows.file,
        item=item,
        time="event_time",
        time_unit="iso",
        session="user_session",
        user="user_id",
        kind="event_type",
        click=fmt.click,
        purchase=fmt.purchase,
    )
    user_id = rows.ids("user_id")[1].astype(np.int32)
    events, others = event_columns(rows, columns)
    return replace(events, user=user_id[events.user]), without + shared + others


def _read(file: Path, item: str, progress: Progress) -> Rows:
    types = {"event_time": ID, "event_type": ID, item: pa.int64(), "user_id": pa.int64(), "user_session": ID}
    require_columns(file, header(file, ","), list(types))
    rows = read_csv(file, types)
    progress(f"read {rows.table.num_rows:,} events from {file}")
    table = rows.table
    for name, column in (("event_time", _times(rows)), ("user_id", user_ids(rows, "user_id"))):
        table = table.set_column(table.column_names.index(name), name, column)
    return replace(rows, table=table)


def _times(rows: Rows) -> pa.ChunkedArray:
    """The column event_time as UTC_TIME: each distinct text of a block is parsed once."""
    times, row = [], 0
    for block in rows.table["event_time"].chunks:
        text = block.dictionary
        # Without the zone a text is no time, and what has no zone is made no time.
        local = pc.if_else(pc.ends_with(text, _ZONE), pc.utf8_slice_codeunits(text, 0, -len(_ZONE)), "")
        bad = first_failure(local, LOCAL_TIME)
        if bad is not None:
            # A block lists its texts in order of first appearance, so this is the first damaged row as well.
            row += pc.index(block.indices, pa.scalar(bad, block.indices.type)).as_py()
            raise InputError(
                f"{rows.where(row)}: event_time must be a time such as 2019-10-01 00:00:00 UTC, "
                f"found {text[bad].as_py()!r}; correct or remove the line"
            )
        times.append(pc.assume_timezone(local.cast(LOCAL_TIME), "UTC").take(block.indices))
        row += len(block)
    return pa.chunked_array(times, UTC_TIME)


def _one_log(months: list[Rows]) -> Rows:
    table = pa.concat_tables([month.table for month in months]).unify_dictionaries().combine_chunks()
    return Rows(table, Path(", ".join(str(month.file) for month in months)), months[0].header_lines)


def _with_a_session(rows: Rows) -> tuple[Rows, list[Dropped]]:
    kept = rows.table.filter(pc.not_equal(rows.table["user_session"], ""))
    if not kept.num_rows:
        raise InputError(f"{rows.file}: no event has a user_session, expected one for nearly all; check the file")
    n_without = rows.table.num_rows - kept.num_rows
    dropped = [Dropped("events without a session", n_without)] if n_without else []
    return replace(rows, table=kept), dropped


def _of_one_user(rows: Rows) -> tuple[Rows, list[Dropped]]:
    sessions = rows.table["user_session"].chunk(0)
    session, user = sessions.indices.to_numpy(), rows.int64("user_id")
    first_user = np.zeros(len(sessions.dictionary), dtype=np.int64)
    first_user[session[::-1]] = user[::-1]
    is_shared = np.zeros(len(first_user), dtype=bool)
    is_shared[session[first_user[session] != user]] = True
    n_shared = int(np.count_nonzero(is_shared))
    if not n_shared:
        return rows, []
    of_shared = is_shared[session]
    kept = rows.table.filter(pa.array(~of_shared))
    if not kept.num_rows:
        raise InputError(f"{rows.file}: every user_session names more than one user_id; check the file")
    reason = "events of sessions that name more than one user"
    return replace(rows, table=kept), [Dropped(reason, int(np.count_nonzero(of_shared)), n_shared)]
