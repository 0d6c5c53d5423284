"""The event table: what each event is, and that chunks, batches and unseen items are handled."""

# pyright: reportGeneralTypeIssues=false

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from sessiongym.envs.log import PURCHASE, SessionLog
from sessiongym.errors import InputError
from sessiongym.evaluate.events import (
    SLICES,
    popularity_deciles,
    purchase_recall,
    rank_events,
    slice_masks,
    validation_recall,
)


class Table:
    """Scores the next item from the current one by a fixed random table."""

    def __init__(self, n_items, seed=0):
        self.scores = np.random.default_rng(seed).standard_normal((n_items, n_items)).astype(np.float32)
        self.rows = []

    def fit(self, train, valid):
        return self

    def recommend(self, history, k):
        raise NotImplementedError

    def score_sessions(self, batch):
        self.rows.append(batch.n_rows)
        return self.scores[batch.item[batch.state_events()]]


def _log(sessions, n_items=None):
    """Sessions as text: 'a b B' is a click on a, a click on b, a purchase of b."""
    events = [(f"s{n}", word.lower(), word.isupper(), n) for n, text in enumerate(sessions) for word in text.split()]
    frame = pd.DataFrame(events, columns=["session", "item", "kind", "start"])
    frame["time"] = np.arange(len(frame)) + 1_000_000 * frame["start"]
    item_id = None if n_items is None else np.array([chr(97 + i) for i in range(n_items)])
    return SessionLog.from_pandas(frame.assign(kind=frame["kind"].astype(int)), item_id=item_id)


@pytest.fixture
def random_log():
    rng = np.random.default_rng(7)
    frame = pd.DataFrame(
        {
            "session": rng.integers(0, 60, 500),
            "item": rng.integers(0, 12, 500),
            "time": rng.integers(0, 10**9, 500),
            "kind": (rng.random(500) < 0.3).astype(int),
        }
    )
    return SessionLog.from_pandas(frame, item_id=np.arange(12))


def test_every_event_is_described_as_by_hand():
    log = _log(["a", "a b B C b B a A", "D d D E"], n_items=6)
    events = rank_events(Table(6), log, train=log)
    assert "".join(log.item_id[events["item"]]) == "bbcbbaa" + "dde"
    assert events["session"].tolist() == [1] * 7 + [2] * 3
    assert events["session_id"].tolist() == ["s1"] * 7 + ["s2"] * 3
    assert events["position"].tolist() == [2, 3, 4, 5, 6, 7, 8, 2, 3, 4]
    assert events["length"].tolist() == [8] * 7 + [4] * 3
    assert events["kind"].tolist() == [0, 1, 1, 0, 1, 0, 1, 0, 1, 1]
    assert events["purchase_class"].tolist() == [0, 1, 2, 0, 3, 0, 2, 0, 3, 2]
    assert events["repeat"].tolist() == [False, True, False, True, True, True, True, True, True, False]
    assert events["seen"].all() and (events["max_k"] == 0).all()
    assert events.dtypes.astype(str).to_dict() | {"session_id": ""} == {
        "session": "int32",
        "session_id": "",
        "position": "int32",
        "length": "int32",
        "kind": "uint8",
        "item": "int32",
        "purchase_class": "uint8",
        "repeat": "bool",
        "seen": "bool",
        "popularity_decile": "int8",
        "rank_low": "int32",
        "rank_high": "int32",
        "max_k": "int16",
    }


def test_features_agree_with_a_plain_loop(random_log):
    events = rank_events(Table(12), random_log)
    expected = []
    for s in range(random_log.n_sessions):
        first, last = random_log.offset[s], random_log.offset[s + 1]
        seen, bought = set(), set()
        for position, (item, kind) in enumerate(
            zip(random_log.item[first:last].tolist(), random_log.kind[first:last].tolist(), strict=True), start=1
        ):
            purchase_class = 0 if kind != PURCHASE else 3 if item in bought else 2 if bought else 1
            expected.append((s, position, last - first, kind, item, purchase_class, item in seen))
            seen.add(item)
            if kind == PURCHASE:
                bought.add(item)
    columns = ["session", "position", "length", "kind", "item", "purchase_class", "repeat"]
    plain = pd.DataFrame([row for row in expected if row[1] > 1], columns=columns)
    assert (events[columns].to_numpy() == plain.to_numpy()).all()


@pytest.mark.parametrize("max_scores", [1, 100, 2**24])
def test_chunks_do_not_change_the_table(random_log, max_scores):
    model = Table(12)
    expected = rank_events(Table(12), random_log)
    pd.testing.assert_frame_equal(rank_events(model, random_log, max_scores=max_scores), expected)
    assert max(model.rows) <= max(max_scores // 12, random_log.length.max() - 1)


def test_ranks_are_those_of_the_row_before_the_event(random_log):
    model = Table(12)
    events = rank_events(model, random_log)
    current = random_log.item[random_log.batch().state_events()]
    for row, (now, target) in enumerate(zip(current, events["item"], strict=True)):
        assert events["rank_low"][row] == (model.scores[now] > model.scores[now, target]).sum()
    assert (events["rank_high"] == events["rank_low"] + 1).all()


def test_an_item_absent_from_training_is_a_miss_whatever_its_score(random_log):
    log = dataclasses.replace(random_log, n_train_items=9)
    model = Table(12)
    model.scores[:, 9:] += 100
    events = rank_events(model, log, train=log)
    unseen = events["item"] >= 9
    assert unseen.any() and (events["seen"] == ~unseen).all()
    assert (events.loc[unseen, ["rank_low", "rank_high", "popularity_decile"]] == [12, 12, -1]).all(axis=None)
    assert (events.loc[~unseen, "rank_low"] >= 3).all()


def test_deciles_hold_a_tenth_of_the_training_events_each():
    train = SessionLog.from_pandas(
        pd.DataFrame({"session": 0, "item": np.repeat(np.arange(100), 3), "time": 0, "kind": 0})
    )
    assert popularity_deciles(train, 100).tolist() == np.repeat(np.arange(10), 10).tolist()


def test_an_item_with_a_third_of_the_events_leaves_deciles_empty():
    count = [1, 1, 1, 10, 2, 15]
    train = SessionLog.from_pandas(
        pd.DataFrame({"session": 0, "item": np.repeat(np.arange(6), count), "time": 0, "kind": 0})
    )
    assert popularity_deciles(train, 6).tolist() == [9, 9, 9, 5, 8, 0]


def test_slices_cut_the_events_three_ways(random_log):
    events = rank_events(Table(12), random_log)
    masks = slice_masks(events)
    assert tuple(masks) == SLICES
    for base in ("purchase", "click", "first", "all"):
        np.testing.assert_array_equal(masks[f"{base}/repeat"] | masks[f"{base}/explore"], masks[base])
        assert not (masks[f"{base}/repeat"] & masks[f"{base}/explore"]).any()
    np.testing.assert_array_equal(masks["purchase"], ~masks["click"])
    assert masks["first"].sum() == (random_log.length > 1).sum()


def test_purchase_recall_is_that_of_the_table_from_fewer_sessions(random_log):
    model, whole = Table(12), Table(12)
    log = random_log.select(np.arange(20))
    log = dataclasses.replace(log, kind=np.where(np.arange(log.n_events) < log.n_events // 2, log.kind, 0))
    events = rank_events(whole, log)
    expected = (events["rank_low"] < 4)[events["kind"] == PURCHASE].mean()
    assert purchase_recall(model, log, k=4) == pytest.approx(expected, abs=1e-15)
    assert 0 < sum(model.rows) < sum(whole.rows)


def test_purchase_recall_without_purchases_is_over_all_events_and_without_events_zero(random_log):
    clicks = dataclasses.replace(random_log, kind=np.zeros(random_log.n_events, np.uint8))
    expected = (rank_events(Table(12), clicks)["rank_low"] < 5).mean()
    assert purchase_recall(Table(12), clicks) == pytest.approx(expected)
    assert purchase_recall(Table(2), _log(["a", "B"])) == 0.0


@pytest.mark.parametrize("by", ["purchase", "click", "mean"])
def test_validation_recall_is_that_of_the_kinds_asked_for(random_log, by):
    events = rank_events(Table(12), random_log)
    hit, bought = events["rank_low"] < 3, events["kind"] == PURCHASE
    expected = {"purchase": hit[bought].mean(), "click": hit[~bought].mean()}
    expected["mean"] = (expected["purchase"] + expected["click"]) / 2
    assert validation_recall(Table(12), random_log, by, k=3) == pytest.approx(expected[by], abs=1e-12)
    clicks = dataclasses.replace(random_log, kind=np.zeros(random_log.n_events, np.uint8))
    assert validation_recall(Table(12), clicks, by, k=3) == pytest.approx(hit.mean(), abs=1e-12)


def test_a_log_with_nothing_to_predict_gives_an_empty_table():
    events = rank_events(Table(2), _log(["a", "b"]), train=_log(["a", "b"]))
    assert len(events) == 0 and events["rank_low"].dtype == np.int32


def test_progress_counts_up_to_all_events(random_log):
    calls = []
    rank_events(Table(12), random_log, max_scores=600, progress=lambda done, total: calls.append((done, total)))
    n_events = random_log.batch().n_rows
    assert len(calls) > 3 and calls[-1] == (n_events, n_events)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_an_actions_only_model_marks_its_rows(random_log):
    model = Table(12)
    model.max_k = 1  # pyright: ignore[reportAttributeAccessIssue]
    assert set(rank_events(model, random_log)["max_k"]) == {1}


def test_a_memory_mapped_log_gives_the_same_table(random_log, tmp_path):
    mapped = random_log.save(tmp_path / "log")
    pd.testing.assert_frame_equal(
        rank_events(Table(12), mapped, train=mapped), rank_events(Table(12), random_log, train=random_log)
    )


def test_torch_models_are_ranked_alike(random_log):
    class InTorch(Table):
        def score_sessions(self, batch):
            return torch.from_numpy(super().score_sessions(batch))

    pd.testing.assert_frame_equal(rank_events(InTorch(12), random_log), rank_events(Table(12), random_log))


def test_wrong_shape_nan_and_foreign_vocabulary_are_refused(random_log):
    with pytest.raises(InputError, match=r"Table.score_sessions, sessions 0..: expected scores of shape \(\d+, 12\)"):
        model = Table(13)
        rank_events(model, random_log)
    model = Table(12)
    model.scores[3, 4] = np.nan
    with pytest.raises(InputError, match=r"Table.score_sessions.*item 4 scores nan"):
        rank_events(model, random_log)
    with pytest.raises(InputError, match="the training log has 2 items"):
        rank_events(Table(12), random_log, train=_log(["a b"]))
