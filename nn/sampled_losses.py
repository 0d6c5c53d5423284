"""Losses over sampled candidates, of which each row has its own positive and shares the others with its batch.

R rows, D features, M >= R candidates: candidate r < R is the target of row r, and the targets of the other rows are
negatives of it, as are the M - R that were drawn in addition (Hidasi & Karatzoglou 2018, section 3.1). A negative that
happens to be the target's item counts as a negative, as it does there. Gradients are formed in the buffer of the
scores; autograd would record a dozen [R, M] matrices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        log_probability = torch.addmm(bias, features, weight.t()).log_softmax(1)
        loss = -log_probability.diagonal().sum()
        d_scores = log_probability.exp_()
        d_scores.diagonal().sub_(1)
        ctx.save_for_backward(d_scores, features, weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _through_scores(ctx, grads[0])


class _BPRMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, bpreg: float, alpha: float) -> Tensor:
        scores = torch.addmm(bias, features, weight.t())
        slope = scores.clamp(max=0).exp_().mul_(alpha)
        above = scores > 0
        r = scores.clamp_(min=0).add_(slope).sub_(alpha)
        slope = torch.where(above, 1.0, slope)
        target = r.diagonal().clone()
        r.diagonal().fill_(-torch.inf)
        s = r.softmax(1)
        r.diagonal().copy_(target)

        # sigmoid' = sigmoid (1 - sigmoid), and every weight s_j depends on every r_j: with p = sum s sigmoid and
        # q = sum s r^2, d loss / d r_j = s_j (bpreg (r_j^2 + 2 r_j - q) - (sigmoid_j^2 - p) / p).
        sigmoid = (target.unsqueeze(1) - r).sigmoid_()
        s_sigmoid = s * sigmoid
        p = s_sigmoid.sum(1)
        p_squares = s_sigmoid.mul_(sigmoid).sum(1)
        q = torch.mul(s, r, out=s_sigmoid).mul_(r).sum(1)
        loss = (q * bpreg - (p + _TINY).log()).sum()

        column = (p + _TINY).unsqueeze(1)
        pull = sigmoid.square_().sub_(p.unsqueeze(1)).div_(column)
        d_scores = r.add_(1).square_().sub_((q + 1).unsqueeze(1)).mul_(bpreg).sub_(pull).mul_(s)
        d_scores.diagonal().copy_((p_squares - p) / (p + _TINY))
        ctx.save_for_backward(d_scores.mul_(slope), features, weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *_through_scores(ctx, grads[0]), None, None


_TINY = 1e-24
"""Keeps the logarithm finite (Hidasi & Karatzoglou 2018, the published code)."""


def _through_scores(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of features, weight and bias from those of the scores, times `factor` []."""
    d_scores, features, weight = ctx.saved_tensors
    d_features = torch.mm(d_scores, weight).mul_(factor) if ctx.needs_input_grad[0] else None
    d_weight = torch.mm(d_scores.t(), features * factor) if ctx.needs_input_grad[1] else None
    d_bias = d_scores.sum(0).mul_(factor) if ctx.needs_input_grad[2] else None
    return d_features, d_weight, d_bias


def sampled_cross_entropy(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``-sum_r log softmax(o_r)[r]`` with ``o = features W^T + b``, a scalar.

    `features` [R, D], `weight` [M, D] and `bias` [M] of the candidates. Subtract `log_expected_counts` from the bias
    and the softmax estimates the one over all items (Bengio & Senecal 2008; "logq").
    """
    return _CrossEntropy.apply(features, weight, bias)  # type: ignore[return-value]


def bpr_max(features: Tensor, weight: Tensor, bias: Tensor, bpreg: float, alpha: float) -> Tensor:
    """BPR-max with score regularisation (Hidasi & Karatzoglou 2018, section 3.3), summed over rows, a scalar.

    With ``r = elu(features W^T + b)`` and s the softmax of a row over its *negatives* only, a row's loss is
    ``-log(sum_j s_j sigmoid(r_target - r_j)) + bpreg * sum_j s_j r_j^2``. `features` [R, D], `weight` [M, D] and `bias`
    [M] of the candidates, M >= 2; `alpha`: the elu of a score far below zero is -alpha.
    """
    return _BPRMax.apply(features, weight, bias, bpreg, alpha)  # type: ignore[return-value]


def log_expected_counts(support: Tensor, n_targets: int, n_sample: int, alpha: float) -> Tensor:
    """[N] log of how often each item is expected among the candidates of a batch, -inf where it cannot be.

    The `n_targets` targets come as often as their `support` [N], the training events of each item; the `n_sample`
    further negatives are drawn proportional to support^alpha.
    """
    support = support.double()
    drawn = torch.where(support > 0, support**alpha, 0.0)
    return (n_targets * support / support.sum() + n_sample * drawn / drawn.sum()).log().float()
