"""Metrics against enumeration of every order that the ties allow, and by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym.errors import InputError
from sessiongym.evaluate.metrics import METRICS, match_rewards, metric_at, mrr, ndcg, recall
from sessiongym.evaluate.ranks import rank_bounds

_GAIN = {"recall": lambda r: 1.0, "mrr": lambda r: 1 / r, "ndcg": lambda r: 1 / math.log2(r + 1)}


@settings(deadline=None)
@given(
    low=st.integers(0, 30),
    width=st.integers(1, 30),
    k=st.integers(1, 40),
    metric=st.sampled_from(METRICS),
)
def test_ties_give_the_mean_the_best_and_the_worst_of_all_orders(low, width, k, metric):
    ranks = range(low + 1, low + width + 1)
    gains = [_GAIN[metric](rank) if rank <= k else 0.0 for rank in ranks]
    bounds = np.array([low]), np.array([low + width])
    for ties, expected in (("expected", np.mean(gains)), ("optimistic", gains[0]), ("pessimistic", gains[-1])):
        assert metric_at(metric, *bounds, k, ties)[0] == pytest.approx(expected, abs=1e-12)


def test_hand_computed_cases():
    low, high = np.array([0, 2, 4, 1, 9]), np.array([1, 3, 6, 4, 10])
    np.testing.assert_allclose(recall(low, high, 5), [1, 1, 1 / 2, 1, 0])
    np.testing.assert_allclose(mrr(low, high, 5), [1, 1 / 3, (1 / 5) / 2, (1 / 2 + 1 / 3 + 1 / 4) / 3, 0])
    np.testing.assert_allclose(
        ndcg(low, high, 3), [1, 1 / 2, 0, (1 / math.log2(3) + 1 / math.log2(4)) / 3, 0], atol=1e-15
    )


@pytest.mark.parametrize("k", [1, 5, 100])
def test_a_constant_scorer_is_at_chance(k):
    n_items = 100
    low, high = rank_bounds(np.zeros((1, n_items), np.float32), np.zeros(n_items, np.int64), np.arange(n_items))
    np.testing.assert_allclose(recall(low, high, k), k / n_items)
    np.testing.assert_allclose(mrr(low, high, k), sum(1 / r for r in range(1, k + 1)) / n_items)


@pytest.mark.parametrize("ties", ["expected", "optimistic", "pessimistic"])
def test_equal_bounds_are_a_miss_at_every_k(ties):
    for metric in METRICS:
        assert metric_at(metric, np.array([9]), np.array([9]), 50, ties).tolist() == [0.0]


def test_unknown_metric_tie_rule_and_k_are_refused():
    bounds = np.array([0]), np.array([1])
    with pytest.raises(InputError, match="'auc' is not known"):
        metric_at("auc", *bounds, 5)
    with pytest.raises(InputError, match="'mean' is not known"):
        recall(*bounds, 5, ties="mean")
    with pytest.raises(InputError, match="found 0"):
        recall(*bounds, 0)


def _hits(max_k=0):
    """Two sessions: click, purchase, click; purchase. Ranks 1, 2 or 3, 1 or 2, never."""
    return pd.DataFrame(
        {
            "session": [0, 0, 0, 1],
            "position": np.array([2, 3, 4, 2], np.int32),
            "kind": np.array([0, 1, 0, 1], np.uint8),
            "rank_low": np.array([0, 1, 0, 9], np.int32),
            "rank_high": np.array([1, 3, 2, 9], np.int32),
            "max_k": np.full(4, max_k, np.int16),
        }
    )


def test_rewards_of_hits_are_as_by_hand():
    np.testing.assert_allclose(match_rewards(_hits(), gamma=0.5), [1, 0, 0.25 / 2, 0])
    np.testing.assert_allclose(match_rewards(_hits(), 2, rewards=(0.2, 1), gamma=0.5), [0.2, 0.5 / 2, 0.05, 0])
    np.testing.assert_allclose(match_rewards(_hits(), 2, gamma=1.0, ties="pessimistic"), [1, 0, 1, 0])
    np.testing.assert_allclose(match_rewards(_hits(), 9, gamma=0.0), [1, 0, 0, 0])


def test_rewards_beyond_what_a_model_can_list_are_none_and_a_discount_above_one_is_refused():
    assert np.isnan(match_rewards(_hits(max_k=1), 2)).all()
    assert not np.isnan(match_rewards(_hits(max_k=1), 1)).any()
    with pytest.raises(InputError, match=r"gamma in 0..1, found 1.5"):
        match_rewards(_hits(), gamma=1.5)
