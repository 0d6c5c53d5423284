"""Logged transitions of a session log as arrays, for learners that want data rather than an environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import InputError
from .log import SessionBatch, SessionLog
from .observation import session_windows
from .replay_options import NO_KIND, ReplayOptions
from .sparsity import thin_purchases


@dataclass(frozen=True, eq=False)
class Transitions:
    """P transitions (s, a, r, s', done) of logged sessions, whole sessions one after the other; W is the window.

    The action is the logged item, so the data is off-policy with unknown propensities.
    """

    observation: np.ndarray
    """[P, W] int32, items of the state, oldest to newest, padded on the left with N."""
    action: np.ndarray
    """[P] int32, item of the logged event."""
    reward: np.ndarray
    """[P] float32, its logged reward."""
    next_observation: np.ndarray
    """[P, W] int32, the state after that event, also where it ends the session."""
    done: np.ndarray
    """[P] bool, that event ends the session."""
    kind: np.ndarray
    """[P] uint8, kind of that event: 0 click, 1 purchase."""
    session: np.ndarray
    """[P] int64, number of the session in the log that was given."""
    time: np.ndarray
    """[P] int64, time of that event, nanoseconds since the epoch, UTC."""
    observation_kind: np.ndarray | None = None
    """[P, W] uint8, kinds of the items of `observation`, padded with 2; None without ``kinds=True``."""
    next_observation_kind: np.ndarray | None = None
    """[P, W] uint8, the same for `next_observation`."""

    def __len__(self) -> int:
        return len(self.action)


def logged_transitions(
    log: SessionLog | str | os.PathLike[str], *, max_rows: int = 65536, **options: Any
) -> Iterator[Transitions]:
    """Every event but a session's first, as stepping ``ReplayEnv(log, feedback="logged", **options)`` would give it.

    `log` is a `SessionLog` or the path of one, `options` are those of `ReplayOptions`. Chunks hold whole sessions and
    at most `max_rows` rows each (a longer session makes a chunk alone), so memory does not grow with the log.
    Raises `InputError` for ``feedback="match"``, ``order="shuffled"``, a slate or a shard, which logged events do not
    have (select the sessions of a shard first), and for a log without a session of two or more events.
    """
    checked = ReplayOptions.of({"feedback": "logged", **options})
    needed = {"feedback": "logged", "order": "chronological", "slate": None, "shard": (0, 1)}
    for name, expected in needed.items():
        found = getattr(checked, name)
        if found != expected:
            raise InputError(f"logged_transitions: expected {name}={expected!r}, found {found!r}; leave {name} out")
    if max_rows < 1:
        raise InputError(f"max_rows: expected at least 1, found {max_rows}")
    log = log if isinstance(log, SessionLog) else SessionLog.open(log)
    # Deleting purchases can delete sessions; the ids remember which number each had.
    numbered = replace(log, session_id=np.arange(log.n_sessions))
    thinned, silenced = thin_purchases(numbered, checked.density, checked.drop, checked.density_seed)
    if thinned.n_events == thinned.n_sessions:
        raise InputError(
            f"log {log.path or ''}: expected at least one session of two or more events, found none among "
            f"{thinned.n_sessions} sessions; prepare it with --min-session-length 2"
        )
    return _chunks(thinned, silenced, checked, max_rows)


def _chunks(
    log: SessionLog, silenced: np.ndarray | None, options: ReplayOptions, max_rows: int
) -> Iterator[Transitions]:
    reward_of_kind = np.asarray(options.rewards, dtype=np.float32)
    first_session = first_event = 0
    for batch in log.batches(max_rows):
        target = batch.target_events()
        if len(target):
            reward = reward_of_kind[batch.kind[target]]
            if silenced is not None:
                reward[silenced[first_event + target]] = 0.0
            observation, next_observation = _states(batch, batch.item, log.padding, options)
            kinds = _states(batch, batch.kind, NO_KIND, options) if options.kinds else (None, None)
            session = np.repeat(np.arange(batch.n_sessions), np.diff(batch.offset) - 1)
            yield Transitions(
                observation=observation,
                action=batch.item[target],
                reward=reward,
                next_observation=next_observation,
                done=target == batch.offset[session + 1] - 1,
                kind=batch.kind[target],
                session=log.session_id[first_session + session],
                time=batch.time[target],
                observation_kind=kinds[0],
                next_observation_kind=kinds[1],
            )
        first_session += batch.n_sessions
        first_event += len(batch.item)


def _states(
    batch: SessionBatch, column: np.ndarray, padding: int, options: ReplayOptions
) -> tuple[np.ndarray, np.ndarray]:
    """[P, W] windows of `column` before and after the target event of each row."""
    target = batch.target_events()
    before = session_windows(batch, options.window, padding, column)
    after = np.concatenate((before[:, 1:], column[target, None]), axis=1)
    if options.cold_start is None:
        return before, after
    n_seen = target - np.repeat(batch.offset[:-1], np.diff(batch.offset) - 1)
    # A frozen state is the one of the row that had seen just `cold_start` events.
    before = before[np.arange(len(target)) - np.maximum(n_seen - options.cold_start, 0)]
    return before, np.where((n_seen < options.cold_start)[:, None], after, before)
