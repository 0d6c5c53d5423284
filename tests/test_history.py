"""User histories: exactly what a user did before, whoever asks and however sessions are batched."""

import os
from bisect import bisect_left
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym.envs.history import UserHistories
from sessiongym.envs.log import PreparedData, SessionLog
from sessiongym.envs.sources.options import USER_HISTORY_OPTIONS, TableFormat
from sessiongym.envs.sources.table import prepare_table
from sessiongym.errors import InputError
from sessiongym.evaluate.events import purchase_recall, rank_events, validation_recall
from sessiongym.evaluate.protocol import RecommenderError, check_recommender

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
N = 9


def _log(sessions):
    """From (user, times) pairs; items and kinds follow from the times, so that a session is known by them."""
    rows = [
        (number, user, time, (7 * number + time) % N, time % 3 == 0)
        for number, (user, times) in enumerate(sessions)
        for time in times
    ]
    frame = pd.DataFrame(rows, columns=["session", "user", "time", "item", "kind"])
    return SessionLog.from_pandas(frame.astype({"kind": int}), item_id=np.arange(N))


def _events(batch):
    """Each session of a batch as its user and (item, kind, time) rows."""
    user = [None] * batch.n_sessions if batch.user is None else batch.user.tolist()
    rows = list(zip(batch.item.tolist(), batch.kind.tolist(), batch.time.tolist(), strict=True))
    return [(user[s], rows[batch.offset[s] : batch.offset[s + 1]]) for s in range(batch.n_sessions)]


@pytest.fixture(scope="session")
def random_log():
    rng = np.random.default_rng(3)
    return _log([(int(rng.integers(6)), sorted(rng.integers(0, 400, rng.integers(1, 6)).tolist())) for _ in range(80)])


SESSIONS = st.lists(
    st.tuples(
        st.sampled_from([-(2**31), 0, 1, 2**31 - 1]),
        st.lists(st.integers(-20, 20), min_size=1, max_size=4).map(sorted),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(logs=st.lists(SESSIONS, min_size=1, max_size=3))
def test_a_history_is_every_session_of_the_user_that_ended_before_and_nothing_else(logs):
    logs = [_log(sessions) for sessions in logs]
    everything = [session for log in logs for session in _events(log.batch())]
    for log in logs:
        attached = UserHistories(*logs).attach(log.batch())
        assert attached.history is not None and len(attached.history) == log.n_sessions
        for (user, rows), history in zip(_events(attached), attached.history, strict=True):
            found, start = _events(history), rows[0][2]
            expected = [other for other in everything if other[0] == user and other[1][-1][2] < start]
            assert sorted(found) == sorted(expected)
            ends = [rows[-1][2] for _, rows in found]
            assert ends == sorted(ends)


def test_histories_do_not_depend_on_how_sessions_are_batched(random_log):
    histories = UserHistories(random_log)
    together = histories.attach(random_log.batch()).history or ()
    for max_rows in (1, 7):
        alone = [h for batch in random_log.batches(max_rows) for h in histories.attach(batch).history or ()]
        assert [_events(h) for h in alone] == [_events(h) for h in together]


def test_histories_share_one_copy_of_the_events_that_no_model_can_write_to(random_log):
    history = UserHistories(random_log).attach(random_log.batch()).history
    assert history is not None
    of_one_user = [h for h, user in zip(history, random_log.user, strict=True) if user == 0 and h.n_sessions]
    assert np.shares_memory(of_one_user[0].item, of_one_user[-1].item)
    for column in ("item", "kind", "time", "user"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(of_one_user[-1], column)[0] = 0


def test_a_part_of_a_batch_keeps_its_histories(random_log):
    batch = UserHistories(random_log).attach(random_log.batch())
    part = batch.part(5, 9)
    assert _events(part) == _events(batch)[5:9]
    assert part.history is not None and batch.history is not None and part.history == batch.history[5:9]


def _prepared():
    """Three sessions of one user in each split."""
    splits = [_log([(4, [100 * n + k, 100 * n + k + 1]) for k in (0, 30, 60)]) for n in range(3)]
    return PreparedData(*splits, manifest={})


def test_validation_reads_train_and_valid_and_test_reads_all_three():
    data = _prepared()
    counts = {}
    for split in ("valid", "test"):
        histories = UserHistories.of(data, split)
        assert histories is not None
        counts[split] = [h.n_sessions for h in histories.attach(data.test.batch()).history or ()]
    assert counts == {"valid": [6, 6, 6], "test": [6, 7, 8]}
    anonymous = PreparedData(*(replace(log, user=None) for log in (data.train, data.valid, data.test)), manifest={})
    assert UserHistories.of(anonymous, "test") is None


def test_logs_that_know_no_users_or_other_items_are_refused(random_log):
    anonymous = replace(random_log, user=None)
    with pytest.raises(InputError, match="expected logs with users, found 2, 1 of them with users"):
        UserHistories(random_log, anonymous)
    with pytest.raises(InputError, match="found 0"):
        UserHistories()
    with pytest.raises(InputError, match="the batch has no users"):
        UserHistories(random_log).attach(anonymous.batch())
    other = replace(random_log, item_id=np.arange(N + 1))
    with pytest.raises(InputError, match="found logs of 9, 10 items"):
        UserHistories(random_log, other)


class HistoryReader:
    """An honest model: how often the user had each item in earlier sessions, and the current item on top."""

    def __init__(self):
        self.seen = []

    def fit(self, train, valid):
        return self

    def score_sessions(self, batch):
        self.seen.append(None if batch.history is None else [_events(h) for h in batch.history])
        counts = np.zeros((batch.n_sessions, N), dtype=np.float32)
        for row, history in zip(counts, batch.history or (), strict=False):
            row += np.bincount(history.item, minlength=N)
        scores = np.repeat(counts, np.diff(batch.offset) - 1, axis=0)
        scores[np.arange(len(scores)), batch.item[batch.state_events()]] += 0.5
        return scores

    def recommend(self, history, k):
        row = self.score_sessions(history.with_unknown_next())[-1]
        best = np.argsort(-row, kind="stable")[:k]
        return best, row[best]


class ReadsItsNeighbours(HistoryReader):
    """Sees the history of the first session of the batch in place of its own."""

    def score_sessions(self, batch):
        return super().score_sessions(replace(batch, history=batch.history[:1] * batch.n_sessions))


class WritesToHistory(HistoryReader):
    def score_sessions(self, batch):
        scores = super().score_sessions(batch)
        for history in batch.history:
            history.item[:] = 0
        return scores


def test_the_checker_gives_histories_and_finds_their_misuse(random_log):
    honest = HistoryReader()
    assert all(finding.passed for finding in check_recommender(honest, random_log))
    assert all(call is not None for call in honest.seen) and any(history for history in honest.seen[0])
    for model, broken in ((ReadsItsNeighbours(), "batch_invariant"), (WritesToHistory(), "input_unchanged")):
        with pytest.raises(RecommenderError) as error:
            check_recommender(model, random_log)
        assert broken in [finding.property for finding in error.value.findings if finding.passed is False]


def test_whoever_ranks_attaches_what_users_did_before():
    data = _prepared()
    all_before = UserHistories.of(data, "test")
    calls = {
        "given": lambda model: rank_events(model, data.test, train=data.train, histories=all_before),
        "train and log": lambda model: rank_events(model, data.test, train=data.train),
        "log alone": lambda model: rank_events(model, data.test),
        "validation": lambda model: validation_recall(model, data.test, histories=all_before),
        "validation alone": lambda model: purchase_recall(model, data.test),
    }
    found = {}
    for name, call in calls.items():
        model = HistoryReader()
        call(model)
        found[name] = [len(history) for batch in model.seen for history in batch]
    assert found["given"] == [6, 7, 8] and found["train and log"] == [3, 4, 5] and found["log alone"] == [0, 1, 2]
    assert found["validation"] == [6, 7, 8] and found["validation alone"] == [0, 1, 2]


def test_sessions_that_are_not_scored_are_still_history():
    log = _log([(1, [0, 1]), (1, [10, 12]), (1, [20, 22])])
    assert log.kind[1::2].tolist() == [0, 1, 0]
    model = HistoryReader()
    purchase_recall(model, log)
    assert [[len(history) for history in batch] for batch in model.seen] == [[1]]


def test_a_log_without_users_is_ranked_without_histories(random_log):
    model = HistoryReader()
    rank_events(model, replace(random_log, user=None))
    assert model.seen and all(call is None for call in model.seen)


def test_the_histories_of_real_users_hold_all_that_ended_before():
    file = DATA / "globo" / "clicks.parquet"
    if not file.is_file():
        pytest.skip(f"no real data at {file}; set SESSIONGYM_DATA")
    fmt = TableFormat(
        file, user="user_id", session="session_id", item="click_article_id", time="click_timestamp", time_unit="ms"
    )
    data = prepare_table(fmt, USER_HISTORY_OPTIONS)
    ends = {}
    for log in (data.train, data.valid, data.test):
        assert log.user is not None
        for user, end in zip(log.user.tolist(), log.time[log.offset[1:] - 1].tolist(), strict=True):
            ends.setdefault(user, []).append(end)
    ends = {user: sorted(of_user) for user, of_user in ends.items()}
    histories = UserHistories.of(data, "test")
    assert histories is not None
    batch = histories.attach(data.test.batch())
    assert batch.user is not None and batch.history is not None
    start = batch.time[batch.offset[:-1]].tolist()
    expected = [bisect_left(ends[user], moment) for user, moment in zip(batch.user.tolist(), start, strict=True)]
    assert [history.n_sessions for history in batch.history] == expected
    assert all(h.n_sessions == 0 or h.time.max() < moment for h, moment in zip(batch.history, start, strict=True))
    assert min(expected) >= 1, "the split leaves every tested user sessions in train and valid"
