"""What an experiment will compute, and about how long that takes: from finished cells where there are some, else from a
short probe of each model on a part of the data."""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numba
import numpy as np
import torch

from ...agents.config import AgentConfig
from ...agents.sb3_config import SB3Config
from ...agents.sqn_config import SQNConfig
from ...envs.log import PreparedData, SessionLog
from ...nn.schedule import Schedule
from ..events import rank_events
from ..models import ModelSpec
from ..runs import Cell, Extra, is_finished

PROBE_EVENTS = 4_000
"""Training events of a probe."""

_NO_WORK = (
    "policy_weight",
    "value_gradient",
    "value_at",
    "value_target",
    "entropy_weight",
    "bootstrap",
    "density",
    "drop",
)
_NO_WORK += ("kinds", "reconstruction", "imagination_start", "imagination_warmup", "imagination_gate")
"""Fields of an agent that hardly change how long it trains, so that one probe stands for all their values."""


@dataclass(frozen=True)
class PlannedCell:
    """A cell of an experiment before it is run."""

    label: str
    cell: Cell
    finished: bool
    seconds: float | None
    """At most about so long on one core; None where it is not known."""


def plan_cells(
    cells_by_label: Mapping[str, Iterable[Cell]],
    data: PreparedData,
    cells: Path,
    device: str,
    extra: Extra | None = None,
    probe: bool = True,
    progress: Callable[[str], object] | None = None,
) -> list[PlannedCell]:
    """Each distinct cell once, those that are missing with an estimate where `probe` is on.

    A cell of the same configuration and data that another seed has finished says how long it took. Otherwise the model,
    or one that does the same work, is trained for one epoch on some of the training sessions. The estimate is of all
    epochs of the configuration, so a training that stops early takes less.
    """
    known, probed = _known_seconds(cells, data.fingerprint()), {}
    planned: dict[str, PlannedCell] = {}
    if probe:
        # As the processes that compute cells have.
        torch.set_num_threads(1)
        numba.set_num_threads(1)
    for label, ones in cells_by_label.items():
        for cell in ones:
            if cell.name in planned:
                continue
            finished, seconds = is_finished(cells / cell.name, extra), None
            if not finished and probe:
                seconds = known.get(_configuration(cell))
                work = _same_work(cell.spec)
                if seconds is None and work not in probed:
                    if progress is not None:
                        progress(f"probing {label}")
                    probed[work] = probe_seconds(cell.spec, data, device)
                seconds = probed[work] if seconds is None else seconds
            planned[cell.name] = PlannedCell(label, cell, finished, seconds)
    return list(planned.values())


def wall_seconds(planned: Iterable[PlannedCell], jobs: int) -> float:
    """How long the missing cells take side by side, the longest first."""
    workers = [0.0] * jobs
    for seconds in sorted((one.seconds or 0.0 for one in planned if not one.finished), reverse=True):
        heapq.heapreplace(workers, workers[0] + seconds)
    return max(workers)


def print_plan(planned: list[PlannedCell], jobs: int, cells: Path) -> None:
    """The cells that are missing, a line a configuration, and how long all of them may take."""
    missing = [one for one in planned if not one.finished]
    print(f"{len(planned)} cells, {len(planned) - len(missing)} of them finished, in {cells}")
    by_label: dict[str, list[PlannedCell]] = {}
    for one in missing:
        by_label.setdefault(one.label, []).append(one)
    for label, ones in by_label.items():
        each = "" if ones[0].seconds is None else f", up to {duration(ones[0].seconds)} each"
        print(f"  {label}: {len(ones)} to compute{each}")
    if missing and all(one.seconds is not None for one in missing):
        total = duration(wall_seconds(missing, jobs))
        print(f"up to {total} in all with {jobs} side by side, less where training stops early")


def duration(seconds: float) -> str:
    """In the unit that suits it: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def probe_seconds(spec: ModelSpec, data: PreparedData, device: str) -> float:
    """Estimated seconds of training and ranking one cell: of CPU time, if that is where it runs, so that what else
    goes on does not count."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    model, size, began = None, 0.0, 0.0
    # The first round pays for imports and compilation.
    for n_events in (PROBE_EVENTS // 5, PROBE_EVENTS):
        part = _first_sessions(data.train, n_events)
        short, size = _shortened(spec, part.n_events)
        model = short.create(0, device)
        began = clock()
        model.fit(part, None)
    training = (clock() - began) / size * _full_size(spec, data.train.n_events)
    assert model is not None
    test = _first_sessions(data.test, PROBE_EVENTS // 5)
    began = clock()
    rank_events(model, test)
    to_rank = data.test.n_events + (most_epochs(spec, data.train.n_events) * data.valid.n_events if spec.trained else 0)
    return training + (clock() - began) / test.n_events * to_rank


def _first_sessions(log: SessionLog, n_events: int) -> SessionLog:
    n = int(np.searchsorted(log.offset, n_events))
    return log.select(np.arange(min(max(n, 2), log.n_sessions)))


def _shortened(spec: ModelSpec, n_events: int) -> tuple[ModelSpec, float]:
    """The same model trained for one epoch or a few steps, and how many events or steps those are."""
    match spec.config:
        case SB3Config():
            short = replace(spec.config, total_steps=n_events, evaluation_steps=n_events)
        case AgentConfig():
            # What begins later is most of the work.
            short = replace(spec.config, epochs=1, imagination_start=0, imagination_warmup=0)
        case SQNConfig() | Schedule():
            short = replace(spec.config, epochs=1)
        case _:
            return spec, float(n_events)
    return replace(spec, config=short), float(n_events)


def _full_size(spec: ModelSpec, n_events: int) -> float:
    """What `_shortened` counts, of the whole training."""
    return spec.config.total_steps if isinstance(spec.config, SB3Config) else most_epochs(spec, n_events) * n_events


def most_epochs(spec: ModelSpec, n_events: int) -> float:
    """The passes that a model may make over a training log of so many events."""
    if isinstance(spec.config, SB3Config):
        return spec.config.total_steps / spec.config.evaluation_steps
    most = getattr(spec.config, "max_events", float("inf"))
    return min(getattr(spec.config, "epochs", 1), max(most / n_events, 1.0))


def _same_work(spec: ModelSpec) -> str:
    """Equal for configurations that take about as long."""
    config = asdict(spec.config)
    if isinstance(spec.config, AgentConfig):
        config = {name: value for name, value in config.items() if name not in _NO_WORK}
        config["imagination_weight"] = spec.config.imagination_weight > 0
    return json.dumps([spec.family, config], sort_keys=True)


def _configuration(cell: Cell) -> str:
    return json.dumps([cell.spec.family, asdict(cell.spec.config), cell.data_fingerprint, cell.task], sort_keys=True)


def _known_seconds(cells: Path, fingerprint: str) -> dict[str, float]:
    """Seconds that finished cells on this data took, by configuration: the most of all seeds."""
    seconds: dict[str, float] = {}
    for file in cells.glob("*/manifest.json"):
        try:
            run = json.loads(file.read_text(encoding="utf-8"))
            if run["data"] == fingerprint:
                key = json.dumps([run["family"], run["config"], run["data"], run.get("task", "fit")], sort_keys=True)
                seconds[key] = max(seconds.get(key, 0.0), float(run["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            # An unfinished or foreign folder says nothing.
            continue
    return seconds
