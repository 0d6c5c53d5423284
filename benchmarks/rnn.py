"""Training events a second of the intra-session RNN and of II-RNN on one thread, against the floor that their matrix
products set, and what the inter-session pass costs of a step.

FLOP of an event to predict, H units, N items, a product counted as 2 and its gradients as 4, sessions of L events, of
which L - 1 are predicted, with g earlier sessions read in the mean:

- `rnn`: softmax 6 H N, GRU 3 * 2 (H + H) 3 H.
- II-RNN: the GRU also reads the last event, which is L / (L - 1) as much; the inter-session GRU takes g steps,
  g / (L - 1) of a GRU's event. Representations computed anew are not counted.

Adam, the embedding, the gates and the exponentials are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
import torch
from common import CPU, N_ITEMS, interleaved, markdown, processor
from sessiongym.baselines.ii_rnn import IIRNN, InterSessionGRU
from sessiongym.baselines.rnn import RNN
from sessiongym.baselines.rnn_config import IIRNNConfig, RNNConfig
from sessiongym.envs.log import SessionLog

USERS, SESSIONS_OF_A_USER, LONGEST = 400, 30, 20
"""Users who come back, and the longest session that the II-RNN paper keeps."""
UPDATES = 8
"""Of one turn."""
UNITS = 100
SIDE = 1024
"""Of the square matrices that tell the machine's rate."""
MODELS = {
    "rnn": RNNConfig(hidden_units=UNITS),
    "ii-rnn-ap": IIRNNConfig(hidden_units=UNITS, representation="average"),
    "ii-rnn-lhs": IIRNNConfig(hidden_units=UNITS, representation="last_hidden"),
    "ii-rnn-ap:recompute=true": IIRNNConfig(hidden_units=UNITS, representation="average", recompute=True),
    "ii-rnn-lhs:recompute=true": IIRNNConfig(hidden_units=UNITS, representation="last_hidden", recompute=True),
}


def returning_users(seed: int) -> SessionLog:
    """Sessions of 2 to `LONGEST`, in the mean 8.1, independent events, in turn of each user."""
    rng = np.random.default_rng(seed)
    n_sessions = USERS * SESSIONS_OF_A_USER
    offset = np.concatenate([[0], np.cumsum(np.minimum(1 + rng.geometric(1 / 8.5, n_sessions), LONGEST))])
    weight = 1 / np.arange(5, 5 + N_ITEMS)
    return SessionLog(
        item=rng.choice(N_ITEMS, offset[-1], p=weight / weight.sum()),
        kind=np.zeros(offset[-1]),
        time=np.arange(offset[-1]) * 10**9,
        offset=offset,
        session_id=np.arange(n_sessions),
        item_id=np.arange(N_ITEMS),
        user=np.tile(np.arange(USERS), SESSIONS_OF_A_USER),
    )


def flop_per_event(config: RNNConfig, length: float, n_read: float) -> float:
    """The floor of the module's docstring."""
    softmax, gru = 6 * config.hidden_units * N_ITEMS, 36 * config.hidden_units**2
    if not isinstance(config, IIRNNConfig):
        return softmax + gru
    return softmax + gru * (length + n_read) / (length - 1)


def _training(config: RNNConfig, log: SessionLog, start: Callable | None = None) -> Callable[[], float]:
    model = IIRNN(config) if isinstance(config, IIRNNConfig) else RNN(config)
    network = model.build(log.n_items)
    if start is not None and isinstance(network, InterSessionGRU):
        network.start = start.__get__(network)
    trainer = model.trainer(network, log)
    trainer.begin(0, fresh=True)
    # The first sessions of a user have nothing to read.
    numbers = count(trainer.n_updates // 2)

    def work() -> float:
        return sum(trainer.update(next(numbers))[1] for _ in range(UPDATES))

    return work


def _from_zero(network: InterSessionGRU, representation: torch.Tensor, *_: np.ndarray) -> torch.Tensor:
    return representation.new_zeros(100, UNITS)


def _matmul() -> float:
    left = torch.ones(SIDE, SIDE)
    out = torch.empty(SIDE, SIDE)
    for _ in range(20):
        torch.mm(left, left, out=out)
    return 20 * 2 * SIDE**3


def table() -> str:
    """Events to predict a second, the floor, the share reached, and the share of a step that reading the past takes."""
    torch.set_num_threads(1)
    log = returning_users(seed=0)
    length = log.n_events / log.n_sessions
    contenders = {name: _training(config, log) for name, config in MODELS.items()}
    rates = interleaved(
        {"matmul": _matmul, "from zero": _training(MODELS["ii-rnn-lhs"], log, _from_zero), **contenders}, CPU
    )
    matmul, from_zero = rates.pop("matmul"), rates.pop("from zero")
    rows = []
    for name, rate in rates.items():
        config = MODELS[name]
        flop = flop_per_event(config, length, config.sessions_read if isinstance(config, IIRNNConfig) else 0)
        floor = matmul / flop
        past = f"{1 - rate / from_zero:.0%}" if isinstance(config, IIRNNConfig) else ""
        rows.append(
            [name, f"{rate:,.0f}", f"{flop / 1e6:.2f}", f"{floor:,.0f}", f"{rate / floor:.0%}", past, "1", processor()]
        )
    columns = ["model", "events/s", "MFLOP an event", "events/s at the matmul rate", "reached"]
    columns += ["inter-session pass, of a step", "threads", "device"]
    return f"Matmul, {SIDE} x {SIDE}, one thread: {matmul / 1e9:.0f} GFLOP/s.\n\n{markdown(columns, rows)}"


if __name__ == "__main__":
    print(table())
