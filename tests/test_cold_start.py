"""Cold start: ranks by what was known after c events, equal to scoring sessions that end there."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sessiongym.envs import ReplayEnv
from sessiongym.envs.history import UserHistories
from sessiongym.envs.log import SessionLog
from sessiongym.errors import InputError
from sessiongym.evaluate.cold_start import cold_start_ranks
from sessiongym.evaluate.events import rank_events
from sessiongym.evaluate.metrics import match_rewards
from sessiongym.evaluate.models import parse_model
from sessiongym.evaluate.protocol import TOLERANCE

PAGE = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")

N = 25
CAPS = (1, 2, 4, 100, 0)

COUNTED = ("most-popular", "most-recent", "most-recent:bought=last", "s-pop", "item-knn", "item-knn@paper")
"""Scores are the same bit for bit, whatever else is in the batch."""

COMPUTED = (
    "session-knn",
    "session-knn@paper",
    "bpr:epochs=1,users=known",
    "gru4rec:epochs=1,hidden_units=8",
    "rnn:epochs=1,hidden_units=8",
    "ii-rnn-ap:epochs=1,hidden_units=8",
    "ii-rnn-lhs:epochs=1,hidden_units=8",
    "sasrec:epochs=1,hidden_units=8",
    "lstm:epochs=1,hidden_units=8",
    "irn-p:epochs=1,hidden_units=8",
    "sqn:epochs=1,hidden_units=8",
)
"""Scores depend on the shape of the batch in their last bits."""


@pytest.fixture(scope="module")
def log():
    """50 sessions of 10 users, one after the other, of 1 to 12 events."""
    rng = np.random.default_rng(4)
    length = rng.integers(1, 13, 50)
    session = np.repeat(np.arange(50), length)
    frame = pd.DataFrame(
        {
            "session": session,
            "user": session % 10,
            "item": rng.integers(0, N, len(session)),
            "time": np.arange(len(session)) * 10**9,
            "kind": (rng.random(len(session)) < 0.3).astype(int),
        }
    )
    return SessionLog.from_pandas(frame, item_id=np.arange(N))


@pytest.fixture(scope="module")
def splits(log):
    """The last two items are not in training."""
    train, test = log.select(np.arange(40)), log.select(np.arange(40, 50))
    return SessionLog.from_pandas(train.to_pandas()[train.item < N - 2], item_id=np.arange(N)), test


def _own(frame: pd.DataFrame, cap: int) -> pd.DataFrame:
    return frame.loc[frame["cap"] == cap].drop(columns="cap").reset_index(drop=True)


def _rows_of_beginnings(model, session):
    """What follows the first 1, 2, ... events of a session, each of these a session of its own."""
    rows = {}
    for kept in range(1, len(session.item)):
        beginning = dataclasses.replace(
            session,
            item=session.item[:kept],
            kind=session.kind[:kept],
            time=session.time[:kept],
            offset=np.array([0, kept]),
        )
        scores = model.score_sessions(beginning.with_unknown_next())
        rows[kept] = np.asarray(scores, dtype=np.float64)[-1]
    return rows


@pytest.mark.parametrize("name", [*COUNTED, *COMPUTED])
def test_ranks_are_those_of_sessions_that_end_at_the_cap(splits, name):
    train, test = splits
    model = parse_model(name).create(0, "cpu").fit(train, None)
    histories = UserHistories(train, test)
    found = cold_start_ranks(model, test, CAPS, train=train, histories=histories)
    beginnings = [
        _rows_of_beginnings(model, histories.attach(test.batch(session, session + 1)))
        for session in range(test.n_sessions)
    ]
    for cap in CAPS:
        ranks = _own(found, cap)[["session", "position", "item", "rank_low", "rank_high"]].to_numpy()
        for session, position, item, low, high in ranks.tolist():
            scores = beginnings[session][min(position - 1, cap or N)]
            own = scores[item]
            if name in COUNTED:
                assert (low, high) == ((scores > own).sum(), (scores >= own).sum())
            else:
                # Each of the two scores compared may be off by TOLERANCE.
                margin = 2 * TOLERANCE * np.abs(scores[np.isfinite(scores)]).max(initial=0.0)
                assert (scores > own + margin).sum() <= low < high <= (scores >= own - margin).sum()


@pytest.mark.parametrize("max_scores", [1, 500, 2**24])
def test_a_cap_that_no_session_reaches_and_none_give_the_event_table(splits, max_scores):
    train, test = splits
    model = parse_model("session-knn").create(0, "cpu").fit(train, None)
    found = cold_start_ranks(model, test, CAPS, train=train, max_scores=max_scores)
    expected = rank_events(model, test, train=train)
    for cap in (100, 0):
        pd.testing.assert_frame_equal(_own(found, cap), expected)
    assert found["cap"].unique().tolist() == list(CAPS)
    for cap in (1, 2, 4):
        ranks, known = _own(found, cap), expected["position"].to_numpy() <= cap + 1
        pd.testing.assert_frame_equal(ranks.loc[known], expected.loc[known])
        assert (ranks["rank_low"].to_numpy() != expected["rank_low"].to_numpy()).any()
        bounds = ["rank_low", "rank_high"]
        pd.testing.assert_frame_equal(ranks.drop(columns=bounds), expected.drop(columns=bounds))


def test_every_session_is_scored_once(splits):
    train, test = splits
    scored = []

    class Counting:
        def score_sessions(self, batch):
            scored.append(batch.n_rows)
            return np.zeros((batch.n_rows, N), np.float32)

    told = []
    cold_start_ranks(
        Counting(),  # pyright: ignore[reportArgumentType]
        test,
        tuple(range(1, 11)),
        train=train,
        max_scores=600,
        progress=lambda done, total: told.append((done, total)),
    )
    n_rows = test.n_events - test.n_sessions
    assert sum(scored) == n_rows and len(scored) > 1 and told[-1] == (n_rows, n_rows)


def test_items_not_in_training_are_a_miss_under_every_cap(splits):
    train, test = splits
    test = dataclasses.replace(test, n_train_items=N - 2)
    model = parse_model("most-popular").create(0, "cpu").fit(train, None)
    found = cold_start_ranks(model, test, (1, 3))
    unseen = found["item"].to_numpy() >= N - 2
    assert unseen.any() and (found.loc[unseen, ["rank_low", "rank_high"]] == N).all(axis=None)
    assert (found.loc[~unseen, "rank_low"] < N).all()


@pytest.mark.parametrize("cap", [1, 3])
@pytest.mark.parametrize("k", [1, 4])
def test_the_reward_is_what_an_agent_earns_in_the_environment_that_freezes_its_state(splits, cap, k):
    train, test = splits
    # A score of its own for every pair of items: no ties, so that the best k are certain.
    table = np.random.default_rng(8).permutation(N * N).reshape(N, N).astype(np.float32)

    class Table:
        def score_sessions(self, batch):
            return table[batch.item[batch.state_events()]]

    events = _own(cold_start_ranks(Table(), test, (cap,), train=train), cap)  # pyright: ignore[reportArgumentType]
    expected = match_rewards(events, k, rewards=(1.0, 5.0), gamma=0.9).sum()

    env = ReplayEnv(test, window=3, slate=None if k == 1 else k, rewards=(1.0, 5.0), cold_start=cap)
    state, info = env.reset(seed=0)
    earned, discount = 0.0, 1.0
    while info["pass"] == 0:
        best = np.argsort(-table[state[-1]])[:k]
        state, reward, terminated, _, info = env.step(best[0] if k == 1 else best)
        earned += discount * float(reward)
        discount *= 0.9
        if terminated:
            state, info = env.reset()
            discount = 1.0
    assert earned > 0
    assert earned == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("caps", [(), (-1, 2), (2, 1), (1, 1), (0, 1), (1, 0, 0)])
def test_caps_that_are_none_negative_or_out_of_order_are_refused(splits, caps):
    model = parse_model("most-popular").create(0, "cpu").fit(splits[0], None)
    with pytest.raises(InputError, match="cold start: expected caps of 1 or more in rising order"):
        cold_start_ranks(model, splits[1], caps)


def test_the_example_of_the_page_prints_what_it_shows(tmp_path):
    block = {kind: text for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)}
    for command in (["-m", *block["bash"].split()], ["-c", block["python"]]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stdout == block["text"]
