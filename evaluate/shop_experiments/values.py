"""What each trained model truly earns, simulated once and kept: a file a model, shop and way to serve."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...envs.shop.live_config import LiveShopConfig
from ...envs.shop.policies import Policy, UniformPolicy
from ...envs.shop.value import session_returns
from ...interrupts import interrupt_later
from ...progress import ProgressDisplay
from ..off_policy import UnreliableEstimate
from ..off_policy_table import all_estimates
from ..pool import drain, worker_pool
from ..runs import Cell, open_run
from .definitions import ESTIMATORS
from .logs import ShopLog, digest, shop_log
from .policies import deployed, shop_scores


@dataclass(frozen=True)
class Valuation:
    """One model, or chance, serving one shop."""

    config: LiveShopConfig
    """The shop that the log is from."""
    log_sessions: int
    log_seed: int
    cell: Cell | None
    """The model trained on that log; None recommends any item."""
    unseen_only: bool
    """Whether items that the window holds are left out."""
    cap: int | None
    """Events that the model is told of a session; None: all of the window."""
    n_served: int
    seed: int
    """Of the shoppers."""

    @property
    def name(self) -> str:
        """File name: a hash of all that the returns depend on."""
        cell = self.cell and self.cell.name
        log = [self.log_sessions, self.log_seed] if self.cell else []
        rest = [asdict(self.config), log, cell, self.unseen_only, self.cap, self.n_served, self.seed]
        return digest(rest)

    @property
    def label(self) -> str:
        """What progress calls it."""
        model = "chance" if self.cell is None else f"{self.cell.spec.label} seed {self.cell.effective_seed}"
        return (
            f"value of {model}{', unseen' * self.unseen_only}{f', c = {self.cap}' if self.cap else ''} {self.name[:4]}"
        )


class Served(NamedTuple):
    """What came of a valuation."""

    returns: np.ndarray
    """[S] float64, of each session; row s has the same shopper in all valuations of a shop and a seed."""
    estimates: np.ndarray
    """[len(ESTIMATORS)] float64, of the same policy from the test decisions of the log; NaN where refused."""
    effective_sample_size: float
    """Sessions behind the first of them; NaN where nothing was estimated."""


def compute_values(todo: Sequence[Valuation], cells: Path, logs: Path, values: Path, jobs: int, device: str) -> None:
    """Simulate what is missing in `values`, side by side; each file is written whole or not at all.

    Raises `BrokenExecutor` where a process dies; finished ones are kept.
    """
    distinct = {valuation.name: valuation for valuation in todo}
    missing = [valuation for name, valuation in distinct.items() if not _file(values, name).exists()]
    values.mkdir(parents=True, exist_ok=True)
    with ProgressDisplay() as display:
        display.line(f"{len(distinct)} true values, {len(distinct) - len(missing)} of them known before, in {values}")
        if missing:
            with worker_pool(min(jobs, len(missing)), display) as (pool, messages):
                with interrupt_later():
                    futures: dict[Future, str] = {
                        pool.submit(compute_value, valuation, cells, logs, values, device): valuation.label
                        for valuation in missing
                    }
                drain(futures, messages, display)


def compute_value(valuation: Valuation, cells: Path, logs: Path, values: Path, device: str) -> None:
    """Simulate one and write its file. The model's cell must be finished."""
    config = deployed(valuation.config, valuation.cap)
    estimates, effective = np.full(len(ESTIMATORS), np.nan), float("nan")
    policy: Policy = UniformPolicy(config.n_items)
    if valuation.cell is not None:
        log = shop_log(valuation.config, valuation.log_sessions, valuation.log_seed, logs)
        _, model = open_run(cells / valuation.cell.name, log.data, device)
        options = {"unseen_only": valuation.unseen_only, "cap": valuation.cap}
        policy = _best(shop_scores(model, log.data, config.n_items, **options))
        if valuation.cap is None:
            estimates, effective = _estimates(policy, log)
    returns = session_returns(policy, config, valuation.n_served, valuation.seed)
    temporary = values / f".{valuation.name}.{os.getpid()}.partial.npz"
    np.savez(temporary, returns=returns, estimates=estimates, effective_sample_size=effective)
    os.replace(temporary, _file(values, valuation.name))


def read_value(valuation: Valuation, values: Path) -> Served:
    """What `compute_value` wrote."""
    with np.load(_file(values, valuation.name)) as found:
        return Served(found["returns"], found["estimates"], float(found["effective_sample_size"]))


def is_known(valuation: Valuation, values: Path) -> bool:
    """Whether it has been simulated."""
    return _file(values, valuation.name).exists()


def _best(scores: Callable[[Any], np.ndarray]) -> Callable[[Any], np.ndarray]:
    return lambda observations: scores(observations).argmax(axis=1)


def _estimates(policy: Policy, log: ShopLog) -> tuple[np.ndarray, float]:
    """By `ESTIMATORS`, and the effective sample size of whole sessions."""
    greedy = np.concatenate(
        [
            policy({name: column[first : first + 4096] for name, column in log.observations.items()})
            for first in range(0, len(log.action), 4096)
        ]
    )
    outcomes = all_estimates(log.decisions, (greedy == log.action).astype(np.float64))
    found = [outcomes[name] for name in ESTIMATORS]
    values = [np.nan if isinstance(outcome, UnreliableEstimate) else outcome.value for outcome in found]
    told = found[0].estimate if isinstance(found[0], UnreliableEstimate) else found[0]
    return np.array(values), told.effective_sample_size


def _file(values: Path, name: str) -> Path:
    return values / f"{name}.npz"
