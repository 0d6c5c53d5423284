"""What a folder that this package wrote is, in words: prepared data, one log, a run or a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .envs.folders import SCHEMA, read_manifest
from .envs.log import PreparedData, SessionLog
from .errors import InputError


def describe_folder(folder: Path) -> str:
    """A few lines for people. Raises `InputError` for a folder that this package did not write."""
    file = folder / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        kind = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{file}: not readable as a manifest, so {folder} is not a folder that sessiongym wrote; give one that "
            "`prepare`, `shop`, `train` or `compare` wrote"
        ) from None
    match kind:
        case "sessiongym.prepared":
            lines = _prepared(PreparedData.open(folder))
        case "sessiongym.log":
            lines = [f"session log, schema {SCHEMA}", _counts("all", SessionLog.open(folder))]
        case "sessiongym.run":
            manifest = read_manifest(folder, kind)
            lines = [f"run of {manifest['model']}, seed {manifest['seed']}, trained on {manifest['data_path']}"]
            lines.append(f"{manifest['seconds']} s on {manifest['device']}; configuration: {manifest['config']}")
        case "sessiongym.comparison":
            manifest = read_manifest(folder, kind)
            lines = [f"comparison of {', '.join(manifest['models'])}; {manifest['seeds']} seed(s)"]
            lines.append(f"data: {manifest['data_path']}")
        case _:
            raise InputError(f"{file}: unknown format {kind!r}; upgrade sessiongym")
    return "\n".join([f"{folder}: {lines[0]}", *lines[1:], *(f"note: {note}" for note in manifest.get("notes", ()))])


def _prepared(data: PreparedData) -> list[str]:
    manifest = data.manifest
    lines = [f"prepared from {manifest['source']['name']}, fingerprint {data.fingerprint()}"]
    lines += [_step(step) for step in manifest["steps"]]
    for dropped in manifest["dropped"]:
        lines.append(
            f"  dropped {dropped['events']:>11,} events, {dropped['sessions']:,} sessions: {dropped['reason']}"
        )
    lines.append(f"split: {manifest['split']}; {manifest['n_train_items']:,} training items of {manifest['n_items']:,}")
    if "paper" in manifest:
        for split, counts in manifest["paper"].items():
            lines.append(f"{split}: {counts['ours']}, the paper has {counts['paper']}")
    overlap = manifest["overlap"]
    shares = ", ".join(f"{overlap[name]['share']:.1%} of {name}" for name in ("valid", "test"))
    lines.append(f"sessions that also occur in train, with {overlap['content']}: {shares}")
    return lines


def _step(step: dict[str, Any]) -> str:
    counts = ", ".join(f"{step[name]:>9,} {name}" for name in ("sessions", "events", "clicks", "purchases", "items"))
    return f"  {step['step']:<52} {counts}"


def _counts(name: str, log: SessionLog) -> str:
    return (
        f"  {name}: {log.n_sessions:,} sessions, {log.n_events:,} events, {log.n_purchases:,} purchases, "
        f"{log.n_items:,} items"
    )
