"""`logged_transitions` gives, row for row, what stepping the replay environment through one pass gives."""

import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym.envs.log import CLICK, PURCHASE, SessionLog
from sessiongym.envs.replay import ReplayEnv
from sessiongym.envs.transitions import NO_KIND, Transitions, logged_transitions
from sessiongym.errors import InputError

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
N = 6


def log_of(sessions: list[list[tuple[int, int]]]) -> SessionLog:
    """A log of sessions of (item, kind) events, a nanosecond apart."""
    events = [event for session in sessions for event in session]
    return SessionLog(
        item=np.array([item for item, _ in events]),
        kind=np.array([kind for _, kind in events]),
        time=np.arange(len(events)) * 3 + 100,
        offset=np.cumsum([0, *map(len, sessions)]),
        session_id=np.array([f"s{number}" for number in range(len(sessions))]),
        item_id=np.arange(N) * 10,
    )


def joined(chunks: Iterable[Transitions]) -> Transitions:
    chunks = list(chunks)
    columns: dict[str, Any] = {}
    for field in fields(Transitions):
        parts = [getattr(chunk, field.name) for chunk in chunks]
        columns[field.name] = None if parts[0] is None else np.concatenate(parts)
    return Transitions(**columns)


def stepped(log: SessionLog, **options) -> dict[str, np.ndarray]:
    """One pass of the environment, a row a step."""
    env = ReplayEnv(log, feedback="logged", **options)
    rows = []
    observation, info = env.reset(seed=0)
    while info["pass"] == 0:
        ended = False
        while not ended:
            before = observation
            observation, reward, ended, _, info = env.step(0)
            session = env.log.session_id[info["session"]]
            rows.append((before, info["logged_action"], reward, observation, ended, info["logged_kind"], session))
        observation, info = env.reset()
    names = ("observation", "action", "reward", "next_observation", "done", "kind", "session_id")
    return {name: np.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


events = st.tuples(st.integers(0, N - 1), st.sampled_from([CLICK, CLICK, PURCHASE]))
session_lists = st.lists(st.lists(events, min_size=1, max_size=9), min_size=1, max_size=12)
options_given = st.fixed_dictionaries(
    {
        "window": st.integers(1, 6),
        "rewards": st.sampled_from([(1.0, 5.0), (0.0, 5.0), (0.1, -2.5)]),
        "density": st.sampled_from([0.0, 0.3, 0.7, 1.0]),
        "drop": st.sampled_from(["event", "reward", "click"]),
        "density_seed": st.integers(0, 3),
        "cold_start": st.sampled_from([None, 1, 2, 3, 5]),
    }
)


@settings(max_examples=150, deadline=None)
@given(session_lists, options_given, st.integers(1, 12))
def test_rows_are_the_steps_of_one_pass(sessions, options, max_rows):
    # The last session survives every option, so that there is always something to replay.
    log = log_of([*sessions, [(0, CLICK), (1, CLICK)]])
    chunks = list(logged_transitions(log, max_rows=max_rows, **options))
    found, expected = joined(chunks), stepped(log, **options)
    for name in ("observation", "action", "next_observation", "done", "kind"):
        np.testing.assert_array_equal(getattr(found, name), expected[name], err_msg=name)
    np.testing.assert_array_equal(found.reward, expected["reward"].astype(np.float32))
    np.testing.assert_array_equal(log.session_id[found.session], expected["session_id"])
    for chunk in chunks:
        assert chunk.done[-1] and (len(chunk) <= max_rows or len(set(chunk.session)) == 1)
        dtypes = [getattr(chunk, field.name).dtype for field in fields(chunk)[:8]]
        assert dtypes == [np.int32, np.int32, np.float32, np.int32, bool, np.uint8, np.int64, np.int64]


@settings(max_examples=100, deadline=None)
@given(session_lists, options_given)
def test_time_item_and_kind_lead_back_to_the_event(sessions, options):
    log = log_of([*sessions, [(0, CLICK), (1, CLICK)]])
    found = joined(logged_transitions(log, **{**options, "drop": "event"}))
    event = (found.time - 100) // 3
    np.testing.assert_array_equal(found.action, log.item[event])
    np.testing.assert_array_equal(found.kind, log.kind[event])
    np.testing.assert_array_equal(found.session, np.searchsorted(log.offset, event, side="right") - 1)
    assert (np.diff(event) > 0).all()


@settings(max_examples=100, deadline=None)
@given(session_lists, options_given)
def test_windows_of_kinds_are_windows_of_items_whose_items_are_kinds(sessions, options):
    log = log_of([*sessions, [(0, CLICK), (1, CLICK)]])
    # Kinds that no option changes, so that they can pose as items in a log of their own.
    options = {**options, "density": 1.0}
    relabelled = SessionLog(
        log.kind.astype(np.int32), log.kind, log.time, log.offset, log.session_id, np.arange(NO_KIND)
    )
    found = joined(logged_transitions(log, kinds=True, **options))
    expected = joined(logged_transitions(relabelled, **options))
    assert found.observation_kind is not None and found.next_observation_kind is not None
    np.testing.assert_array_equal(found.observation_kind, expected.observation)
    np.testing.assert_array_equal(found.next_observation_kind, expected.next_observation)
    assert found.observation_kind.dtype == found.next_observation_kind.dtype == np.uint8
    assert expected.observation_kind is None and expected.next_observation_kind is None


def test_a_saved_log_gives_what_the_log_in_memory_gives(tmp_path):
    log = log_of([[(0, 0), (1, 1)], [(2, 0)], [(3, 0), (3, 0), (4, 1)]])
    log.save(tmp_path / "log")
    expected = joined(logged_transitions(log, density=0.5, drop="reward"))
    for given_log in (str(tmp_path / "log"), tmp_path / "log", SessionLog.open(tmp_path / "log")):
        found = joined(logged_transitions(given_log, density=0.5, drop="reward"))
        for field in fields(Transitions)[:8]:
            np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feedback": "match"}, "expected feedback='logged', found 'match'"),
        ({"order": "shuffled"}, "expected order='chronological', found 'shuffled'"),
        ({"shard": (0, 2)}, r"expected shard=\(0, 1\), found \(0, 2\)"),
        ({"max_rows": 0}, "max_rows: expected at least 1, found 0"),
        ({"window": 0}, "window: expected at least 1 item, found 0"),
        ({"density": 1.5}, "density: expected a share"),
    ],
)
def test_what_logged_events_cannot_give_is_refused_at_once(options, message):
    with pytest.raises(InputError, match=message):
        logged_transitions(log_of([[(0, 0), (1, 1)]]), **options)


def test_a_log_with_nothing_to_decide_is_refused():
    with pytest.raises(InputError, match="at least one session of two or more events, found none among 2 sessions"):
        logged_transitions(log_of([[(0, 0)], [(1, 0)]]))
    with pytest.raises(InputError, match="found none among 1 sessions"):
        logged_transitions(log_of([[(0, 0), (1, 1)]]), density=0.0)


def test_no_event_of_a_real_log_is_lost():
    file = DATA / "taobao_actions" / "events.csv"
    if not file.exists():
        pytest.skip(f"{file} is not there; set SESSIONGYM_DATA to the data folder")
    raw = pd.read_csv(file)
    log = SessionLog.from_pandas(
        pd.DataFrame(
            {
                "session": raw["user_idx"],
                "item": raw["item_idx"],
                "time": raw["timestamp"] * 10**9,
                "kind": (raw["behaviour"] == "buy").astype(int),
            }
        )
    )
    chunks = list(logged_transitions(log, max_rows=1000))
    assert len(chunks) > 10
    assert sum(map(len, chunks)) == log.n_events - log.n_sessions
    assert sum(int(chunk.done.sum()) for chunk in chunks) == np.count_nonzero(log.length >= 2)
    first = np.zeros(log.n_events, dtype=bool)
    first[log.offset[:-1]] = True
    bought = np.count_nonzero((log.kind == PURCHASE) & ~first)
    assert bought > 0 and sum(int((chunk.kind == PURCHASE).sum()) for chunk in chunks) == bought
