"""Cells computed side by side in processes of one thread each."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from queue import Empty
from typing import Any

from ..envs.log import PreparedData
from ..interrupts import interrupt_later
from ..progress import ProgressDisplay
from .models import ModelSpec
from .runs import Cell, Extra, compute_cell, is_finished


def default_jobs(device: str) -> int:
    """Cells computed side by side: one a core, or one where they share a GPU."""
    return 1 if device != "cpu" else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def compute_cells(
    todo: Sequence[Cell], data: PreparedData, cells: Path, jobs: int, device: str, extra: Extra | None = None
) -> dict[str, Path]:
    """Folders of all cells by name, each with the `extra` table, computed where they are missing.

    Long ones start first, so that the last to finish is a short one. Raises `BrokenExecutor` where a process dies.
    """
    distinct = {cell.name: cell for cell in todo}
    missing = [cell for name, cell in distinct.items() if not is_finished(cells / name, extra)]
    with ProgressDisplay() as display:
        display.line(f"{len(distinct)} cells, {len(distinct) - len(missing)} of them finished before, in {cells}")
        missing.sort(key=lambda cell: -_cost(cell.spec))
        if missing:
            cells.mkdir(parents=True, exist_ok=True)
            with worker_pool(min(jobs, len(missing)), display) as (pool, messages):
                with interrupt_later():
                    futures: dict[Future, str] = {
                        pool.submit(_work, cell, str(data.path), str(cells), device, extra): job_name(cell)
                        for cell in missing
                    }
                drain(futures, messages, display)
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


def job_name(cell: Cell) -> str:
    """What progress calls it."""
    return f"{cell.spec.label} seed {cell.effective_seed}" if cell.spec.trained else cell.spec.label


def _work(cell: Cell, data: str, cells: str, device: str, extra: Extra | None) -> None:
    def progress(done: int, total: int, text: str) -> None:
        _messages.put((job_name(cell), done, total, text))

    compute_cell(cell, PreparedData.open(data), Path(cells), device, progress, extra)


@contextmanager
def worker_pool(n_workers: int, display: ProgressDisplay) -> Iterator[tuple[ProcessPoolExecutor, Any]]:
    """Processes of one thread each, and the queue of what they say; those at work end where the block does not."""
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


def drain(futures: dict[Future, str], messages: Any, display: ProgressDisplay) -> None:
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
