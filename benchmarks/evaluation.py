"""Events ranked a second by the evaluator, against the bare matrix product that gives an agent its scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numba
import numpy as np
import torch
from common import CPU, N_ITEMS, WALL, interleaved, markdown, processor, zipf_log
from sessiongym.agents.config import PRESETS
from sessiongym.agents.recurrent import RecurrentAgent
from sessiongym.envs.log import SessionBatch, SessionLog
from sessiongym.evaluate import rank_bounds, rank_events
from sessiongym.evaluate.cold_start import cold_start_ranks
from sessiongym.evaluate.protocol import Recommender

UNITS = 256
MAX_SCORES = 2**24
CAPS = tuple(range(1, 11))
BARE = "bare matmul"


class _Product:
    """Scores of an agent whose states are known: [P, 256] x [256, N]. Not trained, as no speed depends on that."""

    def __init__(self, n_rows: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.state = torch.randn(n_rows, UNITS, generator=generator)
        self.weight = torch.randn(N_ITEMS, UNITS, generator=generator)

    def fit(self, train: SessionLog, valid: SessionLog | None = None) -> _Product:
        return self

    def score_sessions(self, batch: SessionBatch) -> torch.Tensor:
        return self.state[: batch.n_rows] @ self.weight.t()

    def recommend(self, history: SessionBatch, k: int) -> Any:
        raise NotImplementedError


def _contenders(log: SessionLog) -> dict[str, Callable[[], float]]:
    n_rows = log.batch().n_rows
    product = _Product(n_rows)
    agent = RecurrentAgent(replace(PRESETS["paper"]["a3c-p"], hidden_units=UNITS))
    agent.policy = agent.build(log.n_items)

    def bare() -> float:
        for batch in log.batches(MAX_SCORES // N_ITEMS):
            product.score_sessions(batch)
        return n_rows

    def kernel() -> float:
        for batch in log.batches(MAX_SCORES // N_ITEMS):
            target = batch.item[batch.target_events()]
            rank_bounds(product.score_sessions(batch), np.arange(batch.n_rows), target)
        return n_rows

    def ranked(model: Recommender, top_k: int = 0) -> Callable[[], float]:
        def work() -> float:
            rank_events(model, log, top_k=top_k, max_scores=MAX_SCORES)
            return n_rows

        return work

    def capped() -> float:
        cold_start_ranks(product, log, CAPS, max_scores=MAX_SCORES)
        return n_rows

    return {
        BARE: bare,
        "matmul and rank kernel": kernel,
        "rank_events, scores by matmul": ranked(product),
        "… with lists of the best 10": ranked(product, top_k=10),
        "cold_start_ranks, caps 1 to 10": capped,
        "rank_events, a3c-p@paper": ranked(agent),
    }


def table() -> str:
    """Events a second on one thread (of the process) and on two (by the clock on the wall)."""
    log = zipf_log(600, N_ITEMS, 0.25, seed=0)
    rows = []
    available = numba.get_num_threads()
    for threads, clock in ((1, CPU), (2, WALL)):
        if threads > available:
            continue
        torch.set_num_threads(threads)
        numba.set_num_threads(threads)
        rates = interleaved(_contenders(log), clock)
        rows += [
            [name, str(threads), f"{rate:,.0f}", f"{rate / rates[BARE]:.0%}", processor()]
            for name, rate in rates.items()
        ]
    return markdown(["what", "threads", "events/s", "of the bare matmul", "device"], rows)


if __name__ == "__main__":
    print(table())
