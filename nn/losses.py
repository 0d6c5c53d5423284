"""Losses over all N items that never keep more than one [R, N] matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .copying import Bonus


class _WeightedNegativeLogLikelihood(torch.autograd.Function):
    """The gradient is formed in the forward pass, in the buffer of the logits: three matrix products and no copy."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        target: Tensor,
        row_weight: Tensor,
        bonus_item: Tensor | None,
        bonus_amount: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        logits = torch.addmm(bias, features, weight.t())
        if bonus_item is not None and bonus_amount is not None:
            logits.scatter_add_(1, bonus_item, bonus_amount)
        rows = torch.arange(len(target), device=target.device)
        log_z = torch.logsumexp(logits, dim=1)
        log_probability = logits[rows, target] - log_z
        d_logits = logits.sub_(log_z.unsqueeze(1)).exp_().mul_(row_weight.unsqueeze(1))
        d_logits[rows, target] -= row_weight
        d_bonus = None if bonus_item is None else d_logits.gather(1, bonus_item)
        ctx.save_for_backward(d_logits @ weight, d_logits.t() @ features, d_logits.sum(0), d_bonus)
        ctx.mark_non_differentiable(log_probability)
        return -(row_weight * log_probability).sum(), log_probability

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale = grads[0]
        d_features, d_weight, d_bias, d_bonus = ctx.saved_tensors
        d_bonus = None if d_bonus is None else d_bonus * scale
        return d_features * scale, d_weight * scale, d_bias * scale, None, None, None, d_bonus


def weighted_negative_log_likelihood(
    features: Tensor, weight: Tensor, bias: Tensor, target: Tensor, row_weight: Tensor, bonus: Bonus | None = None
) -> tuple[Tensor, Tensor]:
    """``-sum_r row_weight[r] * log softmax(features[r] W^T + b)[target[r]]`` and [R] those log-probabilities.

    With row weights of 1/R it is cross-entropy; with advantages it is the policy-gradient loss for logged actions.
    `features` [R, D], `weight` [N, D], `bias` [N], `target` [R] int64, `row_weight` [R]; `bonus` adds to the logits.
    The log-probabilities carry no gradient.
    """
    item, amount = bonus if bonus is not None else (None, None)
    return _WeightedNegativeLogLikelihood.apply(  # type: ignore[return-value]
        features, weight, bias, target, row_weight, item, amount
    )
