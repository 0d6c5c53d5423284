"""Most Popular, S-POP and the helpers that the memory-based baselines share."""

import numpy as np
import pytest
from sessiongym.baselines.config import MostPopularConfig
from sessiongym.baselines.popularity import MostPopular, SPop, best_first, popularity_levels
from sessiongym.envs.log import CLICK, PURCHASE, SessionBatch, SessionLog
from sessiongym.errors import InputError


@pytest.fixture
def make_log():
    def make(sessions, n_items, kinds=None):
        offset = np.cumsum([0, *map(len, sessions)])
        item = np.concatenate(sessions).astype(np.int32)
        return SessionLog(
            item=item,
            kind=np.full(len(item), CLICK) if kinds is None else np.concatenate(kinds),
            time=np.arange(len(item)),
            offset=offset,
            session_id=np.arange(len(sessions)),
            item_id=np.arange(n_items),
        )

    return make


@pytest.fixture
def random_log(make_log):
    rng = np.random.default_rng(5)
    return make_log([rng.integers(0, 20, rng.integers(1, 12)) for _ in range(40)], n_items=23)


@pytest.fixture(params=[MostPopular, SPop])
def model(request, random_log):
    return request.param().fit(random_log, None)


def test_most_popular_scores_are_training_counts_in_every_row(make_log):
    train = make_log([[0, 1, 1], [1, 2]], n_items=4)
    scores = MostPopular().fit(train).score_sessions(make_log([[2, 0, 0], [3, 1]], n_items=4).batch())
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, [[1, 3, 1, 0]] * 3)


def test_most_popular_can_count_purchases_only(make_log):
    kinds = [[CLICK, CLICK, PURCHASE], [CLICK, PURCHASE]]
    train = make_log([[0, 1, 0], [1, 2]], n_items=4, kinds=kinds)
    model = MostPopular(MostPopularConfig(kinds="purchases")).fit(train)
    np.testing.assert_array_equal(model.score_sessions(train.batch(0, 1))[0], [1, 0, 1, 0])


def test_s_pop_ranks_by_session_count_then_by_global_popularity(make_log):
    train = make_log([[3, 3, 3, 2, 2, 1, 0, 0, 0, 0]], n_items=5)
    batch = make_log([[1, 2, 1, 2, 2, 0]], n_items=5).batch()
    model = SPop().fit(train)
    order = [np.argsort(-row, kind="stable").tolist() for row in model.score_sessions(batch)]
    assert order == [[1, 0, 3, 2, 4], [2, 1, 0, 3, 4], [1, 2, 0, 3, 4], [2, 1, 0, 3, 4], [2, 1, 0, 3, 4]]


def test_s_pop_keeps_the_global_ties(make_log):
    scores = SPop().fit(make_log([[0, 1, 2, 2]], n_items=4)).score_sessions(make_log([[0, 1, 2]], n_items=4).batch())
    assert scores[0, 0] > scores[0, 2] > scores[0, 1]
    assert scores[1, 0] == scores[1, 1] > scores[1, 2]


def test_items_never_in_training_score_no_higher_than_others(model, make_log):
    scores = model.score_sessions(make_log([[21, 21, 3, 21, 22, 3]], n_items=23).batch())
    assert (scores[:, 20:].max(axis=1) <= scores[:, :20].min(axis=1)).all()


def test_earlier_rows_do_not_change_with_the_future(model, make_log):
    past = [4, 7, 4]
    rows = [model.score_sessions(make_log([past + future], n_items=23).batch())[:3] for future in ([1, 2], [9, 22])]
    np.testing.assert_array_equal(*rows)


def test_a_session_scores_alone_as_it_does_in_a_batch(model, random_log):
    alone = [model.score_sessions(random_log.batch(s, s + 1)) for s in range(random_log.n_sessions)]
    np.testing.assert_array_equal(np.concatenate(alone), model.score_sessions(random_log.batch()))


def test_recommend_is_the_row_that_the_next_event_would_be_scored_on(model, make_log):
    items, scores = model.recommend(make_log([[3, 5, 3]], n_items=23).batch(), k=6)
    row = model.score_sessions(make_log([[3, 5, 3, 0]], n_items=23).batch())[-1]
    np.testing.assert_array_equal(items, np.argsort(-row, kind="stable")[:6])
    np.testing.assert_array_equal(scores, row[items])


def test_recommend_takes_one_session_with_events(model, random_log):
    with pytest.raises(InputError, match="expected one session"):
        model.recommend(random_log.batch(0, 2), k=3)


def test_an_item_outside_the_vocabulary_is_refused(model, make_log):
    with pytest.raises(InputError, match=r"items must be 0\.\.22"):
        model.score_sessions(make_log([[1, 23]], n_items=24).batch())


def test_a_batch_without_rows_gives_no_rows(model, make_log):
    assert model.score_sessions(make_log([[1], [2]], n_items=23).batch()).shape == (0, 23)


def test_levels_are_negative_whole_numbers_in_the_order_of_the_counts(random_log):
    counts = np.bincount(random_log.item, minlength=23)
    levels = popularity_levels(random_log)
    assert levels.max() == -1
    order = np.argsort(counts, kind="stable")
    np.testing.assert_array_equal(np.sign(np.diff(levels[order])), np.sign(np.diff(counts[order])))


@pytest.mark.parametrize("k", [1, 7, 50, 80])
def test_best_first_breaks_ties_by_lower_item_number(k):
    scores = np.random.default_rng(k).integers(0, 6, 50).astype(np.float32)
    items, best = best_first(scores, k)
    np.testing.assert_array_equal(items, np.argsort(-scores, kind="stable")[:k])
    np.testing.assert_array_equal(best, scores[items])


def test_best_first_wants_at_least_one():
    with pytest.raises(InputError, match="k must be at least 1, found 0"):
        best_first(np.zeros(3), 0)


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="kinds must be one of all, purchases, found 'carts'"):
        MostPopularConfig(kinds="carts")  # pyright: ignore[reportArgumentType]


def test_scoring_leaves_its_input_alone(model, random_log):
    columns = {name: getattr(random_log, name).copy() for name in ("item", "kind", "time", "offset")}
    batch = SessionBatch(**{name: column.copy() for name, column in columns.items()})
    model.score_sessions(batch)
    for name, column in columns.items():
        np.testing.assert_array_equal(getattr(batch, name), column)
