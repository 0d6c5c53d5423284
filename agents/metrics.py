"""What a learner counts between two records of a training, summed on its device."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

ADVANTAGE_EDGES = (-5.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 5.0)
"""Of the advantage histogram, in units of reward; a bin holds its upper edge."""

_BINS = (
    f"up_to_{ADVANTAGE_EDGES[0]:g}",
    *(f"{low:g}_to_{high:g}" for low, high in pairwise(ADVANTAGE_EDGES)),
    f"above_{ADVANTAGE_EDGES[-1]:g}",
)


class TrainingMetrics:
    """Sums by name. Reading a scalar every update would make the host wait for the device, so nothing is read before
    `take`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}
        """[2, ...] float64: amounts and their count. Those of several learners add up, name by name."""
        self._edges = torch.tensor(ADVANTAGE_EDGES, device=device)

    @torch.no_grad()
    def add(self, name: str, amount: Tensor | float, count: float = 1.0) -> None:
        """`take` will give the sum of the amounts over the sum of the counts."""
        if name not in self.sums:
            shape = amount.shape if isinstance(amount, Tensor) else ()
            self.sums[name] = torch.zeros(2, *shape, dtype=torch.float64, device=self.device)
        amounts, counts = self.sums[name]
        amounts += amount
        counts += count

    def add_advantages(self, advantage: Tensor) -> None:
        """[R] return minus V at the steps where the policy is updated."""
        count = len(advantage)
        self.add("advantage_mean", advantage.sum(), count)
        self.add("advantage_negative_share", (advantage < 0).sum(), count)
        # bincount would make the host wait for a GPU.
        at_most = (advantage.unsqueeze(1) <= self._edges).sum(0)
        bins = at_most.diff(prepend=at_most.new_zeros(1), append=at_most.new_full((1,), count))
        self.add("advantage_histogram", bins, count)

    def take(self) -> dict[str, float]:
        """Means since the last call, the histogram as the share of each bin; nothing for what was never counted."""
        metrics: dict[str, float] = {}
        for name, (amounts, counts) in self.sums.items():
            if not counts.any():
                continue
            mean = (amounts / counts).tolist()
            if isinstance(mean, float):
                metrics[name] = mean
            else:
                metrics |= {f"advantage_share_{label}": share for label, share in zip(_BINS, mean, strict=True)}
        self.sums = {}
        return metrics
