"""Training events a second of GRU4Rec on one thread, against the floor that its matrix products set.

FLOP an event, H units, N candidates a row, a product counted as 2 and its gradients as 4: the output layer 6 H N, and
the GRU, its input as wide as its state, 2 * 6 H 3H less the gradient of the state, which is not propagated (2 H 3H).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count

import numba
import torch
from common import CPU, N_ITEMS, interleaved, markdown, processor, zipf_log
from sessiongym.baselines.gru4rec import GRU4Rec
from sessiongym.baselines.gru4rec_config import GRU4REC_PRESETS, GRU4RecConfig
from sessiongym.envs.log import SessionLog

UPDATES = 24
"""Of one turn."""
SIDE = 1024
"""Of the square matrices that tell the machine's rate."""
SAMPLED = replace(GRU4REC_PRESETS["ce"], hidden_units=256, batch_size=128, hidden_dropout=0.0)
ALL_ITEMS = replace(SAMPLED, n_sample=None)
CONFIGS = {
    "cross-entropy": SAMPLED,
    "BPR-max": replace(GRU4REC_PRESETS["paper"], hidden_units=256, batch_size=128),
    "cross-entropy, Adam": replace(SAMPLED, optimizer="adam", learning_rate=1e-3),
    "all items": ALL_ITEMS,
    "all items, Adam": replace(ALL_ITEMS, optimizer="adam", learning_rate=1e-3),
    "all items, 512": replace(ALL_ITEMS, batch_size=512),
    "all items, Adam, 512": replace(ALL_ITEMS, batch_size=512, optimizer="adam", learning_rate=1e-3),
    "@paper": GRU4REC_PRESETS["paper"],
    "@ce": GRU4REC_PRESETS["ce"],
    "@irn": GRU4REC_PRESETS["irn"],
}


def flop_per_event(config: GRU4RecConfig, n_items: int) -> float:
    """As the module's docstring says; output layer and GRU."""
    candidates = n_items if config.n_sample is None else config.n_sample + config.batch_size
    hidden = config.hidden_units
    return 6 * hidden * candidates + 10 * hidden * 3 * hidden


def _training(config: GRU4RecConfig, log: SessionLog) -> Callable[[], float]:
    model = GRU4Rec(config)
    trainer = model.trainer(model.build(log.n_items), log)

    def epochs() -> Iterator[int]:
        for epoch in count():
            yield from trainer.updates(epoch)

    updates = epochs()

    def work() -> float:
        before = int(trainer.counters[0])
        for _ in range(UPDATES):
            next(updates)
        return int(trainer.counters[0]) - before

    return work


def _matmul() -> float:
    left = torch.full((SIDE, SIDE), 0.5)
    for _ in range(20):
        torch.mm(left, left)
    return 20 * 2 * SIDE**3


def table() -> str:
    """Events a second, the floor, and the share of the machine's matmul rate that is reached."""
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    log = zipf_log(20_000, N_ITEMS, 0.25, seed=0)
    contenders = {name: _training(config, log) for name, config in CONFIGS.items()}
    rates = interleaved({"matmul": _matmul, **contenders}, CPU, rounds=3)
    matmul = rates.pop("matmul")
    rows = []
    for name, rate in rates.items():
        config = CONFIGS[name]
        flop = flop_per_event(config, N_ITEMS)
        shape = [
            str(config.hidden_units),
            str(config.batch_size),
            str("all" if config.n_sample is None else config.n_sample),
        ]
        figures = [f"{rate:,.0f}", f"{flop / 1e6:.1f}", f"{matmul / flop:,.0f}", f"{rate * flop / matmul:.0%}"]
        rows.append([name, *shape, *figures, "1", processor()])
    columns = ["GRU4Rec", "units", "batch", "negatives", "events/s", "MFLOP an event", "events/s at the matmul rate"]
    columns += ["reached", "threads", "device"]
    return f"Matmul, {SIDE} x {SIDE}, one thread: {matmul / 1e9:.0f} GFLOP/s.\n\n{markdown(columns, rows)}"


if __name__ == "__main__":
    print(table())
