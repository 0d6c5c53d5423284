"""GRU4Rec (Hidasi et al. 2016; Hidasi & Karatzoglou 2018): a GRU over sessions that are trained side by side.

B sessions advance together, one event an update; the next session takes the place of one that ended, its state zero.
The gradient of an update does not reach back beyond it: the state that it begins with is data. N items, H hidden units.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..envs.log import SessionBatch, SessionLog
from ..errors import InputError
from ..nn.adagrad import TableAdagrad
from ..nn.layers import dropped
from ..nn.losses import weighted_negative_log_likelihood
from ..nn.optimizer import TableAdam
from ..nn.sampled_losses import bpr_max, log_expected_counts, sampled_cross_entropy
from ..nn.training import MinibatchTrainer
from .gru4rec_config import GRU4RecConfig
from .neural import NeuralBaseline
from .popularity import check_vocabulary

STORED_BATCHES = 64
"""Mini-batches whose negatives are drawn at once."""


class Walk(NamedTuple):
    """In which order a number of lanes go through sessions. P events that have one after them, T steps."""

    event: np.ndarray
    """[P] int64, step after step, in each the newest event of every lane."""
    previous: np.ndarray
    """[P] int64, where the lane stood in the step before, -1 where its session begins."""
    step: np.ndarray
    """[T + 1] int64, step t is event[step[t]:step[t + 1]]; none is larger than the one before."""


def session_parallel(offset: np.ndarray, sessions: np.ndarray, n_lanes: int) -> Walk:
    """The walk of `n_lanes` lanes through `sessions`, numbers into `offset` [S + 1], each taken by the first free lane.

    Sessions of one event have nothing to predict and are left out. Once none is left to begin, lanes end.
    """
    length = np.diff(offset)[sessions]
    return Walk(*_walk(np.array(offset), np.asarray(sessions)[length >= 2], n_lanes, int((length - 1).sum())))


@njit(cache=True)
def _walk(offset, sessions, n_lanes, n_pairs):
    event, previous = np.empty(n_pairs, np.int64), np.empty(n_pairs, np.int64)
    step = np.zeros(n_pairs + 1, np.int64)
    at, last, came_from = np.empty(n_lanes, np.int64), np.empty(n_lanes, np.int64), np.empty(n_lanes, np.int64)
    begun = n_active = min(n_lanes, len(sessions))
    for lane in range(n_active):
        at[lane], last[lane] = offset[sessions[lane]], offset[sessions[lane] + 1] - 1
        came_from[lane] = -1
    n_steps = n = 0
    while n_active:
        n_staying = 0
        for lane in range(n_active):
            event[n], previous[n] = at[lane], came_from[lane]
            n += 1
            following, end, row = at[lane] + 1, last[lane], lane
            if following == end:
                if begun == len(sessions):
                    continue
                following, end, row = offset[sessions[begun]], offset[sessions[begun] + 1] - 1, -1
                begun += 1
            at[n_staying], last[n_staying], came_from[n_staying] = following, end, row
            n_staying += 1
        n_active = n_staying
        n_steps += 1
        step[n_steps] = n
    return event, previous, step[: n_steps + 1].copy()


class _Step(torch.autograd.Function):
    """One step of a GRU from states that are data, with few of the small operations that autograd would record."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, w_hh: Tensor, h: Tensor) -> Tensor:
        size = h.shape[1]
        from_state = torch.mm(h, w_hh.t())
        state_candidate = from_state[:, 2 * size :]
        reset_update = torch.add(gates[:, : 2 * size], from_state[:, : 2 * size]).sigmoid_()
        reset, update = reset_update.chunk(2, dim=1)
        candidate = torch.addcmul(gates[:, 2 * size :], reset, state_candidate).tanh_()
        ctx.save_for_backward(reset_update, candidate, state_candidate, h)
        return torch.lerp(candidate, h, update)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        reset_update, candidate, state_candidate, h = ctx.saved_tensors
        reset, update = reset_update.chunk(2, dim=1)
        size = h.shape[1]
        d_gates = h.new_empty(len(h), 3 * size)
        d_reset, d_update, d_candidate = d_gates.chunk(3, dim=1)
        # d tanh = 1 - tanh^2.
        torch.mul(grads[0], 1 - update, out=d_candidate)
        d_candidate.addcmul_(d_candidate * candidate, candidate, value=-1)
        torch.mul(d_candidate, state_candidate, out=d_reset)
        torch.mul(grads[0], h - candidate, out=d_update)
        d_gates[:, : 2 * size].mul_(reset_update).mul_(1 - reset_update)
        d_from_state = torch.cat([d_gates[:, : 2 * size], d_candidate * reset], dim=1)
        return d_gates, torch.mm(d_from_state.t(), h), None


class GRU4RecNetwork(nn.Module):
    """Item -> GRU -> one row an item. Weights uniform as in Glorot & Bengio 2010, each gate by itself; biases zero.

    ``r, u = sigmoid(x_r + U_r h), sigmoid(x_u + U_u h); c = tanh(x_c + r (U_c h)); h' = u h + (1 - u) c`` with x what
    the item contributes, biases included.
    """

    def __init__(self, n_items: int, config: GRU4RecConfig, generator: torch.Generator) -> None:
        super().__init__()
        hidden = config.hidden_units
        self.item_input, self.n_items = config.item_input, n_items
        self.output_table = _glorot(generator, n_items, hidden)
        self.bias = nn.Parameter(torch.zeros(n_items, 1))
        dim = (config.embedding_dim if config.item_input == "separate" else None) or hidden
        self.item_table = self.w_ih = None
        if config.item_input == "one-hot":
            self.item_table = _glorot(generator, n_items, 3 * hidden, n_gates_across=3)
        else:
            self.w_ih = _glorot(generator, 3 * hidden, dim, n_gates_down=3)
        if config.item_input == "separate":
            self.item_table = _glorot(generator, n_items, dim)
        self.w_hh = _glorot(generator, 3 * hidden, hidden, n_gates_down=3)
        self.gate_bias = nn.Parameter(torch.zeros(3 * hidden))

    def rows(self, items: Tensor, sparse: bool = False) -> Tensor:
        """[..., D] what `step` takes of items [...]."""
        table = self.output_table if self.item_table is None else self.item_table
        return nn.functional.embedding(items, table, sparse=sparse)

    def step(self, rows: Tensor, h: Tensor) -> Tensor:
        """The states [B, H] after one more item each, from the states `h` [B, H], which get no gradient."""
        gates = rows + self.gate_bias if self.w_ih is None else nn.functional.linear(rows, self.w_ih, self.gate_bias)
        return _Step.apply(gates, self.w_hh, h)  # type: ignore[return-value]

    def scores(self, hidden: Tensor) -> Tensor:
        """[P, N] of states [P, H]."""
        return torch.addmm(self.bias.squeeze(1), hidden, self.output_table.t())


class GRU4Rec(NeuralBaseline[GRU4RecConfig, GRU4RecNetwork]):
    """Implements the `Recommender` protocol."""

    config_class = GRU4RecConfig

    def build(self, n_items: int) -> GRU4RecNetwork:
        """The network, its weights drawn from the seed."""
        generator = torch.Generator().manual_seed(self.seed)
        return GRU4RecNetwork(n_items, self.config, generator).to(self.device)

    def trainer(self, network: GRU4RecNetwork, train: SessionLog) -> GRU4RecTrainer:
        """Raises `InputError` for a log without two events in a session, or without negatives to learn from."""
        return GRU4RecTrainer(network, self.config, train, self.seed, sparse=self.device.type == "cpu")

    @torch.no_grad()
    def score_sessions(self, batch: SessionBatch) -> Tensor:
        """[P, N] float32 on the device, before any activation of the loss."""
        check_vocabulary(batch, self.n_items)
        return self.network.scores(self._states(batch))

    def _states(self, batch: SessionBatch) -> Tensor:
        """[P, H] after each event that has one after it; all sessions advance together, each from zero."""
        walk = session_parallel(batch.offset, np.arange(batch.n_sessions), max(batch.n_sessions, 1))
        rows = torch.from_numpy(np.argsort(np.argsort(walk.event))).to(self.device)
        items = torch.from_numpy(batch.item[walk.event].astype(np.int64)).to(self.device)
        previous = torch.from_numpy(walk.previous).to(self.device)
        states = torch.empty(len(items), self.config.hidden_units, device=self.device)
        h = states.new_zeros(batch.n_sessions, self.config.hidden_units)
        for t in range(len(walk.step) - 1):
            now = slice(walk.step[t], walk.step[t + 1])
            # All sessions begin at the first step and none later.
            h = self.network.step(self.network.rows(items[now]), h[previous[now]] if t else h[: len(items[now])])
            states[rows[now]] = h
        return states


class GRU4RecTrainer(MinibatchTrainer):
    """Updates on one event of each of B sessions."""

    network: GRU4RecNetwork
    optimizer: TableAdam | TableAdagrad

    def __init__(
        self, network: GRU4RecNetwork, config: GRU4RecConfig, log: SessionLog, seed: int, sparse: bool
    ) -> None:
        device = network.w_hh.device
        self.sparse = sparse
        """Whether gathered rows get sparse gradients, which the optimisers take on the CPU only."""
        sampled = config.n_sample is not None
        tables = [] if network.item_table is None else ["item_table"]
        tables += ["output_table", "bias"] if sampled else []
        super().__init__(network, _optimizer(network, config, tables, sparse), seed)
        self.config, self.log, self.seed = config, log, seed
        self.hidden = torch.zeros(config.batch_size + 1, config.hidden_units, device=device)
        """The states after the last update, the last row always zero: that of a session that begins."""
        support = torch.bincount(torch.from_numpy(log.item.astype(np.int64)), minlength=log.n_items)
        self.negatives = Negatives(support, config.sample_alpha, config.n_sample or 0, seed, device)
        self.correction = None
        if config.logq and sampled:
            counts = log_expected_counts(support, config.batch_size, config.n_sample or 0, config.sample_alpha)
            self.correction = (counts * config.logq).to(device)
        self.begin(0, fresh=True)
        if self.n_updates == 0:
            raise InputError(
                f"gru4rec: found no mini-batch to learn from in {log.n_sessions} sessions of {log.n_events} events; "
                "expected a session of two events, or with n_sample=0 two of them; give a larger log"
            )

    def begin(self, epoch: int, fresh: bool) -> None:
        """As `MinibatchTrainer` says."""
        sessions = np.arange(self.log.n_sessions)
        if self.config.order == "shuffled":
            sessions = np.random.default_rng((self.seed, epoch)).permutation(sessions)
        walk = session_parallel(self.log.offset, sessions, self.config.batch_size)
        steps = walk.step
        if self.config.n_sample == 0:
            # A row by itself has no negative.
            steps = steps[: 1 + np.count_nonzero(np.diff(steps) > 1)]
        item = self.log.item.astype(np.int64)
        columns = (item[walk.event], item[walk.event + 1], walk.previous % len(self.hidden))
        self.inputs, self.targets, self.previous = (torch.from_numpy(x).to(self.device) for x in columns)
        self.steps, self.n_updates = steps.tolist(), len(steps) - 1
        self.negatives.begin(epoch)
        if fresh:
            self.hidden.zero_()

    def carried(self) -> dict[str, Tensor]:
        """As `MinibatchTrainer` says."""
        return {"hidden": self.hidden}

    def update(self, number: int) -> tuple[Tensor, int]:
        """As `MinibatchTrainer` says."""
        now = slice(self.steps[number], self.steps[number + 1])
        inputs, targets = self.inputs[now], self.targets[now]
        state = self.hidden.index_select(0, self.previous[now])
        self.optimizer.zero_grad()
        sampled = self.config.n_sample is not None
        loss, hidden = self._sampled(inputs, targets, state, number) if sampled else self._full(inputs, targets, state)
        (loss / len(targets)).backward()
        if isinstance(self.optimizer, TableAdam):
            self.optimizer.step(math.inf)
        else:
            self.optimizer.step()
        self.hidden[: len(targets)] = hidden.detach()
        return loss.detach(), len(targets)

    def _full(self, inputs: Tensor, targets: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        network = self.network
        if network.item_table is not None:
            self._catch_up("item_table", inputs)
        hidden = self._advance(network.rows(inputs, self.sparse), state)
        weight = torch.ones_like(targets, dtype=hidden.dtype)
        bias = network.bias.squeeze(1)
        return weighted_negative_log_likelihood(hidden, network.output_table, bias, targets, weight)[0], hidden

    def _sampled(self, inputs: Tensor, targets: Tensor, state: Tensor, number: int) -> tuple[Tensor, Tensor]:
        network, config = self.network, self.config
        candidates = torch.cat([targets, self.negatives.of(number)])
        if network.item_table is None:
            # One look-up instead of two, whose gradients would have to be joined.
            both = torch.cat([inputs, candidates])
            self._catch_up("output_table", both)
            rows, weight = network.rows(both, self.sparse).split([len(inputs), len(candidates)])
        else:
            self._catch_up("item_table", inputs)
            self._catch_up("output_table", candidates)
            rows = network.rows(inputs, self.sparse)
            weight = nn.functional.embedding(candidates, network.output_table, sparse=self.sparse)
        self._catch_up("bias", candidates)
        bias = nn.functional.embedding(candidates, network.bias, sparse=self.sparse).squeeze(1)
        hidden = self._advance(rows, state)
        if config.loss == "bpr-max":
            return bpr_max(hidden, weight, bias, config.bpreg, config.elu), hidden
        if self.correction is not None:
            bias = bias - self.correction[candidates]
        return sampled_cross_entropy(hidden, weight, bias), hidden

    def _advance(self, rows: Tensor, state: Tensor) -> Tensor:
        hidden = self.network.step(dropped(rows, self.config.embedding_dropout, self.generator), state)
        return dropped(hidden, self.config.hidden_dropout, self.generator)

    def _catch_up(self, table: str, items: Tensor) -> None:
        if isinstance(self.optimizer, TableAdam) and self.sparse:
            self.optimizer.catch_up(table, items)


class Negatives:
    """Items drawn proportional to support^alpha, for many mini-batches at once; items without support never."""

    def __init__(self, support: Tensor, alpha: float, n_sample: int, seed: int, device: torch.device) -> None:
        self.n_sample, self.seed, self.device = n_sample, seed, device
        self.items = torch.nonzero(support).squeeze(1).to(device)
        self.cumulative = (support[support > 0].double() ** alpha).cumsum(0).to(device)
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Negatives of this epoch from now on: they depend on seed, epoch and mini-batch alone."""
        self.epoch, self.block, self.store = epoch, -1, self.items[:0]

    def of(self, number: int) -> Tensor:
        """[n_sample] int64 of mini-batch `number`."""
        block, row = divmod(number, STORED_BATCHES)
        if block != self.block:
            self.block, self.store = block, self._draw(block)
        return self.store[row]

    def _draw(self, block: int) -> Tensor:
        sequence = np.random.SeedSequence((self.seed, self.epoch, block))
        generator = torch.Generator(self.device).manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
        shape = (STORED_BATCHES, self.n_sample)
        uniform = torch.rand(shape, dtype=torch.float64, generator=generator, device=self.device)
        place = torch.searchsorted(self.cumulative, uniform.mul_(self.cumulative[-1]), right=True)
        # Rounding may carry the last of them past the end.
        return self.items[place.clamp_(max=len(self.items) - 1)]


def _optimizer(
    network: GRU4RecNetwork, config: GRU4RecConfig, tables: list[str], sparse: bool
) -> TableAdam | TableAdagrad:
    parameters = dict(network.named_parameters())
    if config.optimizer == "adam":
        return TableAdam(parameters, config.learning_rate, tables if sparse else ())
    return TableAdagrad(parameters, config.learning_rate, config.momentum, tables)


def _glorot(generator: torch.Generator, *shape: int, n_gates_down: int = 1, n_gates_across: int = 1) -> nn.Parameter:
    bound = math.sqrt(6 / (shape[0] / n_gates_down + shape[1] / n_gates_across))
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound, generator=generator))
