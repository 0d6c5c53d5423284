"""Figures over seeds: what the interval covers, and how often the models change places."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, kendalltau, trim_mean
from sessiongym.errors import InputError
from sessiongym.evaluate.events import slice_masks
from sessiongym.evaluate.metrics import metric_at
from sessiongym.evaluate.seeds import (
    over_seeds,
    rank_stability,
    rank_view,
    seed_summary,
    seed_table,
    seed_view,
)
from sessiongym.evaluate.statistics import session_bootstrap
from sessiongym.evaluate.views import views_from_json, views_to_json


def _events(scale, seed, max_k=0):
    """An event table of 150 sessions with made-up ranks; the events are the same whatever the arguments."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    length = shared.integers(1, 8, size=150)
    n = int(length.sum())
    low = own.exponential(scale, n).astype(np.int32)
    return pd.DataFrame(
        {
            "session": np.repeat(3 * np.arange(150, dtype=np.int32), length),
            "position": np.concatenate([np.arange(2, 2 + m) for m in length]).astype(np.int32),
            "item": shared.integers(0, 50, n).astype(np.int32),
            "kind": (shared.random(n) < 0.3).astype(np.uint8),
            "repeat": shared.random(n) < 0.4,
            "rank_low": low,
            "rank_high": low + own.integers(1, 4, n).astype(np.int32),
            "max_k": np.full(n, max_k, np.int16),
        }
    )


@pytest.fixture
def events():
    return {
        "rule": {0: _events(9, 1)},
        "best": {seed: _events(2, 10 + seed) for seed in range(5)},
        "close": {seed: _events(2.2, 20 + seed) for seed in range(5)},
        "few": {seed: _events(4, 30 + seed) for seed in (0, 1, 4)},
        "actor": {0: _events(1, 40, max_k=1)},
    }


def _recall(frame, mask, k=5):
    return metric_at("recall", frame["rank_low"].to_numpy(), frame["rank_high"].to_numpy(), k)[mask].mean()


def test_of_more_than_three_seeds_the_lowest_and_highest_quarter_do_not_count():
    figures = np.array([[0.0, 9.0], [4.0, 1.0], [5.0, 2.0], [6.0, 3.0], [100.0, 4.0]])
    np.testing.assert_allclose(over_seeds(figures), [5, 3])
    np.testing.assert_allclose(over_seeds(figures[:3]), figures[:3].mean(axis=0))
    for n in range(1, 12):
        some = np.random.default_rng(n).normal(size=n)
        assert over_seeds(some) == pytest.approx(trim_mean(some, 0.25))
        if n <= 3:
            assert over_seeds(some) == pytest.approx(some.mean())


def test_one_seed_has_the_interval_of_its_sessions(events):
    frame = events["rule"][0]
    mask = slice_masks(frame)["click"]
    table = seed_table({"rule": events["rule"]}, slices=["click"], resamples=300, seed=3)
    values = metric_at("recall", frame["rank_low"].to_numpy(), frame["rank_high"].to_numpy(), 5)
    inside = np.where(mask, values, np.nan)[:, None]
    expected = session_bootstrap(inside, frame["session"].to_numpy(), resamples=300, seed=3)
    np.testing.assert_allclose(table[["value", "low", "high"]].to_numpy()[0], np.ravel(expected), rtol=1e-12)


def test_an_explicit_loop_over_seeds_and_sessions_gives_the_same_interval(events):
    rng, drawn = np.random.default_rng(7), []
    frames = list(events["close"].values())
    hits = np.stack([metric_at("recall", f["rank_low"].to_numpy(), f["rank_high"].to_numpy(), 5) for f in frames])
    members = [np.flatnonzero(frames[0]["session"] == s) for s in frames[0]["session"].unique()]
    for _ in range(3000):
        rows = np.concatenate([members[s] for s in rng.integers(len(members), size=len(members))])
        drawn.append(trim_mean(hits[rng.integers(5, size=5)][:, rows].mean(axis=1), 0.25))
    table = seed_table({"close": events["close"]}, slices=["all"], resamples=3000)
    low, high = table.loc[0, ["low", "high"]].astype(float)
    # The standard error of a 2.5 % point of 3,000 draws is 1.8 % of the interval's width; of a difference, 2.5 %.
    np.testing.assert_allclose([low, high], np.percentile(drawn, [2.5, 97.5]), atol=4 * 0.025 * (high - low))


def test_the_interval_covers_the_choice_of_seeds_too():
    rng = np.random.default_rng(0)
    session = rng.random((1, 400, 1))
    counts = np.ones((400, 1))
    same, apart = np.repeat(session, 5, axis=0), session + np.arange(5)[:, None, None]
    widths = [np.ptp(seed_summary(sums, counts)[1:]) for sums in (session, same, apart)]
    assert widths[1] == pytest.approx(widths[0]) and widths[2] > 10 * widths[1]


def test_seeds_and_sessions_enter_by_the_statistic_the_table_names(events):
    table = seed_table(events, resamples=50).set_index(["model", "slice"])
    assert dict(table["statistic"][:, "click"]) == {
        "rule": "mean",
        "best": "iqm",
        "close": "iqm",
        "few": "mean",
        "actor": "mean",
    }
    frames = events["best"].values()
    mask = slice_masks(events["best"][0])["purchase"]
    by_seed = [_recall(frame, mask) for frame in frames]
    row = table.loc[("best", "purchase")]
    found = row[["value", "mean", "lowest", "highest"]].astype(float)
    expected = [trim_mean(by_seed, 0.25), np.mean(by_seed), min(by_seed), max(by_seed)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert (row["seeds"], row["events"]) == (5, mask.sum()) and row["low"] < row["value"] < row["high"]
    assert table.loc["actor", ["value", "low", "high", "lowest"]].isna().all(axis=None)


def test_places_are_probabilities_and_say_who_is_ahead(events):
    found = rank_stability(events, "all", resamples=400)
    shares = found.places.drop(columns=["value", "holds"])
    assert list(found.places.index) == ["best", "close", "few", "rule"] and found.left_out == ("actor",)
    np.testing.assert_allclose(shares.sum(axis=0), 1)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert found.places["value"].is_monotonic_decreasing
    assert shares.at["rule", 4] > 0.99 and shares.at["best", 1] > 0.5
    assert found.places.at["few", "holds"] > 0.99 and np.isnan(found.places.at["rule", "holds"])


def test_twins_share_their_places_and_hold_their_order_half_the_time(events):
    twins = {"one": events["rule"], "other": {0: events["rule"][0].copy()}}
    found = rank_stability(twins, "all", resamples=100)
    assert (found.places[[1, 2]].to_numpy() == 0.5).all() and found.places["holds"].iloc[0] == 0.5
    assert np.isnan(found.agreement)


def test_places_are_those_of_an_explicit_loop(events):
    pair = {model: events[model] for model in ("best", "close")}
    frames = {model: list(by_seed.values()) for model, by_seed in pair.items()}
    hits = {
        model: np.stack([metric_at("recall", f["rank_low"].to_numpy(), f["rank_high"].to_numpy(), 5) for f in several])
        for model, several in frames.items()
    }
    session = frames["best"][0]["session"]
    members = [np.flatnonzero(session == s) for s in session.unique()]
    rng, ahead, n = np.random.default_rng(3), 0, 2000
    for _ in range(n):
        rows = np.concatenate([members[s] for s in rng.integers(len(members), size=len(members))])
        best, close = (trim_mean(h[rng.integers(5, size=5)][:, rows].mean(axis=1), 0.25) for h in hits.values())
        ahead += best > close
    found = rank_stability(pair, "all", resamples=n).places.at["best", 1]
    # Two binomial shares of n draws each; five standard errors of their difference.
    assert abs(found - ahead / n) < 5 * np.sqrt(2 * found * (1 - found) / n)


def test_tau_compares_the_orders_under_two_seeds_that_all_models_have(events):
    found = rank_stability(events, "click", resamples=10)
    assert list(found.tau.index) == list(found.tau.columns) == [0, 1, 4]
    mask = slice_masks(events["rule"][0])["click"]
    orders = [
        [_recall(by_seed[seed] if len(by_seed) > 1 else by_seed[0], mask) for model, by_seed in events.items()][:-1]
        for seed in (0, 4)
    ]
    assert found.tau.loc[0, 4] == found.tau.loc[4, 0] == pytest.approx(kendalltau(*orders)[0])
    assert found.agreement == pytest.approx(np.mean([found.tau.loc[pair] for pair in ((0, 1), (0, 4), (1, 4))]))


def test_same_seed_same_bits_other_seed_other_draws(events):
    first, again, other = (rank_stability(events, resamples=100, seed=seed).places for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert not first.equals(other)
    tables = [seed_table(events, resamples=100, seed=seed) for seed in (1, 1, 2)]
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    assert not np.array_equal(tables[0]["low"], tables[2]["low"], equal_nan=True)


def test_views_hold_the_figures_and_say_what_they_are(events):
    table = seed_table(events, resamples=50)
    view, places = seed_view(table), rank_view(rank_stability(events, "purchase/repeat", resamples=50))
    assert views_from_json(views_to_json([view, places]), "here") == [view, places]
    best = next(row for row in view.rows if row.label == "best").figures[0]
    row = table.query("model == 'best' and slice == 'purchase'").iloc[0]
    assert (best.value, best.low, best.high) == (row["value"], row["low"], row["high"])
    assert view.rows[-1].figures[0].value is None and "Fewer than 5 seeds" in view.notes[1]
    assert places.name == "places-purchase-repeat-recall-5" and "actor" in places.notes[-1]
    enough = seed_view(seed_table({model: events[model] for model in ("best", "close")}, resamples=10))
    assert not any("Fewer" in note for note in enough.notes)


def test_what_cannot_be_summarised_is_refused(events):
    with pytest.raises(InputError, match=r"slices: expected some of purchase, .*, found nowhere$"):
        seed_table(events, slices=["click", "nowhere"])
    with pytest.raises(InputError, match=r"at least two models with recall@5 over all, found 1;"):
        rank_stability({model: events[model] for model in ("rule", "actor")}, "all")
    with pytest.raises(InputError, match=r"found \(5, 7\) and \(7, 2\)"):
        seed_summary(np.zeros((5, 7)), np.ones((7, 2)))


@pytest.mark.slow
def test_intervals_over_five_seeds_cover_the_truth_nearly_as_often_as_they_say():
    rng, n, covered = np.random.default_rng(0), 1000, {0.0: 0, 0.5: 0}
    counts = np.ones((150, 1))
    for share in covered:
        for trial in range(n):
            # `share` of the variance of the mean comes from the seeds, the rest from the sessions.
            seeds, sessions = rng.normal(size=5) * np.sqrt(5 * share), rng.normal(size=150) * np.sqrt(150 * (1 - share))
            sums = (seeds[:, None] + sessions)[:, :, None]
            found = seed_summary(sums, counts, resamples=500, seed=trial)
            covered[share] += found.low[0] <= 0 <= found.high[0]
    # Percentile intervals of 5 seeds may lose two points; each bound is passed by chance once in 10,000 runs.
    for count in covered.values():
        assert binom.ppf(1e-4, n, 0.93) <= count <= binom.ppf(1 - 1e-4, n, 0.97)
