"""Losses over sampled candidates against formulas written row by row, gradients against finite differences."""

# pyright: reportOptionalSubscript=false, reportArgumentType=false

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym.nn.sampled_losses import bpr_max, log_expected_counts, sampled_cross_entropy

D = 3


def _cross_entropy(features, weight, bias):
    total = 0.0
    for r, row in enumerate(features @ weight.T + bias):
        total -= np.log(np.exp(row[r]) / np.exp(row).sum())
    return total


def _bpr_max(features, weight, bias, bpreg, alpha):
    total = 0.0
    for r, row in enumerate(features @ weight.T + bias):
        row = np.where(row > 0, row, alpha * (np.exp(row) - 1))
        negative = np.delete(row, r)
        s = np.exp(negative) / np.exp(negative).sum()
        sigmoid = 1 / (1 + np.exp(-(row[r] - negative)))
        total += -np.log((s * sigmoid).sum() + 1e-24) + bpreg * (s * negative**2).sum()
    return total


LOSSES = {
    "cross-entropy": (sampled_cross_entropy, _cross_entropy),
    "bpr-max": (partial(bpr_max, bpreg=0.7, alpha=0.5), partial(_bpr_max, bpreg=0.7, alpha=0.5)),
    "bpr-max, elu 1": (partial(bpr_max, bpreg=0.2, alpha=1.0), partial(_bpr_max, bpreg=0.2, alpha=1.0)),
}


def _draw(seed, n_rows, n_more, scale=1.0):
    rng = np.random.default_rng(seed)
    return [scale * rng.normal(size=s) for s in ((n_rows, D), (n_rows + n_more, D), n_rows + n_more)]


def _tensors(arrays, dtype=torch.float64):
    return [torch.tensor(x, dtype=dtype, requires_grad=True) for x in arrays]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(LOSSES)), st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4))
def test_value_and_gradients_are_those_of_the_formula(name, seed, n_rows, n_more):
    loss, by_hand = LOSSES[name]
    arrays = _draw(seed, n_rows, n_more)
    tensors = _tensors(arrays)
    value = loss(*tensors)
    assert value.item() == pytest.approx(by_hand(*arrays), rel=1e-10)
    (2.5 * value).backward()
    for x, tensor in zip(arrays, tensors, strict=True):
        for place in np.ndindex(x.shape):
            old, step = x[place], 1e-6
            x[place] = old + step
            above = by_hand(*arrays)
            x[place] = old - step
            slope = (above - by_hand(*arrays)) / (2 * step)
            x[place] = old
            assert tensor.grad[place].item() == pytest.approx(2.5 * slope, rel=1e-5, abs=1e-7)


def test_cross_entropy_is_that_of_torch():
    tensors = _tensors(_draw(0, 4, 5))
    features, weight, bias = tensors
    expected = torch.nn.functional.cross_entropy(features @ weight.t() + bias, torch.arange(4), reduction="sum")
    assert sampled_cross_entropy(*tensors).item() == pytest.approx(expected.item(), rel=1e-12)


def test_bpr_max_weighs_the_negatives_without_the_positive():
    # With a single negative its weight is 1 whatever the positive's score.
    for target in (-1.0, 0.0, 8.0):
        scores = torch.tensor([target, 0.4])
        loss = bpr_max(torch.ones(1, 1), scores.unsqueeze(1), torch.zeros(2), 0.3, 1.0)
        target = target if target > 0 else np.expm1(target)
        assert loss.item() == pytest.approx(np.log1p(np.exp(0.4 - target)) + 0.3 * 0.4**2, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_rows_add_up(name):
    # A mean inside the logarithm, over rows, would not.
    loss, _ = LOSSES[name]
    features, weight, bias = _tensors(_draw(1, 3, 4))
    alone = 0.0
    for r in range(3):
        order = [r, *(c for c in range(7) if c != r)]
        alone += loss(features[r : r + 1], weight[order], bias[order]).item()
    assert loss(features, weight, bias).item() == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_scores_of_any_size_give_finite_losses_and_gradients(name):
    tensors = _tensors(_draw(2, 4, 8, scale=30.0), torch.float32)
    value = LOSSES[name][0](*tensors)
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(x.grad).all() for x in tensors)


def test_a_bias_without_the_expected_counts_estimates_the_full_softmax_without_bias():
    support = torch.tensor([0, 1, 4, 10, 25])
    counts = log_expected_counts(support, n_targets=6, n_sample=14, alpha=0.5)
    assert counts[0] == -torch.inf
    assert counts.exp().sum().item() == pytest.approx(20)
    rng = np.random.default_rng(0)
    scores = rng.normal(size=5)
    by_root = np.sqrt(support.numpy())
    totals = []
    for _ in range(4000):
        targets = rng.choice(5, 6, p=support.numpy() / support.sum().item())
        drawn = rng.choice(5, 14, p=by_root / by_root.sum())
        candidates = np.concatenate([targets, drawn])
        totals.append(np.exp(scores[candidates] - counts.numpy()[candidates]).sum())
    error = np.std(totals) / np.sqrt(len(totals))
    assert np.mean(totals) == pytest.approx(np.exp(scores[1:]).sum(), abs=5 * error)
