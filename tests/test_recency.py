"""Most Recent."""

import numpy as np
import pytest
from sessiongym.baselines.config import MostRecentConfig
from sessiongym.baselines.recency import MostRecent
from sessiongym.envs.log import CLICK, PURCHASE, SessionLog
from sessiongym.errors import InputError

BOUGHT_LAST = MostRecentConfig(bought="last")


@pytest.fixture
def make_log():
    def make(sessions, n_items, kinds=None):
        item = np.concatenate(sessions).astype(np.int32)
        return SessionLog(
            item=item,
            kind=np.full(len(item), CLICK) if kinds is None else np.concatenate(kinds),
            time=np.arange(len(item)),
            offset=np.cumsum([0, *map(len, sessions)]),
            session_id=np.arange(len(sessions)),
            item_id=np.arange(n_items),
        )

    return make


@pytest.fixture
def random_log(make_log):
    rng = np.random.default_rng(8)
    lengths = rng.integers(1, 14, 40)
    return make_log(
        [rng.integers(0, 12, n) for n in lengths], n_items=15, kinds=[rng.integers(0, 2, n) for n in lengths]
    )


@pytest.fixture(params=[MostRecentConfig(), BOUGHT_LAST], ids=["keep", "last"])
def model(request, random_log):
    return MostRecent(request.param).fit(random_log, None)


def order(scores):
    return np.argsort(-scores, axis=-1, kind="stable").tolist()


def test_newest_on_top_an_item_seen_again_moves_up_popularity_below(make_log):
    train = make_log([[0, 1, 1, 2, 3, 3, 3, 4]], n_items=6)
    scores = MostRecent().fit(train).score_sessions(make_log([[4, 2, 4, 0, 1]], n_items=6).batch())
    assert scores.dtype == np.float32
    assert order(scores) == [[4, 3, 1, 0, 2, 5], [2, 4, 3, 1, 0, 5], [4, 2, 3, 1, 0, 5], [0, 4, 2, 3, 1, 5]]


def test_bought_items_go_behind_the_session_but_stay_above_popularity(make_log):
    train = make_log([[0, 1, 2, 3, 4, 4, 4]], n_items=5)
    batch = make_log([[0, 1, 2, 1, 2, 0]], 5, kinds=[[CLICK, CLICK, CLICK, PURCHASE, PURCHASE, CLICK]]).batch()
    assert order(MostRecent(BOUGHT_LAST).fit(train).score_sessions(batch))[2:] == [
        [2, 1, 0, 4, 3],
        [2, 0, 1, 4, 3],
        [0, 2, 1, 4, 3],
    ]


def test_a_bought_item_stays_bought_when_it_is_clicked_again(make_log):
    train = make_log([[0, 1, 2]], n_items=3)
    batch = make_log([[0, 1, 1, 0]], 3, kinds=[[CLICK, PURCHASE, CLICK, CLICK]]).batch()
    assert order(MostRecent(BOUGHT_LAST).fit(train).score_sessions(batch))[-1] == [0, 1, 2]


def test_every_row_is_the_stack_that_a_list_would_keep(model, random_log):
    scores = model.score_sessions(random_log.batch())
    counts = np.bincount(random_log.item, minlength=15)
    rows = iter(scores)
    for s in range(random_log.n_sessions):
        stack, bought = [], set()
        start, stop = random_log.offset[s], random_log.offset[s + 1]
        for item, kind in zip(random_log.item[start : stop - 1], random_log.kind[start : stop - 1], strict=True):
            stack = [int(item)] + [other for other in stack if other != item]
            if kind == PURCHASE and model.config.bought == "last":
                bought.add(int(item))
            expected = sorted(stack, key=bought.__contains__)
            expected += sorted(set(range(15)) - set(stack), key=lambda i: (-counts[i], i))
            assert order(next(rows)) == expected


def test_items_never_in_training_score_no_higher_than_others(model, make_log):
    scores = model.score_sessions(make_log([[13, 14, 3, 13, 14]], n_items=15).batch())
    assert (scores[:, 12:].max(axis=1) <= scores[:, :12].min(axis=1)).all()


def test_earlier_rows_do_not_change_with_the_future(model, make_log):
    rows = []
    for items, kinds in (([1, 2], [CLICK, CLICK]), ([4, 7], [PURCHASE, PURCHASE])):
        batch = make_log([[4, 7, 4, *items]], 15, kinds=[[CLICK, PURCHASE, CLICK, *kinds]]).batch()
        rows.append(model.score_sessions(batch)[:3])
    np.testing.assert_array_equal(*rows)


def test_a_session_scores_alone_as_it_does_in_a_batch(model, random_log):
    alone = [model.score_sessions(random_log.batch(s, s + 1)) for s in range(random_log.n_sessions)]
    np.testing.assert_array_equal(np.concatenate(alone), model.score_sessions(random_log.batch()))


def test_recommend_is_the_row_that_the_next_event_would_be_scored_on(model, make_log):
    kinds = [CLICK, PURCHASE, CLICK]
    items, scores = model.recommend(make_log([[3, 5, 2]], 15, kinds=[kinds]).batch(), k=6)
    row = model.score_sessions(make_log([[3, 5, 2, 0]], 15, kinds=[[*kinds, CLICK]]).batch())[-1]
    np.testing.assert_array_equal(items, order(row)[:6])
    np.testing.assert_array_equal(scores, row[items])


def test_an_unknown_place_for_bought_items_is_refused():
    with pytest.raises(InputError, match="bought must be one of keep, last, found 'first'"):
        MostRecentConfig(bought="first")  # pyright: ignore[reportArgumentType]
