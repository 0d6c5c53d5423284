"""Training events a second of the agents on one thread, against the floor that their matrix products set; and what two
asynchronous workers make of two cores, by the clock on the wall.

FLOP an event, H = 256 units, D inputs of the LSTM beside its state (256, or 0 where one-hot items are gathered), N
items, a product counted as 2 and its gradients as 4, p the share of events with a reward:

- LSTM: L = 2 (D + H) 4 H forward, 3 L with gradients.
- Output layer: S = 2 H N forward, 3 S with gradients, for every event (`lstm`, `a3c-f`) or a share p (`-p`); a
  supervised head takes the events that the policy leaves.
- `a3c-f`: L more for the frozen value network.
- `irn-p` with breadth n, depth m: L + n (m - 1) L for the imagined states, S + n (m - 1) S to sample items in them,
  and 3 n m L to reconstruct. One logit an item is not counted, nor are Adam, the copy head, or the value.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import count

import torch
from common import CPU, N_ITEMS, WALL, interleaved, markdown, processor, zipf_log
from sessiongym.agents.a3c import A3CLearner
from sessiongym.agents.config import PRESETS, AgentConfig
from sessiongym.agents.training import SynchronousTrainer, training_env
from sessiongym.agents.workers import AsynchronousTrainer
from sessiongym.envs.log import SessionLog
from sessiongym.evaluate.models import parse_model

UNITS = 256
PURCHASE_SHARE = 0.25
EVENTS = 4096
"""Of one turn."""
UNROLLS = (8, 64)
"""Steps of 16 lanes: 128 events an update, as the paper trains, and 1,024."""
SIDE = 1024
"""Of the square matrices that tell the machine's rate."""
MODELS = ("a3c-p", "irn-p", "a3c-f", "lstm-purchase", "lstm")
ASYNCHRONOUS = ("a3c-f@paper", "a3c-p@paper", "a3c-p")


def flop_per_event(config: AgentConfig, n_items: int, purchase_share: float) -> float:
    """The floor of the module's docstring."""
    inputs = config.embedding_dim or 0
    lstm = 2 * (inputs + config.hidden_units) * 4 * config.hidden_units
    softmax = 2 * config.hidden_units * n_items
    share = 1.0 if config.policy_at == "every" else purchase_share
    if config.supervised_weight > 0:
        taught = 1 - purchase_share if config.supervised_at == "unrewarded" else 1.0
        share = share + taught if config.has_supervised_head else max(share, taught)
    total = 3 * lstm + 3 * softmax * share
    if config.bootstrap:
        total += lstm
    if config.imagination_weight > 0:
        n, m = config.breadth, config.depth
        total += (1 + n * (m - 1)) * (lstm + softmax) + 3 * n * m * lstm
    return total


def _training(config: AgentConfig, log: SessionLog) -> Callable[[], float]:
    env = training_env(config, log, seed=0)
    env.reset(seed=0)
    learner = A3CLearner(config, log.n_items, 0, "cpu")
    learner.start(env.rollout)

    def work() -> float:
        for _ in range(EVENTS // (config.lanes * config.unroll)):
            learner.update()
        learner.metrics.take()
        return EVENTS

    return work


def _matmul() -> Callable[[], float]:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIDE, SIDE, generator=generator) for _ in range(2))
    out = torch.empty(SIDE, SIDE)

    def work() -> float:
        for _ in range(20):
            torch.mm(left, right, out=out)
        return 20 * 2 * SIDE**3

    return work


def table() -> str:
    """Events a second of each agent and preset, its floor, and the share of the machine's matmul rate it reaches."""
    torch.set_num_threads(1)
    log = zipf_log(20_000, N_ITEMS, PURCHASE_SHARE, seed=0)
    configs = {}
    for preset, dim in (("paper", None), ("practical", UNITS)):
        for name in MODELS:
            config = replace(PRESETS[preset][name], hidden_units=UNITS, embedding_dim=dim, imagination_start=0)
            for unroll in UNROLLS:
                configs[f"{name}@{preset}", 16 * unroll] = replace(config, unroll=unroll)
    contenders = {key: _training(config, log) for key, config in configs.items()}
    rates = interleaved({"matmul": _matmul(), **contenders}, CPU, rounds=3)
    matmul = rates.pop("matmul")
    rows = []
    for key, rate in rates.items():
        flop = flop_per_event(configs[key], N_ITEMS, PURCHASE_SHARE)
        floor, (name, events) = matmul / flop, key
        figures = [f"{rate:,.0f}", f"{flop / 1e6:.1f}", f"{floor:,.0f}", f"{rate / floor:.0%}"]
        rows.append([name, f"{events:,}", *figures, "1", processor()])
    columns = ["agent", "events an update", "events/s", "MFLOP an event", "events/s at the matmul rate", "reached"]
    columns += ["threads", "device"]
    return f"Matmul, {SIDE} x {SIDE}, one thread: {matmul / 1e9:.0f} GFLOP/s.\n\n{markdown(columns, rows)}"


def _epochs(stack: ExitStack, name: str, workers: int, threads: int, log: SessionLog) -> Callable[[], float]:
    config = replace(parse_model(name).config, hidden_units=UNITS, workers=workers)
    assert isinstance(config, AgentConfig)
    if config.embedding_dim is not None:
        config = replace(config, embedding_dim=UNITS)
    learner = A3CLearner(config, log.n_items, 0, "cpu")
    torch.set_num_threads(threads)
    make = AsynchronousTrainer if workers else SynchronousTrainer
    trainer = make(learner, log, 0)
    if isinstance(trainer, AsynchronousTrainer):
        stack.enter_context(trainer)
    epochs = count()

    def work() -> float:
        torch.set_num_threads(threads)
        for _ in trainer.updates(next(epochs)):
            pass
        learner.metrics.take()
        return trainer.n_updates * config.lanes * config.unroll

    return work


def workers_table() -> str:
    """Events a second of one learner on one and on two threads, and of two workers with a thread each."""
    log = zipf_log(1_500, N_ITEMS, PURCHASE_SHARE, seed=0)
    shapes = {"one thread": (0, 1), "two threads": (0, 2), "two workers": (2, 2)}
    rows = []
    for name in ASYNCHRONOUS:
        with ExitStack() as stack:
            contenders = {label: _epochs(stack, name, *shape, log) for label, shape in shapes.items()}
            rates = interleaved(contenders, WALL, rounds=3)
        one = rates["one thread"]
        rows.append(
            [name, *(f"{rate:,.0f}" for rate in rates.values()), f"{rates['two workers'] / one:.2f}", processor()]
        )
    columns = ["agent, events/s at 128 an update", *shapes, "workers of one thread", "device"]
    return markdown(columns, rows)


if __name__ == "__main__":
    print(table())
    print()
    print(workers_table())
