"""The trajectory manager: how widely and how far the agent imagines (the paper, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .core import ImaginationCore, State


@dataclass(frozen=True)
class TrajectoryManager:
    """breadth n, depth m: from every state n trajectories of m imagined items, their first items distinct."""

    breadth: int
    depth: int

    def imagine(self, core: ImaginationCore, state: State, window: Tensor | None) -> Tensor:
        """[m, n, M] items imagined in the states (h, c) [M, H] of the core, whose last items are `window` [M, W]."""
        items = core.first_items(state, window, self.breadth)
        trajectories = [items]
        state = state[0].repeat(self.breadth, 1), state[1].repeat(self.breadth, 1)
        window = None if window is None else window.repeat(self.breadth, 1)
        for _ in range(self.depth - 1):
            state, window = core.step(items.flatten(), state, window)
            items = core.next_items(state, window).view_as(items)
            trajectories.append(items)
        return torch.stack(trajectories)
