"""Choice sets: one session a line, ``click click ...;bought bought ...`` (Benson, Kumar and Tomkins, WSDM 2018).

The file tells neither order nor time nor session ids, so all three are imposed, and every table says so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from ...errors import InputError
from ..log import CLICK, PURCHASE, PreparedData
from .options import CHOICE_SETS_OPTIONS, PrepareOptions
from .pipeline import EventColumns, Progress, build, repeated_content, silent
from .reader import Rows, check_file, first_failure, pc, read_csv

HOUR, SECOND = 3600 * 10**9, 10**9
"""Nanoseconds: imposed time between the starts of two lines, and between two events of a line."""


def prepare_choice_sets(
    file: Path, options: PrepareOptions = CHOICE_SETS_OPTIONS, progress: Progress = silent
) -> PreparedData:
    """Clicks in a seeded random order, then the purchases in a seeded random order; then `pipeline.build`.

    Session ids are the line numbers (from 1). Line n starts n - 1 hours after the epoch, its events one second apart.
    Raises `InputError` for a damaged line, and for options that need real times.
    """
    options.check()
    file = check_file(file)
    _refuse_times(file, options)
    rows = read_csv(file, {"clicks": pa.string(), "bought": pa.string()}, ";", ("clicks", "bought"), quoted=False)
    events = _events(rows, np.random.default_rng((options.seed, 1)))
    n_lines = rows.table.num_rows
    progress(f"read {n_lines:,} lines from {file}")
    source = {"name": "choice-sets", "files": [{"name": file.name, "bytes": file.stat().st_size}]}
    repeats = repeated_content(events)
    return build(events, options, source=source, notes=_notes(options, n_lines, repeats), progress=progress)


def _refuse_times(file: Path, options: PrepareOptions) -> None:
    if options.latest_month or options.latest_days is not None:
        flag = "--latest-month" if options.latest_month else "--latest-days"
        raise InputError(f"{file}: choice sets have no times, found {flag}; leave it out")
    if options.random_split is None:
        raise InputError(f"{file}: choice sets have no times, found a split by time; give --random-split 0.8,0.1,0.1")


def _notes(options: PrepareOptions, n_lines: int, repeats: int) -> list[str]:
    together = "kept in one split" if options.split_by == "content" else "NOT kept together by the split"
    return [
        f"The file gives no order: the order within a session is imposed (seed {options.seed}), all clicks before all "
        "purchases, times are synthetic.",
        f"The split is random (seed {options.seed}), not by time.",
        f"{repeats} of {n_lines} lines ({100 * repeats / n_lines:.1f} %) repeat an earlier line; identical sessions "
        f"are {together}.",
    ]


def _events(rows: Rows, rng: np.random.Generator) -> EventColumns:
    parts = _sides(rows)
    line = np.concatenate([line for line, _ in parts])
    kind = np.repeat(np.array([CLICK, PURCHASE], dtype=np.uint8), [len(line) for line, _ in parts])
    item_id, item = np.unique(np.concatenate([item for _, item in parts]), return_inverse=True)

    shuffled = np.lexsort((rng.random(len(line)), kind, line))
    line, kind, item = line[shuffled], kind[shuffled], item[shuffled]
    first = np.searchsorted(line, np.arange(rows.table.num_rows))
    position = np.arange(len(line)) - first[line]
    return EventColumns(
        session=line,
        item=item,
        time=line * HOUR + position * SECOND,
        kind=kind,
        session_id=rows.line_numbers(),
        item_id=item_id,
        ordered=False,
    )


def _sides(rows: Rows) -> list[tuple[np.ndarray, np.ndarray]]:
    """Line index and item of each id on either side of the semicolon."""
    sides, faults = [], []
    for column in ("clicks", "bought"):
        text = pc.utf8_trim_whitespace(rows.table[column].combine_chunks())
        words = pc.utf8_split_whitespace(text)
        line, ids = pc.list_parent_indices(words).to_numpy(), pc.list_flatten(words)
        empty = pc.index(pc.equal(text, ""), True).as_py()
        if empty >= 0:
            faults.append((empty, f"no {column} items, expected at least one; complete or remove the line"))
        bad = first_failure(ids, pa.int64())
        if bad is not None:
            found = ids[bad].as_py()
            faults.append(
                (int(line[bad]), f"item ids must be whole numbers, found {found!r}; correct or remove the line")
            )
        sides.append((line, ids))
    if faults:
        row, fault = min(faults, key=lambda fault: fault[0])
        raise InputError(f"{rows.where(row)}: {fault}")
    return [(line, ids.cast(pa.int64()).to_numpy()) for line, ids in sides]
