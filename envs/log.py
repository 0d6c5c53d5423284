"""`SessionLog`, the one data structure that everything shares, and `SessionBatch`, what a recommender is shown.

A log is a handful of flat arrays, one row an event, the sessions contiguous and in the order of their start. On disk it
is a folder of ``.npy`` columns beside a ``manifest.json``, opened memory-mapped, so that any number of processes share
one copy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .folders import SCHEMA, check_values, new_folder, read_manifest, write_json

if TYPE_CHECKING:
    import pandas as pd

CLICK, PURCHASE = 0, 1
"""Values of the `kind` column."""

KIND_NAMES = ("click", "purchase")

_COLUMNS = {"item": np.int32, "kind": np.uint8, "time": np.int64, "offset": np.int64}


@dataclass(frozen=True, eq=False)
class SessionBatch:
    """Sessions as a recommender sees them. E events, S sessions, P = E - S events to predict.

    Row j of a session's scores (1-based, after its first j events) is for event j + 1; the rows of the batch follow
    each other in the order of `target_events()`.
    """

    item: np.ndarray
    """[E] int32, items 0..N-1."""
    kind: np.ndarray
    """[E] uint8, CLICK or PURCHASE."""
    time: np.ndarray
    """[E] int64, nanoseconds since the epoch, UTC."""
    offset: np.ndarray
    """[S + 1] int64, session s is events offset[s]:offset[s + 1]."""
    user: np.ndarray | None = None
    """[S] int32, or None where shoppers are anonymous."""
    history: tuple[SessionBatch, ...] | None = None
    """For each session, the same user's sessions that ended before it starts, oldest first, as one batch of them
    (`history.UserHistories` attaches it); None where shoppers are anonymous or nothing needs it."""

    @property
    def n_sessions(self) -> int:
        return len(self.offset) - 1

    @property
    def n_rows(self) -> int:
        """P: events that have an event before them in their session."""
        return len(self.item) - self.n_sessions

    def target_events(self) -> np.ndarray:
        """[P] int64 indices of the events to predict, in the order of the rows."""
        is_target = np.ones(len(self.item), dtype=bool)
        is_target[self.offset[:-1]] = False
        return np.flatnonzero(is_target)

    def part(self, start: int, stop: int) -> SessionBatch:
        """Sessions start..stop-1 (views, no copy)."""
        first, last = int(self.offset[start]), int(self.offset[stop])
        return SessionBatch(
            item=self.item[first:last],
            kind=self.kind[first:last],
            time=self.time[first:last],
            offset=self.offset[start : stop + 1] - first,
            user=None if self.user is None else self.user[start:stop],
            history=None if self.history is None else self.history[start:stop],
        )

    def check_live(self) -> None:
        """Raises `InputError` for a batch that is not one session of at least one event, as `recommend` takes it."""
        if self.n_sessions != 1 or len(self.item) == 0:
            raise InputError(
                f"recommend: expected one session of at least one event, found {self.n_sessions} sessions with "
                f"{len(self.item)} events; use score_sessions for more"
            )

    def with_unknown_next(self) -> SessionBatch:
        """One live session with a stand-in for its next event, so that its last row is the one to recommend from.

        Raises `InputError` as `check_live` does.
        """
        self.check_live()
        return replace(
            self,
            item=np.append(self.item, self.item[-1:]),
            kind=np.append(self.kind, np.uint8(CLICK)),
            time=np.append(self.time, self.time[-1:]),
            offset=self.offset + np.array([0, 1]),
        )

    def state_events(self) -> np.ndarray:
        """[P] int64 indices of the newest event that each row may use: the one before its target."""
        return self.target_events() - 1


@dataclass(frozen=True, eq=False)
class SessionLog:
    """Recorded sessions. E events, S sessions (each of at least one event), N items.

    Items are ``0..N-1`` and padding is ``N``, so that an action *is* an item. Arrays are read-only.
    Raises `InputError` where the columns do not fit each other.
    """

    item: np.ndarray
    """[E] int32."""
    kind: np.ndarray
    """[E] uint8, CLICK or PURCHASE."""
    time: np.ndarray
    """[E] int64, nanoseconds since the epoch, UTC."""
    offset: np.ndarray
    """[S + 1] int64, session s is events offset[s]:offset[s + 1]."""
    session_id: np.ndarray
    """[S] original ids (integers or strings)."""
    item_id: np.ndarray
    """[N] original ids of the items."""
    user: np.ndarray | None = None
    """[S] int32, or None."""
    n_train_items: int = -1
    """Items 0..n_train_items-1 occur in the training split, later ones do not (-1: all do)."""
    notes: tuple[str, ...] = ()
    """Caveats that every table made from this log must state (an imposed order, simulated shoppers)."""
    path: Path | None = field(default=None, repr=False)
    """The folder that the columns are mapped from, if any."""
    recorded_fingerprint: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, dtype in _COLUMNS.items():
            column = np.asanyarray(getattr(self, name))
            if column.dtype != dtype:
                column = column.astype(dtype)
            object.__setattr__(self, name, _read_only(column))
        for name in ("session_id", "item_id"):
            object.__setattr__(self, name, _read_only(np.asanyarray(getattr(self, name))))
        if self.user is not None:
            object.__setattr__(self, "user", _read_only(np.asanyarray(self.user, dtype=np.int32)))
        if self.n_train_items < 0:
            object.__setattr__(self, "n_train_items", len(self.item_id))
        object.__setattr__(self, "notes", tuple(self.notes))
        self._check()

    def _check(self) -> None:
        where = str(self.path) if self.path else "SessionLog"
        n_events, n_sessions = len(self.item), len(self.offset) - 1
        if not (len(self.kind) == len(self.time) == n_events):
            raise InputError(
                f"{where}: item, kind and time must be of one length, "
                f"found {n_events}, {len(self.kind)} and {len(self.time)}; prepare the data again"
            )
        if n_sessions < 0 or self.offset[0] != 0 or self.offset[-1] != n_events or (np.diff(self.offset) <= 0).any():
            raise InputError(
                f"{where}: offset must rise from 0 to the number of events ({n_events}) with no empty session; "
                "prepare the data again"
            )
        if len(self.session_id) != n_sessions or (self.user is not None and len(self.user) != n_sessions):
            raise InputError(f"{where}: session_id and user must have one entry for each of the {n_sessions} sessions")
        if n_events and not (0 <= int(self.item.min()) and int(self.item.max()) < self.n_items):
            raise InputError(
                f"{where}: items must be 0..{self.n_items - 1}, found {self.item.min()}..{self.item.max()}"
            )
        if n_events and int(self.kind.max()) > PURCHASE:
            raise InputError(f"{where}: kind must be 0 (click) or 1 (purchase), found {self.kind.max()}")

    @property
    def n_events(self) -> int:
        return len(self.item)

    @property
    def n_sessions(self) -> int:
        return len(self.offset) - 1

    @property
    def n_items(self) -> int:
        return len(self.item_id)

    @property
    def padding(self) -> int:
        """The item number that stands for "nothing": N."""
        return self.n_items

    @property
    def length(self) -> np.ndarray:
        """[S] events of each session."""
        return np.diff(self.offset)

    @property
    def n_purchases(self) -> int:
        return int(np.count_nonzero(self.kind == PURCHASE))

    def fingerprint(self) -> str:
        """Hex digest of the content, the same in memory and on disk."""
        if self.recorded_fingerprint is not None:
            return self.recorded_fingerprint
        digest = hashlib.blake2b(digest_size=16)
        for name in (*_COLUMNS, "session_id", "item_id", "user"):
            column = getattr(self, name)
            if column is None:
                continue
            digest.update(f"{name}{column.dtype.str}{column.shape}".encode())
            digest.update(np.ascontiguousarray(column).data.cast("B"))
        digest.update(str(self.n_train_items).encode())
        object.__setattr__(self, "recorded_fingerprint", digest.hexdigest())
        assert self.recorded_fingerprint is not None
        return self.recorded_fingerprint

    def select(self, sessions: np.ndarray) -> SessionLog:
        """The sessions with the given numbers, in the order of their numbers; items keep theirs."""
        sessions = np.unique(np.asarray(sessions, dtype=np.int64))
        events, offset = _events_of(self.offset, sessions)
        return SessionLog(
            item=self.item[events],
            kind=self.kind[events],
            time=self.time[events],
            offset=offset,
            session_id=self.session_id[sessions],
            item_id=self.item_id,
            user=None if self.user is None else self.user[sessions],
            n_train_items=self.n_train_items,
            notes=self.notes,
        )

    def batch(self, start: int = 0, stop: int | None = None) -> SessionBatch:
        """Sessions start..stop-1 as a `SessionBatch` (views, no copy). Carries no user history."""
        everything = SessionBatch(self.item, self.kind, self.time, self.offset, self.user)
        return everything.part(start, self.n_sessions if stop is None else stop)

    def batches(self, max_rows: int) -> Iterator[SessionBatch]:
        """All sessions in order, in batches of at most `max_rows` rows (a longer session makes a batch alone)."""
        rows_before = self.offset - np.arange(self.n_sessions + 1)
        start = 0
        while start < self.n_sessions:
            stop = int(np.searchsorted(rows_before, rows_before[start] + max_rows, side="right")) - 1
            stop = min(max(stop, start + 1), self.n_sessions)
            yield self.batch(start, stop)
            start = stop

    @classmethod
    def from_pandas(
        cls, frame: pd.DataFrame, item_id: np.ndarray | None = None, notes: Sequence[str] = ()
    ) -> SessionLog:
        """Columns ``session, item, time, kind`` and optionally ``user``, one row an event, in any order.

        `session` and `item` are integers or strings (original ids), `time` a datetime or integer nanoseconds since the
        epoch (UTC), `kind` 0/1 or "click"/"purchase". Events of a session are put in order of time, equal times in the
        order of the rows; sessions in order of their first event, equal starts in order of first appearance.
        `item_id` fixes the vocabulary (default: the items that occur, sorted). Raises `InputError` for an item outside
        it, for a missing value and for a column of another type.
        """
        import pandas as pd

        _check_frame(frame)
        time = frame["time"]
        if isinstance(time.dtype, pd.DatetimeTZDtype):
            time = time.dt.tz_convert("UTC").dt.tz_localize(None)
        if pd.api.types.is_datetime64_any_dtype(time):
            time = time.astype("datetime64[ns]")
        nanoseconds = time.to_numpy().astype(np.int64)
        kind = frame["kind"].to_numpy()
        if kind.dtype.kind not in "iub":
            codes = pd.Index(KIND_NAMES).get_indexer(kind)
            if (codes < 0).any():
                raise InputError(f"from_pandas: kind must be 0, 1, 'click' or 'purchase', found {kind[codes < 0][0]!r}")
            kind = codes

        session_code, session_id = pd.factorize(frame["session"].to_numpy())
        if item_id is None:
            item, vocabulary = pd.factorize(frame["item"].to_numpy(), sort=True)
            item_id = np.asarray(vocabulary)
        else:
            item = pd.Index(item_id).get_indexer(frame["item"].to_numpy())
            if (item < 0).any():
                found = frame["item"].to_numpy()[item < 0][0]
                raise InputError(f"from_pandas: item {found!r} is not in the given vocabulary of {len(item_id)} items")

        by_time = np.lexsort((nanoseconds, session_code))
        code = session_code[by_time]
        start = np.flatnonzero(np.r_[True, code[1:] != code[:-1]]) if len(code) else np.zeros(0, np.int64)
        order = np.lexsort((code[start], nanoseconds[by_time[start]]))
        offset = np.r_[start, len(code)].astype(np.int64)
        events, new_offset = _events_of(offset, order)
        events = by_time[events]
        user = None
        if "user" in frame.columns:
            user = frame["user"].to_numpy()[by_time[start]][order].astype(np.int32)
        return cls(
            item=item[events].astype(np.int32),
            kind=kind[events].astype(np.uint8),
            time=nanoseconds[events],
            offset=new_offset,
            session_id=_plain(np.asarray(session_id)[code[start]][order]),
            item_id=_plain(np.asarray(item_id)),
            user=user,
            notes=tuple(notes),
        )

    def to_pandas(self) -> pd.DataFrame:
        """Columns ``session, item`` (original ids), ``time`` (UTC), ``kind`` (0/1) and, if known, ``user``."""
        import pandas as pd

        columns: dict[str, Any] = {
            "session": np.repeat(self.session_id, self.length),
            "item": self.item_id[self.item],
            "time": pd.to_datetime(np.asarray(self.time), utc=True, unit="ns"),
            "kind": np.asarray(self.kind),
        }
        if self.user is not None:
            columns["user"] = np.repeat(self.user, self.length)
        return pd.DataFrame(columns)

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> SessionLog:
        """Write to a folder, whole or not at all, and return the log mapped from there."""
        with new_folder(folder, overwrite) as temporary:
            self.write_columns(temporary)
        return SessionLog.open(folder)

    def write_columns(self, folder: Path) -> None:
        """Write columns and manifest into an existing folder (`save` and prepared folders call this)."""
        names = [*_COLUMNS, "session_id", "item_id", *([] if self.user is None else ["user"])]
        for name in names:
            np.save(folder / f"{name}.npy", np.ascontiguousarray(getattr(self, name)), allow_pickle=False)
        write_json(
            folder / "manifest.json",
            {
                "format": "sessiongym.log",
                "schema": SCHEMA,
                "columns": names,
                "n_events": self.n_events,
                "n_sessions": self.n_sessions,
                "n_items": self.n_items,
                "n_train_items": self.n_train_items,
                "notes": list(self.notes),
                "fingerprint": self.fingerprint(),
            },
        )

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> SessionLog:
        """Map a saved log. Raises `InputError` for a missing, foreign, damaged or newer folder."""
        path = Path(folder)
        manifest = read_manifest(path, "sessiongym.log")
        missing = {"columns", "n_train_items", "notes", "fingerprint"} - manifest.keys()
        if missing:
            raise InputError(f"{path / 'manifest.json'}: {sorted(missing)} missing; prepare the data again")
        check_values(path, manifest, {"columns": list, "n_train_items": int, "notes": list, "fingerprint": str})
        expected = {*_COLUMNS, "session_id", "item_id"}
        if sorted(map(str, manifest["columns"])) not in (sorted(expected), sorted(expected | {"user"})):
            raise InputError(
                f"{path / 'manifest.json'}: expected columns {sorted(expected)} and maybe 'user', "
                f"found {manifest['columns']}; prepare the data again"
            )
        columns = {name: _open_column(path, name) for name in manifest["columns"]}
        if not 0 <= manifest["n_train_items"] <= len(columns["item_id"]):
            raise InputError(
                f"{path / 'manifest.json'}: n_train_items must be 0..{len(columns['item_id'])}, "
                f"found {manifest['n_train_items']}; prepare the data again"
            )
        return cls(
            **columns,
            n_train_items=manifest["n_train_items"],
            notes=tuple(manifest["notes"]),
            path=path.resolve(),
            recorded_fingerprint=manifest["fingerprint"],
        )

    def __deepcopy__(self, memo: dict) -> SessionLog:
        # Gymnasium deep-copies the keyword arguments of an environment.
        return self

    def __reduce__(self) -> tuple:
        # A mapped log travels as its path, or every worker process would get a copy of the data.
        if self.path is not None:
            return SessionLog.open, (str(self.path),)
        fields = ("item", "kind", "time", "offset", "session_id", "item_id", "user", "n_train_items", "notes")
        return SessionLog, tuple(getattr(self, name) for name in fields)


@dataclass(frozen=True, eq=False)
class PreparedData:
    """The three splits of one data set, one vocabulary for all, and the manifest of how they came about."""

    train: SessionLog
    valid: SessionLog
    test: SessionLog
    manifest: dict[str, Any]
    path: Path | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Caveats that every table made from this data must state."""
        return tuple(self.manifest.get("notes", ()))

    def fingerprint(self) -> str:
        """Hex digest of the content of all three splits."""
        parts = (self.train, self.valid, self.test)
        return hashlib.blake2b("".join(p.fingerprint() for p in parts).encode(), digest_size=16).hexdigest()

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> PreparedData:
        """Write ``train/ valid/ test/ manifest.json``, whole or not at all.

        Raises `InputError` for an empty split (nothing can be trained or reported on it) or an existing folder.
        """
        for name, part in (("train", self.train), ("valid", self.valid), ("test", self.test)):
            if part.n_sessions == 0:
                raise InputError(
                    f"{folder}: the {name} split is empty; nothing written. Loosen the filters or widen the split "
                    "(--test-days, --valid-days, --random-split, --min-item-support, --latest-days)"
                )
        with new_folder(folder, overwrite) as temporary:
            for name, part in (("train", self.train), ("valid", self.valid), ("test", self.test)):
                (temporary / name).mkdir()
                part.write_columns(temporary / name)
            head = {"format": "sessiongym.prepared", "schema": SCHEMA, "fingerprint": self.fingerprint()}
            # `head` twice: first in the file, and never overruled by the manifest of the folder the data came from.
            write_json(temporary / "manifest.json", {**head, **self.manifest, **head})
        return PreparedData.open(folder)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> PreparedData:
        """Map a prepared folder. Raises `InputError` for a missing, foreign, damaged or newer one."""
        path = Path(folder)
        manifest = read_manifest(path, "sessiongym.prepared")
        check_values(path, manifest, {"notes": list, "fingerprint": str})
        parts = {name: SessionLog.open(path / name) for name in ("train", "valid", "test")}
        for name, part in parts.items():
            if part.n_sessions == 0:
                raise InputError(f"{path / name}: the {name} split is empty; prepare the data again with a wider split")
        if len({part.n_items for part in parts.values()}) != 1:
            raise InputError(f"{path}: the splits have different vocabularies; prepare the data again")
        data = cls(**parts, manifest=manifest, path=path.resolve())
        if manifest.get("fingerprint") != data.fingerprint():
            raise InputError(
                f"{path}: its splits are not those that its manifest was written for; prepare the data again"
            )
        return data


def _check_frame(frame: pd.DataFrame) -> None:
    import pandas as pd

    missing = {"session", "item", "time", "kind"} - set(frame.columns)
    if missing:
        raise InputError(
            f"from_pandas: expected columns session, item, time, kind; missing {sorted(missing)}, "
            f"found {list(frame.columns)}; rename the columns"
        )
    for name in ("session", "item", "time", "kind", "user"):
        if name in frame.columns and frame[name].isna().to_numpy().any():
            row = int(np.argmax(frame[name].isna()))
            raise InputError(f"from_pandas: column {name!r} has no value in row {row}; fill in or drop such rows")
    types, time = pd.api.types, frame["time"]
    if not (types.is_integer_dtype(time) or types.is_datetime64_any_dtype(time)):
        raise InputError(
            f"from_pandas: column 'time' must hold datetimes or integer nanoseconds, found {time.dtype}; convert it"
        )
    if "user" in frame.columns and not types.is_integer_dtype(frame["user"]):
        raise InputError(
            f"from_pandas: column 'user' must hold integers, found {frame['user'].dtype}; number the users"
        )


def _open_column(folder: Path, name: str) -> np.ndarray:
    file, dtype = folder / f"{name}.npy", {**_COLUMNS, "user": np.int32}.get(name)
    try:
        try:
            column = np.load(file, mmap_mode="r", allow_pickle=False)
        except ValueError:
            # An empty array cannot be mapped; reading it costs nothing.
            column = np.load(file, allow_pickle=False)
    except Exception as error:
        # The header of an .npy file is Python source, and a damaged one makes NumPy raise nearly anything.
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: cannot be read as a column ({reason}); prepare the data again") from error
    if isinstance(column, np.ndarray):
        fits = column.dtype.kind in "iuU" if dtype is None else column.dtype == dtype
        if fits and column.ndim == 1:
            return column
        found = f"{column.dtype} {list(column.shape)}"
    else:
        found = "an archive"
    expected = "integers or text" if dtype is None else np.dtype(dtype).name
    raise InputError(f"{file}: expected one column of {expected}, found {found}; prepare the data again")


def _read_only(column: np.ndarray) -> np.ndarray:
    if column.flags.writeable:
        column = column.view()
        column.flags.writeable = False
    return column


def _plain(ids: np.ndarray) -> np.ndarray:
    """Ids as a dtype that .npy stores without pickle: integers stay, everything else becomes text."""
    return ids if ids.dtype.kind in "iu" else ids.astype(np.str_)


def _events_of(offset: np.ndarray, sessions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Event indices of the given sessions, one after the other, and the offsets of the result."""
    length = offset[sessions + 1] - offset[sessions]
    new_offset = np.zeros(len(sessions) + 1, dtype=np.int64)
    np.cumsum(length, out=new_offset[1:])
    events = np.arange(new_offset[-1]) + np.repeat(offset[sessions] - new_offset[:-1], length)
    return events, new_offset
