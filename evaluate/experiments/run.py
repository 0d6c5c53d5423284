"""Run an experiment: plan its cells, compute those that are missing, write its tables, charts and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...agents.config import AgentConfig
from ...envs.folders import SCHEMA, check_same_result, new_folder, write_json
from ...envs.log import PreparedData
from ...errors import InputError
from ..exports import write_views
from ..honesty import check_data
from ..online import check_online
from ..pool import compute_cells, default_jobs
from ..runs import Cell, Extra, Task, check_device, check_ks
from ..table import write_table
from ..views import View
from .definitions import Experiment, Preset, System
from .design import Design, design
from .plan import PlannedCell, most_epochs, plan_cells
from .results import Results
from .views import views_of

EXPERIMENT_FORMAT = "sessiongym.experiment"


@dataclass(frozen=True)
class ExperimentPlan:
    """An experiment on a data set, down to its cells."""

    design: Design
    data: PreparedData
    cells: Mapping[str, tuple[Cell, ...]]
    """Of each entry's label, by seed."""
    folder: Path
    """Of finished cells."""
    device: str
    honesty: Mapping[str, str]
    """What `check_data` found."""

    @property
    def extra(self) -> Extra | None:
        """The further table that each cell needs."""
        return "cold-start" if self.design.experiment.task == "cold-start" else None

    def estimate(self, probe: bool = True, progress: Any = None) -> list[PlannedCell]:
        """The distinct cells, with how long those that are missing may take."""
        return plan_cells(self.cells, self.data, self.folder, self.device, self.extra, probe, progress)


def make_plan(
    experiment: Experiment,
    data: PreparedData,
    cells: Path,
    *,
    n_seeds: int = 5,
    preset: Preset = "practical",
    models: Sequence[str] | None = None,
    tuned: Mapping[str, str] | None = None,
    device: str = "cpu",
) -> ExperimentPlan:
    """The cells of an experiment. Raises `InputError` for an unknown model, or data that lacks what is needed."""
    if n_seeds < 1:
        raise InputError(f"--seeds: expected at least 1, found {n_seeds}")
    if data.path is None:
        raise InputError(
            "experiment: the workers read the data from its folder, but it has none; use what `save` returns"
        )
    if experiment.needs_users and data.manifest.get("options", {}).get("user_split") == "last":
        experiment = replace(
            experiment,
            title=f"{experiment.title}: each user's last session held out",
            systems=(*experiment.systems, System("bpr:users=known", None, "BPR-MF")),
        )
    made = design(experiment, preset, models, tuned)
    needing = [entry.label for entry in made.entries if entry.spec.needs_users] if data.train.user is None else []
    if needing or (experiment.needs_users and data.test.user is None):
        raise InputError(
            f"experiment {experiment.name}: reads what users did before, and {data.path} has no users; "
            "prepare a log with users, such as `sessiongym shop --users 800 --user-split share --min-user-sessions 3`"
        )
    honesty = check_data(data)
    if experiment.task == "online":
        for entry in made.entries:
            check_online(entry.spec.create(0, "cpu"))
    task: Task = "online" if experiment.task == "online" else "fit"
    fingerprint = data.fingerprint()
    by_label = {
        entry.label: tuple(Cell(entry.spec, fingerprint, seed, task) for seed in range(n_seeds))
        for entry in made.entries
    }
    return ExperimentPlan(made, data, by_label, cells, check_device(device), honesty)


def run_experiment(
    plan: ExperimentPlan,
    out: Path,
    *,
    jobs: int | None = None,
    ks: tuple[int, ...] | None = None,
    ties: str = "expected",
    overwrite: bool = False,
) -> list[View]:
    """Compute the missing cells and write tables and charts to `out`; interrupted, the same call goes on.

    `out` gets ``views.json``, ``tables/`` and ``plots/`` (`write_views`), ``table.csv`` (`long_table` of the entries),
    ``training.csv`` and ``manifest.json``. Raises `InputError` where `out` holds something else, or another experiment
    and `overwrite` is off; `BrokenExecutor` where a worker process dies.
    """
    ks = ks or plan.design.experiment.ks
    check_ks(ks)
    described = _describe(plan, ks, ties)
    same = {key: described[key] for key in ("experiment", "cells", "ks", "ties")}
    check_same_result(out, EXPERIMENT_FORMAT, "an experiment", same, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    todo = [cell for cells in plan.cells.values() for cell in cells]
    folders = compute_cells(todo, plan.data, plan.folder, jobs or default_jobs(plan.device), plan.device, plan.extra)
    by_label = {
        label: {seed: folders[cell.name] for seed, cell in enumerate(cells)} for label, cells in plan.cells.items()
    }
    results = Results(plan.design, plan.data, by_label, ks, ties)
    views = views_of(results)
    # Everything here is derived from cells, so replacing an older version of the same experiment loses nothing.
    with new_folder(out, overwrite=True) as work:
        if plan.design.experiment.task != "online":
            write_table(results.long, work / "table.csv")
            results.training.to_csv(work / "training.csv", index=False)
        write_views(work, views)
        write_json(work / "manifest.json", described)
    return views


def notes_of(plan: ExperimentPlan) -> list[str]:
    """Caveats that everything made from the experiment must state."""
    notes = list(plan.data.notes)
    n_seeds = len(next(iter(plan.cells.values())))
    if n_seeds < 5:
        notes.append(f"{n_seeds} seed(s): a published table needs at least 5.")
    return [*notes, *plan.design.notes, *_without_imagination(plan)]


def _without_imagination(plan: ExperimentPlan) -> list[str]:
    """The agents whose training ends before their imagination begins."""
    notes = []
    for entry in plan.design.entries:
        config = entry.spec.config
        if isinstance(config, AgentConfig) and config.imagination_weight > 0:
            in_one = plan.data.train.n_events
            passes = 1 if plan.design.experiment.task == "online" else most_epochs(entry.spec, in_one)
            n_events = int(passes * in_one)
            if n_events <= config.imagination_start:
                notes.append(
                    f"{entry.label} imagines nothing: it would begin after {config.imagination_start:,} events, and "
                    f"its training has {n_events:,}."
                )
    return notes


def _describe(plan: ExperimentPlan, ks: tuple[int, ...], ties: str) -> dict[str, Any]:
    experiment, data = plan.design.experiment, plan.data
    assert data.path is not None
    return {
        "format": EXPERIMENT_FORMAT,
        "schema": SCHEMA,
        "experiment": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "preset": plan.design.preset,
        "models": plan.design.models,
        "variants": [variant.label for variant in plan.design.variants if variant.label],
        "seeds": len(next(iter(plan.cells.values()))),
        "data": data.fingerprint(),
        "data_path": str(data.path),
        "data_manifest": data.manifest,
        "ks": list(ks),
        "ties": ties,
        "notes": notes_of(plan),
        "honesty": plan.honesty,
        "cells": {label: [cell.name for cell in cells] for label, cells in plan.cells.items()},
    }
