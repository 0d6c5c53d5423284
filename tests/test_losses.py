"""The loss that forms its gradient in the forward pass, against finite differences and torch's cross-entropy."""

import pytest
import torch
from sessiongym.nn.copying import Bonus
from sessiongym.nn.losses import entropy_regularised_loss, weighted_negative_log_likelihood

R, D, N, W = 6, 3, 7, 4


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    return {
        "features": draw(R, D),
        "weight": draw(N, D),
        "bias": draw(N),
        "target": torch.tensor([0, 6, 3, 3, 1, 0]),
        # Positive, negative and zero, as advantages are.
        "row_weight": torch.tensor([0.5, -1.25, 2.0, 0.0, 0.125, 1.0], dtype=torch.float64),
    }, draw(R, W)


def _bonus_item():
    # The target among the items, items of several rows, and item 0 several times, as padding comes.
    return torch.tensor([[0, 0, 0, 5], [6, 2, 1, 3], [0, 0, 3, 1], [1, 2, 4, 5], [0, 1, 2, 3], [4, 5, 6, 0]])


@pytest.mark.parametrize("with_bonus", [False, True])
def test_gradients_agree_with_finite_differences(case, with_bonus):
    rows, amount = case
    target, row_weight = rows["target"], rows["row_weight"]

    def loss(features, weight, bias, amount):
        bonus = Bonus(_bonus_item(), amount) if with_bonus else None
        # Scaled, so that the gradient that flows in is not 1.
        return 3 * weighted_negative_log_likelihood(features, weight, bias, target, row_weight, bonus)[0]

    assert torch.autograd.gradcheck(loss, (rows["features"], rows["weight"], rows["bias"], amount))


def _by_torch(rows, amount):
    logits = torch.nn.functional.linear(rows["features"], rows["weight"], rows["bias"])
    logits = logits.scatter_add(1, _bonus_item(), amount)
    return torch.nn.functional.cross_entropy(logits, rows["target"], reduction="none")


def test_loss_and_gradients_equal_torch_cross_entropy_weighted_by_row(case):
    rows, amount = case
    leaves = [rows["features"], rows["weight"], rows["bias"], amount]
    expected = (rows["row_weight"] * _by_torch(rows, amount)).sum()
    expected_gradients = torch.autograd.grad(expected, leaves)
    loss, log_probability = weighted_negative_log_likelihood(**rows, bonus=Bonus(_bonus_item(), amount))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(log_probability, -_by_torch(rows, amount))
    for found, gradient in zip(torch.autograd.grad(loss, leaves), expected_gradients, strict=True):
        torch.testing.assert_close(found, gradient)


def test_rows_of_weight_one_over_r_are_mean_cross_entropy(case):
    rows, _ = case
    rows["row_weight"] = torch.full((R,), 1 / R, dtype=torch.float64)
    logits = torch.nn.functional.linear(rows["features"], rows["weight"], rows["bias"])
    loss, _ = weighted_negative_log_likelihood(**rows)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, rows["target"]))


def test_log_probabilities_carry_no_gradient(case):
    rows, _ = case
    _, log_probability = weighted_negative_log_likelihood(**rows)
    assert not log_probability.requires_grad


def test_logits_far_apart_stay_finite(case):
    rows, _ = case
    rows["bias"] = torch.tensor([1e4, -1e4, 0, 0, 0, 0, 0], dtype=torch.float64).requires_grad_()
    loss, _ = weighted_negative_log_likelihood(**rows)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(rows[name].grad).all() for name in ("features", "weight", "bias"))
    assert loss.item() == pytest.approx(
        -(rows["row_weight"] * _log_softmax(rows)[torch.arange(R), rows["target"]]).sum()
    )


def _log_softmax(rows):
    return torch.log_softmax(torch.nn.functional.linear(rows["features"], rows["weight"], rows["bias"]), 1).detach()


ENTROPY_WEIGHT = torch.tensor([0.1, 0.0, 2.0, 0.5, -0.25, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("with_bonus", [False, True])
def test_the_entropy_and_its_gradient_equal_torch_autograd(case, with_bonus):
    rows, amount = case
    leaves = [rows["features"], rows["weight"], rows["bias"], *([amount] if with_bonus else [])]
    logits = torch.nn.functional.linear(rows["features"], rows["weight"], rows["bias"])
    if with_bonus:
        logits = logits.scatter_add(1, _bonus_item(), amount)
    log_p = torch.log_softmax(logits, 1)
    entropy = -(log_p.exp() * log_p).sum(1)
    expected_log_probability = log_p[torch.arange(R), rows["target"]]
    expected = -(rows["row_weight"] * expected_log_probability + ENTROPY_WEIGHT * entropy).sum()
    expected_gradients = torch.autograd.grad(3 * expected, leaves)

    bonus = Bonus(_bonus_item(), amount) if with_bonus else None
    loss, log_probability, found_entropy = entropy_regularised_loss(**rows, entropy_weight=ENTROPY_WEIGHT, bonus=bonus)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(log_probability, expected_log_probability)
    torch.testing.assert_close(found_entropy, entropy)
    assert not found_entropy.requires_grad and not log_probability.requires_grad
    for found, gradient in zip(torch.autograd.grad(3 * loss, leaves), expected_gradients, strict=True):
        torch.testing.assert_close(found, gradient)


def test_an_entropy_weight_of_zero_changes_nothing(case):
    rows, _ = case
    leaves = [rows["features"], rows["weight"], rows["bias"]]
    plain, _ = weighted_negative_log_likelihood(**rows)
    loss, _, _ = entropy_regularised_loss(**rows, entropy_weight=torch.zeros(R, dtype=torch.float64))
    torch.testing.assert_close(loss, plain)
    for a, b in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(plain, leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_inputs_get_no_gradient_and_the_others_the_same(case):
    rows, _ = case
    expected = torch.autograd.grad(weighted_negative_log_likelihood(**rows)[0], rows["features"])
    rows["weight"], rows["bias"] = rows["weight"].detach(), rows["bias"].detach()
    weighted_negative_log_likelihood(**rows)[0].backward()
    assert torch.equal(rows["features"].grad, expected[0])
    assert rows["weight"].grad is None and rows["bias"].grad is None
