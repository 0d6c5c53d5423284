"""A copy head: one learned bonus for the logit of each item that the session already holds.

Purchases are mostly items clicked before, and a softmax over all items learns that one item at a time; the bonus says
it once for all items (compare the pointer networks of Vinyals et al. 2015 and CopyNet, Gu et al. 2016, which mix two
distributions where this adds to one).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..envs.log import PURCHASE

_COUNTS = 3
"""An item occurred once, twice, or more often."""


class Bonus(NamedTuple):
    """Additions to [R, N] logits: `amount` [R, W] at the columns `item` [R, W]; an amount of 0 where there is none."""

    item: Tensor
    amount: Tensor


class CopyHead(nn.Module):
    """Bonus = gate(state) + how recent the item is among the session's distinct items + how often it occurred.

    With `kinds`, plus whether it was bought in the window.
    """

    def __init__(self, hidden_units: int, window: int, kinds: bool = False) -> None:
        super().__init__()
        self.window = window
        # All zero: training starts from the softmax without a bonus.
        self.gate_weight = nn.Parameter(torch.zeros(1, hidden_units))
        self.gate_bias = nn.Parameter(torch.zeros(1))
        self.recency = nn.Parameter(torch.zeros(window))
        self.count = nn.Parameter(torch.zeros(_COUNTS))
        self.bought = nn.Parameter(torch.zeros(1)) if kinds else None

    def forward(self, hidden: Tensor, window: Tensor, padding: int, kinds: Tensor | None = None) -> Bonus:
        """For states [R, H] whose last items are `window` [R, W], newest last, padded on the left with `padding`.

        `kinds` [R, W] of those events are for a head that tells bought items from clicked ones.
        """
        real = window != padding
        same = (window.unsqueeze(2) == window.unsqueeze(1)) & real.unsqueeze(2)
        # later[i, j]: place j is newer than place i. An item counts once, at its newest place.
        width = window.shape[1]
        later = torch.ones(width, width, dtype=torch.bool, device=window.device).triu(1)
        newest = real & ~(same & later).any(dim=2)
        rank = newest.flip(1).cumsum(1).flip(1) - 1
        count = same.sum(dim=2).clamp_(1, _COUNTS) - 1
        gate = nn.functional.linear(hidden, self.gate_weight, self.gate_bias)
        amount = gate + self.recency[rank.clamp(min=0)] + self.count[count]
        if self.bought is not None and kinds is not None:
            bought = (same & (kinds == PURCHASE).unsqueeze(1)).any(dim=2)
            amount = amount + self.bought * bought
        return Bonus(window.masked_fill(~newest, 0), amount * newest)


def window_stream(carried: Tensor, items: Tensor, start: Tensor, padding: int) -> Tensor:
    """[T, B, W]: the last W items of each lane's session, newest last, after each of `items` [T, B].

    `carried` [B, W] is the window before the first of them; `start` [T, B] marks the first item of a session.
    """
    n_steps, width = len(items), carried.shape[1]
    stream = torch.cat([carried.t(), items])
    windows = stream.unfold(0, width, 1)[1:]
    step = torch.arange(n_steps, device=items.device).unsqueeze(1)
    session_begin = torch.where(start, step + width, 0).cummax(dim=0).values
    place = step + 1 + torch.arange(width, device=items.device)
    return windows.masked_fill(place.unsqueeze(1) < session_begin.unsqueeze(2), padding)
