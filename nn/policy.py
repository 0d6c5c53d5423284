"""The network of all recurrent agents: items -> LSTM -> logits over all items, and a value (IRN paper, section 5.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .copying import Bonus, CopyHead
from .recurrent import lstm_step, lstm_unroll


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of a `RecurrentPolicy`."""

    hidden_units: int = 256
    """Units of the LSTM (IRN paper, section 5.1)."""
    embedding_dim: int | None = None
    """Size of the item embedding; None feeds the one-hot item straight into the four gates, as the paper prints."""
    tied: bool = False
    """The output layer is the item embedding itself; needs `embedding_dim`."""
    dropout: float = 0.0
    """Share of zeroed entries in the item embeddings and before the output layer, in training only."""
    copy_window: int = 0
    """W: the logits of the last W items of the session get a learned bonus; 0: no copy head."""


class RecurrentPolicy(nn.Module):
    """H hidden units, D features, N items. Xavier initialisation (IRN paper, section 5.1) from a seeded generator."""

    def __init__(self, n_items: int, config: NetworkConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.n_items, self.config = n_items, config
        hidden, dim = config.hidden_units, config.embedding_dim

        def xavier(*shape: int) -> nn.Parameter:
            return nn.Parameter(nn.init.xavier_uniform_(torch.empty(*shape), generator=generator))

        self.item_table = xavier(n_items, 4 * hidden if dim is None else dim)
        self.w_ih = None if dim is None else xavier(4 * hidden, dim)
        self.w_hh = xavier(4 * hidden, hidden)
        self.gate_bias = nn.Parameter(torch.zeros(4 * hidden))
        tied_dim = dim if config.tied else None
        self.projection = xavier(tied_dim, hidden) if tied_dim is not None and tied_dim != hidden else None
        self.output_table = None if config.tied else xavier(n_items, hidden)
        self.output_bias = nn.Parameter(torch.zeros(n_items))
        self.value_weight = xavier(1, hidden)
        self.value_bias = nn.Parameter(torch.zeros(1))
        self.copy_head = CopyHead(hidden, config.copy_window) if config.copy_window else None

    @property
    def output_weight(self) -> Tensor:
        """[N, D] rows of the output layer."""
        return self.item_table if self.output_table is None else self.output_table

    def initial_state(self, n_lanes: int) -> tuple[Tensor, Tensor]:
        """Zero (h, c), [B, H] each."""
        zeros = self.w_hh.new_zeros(n_lanes, self.config.hidden_units)
        return zeros, zeros.clone()

    def input_gates(self, items: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What items [...] contribute to the gates, [..., 4H]; a generator switches dropout on."""
        rows = nn.functional.embedding(items, self.item_table)
        if self.w_ih is None:
            return rows + self.gate_bias
        return nn.functional.linear(self._dropped(rows, generator), self.w_ih, self.gate_bias)

    def unroll(
        self,
        items: Tensor,
        start: Tensor,
        state: tuple[Tensor, Tensor],
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Hidden and cell states [T, B, H] after each of `items` [T, B]; zeroed before an item where `start` is set."""
        return lstm_unroll(self.input_gates(items, generator), self.w_hh, *state, start)

    def step(self, items: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The state [B, H] after one more item [B] each."""
        return lstm_step(self.input_gates(items), self.w_hh, *state)

    def features(self, hidden: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What the output layer multiplies, [..., D]."""
        hidden = self._dropped(hidden, generator)
        return hidden if self.projection is None else nn.functional.linear(hidden, self.projection)

    def bonus(self, hidden: Tensor, window: Tensor | None) -> Bonus | None:
        """What the copy head adds in states [R, H] whose last items are `window` [R, W]; None without a copy head."""
        if self.copy_head is None or window is None:
            return None
        return self.copy_head(hidden, window, self.n_items)

    def logits(self, hidden: Tensor, window: Tensor | None) -> Tensor:
        """[R, N] of the states [R, H] whose last items are `window` [R, W], which only a copy head needs."""
        logits = nn.functional.linear(self.features(hidden), self.output_weight, self.output_bias)
        bonus = self.bonus(hidden, window)
        return logits if bonus is None else logits.scatter_add(1, bonus.item, bonus.amount)

    def logit_of(self, hidden: Tensor, items: Tensor) -> Tensor:
        """[...] the logit of one item each, without computing the others and without the bonus of the copy head."""
        rows = nn.functional.embedding(items, self.output_weight)
        return (self.features(hidden) * rows).sum(-1) + self.output_bias[items]

    def value(self, hidden: Tensor) -> Tensor:
        """[...] V of each state."""
        return nn.functional.linear(hidden, self.value_weight, self.value_bias).squeeze(-1)

    def _dropped(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is None or self.config.dropout == 0:
            return x
        keep = 1 - self.config.dropout
        # F.dropout draws from the global generator, which would tie the result to everything else in the process.
        return x * (torch.rand(x.shape, generator=generator, device=x.device) < keep).to(x.dtype).div_(keep)
