"""`session_windows` gives the observations that the replay environment would have shown."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym.envs.log import SessionLog
from sessiongym.envs.observation import session_windows
from sessiongym.envs.replay import ReplayEnv, ReplayVectorEnv

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
N = 20


def log_of(lengths: list[int], seed: int = 0) -> SessionLog:
    n_events = sum(lengths)
    return SessionLog.from_pandas(
        pd.DataFrame(
            {
                "session": np.repeat(np.arange(len(lengths)), lengths),
                "item": np.random.default_rng(seed).integers(0, N, n_events),
                "time": np.arange(n_events),
                "kind": np.zeros(n_events, dtype=int),
            }
        ),
        item_id=np.arange(N),
    )


def seen_in_the_environment(log: SessionLog, window: int) -> np.ndarray:
    """[P, W] the observation before every step of one pass, session after session."""
    env = ReplayEnv(log, window=window)
    rows = []
    observation, info = env.reset(seed=0)
    while info["pass"] == 0:
        ended = False
        while not ended:
            rows.append(observation)
            observation, _, ended, _, info = env.step(0)
        observation, info = env.reset()
    return np.stack(rows)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 6))
def test_windows_are_the_observations_of_a_pass(lengths, window):
    log = log_of([*lengths, 2])
    found = session_windows(log.batch(), window, N)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, seen_in_the_environment(log, window))


@pytest.mark.parametrize("window", [1, 3, 20])
def test_windows_of_part_of_a_log_are_those_rows_of_the_whole(window):
    log = log_of([4, 1, 30, 2, 7], seed=1)
    whole = session_windows(log.batch(), window, N)
    parts = [session_windows(batch, window, N) for batch in log.batches(5)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert (whole[:, -1] < N).all()


def test_a_batch_without_rows_has_no_windows():
    assert session_windows(log_of([1, 1]).batch(), 4, N).shape == (0, 4)
    log = log_of([1, 1])
    assert session_windows(log.select(np.zeros(0, dtype=int)).batch(), 4, N).shape == (0, 4)


def test_windows_of_a_real_log_are_the_observations_of_many_lanes():
    file = DATA / "taobao_actions" / "events.csv"
    if not file.exists():
        pytest.skip(f"{file} is not there; set SESSIONGYM_DATA to the data folder")
    raw = pd.read_csv(file, nrows=20_000)
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
    assert log.length.max() > 20
    expected = session_windows(log.batch(), 20, log.n_items)
    found = np.full_like(expected, -1)
    env = ReplayVectorEnv(log, 32, terminal_info=False)
    # The row of the first state of each session; each step of a lane moves one row on.
    first_row = log.offset[:-1] - np.arange(log.n_sessions)
    observation, info = env.reset(seed=0)
    row = first_row[info["session"]]
    while (info["pass"] == 0).any():
        first_pass = info["pass"] == 0
        found[row[first_pass]] = observation[first_pass]
        observation, _, ended, _, info = env.step(np.zeros(32, dtype=int))
        row = np.where(ended, first_row[info["session"]], row + 1)
    np.testing.assert_array_equal(found, expected)
