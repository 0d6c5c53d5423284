"""Runs and cells: a trained model in a folder, with its configuration, scalars and event table.

A *cell* is the run of one (model, data, configuration, seed), in a folder named by the hash of those four. Work goes
on in ``NAME.partial``, where an interrupted training continues from its last checkpoint; the folder takes its name
when it is whole. Tables and plots are derived from cells, and a cell is never computed twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from ..envs.folders import SCHEMA, check_new_folder, read_manifest, write_json
from ..envs.history import UserHistories
from ..envs.log import PreparedData, SessionLog
from ..errors import InputError
from .models import ModelSpec, parse_model

if TYPE_CHECKING:
    import pandas as pd

    from .protocol import Recommender

Progress = Callable[[int, int, str], None]

Task = Literal["fit", "online"]
"""How a cell is computed: trained on the training split and ranked on the test split, or learned online."""

Extra = Literal["cold-start", "last"]
"""Further tables of a finished cell: the ranks of `cold_start_ranks`, and those under the last epoch's weights."""

COLD_START_CAPS = tuple(range(1, 11))
"""Events after which the state stops growing, in the table ``cold-start.parquet`` of a cell."""

LAST = "last.safetensors"
"""Weights of the last epoch, as `nn.checkpoint` names them."""

EVENTS, HONESTY = "events.parquet", "honesty.json"
RUN_FORMAT = "sessiongym.run"

_PACKAGES = ("sessiongym", "torch", "numpy", "numba", "gymnasium", "stable-baselines3")
"""Whose versions a run records."""


class TrainedModel(Protocol):
    """A `Recommender` whose training takes a while and is kept; `RecurrentAgent` and `NeuralBaseline` say how."""

    def fit(
        self,
        train: SessionLog,
        valid: SessionLog | None,
        *,
        validate: Callable[[Any], dict[str, float]],
        folder: Path,
        progress: Progress | None,
    ) -> object: ...

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path, device: str) -> Recommender: ...


@dataclass(frozen=True)
class Cell:
    """One model on one data set with one seed. Models without random draws have the seed 0 whatever was asked."""

    spec: ModelSpec
    data_fingerprint: str
    seed: int
    task: Task = "fit"

    @property
    def name(self) -> str:
        """Folder name: a hash of model, configuration, data and seed, and of the task unless it is the usual one."""
        parts = [self.spec.family, asdict(self.spec.config), self.data_fingerprint, self.effective_seed]
        content = json.dumps([*parts, *([] if self.task == "fit" else [self.task])], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()

    @property
    def effective_seed(self) -> int:
        return self.seed if self.spec.trained else 0


def is_finished(folder: Path, extra: Extra | None = None) -> bool:
    """Whether a cell is there, with the `extra` table."""
    return folder.exists() and (extra is None or (folder / _file_of(extra)).exists())


def compute_cell(
    cell: Cell,
    data: PreparedData,
    cells: Path,
    device: str,
    progress: Progress | None = None,
    extra: Extra | None = None,
) -> Path:
    """The folder of a finished cell, trained and ranked first where there is none. Safe from many processes.

    An `extra` table is made from the model of the finished cell, and the cell gets it when it is whole.
    """
    folder = cells / cell.name
    if is_finished(folder, extra):
        return folder
    with _working_folder(folder) as work:
        if not folder.exists():
            if cell.task == "online":
                _learn_online_into(work, cell, data, device, progress)
            else:
                model = _train_into(work, cell.spec, data, cell.effective_seed, device, progress)
                rank_into(work, model, data, cell.spec.label)
            _finish(work, folder)
        if not is_finished(folder, extra):
            assert extra is not None
            _add_extra(folder, extra, data, device)
    return folder


def train_run(
    folder: Path, spec: ModelSpec, data: PreparedData, seed: int, device: str, progress: Progress | None = None
) -> None:
    """Train one model into a folder of its own; the same call goes on where an interrupted one stopped.

    Raises `InputError` where the folder already holds a finished run, or work on a different one, and for a negative
    seed.
    """
    if seed < 0:
        raise InputError(f"--seed: expected 0 or more, found {seed}")
    check_new_folder(folder)
    cell = Cell(spec, data.fingerprint(), seed)
    with _working_folder(folder) as work:
        # Another process may have finished it while this one waited.
        check_new_folder(folder)
        mark = work / "cell"
        if mark.exists() and mark.read_text(encoding="utf-8") != cell.name:
            raise InputError(
                f"{work}: holds unfinished work on another model, data set or seed; remove it or choose another --out"
            )
        mark.write_text(cell.name, encoding="utf-8")
        _train_into(work, spec, data, seed, device, progress)
        mark.unlink()
        _finish(work, folder)


def open_run(folder: Path, data: PreparedData, device: str) -> tuple[dict[str, Any], Recommender]:
    """The description of a run and its model, ready to score; models that train in seconds are fitted anew.

    Raises `InputError` where the data is not what the run was trained on.
    """
    run = read_manifest(folder, RUN_FORMAT)
    if run["data"] != data.fingerprint():
        raise InputError(
            f"{folder}: trained on data with fingerprint {run['data']}, found {data.fingerprint()} in {data.path}; "
            f"give the folder it was trained on (it was {run['data_path']})"
        )
    spec = parse_model(run["model"])
    # The configuration of the run, whatever the name means by now.
    spec = replace(spec, config=type(spec.config)(**run["config"]))
    model = spec.create(run["seed"], device)
    if not spec.trained:
        return run, model.fit(data.train, data.valid)
    return run, cast("TrainedModel", model).load(folder, device)


def rank_into(folder: Path, model: Recommender, data: PreparedData, name: str) -> pd.DataFrame:
    """Rank the test split and keep the event table in the folder, and what the honesty checks found.

    Raises `HonestyError`, and ranks nothing, where one of them fails for the model, called `name` there.
    """
    from .events import rank_events
    from .honesty import check_model

    histories = UserHistories.of(data, "test")
    write_json(folder / HONESTY, check_model(model, data, name=name, histories=histories))
    events = rank_events(model, data.test, train=data.train, histories=histories)
    temporary = folder / f".{EVENTS}"
    events.to_parquet(temporary, index=False)
    os.replace(temporary, folder / EVENTS)
    return events


def read_events(folder: Path) -> pd.DataFrame:
    """The event table of a finished cell or an evaluated run."""
    import pandas as pd

    return pd.read_parquet(folder / EVENTS)


def read_extra(folder: Path, extra: Extra) -> pd.DataFrame:
    """An extra table of a finished cell."""
    import pandas as pd

    return pd.read_parquet(folder / _file_of(extra))


def check_ks(ks: tuple[int, ...]) -> None:
    """Raises `InputError` unless the list lengths are at least 1 and each is given once."""
    if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
        found = ",".join(map(str, ks))
        raise InputError(f"--ks: expected list lengths of at least 1, each once, found {found!r}; give for example 3,5")


def check_device(device: str) -> str:
    """`device` if it is there: "cpu", "cuda", "cuda:1"; "auto" is the GPU where there is one. Raises `InputError`."""
    if device == "cpu":
        return device
    import torch

    n_gpus = torch.cuda.device_count()
    if device == "auto":
        return "cuda" if n_gpus else "cpu"
    kind, colon, index = device.partition(":")
    if kind != "cuda" or (colon and not index.isdigit()):
        raise InputError(f"--device: expected cpu, cuda, cuda:N or auto, found {device!r}")
    if int(index or 0) >= n_gpus:
        raise InputError(f"--device {device}: this machine has {n_gpus} usable GPUs; use --device cpu")
    return device


def _file_of(extra: Extra) -> str:
    return f"{extra}.parquet"


def _add_extra(folder: Path, extra: Extra, data: PreparedData, device: str) -> None:
    from .cold_start import cold_start_ranks
    from .events import rank_events

    ranked: dict[str, Any] = {"train": data.train, "histories": UserHistories.of(data, "test")}
    if extra == "cold-start":
        _, model = open_run(folder, data, device)
        table = cold_start_ranks(model, data.test, COLD_START_CAPS, **ranked)
    else:
        table = rank_events(_with_last_weights(folder, data, device), data.test, **ranked)
    temporary = folder / f".{_file_of(extra)}"
    table.to_parquet(temporary, index=False)
    os.replace(temporary, folder / _file_of(extra))


def _with_last_weights(folder: Path, data: PreparedData, device: str) -> Recommender:
    """The model of a run as its training ended, whichever epoch was the best."""
    run = read_manifest(folder, RUN_FORMAT)
    if not parse_model(run["model"]).trained:
        return open_run(folder, data, device)[1]
    if not (folder / LAST).exists():
        raise InputError(
            f"{folder / LAST}: not found, so an earlier version computed this cell; remove {folder} to compute it anew"
        )
    with tempfile.TemporaryDirectory() as copy:
        for name in ("manifest.json", "agent.json", "model.json"):
            if (folder / name).exists():
                shutil.copyfile(folder / name, Path(copy) / name)
        shutil.copyfile(folder / LAST, Path(copy) / "model.safetensors")
        return open_run(Path(copy), data, device)[1]


def _train_into(
    work: Path, spec: ModelSpec, data: PreparedData, seed: int, device: str, progress: Progress | None
) -> Recommender:
    started = time.time()
    model = spec.create(seed, device)
    if spec.trained:
        from .events import validation_scores

        trained = cast("TrainedModel", model)
        histories = UserHistories.of(data, "valid")
        validate = partial(validation_scores, log=data.valid, by=spec.validate_by, histories=histories)
        trained.fit(data.train, data.valid, validate=validate, folder=work, progress=progress)
        trained.save(work)
    else:
        model.fit(data.train, data.valid)
    _describe(work, spec, data, seed, device, "fit", started)
    return model


def _learn_online_into(
    work: Path, cell: Cell, data: PreparedData, device: str, progress: Progress | None = None
) -> None:
    from .honesty import check_model
    from .online import run_online

    started = time.time()
    model = cell.spec.create(cell.effective_seed, device)
    run_online(model, data, folder=work, progress=progress)
    write_json(work / HONESTY, check_model(model, data, name=cell.spec.label))
    _describe(work, cell.spec, data, cell.effective_seed, device, cell.task, started)


def _describe(
    work: Path, spec: ModelSpec, data: PreparedData, seed: int, device: str, task: Task, started: float
) -> None:
    write_json(
        work / "manifest.json",
        {
            "format": RUN_FORMAT,
            "schema": SCHEMA,
            "model": spec.label,
            "family": spec.family,
            "config": asdict(spec.config),
            "seed": seed,
            "task": task,
            "data": data.fingerprint(),
            "data_path": str(data.path),
            "notes": list(data.notes),
            "device": device,
            "seconds": round(time.time() - started, 1),
            "versions": {name: version(name) for name in _PACKAGES},
            "python": platform.python_version(),
        },
    )


@contextmanager
def _working_folder(folder: Path) -> Iterator[Path]:
    """``FOLDER.partial``, held by this process alone; it stays where the work is interrupted."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_name(f"{folder.name}.lock")):
        work = folder.with_name(f"{folder.name}.partial")
        # Another process may have finished it while this one waited.
        if not folder.exists():
            work.mkdir(exist_ok=True)
        yield work


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    while True:
        with file.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Whoever held it has removed it, perhaps this very moment: others lock a new file by now.
            try:
                if not os.path.samestat(os.fstat(lock.fileno()), file.stat()):
                    continue
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                file.unlink()
            return


def _finish(work: Path, folder: Path) -> None:
    # The optimiser's state is of use only to a training that goes on.
    (work / "checkpoint.safetensors").unlink(missing_ok=True)
    os.rename(work, folder)
