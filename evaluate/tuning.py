"""Tuning: the configuration of one model that scores best on the validation split, of a given number tried.

The test split is never opened. A trial is the training of one configuration, with the study's seed, on the training
split; its score is that of the epoch that the training keeps. Trial 0 is the model as it was asked for, so that the
result is never below it. Trials go one after the other: what is tried next depends on the seed and on the finished
trials alone, and an interrupted study proposes what one left alone does.

Finished trials are rows of an Optuna study in SQLite, each written in one transaction when it is finished: a process
killed at any moment leaves whole trials or none, and SQLite rolls back what was under way. (Optuna's journal file has
nothing to roll back with: a line cut off in the middle would spoil the next.) The trial under way has no row, only a
folder named by its `Cell`, from whose checkpoint the same command goes on. One process at a time holds the study, by
a lock that the system lets go when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..envs.folders import check_values, read_manifest
from ..envs.history import UserHistories
from ..envs.log import SessionLog
from ..errors import InputError
from ..progress import ProgressDisplay
from .models import ModelSpec, parse_model
from .runs import Cell, Progress, TrainedModel, check_device
from .search_spaces import Domain, Range, search_space, with_changes
from .tuned import Trial, Tuning, write_tuning

if TYPE_CHECKING:
    import optuna

DEFAULT_TRIALS = 20
"""The budget of a model; models that are compared should have had the same."""

_STUDY = "study.sqlite"


@dataclass(frozen=True)
class _Parts:
    """What a study may see of a prepared folder."""

    train: SessionLog
    valid: SessionLog
    fingerprint: str
    """Of all three splits, as the folder's manifest has it."""
    notes: tuple[str, ...]
    path: Path


def tune(
    model: str,
    data: Path,
    out: Path,
    *,
    trials: int = DEFAULT_TRIALS,
    seed: int = 0,
    space: Sequence[str] = (),
    device: str = "cpu",
) -> Tuning:
    """Try `trials` configurations of `model`, and write the best to ``OUT/MODEL/best.json``.

    `data` is a prepared folder and `space` what `search_space` takes. Interrupted, the same call goes on; with more
    `trials` it goes on from the finished ones. Where the whole space has no more configurations than there are trials,
    each is tried once. A configuration that the model refuses, or whose training fails with a `ValueError` (as scores
    that are not finite do), is a failed trial and counts. Raises `InputError` where trial 0 does so, for options out of
    range, and where ``OUT/MODEL`` holds something else, another study, or one that another process is at work on.
    """
    spec, device = parse_model(model), check_device(device)
    domains = search_space(spec, space)
    for flag, number, least in (("--trials", trials, 1), ("--seed", seed, 0)):
        if number < least:
            raise InputError(f"{flag}: expected at least {least}, found {number}")
    parts = _open_parts(data)
    if spec.needs_users and parts.train.user is None:
        raise InputError(f"{model}: reads what a user did before, and {data} has no users; prepare a log with users")
    plan = {
        "model": model,
        "config": asdict(spec.config),
        "data": parts.fingerprint,
        "seed": seed,
        "space": {field: str(domain) for field, domain in domains.items()},
    }
    folder = out / model
    with _locked(folder), _opened_study(folder, plan) as study, ProgressDisplay() as display:
        if study.trials:
            display.line(f"{len(study.trials)} trials finished before, in {folder}")
        try:
            while len(study.trials) < trials and (text := _next(study, spec, domains, trials, seed)) is not None:
                trial = _run_trial(study, text, parts, folder, seed, device, display)
                _add(study, domains, trial)
                for checkpoint in folder.glob("trials/*/checkpoint.safetensors"):
                    checkpoint.unlink()
                found = trial.error if trial.score is None else f"{trial.score:.4f}"
                display.finish(f"trial {trial.number}", f"{text}: {found} ({trial.number + 1} of {trials})")
        except KeyboardInterrupt:
            display.line("stopped; finished trials are kept, the same command goes on from there")
            raise
        origin = {name: plan[name] for name in ("data", "seed", "space")}
        origin |= {"data_path": str(parts.path), "device": device}
        return write_tuning(folder, spec, _read(study)[:trials], trials, origin, parts.notes)


def _open_parts(data: Path) -> _Parts:
    manifest = read_manifest(data, "sessiongym.prepared")
    check_values(data, manifest, {"notes": list, "fingerprint": str})
    train, valid = (SessionLog.open(data / name) for name in ("train", "valid"))
    if "fingerprint" not in manifest or train.n_items != valid.n_items or not train.n_sessions or not valid.n_sessions:
        raise InputError(
            f"{data}: expected a fingerprint and two splits, with sessions, of one vocabulary; prepare the data again"
        )
    return _Parts(train, valid, manifest["fingerprint"], tuple(manifest.get("notes", ())), data.resolve())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if folder.exists() and not (folder / _STUDY).exists() and any(path.name != "lock" for path in folder.iterdir()):
        raise InputError(f"{folder}: exists and is not a study that `tune` wrote; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder}: another process is at work on this study; wait for it or choose another --out"
            ) from None
        yield


@contextmanager
def _opened_study(folder: Path, plan: dict[str, Any]) -> Iterator[optuna.Study]:
    """The study of the folder, made where there is none. Raises `InputError` where it is of another plan."""
    import optuna
    from sqlalchemy import URL
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = folder / _STUDY
    # Optuna fills in fields in braces.
    url = URL.create("sqlite", database=str(file)).render_as_string().replace("{", "{{").replace("}", "}}")
    try:
        storage = optuna.storages.RDBStorage(url)
        study = optuna.create_study(storage=storage, study_name="tuning", direction="maximize", load_if_exists=True)
        # Killed before this, a study has no trial either.
        if not study.trials:
            study.set_user_attr("plan", plan)
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: cannot be read as a study ({reason}); choose another --out") from None
    try:
        found = study.user_attrs["plan"]
        differs = ", ".join(key for key, value in plan.items() if found.get(key) != value)
        if differs:
            raise InputError(
                f"{folder}: already holds another study (it differs in {differs}); choose another --out or remove it"
            )
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _sampler(seed: int, number: int) -> optuna.samplers.TPESampler:
    """Of one trial. A generator that lived on from trial to trial would not survive the process."""
    from optuna.samplers import TPESampler

    return TPESampler(seed=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))


def _next(study: optuna.Study, spec: ModelSpec, domains: Mapping[str, Domain], trials: int, seed: int) -> str | None:
    """The text to try next; None where every configuration has been tried."""
    finished = study.trials
    if not finished:
        return spec.label
    values = [values for domain in domains.values() if (values := domain.values()) is not None]
    n_outside = 0 if all(getattr(spec.config, field) in domain for field, domain in domains.items()) else 1
    if len(values) == len(domains) and math.prod(map(len, values)) + n_outside <= trials:
        tried = {trial.user_attrs["spec"] for trial in finished}
        grid = (with_changes(spec, dict(zip(domains, point, strict=True))) for point in itertools.product(*values))
        return next((text for text in grid if text not in tried), None)
    import optuna

    memory = optuna.create_study(sampler=_sampler(seed, len(finished)), direction="maximize")
    memory.add_trials(finished)
    drawn = memory.ask({field: _distribution(domain) for field, domain in domains.items()}).params
    return with_changes(spec, {field: _rounded(value, domains[field]) for field, value in drawn.items()})


def _distribution(domain: Domain) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(domain, Range):
        return CategoricalDistribution(domain.options)
    if domain.whole:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def _rounded(value: Any, domain: Domain) -> Any:
    """Floats to three digits: more say nothing and make the text of a model hard to read."""
    if not isinstance(value, float) or not isinstance(domain, Range):
        return value
    return min(max(float(f"{value:.3g}"), domain.low), domain.high)


def _run_trial(
    study: optuna.Study, text: str, parts: _Parts, folder: Path, seed: int, device: str, display: ProgressDisplay
) -> Trial:
    number = len(study.trials)
    again = next((trial for trial in _read(study) if trial.spec == text), None)
    if again is not None:
        # The same configuration with the same seed has the same score.
        return Trial(number, text, again.score, 0.0, again.error)
    job, started = f"trial {number}", time.monotonic()

    def progress(done: int, total: int, words: str) -> None:
        display.update(job, done, total, words)

    try:
        spec = parse_model(text)
        work = folder / "trials" / Cell(spec, parts.fingerprint, seed).name
        score, error = _validation_score(spec, parts, work, seed, device, progress), ""
    except ValueError as refused:
        if number == 0:
            raise
        score, error = None, " ".join(str(refused).split())
    return Trial(number, text, score, time.monotonic() - started, error)


def _validation_score(spec: ModelSpec, parts: _Parts, work: Path, seed: int, device: str, progress: Progress) -> float:
    """What `spec.validate_by` says of the model trained in `work`: the best epoch's figure, which the scalars hold."""
    from .events import validation_scores

    model = spec.create(seed, device)
    histories = None if parts.train.user is None else UserHistories(parts.train, parts.valid)
    validate = partial(validation_scores, log=parts.valid, by=spec.validate_by, histories=histories)
    if not spec.trained:
        return validate(model.fit(parts.train, None))["validation"]
    work.mkdir(parents=True, exist_ok=True)
    # Without `valid`, which agents are probed on, epoch by epoch.
    cast("TrainedModel", model).fit(parts.train, None, validate=validate, folder=work, progress=progress)
    lines = (work / "scalars.jsonl").read_text(encoding="utf-8").splitlines()
    return max(json.loads(line)["validation"] for line in lines)


def _add(study: optuna.Study, domains: Mapping[str, Domain], trial: Trial) -> None:
    """Write a trial in one transaction. Values outside the space, as those of trial 0 may be, are not the sampler's."""
    from optuna.trial import TrialState, create_trial

    params = {}
    if trial.score is not None:
        config = parse_model(trial.spec).config
        params = {field: getattr(config, field) for field in domains if getattr(config, field) in domains[field]}
    study.add_trial(
        create_trial(
            state=TrialState.FAIL if trial.score is None else TrialState.COMPLETE,
            value=trial.score,
            params=params,
            distributions={field: _distribution(domains[field]) for field in params},
            user_attrs={"spec": trial.spec, "seconds": trial.seconds, "error": trial.error},
        )
    )


def _read(study: optuna.Study) -> list[Trial]:
    return [
        Trial(found.number, score=found.values[0] if found.values else None, **found.user_attrs)
        for found in study.trials
    ]
