"""The trajectory manager: how widely and how far the agent imagines (the paper, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, get_args

import torch
from torch import Tensor

from ...errors import InputError
from ..config import Branching
from .core import ImaginationCore
from .state import State, repeat_state


class Planner(Protocol):
    """Where the items to reconstruct come from."""

    def imagine(self, state: Any, /) -> list[Tensor]:
        """The items of step tau = 1..m of every trajectory, a tensor [K, M] each, for M sessions.

        K grows by whole factors, and item k continues item k mod K' of the K' of the step before. So for n chains K is
        always n and each continues itself.
        """
        ...


@dataclass(frozen=True)
class TrajectoryManager:
    """breadth n, depth m: from every state n trajectories of m imagined items.

    `branching` says how the first n are found: ``gumbel``, distinct draws from pi^ without replacement; ``iid``, with
    replacement; ``top-n``, the most probable ones. One chain, each next item drawn from pi^, then goes on from each.
    ``tree`` goes on from every imagined state with n distinct draws, so that step tau has n^tau items.
    Raises `InputError` for a breadth or depth below 1, or another branching.
    """

    core: ImaginationCore
    breadth: int
    depth: int
    branching: Branching = "gumbel"

    def __post_init__(self) -> None:
        _check_shape(self.breadth, self.depth)
        if self.branching not in get_args(Branching):
            expected = ", ".join(get_args(Branching))
            raise InputError(f"branching: expected one of {expected}, found {self.branching!r}")

    def imagine(self, state: State, /) -> list[Tensor]:
        """See `Planner`; `state` of M sessions is one of the core's policy."""
        law = "gumbel" if self.branching == "tree" else self.branching
        items = self.core.sample(state, self.breadth, law)
        imagined, fan = [items], self.breadth
        for _ in range(self.depth - 1):
            state = self.core.step(items.flatten(), repeat_state(state, fan))
            fan = self.breadth if self.branching == "tree" else 1
            items = self.core.sample(state, fan).view(fan * len(items), -1)
            imagined.append(items)
        return imagined


@dataclass(frozen=True)
class SeenItems:
    """Trajectories of the items that a session has seen, in the place of imagined ones (the paper's PRN agents).

    Everything else is as with `TrajectoryManager`: n chains of m items, drawn uniformly from the distinct items of the
    session, the first n of them without replacement. A session of fewer than n items repeats them, so that the loss
    weighs as much as with imagined ones. `padding` is the number that stands for "no item", usually N.
    """

    generator: torch.Generator
    padding: int
    breadth: int
    depth: int

    def __post_init__(self) -> None:
        _check_shape(self.breadth, self.depth)

    def imagine(self, windows: Tensor, /) -> list[Tensor]:
        """See `Planner`; `windows` [M, W] int64 holds the last W items of each session, padded on the left.

        Raises `InputError` for something else, and on the CPU for a session without an item.
        """
        if not isinstance(windows, Tensor) or windows.ndim != 2 or windows.is_floating_point():
            found = f"{windows.dtype} {tuple(windows.shape)}" if isinstance(windows, Tensor) else type(windows).__name__
            raise InputError(f"windows: expected the last items of each session, int64 [M, W], found {found}")
        if windows.device.type == "cpu" and bool((windows[:, -1] == self.padding).any()):
            raise InputError(f"windows: expected an item at the end of each, found padding ({self.padding}) only")
        width, device = windows.shape[1], windows.device
        newer = torch.ones(width, width, dtype=torch.bool, device=device).triu(1)
        repeats = ((windows.unsqueeze(2) == windows.unsqueeze(1)) & newer).any(dim=2)
        out = repeats | (windows == self.padding)
        order = torch.rand(windows.shape, generator=self.generator, device=device).masked_fill_(out, 2.0)
        # The distinct items of each session in random order, then everything else.
        shuffled = windows.gather(1, order.argsort(dim=1, stable=True)).t()
        n_distinct = (~out).sum(dim=1)
        turn = torch.arange(self.breadth, device=device).unsqueeze(1)
        imagined = [shuffled.gather(0, turn % n_distinct)]
        for _ in range(self.depth - 1):
            uniform = torch.rand(self.breadth, len(windows), generator=self.generator, device=device)
            imagined.append(shuffled.gather(0, (uniform * n_distinct).long()))
        return imagined


def _check_shape(breadth: int, depth: int) -> None:
    for name, value in (("breadth", breadth), ("depth", depth)):
        if value < 1:
            raise InputError(f"{name}: expected at least 1, found {value}")
