"""Dropout and initial weights that draw from a generator of their own.

PyTorch's `dropout` draws from the global generator, which would tie a result to everything else in the process.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def dropped(x: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """`x` with a share of its entries zeroed and the others made up for it; as it is without a generator."""
    if generator is None or share == 0:
        return x
    keep = 1 - share
    return x * (torch.rand(x.shape, generator=generator, device=x.device) < keep).to(x.dtype).div_(keep)


def xavier(generator: torch.Generator, *shape: int) -> nn.Parameter:
    """A parameter of this shape, uniform as in Glorot & Bengio 2010."""
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(*shape), generator=generator))
