"""Experiments in the shop: correlations by hand, models put to work in the shop's own numbers, values kept, both
experiments end to end."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalOperand=false

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr
from sessiongym.baselines.config import MostRecentConfig
from sessiongym.baselines.recency import MostRecent
from sessiongym.envs.log import PreparedData
from sessiongym.envs.shop.config import ShopConfig
from sessiongym.envs.shop.live import live_shop
from sessiongym.envs.shop.live_config import LiveShopConfig
from sessiongym.envs.shop.policies import UniformPolicy
from sessiongym.envs.shop.value import session_returns
from sessiongym.errors import InputError
from sessiongym.evaluate.exports import read_views
from sessiongym.evaluate.runs import compute_cell
from sessiongym.evaluate.shop_experiments import values
from sessiongym.evaluate.shop_experiments.correlation import kendall, rank_correlation, spearman
from sessiongym.evaluate.shop_experiments.definitions import (
    SHOP_EXPERIMENTS,
    Metric,
    Setting,
    ShopExperiment,
    ShopExperimentName,
    changed_experiment,
)
from sessiongym.evaluate.shop_experiments.logs import shop_log
from sessiongym.evaluate.shop_experiments.policies import deployed, shop_scores
from sessiongym.evaluate.shop_experiments.results import Outcome, Truth
from sessiongym.evaluate.shop_experiments.run import make_shop_plan, run_shop_experiment
from sessiongym.evaluate.shop_experiments.views import panels_of
from sessiongym.evaluate.views import HeatMap, LineChart, Table

N = 40
BASE = LiveShopConfig(
    shop=ShopConfig(n_items=N, items_per_cluster=8, new_item_share=0.0, max_events=40), kinds=True, window=20
)
TINY = ShopExperiment(
    "tiny",
    "Two shops",
    (("strength", (0.3, 1.0)),),
    ("most-popular", "most-recent", "item-knn", "session-knn"),
    BASE,
    n_sessions=300,
    n_served=200,
)


@pytest.fixture
def in_process(monkeypatch):
    """Cells and values computed here, one after the other, and no pictures; returns the names of values computed."""
    computed = []

    def cells_of(todo, data, cells, jobs, device, extra=None):
        cells.mkdir(parents=True, exist_ok=True)
        return {cell.name: compute_cell(cell, data, cells, device, extra=extra) for cell in todo}

    def values_of(todo, cells, logs, folder, jobs, device):
        folder.mkdir(exist_ok=True)
        for valuation in todo:
            if not values.is_known(valuation, folder):
                values.compute_value(valuation, cells, logs, folder, device)
                computed.append(valuation.name)

    monkeypatch.setattr("sessiongym.evaluate.shop_experiments.run.compute_cells", cells_of)
    monkeypatch.setattr("sessiongym.evaluate.shop_experiments.run.compute_values", values_of)
    monkeypatch.setattr("sessiongym.evaluate.exports.has_figures", lambda view: False)
    monkeypatch.setattr("sessiongym.evaluate.shop_experiments.run.panels_of", lambda views: [])
    return computed


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    config = replace(BASE, shop=replace(BASE.shop, new_item_share=0.4))
    return config, shop_log(config, 300, 0, tmp_path_factory.mktemp("logs"))


def test_correlations_are_those_of_scipy_ties_included():
    rng = np.random.default_rng(0)
    x, y = rng.integers(4, size=(20, 9)).astype(float), rng.integers(5, size=(20, 9)).astype(float)
    assert kendall(x, y) == pytest.approx([kendalltau(*pair).statistic for pair in zip(x, y, strict=True)])
    assert spearman(x, y) == pytest.approx([spearmanr(*pair).statistic for pair in zip(x, y, strict=True)])


def test_a_correlation_by_hand():
    found = rank_correlation(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0]))
    assert found.kendall.value == pytest.approx(4 / 6) and found.spearman.value == pytest.approx(0.8)
    low, value, high = np.array([found.kendall.low, found.kendall.value, found.kendall.high], dtype=float)
    assert found.n_models == 4 and low < value <= high


def test_models_in_perfect_order_stay_so_however_they_are_drawn():
    found = rank_correlation(np.arange(6.0), np.arange(6.0) ** 3)
    assert (found.kendall.value, found.kendall.low, found.kendall.high) == (1.0, 1.0, 1.0)
    turned = rank_correlation(np.arange(6.0), -np.arange(6.0))
    assert turned.spearman.value == pytest.approx(-1.0) and turned.spearman.high == pytest.approx(-1.0)


def test_models_without_a_figure_do_not_count_and_what_has_no_order_has_no_correlation():
    metric = np.array([1.0, np.nan, 2.0, 3.0])
    assert rank_correlation(metric, np.arange(4.0)).n_models == 3
    assert rank_correlation(metric, np.arange(4.0)).kendall.value == 1.0
    for nothing in (np.ones(4), np.full(4, np.nan), np.array([1.0, 2.0, np.nan, np.nan])):
        found = rank_correlation(nothing, np.arange(4.0))
        assert found.kendall.value is None and found.spearman.value is None


def test_noise_behind_the_figures_widens_the_interval():
    rng, value = np.random.default_rng(0), np.arange(8.0)
    draws = value + rng.normal(0, 4, (1000, 8))
    sure, unsure = rank_correlation(value, value), rank_correlation(value, value, draws, draws[::-1])
    assert sure.kendall.low == 1.0 and unsure.kendall.low < 0.8


def test_pairs_by_hand():
    # Replay puts a above b above c, and d level with c; a and b earn the same, c more than both, d anything.
    noise = np.random.default_rng(0).normal(0, 1, (1000, 5))
    replay = np.array([3.0, 2.0, 1.0, 1.0]) + 0.05 * noise[:, :4] * [1, 1, 1, 4]
    truth = np.array([1.0, 1.0, 2.0, 1.5]) + 0.05 * noise[:, [4, 4, 4, 0]] * [1, 1, 1, 40]
    nothing = np.zeros(4)
    earned = Truth(truth.mean(axis=0), nothing, nothing, nothing, truth, nothing[:, None], nothing)
    metric = Metric("all", "recall", 5)
    outcome = Outcome(
        "shop", tuple("abcd"), (metric,), replay.mean(axis=0)[:, None], replay[:, :, None], {True: earned}
    )
    # Apart in replay: ab, ac, ad, bc, bd; in truth: ac and bc, the other way round.
    assert outcome.pairs(True) == {metric: (5, 0, 2)}


def test_every_experiment_has_its_name_and_shops_and_says_what_it_does_not_know():
    assert get_args(ShopExperimentName) == tuple(SHOP_EXPERIMENTS)
    for name, experiment in SHOP_EXPERIMENTS.items():
        assert name == experiment.name and len(set(experiment.shops().values())) == len(experiment.shops())
        assert len(experiment.shops()) == 1 + sum(
            setting.of(experiment.base) != experiment.base for setting in experiment.settings()
        )
    assert Setting("back", 0.4).of(BASE).shop.back == 0.4 and Setting("delay", 0.4).of(BASE).delay == 0.4
    with pytest.raises(InputError, match="'colour'"):
        Setting("colour", 1.0).of(BASE)
    with pytest.raises(InputError, match="must show kinds"):
        replace(TINY, base=replace(BASE, kinds=False))
    with pytest.raises(InputError, match="caps from 1 to 10"):
        replace(TINY, caps=(11,))
    assert changed_experiment(TINY, n_items=60, models=["bpr"]).base.n_items == 60


def test_after_the_log_the_catalogue_is_the_same_and_all_of_it_on_sale(log):
    config, _ = log
    before, after = (live_shop(each.shop, each.shop_seed).catalogue for each in (config, deployed(config)))
    assert (before.appears > after.appears.min()).any() and len(np.unique(after.appears)) == 1
    for name in set(before._fields) - {"appears"}:
        assert np.array_equal(getattr(before, name), getattr(after, name)), name


def test_a_model_in_the_shop_speaks_of_the_items_that_it_was_trained_on_by_the_shops_numbers(log):
    _, made = log
    data = made.data
    model = MostRecent(MostRecentConfig()).fit(data.train, None)
    shop_item = data.train.item_id - 1
    first, second = shop_item[5], shop_item[2]
    foreign = np.setdiff1d(np.arange(N), shop_item[: data.train.n_train_items])
    assert len(foreign), "some items must come on sale after training"
    items = np.full((2, 6), N, np.int32)
    items[0, -3:], items[1, -2:] = [second, first, foreign[0]], [first, second]
    shown = {"items": items, "kinds": np.where(items == N, 2, 0).astype(np.uint8)}
    scores = shop_scores(model, data, N)(shown)
    assert scores.argmax(axis=1).tolist() == [first, second]
    assert np.isneginf(scores[:, foreign]).all() and scores.shape == (2, N)
    unseen = shop_scores(model, data, N, unseen_only=True)(shown)
    assert np.isneginf(unseen[:, [first, second]]).all()
    capped = shop_scores(model, data, N, cap=1)(shown)
    assert capped.argmax(axis=1).tolist() == [second, first]


def test_where_no_item_is_known_the_popular_ones_are_shown(log):
    _, made = log
    data = made.data
    foreign = np.setdiff1d(np.arange(N), data.train.item_id[: data.train.n_train_items] - 1)
    shown = {"items": np.array([[N, foreign[0]]], np.int32), "kinds": np.array([[2, 0]], np.uint8)}
    popular = data.train.item_id[np.bincount(data.train.item).argmax()] - 1
    model = MostRecent(MostRecentConfig()).fit(data.train, None)
    assert shop_scores(model, data, N)(shown).argmax() == popular


def test_the_log_is_kept_with_the_decisions_of_its_test_sessions(log, tmp_path):
    config, made = log
    again = shop_log(config, 300, 0, tmp_path)
    assert again.data.fingerprint() == made.data.fingerprint()
    assert np.array_equal(again.action, made.action)
    assert made.decisions.n_sessions == made.data.test.n_sessions
    assert len(made.observations["items"]) == len(made.action) == made.decisions.offset[-1]
    # No item is rare enough here for a filter, so that what was answered is what is in the test split.
    assert made.decisions.reward.sum() == np.where(made.data.test.kind == 1, 5, 1).sum() - made.data.test.n_sessions
    assert isinstance(made.data, PreparedData) and made.data.manifest["source"]["sessions"] == 300


def test_replay_versus_truth_runs_once_and_goes_on_where_it_stopped(tmp_path, in_process):
    plan = make_shop_plan(TINY, tmp_path)
    assert plan.missing() == (8, 8, 18, 18)
    views = {view.name: view for view in run_shop_experiment(plan, tmp_path / "out")}
    assert plan.missing() == (8, 0, 18, 0) and len(in_process) == 18
    table, heat = views["kendall-unseen"], views["kendall-unseen-map"]
    assert isinstance(table, Table) and isinstance(heat, HeatMap)
    assert [row.label for row in table.rows] == ["base shop", "strength 1"]
    assert heat.values[0] == tuple(figure.value for figure in table.rows[0].figures)
    assert isinstance(views["correlation-strength"], LineChart)
    models = views["models-strength-1"]
    assert isinstance(models, Table) and {row.label for row in models.rows} == set(TINY.models)
    assert [column.label for column in models.columns][-2] == "reward, unseen"
    earned = [row.figures[-2].value for row in models.rows]
    assert earned == sorted(earned, reverse=True)
    assert read_views(tmp_path / "out") == list(views.values())

    before = (tmp_path / "out" / "views.json").read_bytes()
    victim = next((tmp_path / "shop-values").glob("*.npz"))
    victim.unlink()
    run_shop_experiment(make_shop_plan(TINY, tmp_path), tmp_path / "out")
    assert in_process[18:] == [victim.stem]
    assert (tmp_path / "out" / "views.json").read_bytes() == before
    with pytest.raises(InputError, match="already holds another experiment"):
        run_shop_experiment(make_shop_plan(replace(TINY, n_served=100), tmp_path), tmp_path / "out")


def test_a_true_value_is_that_of_the_same_shoppers_and_off_policy_estimates_are_refused(tmp_path, in_process):
    plan = make_shop_plan(replace(TINY, knobs=()), tmp_path)
    run_shop_experiment(plan, tmp_path / "out")
    chance = values.read_value(plan.valuation(BASE, None), plan.values_folder)
    assert np.array_equal(chance.returns, session_returns(UniformPolicy(N), deployed(BASE), 200, seed=1))
    cell = plan.cells(BASE)["item-knn"][0]
    served = values.read_value(plan.valuation(BASE, cell, True), plan.values_folder)
    assert len(served.returns) == 200 and not np.array_equal(served.returns, chance.returns)
    assert np.isnan(served.estimates).all() and served.effective_sample_size < 100


@pytest.mark.parametrize(
    ("models", "n_seeds", "expected"),
    [
        (("bpr", "rnn"), 1, "at least 3, which have an order, found 2"),
        (("bpr", "rnn", "ii-rnn-ap"), 1, "ii-rnn-ap: needs users"),
        (TINY.models, 0, "--seeds: expected at least 1"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_a_log_is_made(tmp_path, models, n_seeds, expected):
    with pytest.raises(InputError, match=expected):
        make_shop_plan(replace(TINY, models=models), tmp_path, n_seeds=n_seeds)
    assert not list(tmp_path.iterdir())


def test_cold_start_has_caps_new_items_and_short_sessions(tmp_path, in_process):
    experiment = replace(
        TINY,
        knobs=(("new_item_share", (0.0, 0.5)), ("decide_rate", (0.21, 0.8))),
        models=("most-popular", "item-knn", "session-knn"),
        caps=(1, 3),
        metrics=SHOP_EXPERIMENTS["cold-start"].metrics,
    )
    views = {view.name: view for view in run_shop_experiment(make_shop_plan(experiment, tmp_path), tmp_path / "out")}
    gain = views["gain-new-shoppers"]
    assert isinstance(gain, LineChart) and gain.series[0].x == (1.0, 3.0)
    assert [series.label for series in gain.series] == list(experiment.models)
    assert {"recall-all-new-shoppers", "gain-new-item-share", "recall-new-new-item-share", "gain-decide-rate"} <= set(
        views
    )
    assert [[chart.name for chart in row] for row in panels_of(list(views.values()))] == [
        [f"{figure}-{over}" for over in ("new-shoppers", "new-item-share", "decide-rate")]
        for figure in ("gain", "recall-all", "recall-all-explore")
    ]
    models = views["models-new-item-share-0-5"]
    assert isinstance(models, Table)
    place = experiment.metrics.index(Metric("after training", "recall", 5))
    assert {row.figures[place].value for row in models.rows} == {0.0}, "no model knows what came on sale after training"


@pytest.mark.slow
def test_values_computed_side_by_side_are_those_computed_here(tmp_path, in_process, monkeypatch):
    experiment = replace(TINY, knobs=(), models=("most-popular", "item-knn", "most-recent"))
    here = run_shop_experiment(make_shop_plan(experiment, tmp_path / "here"), tmp_path / "here" / "out")
    monkeypatch.undo()
    plan = make_shop_plan(experiment, tmp_path / "there")
    assert run_shop_experiment(plan, tmp_path / "there" / "out", jobs=2) == here
    assert plan.missing()[1::2] == (0, 0)
