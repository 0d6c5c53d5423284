"""A Gymnasium policy is scored on the very observations that it would have met in the environment."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sessiongym.envs.log import PURCHASE, SessionLog
from sessiongym.envs.replay import ReplayVectorEnv
from sessiongym.errors import InputError
from sessiongym.evaluate.events import rank_events
from sessiongym.evaluate.policy import PolicyRecommender
from sessiongym.evaluate.protocol import Recommender, check_recommender
from sessiongym.evaluate.table import long_table

N, W = 25, 4


@pytest.fixture(scope="module")
def log() -> SessionLog:
    rng = np.random.default_rng(0)
    return SessionLog.from_pandas(
        pd.DataFrame(
            {
                "session": rng.integers(0, 60, 400),
                "item": rng.integers(0, N, 400) // rng.integers(1, 4, 400),
                "time": np.arange(400),
                "kind": (rng.random(400) < 0.3).astype(int),
            }
        ),
        item_id=np.arange(N),
    )


def score(observation: np.ndarray) -> np.ndarray:
    """[B, N] from every item of the window and its place; likes what it has just seen."""
    table = np.random.default_rng(1).standard_normal((W, N + 1, N)).astype(np.float32)
    table[-1, np.arange(N), np.arange(N)] += 1
    # One place after the other, so that a row is summed in one order whatever the batch.
    scores = np.zeros((len(observation), N), dtype=np.float32)
    for place in range(W):
        scores += table[place, observation[:, place]]
    return scores


def score_in_torch(observation: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(score(observation)).requires_grad_()


def greedy(observation: np.ndarray) -> np.ndarray:
    return score(observation).argmax(axis=1)


def greedy_in_torch(observation: np.ndarray) -> torch.Tensor:
    return score_in_torch(observation).argmax(dim=1)


def test_scores_are_those_of_stepping_the_environment_with_the_policy(log):
    expected = np.full((log.n_events - log.n_sessions, N), np.nan, dtype=np.float32)
    env = ReplayVectorEnv(log, 5, window=W)
    first_row = log.offset[:-1] - np.arange(log.n_sessions)
    observation, info = env.reset(seed=0)
    row = first_row[info["session"]]
    while (info["pass"] == 0).any():
        first_pass = info["pass"] == 0
        scores = score(observation)
        expected[row[first_pass]] = scores[first_pass]
        observation, _, ended, _, info = env.step(scores.argmax(axis=1))
        row = np.where(ended, first_row[info["session"]], row + 1)
    found = PolicyRecommender(score, N, window=W).score_sessions(log.batch())
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("policy", "gives"),
    [(score, "scores"), (score_in_torch, "scores"), (greedy, "actions"), (greedy_in_torch, "actions")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_wrapped_policy_keeps_to_the_protocol(log, policy, gives):
    model = PolicyRecommender(policy, N, window=W, gives=gives)
    assert isinstance(model, Recommender) and model.fit(log, None) is model
    check_recommender(model, log)


def test_a_policy_in_torch_is_ranked_like_the_same_one_in_numpy(log):
    found, expected = (rank_events(PolicyRecommender(policy, N, window=W), log) for policy in (score_in_torch, score))
    pd.testing.assert_frame_equal(found, expected)


def test_an_agent_that_only_acts_is_scored_at_one_and_blank_elsewhere(log):
    acting = PolicyRecommender(greedy, N, window=W, gives="actions")
    scoring = PolicyRecommender(score, N, window=W)
    assert acting.max_k == 1
    events = {"acting": {0: rank_events(acting, log)}, "scoring": {0: rank_events(scoring, log)}}
    long = long_table(events, ks=(1, 3, 5, 10), resamples=20)
    mean: Any = long.query("seed == 'mean'")
    blank = (mean["model"] == "acting") & (mean["k"] > 1)
    np.testing.assert_array_equal(mean["value"].isna(), blank)
    keys = mean[["model", "slice", "metric", "k"]].itertuples(index=False, name=None)
    value = dict(zip(keys, mean["value"].tolist(), strict=True))

    batch = log.batch()
    target = batch.target_events()
    hit = scoring.score_sessions(batch).argmax(axis=1) == batch.item[target]  # type: ignore[union-attr]
    bought = batch.kind[target] == PURCHASE
    for metric in ("recall", "mrr"):
        assert value["acting", "purchase", metric, 1] == pytest.approx(hit[bought].mean(), rel=1e-12)
        assert value["acting", "all", metric, 1] == pytest.approx(hit.mean(), rel=1e-12)
        assert value["acting", "all", metric, 1] == pytest.approx(value["scoring", "all", metric, 1], rel=1e-12)
    assert 0 < hit[bought].sum() < bought.sum()


def test_the_default_columns_of_an_acting_agent_are_all_blank(log):
    acting = PolicyRecommender(greedy, N, window=W, gives="actions")
    long = long_table({"acting": {0: rank_events(acting, log)}}, resamples=5)
    assert sorted(set(long["k"])) == [3, 5, 10] and np.isnan(long["value"].to_numpy()).all()


@pytest.mark.parametrize(
    "policy",
    [
        lambda o: np.full(len(o), N),
        lambda o: np.full(len(o), -1),
        lambda o: np.full(len(o), 0.5),
        lambda o: o,
        lambda o: o[1:, 0],
    ],
    ids=["beyond", "below", "between", "windows", "short"],
)
def test_what_is_not_one_item_for_each_observation_is_refused(log, policy):
    with pytest.raises(InputError, match=r"expected one item 0\.\.24 for each of") as caught:
        PolicyRecommender(policy, N, window=W, gives="actions").score_sessions(log.batch())
    assert "\n" not in str(caught.value)


def test_scores_of_another_shape_are_refused_when_ranked(log):
    with pytest.raises(InputError, match="expected scores of shape") as caught:
        rank_events(PolicyRecommender(lambda o: np.zeros((len(o), 3), np.float32), N), log)
    assert "\n" not in str(caught.value)


def test_an_unknown_kind_of_policy_is_refused():
    with pytest.raises(InputError, match="gives must be 'scores' or 'actions', found 'logits'"):
        PolicyRecommender(score, N, gives="logits")  # type: ignore[arg-type]
