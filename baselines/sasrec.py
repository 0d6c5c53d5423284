"""SASRec: causal self-attention over the last events of a session (Kang & McAuley, ICDM 2018, below "the paper").

Trained with the full softmax or a corrected sampled one, or with the paper's binary cross-entropy.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, scaled_dot_product_attention, softplus

from ..envs.log import SessionBatch, SessionLog
from ..errors import InputError
from ..nn.layers import dropped, xavier
from ..nn.losses import weighted_negative_log_likelihood
from ..nn.optimizer import TableAdam
from ..nn.policy import N_KINDS
from ..nn.training import MinibatchTrainer
from .neural import NeuralBaseline
from .popularity import check_vocabulary
from .sasrec_config import SASRecConfig

_PLACES = 2**16
"""Largest padded B x T in one pass while scoring."""


class Pieces(NamedTuple):
    """B runs of events within sessions, each of at most L states; a run knows nothing of what came before it."""

    first: np.ndarray
    """[B] int64, event of the first state."""
    length: np.ndarray
    """[B] int64, states."""

    def take(self, index: np.ndarray | slice) -> Pieces:
        """Some of them."""
        return Pieces(self.first[index], self.length[index])


class Packed(NamedTuple):
    """The states of B pieces one after the other, and where each lies in [B, T] padded on the right."""

    item: Tensor
    """[R] int64."""
    kind: Tensor
    """[R] int64."""
    target: Tensor
    """[R] int64, the item of the event that follows."""
    position: Tensor
    """[R] int64, 0 for the first state of a piece."""
    place: Tensor
    """[R] int64, row of the flattened [B T]."""
    shape: tuple[int, int]
    """(B, T)"""


def pack(events: SessionBatch | SessionLog, pieces: Pieces, device: torch.device) -> Packed:
    """Everything is computed on the host, so that a device need not be waited for."""
    length, longest = pieces.length, int(pieces.length.max())
    row = np.repeat(np.arange(len(length)), length)
    position = np.arange(len(row)) - np.repeat(np.cumsum(length) - length, length)
    event = pieces.first[row] + position
    columns = (events.item[event], events.kind[event], events.item[event + 1], position, row * longest + position)
    item, kind, target, position, place = torch.from_numpy(np.stack(columns).astype(np.int64)).to(
        device, non_blocking=True
    )
    return Packed(item, kind, target, position, place, (len(length), longest))


def training_pieces(offset: np.ndarray, max_length: int) -> Pieces:
    """Pieces in which every event but a session's first is a target once: sessions, cut after each L states."""
    n_states = np.diff(offset) - 1
    n_pieces = -(-n_states // max_length)
    session = np.repeat(np.arange(len(n_states)), n_pieces)
    skipped = max_length * (np.arange(len(session)) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces))
    return Pieces(offset[:-1][session] + skipped, np.minimum(n_states[session] - skipped, max_length))


class Block(nn.Module):
    """x + attention(norm(x)), then the same with a feed-forward layer of two (the paper, sections III-B and III-C)."""

    def __init__(self, config: SASRecConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config, units = config, config.hidden_units
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(units), nn.LayerNorm(units)
        self.queries, self.keys, self.values, self.inner, self.outer = (
            xavier(generator, units, units) for _ in range(5)
        )
        # For one head it would be a second factor of the values.
        self.mix = xavier(generator, units, units) if config.heads > 1 else None
        self.inner_bias, self.outer_bias = (nn.Parameter(torch.zeros(units)) for _ in range(2))

    def forward(self, x: Tensor, packed: Packed, generator: torch.Generator | None) -> Tensor:
        """[R, D] from [R, D]; a generator switches dropout on."""
        x = x + dropped(self._attention(self.attention_norm(x), packed), self.config.dropout, generator)
        inner = linear(self.feedforward_norm(x), self.inner, self.inner_bias).relu()
        inner = dropped(inner, self.config.dropout, generator)
        return x + dropped(linear(inner, self.outer, self.outer_bias), self.config.dropout, generator)

    def _attention(self, x: Tensor, packed: Packed) -> Tensor:
        # Only attention sees the padding, which lies behind every real place and is never looked at.
        n_pieces, longest = packed.shape
        padded = x.new_zeros(n_pieces * longest, 3 * x.shape[1])
        projected = linear(x, torch.cat([self.queries, self.keys, self.values]))
        padded = padded.index_copy(0, packed.place, projected)
        query, key, value = padded.view(n_pieces, longest, 3, self.config.heads, -1).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed = attended.transpose(1, 2).reshape(n_pieces * longest, -1).index_select(0, packed.place)
        return mixed if self.mix is None else linear(mixed, self.mix)


class SASRecNetwork(nn.Module):
    """D units, L positions, N items. Xavier initialisation from a seeded generator; the output is the embedding.

    Positions are counted from the first event that a state is encoded from, so that those of a session in training are
    those of the same events when it is scored.
    """

    def __init__(self, n_items: int, config: SASRecConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config, units = config, config.hidden_units
        self.item_table = xavier(generator, n_items, units)
        self.position_table = xavier(generator, config.max_length, units)
        self.kind_table = xavier(generator, N_KINDS, units) if config.kinds else None
        self.blocks = nn.ModuleList(Block(config, generator) for _ in range(config.blocks))
        self.output_norm = nn.LayerNorm(units)
        self.bias = nn.Parameter(torch.zeros(n_items), requires_grad=config.bias)
        self.sparse = False
        """The gradient of gathered rows of `item_table` is a sparse tensor, for an optimiser of tables."""

    def forward(self, packed: Packed, generator: torch.Generator | None = None) -> Tensor:
        """[R, D] what the rows of `item_table` multiply, for each state; a generator switches dropout on."""
        # The factor of the authors' code: items would otherwise be small beside positions.
        x = self.rows(packed.item) * math.sqrt(self.config.hidden_units)
        x = x + embedding(packed.position, self.position_table)
        if self.kind_table is not None:
            x = x + embedding(packed.kind, self.kind_table)
        x = dropped(x, self.config.dropout, generator)
        for block in self.blocks:
            x = block(x, packed, generator)
        return self.output_norm(x)

    def rows(self, items: Tensor) -> Tensor:
        """[..., D] embeddings of items [...]."""
        return embedding(items, self.item_table, sparse=self.sparse)

    def logit(self, hidden: Tensor, items: Tensor) -> Tensor:
        """[R] of one item [R] for each state."""
        return (hidden * self.rows(items)).sum(1) + self.bias[items]


class SASRecTrainer(MinibatchTrainer):
    """Mini-batches of sessions in an order drawn from the seed and the epoch; the loss is a mean over events."""

    network: SASRecNetwork
    optimizer: TableAdam

    def __init__(self, network: SASRecNetwork, config: SASRecConfig, train: SessionLog, seed: int) -> None:
        # On a GPU stepping all rows is faster than some.
        network.sparse = config.loss != "softmax" and network.bias.device.type == "cpu"
        parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        tables = ("item_table",) if network.sparse else ()
        super().__init__(network, TableAdam(parameters, config.learning_rate, tables), seed)
        self.config, self.seed, self.train, self.n_items = config, seed, train, train.n_items
        self.pieces = training_pieces(train.offset, config.max_length)
        if len(self.pieces.first) == 0:
            raise InputError(
                f"log {train.path or ''}: expected at least one session of two or more events to learn from, found "
                f"none among {train.n_sessions}; prepare it with --min-session-length 2"
            )
        self.n_updates = -(-len(self.pieces.first) // config.batch_size)
        support = np.bincount(train.item, minlength=train.n_items)
        share = np.where(support > 0, support**config.sample_alpha, 0.0)
        share /= share.sum()
        log_expected = np.log(np.where(support > 0, config.n_sample * share, 1.0)).astype(np.float32)
        self.log_expected = torch.from_numpy(log_expected).to(self.device)
        """[N] log of how often an item is expected among those drawn for "sampled"."""
        self.drawn_up_to = torch.from_numpy(np.cumsum(share)).to(self.device)
        """[N] float64 probability that a draw is one of the items up to this one."""

    def begin(self, epoch: int, fresh: bool) -> None:
        """Shuffle."""
        self.order = np.random.default_rng([self.seed, epoch]).permutation(len(self.pieces.first))

    def update(self, number: int) -> tuple[Tensor, int]:
        """One step of Adam."""
        size = self.config.batch_size
        packed = pack(self.train, self.pieces.take(self.order[size * number : size * (number + 1)]), self.device)
        done = float(self.counters[1]) / (self.config.epochs * self.n_updates)
        self.optimizer.learning_rate = self.config.learning_rate * (1 - (1 - self.config.learning_rate_end) * done)
        self.optimizer.zero_grad()
        loss = self._loss(packed)
        loss.backward()
        self.optimizer.step(math.inf)
        return loss.detach() * len(packed.item), len(packed.item)

    def _loss(self, packed: Packed) -> Tensor:
        """[] mean over the states."""
        network, config, target = self.network, self.config, packed.target
        if config.loss == "softmax":
            hidden = network(packed, self.generator)
            mean = torch.full_like(hidden[:, 0], 1 / len(hidden), requires_grad=False)
            return weighted_negative_log_likelihood(hidden, network.item_table, network.bias, target, mean)[0]
        drawn = self._draw(packed)
        if network.sparse:
            self.optimizer.catch_up("item_table", torch.cat([packed.item, target, drawn]))
        hidden = network(packed, self.generator)
        own = network.logit(hidden, target)
        if config.loss == "binary":
            return (softplus(-own) + softplus(network.logit(hidden, drawn))).mean()
        others = linear(hidden, network.rows(drawn), network.bias[drawn])
        return corrected_cross_entropy(own, others, target, drawn, self.log_expected)

    def _draw(self, packed: Packed) -> Tensor:
        """[K] items for all states, or [R] one for each of "binary"."""
        if self.config.loss == "binary":
            return draw_unseen(packed, self.n_items, self.generator)
        uniform = torch.rand(self.config.n_sample, generator=self.generator, dtype=torch.float64, device=self.device)
        return torch.searchsorted(self.drawn_up_to, uniform, right=True).clamp_(max=self.n_items - 1)


def corrected_cross_entropy(own: Tensor, others: Tensor, target: Tensor, drawn: Tensor, log_expected: Tensor) -> Tensor:
    """[] mean cross-entropy with the sum over all items estimated from drawn ones (Bengio & Senécal 2008).

    `own` [R] logits of `target` [R], `others` [R, K] of `drawn` [K]. `log_expected` [N]: log of how often an item is
    expected among the K; without it ("logq"), items drawn often would be taught to score low. The target is counted by
    itself, so it does not count again where it is drawn. exp(-loss) = exp(own) / (exp(own) + sum of exp(other) /
    expected), whose denominator is that of the full softmax in expectation.
    """
    others = (others - log_expected[drawn]).masked_fill(drawn == target.unsqueeze(1), -math.inf)
    return (torch.cat([own.unsqueeze(1), others], dim=1).logsumexp(1) - own).mean()


def draw_unseen(packed: Packed, n_items: int, generator: torch.Generator) -> Tensor:
    """[R] for each state an item drawn uniformly from those that its piece, targets included, does not hold."""
    n_pieces, longest = packed.shape
    device = packed.item.device
    held = torch.full((n_pieces * longest, 2), n_items, device=device)
    held[packed.place] = torch.stack([packed.item, packed.target], dim=1)
    held = held.view(n_pieces, 2 * longest).sort(dim=1).values
    repeated = held[:, 1:] == held[:, :-1]
    held[:, 1:].masked_fill_(repeated, n_items)
    held = held.sort(dim=1).values
    # The r-th item that is not held is r plus the held ones at most that large.
    unheld_below = (held - torch.arange(2 * longest, device=device)).masked_fill_(held == n_items, n_items)
    n_unheld = n_items - (held < n_items).sum(dim=1)
    piece = packed.place // longest
    uniform = torch.rand(len(piece), generator=generator, dtype=torch.float64, device=device)
    r = (uniform * n_unheld[piece]).long()
    # Where a piece holds every item there is none to draw, and any item must do.
    return (r + (unheld_below[piece] <= r.unsqueeze(1)).sum(dim=1)).clamp_(max=n_items - 1)


class SASRec(NeuralBaseline[SASRecConfig, SASRecNetwork]):
    """Implements the `Recommender` protocol."""

    config_class = SASRecConfig

    def build(self, n_items: int) -> SASRecNetwork:
        """As `NeuralBaseline` says; weights are drawn on the CPU, so that they do not depend on the device."""
        return SASRecNetwork(n_items, self.config, torch.Generator().manual_seed(self.seed)).to(self.device)

    def trainer(self, network: SASRecNetwork, train: SessionLog) -> SASRecTrainer:
        """As `NeuralBaseline` says."""
        return SASRecTrainer(network, self.config, train, self.seed)

    @torch.no_grad()
    def score_sessions(self, batch: SessionBatch) -> Tensor:
        """[P, N] float32 on the device: logits."""
        check_vocabulary(batch, self.n_items)
        return linear(self.encode(batch), self.network.item_table, self.network.bias)

    @torch.no_grad()
    def encode(self, batch: SessionBatch) -> Tensor:
        """[P, D] for each row of `batch`, from the last L events of its state.

        The first L states of a session are computed in one pass, as in training; each later one in a pass of its own,
        because its positions begin with the oldest event that it still knows.
        """
        length = self.config.max_length
        n_states = np.diff(batch.offset) - 1
        rows_before = batch.offset[:-1] - np.arange(batch.n_sessions)
        place = np.arange(batch.n_rows) - np.repeat(rows_before, n_states)
        begun = np.flatnonzero(n_states > 0)
        early = Pieces(batch.offset[:-1][begun], np.minimum(n_states[begun], length))
        first_late = batch.state_events()[place >= length] - (length - 1)
        late = Pieces(first_late, np.full(len(first_late), length))
        encoded = self.network.item_table.new_empty(batch.n_rows, self.config.hidden_units)
        encoded[torch.from_numpy(np.flatnonzero(place < length)).to(self.device)] = self._encode(batch, early)
        encoded[torch.from_numpy(np.flatnonzero(place >= length)).to(self.device)] = self._encode(
            batch, late, newest_only=True
        )
        return encoded

    def _encode(self, batch: SessionBatch, pieces: Pieces, newest_only: bool = False) -> Tensor:
        """[R, D] of all states, or [B, D] of the last of each piece, of L states then; some pieces at once."""
        encoded = [self.network.item_table.new_empty(0, self.config.hidden_units)]
        at_once = max(_PLACES // self.config.max_length, 1)
        for begin in range(0, len(pieces.first), at_once):
            some = pieces.take(slice(begin, begin + at_once))
            hidden = self.network(pack(batch, some, self.device))
            encoded.append(hidden[self.config.max_length - 1 :: self.config.max_length] if newest_only else hidden)
        return torch.cat(encoded)
