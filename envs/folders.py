"""Folders on disk: a manifest that says what they are, and writing them whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError

SCHEMA = 1
"""Version of the on-disk layout; a folder with a newer one is refused."""


def read_manifest(folder: Path, expected_format: str) -> dict[str, Any]:
    """The manifest of a folder written by this package, or an `InputError` that says what the folder is instead."""
    file = folder / "manifest.json"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; make one with `sessiongym prepare` or `sessiongym shop`")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{file}: not found, so this is not a folder that sessiongym wrote; make one with `sessiongym prepare`"
        ) from None
    except (OSError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read ({error}); prepare the data again") from None
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise InputError(f"{file}:{line}: not valid JSON ({error}); prepare the data again") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != expected_format:
        raise InputError(f"{file}: expected format {expected_format!r}, found {found!r}; give the right folder")
    if not isinstance(manifest.get("schema"), int) or manifest["schema"] > SCHEMA:
        raise InputError(
            f"{file}: written with schema {manifest.get('schema')!r}, this version reads up to {SCHEMA}; "
            "upgrade sessiongym or prepare the data again"
        )
    return manifest


def check_values(folder: Path, manifest: dict[str, Any], types: dict[str, type]) -> None:
    """Raises `InputError` for a value that is there and of another type; lists are of texts."""
    for name, wanted in types.items():
        value = manifest.get(name, wanted())
        of_texts = not isinstance(value, list) or all(isinstance(text, str) for text in value)
        if type(value) is not wanted or not of_texts:
            raise InputError(
                f"{folder / 'manifest.json'}: {name} must be {wanted.__name__}, found {value!r}; prepare the data again"
            )


def write_json(file: Path, content: dict[str, Any] | list[Any]) -> None:
    """JSON for people: indented, keys in the order given."""
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_new_folder(folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """`folder` as a path. Raises `InputError` where it exists and `overwrite` is off, or it holds something foreign."""
    target = Path(folder)
    if target.exists() and not overwrite:
        raise InputError(f"{target}: already exists and is not overwritten; choose another --out or pass --overwrite")
    if target.exists() and not _is_ours(target):
        raise InputError(f"{target}: not a folder that sessiongym wrote, so it is not replaced; choose another --out")
    return target


def check_same_result(
    out: Path, expected_format: str, what: str, plan: dict[str, Any], overwrite: bool = False
) -> None:
    """Raises `InputError` where `out` is not such a result, or one of another `plan` and `overwrite` is off.

    `what` names it with its article: "a comparison". What the same plan made may be made anew.
    """
    if not out.exists():
        return
    try:
        found = read_manifest(out, expected_format)
    except InputError:
        raise InputError(
            f"{out}: exists and is not {what} that this version can read, so it is not replaced; choose another --out"
        ) from None
    differs = [key for key, value in plan.items() if found.get(key) != value]
    if differs and not overwrite:
        raise InputError(
            f"{out}: already holds another {what.partition(' ')[2]} (it differs in {', '.join(differs)}); choose "
            "another --out or pass --overwrite (finished cells are kept and reused)"
        )


def _is_ours(folder: Path) -> bool:
    try:
        if folder.is_dir() and not any(folder.iterdir()):
            return True
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return str(manifest["format"]).startswith("sessiongym.")
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def new_folder(folder: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when the block ends well, and vanishes otherwise.

    Raises `InputError` where `folder` exists and `overwrite` is off.
    """
    target = check_new_folder(folder, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        if target.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            os.rename(target, retired / "old")
            os.rename(temporary, target)
            shutil.rmtree(retired)
        else:
            os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
