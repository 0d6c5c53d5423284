"""Any CSV or Parquet file with one row an event and named columns."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...errors import InputError
from ..log import CLICK, PURCHASE, PreparedData
from .options import TABLE_OPTIONS, PrepareOptions, TableFormat
from .pipeline import Dropped, EventColumns, Progress, build, silent
from .reader import (
    ID,
    LOCAL_TIME,
    UTC_TIME,
    Rows,
    check_file,
    first_failure,
    first_value,
    header,
    pc,
    read_csv,
    read_parquet,
    require_columns,
)

_LARGEST_MICROSECONDS = 2**63 // 1000 - 1


def prepare_table(
    fmt: TableFormat, options: PrepareOptions = TABLE_OPTIONS, progress: Progress = silent, *, name: str = "table"
) -> PreparedData:
    """Read the table, cut users into sessions where asked to, then `pipeline.build`.

    Events of equal time in a session go in the order in which `fmt.click` and `fmt.purchase` name their values, then in
    that of the file. Rows of other kinds are dropped and counted; they do not bridge a gap. Sessions cut by a gap are
    numbered from 0, by user and time. Users are numbered in order of first appearance. `name` is that of the source, as
    the manifest records it. Raises `InputError` for a missing column, a damaged row, or values that match
    nothing.
    """
    options.check()
    fmt.check()
    file = check_file(fmt.events)
    rows = _read(fmt, file)
    progress(f"read {rows.table.num_rows:,} rows from {file}")
    events, dropped = event_columns(rows, fmt)
    for drop in dropped:
        progress(f"dropped {drop.events:,} rows: {drop.reason}")
    source = {
        "name": name,
        "files": [{"name": file.name, "bytes": file.stat().st_size}],
        "format": {**asdict(fmt), "events": file.name},
    }
    return build(events, options, source=source, dropped=dropped, progress=progress)


def _read(fmt: TableFormat, file: Path) -> Rows:
    columns = list(dict.fromkeys(c for c in (fmt.session, fmt.user, fmt.item, fmt.time, fmt.kind) if c is not None))
    if file.suffix.lower() in (".parquet", ".pq"):
        return read_parquet(file, columns)
    sep = fmt.delimiter
    require_columns(file, header(file, sep), columns)
    assert fmt.time is not None
    if fmt.time_unit != "iso":
        time_type = pa.float64()
    else:
        time_type = _iso_type(first_value(file, sep, fmt.time))
    return read_csv(file, {**dict.fromkeys(columns, ID), fmt.time: time_type}, sep)


def event_columns(rows: Rows, fmt: TableFormat) -> tuple[EventColumns, list[Dropped]]:
    """The events in the order of their kinds, users cut into sessions where `fmt` asks for it, and what was dropped."""
    item, item_id = rows.ids(fmt.item)
    user = None if fmt.user is None else rows.ids(fmt.user)[0]
    session, session_id = (None, None) if fmt.session is None else rows.ids(fmt.session)
    time = _nanoseconds(rows, fmt)
    rank, dropped = kind_ranks(rows, fmt)

    # Stable, so that equal times keep first the order of the named values and then that of the file.
    order = np.argsort(rank, kind="stable")
    order = order[np.searchsorted(rank[order], 0) :]
    item, time, rank = item[order], time[order], rank[order]
    user = None if user is None else user[order]
    if session is None or session_id is None:
        assert user is not None and fmt.gap is not None
        session, session_user = _cut(user, time, fmt.gap)
        session_id = np.arange(len(session_user))
    else:
        session = session[order]
        session_user = None if user is None else _user_of_session(rows, fmt, session, session_id, user, order)
    n_click_ranks = 1 if fmt.kind is None else len(fmt.click)
    kind = np.where(rank < n_click_ranks, CLICK, PURCHASE).astype(np.uint8)
    return EventColumns(session, item, time, kind, session_id, item_id, session_user), dropped


def kind_ranks(rows: Rows, fmt: TableFormat) -> tuple[np.ndarray, list[Dropped]]:
    """[E] place of the row's kind in `click` + `purchase`, -1 where it is in neither."""
    if fmt.kind is None:
        return np.zeros(rows.table.num_rows, dtype=np.int16), []
    code, values = rows.texts(fmt.kind)
    for flag, wanted in (("--click", fmt.click), ("--purchase", fmt.purchase)):
        if wanted and not set(wanted) & set(values):
            found = ", ".join(repr(value) for value in sorted(values)[:10]) + (", ..." if len(values) > 10 else "")
            raise InputError(
                f"{rows.file}: column {fmt.kind!r} has none of the values {','.join(wanted)} given with {flag}, "
                f"found {found}; name some of these"
            )
    place = {value: number for number, value in enumerate(fmt.click + fmt.purchase)}
    rank_of_value = np.array([place.get(value, -1) for value in values], dtype=np.int16)
    counts = np.bincount(code, minlength=len(values))
    others = [value for value in np.argsort(-counts, kind="stable") if rank_of_value[value] < 0]
    named = ", ".join(repr(values[value]) for value in others[:10]) + (", ..." if len(others) > 10 else "")
    n_others = int(counts[others].sum())
    dropped = [Dropped(f"rows of other kinds ({fmt.kind}: {named})", n_others)] if n_others else []
    return rank_of_value[code], dropped


def _cut(user: np.ndarray, time: np.ndarray, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Session code [E] and user [S]: a session ends where the user does nothing for more than `gap` seconds."""
    order = np.lexsort((time, user))
    by_user, by_time = user[order], time[order]
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = (by_user[1:] != by_user[:-1]) | (np.diff(by_time) > round(gap * 1e9))
    session = np.empty(len(order), dtype=np.int32)
    session[order] = np.cumsum(starts) - 1
    return session, by_user[starts]


def _user_of_session(
    rows: Rows, fmt: TableFormat, session: np.ndarray, session_id: np.ndarray, user: np.ndarray, order: np.ndarray
) -> np.ndarray:
    """[S] the one user of each session (0 for a session without events)."""
    of_session = np.zeros(len(session_id), dtype=np.int32)
    known, first = np.unique(session, return_index=True)
    of_session[known] = user[first]
    differs = np.flatnonzero(of_session[session] != user)
    if len(differs):
        event = differs[np.argmin(order[differs])]
        raise InputError(
            f"{rows.where(int(order[event]))}: session {session_id[session[event]].item()!r} belongs to more than one "
            f"{fmt.user}; make session ids unique, or cut sessions with --user and --gap"
        )
    return of_session


def _nanoseconds(rows: Rows, fmt: TableFormat) -> np.ndarray:
    """[E] int64 since the epoch, UTC."""
    assert fmt.time is not None
    if fmt.time_unit == "iso":
        return _instants(rows, fmt.time).cast(pa.int64()).to_numpy()
    values = _numbers(rows, fmt.time)
    with np.errstate(over="ignore"):
        microseconds = np.rint(values * (1e6 if fmt.time_unit == "s" else 1e3))
    possible = np.abs(microseconds) < _LARGEST_MICROSECONDS
    if not possible.all():
        row = int(np.argmin(possible))
        raise InputError(
            f"{rows.where(row)}: {fmt.time} {values[row]:.17g} is no time in the unit {fmt.time_unit!r} "
            "(years 1678 to 2262); check the unit (--time-unit) or correct the value"
        )
    return microseconds.astype(np.int64) * 1000


def _numbers(rows: Rows, column: str) -> np.ndarray:
    values = rows.table[column]
    if pa.types.is_temporal(values.type):
        raise InputError(f"{rows.file}: column {column!r} holds {values.type}; give --time-unit iso")
    return _cast(rows, column, pa.float64(), "a number").to_numpy()


def _instants(rows: Rows, column: str) -> pa.ChunkedArray:
    values = rows.table[column]
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        raise InputError(f"{rows.file}: column {column!r} holds {values.type}; give --time-unit s or ms")
    is_text = not pa.types.is_temporal(values.type)
    return _cast(rows, column, _iso_type(str(values[0].as_py())) if is_text else UTC_TIME, "an ISO-8601 time")


def _cast(rows: Rows, column: str, to: pa.DataType, expected: str) -> pa.ChunkedArray:
    """The column as another type; does nothing where the reader has converted it already."""
    values = rows.table[column]
    row = first_failure(values, to)
    if row is None:
        row = pc.index(values.is_null(), True).as_py()
        if row < 0:
            return values.cast(to)
    raise InputError(
        f"{rows.where(row)}: {column} must be {expected}, found {_shown(values[row])}; correct or remove the row"
    )


def _shown(value: Any) -> str:
    try:
        return repr(value.as_py())
    except (ValueError, OverflowError):
        # A time beyond Python's years, or of a zone that is not known here.
        return f"{value.value} as a {value.type}"


def _iso_type(example: str) -> pa.DataType:
    """With or without a zone, as the first row has it; a file that mixes both is refused at the first other row."""
    # What is not UTF-8 is no time either; the reader of the file then says so.
    text = example.strip().encode(errors="replace").decode()
    return LOCAL_TIME if first_failure(pa.array([text], pa.string()), LOCAL_TIME) is None else UTC_TIME
