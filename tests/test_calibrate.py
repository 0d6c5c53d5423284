"""Calibration: figures mean what they say, knobs are found again, what cannot be known is left alone and said."""

# pyright: reportArgumentType=false, reportOptionalSubscript=false

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sessiongym.envs.log import CLICK, PURCHASE, SessionLog
from sessiongym.envs.shop import Shop, ShopConfig, describe
from sessiongym.envs.shop import calibrate as calibration_module
from sessiongym.envs.shop import target as target_module
from sessiongym.envs.shop.calibrate import calibrate
from sessiongym.envs.shop.config import load_config, save_config
from sessiongym.envs.shop.target import GROUPS, RECSYS15_ALL, RECSYS15_BUYER_MONTH, Target, recorded_part, target_of
from sessiongym.envs.sources.options import PrepareOptions, TableFormat
from sessiongym.envs.sources.table import prepare_table
from sessiongym.errors import InputError
from sessiongym.evaluate.exports import table_markdown
from sessiongym.evaluate.shop_check import check_table, rank_check
from sessiongym.evaluate.shop_views import calibration_table

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
SECOND = 10**9
HOUR = 3_600 * SECOND

TRUTH = ShopConfig(
    n_items=150,
    items_per_cluster=15,
    buyer_share=0.6,
    decide_rate=0.5,
    urgency_spread=0.3,
    reload=0.3,
    back=0.1,
    follow=0.2,
    basket_growth=0.5,
    linger=0.3,
    dwell=90.0,
    dwell_spread=0.7,
    days=14.0,
    daily_swing=0.4,
    peak_hour=20.0,
    weekend_lift=0.7,
)


def sessions(events: list[list[tuple[int, int, float]]], user: list[int] | None = None) -> SessionLog:
    """Sessions of (item, kind, seconds since the epoch)."""
    item, kind, second = (np.array(column) for column in zip(*(event for one in events for event in one), strict=True))
    return SessionLog(
        item=item,
        kind=kind,
        time=np.round(second * SECOND),
        offset=np.cumsum([0, *map(len, events)]),
        session_id=np.arange(len(events)),
        item_id=np.arange(item.max() + 1),
        user=None if user is None else np.array(user),
    )


@pytest.fixture(scope="module")
def source() -> SessionLog:
    return Shop(TRUTH, seed=7).log(2_500, seed=8)


@pytest.fixture
def hasty(monkeypatch, quick):
    """A search that ends early, for what does not depend on how good it is."""
    monkeypatch.setattr(calibration_module, "_ROUNDS", 2)


@pytest.fixture
def quick(monkeypatch):
    """One simulated log for each look at the figures."""
    monkeypatch.setattr(calibration_module, "_FEWEST_SESSIONS", 1)


def test_transitions_and_tails_of_sessions_counted_by_hand():
    figures = describe(
        sessions(
            [
                [(0, CLICK, 0), (1, CLICK, 10), (2, CLICK, 11)],
                # 0 to 1 is known, 1 to 0 is a repeat, 0 to 2 is new; purchases are not asked for.
                [(0, CLICK, 20), (1, CLICK, 30), (0, CLICK, 40), (2, CLICK, 50), (3, PURCHASE, 60), (4, PURCHASE, 62)],
                # 1 to 2 is known; 4 to 0, across the sessions, is none.
                [(1, CLICK, 70), (2, CLICK, 80), (4, CLICK, 81)],
            ]
        )
    )
    assert figures["known_transition"] == pytest.approx(2 / 6)
    assert figures["length_tail"] == pytest.approx(6 / 12)
    assert figures["basket_gap"] == pytest.approx(2)


def test_overlap_of_visits_counted_by_hand():
    def visit(*items: int) -> list[tuple[int, int, float]]:
        return [(item, CLICK, 0.0) for item in items]

    log = sessions([visit(0, 1), visit(2, 3), visit(1, 5), visit(6, 2), visit(3, 7)], user=[4, 9, 4, 9, 9])
    # Own last visit: shared, shared, not. The last one of who returns next, where that is another: {2, 3} for {1, 5},
    # not shared; and, round the end, {0, 1} for {3, 7}, not shared.
    assert describe(log)["visit_overlap"] == pytest.approx(2 / 3)
    assert describe(log)["visits_tail"] == pytest.approx(3 / 5)


def test_overlap_of_visits_is_nothing_by_chance_and_rises_with_persistence():
    def overlap(persistence: float) -> float:
        config = ShopConfig(n_items=300, users=500, taste_persistence=persistence)
        return describe(Shop(config, seed=0).log(4_000, seed=0))["visit_overlap"]

    # Some 3,500 pairs of visits on either side, of which at most half share an item.
    assert abs(overlap(0.0)) < 4 * np.sqrt(2 * 0.25 / 3_500)
    assert overlap(0.3) < overlap(0.9)


def test_rhythm_of_a_log_is_that_of_its_shop():
    config = ShopConfig(n_items=50, days=28.0, daily_swing=0.5, peak_hour=9.0, weekend_lift=2.0, max_events=2)
    figures = describe(Shop(config, seed=0).log(40_000, seed=0))
    assert figures["daily_swing"] == pytest.approx(0.5, abs=4 * np.sqrt(2 / 40_000))
    assert figures["peak_hour"] == pytest.approx(9.0, abs=0.25)
    assert figures["weekend_lift"] == pytest.approx(2.0, rel=0.05)


def test_rhythm_is_not_known_where_an_hour_is_not_covered():
    figures = describe(sessions([[(0, CLICK, 0.0)], [(0, CLICK, 7_200.0)]]))
    assert np.isnan(figures["daily_swing"]) and np.isnan(figures["weekend_lift"])


def test_spread_of_pauses_is_that_of_a_log_normal_law():
    gap = np.exp(5.0 + 0.8 * np.random.default_rng(0).standard_normal(20_000))
    log = sessions([[(0, CLICK, 0.0), (1, CLICK, one)] for one in gap])
    assert describe(log)["gap_spread"] == pytest.approx(0.8, rel=0.04)


def test_impulses_buy_what_was_not_looked_at():
    shops = [Shop(ShopConfig(n_items=2_000, impulse_share=share), seed=0) for share in (0.0, 0.5, 1.0)]
    logs = [shop.log(1_000, seed=0) for shop in shops]
    shares = [describe(log)["purchase_repeat"] for log in logs]
    assert shares == sorted(shares, reverse=True)
    # Where a search for something fresh finds nothing, the best-known item of the cluster is taken.
    log, catalogue = logs[-1], shops[-1].catalogue
    best_known = catalogue.member[catalogue.member_offset[:-1]]
    for first, end in zip(log.offset[:-1], log.offset[1:], strict=True):
        for event in np.flatnonzero(log.kind[first:end] == PURCHASE) + first:
            assert log.item[event] not in log.item[first:event] or log.item[event] in best_known


def test_a_record_of_clicks_or_purchases_alone_is_cut_from_a_log():
    log = sessions([[(0, CLICK, 0), (1, PURCHASE, 1), (2, CLICK, 2)], [(3, CLICK, 3), (4, PURCHASE, 4)]], user=[5, 6])
    clicks = recorded_part(log, "clicks", 2)
    assert clicks.user is not None
    assert clicks.item.tolist() == [0, 2] and clicks.offset.tolist() == [0, 2] and clicks.user.tolist() == [5]
    purchases = recorded_part(log, "purchases", 1)
    assert purchases.item.tolist() == [1, 4] and purchases.offset.tolist() == [0, 1, 2]
    assert recorded_part(log, "all", 2) is log
    assert recorded_part(log, "all", 3).session_id.tolist() == [0]


def test_a_sample_of_a_long_log_is_of_whole_users(monkeypatch):
    log = Shop(ShopConfig(n_items=100, users=300), seed=0).log(3_000, seed=0)
    assert log.user is not None
    monkeypatch.setattr(target_module, "_MOST_EVENTS", log.n_events // 3)
    target = target_of(log)
    assert target.sessions == 3_000
    assert target.users == len(np.unique(log.user))
    # A user comes about ten times; a sample of sessions would see about a third of these.
    assert target.visits_mean == pytest.approx(describe(log)["visits_mean"], rel=0.15)


def test_every_figure_of_a_target_is_in_one_group():
    names = [name for group in GROUPS for name in group]
    assert sorted(names) == sorted(asdict(Target("none")).keys() - {"source", "recorded", "shortest"})


def test_the_knobs_of_a_shop_are_found_again_from_its_log(source, quick):
    seen = []
    start = replace(ShopConfig(), items_per_cluster=15)
    found = calibrate(source, config=start, seed=1, progress=lambda done, most, text: seen.append((done, most)))
    config = found.config

    # Read off: nothing but the noise of the log.
    assert config.start.startswith("2014-09-01")
    assert config.days == pytest.approx(14.0, abs=0.1)
    assert config.buyer_share == pytest.approx(0.6, abs=4 * np.sqrt(0.24 / 2_500))
    assert config.weekend_lift == pytest.approx(0.7, rel=0.2)
    # Searched for: each nearer to the truth than where the search began.
    for name in ("decide_rate", "urgency_spread", "reload", "back", "basket_growth", "dwell", "dwell_spread", "linger"):
        begun, ended, truth = (getattr(one, name) for one in (start, config, TRUTH))
        assert abs(ended - truth) < abs(begun - truth), name

    begun = describe(Shop(replace(start, n_items=150), seed=0).log(2_500, seed=0))
    for name in ("length_mean", "repeat_last", "repeat_earlier", "basket_mean", "gap_median"):
        assert abs(found.achieved[name] - found.target[name]) < abs(begun[name] - found.target[name]), name

    assert all(0 < done <= most for done, most in seen) and seen == sorted(seen)
    assert {"cluster_pull", "users", "taste_persistence"} <= set(found.left)
    assert found.frame()["figure"].tolist() == list(found.target)
    table = table_markdown(calibration_table(found))
    assert "(fits reload)" in table and "cluster_pull" in table


def test_the_same_seed_gives_the_same_shop_and_another_seed_another(source, hasty):
    log = source.select(np.arange(400))
    first, second, other = (calibrate(log, seed=seed) for seed in (3, 3, 4))
    assert first.config == second.config and first.achieved == second.achieved
    assert first.config != other.config


def test_users_and_their_taste_are_found(quick):
    log = Shop(replace(TRUTH, n_items=600, users=300, taste_persistence=0.8), seed=1).log(1_500, seed=1)
    found = calibrate(log, config=ShopConfig(items_per_cluster=15))
    assert log.user is not None
    assert found.config.users >= len(np.unique(log.user))
    assert found.config.taste_persistence > 0
    assert found.target["visit_overlap"] > 0.1
    # Four standard errors of the overlap of some 1,200 pairs of visits.
    assert found.achieved["visit_overlap"] == pytest.approx(found.target["visit_overlap"], abs=4 * 0.02)


def test_what_a_log_of_clicks_does_not_say_is_left_as_it_was(source, hasty):
    given = ShopConfig(buyer_share=0.3, basket_growth=0.2, rebuy_penalty=1.5, accessory_share=0.4)
    found = calibrate(recorded_part(source, "clicks", 2), config=given)
    names = {"buyer_share", "basket_growth", "rebuy_penalty", "accessory_share", "impulse_share", "linger", "users"}
    assert names <= set(found.left)
    assert all(getattr(found.config, name) == getattr(given, name) for name in names)
    assert not {"buyer_share", "basket_mean", "purchase_repeat"} & set(found.target)


def test_each_source_gives_what_those_before_it_leave_open(source, hasty):
    published = Target("published", buyer_share=0.25)
    clicks, buys = recorded_part(source, "clicks", 2), recorded_part(source, "purchases", 1)
    found = calibrate([target_of(clicks, "clicks"), target_of(buys, "buys"), published, target_of(source, "all")])
    assert found.source["length_mean"] == found.source["top_tenth_share"] == "clicks"
    assert found.source["basket_mean"] == "buys" and found.source["buyer_share"] == "published"
    assert found.source["purchase_repeat"] == "all"
    assert found.config.buyer_share == 0.25
    assert found.target["basket_mean"] == pytest.approx(describe(source)["basket_mean"])


def test_figures_that_depend_on_the_size_are_not_taken_from_another_size(source, hasty, monkeypatch):
    monkeypatch.setattr(target_module, "_MOST_EVENTS", 3_000)
    found = calibrate([RECSYS15_BUYER_MONTH, recorded_part(source, "clicks", 2)])
    assert found.config.n_items == 9_167 and found.config.days == 30 and found.config.start == "2014-09-01"
    assert {"zipf_exponent", "zipf_shift", "new_item_share", "urgency_spread", "follow"} <= set(found.left)
    assert "gap_median" in found.target and "length_tail" not in found.target


def test_shares_of_the_next_click_never_exceed_one(hasty):
    target = replace(RECSYS15_BUYER_MONTH, sessions=300, items=60, repeat_last=0.7, repeat_earlier=0.28)
    config = calibrate(target, config=ShopConfig(follow=0.6)).config
    assert config.reload + config.back + config.follow <= 1


@pytest.mark.parametrize("given", [[], [RECSYS15_ALL]])
def test_sources_that_do_not_say_how_many_sessions_there_are_are_refused(given):
    with pytest.raises(InputError, match="says how many sessions there are, found none") as caught:
        calibrate(given)
    assert "\n" not in str(caught.value)


def test_a_negative_seed_is_refused():
    with pytest.raises(InputError, match="seed must be 0 or more, found -1"):
        calibrate(RECSYS15_BUYER_MONTH, seed=-1)


def test_a_log_without_events_is_refused():
    empty = SessionLog(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(1), np.zeros(0), np.arange(3))
    with pytest.raises(InputError, match="no events"):
        calibrate(empty)


def test_a_config_file_reads_back_as_it_was_and_is_not_overwritten(tmp_path):
    file = tmp_path / "deep" / "shop.json"
    save_config(TRUTH, file)
    assert load_config(file) == TRUTH
    with pytest.raises(InputError, match="already exists"):
        save_config(ShopConfig(), file)
    assert load_config(file) == TRUTH
    save_config(ShopConfig(), file, overwrite=True)
    assert load_config(file) == ShopConfig()
    assert [one.name for one in file.parent.iterdir()] == ["shop.json"]
    with pytest.raises(InputError, match="found a folder"):
        save_config(TRUTH, tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "expected an object"),
        ('{"reload": 2}', "reload must be"),
        ('{"reload": "much"}', "reload must be"),
        ('{"colour": 2}', "'colour' is no knob"),
        ('{\n"reload":\n}', "shop.json:3: not valid JSON"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_config_file_is_told_in_one_line(tmp_path, text, said):
    file = tmp_path / "shop.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_config(file)
    assert said in str(caught.value) and str(file) in str(caught.value) and "\n" not in str(caught.value)


def _long(clicks: dict[str, float], purchases: dict[str, float], n_purchases: int) -> pd.DataFrame:
    rows = [
        {"model": model, "slice": name, "metric": "recall", "k": 5, "seed": "mean", "value": value, "events": events}
        for name, values, events in (("click", clicks, 9), ("purchase", purchases, n_purchases))
        for model, value in values.items()
    ]
    return pd.DataFrame(rows).assign(low=0.0, high=1.0)


def test_the_check_sets_figures_and_ranks_side_by_side():
    one, other = {"a": 0.3, "b": 0.2, "c": 0.1}, {"a": 0.1, "b": 0.2, "c": 0.3}
    table = check_table(_long(one, one, 5), _long(other, one, 5), 5, ["simulated"])
    assert [column.group for column in table.columns] == ["Click"] * 4 + ["Purchase"] * 4
    assert [figure.value for figure in table.rows[0].figures] == [0.3, 1, 0.1, 3, 0.3, 1, 0.3, 1]
    assert table.notes[0].startswith("Click: rank correlation -1.00")
    assert table.notes[1].startswith("Purchase: rank correlation 1.00")


def test_the_check_leaves_out_what_one_of_them_has_none_of():
    one = {"a": 0.3, "b": 0.2}
    table = check_table(_long(one, one, 0), _long(one, one, 5), 5)
    assert {column.group for column in table.columns} == {"Click"}


def test_one_model_has_no_rank(tmp_path, source):
    with pytest.raises(InputError, match="at least two models"):
        rank_check(None, TRUTH, tmp_path, models=("s-pop",))


@pytest.mark.slow
def test_on_a_real_log_models_rank_much_the_same_as_on_the_shop_calibrated_to_it(tmp_path, quick, monkeypatch):
    file = DATA / "taobao_actions" / "events.csv"
    if not file.exists():
        pytest.skip(f"no {file}; SESSIONGYM_DATA names the folder of the data")
    taobao = TableFormat(
        file, item="item_idx", time="timestamp", user="user_idx", gap=3_600.0, kind="behaviour",
        click=("fav", "cart"), purchase=("buy",),
    )  # fmt: skip
    data = prepare_table(taobao, PrepareOptions(latest_days=4.0)).save(tmp_path / "taobao")
    monkeypatch.setattr(target_module, "_MOST_EVENTS", 40_000)
    found = calibrate(data.train)
    begun = describe(Shop(replace(ShopConfig(), n_items=found.config.n_items), seed=0).log(found.sessions, seed=0))
    for name in ("length_mean", "repeat_earlier", "purchase_repeat", "top_tenth_share", "gap_median"):
        assert abs(found.achieved[name] - found.target[name]) < abs(begun[name] - found.target[name]), name
    models = ("most-popular", "most-recent", "session-knn", "gru4rec:epochs=1")
    table = rank_check(data, found.config, tmp_path / "check", models=models, jobs=1)
    assert [row.label for row in table.rows] == list(models)
    clicks = {row.label: np.array([row.figures[i].value for i in (1, 3)], dtype=float) for row in table.rows}
    # What the session holds says more than what all shoppers like, in either.
    assert (clicks["session-knn"] < clicks["most-popular"]).all()
