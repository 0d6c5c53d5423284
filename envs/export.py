"""Logged transitions as files for other tools: Parquet and Minari. docs/offline-data.md says what is in them."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError
from .log import KIND_NAMES, SessionLog
from .replay import ReplayEnv
from .replay_options import NO_KIND, ReplayOptions
from .transitions import Transitions, logged_transitions

FORMAT_VERSION = 1
"""Version of the columns and of the metadata."""

METADATA_KEY = "sessiongym"
"""Key of the metadata of a Parquet file (JSON) and of a Minari dataset."""

MANY_SESSIONS = 100_000
"""Above this `export_minari` warns, because Minari writes a group of data sets for each session."""

Progress = Callable[[int, int, str], None]
"""Takes done, total, text."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    sessions: int
    transitions: int


def items_file(file: str | os.PathLike[str]) -> Path:
    """The vocabulary beside an export: ``transitions.items.parquet`` for ``transitions.parquet``."""
    return Path(file).with_suffix(".items.parquet")


def export_parquet(
    log: SessionLog | str | os.PathLike[str],
    file: str | os.PathLike[str],
    *,
    compact: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Exported:
    """Write `logged_transitions(log, **options)` to `file` and the items to `items_file(file)`, whole or not at all.

    With `compact` the rows hold the newest item in place of windows, which are rebuilt as docs/offline-data.md shows.
    Raises `InputError` as `logged_transitions` does, where a file exists and `overwrite` is off, and for `compact` with
    a `cold_start`, whose frozen states the rows cannot give.
    """
    file = Path(file)
    for path in (file, items_file(file)):
        if path.is_dir() or (path.exists() and not overwrite):
            raise InputError(f"{path}: already exists and is not overwritten; choose another --out or pass --overwrite")
    if compact and options.get("cold_start") is not None:
        raise InputError("compact: frozen states cannot be rebuilt from the rows; leave out compact or cold_start")
    log = log if isinstance(log, SessionLog) else SessionLog.open(log)
    chunks = logged_transitions(log, **(options | {"window": 1} if compact else options))
    metadata = {"compact": compact, **_metadata(log, options)}
    first = next(chunks)
    schema = _record_batch(first, log, metadata).schema
    sessions = transitions = 0
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
        rows, items = Path(folder, "rows"), Path(folder, "items")
        # Windows repeat the one before them, which zstd sees and dictionaries only hide.
        with pq.ParquetWriter(rows, schema, compression="zstd", use_dictionary=False) as writer:
            for chunk in itertools.chain([first], chunks):
                writer.write_batch(_record_batch(chunk, log, metadata))
                sessions, transitions = sessions + int(chunk.done.sum()), transitions + len(chunk)
                if progress is not None:
                    progress(int(chunk.session[-1]) + 1, log.n_sessions, f"{transitions:,} transitions")
        vocabulary = pa.table({"item": np.arange(log.n_items, dtype=np.int32), "item_id": pa.array(log.item_id)})
        pq.write_table(vocabulary.replace_schema_metadata(schema.metadata), items, compression="zstd")
        # In this order, where there are rows there are items.
        os.replace(items, items_file(file))
        os.replace(rows, file)
    return Exported(sessions, transitions)


def export_minari(
    log: SessionLog | str | os.PathLike[str],
    dataset_id: str,
    n_sessions: int = 1000,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Exported:
    """Write a random sample of at most `n_sessions` sessions, in their order, as episodes of a new Minari dataset.

    `options` are those of `logged_transitions`. An episode of T events to decide has T + 1 observations and the infos
    `logged_kind` [T + 1] uint8 (2 at the start, which consumed no event) and `session` [T + 1] int64, its number in
    `log`. Warns above 100,000 sessions. An interrupted export leaves no dataset behind.
    Raises `InputError` as `logged_transitions` does, where minari is not installed, and for an id that is taken or that
    Minari does not take.
    """
    try:
        import h5py  # noqa: F401 - Minari asks for it only after it has made the dataset
        import minari
        from minari.dataset.minari_dataset import parse_dataset_id
        from minari.storage.datasets_root_dir import get_dataset_path
    except ImportError:
        raise InputError("minari or h5py is not installed; run pip install 'sessiongym[minari]'") from None
    try:
        parse_dataset_id(dataset_id)
    except (TypeError, ValueError):
        raise InputError(f"--dataset-id: expected a name such as shop/replay-v0, found {dataset_id!r}") from None
    folder = get_dataset_path(dataset_id)
    if folder.exists():
        raise InputError(f"{folder}: already exists and is not overwritten; choose another version in --dataset-id")
    if n_sessions < 1:
        raise InputError(f"--sessions: expected at least 1, found {n_sessions}")
    log = log if isinstance(log, SessionLog) else SessionLog.open(log)
    short = logged_transitions(log, **{**options, "window": 1})
    replayed = np.concatenate([chunk.session[chunk.done] for chunk in short])
    chosen = replayed
    if n_sessions < len(replayed):
        chosen = np.random.default_rng(seed).choice(replayed, n_sessions, replace=False)
    if len(chosen) > MANY_SESSIONS:
        warnings.warn(_minari_cost(len(chosen)), stacklevel=2)
    env = ReplayEnv(log, **{**options, "feedback": "logged"})
    episodes = _episodes(log, np.sort(chosen), options, progress)
    try:
        with warnings.catch_warnings():
            # About authors, permalinks and an environment to evaluate in, which recorded data has not.
            warnings.filterwarnings("ignore", category=UserWarning, module="minari")
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                episodes,  # type: ignore[arg-type] - any iterable does, and a generator holds one session at a time
                observation_space=env.observation_space,
                action_space=env.action_space,
                algorithm_name="logged",
                description="; ".join(("Logged shopping sessions, actions of unknown propensity", *log.notes)),
                data_format="hdf5",
            )
            metadata = {**_metadata(log, options), "sampled_sessions": len(chosen), "sample_seed": seed}
            dataset.storage.update_metadata({METADATA_KEY: metadata})
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Exported(dataset.total_episodes, dataset.total_steps)


def _minari_cost(sessions: int) -> str:
    # 685 sessions/s and 20.0 kB each were measured at 10,000 sessions of four transitions on one core, window 20.
    minutes, gigabytes = sessions / 685 / 60, sessions * 20e3 / 1e9
    return (
        f"export_minari: {sessions:,} sessions will take about {minutes:,.0f} minutes and {gigabytes:,.1f} GB; "
        f"above {MANY_SESSIONS:,} sessions export_parquet is the better door"
    )


def _metadata(log: SessionLog, options: dict[str, Any]) -> dict[str, Any]:
    """What a reader must know beside the rows, as JSON takes it."""
    replay = asdict(ReplayOptions.of({**options, "feedback": "logged"}))
    names = ("window", "rewards", "density", "drop", "density_seed", "cold_start", "kinds")
    return {
        "format": "sessiongym.transitions",
        "format_version": FORMAT_VERSION,
        "n_items": log.n_items,
        "padding": log.padding,
        "kind_names": list(KIND_NAMES),
        "kind_padding": NO_KIND,
        **{name: replay[name] for name in names},
        "log_fingerprint": log.fingerprint(),
        "notes": list(log.notes),
    }


def _record_batch(chunk: Transitions, log: SessionLog, metadata: dict[str, Any]) -> pa.RecordBatch:
    number = int(chunk.session[0])
    session_id = pa.array(log.session_id[number : int(chunk.session[-1]) + 1])
    columns: dict[str, np.ndarray | pa.Array | None] = {
        "session": chunk.session,
        "session_id": session_id.take(pa.array(chunk.session - number)),
        "time": pa.array(chunk.time, pa.timestamp("ns", tz="UTC")),
    }
    if metadata["compact"]:
        kinds = chunk.observation_kind
        columns["start"] = np.append(True, chunk.done[:-1])
        columns |= {"item": chunk.observation[:, -1], "item_kind": None if kinds is None else kinds[:, -1]}
    else:
        columns |= {"observation": chunk.observation, "observation_kind": chunk.observation_kind}
    columns |= {"action": chunk.action, "kind": chunk.kind, "reward": chunk.reward, "done": chunk.done}
    if not metadata["compact"]:
        columns |= {
            "next_observation": chunk.next_observation,
            "next_observation_kind": chunk.next_observation_kind,
        }
    arrays = {name: _arrow(column) for name, column in columns.items() if column is not None}
    fields = [pa.field(name, array.type, nullable=False) for name, array in arrays.items()]
    schema = pa.schema(fields, metadata={METADATA_KEY: json.dumps(metadata, ensure_ascii=False)})
    return pa.record_batch(list(arrays.values()), schema=schema)


def _arrow(column: np.ndarray | pa.Array) -> pa.Array:
    """Windows [P, W] become lists of the fixed size W."""
    if isinstance(column, pa.Array) or column.ndim == 1:
        return pa.array(column)
    element = pa.field("element", pa.from_numpy_dtype(column.dtype), nullable=False)
    return pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), type=pa.list_(element, column.shape[1]))


def _episodes(
    log: SessionLog, sessions: np.ndarray, options: dict[str, Any], progress: Progress | None
) -> Iterator[Any]:
    """An `EpisodeBuffer` for each of the sessions with the given numbers, one at a time."""
    from minari.data_collector import EpisodeBuffer

    done = 0
    for chunk in logged_transitions(log, **options):
        stops = np.flatnonzero(chunk.done) + 1
        starts = np.append(0, stops[:-1])
        wanted = np.isin(chunk.session[starts], sessions)
        for start, stop in zip(starts[wanted], stops[wanted], strict=True):
            rows, last = slice(start, stop), slice(stop - 1, stop)
            observations: Any = np.concatenate((chunk.observation[rows], chunk.next_observation[last]))
            if chunk.observation_kind is not None and chunk.next_observation_kind is not None:
                kinds = np.concatenate((chunk.observation_kind[rows], chunk.next_observation_kind[last]))
                observations = {"items": observations, "kinds": kinds}
            yield EpisodeBuffer(
                observations=observations,
                actions=chunk.action[rows].astype(np.int64),  # type: ignore[arg-type] - typed as lists, stored as arrays
                rewards=chunk.reward[rows],  # type: ignore[arg-type]
                terminations=chunk.done[rows],  # type: ignore[arg-type]
                truncations=np.zeros(stop - start, dtype=bool),  # type: ignore[arg-type]
                infos={
                    "logged_kind": np.append(np.uint8(NO_KIND), chunk.kind[rows]),
                    "session": np.full(stop - start + 1, chunk.session[start]),
                },
            )
            done += 1
            if progress is not None:
                progress(done, len(sessions), f"{done:,} of {len(sessions):,} sessions")
