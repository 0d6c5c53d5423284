"""A file of events without header line, read in parts: whole lines of some megabytes, parsed side by side."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...errors import InputError
from .reader import UTC_TIME, Rows, check_file, explain_failure, parse_csv, refuse_nulls

PART_BYTES = 1 << 23
COMPILE_BYTES = 1 << 25
"""From this size on a file is worth the second or two that the first call of the fast parser takes to compile."""

_TYPES = {"session": pa.int64(), "time": UTC_TIME, "item": pa.int64()}
_MOST_WORKERS = 4


@dataclass(frozen=True, eq=False)
class Part:
    """L rows of a file."""

    session: np.ndarray
    """[L] int64 ids."""
    time: np.ndarray
    """[L] int64, nanoseconds since the epoch, UTC."""
    item: np.ndarray
    """[L] int64 ids."""
    end: int
    """Bytes of the file up to the end of this part."""


def read_parts(
    file: Path, columns: Sequence[str], *, fast: bool | None = None, part_bytes: int | None = None
) -> Iterator[Part]:
    """The rows of a file of lines with the fields `columns`, which begin with session, time and item.

    `fast` tries the strict parser on every part before Arrow's (default: in large files); the rows are the same. A few
    parts are held in memory at a time. Raises `InputError` as `read_csv` does.
    """
    file = check_file(file)
    fast = file.stat().st_size >= COMPILE_BYTES if fast is None else fast
    part_bytes = part_bytes or PART_BYTES
    # What leaves this function early, an error or a caller that stops, leaves no threads behind.
    with ThreadPoolExecutor(workers := min(_n_cores(), _MOST_WORKERS)) as pool, file.open("rb") as stream:
        waiting, n_rows, start = deque(), 0, 0
        while True:
            # A part ends where a line does.
            lines = stream.read(part_bytes) + stream.readline()
            if lines:
                waiting.append(pool.submit(_parse, file, columns, lines, start, fast))
                start += len(lines)
            if waiting and (len(waiting) > workers or not lines):
                part = waiting.popleft().result()
                n_rows += len(part.item)
                yield part
            if not lines and not waiting:
                break
    if not n_rows:
        raise InputError(f"{file}: has no rows of data, expected events; check the file")


def _parse(file: Path, columns: Sequence[str], lines: bytes, start: int, fast: bool) -> Part:
    end = start + len(lines)
    if not lines.endswith(b"\n"):
        lines += b"\n"
    if fast:
        # Loads numba, which small files do without.
        from .event_lines import parse_event_lines

        parsed = parse_event_lines(lines, len(columns))
        if parsed is not None:
            return Part(*parsed, end)
    # Arrow skips empty lines and, at the start of what it reads, a byte order mark, which only a file may begin with.
    source = pa.BufferReader(b"\n" + lines if start else lines)
    try:
        table = parse_csv(source, _TYPES, columns, quoted=False, block_bytes=len(lines) + 1)
    except pa.ArrowInvalid as error:
        raise explain_failure(file, _TYPES, columns, str(error), quoted=False, start=start) from None
    rows = Rows(table, file, header_lines=0, start=start)
    refuse_nulls(rows, _TYPES)
    return Part(rows.int64("session"), rows.int64("time"), rows.int64("item"), end)


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
