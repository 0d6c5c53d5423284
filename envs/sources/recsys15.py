"""The RecSys Challenge 2015 (YooChoose) files: clicks ``session,time,item,category``, buys
``session,time,item,price,quantity``, no header, times ISO-8601 with milliseconds and Z.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from time import monotonic

import numpy as np

from ...errors import InputError
from ..log import CLICK, PURCHASE, PreparedData
from .cuts import survey
from .memory import GB, peak_bytes
from .options import RECSYS15_OPTIONS, PrepareOptions
from .parts import Part, read_parts
from .pipeline import Dropped, Progress, build, silent
from .reader import check_file
from .sessions import Events

CLICK_COLUMNS = ("session", "time", "item", "category")
BUY_COLUMNS = ("session", "time", "item", "price", "quantity")

PAPER_COUNTS = {
    "train+valid": {"sessions": 72_274, "events": 683_530, "items": 9_167},
    "test": {"sessions": 7_223, "events": 63_100},
}
"""IRN paper, section 5.1."""

_LINES_A_REPORT = 5_000_000


def prepare_recsys15(
    clicks: Path,
    buys: Path,
    options: PrepareOptions = RECSYS15_OPTIONS,
    progress: Progress = silent,
    *,
    memory: float | None = None,
    fast: bool | None = None,
) -> PreparedData:
    """Merge clicks and buys by time (a tie: click first, then order of the files), then `pipeline.build`.

    A row of the buys is one purchase whatever its quantity. Buys of sessions without clicks are dropped and counted.
    `memory` (GB) is the most that the process may take; the files are then read twice and their rows not held. `fast`
    is that of `read_parts`. The result is the same with and without either.
    Raises `InputError` for a damaged line, where none of the buys' sessions is in the clicks, or where `memory` is too
    little.
    """
    options.check()
    if memory is not None and not memory > 0:
        raise InputError(f"--memory: must be a positive number of GB, found {memory:g}; give for example 1")
    files = [{"name": file.name, "bytes": check_file(file).stat().st_size} for file in (Path(clicks), Path(buys))]
    log = _ClicksAndBuys(Path(clicks), Path(buys), progress, memory, fast)
    # The first pass knows what it dropped once it is through.
    surveyed = survey(log.parts())
    data = build(
        log,
        options,
        source={"name": "recsys15", "files": files},
        dropped=[log.dropped],
        progress=progress,
        surveyed=surveyed,
        memory=memory,
    )
    ours = {step["step"]: step for step in data.manifest["steps"]}
    paper = {
        split: {"paper": counts, "ours": {name: ours[split][name] for name in counts}}
        for split, counts in PAPER_COUNTS.items()
    }
    return replace(data, manifest={**data.manifest, "paper": paper})


class _ClicksAndBuys:
    """The two files as an `EventSource`. Without a limit of memory the second pass gets what the first one kept."""

    user = None
    ordered = True

    def __init__(self, clicks: Path, buys: Path, progress: Progress, memory: float | None, fast: bool | None) -> None:
        self._clicks, self._buys, self._progress, self._memory, self._fast = clicks, buys, progress, memory, fast
        # Loads numba, which the other sources do without.
        from .numbering import Numbering

        self._sessions, self._items = Numbering(), Numbering()
        self._kept: deque[Events] = deque()
        self._stamps: dict[Path, tuple[int, int]] = {}
        self.dropped = Dropped("buys whose session is not in the clicks", 0)

    @property
    def session_id(self) -> np.ndarray:
        return self._sessions.ids

    @property
    def item_id(self) -> np.ndarray:
        return self._items.ids

    def parts(self) -> Iterator[Events]:
        """Clicks stand before buys, so that the stable order by time breaks a tie in their favour."""
        if self._kept:
            while self._kept:
                yield self._kept.popleft()
            return
        for events in chain(self._clicked(), self._bought()):
            if self._memory is None:
                self._kept.append(events)
            elif peak_bytes() > self._memory * GB:
                raise InputError(
                    f"{self._clicks}: the {len(self._sessions):,} sessions so far need {peak_bytes() / GB:.2g} GB, "
                    f"found --memory {self._memory:g}; raise it"
                )
            yield events

    def _clicked(self) -> Iterator[Events]:
        for part in self._rows(self._clicks, CLICK_COLUMNS, "clicks"):
            kind = np.full(len(part.item), CLICK, dtype=np.uint8)
            yield Events(self._sessions.add(part.session), self._items.add(part.item), part.time, kind)

    def _bought(self) -> Iterator[Events]:
        orphans, n_known = [], 0
        for part in self._rows(self._buys, BUY_COLUMNS, "buys"):
            session = self._sessions.find(part.session)
            known = session >= 0
            kind = np.full(np.count_nonzero(known), PURCHASE, dtype=np.uint8)
            n_known += len(kind)
            orphans.append(part.session[~known])
            yield Events(session[known], self._items.add(part.item[known]), part.time[known], kind)
        orphans = np.concatenate(orphans)
        n_sessions = len(np.unique(orphans))
        if not n_known:
            raise InputError(
                f"{self._buys}: none of its {n_sessions} sessions is in the clicks ({self._clicks}); "
                "give the two files of one data set"
            )
        first_pass = not self.dropped.events
        self.dropped = replace(self.dropped, events=len(orphans), sessions=n_sessions)
        if len(orphans) and first_pass:
            self._progress(
                f"dropped {len(orphans):,} buys of {n_sessions:,} sessions that are not in the clicks "
                f"({n_known:,} buys stay)"
            )

    def _rows(self, file: Path, columns: tuple[str, ...], what: str) -> Iterator[Part]:
        state = file.stat()
        stamp, again = (state.st_size, state.st_mtime_ns), file in self._stamps
        if self._stamps.setdefault(file, stamp) != stamp:
            raise InputError(f"{file}: has changed since it was first read; run again once nothing writes to it")
        began, n_rows = monotonic(), 0
        for part in read_parts(file, columns, fast=self._fast):
            before, n_rows = n_rows, n_rows + len(part.item)
            if n_rows // _LINES_A_REPORT > before // _LINES_A_REPORT:
                rate = n_rows / (monotonic() - began) / 1e6
                self._progress(f"{n_rows:,} {what}, {part.end / state.st_size:.0%} of {file}, {rate:.1f} M lines/s")
            yield part
        self._progress(f"read {n_rows:,} {what} from {file}{' again' if again else ''}")
