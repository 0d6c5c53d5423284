"""Metrics against ranx, an independent library, where no scores tie."""

import numpy as np
import pytest
from sessiongym.evaluate.metrics import METRICS, metric_at
from sessiongym.evaluate.ranks import rank_bounds

N_EVENTS, N_ITEMS = 200, 60
KS = (1, 3, 5, 10, 50)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_recall_mrr_and_ndcg_of_every_event_are_those_of_ranx(seed):
    # ranx compiles itself when it is imported and again for each metric.
    ranx = pytest.importorskip("ranx", reason="ranx, of the extra `test`, is not installed")
    rng = np.random.default_rng(seed)
    # Every score once, so that every order is certain.
    scores = rng.permuted(np.tile(np.arange(N_ITEMS, dtype=np.float64), (N_EVENTS, 1)), axis=1)
    target = rng.integers(0, N_ITEMS, N_EVENTS)
    low, high = rank_bounds(scores, np.arange(N_EVENTS), target)

    relevant = ranx.Qrels({f"event{i}": {f"item{item}": 1} for i, item in enumerate(target)})
    run = ranx.Run({f"event{i}": {f"item{n}": row[n] for n in range(N_ITEMS)} for i, row in enumerate(scores)})
    names = [f"{metric}@{k}" for metric in METRICS for k in KS]
    ranx.evaluate(relevant, run, names)
    for metric in METRICS:
        for k in KS:
            by_event = run.scores[f"{metric}@{k}"]
            expected = [by_event[f"event{i}"] for i in range(N_EVENTS)]
            np.testing.assert_allclose(metric_at(metric, low, high, k), expected, rtol=0, atol=1e-9)
