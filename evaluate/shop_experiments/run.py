"""Run an experiment in the shop: serve and prepare a log in each shop, train the models on it, let each serve the shop,
and set what it earned beside what replay says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ...envs.folders import SCHEMA, check_same_result, new_folder, write_json
from ...envs.shop.live_config import LiveShopConfig
from ...errors import InputError
from ..experiments.run import EXPERIMENT_FORMAT
from ..exports import write_views
from ..honesty import check_data
from ..models import ModelSpec, parse_models
from ..pool import compute_cells, default_jobs
from ..runs import Cell, Extra, check_device, is_finished, read_events, read_extra
from ..views import View
from .correlation import FEWEST
from .definitions import ShopExperiment
from .logs import ShopLog, shop_log
from .results import Outcome, replay_figures, truth_of
from .values import Valuation, compute_values, is_known, read_value
from .views import panels_of, views_of

_CAP_EXTRA: Extra = "cold-start"


@dataclass(frozen=True)
class ShopPlan:
    """An experiment down to its cells and valuations."""

    experiment: ShopExperiment
    specs: tuple[ModelSpec, ...]
    n_seeds: int
    folder: Path
    """Of ``cells/``, ``shop-logs/`` and ``shop-values/``, which all experiments share."""
    device: str
    logs: Mapping[LiveShopConfig, ShopLog]

    @property
    def cells_folder(self) -> Path:
        return self.folder / "cells"

    @property
    def logs_folder(self) -> Path:
        return self.folder / "shop-logs"

    @property
    def values_folder(self) -> Path:
        return self.folder / "shop-values"

    def cells(self, config: LiveShopConfig) -> dict[str, tuple[Cell, ...]]:
        """By model, those of its training seeds."""
        fingerprint = self.logs[config].data.fingerprint()
        return {
            spec.label: tuple(Cell(spec, fingerprint, seed) for seed in range(self.n_seeds if spec.trained else 1))
            for spec in self.specs
        }

    def extra(self, config: LiveShopConfig) -> Extra | None:
        """The further table that the cells of a shop need."""
        return _CAP_EXTRA if self.experiment.caps and config == self.experiment.base else None

    def valuation(
        self, config: LiveShopConfig, cell: Cell | None, unseen_only: bool = False, cap: int | None = None
    ) -> Valuation:
        """Of a model of the shop, or of chance."""
        made = self.experiment
        return Valuation(config, made.n_sessions, made.seed, cell, unseen_only, cap, made.n_served, made.seed + 1)

    @cached_property
    def ways(self) -> dict[LiveShopConfig, list[tuple[bool, int | None]]]:
        """How models serve each shop: whether items already seen are left out, and the cap."""
        caps = self.experiment.caps
        return {
            config: [(False, None), (True, None), *((True, cap) for cap in caps if self.extra(config))]
            for config in self.logs
        }

    def valuations(self) -> list[Valuation]:
        """All of them, chance included."""
        todo = []
        for config, ways in self.ways.items():
            todo.append(self.valuation(config, None))
            cells = [cell for seeds in self.cells(config).values() for cell in seeds]
            todo += [self.valuation(config, cell, *way) for way in ways for cell in cells]
        return todo

    def missing(self) -> tuple[int, int, int, int]:
        """Cells and true values: how many, and how many of these are still to be computed."""
        cells = {
            cell.name: is_finished(self.cells_folder / cell.name, self.extra(config))
            for config in self.logs
            for seeds in self.cells(config).values()
            for cell in seeds
        }
        known = {one.name: is_known(one, self.values_folder) for one in self.valuations()}
        return len(cells), len(cells) - sum(cells.values()), len(known), len(known) - sum(known.values())


def make_shop_plan(
    experiment: ShopExperiment,
    folder: Path,
    *,
    n_seeds: int = 1,
    device: str = "cpu",
    progress: Callable[[str], object] | None = None,
) -> ShopPlan:
    """Serve and prepare the logs that are missing in `folder`, and plan the rest.

    Raises `InputError` for an unknown model or device, a model that needs users, fewer than three models or one seed.
    """
    if n_seeds < 1:
        raise InputError(f"--seeds: expected at least 1, found {n_seeds}")
    specs = tuple(parse_models(experiment.models))
    if len(specs) < FEWEST:
        raise InputError(f"--models: expected at least {FEWEST}, which have an order, found {len(specs)}; name more")
    for spec in specs:
        if spec.needs_users:
            raise InputError(f"{spec.label}: needs users, and shoppers of the live shop are strangers; leave it out")
    device = check_device(device)
    logs = {}
    for config, label in experiment.shops().items():
        if progress is not None:
            progress(f"log of {label}")
        logs[config] = shop_log(config, experiment.n_sessions, experiment.seed, folder / "shop-logs")
    return ShopPlan(experiment, specs, n_seeds, folder, device, logs)


def run_shop_experiment(
    plan: ShopPlan, out: Path, *, jobs: int | None = None, ties: str = "expected", overwrite: bool = False
) -> list[View]:
    """Compute what is missing and write tables and charts to `out`; interrupted, the same call goes on.

    `out` gets ``views.json``, ``tables/``, ``plots/`` and ``manifest.json``; where there are curves over knobs, they
    are one picture as well, named as the experiment. Raises `InputError` where `out` holds
    something else, or another experiment and `overwrite` is off; `BrokenExecutor` where a worker process dies.
    """
    described = _describe(plan, ties)
    same = {key: described[key] for key in ("experiment", "values", "ties")}
    check_same_result(out, EXPERIMENT_FORMAT, "an experiment", same, overwrite)
    jobs = jobs or default_jobs(plan.device)
    for config, log in plan.logs.items():
        todo = [cell for seeds in plan.cells(config).values() for cell in seeds]
        compute_cells(todo, log.data, plan.cells_folder, jobs, plan.device, plan.extra(config))
    compute_values(plan.valuations(), plan.cells_folder, plan.logs_folder, plan.values_folder, jobs, plan.device)
    labels = plan.experiment.shops()
    shops = {config: _outcome(plan, config, label, ties) for config, label in labels.items()}
    capped = {cap: _capped(plan, cap, ties) for cap in plan.experiment.caps}
    views = views_of(plan.experiment, shops, capped, ties)
    # Everything here is derived from cells and values, so replacing an older version loses nothing.
    with new_folder(out, overwrite=True) as work:
        write_views(work, views)
        if panels := panels_of(views):
            from ..plots import draw_grid

            for ending in ("svg", "png"):
                draw_grid(panels, work / "plots" / f"{plan.experiment.name}.{ending}")
        write_json(work / "manifest.json", described)
    return views


def _outcome(plan: ShopPlan, config: LiveShopConfig, label: str, ties: str) -> Outcome:
    events = {
        model: {seed: read_events(plan.cells_folder / cell.name) for seed, cell in enumerate(cells)}
        for model, cells in plan.cells(config).items()
    }
    return _with_truth(plan, config, label, events, ties, {False: (False, None), True: (True, None)})


def _capped(plan: ShopPlan, cap: int, ties: str) -> Outcome:
    config, events = plan.experiment.base, {}
    for model, cells in plan.cells(config).items():
        frames = [read_extra(plan.cells_folder / cell.name, _CAP_EXTRA) for cell in cells]
        events[model] = {seed: frame[frame["cap"] == cap].reset_index(drop=True) for seed, frame in enumerate(frames)}
    return _with_truth(plan, config, f"c = {cap}", events, ties, {True: (True, cap)})


def _with_truth(
    plan: ShopPlan,
    config: LiveShopConfig,
    label: str,
    events: Mapping[str, Mapping[int, pd.DataFrame]],
    ties: str,
    ways: Mapping[bool, tuple[bool, int | None]],
) -> Outcome:
    metrics = plan.experiment.metrics
    chance = read_value(plan.valuation(config, None), plan.values_folder)
    truth = {}
    for key, way in ways.items():
        served = {
            model: [read_value(plan.valuation(config, cell, *way), plan.values_folder) for cell in cells]
            for model, cells in plan.cells(config).items()
        }
        truth[key] = truth_of(served, chance)
    figures = replay_figures(events, metrics, plan.logs[config].data, config, ties)
    return Outcome(label, tuple(events), metrics, *figures, truth)


def _describe(plan: ShopPlan, ties: str) -> dict[str, Any]:
    made = plan.experiment
    base = plan.logs[made.base].data
    return {
        "format": EXPERIMENT_FORMAT,
        "schema": SCHEMA,
        "experiment": made.name,
        "title": made.title,
        "source": "the simulated shop",
        "models": [spec.label for spec in plan.specs],
        "seeds": plan.n_seeds,
        "data": base.fingerprint(),
        "data_path": str(base.path),
        "data_manifest": base.manifest,
        "ties": ties,
        "notes": [
            *base.notes,
            f"{made.n_sessions:,} sessions a log, {made.n_served:,} sessions behind a true value, {plan.n_seeds} "
            f"training seed(s).",
        ],
        "shops": {label: asdict(config) for config, label in made.shops().items()},
        "honesty": {label: check_data(plan.logs[config].data) for config, label in made.shops().items()},
        "values": [valuation.name for valuation in plan.valuations()],
    }
