"""The network of all recurrent agents: items -> LSTM -> logits over all items, and a value (IRN paper, section 5.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..envs.replay_options import NO_KIND
from .copying import Bonus, CopyHead, window_stream
from .layers import dropped, xavier
from .recurrent import lstm_step, lstm_unroll

N_KINDS = 2
"""Click and purchase."""


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of a `RecurrentPolicy`."""

    hidden_units: int = 256
    """Units of the LSTM (IRN paper, section 5.1)."""
    embedding_dim: int | None = None
    """Size of the item embedding; None feeds the one-hot item straight into the four gates, as the paper prints."""
    tied: bool = False
    """The output layer is the item embedding itself behind a projection; needs `embedding_dim`."""
    dropout: float = 0.0
    """Share of zeroed entries in the item embeddings and before the output layer, in training only."""
    copy_window: int = 0
    """W: the logits of the last W items of the session get a learned bonus; 0: no copy head."""
    kinds: bool = False
    """Feed whether an event was a click or a purchase, beside its item."""
    supervised: bool = False
    """A second output layer beside the policy's, for supervised learning of the next item."""


class SessionState(NamedTuple):
    """What a policy knows of sessions so far; the leading dimensions [...] are lanes [B], steps and lanes, or rows."""

    hidden: Tensor
    """[..., H]"""
    cell: Tensor
    """[..., H]"""
    window: Tensor | None = None
    """[..., W] int64, the last items, newest last, padded with N on the left; for a copy head."""
    window_kind: Tensor | None = None
    """[..., W] uint8, their kinds, padded with `NO_KIND`; for a copy head of a network with kinds."""

    def map(self, function: Callable[[Tensor], Tensor]) -> SessionState:
        """`function` of each tensor."""
        window = None if self.window is None else function(self.window)
        window_kind = None if self.window_kind is None else function(self.window_kind)
        return SessionState(function(self.hidden), function(self.cell), window, window_kind)


class OutputLayer(nn.Module):
    """Logits over N items from H hidden units, with a copy head where the network has one.

    Where the layer is tied, its rows are those of the item embedding, behind a projection, and there is no `table`.
    """

    def __init__(self, n_items: int, config: NetworkConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.n_items = n_items
        hidden = config.hidden_units
        dim = config.embedding_dim if config.tied else None
        # Units of an LSTM lie in (-1, 1); times the small rows of a tied table they could not tell items far apart.
        # With it two heads on one table are two, too.
        self.projection = None if dim is None else xavier(generator, dim, hidden)
        self.table = None if config.tied else xavier(generator, n_items, hidden)
        self.bias = nn.Parameter(torch.zeros(n_items))
        self.copy_head = CopyHead(hidden, config.copy_window, config.kinds) if config.copy_window else None

    def features(self, hidden: Tensor) -> Tensor:
        """What the rows of the table multiply, [..., D]."""
        return hidden if self.projection is None else nn.functional.linear(hidden, self.projection)

    def bonus(self, state: SessionState) -> Bonus | None:
        """What the copy head adds to the logits of states [R, ...]; None without a copy head."""
        if self.copy_head is None or state.window is None:
            return None
        return self.copy_head(state.hidden, state.window, self.n_items, state.window_kind)


class RecurrentPolicy(nn.Module):
    """H hidden units, D features, N items. Xavier initialisation (IRN paper, section 5.1) from a seeded generator."""

    def __init__(self, n_items: int, config: NetworkConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.n_items, self.config = n_items, config
        hidden, dim = config.hidden_units, config.embedding_dim
        self.item_table = xavier(generator, n_items, 4 * hidden if dim is None else dim)
        self.w_ih = None if dim is None else xavier(generator, 4 * hidden, dim)
        self.w_hh = xavier(generator, 4 * hidden, hidden)
        self.gate_bias = nn.Parameter(torch.zeros(4 * hidden))
        self.kind_table = xavier(generator, N_KINDS, 4 * hidden) if config.kinds else None
        self.head = OutputLayer(n_items, config, generator)
        self.value_weight = xavier(generator, 1, hidden)
        self.value_bias = nn.Parameter(torch.zeros(1))
        self.supervised_head = OutputLayer(n_items, config, generator) if config.supervised else None
        self.before_lookup: Callable[[Tensor], None] | None = None
        """Called with the items whose rows of `item_table` are about to be read; with it, the gradient of those rows is
        a sparse tensor. For an optimiser of tables (`nn.optimizer.TableAdam`), where the output layer is not tied."""

    def output_weight(self, head: OutputLayer) -> Tensor:
        """[N, D] rows of an output layer."""
        return self.item_table if head.table is None else head.table

    def initial_state(self, n_lanes: int) -> SessionState:
        """The state of B sessions without an event."""
        zeros = self.w_hh.new_zeros(n_lanes, self.config.hidden_units)
        width = self.config.copy_window
        if width == 0:
            return SessionState(zeros, zeros.clone())
        window = torch.full((n_lanes, width), self.n_items, device=zeros.device)
        kinds = torch.full((n_lanes, width), NO_KIND, dtype=torch.uint8, device=zeros.device)
        return SessionState(zeros, zeros.clone(), window, kinds if self.config.kinds else None)

    def unroll(
        self,
        items: Tensor,
        start: Tensor,
        state: SessionState,
        kinds: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> SessionState:
        """States [T, B, ...] after each of `items` [T, B]; a session begins where `start` [T, B] is set.

        `kinds` [T, B] of the events are needed by a network with kinds; a generator switches dropout on.
        """
        gates = self._input_gates(items, kinds, generator)
        hidden, cell = lstm_unroll(gates, self.w_hh, state.hidden, state.cell, start)
        window = window_kind = None
        if state.window is not None:
            window = window_stream(state.window, items, start, self.n_items)
        if state.window_kind is not None and kinds is not None:
            window_kind = window_stream(state.window_kind, kinds.to(torch.uint8), start, NO_KIND)
        return SessionState(hidden, cell, window, window_kind)

    def encode(
        self, windows: Tensor, kinds: Tensor | None = None, generator: torch.Generator | None = None
    ) -> SessionState:
        """States [R, ...] of sessions whose last items are `windows` [R, L], padded with N on the left.

        What a session holds beyond its last L items is forgotten. `kinds` [R, L] as `unroll` takes them.
        """
        real = (windows != self.n_items).t()
        # The state is zeroed before the first real item, so what the padding leaves behind is of no account.
        start = real & ~torch.cat([torch.zeros_like(real[:1]), real[:-1]])
        items = windows.t().where(real, 0)
        kinds = None if kinds is None else kinds.t().where(real, 0)
        states = self.unroll(items, start, self.initial_state(len(windows)), kinds, generator)
        return states.map(lambda part: part[-1])

    def step(self, items: Tensor, state: SessionState, kinds: Tensor | None = None) -> SessionState:
        """The states [B, ...] after one more item [B] each; a click where `kinds` [B] are not given."""
        if self.config.kinds and kinds is None:
            kinds = torch.zeros_like(items)
        hidden, cell = lstm_step(self._input_gates(items, kinds), self.w_hh, state.hidden, state.cell)
        window, window_kind = state.window, state.window_kind
        if window is not None:
            window = torch.cat([window[:, 1:], items.unsqueeze(1)], dim=1)
        if window_kind is not None and kinds is not None:
            window_kind = torch.cat([window_kind[:, 1:], kinds.to(torch.uint8).unsqueeze(1)], dim=1)
        return SessionState(hidden, cell, window, window_kind)

    def logits(self, state: SessionState, head: OutputLayer | None = None) -> Tensor:
        """[R, N] of the states [R, ...], of the policy or of another head."""
        head = head or self.head
        logits = nn.functional.linear(head.features(state.hidden), self.output_weight(head), head.bias)
        bonus = head.bonus(state)
        return logits if bonus is None else logits.scatter_add(1, bonus.item, bonus.amount)

    def logit_of(self, state: SessionState, items: Tensor) -> Tensor:
        """[...] the policy's logit of one item each, without computing the others and without the copy head's bonus."""
        # A few rows are added to the gradient that the full softmax gives the table, instead of a table of zeros.
        rows = nn.functional.embedding(items, self.output_weight(self.head), sparse=self.before_lookup is not None)
        return (self.head.features(state.hidden) * rows).sum(-1) + self.head.bias[items]

    def value(self, hidden: Tensor) -> Tensor:
        """[...] V of each state."""
        return nn.functional.linear(hidden, self.value_weight, self.value_bias).squeeze(-1)

    def _input_gates(self, items: Tensor, kinds: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        """What items [...] of `kinds` [...] contribute to the gates, [..., 4H]."""
        if self.before_lookup is not None:
            self.before_lookup(items)
        rows = nn.functional.embedding(items, self.item_table, sparse=self.before_lookup is not None)
        bias = self.gate_bias
        if self.kind_table is not None:
            assert kinds is not None
            bias = nn.functional.embedding(kinds.long(), self.kind_table + bias)
        if self.w_ih is None:
            return rows + bias
        return nn.functional.linear(self.dropped(rows, generator), self.w_ih) + bias

    def dropped(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """`x` with dropout drawn from the generator, or as it is without one."""
        return dropped(x, self.config.dropout, generator)
