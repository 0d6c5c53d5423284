"""The simulated shop: its shape, its determinism, and that there is something in it to learn."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false
# pyright: reportOptionalSubscript=false

from __future__ import annotations

import numpy as np
import pytest
from sessiongym.cli import main
from sessiongym.envs.log import CLICK, PURCHASE, PreparedData, SessionLog
from sessiongym.envs.shop import Shop, ShopConfig, describe
from sessiongym.envs.shop.shopper import arrive, empty_lanes, rates_of, step
from sessiongym.errors import InputError

SECOND = 10**9


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop(ShopConfig(), seed=3)


@pytest.fixture(scope="module")
def log(shop) -> SessionLog:
    return shop.log(4_000, seed=5)


@pytest.fixture(scope="module")
def shape(log) -> dict[str, float]:
    return describe(log)


@pytest.fixture(scope="module")
def split(log) -> tuple[SessionLog, SessionLog]:
    """The first 80 % of the sessions, and the rest."""
    return log.select(np.arange(3_200)), log.select(np.arange(3_200, 4_000))


@pytest.mark.parametrize(
    ("figure", "low", "high"),
    [
        ("length_mean", 8, 11),
        ("length_median", 4, 9),
        ("length_p99", 30, 100),
        ("repeat_last", 0.10, 0.20),
        ("repeat_earlier", 0.20, 0.34),
        ("basket_mean", 2.0, 3.2),
        ("basket_duplicate", 0.03, 0.15),
        ("purchase_repeat", 0.75, 0.85),
        ("purchase_last", 0.05, 0.40),
        ("clicks_after_purchase", 0.05, 1.0),
        ("top_tenth_share", 0.35, 0.75),
        ("busiest_hour", 1.4, 2.5),
        ("busiest_weekday", 1.1, 2.0),
        ("gap_median", 35, 80),
    ],
)
def test_shape_is_near_the_published_month(shape, figure, low, high):
    assert low <= shape[figure] <= high


def test_shape_holds_at_the_published_size():
    shape = describe(Shop(ShopConfig(n_items=9_167), seed=0).log(20_000, seed=0))
    assert 8 <= shape["length_mean"] <= 11
    assert 0.10 <= shape["repeat_last"] <= 0.20
    assert 0.20 <= shape["repeat_earlier"] <= 0.34
    assert 0.45 <= shape["top_tenth_share"] <= 0.75


def test_log_is_labelled_as_simulated(log):
    assert any("simulated" in note for note in log.notes)


def test_every_session_of_the_buyer_month_has_a_purchase_after_a_click(log):
    first = log.offset[:-1]
    assert (np.add.reduceat(log.kind == PURCHASE, first) > 0).all()
    assert (log.kind[first] == CLICK).all()
    assert (log.length >= 2).all()


@pytest.mark.parametrize("share", [0.0, 0.055, 0.5])
def test_buyer_share_is_the_share_of_sessions_with_a_purchase(share):
    log = Shop(ShopConfig(buyer_share=share), seed=0).log(4_000, seed=0)
    assert describe(log)["buyer_share"] == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 4_000))
    assert (log.length >= 2).all()


def test_time_rises_within_sessions_and_sessions_are_in_order_of_start(log):
    step_ns = np.diff(log.time)
    within = np.ones(log.n_events - 1, dtype=bool)
    within[log.offset[1:-1] - 1] = False
    assert (step_ns[within] > 0).all()
    start = log.time[log.offset[:-1]]
    assert (np.diff(start) >= 0).all()
    assert 0 <= start[0] - np.datetime64("2014-09-01", "ns").astype(np.int64)
    assert start[-1] < np.datetime64("2014-10-01", "ns").astype(np.int64)


def test_weekends_are_busier_by_the_configured_factor():
    config = ShopConfig(n_items=50, days=28, weekend_lift=2.0, max_events=2)
    log = Shop(config, seed=0).log(20_000, seed=0)
    day = log.time[log.offset[:-1]] // (86_400 * SECOND)
    weekend = np.isin((day + 3) % 7, (5, 6)).mean()
    assert weekend == pytest.approx(4 / 9, abs=0.015)


def test_no_item_before_its_appearance_and_new_ones_are_met(shop, log):
    start = np.repeat(log.time[log.offset[:-1]], log.length)
    appears = shop.catalogue.appears[log.item]
    assert (appears <= start).all()
    assert np.unique(log.item[appears > log.time[0]]).size > 50


def test_same_seed_same_bytes_and_another_seed_another_log(shop, log):
    again = Shop(ShopConfig(), seed=3).log(4_000, seed=5)
    assert again.fingerprint() == log.fingerprint()
    assert shop.log(4_000, seed=6).fingerprint() != log.fingerprint()
    assert Shop(ShopConfig(), seed=4).log(4_000, seed=5).fingerprint() != log.fingerprint()


def test_catalogue_depends_on_the_shop_seed_alone(shop):
    before = [column.copy() for column in shop.catalogue]
    shop.log(10, seed=0)
    for column, kept, same in zip(shop.catalogue, before, Shop(ShopConfig(), seed=3).catalogue, strict=True):
        np.testing.assert_array_equal(column, kept)
        np.testing.assert_array_equal(column, same)
    assert not np.array_equal(shop.catalogue.successor, Shop(ShopConfig(), seed=4).catalogue.successor)


def test_lanes_do_not_disturb_each_other(shop):
    rates, start = rates_of(shop.config), int(shop.catalogue.appears.max())

    def events(lanes: list[int]) -> dict[int, list]:
        shoppers = empty_lanes(4, shop.config.max_events)
        for lane in lanes:
            arrive(shoppers, lane, np.uint64(lane + 1), start, shop.catalogue, rates)
        made = {lane: [] for lane in lanes}
        for _ in range(60):
            for lane in lanes:
                made[lane].append(step(shoppers, lane, shop.catalogue, rates))
        return made

    together = events([0, 1, 2, 3])
    assert together[0] != together[1]
    assert events([2])[2] == together[2]


def test_catalogue_relations_stay_in_their_clusters(shop):
    catalogue = shop.catalogue
    own = catalogue.cluster[:, None]
    assert (catalogue.cluster[catalogue.successor] == own).all()
    assert (catalogue.successor != np.arange(1_000)[:, None]).all()
    assert (catalogue.cluster[catalogue.detour] != catalogue.cluster).all()
    assert (np.sort(catalogue.member) == np.arange(1_000)).all()
    flagship = catalogue.member[catalogue.member_offset[:-1]]
    assert (catalogue.appears[flagship] == catalogue.appears.min()).all()


def test_purchases_of_unseen_items_are_accessories_of_something_seen(shop, log):
    accessory, cluster = shop.catalogue.accessory, shop.catalogue.cluster
    n_explore = 0
    for first, end in zip(log.offset[:-1], log.offset[1:], strict=True):
        for event in range(first + 1, end):
            before = log.item[first:event]
            if log.kind[event] == PURCHASE and log.item[event] not in before:
                n_explore += 1
                assert log.item[event] in accessory[cluster[before]]
    assert 0.15 <= n_explore / log.n_purchases <= 0.25


def test_transitions_are_learned_and_beat_popularity_on_later_sessions(log, split):
    train, test = split
    follows = np.zeros((log.n_items, log.n_items))
    batch = train.batch()
    np.add.at(follows, (batch.item[batch.state_events()], batch.item[batch.target_events()]), 1.0)
    popularity = np.bincount(train.item, minlength=log.n_items).astype(float)

    batch = test.batch()
    last, target = batch.item[batch.state_events()], batch.item[batch.target_events()]
    is_new_click = (batch.kind[batch.target_events()] == CLICK) & (last != target)
    last, target = last[is_new_click], target[is_new_click]

    def recall(score: np.ndarray) -> float:
        return float(((score > score[np.arange(len(target)), target][:, None]).sum(axis=1) < 5).mean())

    learned = recall(follows[last] + 1e-6 * popularity)
    assert learned > 2 * recall(np.broadcast_to(popularity, (len(target), log.n_items)))
    assert learned < 0.9


def test_what_is_bought_can_be_read_better_than_by_recency(log, split):
    train, test = split
    clicked = np.bincount(train.item[train.kind == CLICK], minlength=log.n_items)
    bought = np.bincount(train.item[train.kind == PURCHASE], minlength=log.n_items)
    conversion = (bought + 1) / (clicked + 4)
    hits = {"last": 0, "last not bought": 0, "read": 0}
    for first, end in zip(test.offset[:-1], test.offset[1:], strict=True):
        item, kind = test.item[first:end], test.kind[first:end]
        for event in np.flatnonzero(kind == PURCHASE):
            before = item[:event]
            basket = before[kind[:event] == PURCHASE]
            open_items = before[~np.isin(before, basket)]
            seen, times = np.unique(open_items, return_counts=True)
            hits["last"] += item[event] == before[-1]
            if len(seen):
                hits["last not bought"] += item[event] == open_items[-1]
                hits["read"] += item[event] == seen[np.argmax(times * conversion[seen])]
    assert hits["read"] > 1.05 * max(hits["last"], hits["last not bought"])
    assert hits["read"] < 0.8 * test.n_purchases


def test_intent_shows_in_what_is_bought(shop, log):
    cluster = shop.catalogue.cluster
    seen_in, bought_in = [], []
    for first, end in zip(log.offset[:-1], log.offset[1:], strict=True):
        item, kind = log.item[first:end], log.kind[first:end]
        clicked = item[kind == CLICK]
        main = np.bincount(cluster[clicked]).argmax()
        choices = np.unique(clicked)
        bought = np.intersect1d(choices, item[kind == PURCHASE])
        if len(bought) and len(np.unique(cluster[choices])) > 1:
            seen_in.append((cluster[choices] == main).mean())
            bought_in.append((cluster[bought] == main).mean())
    assert np.mean(bought_in) > np.mean(seen_in) + 0.05


def test_sessions_end_at_max_events_and_buyers_still_buy():
    log = Shop(ShopConfig(n_items=100, decide_rate=0.0, max_events=12), seed=0).log(200, seed=0)
    assert log.length.max() == 12
    assert (np.add.reduceat(log.kind == PURCHASE, log.offset[:-1]) > 0).all()


@pytest.mark.parametrize("n_items", [2, 3, 26, 51])
def test_tiny_catalogues_work(n_items):
    log = Shop(ShopConfig(n_items=n_items), seed=0).log(50, seed=0)
    assert log.n_items == n_items
    assert log.item_id.tolist() == list(range(1, n_items + 1))


def test_describe_on_a_session_counted_by_hand():
    item = [0, 0, 1, 0, 1, 1, 2, 1, 3, 3]
    kind = [0, 0, 0, 0, 1, 1, 1, 0, 0, 0]
    log = SessionLog(
        item=np.array(item),
        kind=np.array(kind),
        time=np.arange(10) * 3 * SECOND,
        offset=np.array([0, 8, 10]),
        session_id=np.arange(2),
        item_id=np.arange(5),
    )
    figures = describe(log)
    assert figures["items_seen"] == 4
    assert figures["length_mean"] == 5
    assert figures["repeat_last"] == pytest.approx(2 / 5)
    assert figures["repeat_earlier"] == pytest.approx(2 / 5)
    assert figures["buyer_share"] == 0.5
    assert figures["basket_mean"] == 3
    assert figures["basket_duplicate"] == pytest.approx(1 / 3)
    assert figures["purchase_repeat"] == pytest.approx(2 / 3)
    assert figures["purchase_last"] == pytest.approx(1 / 3)
    assert figures["clicks_after_purchase"] == 1
    assert figures["top_item_share"] == pytest.approx(0.4)
    assert figures["gap_median"] == 3
    assert figures["users"] == 0


def test_describe_of_returning_shoppers_counted_by_hand():
    log = SessionLog(
        item=np.array([0, 1, 1, 2, 1, 0, 2, 2]),
        kind=np.zeros(8),
        time=np.arange(8) * SECOND,
        offset=np.array([0, 2, 4, 6, 7, 8]),
        session_id=np.arange(5),
        item_id=np.arange(3),
        user=np.array([7, 4, 7, 7, 4]),
    )
    figures = describe(log)
    assert figures["users"] == 2
    assert figures["visits_mean"] == 2.5
    assert figures["first_item_known"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("values", "allowed"),
    [
        ({"n_items": 0}, "from 2 to"),
        ({"n_items": 10.5}, "whole number"),
        ({"n_levels": True}, "whole number"),
        ({"days": -1.0}, "from 0.01 to"),
        ({"buyer_share": 1.2}, "from 0 to 1"),
        ({"linger": -0.1}, "from 0 to 1"),
        ({"decide_rate": float("nan")}, "from 0 to 1"),
        ({"zipf_shift": float("inf")}, "at least 0"),
        ({"dwell": "fast"}, "a number"),
        ({"start": "yesterday"}, "ISO date"),
        ({"start": "9999-01-01"}, "2200"),
        ({"reload": 0.5, "follow": 0.6}, "at most 1"),
        ({"users": -1}, "from 0 to"),
        ({"visit_spread": 11.0, "users": 5}, "from 0 to 10"),
        ({"taste_persistence": 1.5, "users": 5}, "from 0 to 1"),
        ({"taste_drift": -0.5, "users": 5}, "from 0 to 1"),
        ({"taste_persistence": 0.5}, "give users"),
    ],
)
def test_bad_config_names_the_field_and_the_allowed_range(values, allowed):
    with pytest.raises(InputError) as caught:
        ShopConfig(**values)
    message = str(caught.value)
    assert next(iter(values)) in message
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize(("n_sessions", "seed"), [(0, 0), (-5, 0), (2.5, 0), (10, -1)])
def test_bad_number_of_sessions_or_seed_is_an_input_error(shop, n_sessions, seed):
    with pytest.raises(InputError, match="whole number"):
        shop.log(n_sessions, seed)


@pytest.mark.parametrize(
    ("values", "seed", "fingerprint"),
    [
        ({}, 0, "fbfe5b0dd04f163cdc6510489b7f3584"),
        ({"n_items": 2}, 1, "a7df61b54da906e034027f2f8e65c533"),
        ({"n_items": 51, "max_events": 12, "decide_rate": 0.0}, 2, "d8d109e871eb7b6908669db5bac9fd79"),
        (
            {"buyer_share": 0.055, "n_items": 300, "days": 7.5, "drift": 0.9, "wander": 0.9},
            3,
            "3380dc489163a3e75c8e24da3ee09159",
        ),
        (
            {"urgency_spread": 0.0, "n_levels": 1, "new_item_share": 0.9, "start": "2020-02-27T05:00:00+02:00"},
            4,
            "648eb88e0c70b86e55c42b37afc7491a",
        ),
    ],
)
def test_logs_of_strangers_are_those_from_before_shoppers_returned(values, seed, fingerprint):
    log = Shop(ShopConfig(**values), seed).log(1_500, seed + 1)
    assert log.user is None
    assert log.fingerprint() == fingerprint


def test_without_persistence_users_are_a_label_on_the_sessions_of_strangers(shop, log):
    returning = Shop(ShopConfig(users=500), seed=3).log(4_000, seed=5)
    for name in ("item", "kind", "time", "offset", "session_id", "item_id"):
        np.testing.assert_array_equal(getattr(returning, name), getattr(log, name))
    assert returning.user.min() >= 0 and returning.user.max() < 500


def _visits_apart(log: SessionLog, apart: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of sessions, numbers of the earlier and of the later, with `apart` - 1 of the same user between them."""
    by_user = np.argsort(log.user, kind="stable")
    earlier, later = by_user[:-apart], by_user[apart:]
    same = log.user[earlier] == log.user[later]
    return earlier[same], later[same]


@pytest.mark.parametrize(("users", "persistence"), [(2_000, 0.8), (12, 0.8), (12, 0.0)])
def test_sessions_of_a_shopper_do_not_overlap(users, persistence):
    log = Shop(ShopConfig(users=users, taste_persistence=persistence), seed=0).log(4_000, seed=0)
    earlier, later = _visits_apart(log, 1)
    assert len(earlier) > 1_000
    assert (log.time[log.offset[earlier + 1] - 1] < log.time[log.offset[later]]).all()


def test_too_few_shoppers_for_the_sessions_is_an_input_error():
    with pytest.raises(InputError, match="found 1 users for 4000 sessions; raise users"):
        Shop(ShopConfig(users=1), seed=0).log(4_000, seed=0)


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_visits_are_as_uneven_as_configured(spread):
    log = Shop(ShopConfig(n_items=100, users=4_000, visit_spread=spread), seed=0).log(40_000, seed=0)
    visits = np.bincount(log.user, minlength=4_000)
    # Two sessions are of one shopper with the chance E[f^2] / (U E[f]^2), f the log-normal frequency.
    together = (visits * (visits - 1)).sum() / (40_000 * 39_999)
    assert 4_000 * together == pytest.approx(np.exp(spread**2), rel=0.06)


def _returning(persistence: float, **knobs) -> tuple[Shop, SessionLog]:
    """About ten visits of each of 2,000 shoppers, in a shop that stays the same while they come."""
    config = ShopConfig(users=2_000, taste_persistence=persistence, new_item_share=0.0, buyer_share=0.5, **knobs)
    shop = Shop(config, seed=1)
    return shop, shop.log(20_000, seed=2)


def _links(shop: Shop, log: SessionLog) -> dict[str, float]:
    """How alike consecutive visits of a shopper are, in standard deviations from what shuffled users give."""
    first = log.item[log.offset[:-1]]
    length = np.log(log.length)
    length = length - length.mean()
    buys = np.add.reduceat(log.kind, log.offset[:-1]) > 0
    cluster, level = shop.catalogue.cluster[first], shop.catalogue.level[first]

    def likeness(user: np.ndarray) -> np.ndarray:
        by_user = np.argsort(user, kind="stable")
        a, b = by_user[:-1], by_user[1:]
        same = user[a] == user[b]
        a, b = a[same], b[same]
        alike = [first[a] == first[b], cluster[a] == cluster[b], level[a] == level[b], length[a] * length[b]]
        return np.array([np.mean(values) for values in (*alike, buys[a] == buys[b])])

    rng = np.random.default_rng(0)
    shuffled = np.array([likeness(rng.permutation(log.user)) for _ in range(100)])
    z = (likeness(log.user) - shuffled.mean(axis=0)) / shuffled.std(axis=0)
    return dict(zip(("item", "cluster", "level", "length", "buys"), z, strict=True))


def test_without_persistence_earlier_visits_say_nothing_of_the_next():
    assert all(abs(z) < 4 for z in _links(*_returning(0.0)).values())


def test_a_small_persistence_would_show_in_the_same_test():
    assert _links(*_returning(0.1))["cluster"] > 6


def test_with_persistence_what_is_looked_for_lasts_and_the_pace_does_not():
    links = _links(*_returning(0.8))
    assert min(links["item"], links["cluster"], links["level"]) > 20
    assert max(abs(links["length"]), abs(links["buys"])) < 4


def _cluster_shares(shop: Shop) -> np.ndarray:
    return np.diff(shop.catalogue.cluster_cumulative, prepend=0.0)


def _expect(alike: np.ndarray, expected: float, user: np.ndarray) -> None:
    """The mean is within four standard errors, pairs of one shopper counted as dependent."""
    error = np.sqrt((np.bincount(user, weights=alike - expected) ** 2).sum()) / len(alike)
    assert np.mean(alike) == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize("apart", [1, 3])
@pytest.mark.parametrize(("persistence", "drift"), [(0.8, 0.0), (0.8, 0.2), (0.6, 1.0), (1.0, 0.5)])
def test_intents_are_shared_between_visits_as_often_as_stated(persistence, drift, apart):
    # Items are equally popular, and none off the price level is clicked, so that the first one shows the level.
    knobs = {"zipf_exponent": 0.0, "items_per_cluster": 100, "n_levels": 2, "click_level_pull": 20.0}
    shop, log = _returning(persistence, taste_drift=drift, **knobs)
    changes = (1 - persistence) * drift
    shared = persistence * (persistence + changes) * (1 - changes) ** (apart - 1)
    earlier, later = _visits_apart(log, apart)
    first, user = log.item[log.offset[:-1]], log.user[later]

    by_chance = (_cluster_shares(shop) ** 2).sum()
    to_the_point = shared * (1 - shop.config.wander) ** 2
    cluster = shop.catalogue.cluster[first]
    _expect(cluster[earlier] == cluster[later], to_the_point + (1 - to_the_point) * by_chance, user)
    level = shop.catalogue.level[first]
    _expect(level[earlier] == level[later], shared + (1 - shared) / shop.config.n_levels, user)


def test_first_items_are_predictable_from_earlier_visits_to_the_degree_that_the_truth_gives():
    shop, log = _returning(0.8)
    config, share = shop.config, _cluster_shares(shop)
    changes = (1 - config.taste_persistence) * config.taste_drift
    stays_fresh = 1 - config.taste_persistence - changes
    belief = np.tile(share, (config.users, 1))
    chance, hit = [], []
    # The exact filter over the hidden taste, from the cluster of each visit's first item.
    for user, cluster in zip(log.user, shop.catalogue.cluster[log.item[log.offset[:-1]]], strict=True):
        taste = belief[user]
        intent = config.taste_persistence * taste + (1 - config.taste_persistence) * share
        predicted = (1 - config.wander) * intent + config.wander * share
        chance.append(predicted.max())
        hit.append(predicted.argmax() == cluster)
        seen = np.full(len(share), config.wander * share[cluster])
        seen[cluster] += 1 - config.wander
        taste = config.taste_persistence * taste * seen + stays_fresh * taste * share[cluster] + changes * share * seen
        belief[user] = taste / taste.sum()
    chance, hit = np.array(chance), np.array(hit)
    assert hit.sum() == pytest.approx(chance.sum(), abs=4 * np.sqrt((chance * (1 - chance)).sum()))
    assert hit.mean() > 5 * share.max()


def test_shop_command_keeps_the_users_and_says_that_they_return(tmp_path, capsys):
    arguments = "--sessions 600 --items 100 --users 200 --taste-persistence 0.8 --min-item-support 1".split()
    main(["shop", *arguments, "--out", str(tmp_path / "shop")])
    assert "200 of them return, taste persistence 0.8" in capsys.readouterr().out
    data = PreparedData.open(tmp_path / "shop")
    assert data.manifest["source"]["shop"]["users"] == 200
    log = Shop(ShopConfig(n_items=100, users=200, taste_persistence=0.8), seed=0).log(600, seed=0)
    for part in (data.train, data.valid, data.test):
        np.testing.assert_array_equal(part.user, log.user[part.session_id - 1])
    assert data.train.time.max() < data.test.time[data.test.offset[1:] - 1].min()
