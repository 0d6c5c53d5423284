"""Item-KNN: against counting by hand, its ties, its fallback, and the item that was just clicked."""

import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sessiongym.baselines import item_knn
from sessiongym.baselines.config import ItemKNNConfig
from sessiongym.baselines.item_knn import ItemKNN
from sessiongym.baselines.popularity import popularity_levels
from sessiongym.envs.log import SessionLog
from sessiongym.errors import InputError
from sessiongym.evaluate.protocol import Recommender, check_recommender

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
CLICKS = DATA / "recsys15_clicks" / "yoochoose-clicks-100k_train_full.txt"

COUNT = ItemKNNConfig(similarity="count")
CONFIGS = [
    COUNT,
    ItemKNNConfig(),
    ItemKNNConfig(similarity="count", k=3, itself=False),
    ItemKNNConfig(alpha=0.5, regularisation=0.0),
    ItemKNNConfig(alpha=0.0, regularisation=3.0, k=5, itself=False),
]


def make_log(sessions, n_items):
    length = [len(session) for session in sessions]
    return SessionLog(
        item=np.concatenate(sessions),
        kind=np.zeros(sum(length)),
        time=np.arange(sum(length)) * 10**9,
        offset=np.r_[0, np.cumsum(length)],
        session_id=np.arange(len(sessions)),
        item_id=np.arange(n_items),
    )


@pytest.fixture(scope="module")
def random_log():
    """Items 20, 21 and 22 never occur."""
    rng = np.random.default_rng(5)
    return make_log([rng.integers(0, 20, rng.integers(1, 9)) ** 2 // 20 for _ in range(60)], n_items=23)


def similarities(train, config):
    """[N, N] by the definition, one session after the other, all neighbours kept."""
    sessions = [train.item[a:b].tolist() for a, b in zip(train.offset[:-1], train.offset[1:], strict=True)]
    together = np.zeros((train.n_items, train.n_items))
    for session in sessions:
        for one, other in combinations(sorted(set(session)), 2):
            together[one, other] += 1
            together[other, one] += 1
        for item in set(session):
            together[item, item] += session.count(item) > 1 and config.itself
    if config.similarity == "count":
        return together
    holding = np.array([sum(item in session for session in sessions) for item in range(train.n_items)])
    support = np.maximum(holding + config.regularisation, 1)
    return together / (support[:, None] ** config.alpha * support ** (1 - config.alpha))


def expected_row(row, levels, last, config):
    found = sorted(np.flatnonzero(row), key=lambda item: (-np.float32(row[item]), item))[: config.k]
    scores = levels.copy()
    scores[found] = row[found]
    if not config.itself:
        scores[last] = levels.min() - 1
    return scores


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("block", [2**22, 40])
def test_every_row_is_the_one_counted_by_hand(random_log, config, block, monkeypatch):
    """Also where the table is built in many blocks, some of them one item that alone exceeds the bound."""
    monkeypatch.setattr(item_knn, "_BLOCK", block)
    table, levels = similarities(random_log, config), popularity_levels(random_log)
    batch = random_log.batch()
    scores = ItemKNN(config).fit(random_log).score_sessions(batch)
    expected = [expected_row(table[item], levels, item, config) for item in batch.item[batch.state_events()]]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize("config", CONFIGS)
def test_keeps_to_the_protocol(random_log, config):
    model = ItemKNN(config).fit(random_log)
    assert isinstance(model, Recommender)
    check_recommender(model, random_log)


def test_keeps_to_the_protocol_on_recorded_clicks():
    if not CLICKS.exists():
        pytest.skip(f"{CLICKS.name} not found; set SESSIONGYM_DATA to the folder of recorded data")
    clicks = pd.read_csv(CLICKS, sep="\t")
    time = (clicks["Time"] * 1000).round().astype(np.int64) * 10**6
    log = SessionLog.from_pandas(
        pd.DataFrame({"session": clicks["SessionId"], "item": clicks["ItemId"], "time": time, "kind": 0})
    )
    check_recommender(ItemKNN().fit(log), log)


def test_a_pair_counts_once_a_session_and_in_both_directions():
    model = ItemKNN(COUNT).fit(make_log([[0, 1, 0, 1, 0, 1, 2], [2, 1]], n_items=3))
    np.testing.assert_array_equal(model.neighbours.toarray(), [[1, 1, 1], [1, 1, 2], [1, 2, 0]])


def test_an_item_that_shoppers_come_back_to_is_recommended_again():
    train = make_log([[0, 0, 1], [0, 2, 0], [0, 1], [3, 1]], n_items=4)
    items, _ = ItemKNN(COUNT).fit(train).recommend(make_log([[3, 0]], n_items=4).batch(), k=1)
    assert items.tolist() == [0]


def test_an_item_that_nobody_comes_back_to_is_ranked_by_popularity():
    train = make_log([[0, 1], [0, 2], [0, 3]], n_items=5)
    row = ItemKNN().fit(train).score_sessions(make_log([[0, 1]], n_items=5).batch())[0]
    assert row[[1, 2, 3]].min() > 0 and row[0] == popularity_levels(train)[0] < 0


def test_itself_off_puts_the_last_item_behind_all_others():
    train = make_log([[0, 0, 1], [0, 2, 0]], n_items=4)
    row = ItemKNN(ItemKNNConfig(itself=False)).fit(train).score_sessions(make_log([[0, 1]], n_items=4).batch())[0]
    assert (row[0] < row[1:]).all()


def test_tied_neighbours_are_kept_by_lower_item_number():
    train = make_log([[5, 4], [5, 1], [5, 3], [5, 2], [5, 2]], n_items=6)
    model = ItemKNN(ItemKNNConfig(similarity="count", k=3)).fit(train)
    assert sorted(model.neighbours[[5]].indices.tolist()) == [1, 2, 3]


def test_regularisation_keeps_chance_neighbours_from_the_top():
    """Item 1 is in 40 of the 80 sessions with item 0, item 2 in its only session."""
    train = make_log([[0, 1]] * 40 + [[0, 3]] * 39 + [[0, 2]] + [[1, 3]] * 60, n_items=4)
    history = make_log([[0]], n_items=4).batch()
    best = [
        ItemKNN(ItemKNNConfig(alpha=0.0, regularisation=value)).fit(train).recommend(history, k=1)[0][0]
        for value in (0.0, 20.0)
    ]
    assert best == [2, 1]


def test_popularity_ranks_all_where_the_last_item_never_occurs_in_training(random_log):
    row = ItemKNN().fit(random_log).score_sessions(make_log([[1, 21, 0]], n_items=23).batch())[1]
    np.testing.assert_array_equal(row, popularity_levels(random_log))


def test_a_mapped_log_scores_as_one_in_memory(random_log, tmp_path):
    mapped = ItemKNN().fit(random_log.save(tmp_path / "log"))
    batch = random_log.batch()
    np.testing.assert_array_equal(mapped.score_sessions(batch), ItemKNN().fit(random_log).score_sessions(batch))


def test_an_item_outside_the_vocabulary_is_refused(random_log):
    with pytest.raises(InputError, match=r"items must be 0\.\.22"):
        ItemKNN().fit(random_log).score_sessions(make_log([[1, 23]], n_items=24).batch())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be at least 1, found 0"),
        ({"alpha": 1.5}, r"alpha must be 0\.\.1, found 1.5"),
        ({"regularisation": -1.0}, "regularisation must be a finite number from 0, found -1.0"),
        ({"similarity": "jaccard"}, "similarity must be one of count, cosine, found 'jaccard'"),
    ],
)
def test_a_value_out_of_range_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        ItemKNNConfig(**change)
