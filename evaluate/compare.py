"""Comparison of models on one data set: plan the cells, compute those that are missing, make the tables."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

from ..envs.folders import SCHEMA, new_folder, read_manifest, write_json
from ..envs.log import PreparedData
from ..errors import InputError
from ..interrupts import interrupt_later
from ..progress import ProgressDisplay
from .models import REFERENCES, ModelSpec, parse_models
from .runs import Cell, check_device, check_ks, compute_cell, read_events

if TYPE_CHECKING:
    import pandas as pd

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
    overwrite: bool = False,
) -> Comparison:
    """Train and rank every (model, seed) that is not there yet, and write the tables to `out`.

    `references` adds the shortcuts and controls that every comparison should carry. Finished cells live in `cells`
    (default: beside `out`) and are shared by all comparisons there. Interrupted, the same call goes on. `against` names
    a model of the comparison to which the paired differences of all others are added; another one makes the tables
    anew and nothing else.
    `out` gets ``table.csv`` (long form), ``table.md``, ``differences.csv`` (`paired_differences`, with `against` only),
    ``training.csv`` (every scalar of every epoch), ``events.parquet`` (the rank of every event under every model and
    seed) and ``manifest.json``. Raises `InputError` for options as `check_options` does, for data that is not in a
    folder, or where `out` is no comparison, or another one and `overwrite` is off; `BrokenExecutor` where a worker
    process dies.
    """
    check_options(models, n_seeds, jobs, device, ks, ties, against=against, references=references)
    if data.path is None:
        raise InputError("compare: the workers read the data from its folder, but it has none; use what `save` returns")
    specs, left_out = _specs_for(data, models, references)
    device = check_device(device)
    plan = {
        "models": [spec.label for spec in specs],
        "seeds": n_seeds,
        "data": data.fingerprint(),
        "ks": list(ks),
        "ties": ties,
    }
    _check_plan(out, plan, overwrite)
    # A place that cannot be written is found out now, not after the training.
    out.parent.mkdir(parents=True, exist_ok=True)

    todo = [Cell(spec, data.fingerprint(), seed) for spec in specs for seed in range(n_seeds)]
    cells = cells or out.parent / "cells"
    folders = _compute(todo, data, cells, jobs or default_jobs(device), device)
    by_model = {
        spec.label: {seed: folders[Cell(spec, data.fingerprint(), seed).name] for seed in range(n_seeds)}
        for spec in specs
    }
    return _write(out, plan, data, by_model, ks, ties, against, left_out)


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


def default_jobs(device: str) -> int:
    """Cells computed side by side: one a core, or one where they share a GPU."""
    return 1 if device != "cpu" else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _check_plan(out: Path, plan: dict[str, Any], overwrite: bool) -> None:
    if not out.exists():
        return
    try:
        found = read_manifest(out, COMPARISON_FORMAT)
    except InputError:
        raise InputError(
            f"{out}: exists and is not a comparison that this version can read, so it is not replaced; "
            "choose another --out"
        ) from None
    if not overwrite and any(found.get(key) != value for key, value in plan.items()):
        differs = ", ".join(key for key, value in plan.items() if found.get(key) != value)
        raise InputError(
            f"{out}: already holds another comparison (it differs in {differs}); choose another --out or "
            "pass --overwrite (finished cells are kept and reused)"
        )


def _compute(todo: list[Cell], data: PreparedData, cells: Path, jobs: int, device: str) -> dict[str, Path]:
    """Folders of all cells by name. Long ones start first, so that the last to finish is a short one."""
    distinct = {cell.name: cell for cell in todo}
    missing = [cell for name, cell in distinct.items() if not (cells / name).exists()]
    with ProgressDisplay() as display:
        display.line(f"{len(distinct)} cells, {len(distinct) - len(missing)} of them finished before, in {cells}")
        missing.sort(key=lambda cell: -_cost(cell.spec))
        if missing:
            cells.mkdir(parents=True, exist_ok=True)
            with _pool(min(jobs, len(missing)), display) as (pool, messages):
                with interrupt_later():
                    futures: dict[Future, str] = {
                        pool.submit(_work, cell, str(data.path), str(cells), device): _job(cell) for cell in missing
                    }
                _drain(futures, messages, display)
    return {name: cells / name for name in distinct}


def _cost(spec: ModelSpec) -> float:
    return 0.0 if not spec.trained else 1.0 + 10.0 * getattr(spec.config, "imagination_weight", 0.0)


_messages: Any = None


def _start_worker(messages: Any) -> None:
    """One thread a worker: cells run side by side, and a result does not depend on how many cores there are."""
    global _messages
    _messages = messages
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import numba
    import torch

    torch.set_num_threads(1)
    numba.set_num_threads(1)


def _end_with_parent() -> None:
    # A worker holds both ends of the pipe that it waits on, so without this it would outlive a killed parent for ever.
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _job(cell: Cell) -> str:
    return f"{cell.spec.label} seed {cell.effective_seed}" if cell.spec.trained else cell.spec.label


def _work(cell: Cell, data: str, cells: str, device: str) -> None:
    def progress(done: int, total: int, text: str) -> None:
        _messages.put((_job(cell), done, total, text))

    compute_cell(cell, PreparedData.open(data), Path(cells), device, progress)


@contextmanager
def _pool(n_workers: int, display: ProgressDisplay) -> Iterator[tuple[ProcessPoolExecutor, Any]]:
    context = get_context("spawn")
    messages = context.Queue()
    pool = ProcessPoolExecutor(n_workers, context, _start_worker, (messages,))
    try:
        yield pool, messages
        pool.shutdown()
    except BaseException:
        workers = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()
        display.line("stopped; finished cells are kept, the same command goes on from there")
        raise


def _drain(futures: dict[Future, str], messages: Any, display: ProgressDisplay) -> None:
    """Show what the workers say until all are done; the first failure stops the rest."""
    pending, finished = set(futures), set()
    while pending:
        done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
        for job, step, total, text in _waiting(messages):
            # A result may overtake the last words about it.
            if job not in finished:
                display.update(job, step, total, text)
        for future in done:
            try:
                future.result()
            except BrokenProcessPool:
                raise BrokenExecutor(
                    "a worker process died, perhaps for want of memory; finished cells are kept: give the same command "
                    "again, with fewer --jobs if memory is short"
                ) from None
            finished.add(futures[future])
            display.finish(futures[future], f"finished ({len(finished)} of {len(futures)})")


def _waiting(messages: Any) -> Iterator[tuple[str, int, int, str]]:
    while True:
        try:
            yield messages.get_nowait()
        except Empty:
            return


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

    from .differences import differences_markdown, paired_differences
    from .table import headline_k, long_table, markdown_table, write_table
    from .training import training_markdown, training_table

    notes = list(data.notes)
    if plan["seeds"] < 5:
        notes.append(f"{plan['seeds']} seed(s): a published table needs at least 5.")
    if left_out:
        notes.append(f"Left out, because the log has no users: {', '.join(left_out)}.")
    events = {model: {seed: read_events(f) for seed, f in by_seed.items()} for model, by_seed in folders.items()}
    long, training = long_table(events, ks, ties), training_table(folders)
    differences = pd.DataFrame() if against is None else paired_differences(events, against, headline_k(long), ties)
    rows = [
        frame.assign(model=model, seed=seed) for model, by_seed in events.items() for seed, frame in by_seed.items()
    ]
    head = {"format": COMPARISON_FORMAT, "schema": SCHEMA, **plan, "data_path": str(data.path), "notes": notes}
    cells = {model: [folder.name for folder in by_seed.values()] for model, by_seed in folders.items()}
    # Everything here is derived from cells, so replacing an older version of the same plan loses nothing.
    with new_folder(out, overwrite=True) as work:
        write_table(long, work / "table.csv")
        training.to_csv(work / "training.csv", index=False)
        text = markdown_table(long, notes=notes, ties=ties)
        if len(differences):
            differences.to_csv(work / "differences.csv", index=False)
            text += "\n" + differences_markdown(differences, ties)
        text += "\n" + training_markdown(training) if len(training) else ""
        (work / "table.md").write_text(text, encoding="utf-8")
        table = pd.concat(rows, ignore_index=True).astype({"model": "category"})
        table.to_parquet(work / "events.parquet", index=False)
        write_json(work / "manifest.json", {**head, "against": against, "cells": cells})
    return Comparison(long, tuple(notes), differences, training, out)
