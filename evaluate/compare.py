"""Comparison of models on one data set: plan the cells, compute those that are missing, make the tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..envs.folders import SCHEMA, check_same_result, new_folder, read_manifest, write_json
from ..envs.log import PreparedData
from ..errors import InputError
from .honesty import check_data
from .models import REFERENCES, ModelSpec, parse_model, parse_models
from .pool import compute_cells, default_jobs
from .runs import RUN_FORMAT, Cell, check_device, check_ks, read_events, read_extra

if TYPE_CHECKING:
    import pandas as pd

    from .views import View

COMPARISON_FORMAT = "sessiongym.comparison"


@dataclass(frozen=True)
class Comparison:
    """What was compared, and the figures."""

    long: pd.DataFrame
    """The long table, as `table.csv` holds it."""
    notes: tuple[str, ...]
    """Caveats that every table made from it must state."""
    differences: pd.DataFrame
    """Every model against one of them, as `differences.csv` holds it; empty where none was named."""
    training: pd.DataFrame
    """Every scalar of every epoch of the trained models, as `training.csv` holds it; empty where none was trained."""
    views: tuple[View, ...]
    """What `table.md` and a report show."""
    folder: Path


def compare(
    data: PreparedData,
    models: list[str],
    n_seeds: int,
    out: Path,
    *,
    references: bool = True,
    cells: Path | None = None,
    jobs: int | None = None,
    device: str = "cpu",
    ks: tuple[int, ...] = (3, 5, 10),
    ties: str = "expected",
    against: str | None = None,
    tuned: Mapping[str, str] | None = None,
    last: bool = False,
    overwrite: bool = False,
) -> Comparison:
    """Train and rank every (model, seed) that is not there yet, and write the tables to `out`.

    `references` adds the shortcuts and controls that every comparison should carry. Finished cells live in `cells`
    (default: beside `out`) and are shared by all comparisons there. Interrupted, the same call goes on. `against` names
    a model of the comparison to which the paired differences of all others are added; another one makes the tables
    anew and nothing else. `tuned` gives models to be taken instead of others, as `tuned_specs` does. With
    `last` trained models are also ranked with the weights of their last epoch, as models of their own.
    `out` gets ``table.csv`` (long form), ``table.md``, ``differences.csv`` (`paired_differences`, with `against` only),
    ``training.csv`` (every scalar of every epoch), ``views.json`` (what a report shows), ``events.parquet`` (the rank
    of every event under every model and seed) and ``manifest.json``. Raises `InputError` for options as `check_options`
    does, for data that is not in a folder, or where `out` is no comparison, or another one and `overwrite` is off;
    `BrokenExecutor` where a worker process dies.
    """
    check_options(models, n_seeds, jobs, device, ks, ties, against=against, references=references)
    if data.path is None:
        raise InputError("compare: the workers read the data from its folder, but it has none; use what `save` returns")
    specs, left_out = _specs_for(data, models, references)
    tuned = tuned or {}
    titles = {spec.label: f"{spec.label} (tuned)" if spec.label in tuned else spec.label for spec in specs}
    by_title = {titles[spec.label]: parse_model(tuned.get(spec.label, spec.label)) for spec in specs}
    honesty = check_data(data)
    device = check_device(device)
    plan = {
        "models": list(by_title),
        "seeds": n_seeds,
        "data": data.fingerprint(),
        "ks": list(ks),
        "ties": ties,
        "last": last,
    }
    check_same_result(out, COMPARISON_FORMAT, "a comparison", plan, overwrite)
    # A place that cannot be written is found out now, not after the training.
    out.parent.mkdir(parents=True, exist_ok=True)

    todo = [Cell(spec, data.fingerprint(), seed) for spec in by_title.values() for seed in range(n_seeds)]
    cells = cells or out.parent / "cells"
    folders = compute_cells(todo, data, cells, jobs or default_jobs(device), device, "last" if last else None)
    by_model = {
        title: {seed: folders[Cell(spec, data.fingerprint(), seed).name] for seed in range(n_seeds)}
        for title, spec in by_title.items()
    }
    return _write(out, {**plan, "honesty": honesty}, data, by_model, ks, ties, against and titles[against], left_out)


def _specs_for(data: PreparedData, models: list[str], references: bool) -> tuple[list[ModelSpec], list[str]]:
    """The models that can be compared on `data`, and those of "all" that cannot.

    Raises `InputError` where one that was named cannot.
    """
    specs = parse_models([*models, *(REFERENCES if references else ())])
    if data.train.user is not None:
        return specs, []
    anonymous = [spec for spec in specs if spec.needs_users]
    for spec in anonymous:
        if spec.label in models:
            raise InputError(
                f"{spec.label}: reads what a user did before, and {data.path} has no users; "
                "leave it out or prepare a log with users"
            )
    return [spec for spec in specs if spec not in anonymous], [spec.label for spec in anonymous]


def check_options(
    models: list[str],
    n_seeds: int,
    jobs: int | None,
    device: str,
    ks: tuple[int, ...],
    ties: str,
    *,
    against: str | None = None,
    references: bool = True,
) -> None:
    """Raises `InputError` for an unknown or uncompared model, a missing device or an option out of range.

    Reads no data.
    """
    parse_models(models)
    for flag, number in (("--seeds", n_seeds), ("--jobs", jobs)):
        if number is not None and number < 1:
            raise InputError(f"{flag}: expected at least 1, found {number}")
    if ties not in ("expected", "optimistic", "pessimistic"):
        raise InputError(f"--ties: expected expected, optimistic or pessimistic, found {ties!r}")
    check_ks(ks)
    check_device(device)
    labels = [spec.label for spec in parse_models([*models, *(REFERENCES if references else ())])]
    if against is not None and (against not in labels or len(labels) == 1):
        raise InputError(
            f"--against: expected one of several models of this comparison ({', '.join(labels)}), found {against!r}; "
            "name one of them or add models with --models"
        )


def _write(
    out: Path,
    plan: dict[str, Any],
    data: PreparedData,
    folders: dict[str, dict[int, Path]],
    ks: tuple[int, ...],
    ties: str,
    against: str | None,
    left_out: list[str],
) -> Comparison:
    import pandas as pd

    from .comparison_views import comparison_views
    from .differences import paired_differences
    from .exports import VIEWS, table_markdown
    from .table import headline_k, long_table, write_table
    from .training import training_table
    from .views import views_to_json

    notes = list(data.notes)
    if plan["seeds"] < 5:
        notes.append(f"{plan['seeds']} seed(s): a published table needs at least 5.")
    if left_out:
        notes.append(f"Left out, because the log has no users: {', '.join(left_out)}.")
    events = {}
    for model, by_seed in folders.items():
        events[model] = {seed: read_events(folder) for seed, folder in by_seed.items()}
        if plan["last"] and parse_model(read_manifest(by_seed[0], RUN_FORMAT)["model"]).trained:
            events[f"{model} (last epoch)"] = {seed: read_extra(folder, "last") for seed, folder in by_seed.items()}
    long, training = long_table(events, ks, ties), training_table(folders)
    differences = pd.DataFrame() if against is None else paired_differences(events, against, headline_k(ks), ties)
    rows = [
        frame.assign(model=model, seed=seed) for model, by_seed in events.items() for seed, frame in by_seed.items()
    ]
    head = {
        "format": COMPARISON_FORMAT,
        "schema": SCHEMA,
        **plan,
        "data_path": str(data.path),
        "notes": notes,
        "data_manifest": data.manifest,
    }
    cells = {model: [folder.name for folder in by_seed.values()] for model, by_seed in folders.items()}
    views = comparison_views(events, long, differences, training, ties=ties)
    # Everything here is derived from cells, so replacing an older version of the same plan loses nothing.
    with new_folder(out, overwrite=True) as work:
        write_json(work / VIEWS, views_to_json(views))
        write_table(long, work / "table.csv")
        training.to_csv(work / "training.csv", index=False)
        if len(differences):
            differences.to_csv(work / "differences.csv", index=False)
        (work / "table.md").write_text(table_markdown(*views, notes=notes), encoding="utf-8")
        table = pd.concat(rows, ignore_index=True).astype({"model": "category"})
        table.to_parquet(work / "events.parquet", index=False)
        write_json(work / "manifest.json", {**head, "against": against, "cells": cells})
    return Comparison(long, tuple(notes), differences, training, tuple(views), out)
