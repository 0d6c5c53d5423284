"""Where two plays differ, or a value has not the form it should have: a line that says so, or an empty one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium import spaces

from .play import Moment
from .report import form, short

RTOL, ATOL = 1e-6, 1e-8
"""Floats that must be equal may differ by ATOL + RTOL * |expected|; everything else must be equal exactly."""


def first(faults: Iterable[str]) -> str:
    return next(filter(None, faults), "")


def trace_difference(found: list[Moment], expected: list[Moment]) -> str:
    return first(_moment_difference(f, e) for f, e in zip(found, expected, strict=False))


def _moment_difference(found: Moment, expected: Moment) -> str:
    fault = first(
        difference(getattr(found, name), getattr(expected, name), name)
        for name in ("observation", "reward", "terminated", "truncated")
    ) or _info_difference(found.info, expected.info, "info")
    return f"{expected.call}, {fault}" if fault else ""


def rows_difference(found: list[Any], expected: list[Any], lanes: np.ndarray) -> str:
    """Of observations [B], one a lane, in some lanes."""
    return first(_lane_difference(found, expected, "observation", lane) for lane in lanes)


def _info_difference(found: dict[str, Any], expected: dict[str, Any], where: str) -> str:
    """Values count only where their mask is True, and a key without a True might as well be absent."""
    for key in sorted(value_keys(found) | value_keys(expected)):
        masks = [np.asarray(info.get(f"_{key}", False), dtype=bool) for info in (found, expected)]
        if not any(mask.any() for mask in masks):
            continue
        shape = max((mask.shape for mask in masks), key=len)
        masks = [mask if mask.ndim else np.zeros(shape, dtype=bool) for mask in masks]
        if fault := difference(*masks, where=f"{where}['_{key}']"):
            return fault
        inner = f"{where}[{key!r}]"
        if isinstance(found[key], dict) and isinstance(expected[key], dict):
            fault = _info_difference(found[key], expected[key], inner)
        else:
            lanes = np.flatnonzero(masks[1])
            fault = first(_lane_difference(found[key], expected[key], inner, lane) for lane in lanes)
        if fault:
            return fault
    return ""


def value_keys(info: dict[str, Any]) -> set[str]:
    """The keys that are no masks of others, without the one that belongs to wrappers."""
    masks = {f"_{key}" for key in info}
    return {key for key in info if key not in masks} - {"episode", "_episode"}


def _lane_difference(found: Any, expected: Any, where: str, lane: Any) -> str:
    return difference(found[lane], expected[lane], f"{where}, lane {lane}", of_lanes=False)


def difference(found: Any, expected: Any, where: str, of_lanes: bool = True) -> str:
    """The first difference of two nests of dicts, sequences and arrays, [B, ...] if they are `of_lanes`."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if found.keys() != expected.keys():
            return f"{where}: expected keys {sorted(expected)}, found {sorted(found)}"
        return first(difference(found[key], expected[key], f"{where}[{key!r}]", of_lanes) for key in expected)
    if isinstance(expected, (tuple, list)) and isinstance(found, (tuple, list)) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return first(difference(f, e, f"{where}[{number}]", of_lanes) for number, (f, e) in pairs)
    found_array, expected_array = np.asarray(found), np.asarray(expected)
    if found_array.shape != expected_array.shape:
        return f"{where}: expected {form(expected)}, found {form(found)}"
    same = np.asarray(found_array == expected_array)
    kinds = {found_array.dtype.kind, expected_array.dtype.kind}
    if not same.all() and "f" in kinds and kinds <= set("fiub"):
        same = np.isclose(found_array, expected_array, rtol=RTOL, atol=ATOL, equal_nan=True)
    if same.all():
        return ""
    index = tuple(np.argwhere(~same)[0])
    values = f"expected {short(expected_array[index])}, found {short(found_array[index])}"
    return f"{where}{_place(index, of_lanes)}: {values}"


def _place(index: tuple[int, ...], of_lanes: bool) -> str:
    lane, entry = (index[:1], index[1:]) if of_lanes else ((), index)
    named = {"lane": lane, "entry": entry}
    return "".join(f", {name} {' '.join(map(str, part))}" for name, part in named.items() if part)


def space_fault(space: spaces.Space, value: Any, where: str, of_lanes: bool = True) -> str:
    """`Space.contains`, but with the very dtype of the space, and a reason."""
    if isinstance(space, spaces.Dict) and isinstance(value, dict) and value.keys() == space.spaces.keys():
        return first(space_fault(part, value[key], f"{where}[{key!r}]", of_lanes) for key, part in space.items())
    if isinstance(space, spaces.Tuple) and isinstance(value, tuple) and len(value) == len(space):
        parts = enumerate(zip(space, value, strict=True))
        return first(space_fault(part, v, f"{where}[{number}]", of_lanes) for number, (part, v) in parts)
    if isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        if fault := array_fault(value, space.shape, space.dtype, where):
            return fault
    if isinstance(space, spaces.Box):
        outside = np.argwhere(~((value >= space.low) & (value <= space.high)))
        if len(outside):
            index = tuple(outside[0])
            bounds = f"{space.low[index]}..{space.high[index]}"
            return f"{where}{_place(index, of_lanes)}: expected {bounds}, found {np.asarray(value)[index]}"
    return "" if space.contains(value) else f"{where}: {short(value)} is outside {short(space)}"


def array_fault(value: Any, shape: tuple[int, ...], dtype: Any, where: str) -> str:
    if isinstance(value, np.ndarray) and value.shape == shape and np.issubdtype(value.dtype, dtype):
        return ""
    return f"{where}: expected {getattr(dtype, '__name__', dtype)} {shape}, found {form(value)}"
