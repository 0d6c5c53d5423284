"""Honesty checks: each kind of cheating is caught by the check of its name, and no honest model is."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from sessiongym.cli import main
from sessiongym.envs.history import UserHistories
from sessiongym.envs.log import PreparedData
from sessiongym.envs.sources.options import PrepareOptions
from sessiongym.errors import InputError
from sessiongym.evaluate import honesty
from sessiongym.evaluate.honesty import FALSE_ALARM, HonestyError, check_data, check_model
from sessiongym.evaluate.models import parse_model
from sessiongym.evaluate.policy import PolicyRecommender

CHECKS = [
    "shape",
    "finite",
    "repeatable",
    "future",
    "length",
    "batch_mates",
    "permuted_targets",
    "constant_scorer",
]
DATA_CHECKS = ["disjoint_sessions", "vocabulary", "split_order", "overlap"]


def _shop(folder, *arguments):
    main(["shop", "--sessions", "300", "--items", "40", "--min-item-support", "1", "--out", str(folder), *arguments])
    return PreparedData.open(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return _shop(tmp_path_factory.mktemp("data") / "shop")


@pytest.fixture(scope="module")
def of_users(tmp_path_factory):
    """Users, a split by user, and items that training does not know."""
    arguments = ("--users", "40", "--user-split", "share", "--min-user-sessions", "3", "--unseen", "keep")
    return _shop(tmp_path_factory.mktemp("data") / "users", *arguments)


class Markov:
    """An honest model: the next item from the current one."""

    def __init__(self, n_items):
        self.n_items = n_items
        self.table = np.random.default_rng(0).standard_normal((n_items, n_items)).astype(np.float32)

    def fit(self, train, valid=None):
        return self

    def score_sessions(self, batch):
        return self.table[batch.item[batch.state_events()]]

    def recommend(self, history, k):
        raise NotImplementedError


class SeesTheNextItem(Markov):
    def score_sessions(self, batch):
        scores = super().score_sessions(batch)
        scores[np.arange(batch.n_rows), batch.item[batch.target_events()]] += 1
        return scores


class SeesTheNextPause(Markov):
    def score_sessions(self, batch):
        pause = batch.time[batch.target_events()] - batch.time[batch.state_events()]
        return super().score_sessions(batch) + (pause[:, None] / 1e15).astype(np.float32)


class SeesTheLastKind(Markov):
    def score_sessions(self, batch):
        ends_in_purchase = batch.kind[batch.offset[1:] - 1] == 1
        factor = np.repeat(1 + ends_in_purchase, np.diff(batch.offset) - 1)[:, None].astype(np.float32)
        return super().score_sessions(batch) * factor


class SeesWhatItsMatesBuyLater(Markov):
    def score_sessions(self, batch):
        popularity = np.bincount(batch.item, minlength=self.n_items)
        return super().score_sessions(batch) + popularity.astype(np.float32)


class KnowsTheLength(Markov):
    def score_sessions(self, batch):
        length = np.repeat(np.diff(batch.offset), np.diff(batch.offset) - 1)
        return super().score_sessions(batch) * (1 + length[:, None] / 10).astype(np.float32)


class LeansOnTheFirstOfItsMates(Markov):
    def score_sessions(self, batch):
        scores = super().score_sessions(batch)
        return scores - np.float32(0.01) * scores[:1]


class LeansOnTheirNumber(Markov):
    def score_sessions(self, batch):
        return super().score_sessions(batch) * np.float32(1 + 0.01 * batch.n_sessions)


class LearnsWhileItIsTested(Markov):
    def __init__(self, n_items):
        super().__init__(n_items)
        self.seen = np.zeros(n_items, np.float32)

    def score_sessions(self, batch):
        scores = super().score_sessions(batch) + self.seen
        self.seen += np.bincount(batch.item, minlength=self.n_items)
        return scores


class DropsAtRandom(Markov):
    def __init__(self, n_items):
        super().__init__(n_items)
        self.rng = np.random.default_rng(0)

    def score_sessions(self, batch):
        scores = super().score_sessions(batch)
        return scores * (self.rng.random(scores.shape) < 0.9).astype(np.float32)


class SaysNan(Markov):
    def score_sessions(self, batch):
        scores = super().score_sessions(batch)
        scores[-1, 3] = np.nan
        return scores


class SaysInfinity(Markov):
    def score_sessions(self, batch):
        scores = super().score_sessions(batch)
        scores[batch.kind[batch.state_events()] == 1, 7] = np.inf
        return scores


class OneRowPerEvent(Markov):
    def score_sessions(self, batch):
        return self.table[batch.item]


BROKEN = [
    (SeesTheNextItem, "future"),
    (SeesTheNextPause, "future"),
    (SeesTheLastKind, "future"),
    (SeesWhatItsMatesBuyLater, "future"),
    (KnowsTheLength, "length"),
    (LeansOnTheFirstOfItsMates, "batch_mates"),
    (LeansOnTheirNumber, "batch_mates"),
    (LearnsWhileItIsTested, "repeatable"),
    (DropsAtRandom, "repeatable"),
    (SaysNan, "finite"),
    (SaysInfinity, "finite"),
    (OneRowPerEvent, "shape"),
]


@pytest.mark.parametrize(("model", "check"), BROKEN)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_broken_model_is_caught_by_the_check_of_its_name(model, check, seed, data):
    with pytest.raises(HonestyError) as caught:
        check_model(model(data.test.n_items), data, name="the-model", seed=seed)
    message = str(caught.value)
    assert caught.value.check == check
    assert message.startswith(f"the-model: honesty check {check!r} failed on ")
    assert "expected" in message and "mend the model" in message and "\n" not in message


def test_the_error_says_in_which_session_and_after_how_many_events(data):
    class SeesTheNextInOneSession(SeesTheNextItem):
        def score_sessions(self, batch):
            scores, honest = super().score_sessions(batch), Markov.score_sessions(self, batch)
            rows = np.repeat(np.arange(batch.n_sessions), np.diff(batch.offset) - 1) == 1
            return np.where(rows[:, None], scores, honest)

    with pytest.raises(
        HonestyError, match=r"when the events behind them change \(session (\d+), after \d+ events?\)"
    ) as e:
        check_model(SeesTheNextInOneSession(data.test.n_items), data)
    session = str(e.value).partition("(session ")[2].partition(",")[0]
    assert session in data.test.session_id.astype(str)


def test_the_error_survives_the_way_from_a_worker_process():
    error = pickle.loads(pickle.dumps(HonestyError("one line", "future")))
    assert isinstance(error, HonestyError) and (str(error), error.check) == ("one line", "future")


class Counts(Markov):
    """Full of ties, and -inf for the current item, or everything."""

    def score_sessions(self, batch):
        scores = np.tile(np.arange(self.n_items, dtype=np.float32) // 10, (batch.n_rows, 1))
        scores[np.arange(batch.n_rows), batch.item[batch.state_events()]] = -np.inf
        scores[batch.kind[batch.state_events()] == 1] = -np.inf
        return scores


class OnDeviceWithGradient(Markov):
    def score_sessions(self, batch):
        return torch.from_numpy(super().score_sessions(batch)).requires_grad_()


def _actor(n_items):
    return PolicyRecommender(lambda observations: observations[:, -1] % n_items, n_items, gives="actions")


@pytest.mark.parametrize("make", [Markov, Counts, OnDeviceWithGradient, _actor])
@pytest.mark.parametrize("seed", range(20))
def test_honest_models_pass_whatever_their_scores(make, seed, data):
    assert list(check_model(make(data.test.n_items), data, seed=seed)) == CHECKS


BASELINES = [
    "most-popular",
    "most-recent",
    "most-recent:bought=last",
    "s-pop",
    "item-knn",
    "item-knn@paper",
    "session-knn",
    "session-knn@paper",
]
TINY = "hidden_units=16,embedding_dim=16"
BRIEF = f"{TINY},total_steps=2000,evaluation_steps=2000"
TRAINED = [
    *(f"{name}:{TINY},epochs=1" for name in ("lstm", "a3c-p", "irn-p", "sqn")),
    *(f"{name}:epochs=1" for name in ("gru4rec", "rnn", "sasrec", "ii-rnn-ap", "ii-rnn-lhs")),
    *(f"{name}:{BRIEF}" for name in ("sb3-ppo", "sb3-dqn")),
]


@pytest.mark.parametrize("text", [*BASELINES, "bpr:epochs=1"])
def test_the_baselines_of_the_project_pass(text, data, of_users):
    for prepared in (data, of_users):
        model = parse_model(text).create(0, "cpu").fit(prepared.train, prepared.valid)
        assert list(check_model(model, prepared)) == CHECKS


@pytest.mark.slow
@pytest.mark.parametrize("text", TRAINED)
def test_the_trained_models_of_the_project_pass(text, of_users):
    model = parse_model(text).create(0, "cpu").fit(of_users.train, of_users.valid)
    assert list(check_model(model, of_users)) == CHECKS


def test_checking_a_model_changes_neither_the_data_nor_what_the_model_says(data):
    model = parse_model("item-knn").create(0, "cpu").fit(data.train, data.valid)
    columns = [np.array(getattr(data.test, name)) for name in ("item", "kind", "time", "offset")]
    before = model.score_sessions(data.test.batch())
    first = check_model(model, data)
    assert np.array_equal(model.score_sessions(data.test.batch()), before)
    assert all(map(np.array_equal, columns, (data.test.item, data.test.kind, data.test.time, data.test.offset)))
    assert check_model(model, data) == first
    assert check_model(model, data, seed=1)["permuted_targets"] != first["permuted_targets"]


def test_the_model_is_shown_what_its_users_did_before(of_users):
    asked = []

    class ReadsHistories(Markov):
        def score_sessions(self, batch):
            asked.append(batch.history)
            return super().score_sessions(batch)

    check_model(ReadsHistories(of_users.test.n_items), of_users)
    assert all(sum(before.n_sessions for before in history) > len(history) for history in asked)
    check_model(ReadsHistories(of_users.test.n_items), of_users, histories=UserHistories.of(of_users, "test"))


def test_few_sessions_are_asked_for_where_the_catalogue_is_large(data):
    rows = []

    class CountsRows(Markov):
        def score_sessions(self, batch):
            rows.append(batch.n_rows)
            return super().score_sessions(batch)

    n_items = data.test.n_items
    check_model(CountsRows(n_items), data, max_scores=60 * n_items)
    assert max(rows) <= 60
    check_model(CountsRows(n_items), data, max_scores=1)
    assert rows[-1] >= 1


def test_a_split_without_anything_to_score_is_refused(data):
    one = data.test.select(np.arange(1))
    short = replace(one, item=one.item[:1], kind=one.kind[:1], time=one.time[:1], offset=np.array([0, 1]))
    with pytest.raises(InputError, match="none of the 1 test sessions has two events"):
        check_model(Markov(data.test.n_items), replace(data, test=short))


def test_an_evaluator_that_favours_the_target_is_caught(data, monkeypatch):
    def generous(scores, row, target):
        return np.zeros(len(row), np.int32), np.ones(len(row), np.int32)

    monkeypatch.setattr(honesty, "rank_bounds", generous)
    with pytest.raises(HonestyError, match=r"Recall@5 1 of \d+ targets drawn by chance") as caught:
        check_model(Markov(data.test.n_items), data)
    assert caught.value.check == "permuted_targets"
    monkeypatch.undo()
    monkeypatch.setattr("sessiongym.evaluate.events.rank_bounds", generous)
    with pytest.raises(HonestyError, match="of a constant scorer") as caught:
        check_model(Markov(data.test.n_items), data)
    assert caught.value.check == "constant_scorer"


@pytest.mark.parametrize("chance", [0.001, 0.1, 0.5])
def test_the_bound_is_never_below_the_probability_it_bounds(chance):
    from scipy.stats import binom

    for n in (1, 30, 400):
        for hits in range(0, n + 1, max(1, n // 40)):
            tail = binom.sf(hits - 1, n, chance) if hits >= n * chance else binom.cdf(hits, n, chance)
            assert honesty._probability_bound(hits / n, chance, n) >= tail * (1 - 1e-12)
    assert honesty._probability_bound(1.0, 1.0, 5) > 1 > FALSE_ALARM > honesty._probability_bound(1.0, chance, 30)


def test_prepared_data_passes_and_the_measurements_say_what_was_compared(data, of_users):
    measured, per_user = check_data(data), check_data(of_users)
    assert list(measured) == list(per_user) == DATA_CHECKS
    n_sessions = data.train.n_sessions + data.valid.n_sessions + data.test.n_sessions
    assert f"none of {n_sessions} session ids" in measured["disjoint_sessions"]
    assert measured["split_order"].startswith("0 sessions out of order in a split by time, at the end")
    assert per_user["split_order"].startswith("0 users with sessions out of order in a split per user")
    assert of_users.test.n_items > of_users.test.n_train_items
    assert "% of test sessions have the same items and kinds in the same order" in measured["overlap"]


def test_data_that_says_nothing_of_its_split_is_checked_as_far_as_it_goes(data):
    bare = replace(data, manifest={})
    assert "not checked" in check_data(bare)["split_order"] and "not known" in check_data(bare)["overlap"]
    random = replace(data, manifest={"options": {"random_split": [0.8, 0.1, 0.1]}})
    assert "nothing to check" in check_data(random)["split_order"]


def _refused(data):
    with pytest.raises(HonestyError) as caught:
        check_data(data)
    assert "expected" in str(caught.value) and str(caught.value).endswith("prepare the data again")
    return caught.value.check


@pytest.mark.parametrize(("one", "other"), [("train", "test"), ("train", "valid"), ("valid", "test")])
def test_a_session_in_two_splits_is_caught(one, other, data):
    ids = getattr(data, other).session_id.copy()
    ids[2] = getattr(data, one).session_id[0]
    assert _refused(replace(data, **{other: replace(getattr(data, other), session_id=ids)})) == "disjoint_sessions"


def test_a_vocabulary_that_is_not_that_of_train_is_caught(data, of_users):
    splits = {name: getattr(of_users, name) for name in ("train", "valid", "test")}
    n_known = of_users.train.n_train_items
    for wrong in (n_known - 1, n_known + 1):
        moved = {name: replace(log, n_train_items=wrong) for name, log in splits.items()}
        assert _refused(replace(of_users, **moved)) == "vocabulary"
    renamed = replace(data.test, item_id=data.test.item_id[::-1])
    assert _refused(replace(data, test=renamed)) == "vocabulary"
    dropped = {**of_users.manifest, "options": {**of_users.manifest["options"], "unseen": "drop"}}
    assert _refused(replace(of_users, manifest=dropped)) == "vocabulary"


def _exchanged(data, one, other):
    """The data with the sessions of two splits exchanged, but for what their ids and the vocabulary say."""
    first, second = getattr(data, one), getattr(data, other)
    return replace(data, **{one: second, other: first})


@pytest.mark.parametrize("split_at", ["start", "end"])
def test_test_sessions_before_those_of_training_are_caught(split_at, data):
    manifest = {"options": {"split_at": split_at}, "steps": data.manifest["steps"]}
    assert _refused(_exchanged(replace(data, manifest=manifest), "valid", "test")) == "split_order"


def test_users_whose_test_sessions_come_first_are_caught(of_users):
    assert _refused(_exchanged(of_users, "valid", "test")) == "split_order"
    anonymous = {name: replace(getattr(of_users, name), user=None) for name in ("train", "valid", "test")}
    with pytest.raises(HonestyError, match="the splits have no users"):
        check_data(replace(of_users, **anonymous))


def test_sessions_that_lost_the_event_they_were_sorted_by_are_allowed_for(data):
    """One test session ends before the newest of train: an error, unless an event was removed after the split."""
    late = data.train.time.max()
    moved = data.test.time.copy()
    moved[: data.test.offset[1]] = late - 1 - np.arange(data.test.offset[1])[::-1]
    n_left = data.train.n_events + data.valid.n_events + data.test.n_events
    earlier = replace(data, test=replace(data.test, time=moved))
    for removed in (0, 1):
        steps = [{"step": "the last filter", "events": n_left + removed}, {"step": "train+valid", "events": 0}]
        judged = replace(earlier, manifest={"options": {"split_at": "end"}, "steps": steps})
        if removed:
            assert check_data(judged)["split_order"].startswith("1 sessions out of order")
        else:
            assert _refused(judged) == "split_order"


def test_the_options_and_steps_that_the_checks_read_are_those_that_preparing_writes(data):
    names = {"random_split", "user_split", "split_at", "unseen"}
    assert names <= set(PrepareOptions.__dataclass_fields__) and names <= set(data.manifest["options"])
    assert [step["step"] for step in data.manifest["steps"]][-4:] == ["train+valid", "train", "valid", "test"]
