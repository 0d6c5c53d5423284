"""What the benchmarks share: timing side by side, synthetic logs, tables."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sessiongym.envs.log import SessionLog

N_ITEMS = 9_167
"""Items of the IRN paper's data (section 5.1)."""
PAPER_SESSIONS = 72_274
"""Training sessions of the IRN paper's data (section 5.1), of 9.5 events in the mean."""

CPU = time.process_time
"""Seconds of this process, whatever else the machine does; for work on one thread only."""
WALL = time.perf_counter


def measured(
    contenders: dict[Any, Callable[[], float]], clock: Callable[[], float], rounds: int = 5
) -> dict[Any, list[float]]:
    """Units a second of each contender in every round; it does some work and returns its units.

    All take turns, so that a machine that slows down slows all of them; one turn each before is not counted.
    """
    rates: dict[Any, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, work in contenders.items():
            began = clock()
            units = work()
            if turn:
                rates[name].append(units / (clock() - began))
    return rates


def interleaved(
    contenders: dict[Any, Callable[[], float]], clock: Callable[[], float], rounds: int = 5
) -> dict[Any, float]:
    """Median over `rounds` of what `measured` gives."""
    return {name: float(np.median(rate)) for name, rate in measured(contenders, clock, rounds).items()}


def zipf_log(n_sessions: int, n_items: int, purchase_share: float, seed: int) -> SessionLog:
    """Sessions of 2 or more, in the mean 9.5, independent events: items by Zipf's law, purchases anywhere."""
    rng = np.random.default_rng(seed)
    length = 1 + rng.geometric(1 / 8.5, n_sessions)
    offset = np.concatenate([[0], np.cumsum(length)])
    n_events = int(offset[-1])
    weight = 1 / np.arange(5, 5 + n_items)
    return SessionLog(
        item=rng.permutation(n_items)[rng.choice(n_items, n_events, p=weight / weight.sum())],
        kind=rng.random(n_events) < purchase_share,
        time=np.arange(n_events) * 10**9,
        offset=offset,
        session_id=np.arange(n_sessions),
        item_id=np.arange(n_items),
    )


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, figures to the right."""
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def processor() -> str:
    """Model of the CPU, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
