"""BPR-MF: what a score is made of, known and anonymous shoppers, and training that can be repeated and resumed."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sessiongym.baselines.bpr import BPR
from sessiongym.baselines.config import BPRConfig
from sessiongym.envs.log import SessionLog
from sessiongym.errors import InputError
from sessiongym.evaluate.events import validation_recall
from sessiongym.evaluate.protocol import Recommender, check_recommender

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
CLICKS = DATA / "recsys15_clicks" / "yoochoose-clicks-100k_train_full.txt"

SMALL = BPRConfig(factors=8, passes=2, epochs=3)
KNOWN = replace(SMALL, users="known")
N = 24
"""Items in four groups of five; 20 to 23 never occur in training."""


def make_log(sessions, user=None):
    length = [len(session) for session in sessions]
    return SessionLog(
        item=np.concatenate(sessions),
        kind=np.zeros(sum(length)),
        time=np.arange(sum(length)) * 10**9,
        offset=np.r_[0, np.cumsum(length)],
        session_id=np.arange(len(sessions)),
        item_id=np.arange(N),
        user=user,
    )


@pytest.fixture(scope="module")
def log():
    """Sessions stay within a group of items, and users 7, 17, 27 and 37 each with one group."""
    rng = np.random.default_rng(3)
    group = rng.integers(0, 4, 200)
    return make_log([5 * g + rng.integers(0, 5, rng.integers(1, 7)) for g in group], user=10 * group + 7)


@pytest.fixture(scope="module", params=["sessions", "known"])
def model(request, log):
    return BPR(replace(SMALL, users=request.param)).fit(log)


def test_keeps_to_the_protocol(model, log):
    assert isinstance(model, Recommender)
    check_recommender(model, log)


def test_keeps_to_the_protocol_on_recorded_clicks():
    if not CLICKS.exists():
        pytest.skip(f"{CLICKS.name} not found; set SESSIONGYM_DATA to the folder of recorded data")
    clicks = pd.read_csv(CLICKS, sep="\t")
    time = (clicks["Time"] * 1000).round().astype(np.int64) * 10**6
    frame = pd.DataFrame({"session": clicks["SessionId"], "item": clicks["ItemId"], "time": time, "kind": 0})
    log = SessionLog.from_pandas(frame)
    check_recommender(BPR(replace(SMALL, epochs=1)).fit(log), log)


def test_an_anonymous_score_is_the_mean_item_vector_times_the_items_plus_their_bias(log):
    model = BPR(SMALL).fit(log)
    items, bias = (model.weights[name].double().numpy() for name in ("items", "bias"))
    batch = make_log([[1, 2], [3, 3, 9, 22, 14, 0]]).batch()
    means = [items[seen].mean(axis=0) for seen in ([1], [3], [3, 3], [3, 3, 9], [3, 3, 9], [3, 3, 9, 14])]
    np.testing.assert_allclose(model.score_sessions(batch), means @ items.T + bias, rtol=1e-5)


def test_a_known_user_scores_by_a_vector_of_their_own_and_an_unseen_one_as_anonymous(log):
    model = BPR(KNOWN).fit(log)
    users, items, bias = (model.weights[name].double().numpy() for name in ("users", "items", "bias"))
    scores = model.score_sessions(make_log([[0, 1, 2], [3, 4], [5, 6], [7, 8]], user=[27, 40, 3, 20]).batch()).numpy()
    np.testing.assert_allclose(scores[:2], np.tile(users[2] @ items.T + bias, (2, 1)), rtol=1e-5)
    np.testing.assert_allclose(scores[2:], items[[3, 5, 7]] @ items.T + bias, rtol=1e-5)


def test_learns_which_items_go_together(log):
    """One event of a group, or its user alone, puts the group's five items on top."""
    test = make_log([[5 * g, 5 * g + 1] for g in range(4)], user=[7, 17, 27, 37])
    for users in ("sessions", "known"):
        scores = BPR(BPRConfig(users=users, factors=16)).fit(log).score_sessions(test.batch())
        groups = scores.topk(5).indices.sort().values // 5
        assert groups.tolist() == [[g] * 5 for g in range(4)]


def test_an_item_just_seen_can_be_recommended(log):
    model = BPR(BPRConfig(factors=16)).fit(log)
    assert 6 in model.recommend(make_log([[6, 6]]).batch(), k=5)[0]


def test_items_never_in_training_come_last_and_say_nothing_of_the_shopper(model):
    scores = model.score_sessions(make_log([[21, 22], [3, 21, 0]], user=[1, 1]).batch())
    assert scores[:, :20].isfinite().all() and (scores[:, 20:] == -torch.inf).all()
    assert torch.equal(scores[0], model.weights["bias"]) and torch.equal(scores[1], scores[2])


@pytest.mark.parametrize("config", [SMALL, KNOWN])
def test_the_same_seed_learns_the_same_bit_for_bit_and_another_seed_something_else(log, config):
    one, again, other = (BPR(config, seed).fit(log).weights for seed in (1, 1, 2))
    assert one.keys() == again.keys() and all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["items"], other["items"])


@pytest.mark.parametrize("config", [SMALL, KNOWN])
def test_a_saved_model_scores_as_before(log, config, tmp_path):
    model = BPR(config, seed=5).fit(log)
    model.save(tmp_path)
    loaded = BPR.load(tmp_path)
    assert (loaded.config, loaded.seed) == (config, 5)
    assert torch.equal(loaded.score_sessions(log.batch()), model.score_sessions(log.batch()))


def test_a_training_cut_off_and_continued_ends_as_one_left_alone(log, tmp_path):
    class CutOff(Exception):
        pass

    scores = []

    def validate(model):
        scores.append(validation_recall(model, log))
        if len(scores) == 3:
            raise CutOff
        return scores[-1]

    config = replace(SMALL, epochs=5)
    with pytest.raises(CutOff):
        BPR(config).fit(log, validate=validate, folder=tmp_path)
    continued = BPR(config).fit(log, validate=validate, folder=tmp_path)
    assert len(scores) == 3 + 3
    alone = BPR(config).fit(log, validate=partial(validation_recall, log=log))
    assert all(torch.equal(weight, continued.weights[name]) for name, weight in alone.weights.items())


def test_the_best_epoch_on_validation_is_kept_and_training_stops_without_a_better_one(log):
    told, kept = [], []

    def validate(model):
        kept.append(model.weights["items"].clone())
        return [0.1, 0.3, 0.2, 0.3, 0.1][len(kept) - 1]

    config = replace(SMALL, epochs=9, patience=2)
    model = BPR(config).fit(log, validate=validate, progress=lambda *progress: told.append(progress))
    assert len(kept) == 4 and torch.equal(model.weights["items"], kept[1])
    assert told and {total for _, total, _ in told} == {9}


def test_known_users_are_asked_of_a_log_that_has_them(log):
    anonymous = make_log([[0, 1]])
    with pytest.raises(InputError, match=r"users=known needs a log with users, found none"):
        BPR(KNOWN).fit(anonymous)
    with pytest.raises(InputError, match=r"users=known needs the users of the sessions, found none"):
        BPR(KNOWN).fit(log).score_sessions(anonymous.batch())


def test_a_log_without_events_is_refused(log):
    with pytest.raises(InputError, match="no events"):
        BPR().fit(log.select(np.zeros(0, dtype=np.int64)))


def test_an_item_outside_the_vocabulary_is_refused(model):
    batch = make_log([[1, 2]], user=[7]).batch()
    with pytest.raises(InputError, match=r"items must be 0\.\.23"):
        model.score_sessions(replace(batch, item=np.array([1, N], dtype=np.int32)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": "none"}, "users must be one of sessions, known, found 'none'"),
        ({"factors": 0}, "factors must be at least 1, found 0"),
        ({"patience": -1}, "expected at least 1 and 0, found epochs=20, patience=-1"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number from 0, found nan"),
    ],
)
def test_a_value_out_of_range_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        BPRConfig(**change)
