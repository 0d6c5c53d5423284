"""`check_recommender` passes honest models and names exactly the property that a broken one breaks."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from sessiongym.envs.log import SessionBatch, SessionLog
from sessiongym.errors import InputError
from sessiongym.evaluate.protocol import PROPERTIES, Recommender, RecommenderError, check_recommender

N = 40


@pytest.fixture(scope="module")
def log():
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "session": rng.integers(0, 50, 400),
            "item": rng.integers(0, N, 400),
            "time": rng.integers(0, 10**15, 400),
            "kind": (rng.random(400) < 0.3).astype(int),
        }
    )
    return SessionLog.from_pandas(frame, item_id=np.arange(N))


class Markov:
    """An honest model: the next item from the current one."""

    def __init__(self):
        self.table = np.random.default_rng(0).standard_normal((N, N)).astype(np.float32)

    def fit(self, train, valid):
        return self

    def score_sessions(self, batch):
        return self.table[batch.item[batch.state_events()]]

    def recommend(self, history, k):
        last = len(history.item) - 1
        longer = SessionBatch(
            item=np.append(history.item, history.item[last]),
            kind=np.append(history.kind, history.kind[last]),
            time=np.append(history.time, history.time[last]),
            offset=np.array([0, last + 2]),
        )
        row = torch.as_tensor(self.score_sessions(longer)).detach().numpy()[-1]
        best = np.argsort(-row, kind="stable")[:k]
        return best, row[best]


class Decayed(Markov):
    """An honest model of the whole past, in torch, whose rows depend on every earlier event, kind and time."""

    def score_sessions(self, batch):
        rows = []
        for s in range(batch.n_sessions):
            state = np.zeros(N, np.float32)
            first, last = batch.offset[s], batch.offset[s + 1]
            for event in range(first, last - 1):
                pause = batch.time[event] - batch.time[max(event - 1, first)]
                state = np.float32(0.5 + 0.3 * (pause > 10**14)) * state + self.table[batch.item[event]]
                state[batch.item[event]] -= batch.kind[event]
                rows.append(state)
        return torch.from_numpy(np.stack(rows)).requires_grad_()


class Counts(Markov):
    """Full of ties, and -inf for what occurred already."""

    def score_sessions(self, batch):
        scores = np.tile(np.arange(N, dtype=np.float32) // 10, (batch.n_rows, 1))
        scores[np.arange(batch.n_rows), batch.item[batch.state_events()]] = -np.inf
        return scores


@pytest.mark.parametrize("model", [Markov(), Decayed(), Counts()], ids=lambda m: type(m).__name__)
def test_honest_models_pass(model, log):
    assert isinstance(model, Recommender)
    findings = check_recommender(model, log)
    assert tuple(f.property for f in findings) == PROPERTIES
    assert all(f.passed and not f.detail for f in findings)


class ReadsTheTarget(Markov):
    def score_sessions(self, batch):
        scores = super().score_sessions(batch).copy()
        scores[np.arange(batch.n_rows), batch.item[batch.target_events()]] += 1
        return scores


class ReadsTheLastKind(Markov):
    """Knows whether the session's last event is a purchase."""

    def score_sessions(self, batch):
        scores = super().score_sessions(batch)
        ends_in_purchase = batch.kind[batch.offset[1:] - 1] == 1
        return scores * np.repeat(1 + ends_in_purchase, np.diff(batch.offset) - 1)[:, None].astype(np.float32)


class ReadsTheNextPause(Markov):
    def score_sessions(self, batch):
        pause = batch.time[batch.target_events()] - batch.time[batch.state_events()]
        return super().score_sessions(batch) + (pause[:, None] / 1e15).astype(np.float32)


class ReadsTheLength(Markov):
    """Knows how many events are still to come, which shows in no column."""

    def score_sessions(self, batch):
        length = np.repeat(np.diff(batch.offset), np.diff(batch.offset) - 1)
        return super().score_sessions(batch) * (1 + length[:, None] / 10).astype(np.float32)


class LeansOnBatchMates(Markov):
    def score_sessions(self, batch):
        return super().score_sessions(batch) * np.float32(1 + 0.01 * (batch.item[0] + batch.n_sessions))


class Normalised(Markov):
    """Centres the rows of a batch on the first row of the batch: the past, but another session's."""

    def score_sessions(self, batch):
        scores = super().score_sessions(batch)
        return scores - 0.01 * scores[:1]


class WritesToItsInput(Markov):
    def score_sessions(self, batch):
        scores = super().score_sessions(batch)
        batch.kind[:] = 0
        return scores


class SaysNan(Markov):
    def score_sessions(self, batch):
        scores = super().score_sessions(batch).copy()
        scores[:, 3] = np.nan
        return scores


class SaysInfinity(Markov):
    def score_sessions(self, batch):
        scores = super().score_sessions(batch).copy()
        scores[batch.item[batch.state_events()] % 2 == 0, 7] = np.inf
        return scores


class OneRowPerEvent(Markov):
    def score_sessions(self, batch):
        return self.table[batch.item]


class SqueezesOneSession(Markov):
    def score_sessions(self, batch):
        scores = super().score_sessions(batch)
        return scores if batch.n_sessions > 1 else scores[None]


class InDoublePrecision(Markov):
    def score_sessions(self, batch):
        return super().score_sessions(batch).astype(np.float64)


class Dropout(Markov):
    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(0)

    def score_sessions(self, batch):
        scores = super().score_sessions(batch)
        return scores * (self.rng.random(scores.shape) < 0.9).astype(np.float32)


class RecommendsTheWorst(Markov):
    def recommend(self, history, k):
        row = self.table[history.item[-1]]
        worst = np.argsort(row)[:k]
        return worst[::-1], row[worst[::-1]]


class ForgetsTheLastEvent(Markov):
    def recommend(self, history, k):
        row = self.table[history.item[-2]]
        best = np.argsort(-row)[:k]
        return best, row[best]


class BreaksTiesBackwards(Counts):
    def recommend(self, history, k):
        items, scores = super().recommend(history, k)
        return items[::-1], scores[::-1]


class RecommendsTooMany(Markov):
    def recommend(self, history, k):
        return super().recommend(history, k + 1)


@pytest.mark.parametrize(
    ("model", "broken"),
    [
        (ReadsTheTarget, "causal"),
        (ReadsTheLastKind, "causal"),
        (ReadsTheNextPause, "causal"),
        (ReadsTheLength, "causal"),
        (LeansOnBatchMates, "batch_invariant"),
        (Normalised, "batch_invariant"),
        (WritesToItsInput, "input_unchanged"),
        (SaysNan, "finite"),
        (SaysInfinity, "finite"),
        (OneRowPerEvent, "shape"),
        (SqueezesOneSession, "shape"),
        (InDoublePrecision, "dtype"),
        (Dropout, "deterministic"),
        (RecommendsTheWorst, "recommend_agrees"),
        (ForgetsTheLastEvent, "recommend_agrees"),
        (BreaksTiesBackwards, "recommend_agrees"),
        (RecommendsTooMany, "recommend_agrees"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_broken_model_is_caught_by_exactly_the_right_finding(model, broken, seed, log):
    log = log.select(np.flatnonzero(log.length >= 3))
    findings = check_recommender(model(), log, seed=seed, raise_on_failure=False)
    assert [f.property for f in findings if f.passed is False] == [broken]
    assert next(f.detail for f in findings if f.property == broken)


def test_the_error_is_an_assertion_error_that_carries_the_report(log):
    with pytest.raises(AssertionError, match=r"ReadsTheTarget breaks the Recommender protocol: causal\n") as caught:
        check_recommender(ReadsTheTarget(), log)
    error = caught.value
    assert isinstance(error, RecommenderError)
    assert [f.property for f in error.findings] == list(PROPERTIES)
    assert "when events" in str(error)


def test_what_another_failure_leaves_without_meaning_is_not_judged(log):
    findings = {f.property: f for f in check_recommender(Dropout(), log, raise_on_failure=False)}
    assert findings["causal"].passed is None and "deterministic" in findings["causal"].detail


def test_the_checker_leaves_the_log_alone_and_repeats_itself(log):
    before = log.item.copy(), log.kind.copy(), log.time.copy()
    first = check_recommender(ReadsTheLength(), log, raise_on_failure=False)
    assert first == check_recommender(ReadsTheLength(), log, raise_on_failure=False)
    assert all((a == b).all() for a, b in zip(before, (log.item, log.kind, log.time), strict=True))


def test_an_actions_only_model_is_asked_for_one_item(log):
    class Actor(Markov):
        max_k = 1

        def score_sessions(self, batch):
            scores = super().score_sessions(batch)
            return (scores == scores.max(axis=1, keepdims=True)).astype(np.float32)

        def recommend(self, history, k):
            assert k == 1
            return super().recommend(history, k)

    check_recommender(Actor(), log)


def test_a_log_without_anything_to_score_is_refused(log):
    single = log.select(np.arange(1))
    single = dataclasses.replace(
        single, item=single.item[:1], kind=single.kind[:1], time=single.time[:1], offset=np.array([0, 1])
    )
    with pytest.raises(InputError, match="none of the 1 sessions has two events"):
        check_recommender(Markov(), single)
