"""The intra-session RNN (Ruocco, Skrede & Langseth 2017): items -> GRU -> logits over all items, cross-entropy."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ..envs.log import SessionBatch, SessionLog
from ..errors import InputError
from ..nn.gru import pack, run_gru, seeded_gru
from ..nn.layers import dropped, xavier
from ..nn.losses import weighted_negative_log_likelihood
from ..nn.optimizer import TableAdam
from ..nn.training import MinibatchTrainer
from .neural import NeuralBaseline
from .popularity import check_vocabulary
from .rnn_config import RNNConfig

ROWS = 256
"""Events whose logits over all items are held at once: of more, less stays in the cache from one pass to the next."""


class IntraSessionGRU(nn.Module):
    """H units, N items. Embeddings are drawn uniformly from -1..1, as the authors' code draws them."""

    def __init__(self, n_items: int, units: int, generator: torch.Generator) -> None:
        super().__init__()
        self.embedding = nn.Parameter(nn.init.uniform_(torch.empty(n_items, units), -1, 1, generator=generator))
        self.intra = seeded_gru(units, generator)
        self.output_weight = xavier(generator, n_items, units)
        self.output_bias = nn.Parameter(torch.zeros(n_items))


class RNN(NeuralBaseline[RNNConfig, IntraSessionGRU]):
    """Every session starts from a zero state: nothing outside the session is read."""

    config_class = RNNConfig

    def build(self, n_items: int) -> IntraSessionGRU:
        """The network, its weights drawn from the seed, on the device."""
        # Drawn on the CPU, so that they do not depend on the device.
        generator = torch.Generator().manual_seed(self.seed)
        return IntraSessionGRU(n_items, self.config.hidden_units, generator).to(self.device)

    def trainer(self, network: IntraSessionGRU, train: SessionLog) -> MinibatchTrainer:
        """Batches of whole sessions. Raises `InputError` for a log without an event to predict."""
        return RNNTrainer(self.config, network, train, self.seed)

    @torch.no_grad()
    def score_sessions(self, batch: SessionBatch) -> Tensor:
        """[P, N] float32 logits on the device."""
        check_vocabulary(batch, self.n_items)
        network = self.network
        hidden = network.output_weight.new_empty(batch.n_rows, self.config.hidden_units)
        length = np.diff(batch.offset) - 1
        scored = np.flatnonzero(length)
        if len(scored):
            packing = pack(batch.offset[scored], length[scored])
            inputs = network.embedding[self.on_device(batch.item[packing.event])]
            states, _ = run_gru(network.intra, inputs, packing, self.initial_state(batch, scored))
            # As many events before have no row as there are sessions before.
            hidden[self.on_device(packing.event - scored[packing.sequence])] = states
        return nn.functional.linear(hidden, network.output_weight, network.output_bias)

    def initial_state(self, batch: SessionBatch, sessions: np.ndarray) -> Tensor | None:
        """[S, H] the state that the given sessions of the batch start from; None is zero."""
        return None

    def on_device(self, indices: np.ndarray) -> Tensor:
        """As int64 on the device."""
        return torch.from_numpy(indices.astype(np.int64)).to(self.device)


class RNNTrainer(MinibatchTrainer):
    """Each epoch walks all sessions of two or more events in a random order."""

    network: IntraSessionGRU
    optimizer: TableAdam

    def __init__(self, config: RNNConfig, network: IntraSessionGRU, train: SessionLog, seed: int) -> None:
        # Nothing but whole rows of the embedding is read; a GPU steps all rows faster than some.
        self.by_rows = network.embedding.device.type == "cpu"
        optimizer = TableAdam(
            dict(network.named_parameters()), config.learning_rate, ("embedding",) if self.by_rows else ()
        )
        super().__init__(network, optimizer, seed)
        if train.n_events == train.n_sessions:
            raise InputError(
                f"rnn: none of the {train.n_sessions} training sessions has two events, so nothing can be predicted; "
                "give a log with longer sessions"
            )
        self.config, self.seed = config, seed
        self.log, self.length = train, train.length
        self.sessions = np.flatnonzero(self.length > 1)
        self.n_updates = -(-len(self.sessions) // config.batch_size)

    def begin(self, epoch: int, fresh: bool) -> None:
        """As `MinibatchTrainer` says."""
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(self.sessions)
        self.batches = np.split(shuffled, np.arange(1, self.n_updates) * self.config.batch_size)

    def update(self, number: int) -> tuple[Tensor, int]:
        """As `MinibatchTrainer` says."""
        sessions = self.batches[number]
        packing = pack(self.log.offset[sessions], self.length[sessions] - 1)
        states, _ = run_gru(self.network.intra, self.embed(packing.event), packing)
        return self.learn(states, packing.event + 1)

    def embed(self, events: np.ndarray) -> Tensor:
        """[C, H] of the items of the events [C]."""
        items = self.items(events)
        if self.by_rows:
            self.optimizer.catch_up("embedding", items)
        return nn.functional.embedding(items, self.network.embedding, sparse=self.by_rows)

    def items(self, events: np.ndarray) -> Tensor:
        """[C] int64 on the device."""
        return torch.from_numpy(self.log.item[events].astype(np.int64)).to(self.device)

    def learn(self, states: Tensor, events: np.ndarray) -> tuple[Tensor, int]:
        """One step of Adam on the mean cross-entropy of the items of `events` [R] after `states` [R, H]; the summed
        loss [], and R. Without events nothing is stepped."""
        if len(events) == 0:
            return self.loss.new_zeros(()), 0
        states = dropped(states, self.config.dropout, self.generator)
        self.optimizer.zero_grad()
        features = states.detach().requires_grad_()
        losses = [
            self.cross_entropy(features[at : at + ROWS], events[at : at + ROWS], 1 / len(events))
            for at in range(0, len(events), ROWS)
        ]
        states.backward(features.grad)
        self.optimizer.step(clip_norm=math.inf)
        return torch.stack(losses).sum() * len(events), len(events)

    def cross_entropy(self, features: Tensor, events: np.ndarray, weight: float) -> Tensor:
        """The loss [] of the items of `events` [R], times `weight`, without graph: its gradients are there already."""
        row_weight = torch.full((len(events),), weight, device=self.device)
        output = self.network.output_weight, self.network.output_bias
        loss, _ = weighted_negative_log_likelihood(features, *output, self.items(events), row_weight)
        loss.backward()
        return loss.detach()
