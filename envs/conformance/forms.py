"""Judges of the form: modes, spaces and arrays are what they are declared to be."""

from __future__ import annotations

from typing import Any

import numpy as np

from .compare import array_fault, first, space_fault, value_keys
from .play import Case, opened
from .report import form, short


def metadata(case: Case) -> str:
    with opened(case.make) as env:
        for where, declared in (
            ("metadata['autoreset_mode']", env.metadata.get("autoreset_mode")),
            ("attribute autoreset_mode", getattr(env, "autoreset_mode", case.mode)),
        ):
            if declared is not case.mode:
                return f"{where}: expected {case.mode}, found {declared!r}"
    return ""


def spaces(case: Case) -> str:
    names = ("num_envs", "single_observation_space", "single_action_space", "observation_space", "action_space")
    with opened(case.make) as env:
        for name in names:
            expected, found = getattr(case, name), getattr(env, name)
            if found != expected:
                return f"{name}: expected {short(expected)}, found {short(found)}"
    return ""


def observations(case: Case) -> str:
    return first(
        space_fault(case.observation_space, moment.observation, f"{moment.call}, observation") for moment in case.trace
    )


def step_arrays(case: Case) -> str:
    return first(
        array_fault(getattr(moment, name), (case.num_envs,), dtype, f"{moment.call}, {name}")
        for moment in case.trace
        if moment.is_step
        for name, dtype in (("reward", np.floating), ("terminated", bool), ("truncated", bool))
    )


def info_masks(case: Case) -> str:
    return first(_mask_fault(moment.info, case.num_envs, f"{moment.call}, info") for moment in case.trace)


def _mask_fault(info: dict[str, Any], num_envs: int, where: str) -> str:
    for key in sorted(value_keys(info)):
        value, inner = info[key], f"{where}[{key!r}]"
        if fault := array_fault(info.get(f"_{key}"), (num_envs,), bool, f"{where}['_{key}']"):
            return fault
        if isinstance(value, dict):
            if fault := _mask_fault(value, num_envs, inner):
                return fault
        elif not (isinstance(value, np.ndarray) and value.shape[:1] == (num_envs,)):
            return f"{inner}: expected an array of {num_envs} entries, found {form(value)}"
    return ""
