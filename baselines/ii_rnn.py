"""II-RNN (Ruocco, Skrede & Langseth 2017): a second GRU reads the user's earlier sessions and starts the first one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from ..envs.log import SessionBatch, SessionLog
from ..errors import InputError
from ..nn.gru import pack, run_gru, seeded_gru
from ..nn.training import MinibatchTrainer
from .rnn import RNN, IntraSessionGRU, RNNTrainer
from .rnn_config import IIRNNConfig, Representation

Embed = Callable[[np.ndarray], Tensor]
"""From events [C] to the embeddings [C, H] of their items."""


class Window(NamedTuple):
    """The earlier sessions that B sessions read."""

    offset: np.ndarray
    """[M + 1] int64, session m is events offset[m]:offset[m + 1]."""
    session: np.ndarray
    """[B, g] int64, the sessions read, the oldest first; what stands beyond `count` means nothing."""
    count: np.ndarray
    """[B] int64, how many are read."""


class InterSessionGRU(IntraSessionGRU):
    """The intra-session network, and a GRU over H-dimensional representations of earlier sessions."""

    def __init__(self, n_items: int, units: int, generator: torch.Generator) -> None:
        super().__init__(n_items, units, generator)
        self.inter = seeded_gru(units, generator)

    def start(self, representation: Tensor, session: np.ndarray, count: np.ndarray) -> Tensor:
        """[B, H] initial states: the last output over the rows of `representation` [M, H] that `session` [B, g] names.

        Of those, `count` [B] are read. Where it is 0 the state is zero; nothing stands in for what is missing.
        """
        state = representation.new_zeros(len(count), representation.shape[1])
        some = np.flatnonzero(count)
        if len(some) == 0:
            return state
        packing = pack(some * session.shape[1], count[some])
        rows = torch.from_numpy(session.ravel()[packing.event]).to(state.device)
        _, last = run_gru(self.inter, representation[rows], packing)
        return state.index_copy(0, torch.from_numpy(some).to(state.device), last)

    def start_from_averages(self, embed: Embed, window: Window) -> Tensor:
        """[B, H] initial states, an earlier session being the average of its item embeddings."""
        read = np.arange(window.session.shape[1]) < window.count[:, None]
        sessions = window.session[read]
        number = np.zeros_like(window.session)
        number[read] = np.arange(len(sessions))
        length = window.offset[sessions + 1] - window.offset[sessions]
        packing = pack(window.offset[sessions], length)
        averages = average(embed(packing.event), packing.sequence, length)
        return self.start(averages, number, window.count)

    def start_from_last_states(self, embed: Embed, window: Window) -> Tensor:
        """[B, H] initial states, an earlier session being the last hidden state of the intra-session GRU.

        It has an initial state of its own, from those before it in the window, as if the user's record began there.
        """
        by_count = np.argsort(-window.count, kind="stable")
        state = self.embedding.new_zeros(len(by_count), self.embedding.shape[1])
        for place in range(window.count.max(initial=0)):
            n = np.count_nonzero(window.count > place)
            session = window.session[by_count[:n], place]
            packing = pack(window.offset[session], window.offset[session + 1] - window.offset[session])
            _, last = run_gru(self.intra, embed(packing.event), packing, state[:n])
            _, advanced = self.inter(last.unsqueeze(0), state[:n].unsqueeze(0))
            state = torch.cat([advanced.squeeze(0), state[n:]])
        return state[torch.from_numpy(np.argsort(by_count)).to(state.device)]

    def start_anew(self, embed: Embed, window: Window, representation: Representation) -> Tensor:
        """[B, H] initial states with the weights of the moment."""
        start = {"average": self.start_from_averages, "last_hidden": self.start_from_last_states}[representation]
        return start(embed, window)


def average(rows: Tensor, session: np.ndarray, length: np.ndarray) -> Tensor:
    """[S, H] mean of the `rows` [C, H] of each session; row c is of session `session[c]`, which has `length` [S]."""
    total = rows.new_zeros(len(length), rows.shape[1])
    total = total.index_add(0, torch.from_numpy(session).to(rows.device), rows)
    return total / torch.from_numpy(length).to(rows.device, rows.dtype).unsqueeze(1)


class IIRNN(RNN):
    """An `RNN` whose sessions start from what the user's last g sessions say. Reads `SessionBatch.history`.

    A session without history, or a batch without any, starts from zero, as a user's first session does in training.
    """

    config_class = IIRNNConfig
    config: IIRNNConfig

    def build(self, n_items: int) -> InterSessionGRU:
        """The network, its weights drawn from the seed, on the device."""
        generator = torch.Generator().manual_seed(self.seed)
        return InterSessionGRU(n_items, self.config.hidden_units, generator).to(self.device)

    def trainer(self, network: IntraSessionGRU, train: SessionLog) -> MinibatchTrainer:
        """Batches of sessions of different users. Raises `InputError` where no session has an earlier one to read."""
        assert isinstance(network, InterSessionGRU)
        return IIRNNTrainer(self.config, network, train, self.seed)

    def initial_state(self, batch: SessionBatch, sessions: np.ndarray) -> Tensor | None:
        """As `RNN` says; representations are computed anew, nothing that training stored is read."""
        if batch.history is None:
            return None
        network = self.network
        assert isinstance(network, InterSessionGRU)
        item, window = last_sessions([batch.history[s] for s in sessions], self.config.sessions_read)
        return network.start_anew(
            lambda events: network.embedding[self.on_device(item[events])], window, self.config.representation
        )


class IIRNNTrainer(RNNTrainer):
    """Each epoch walks the sessions of every user from the oldest to the newest, those of different users side by side.

    The representation of a session is stored, without gradient, when the session is trained on. A later session of the
    same pass reads it; the weights have moved on by then (`IIRNNConfig.recompute` is the alternative).
    """

    config: IIRNNConfig
    network: InterSessionGRU

    def __init__(self, config: IIRNNConfig, network: InterSessionGRU, train: SessionLog, seed: int) -> None:
        if train.user is None:
            raise InputError(
                "ii-rnn: the training log has no users, so the inter-session part has nothing to read; give a log with "
                "users, or train rnn"
            )
        super().__init__(config, network, train, seed)
        self.window = earlier_sessions(train, config.sessions_read)
        if not self.window.count.any():
            raise InputError(
                f"ii-rnn: in none of the {train.n_sessions} training sessions has the user an earlier one, so the "
                "inter-session part has nothing to read; give a log with returning users, or train rnn"
            )
        self.user, n_sessions = np.unique(train.user, return_inverse=True, return_counts=True)[1:]
        self.n_updates = max(int(n_sessions.max()), -(-train.n_sessions // config.batch_size))
        n_stored = 0 if config.recompute else train.n_sessions
        self.stored = torch.zeros(n_stored, config.hidden_units, device=self.device)

    def begin(self, epoch: int, fresh: bool) -> None:
        """As `MinibatchTrainer` says."""
        starts = self.log.time[self.log.offset[:-1]]
        rng = np.random.default_rng([self.seed, epoch])
        self.batches = user_batches(self.user, starts, self.config.batch_size, rng)
        if fresh:
            self.stored.zero_()

    def carried(self) -> dict[str, Tensor]:
        """The representations stored so far."""
        return {"representations": self.stored}

    def update(self, number: int) -> tuple[Tensor, int]:
        """As `MinibatchTrainer` says."""
        sessions, config = self.batches[number], self.config
        read = Window(self.log.offset, self.window.session[sessions], self.window.count[sessions])
        if config.recompute:
            initial = self.network.start_anew(self.embed, read, config.representation)
        else:
            initial = self.network.start(self.stored, read.session, read.count)
        packing = pack(self.log.offset[sessions], self.length[sessions])
        rows = self.embed(packing.event)
        states, last = run_gru(self.network.intra, rows, packing, initial)
        if not config.recompute:
            if config.representation == "average":
                last = average(rows, packing.sequence, self.length[sessions])
            self.stored[torch.from_numpy(sessions).to(self.device)] = last.detach()
        followed = np.flatnonzero(~packing.last)
        return self.learn(states[torch.from_numpy(followed).to(self.device)], packing.event[followed] + 1)


def earlier_sessions(log: SessionLog, n_read: int) -> Window:
    """For each session the last `n_read` that its user ended before it starts, the oldest end first.

    A session that ends in the very moment in which another starts is not before it (`envs.history.UserHistories`).
    """
    assert log.user is not None
    start, end = log.time[log.offset[:-1]], log.time[log.offset[1:] - 1]
    by_end = np.lexsort((end, log.user))
    # Users and moments as one number, so that one search finds a user's sessions that ended before a moment.
    moments, moment = np.unique(end, return_inverse=True)
    user = log.user.astype(np.int64) * (len(moments) + 1)
    key = (user + moment)[by_end]
    first, stop = np.searchsorted(key, user), np.searchsorted(key, user + np.searchsorted(moments, start))
    count = np.minimum(stop - first, n_read)
    width = int(count.max(initial=0))
    place = np.minimum((stop - count)[:, None] + np.arange(width), log.n_sessions - 1)
    return Window(log.offset, by_end[place], count)


def last_sessions(histories: Sequence[SessionBatch], n_read: int) -> tuple[np.ndarray, Window]:
    """The events [C] of the last `n_read` sessions of each history, and the window over them."""
    count = np.array([min(history.n_sessions, n_read) for history in histories], dtype=np.int64)
    first = [int(history.offset[history.n_sessions - n]) for history, n in zip(histories, count, strict=True)]
    item = [np.zeros(0, dtype=np.int32), *(h.item[start:] for h, start in zip(histories, first, strict=True))]
    length = [np.diff(history.offset)[history.n_sessions - n :] for history, n in zip(histories, count, strict=True)]
    offset = np.concatenate([np.zeros(1, dtype=np.int64), *length]).cumsum()
    session = (np.cumsum(count) - count)[:, None] + np.arange(count.max(initial=0))
    return np.concatenate(item), Window(offset, session, count)


def user_batches(user: np.ndarray, start: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """All sessions, in batches of one session each of the users with most sessions left, equal ones at random.

    `user` [S] numbered from 0, `start` [S]. A user's sessions come in the order of their start. So many sessions a
    batch as there are users left, `batch_size` at most: that makes max(most sessions of a user, S / batch_size)
    batches, the fewest there can be.
    """
    by_user = np.lexsort((start, user))
    order, stop = _busiest_first(np.bincount(user), rng.random(len(user)), batch_size)
    sessions = np.empty_like(by_user)
    sessions[np.argsort(order, kind="stable")] = by_user
    return np.split(sessions, stop[:-1])


@njit(cache=True)
def _busiest_first(n_left, draw, batch_size):
    """The users [S] in the order of their turns, and the end of each batch."""
    order = np.empty(len(draw), np.int64)
    stop = []
    done = 0
    heap = [(-n_left[user], draw[user], user) for user in range(len(n_left))]
    heapify(heap)
    n_drawn = len(heap)
    while len(heap) > 0:
        turn = [heappop(heap) for _ in range(min(batch_size, len(heap)))]
        for left, _, user in turn:
            order[done] = user
            done += 1
            if left < -1:
                heappush(heap, (left + 1, draw[n_drawn], user))
                n_drawn += 1
        stop.append(done)
    return order, np.array(stop)
