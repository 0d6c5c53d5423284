"""Losses over all N items that keep one [N, R] matrix, and none that autograd would record."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .copying import Bonus


class _WeightedNegativeLogLikelihood(torch.autograd.Function):
    """Three matrix products and five passes over the logits.

    The logits are laid out [N, R], which makes the first product up to a third faster where R is a few dozen. Their
    gradient is formed in their own buffer but for one factor a row; backward multiplies that one, together with the
    gradient that flows in, into the small side of its products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        target: Tensor,
        row_weight: Tensor,
        entropy_weight: Tensor | None,
        bonus_item: Tensor | None,
        bonus_amount: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        logits = torch.mm(weight, features.t()).add_(bias.unsqueeze(1))
        if bonus_item is not None and bonus_amount is not None:
            logits.t().scatter_add_(1, bonus_item, bonus_amount)
        rows = torch.arange(len(target), device=target.device)
        logits -= logits.amax(dim=0)
        log_probability = logits[target, rows]
        if entropy_weight is None:
            d_logits = logits.exp_()
            z = d_logits.sum(0)
            log_probability -= z.log()
            loss, entropy = -torch.dot(row_weight, log_probability), None
            d_logits[target, rows] -= z
            factor = row_weight / z
        else:
            exp = logits.exp()
            z = exp.sum(0)
            log_z = z.log()
            log_probability -= log_z
            entropy = log_z - (exp * logits).sum(0) / z
            loss = -torch.dot(row_weight, log_probability) - torch.dot(entropy_weight, entropy)
            # p (row_weight + entropy_weight (log p + H)), less row_weight at the target.
            d_logits = logits.sub_(log_z - entropy).mul_(entropy_weight).add_(row_weight).mul_(exp.div_(z))
            d_logits[target, rows] -= row_weight
            factor = torch.ones_like(row_weight)
        ctx.save_for_backward(d_logits, factor, features, weight, bonus_item)
        ctx.mark_non_differentiable(*(x for x in (log_probability, entropy) if x is not None))
        return loss, log_probability, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_logits, factor, features, weight, bonus_item = ctx.saved_tensors
        factor = factor * grads[0]
        column = factor.unsqueeze(1)
        d_features = torch.mm(d_logits.t(), weight).mul_(column) if ctx.needs_input_grad[0] else None
        d_weight = torch.mm(d_logits, features * column) if ctx.needs_input_grad[1] else None
        d_bias = torch.mv(d_logits, factor) if ctx.needs_input_grad[2] else None
        d_bonus = None if bonus_item is None else d_logits.t().gather(1, bonus_item) * column
        return d_features, d_weight, d_bias, None, None, None, None, d_bonus


def weighted_negative_log_likelihood(
    features: Tensor, weight: Tensor, bias: Tensor, target: Tensor, row_weight: Tensor, bonus: Bonus | None = None
) -> tuple[Tensor, Tensor]:
    """``-sum_r row_weight[r] * log softmax(features[r] W^T + b)[target[r]]`` and [R] those log-probabilities.

    With row weights of 1/R it is cross-entropy; with advantages it is the policy-gradient loss for logged actions.
    `features` [R, D], `weight` [N, D], `bias` [N], `target` [R] int64, `row_weight` [R]; `bonus` adds to the logits.
    The log-probabilities carry no gradient.
    """
    item, amount = bonus if bonus is not None else (None, None)
    loss, log_probability, _ = _WeightedNegativeLogLikelihood.apply(  # type: ignore[misc]
        features, weight, bias, target, row_weight, None, item, amount
    )
    return loss, log_probability


def entropy_regularised_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    row_weight: Tensor,
    entropy_weight: Tensor,
    bonus: Bonus | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`weighted_negative_log_likelihood` less ``sum_r entropy_weight[r] * H_r``; also returns the entropies H [R].

    `entropy_weight` [R]; H_r in nats, of the softmax of row r (A3C, Mnih et al. 2016, section 4). The
    log-probabilities and the entropies carry no gradient. Needs a second [N, R] matrix for a moment.
    """
    item, amount = bonus if bonus is not None else (None, None)
    return _WeightedNegativeLogLikelihood.apply(  # type: ignore[return-value]
        features, weight, bias, target, row_weight, entropy_weight, item, amount
    )
