"""The event table: what each event is, and that chunks, batches and unseen items are handled."""

# pyright: reportGeneralTypeIssues=false

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sessiongym.envs.log import PURCHASE, SessionLog
from sessiongym.errors import InputError
from sessiongym.evaluate.coverage import average_popularity, catalogue_coverage, item_popularity, listed_items
from sessiongym.evaluate.events import (
    EXTRA_SLICES,
    SLICES,
    detailed_slices,
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


def test_detailed_slices_are_as_by_hand():
    log = _log(["a", "a b B C b B a A", "D d D E"], n_items=6)
    train = dataclasses.replace(_log(["a a a a a a a a b", "c"], n_items=6), n_train_items=3)
    events = rank_events(Table(6), dataclasses.replace(log, n_train_items=3), train=train)
    masks = detailed_slices(events)
    assert tuple(masks) == EXTRA_SLICES
    expected = {
        "class/first-buy": "0100000 000",
        "class/basket": "0010001 001",
        "class/duplicate": "0000100 010",
        "position/2": "1000000 100",
        "position/4": "0010000 001",
        "position/6-10": "0000111 000",
        "position/11+": "0000000 000",
        "length/2": "0000000 000",
        "length/3-5": "0000000 111",
        "length/6-10": "1111111 000",
        "decile/0": "0000011 000",
        "decile/8": "1101100 000",
        "decile/9": "0010000 000",
        "training/unseen": "0000000 111",
    }
    for name, events_in in expected.items():
        assert "".join("01"[int(inside)] for inside in masks[name]) == events_in.replace(" ", ""), name


@pytest.mark.parametrize("group", ["position", "length", "training"])
def test_detailed_slices_of_a_group_divide_the_events(random_log, group):
    masks = detailed_slices(rank_events(Table(12), random_log, train=random_log))
    assert (np.sum([mask for name, mask in masks.items() if name.startswith(f"{group}/")], axis=0) == 1).all()


def test_classes_divide_the_purchases_and_deciles_the_targets_seen(random_log):
    log = dataclasses.replace(random_log, n_train_items=9)
    events = rank_events(Table(12), log, train=log)
    masks = detailed_slices(events)
    for group, divided in (("class", slice_masks(events)["purchase"]), ("decile", masks["training/seen"])):
        parts = np.sum([mask for name, mask in masks.items() if name.startswith(f"{group}/")], axis=0)
        np.testing.assert_array_equal(parts, divided.astype(int))


@pytest.mark.parametrize("max_scores", [1, 100, 2**24])
def test_lists_are_the_best_of_the_row_before_the_event(random_log, max_scores):
    model = Table(12)
    events = rank_events(model, random_log, top_k=4, max_scores=max_scores)
    current = random_log.item[random_log.batch().state_events()]
    np.testing.assert_array_equal(listed_items(events, 4), np.argsort(-model.scores[current], axis=1)[:, :4])
    pd.testing.assert_frame_equal(events.iloc[:, :-4], rank_events(Table(12), random_log))


@pytest.mark.parametrize("max_k", [0, 1])
def test_lists_end_where_the_catalogue_or_the_model_does(random_log, max_k):
    model = Table(12)
    model.max_k = max_k  # pyright: ignore[reportAttributeAccessIssue]
    items = listed_items(rank_events(model, random_log, top_k=14), 14)
    n_listed = max_k or 12
    assert (items[:, :n_listed] >= 0).all() and (items[:, n_listed:] == -1).all()


def test_coverage_and_popularity_are_as_by_hand():
    train = _log(["a a a a b b c"], n_items=5)
    log = dataclasses.replace(_log(["a b", "b c d"], n_items=5), n_train_items=3)
    model = Table(5)
    model.scores = np.array([[0, 9, 8, 0, 0], [0, 9, 0, 8, 7], [0, 9, 8, 7, 0]] + [[0] * 5] * 2, dtype=np.float32)
    events = rank_events(model, log, train=train, top_k=3)
    assert [list(row) for row in listed_items(events, 3)] == [[1, 2, 0], [1, 3, 4], [1, 2, 3]]
    # Of the items a, b, c that can be recommended; d and e are in lists but not in training.
    assert [catalogue_coverage(events, k, 3) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])
    popularity = item_popularity(train)
    assert popularity.tolist() == [1, 0.5, 0.25, 0, 0]
    np.testing.assert_allclose(average_popularity(events, 1, popularity), [0.5] * 3)
    np.testing.assert_allclose(average_popularity(events, 3, popularity), [1.75 / 3, 0.5 / 3, 0.75 / 3])


def test_coverage_and_popularity_beyond_what_a_model_can_list_are_none(random_log):
    model = Table(12)
    model.max_k = 1  # pyright: ignore[reportAttributeAccessIssue]
    events = rank_events(model, random_log, top_k=3)
    assert 0 < catalogue_coverage(events, 1, 12) <= 1
    assert np.isnan(catalogue_coverage(events, 2, 12))
    assert np.isnan(average_popularity(events, 2, item_popularity(random_log))).all()


def test_lists_that_were_not_kept_are_refused(random_log):
    events = rank_events(Table(12), random_log, top_k=3)
    with pytest.raises(InputError, match=r"lists of 3 items; choose k in 1..3 or rank with .*top_k=5"):
        catalogue_coverage(events, 5, 12)
    with pytest.raises(InputError, match="found -1"):
        rank_events(Table(12), random_log, top_k=-1)


_PEAK = """
import json, sys, tracemalloc
import numpy as np
from sessiongym.envs.log import SessionLog
from sessiongym.evaluate.cold_start import cold_start_ranks
from sessiongym.evaluate.events import rank_events

N_ITEMS, LENGTH, MAX_SCORES = 20, 100, 2**16


class Table:
    def score_sessions(self, batch):
        return scores[batch.item[batch.state_events()]]


def log_of(n_events):
    rng = np.random.default_rng(0)
    n_sessions = n_events // LENGTH
    return SessionLog(
        item=rng.integers(0, N_ITEMS, n_events),
        kind=rng.integers(0, 2, n_events),
        time=np.arange(n_events),
        offset=LENGTH * np.arange(n_sessions + 1),
        session_id=np.arange(n_sessions),
        item_id=np.arange(N_ITEMS),
    )


scores = np.random.default_rng(1).standard_normal((N_ITEMS, N_ITEMS)).astype(np.float32)
rank = {
    "ranks": lambda log: rank_events(Table(), log, train=log, top_k=5, max_scores=MAX_SCORES),
    "cold start": lambda log: cold_start_ranks(Table(), log, (1, 2), train=log, max_scores=MAX_SCORES),
}
beyond = {}
for name, work in rank.items():
    work(log_of(1000))
    for n_events in (10**4, 10**6):
        log = log_of(n_events)
        tracemalloc.start()
        table = work(log)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        beyond.setdefault(name, []).append(peak - int(table.memory_usage().sum()))
print(json.dumps([beyond, MAX_SCORES * scores.itemsize]))
"""


def test_memory_beside_the_table_is_the_same_for_ten_thousand_events_and_a_million():
    # One thread, which does not wait for others; what is measured does not depend on it.
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    beyond, score_bytes = json.loads(done.stdout)
    for of_ten_thousand, of_a_million in beyond.values():
        assert of_a_million <= of_ten_thousand
        # One buffer of scores and what is small beside it, never the buffers of two batches.
        assert of_ten_thousand < 2 * score_bytes


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
