"""Judges of runs: which one a seed gives, and a reset without a seed or of some lanes only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import numpy as np
from gymnasium.vector import VectorEnv

from .compare import difference, rows_difference, trace_difference
from .play import Case, Moment, copies, opened, play
from .report import NoVerdict, one_line


def int_seed(case: Case) -> str:
    with opened(case.make) as env:
        for which in ("a fresh environment", "the same environment again"):
            found = copies(play(env, case.mode, case.actions, case.seed))
            if fault := trace_difference(found, case.trace):
                return f"{which}: {fault}"
    return ""


def equal_to_single(case: Case) -> str:
    return trace_difference(case.trace, case.reference_trace)


def int_seed_is_list(case: Case) -> str:
    case.need("int_seed")
    return trace_difference(_play_list(case, list(range(case.seed, case.seed + case.num_envs))), case.trace)


def list_seeds(case: Case) -> str:
    # Apart and falling, so that nothing derived from the first or the least of them will do.
    seeds = [case.seed + 10 * lane + 5 for lane in reversed(range(case.num_envs))]
    found = _play_list(case, seeds)
    if fault := trace_difference(case.play(case.make, seeds), found):
        return f"the same list again: {fault}"
    return trace_difference(found, case.play(case.make_reference, seeds)) if "equal_to_single" in case.passed else ""


def _play_list(case: Case, seeds: list[int]) -> list[Moment]:
    with opened(case.make) as env:
        moments = play(env, case.mode, case.actions, seeds)
        try:
            reset = next(moments).copy()
        except Exception as error:
            raise NoVerdict("not supported", f"reset(seed={seeds}) raised {one_line(error)}") from error
        return [reset, *copies(moments)]


def other_seed(case: Case) -> str:
    case.need("int_seed")
    other = case.seed + case.num_envs
    found, expected = case.play(case.make, other), case.play(case.make_reference, other)
    if "equal_to_single" in case.passed:
        return trace_difference(found, expected)
    if not trace_difference(found, case.trace) and trace_difference(expected, case.reference_trace):
        return f"seeds {case.seed} and {other} give the same run, for the single environments they do not"
    return ""


def unseeded_reset(case: Case) -> str:
    case.need("int_seed")
    with opened(case.make) as env:
        env.reset()
    seeded, found = _two_plays(case, case.make)
    if fault := trace_difference(_two_plays(case, case.make)[1], found):
        return f"reset() after reset(seed={case.seed}) is not reproducible: {fault}"
    expected_seeded, expected = _two_plays(case, case.make_reference)
    if "equal_to_single" in case.passed:
        return trace_difference(found, expected)
    if _same_start(found, seeded) and not _same_start(expected, expected_seeded):
        return f"reset() starts reset(seed={case.seed}) again, for the single environments it goes on"
    return ""


def _two_plays(case: Case, make: Callable[[], VectorEnv]) -> tuple[list[Moment], list[Moment]]:
    """A seeded play, and after it one from an unseeded reset."""
    half = len(case.actions) // 2
    with opened(make) as env:
        seeded = copies(play(env, case.mode, case.actions[:half], case.seed))
        return seeded, copies(play(env, case.mode, case.actions[half:], None))


def _same_start(first: list[Moment], second: list[Moment]) -> bool:
    return not difference(first[0].observation, second[0].observation, "observation")


def reset_mask(case: Case) -> str:
    case.need("int_seed")
    if fault := _one_masked_reset(case):
        return fault
    if "equal_to_single" not in case.passed:
        return ""
    rng = np.random.default_rng(case.seed)
    masks = [rng.random(case.num_envs) < 0.05 for _ in case.actions]
    fault = trace_difference(case.play(case.make, masks=masks), case.play(case.make_reference, masks=masks))
    return f"a run with masked resets: {fault}" if fault else ""


def _one_masked_reset(case: Case) -> str:
    # After a step at which nothing ended every lane is somewhere in an episode.
    steps = [moment for moment in case.trace if moment.is_step]
    step = next((t for t, moment in enumerate(steps) if not moment.ended.any()), 0)
    mask = np.arange(case.num_envs) % 2 == 0
    shown = []
    for options in ({"reset_mask": mask.copy()}, None):
        with opened(case.make) as env:
            last = copies(play(env, case.mode, case.actions[: step + 1], case.seed))[-1]
            shown.append(case.rows(env.reset(options=options)[0]))
    masked, whole = shown
    before = case.rows(last.observation)
    where = f"reset of lanes {np.flatnonzero(mask)} after step {step}"
    if fault := rows_difference(masked, before, np.flatnonzero(~mask)):
        return f"{where}, outside the mask, {fault}"
    lanes = np.flatnonzero(mask)
    if rows_difference(whole, before, lanes) and not rows_difference(masked, before, lanes):
        return f"{where}: they were not reset"
    return ""


def bad_reset_mask(case: Case) -> str:
    n = case.num_envs
    bad = {
        "that is a list": [True] * n,
        "of another length": np.ones(n + 1, dtype=bool),
        "of dtype int": np.ones(n, dtype=int),
        "without True": np.zeros(n, dtype=bool),
    }
    with opened(case.make) as env:
        env.reset(seed=case.seed)
        for what, mask in bad.items():
            with suppress(Exception):
                env.reset(options={"reset_mask": mask})
                return f"a mask {what}: expected an exception, found none"
    return ""
