"""A copy head: one learned bonus for the logit of each item that the session already holds.

Purchases are mostly items clicked before, and a softmax over all items learns that one item at a time; the bonus says
it once for all items (compare the pointer networks of Vinyals et al. 2015 and CopyNet, Gu et al. 2016, which mix two
distributions where this adds to one).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from numba import njit
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
        places = _places_on_cpu if window.device.type == "cpu" else _places
        newest, rank, count, bought = places(window, window != padding, None if kinds is None else kinds == PURCHASE)
        gate = nn.functional.linear(hidden, self.gate_weight, self.gate_bias)
        amount = gate + self.recency[rank] + self.count[count]
        if self.bought is not None and bought is not None:
            amount = amount + self.bought * bought
        return Bonus(window.masked_fill(~newest, 0), amount * newest)


def _places(window: Tensor, real: Tensor, bought: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """[R, W] each: whether a place is the newest one of its item, where an item counts once; there also the rank
    among the distinct items, newest first, the occurrences less 1 (`_COUNTS` - 1 at most), and if one was bought."""
    same = (window.unsqueeze(2) == window.unsqueeze(1)) & real.unsqueeze(2)
    width = window.shape[1]
    # later[i, j]: place j is newer than place i.
    later = torch.ones(width, width, dtype=torch.bool, device=window.device).triu(1)
    newest = real & ~(same & later).any(dim=2)
    rank = newest.flip(1).cumsum(1).flip(1) - 1
    count = same.sum(dim=2).clamp_(1, _COUNTS) - 1
    return newest, rank.clamp_(min=0), count, None if bought is None else (same & bought.unsqueeze(1)).any(dim=2)


def _places_on_cpu(window: Tensor, real: Tensor, bought: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The same in one pass without [R, W, W]; places that are not an item's newest have zeros."""
    is_bought = torch.zeros_like(real) if bought is None else bought
    newest, out_bought = torch.zeros_like(real), torch.zeros_like(real)
    rank, count = torch.zeros_like(window), torch.zeros_like(window)
    arrays = (part.numpy() for part in (window, real, is_bought, newest, rank, count, out_bought))
    _fill_places(*arrays)
    return newest, rank, count, None if bought is None else out_bought


@njit(cache=True)
def _fill_places(window, real, bought, newest, rank, count, was_bought):
    width = window.shape[1]
    for row in range(len(window)):
        n_distinct = 0
        for place in range(width - 1, -1, -1):
            if not real[row, place]:
                continue
            for newer in range(place + 1, width):
                if newest[row, newer] and window[row, newer] == window[row, place]:
                    count[row, newer] = min(count[row, newer] + 1, _COUNTS - 1)
                    was_bought[row, newer] |= bought[row, place]
                    break
            else:
                newest[row, place] = True
                rank[row, place] = n_distinct
                was_bought[row, place] = bought[row, place]
                n_distinct += 1


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
