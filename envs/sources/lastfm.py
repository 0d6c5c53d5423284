"""Last.fm-1K (Celma 2010): 19,150,868 plays of 992 users, newest first, no header line.

Tab-separated ``userid, timestamp, artid, artname, traid, traname``, times such as 2009-05-04T23:08:57Z, ids those of
MusicBrainz where it knows the artist or track. There are no sessions in it: users are cut where they pause.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa

from ...errors import InputError
from ..log import PreparedData
from .options import USER_HISTORY_OPTIONS, LastFMFormat, PrepareOptions, TableFormat
from .pipeline import Dropped, EventColumns, Progress, build, silent
from .reader import ID, UTC_TIME, Rows, check_file, pc, read_csv
from .table import event_columns

COLUMNS = ("userid", "timestamp", "artid", "artname", "traid", "traname")


def prepare_lastfm(
    fmt: LastFMFormat, options: PrepareOptions = USER_HISTORY_OPTIONS, progress: Progress = silent
) -> PreparedData:
    """Read the file, cut users into sessions where they pause for more than `fmt.gap`, then `pipeline.build`.

    Every event is a click. The item is an id or, where the id is empty, a name: that of the artist, or for a track
    ``ARTIST / TITLE``. Events that give neither are dropped and counted; they do not bridge a gap. Events of equal time
    go against the order of the file, which is newest first. Users are numbered in order of first appearance, sessions
    from 0 by user and time. Raises `InputError` for a damaged line, and where no event is left.
    """
    options.check()
    fmt.check()
    file = check_file(fmt.file)
    rows = _read(replace(fmt, file=file))
    progress(f"read {rows.table.num_rows:,} events from {file}")
    events, dropped, n_by_name = _events(rows, fmt)
    progress(f"{n_by_name:,} events go by the name of their {fmt.item_level}, which has no id")
    for drop in dropped:
        progress(f"dropped {drop.events:,} events: {drop.reason}")
    source = {
        "name": "lastfm",
        "files": [{"name": file.name, "bytes": file.stat().st_size}],
        "format": {**asdict(fmt), "file": file.name},
        "events_by_name": n_by_name,
    }
    return build(events, options, source=source, dropped=dropped, progress=progress)


def _read(fmt: LastFMFormat) -> Rows:
    names = ("artid", "artname") if fmt.item_level == "artist" else ("traid", "artname", "traname")
    types = {"userid": ID, "timestamp": UTC_TIME, **dict.fromkeys(names, ID)}
    # Titles hold quotes that nobody closes.
    return read_csv(fmt.file, types, sep="\t", names=COLUMNS, quoted=False)


def _events(rows: Rows, fmt: LastFMFormat) -> tuple[EventColumns, list[Dropped], int]:
    """The events, what was dropped, and how many events go by name."""
    # While rows are still lines: an error says which.
    rows.ids("userid")
    item, n_by_name = _items(rows.table, fmt.item_level)
    named = pc.not_equal(item, "")
    table = rows.table.select(["userid", "timestamp"]).append_column(fmt.item_level, item).filter(named)
    if not table.num_rows:
        raise InputError(f"{rows.file}: no event names its {fmt.item_level}, expected nearly all to; check the file")
    n_without = rows.table.num_rows - table.num_rows
    dropped = [Dropped(f"events that name no {fmt.item_level}", n_without)] if n_without else []
    columns = TableFormat(rows.file, item=fmt.item_level, user="userid", time="timestamp", time_unit="iso", gap=fmt.gap)
    events, _ = event_columns(replace(rows, table=table), columns)
    oldest_first = {name: getattr(events, name)[::-1] for name in ("session", "item", "time", "kind")}
    return replace(events, **oldest_first), dropped, n_by_name


def _items(table: pa.Table, level: str) -> tuple[pa.ChunkedArray, int]:
    """Id or name of each event's item, "" where it has neither, and the number of events that go by name."""
    blocks, n_by_name = [], 0
    for block in table.to_batches():
        artist = block["artname"].cast(pa.string())
        if level == "artist":
            ids, names = block["artid"].cast(pa.string()), artist
        else:
            ids, title = (block[column].cast(pa.string()) for column in ("traid", "traname"))
            names = pc.if_else(pc.equal(title, ""), "", pc.binary_join_element_wise(artist, title, " / "))
        by_name = pc.equal(ids, "")
        n_by_name += np.count_nonzero(pc.and_(by_name, pc.not_equal(names, "")))
        blocks.append(pc.if_else(by_name, names, ids).dictionary_encode())
    return pa.chunked_array(blocks, ID), int(n_by_name)
