"""What a study of `tune` found: its files, its views, and how comparisons read it."""

from __future__ import annotations

import csv
import itertools
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any

from ..envs.folders import SCHEMA, write_json
from ..errors import InputError
from .models import ModelSpec, parse_model
from .search_spaces import as_text
from .views import Column, Figure, LineChart, Row, Series, Table, View

TUNED_FORMAT = "sessiongym.tuned"

_PACKAGES = ("sessiongym", "optuna", "torch", "numpy", "numba")
_MEASURES = {
    "purchase": "Recall@5 of purchases on validation",
    "click": "Recall@5 of clicks on validation",
    "mean": "mean of Recall@5 of purchases and of clicks on validation",
}


@dataclass(frozen=True)
class Trial:
    """A finished trial."""

    number: int
    """From 0, which is the model as it was asked for."""
    spec: str
    """The text of the configuration; `parse_model` reads it."""
    score: float | None
    """On validation, a share of 1; None where the training failed."""
    seconds: float
    """Wall time; of an interrupted trial, since it was taken up again."""
    error: str = ""
    """Why it failed."""


@dataclass(frozen=True)
class Tuning:
    """The outcome of a study."""

    best: Trial
    trials: tuple[Trial, ...]
    views: tuple[View, ...]
    """The trials as a table, and the best score so far as a chart."""
    notes: tuple[str, ...]
    """What must be said wherever a score of the study is shown."""
    folder: Path
    """Where `best.json` and `trials.csv` are."""


def tuned_specs(out: Path, data_fingerprint: str) -> dict[str, str]:
    """The text of the best configuration by the text of the model that was tuned, for every ``OUT/MODEL/best.json``.

    Raises `InputError` where there is none, for one that was tuned on other data, and for one that is damaged or whose
    text means another configuration by now.
    """
    found = {}
    for file in sorted(out.glob("*/best.json")):
        content = _read_best(file)
        if content["data"] != data_fingerprint:
            raise InputError(
                f"{file}: tuned on data with fingerprint {content['data']} ({content.get('data_path')}), expected "
                f"{data_fingerprint}; tune on the data that is compared on, or choose another folder"
            )
        try:
            config = asdict(parse_model(content["spec"]).config)
        except InputError as error:
            raise InputError(f"{file}: {error}; tune it again into another folder") from None
        if config != content["config"]:
            raise InputError(
                f"{file}: {content['spec']} is not the configuration that was found any more, since the presets of "
                f"{content['model']} have changed; tune it again into another folder"
            )
        found[content["model"]] = content["spec"]
    if not found:
        raise InputError(
            f"{out}: expected MODEL/best.json, found none; make it with `sessiongym tune MODEL --out {out}`"
        )
    return found


def _read_best(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error}); give the command that made it again") from None
    if not isinstance(content, dict) or content.get("format") != TUNED_FORMAT:
        raise InputError(f"{file}: expected format {TUNED_FORMAT!r}; give the folder that `sessiongym tune` wrote")
    if not isinstance(content.get("schema"), int) or content["schema"] > SCHEMA:
        raise InputError(
            f"{file}: written with schema {content.get('schema')!r}, this version reads up to {SCHEMA}; "
            "upgrade sessiongym or tune again"
        )
    missing = sorted({"model", "spec", "config", "data"} - content.keys())
    if missing:
        raise InputError(f"{file}: expected {', '.join(missing)}, found none; give the command that made it again")
    return content


def write_tuning(
    folder: Path,
    spec: ModelSpec,
    done: Sequence[Trial],
    budget: int,
    origin: Mapping[str, Any],
    data_notes: Sequence[str] = (),
) -> Tuning:
    """Write `best.json` and `trials.csv` of the finished trials, trial 0 first, of which it must be one with a score.

    `origin` says what the scores came from, `data`, `seed` and `space` (text by field) among it; it goes into the file.
    """
    best = max((trial for trial in done if trial.score is not None), key=attrgetter("score"))
    measure = _MEASURES[spec.validate_by]
    notes = (*data_notes, *_notes(spec.label, done, best, budget))
    with _replaced(folder / "trials.csv") as file:
        _write_trials(file, done, list(origin["space"]))
    name, _, preset = spec.label.partition(":")[0].partition("@")
    content = {
        "format": TUNED_FORMAT,
        "schema": SCHEMA,
        "model": spec.label,
        "name": name,
        "preset": preset or "practical",
        "spec": best.spec,
        "config": asdict(parse_model(best.spec).config),
        "measure": measure,
        "preset_score": done[0].score,
        "best_score": best.score,
        "best_trial": best.number,
        "budget": budget,
        "trials": len(done),
        "failed": sum(trial.score is None for trial in done),
        "seconds": round(sum(trial.seconds for trial in done), 1),
        **origin,
        "versions": {package: version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "notes": list(notes),
    }
    with _replaced(folder / "best.json") as file:
        write_json(file, content)
    return Tuning(best, tuple(done), _views(spec.label, done, measure, notes), notes, folder)


@contextmanager
def _replaced(file: Path) -> Iterator[Path]:
    """A file beside it that takes its place when the block ends well."""
    temporary = file.with_name(f".{file.name}")
    yield temporary
    os.replace(temporary, file)


def _notes(model: str, done: Sequence[Trial], best: Trial, budget: int) -> Iterator[str]:
    count = f"{len(done)} trial" + ("s" if len(done) > 1 else "")
    ended = f"; the space holds no more, of a budget of {budget}" if len(done) < budget else ""
    failed = sum(trial.score is None for trial in done)
    yield f"Budget: {count} of one training seed each, {failed} of them failed{ended}."
    yield (
        "The highest of several validation scores is biased upwards, the more so the more were tried: it is a means of "
        "choosing and no result. Compare models on the test split."
    )
    if best.number == 0:
        yield f"No trial was better than {model} as it is."


def _write_trials(file: Path, done: Sequence[Trial], fields: Sequence[str]) -> None:
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["trial", "score", "best_so_far", "seconds", *fields, "spec", "error"])
        for trial, best in zip(done, _best_so_far(done), strict=True):
            # A configuration that the model refuses is only a text.
            config = None if trial.score is None else parse_model(trial.spec).config
            values = [as_text(getattr(config, field)) if config else "" for field in fields]
            score = "" if trial.score is None else trial.score
            writer.writerow([trial.number, score, best, round(trial.seconds, 1), *values, trial.spec, trial.error])


def _best_so_far(done: Sequence[Trial]) -> list[float]:
    return list(itertools.accumulate((trial.score or 0.0 for trial in done), max))


def _views(model: str, done: Sequence[Trial], measure: str, notes: tuple[str, ...]) -> tuple[View, ...]:
    name = "tuning-" + re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    rows = tuple(Row(trial.spec, (Figure(trial.number), Figure(trial.score), Figure(trial.seconds))) for trial in done)
    columns = (
        Column("trial", unit="", decimals=0, better="neither"),
        Column("validation"),
        Column("seconds", unit="", decimals=1, better="neither"),
    )
    explained = (f"Validation: {measure}.", *notes)
    number = tuple(float(trial.number) for trial in done)
    series = (
        Series("best so far", number, tuple(_best_so_far(done))),
        Series("trial", number, tuple(trial.score for trial in done)),
    )
    return (
        Table(name, f"Tuning {model}", columns, rows, heading="configuration", notes=explained),
        LineChart(f"{name}-best", f"Tuning {model}", "trial", measure, series, notes=explained),
    )
