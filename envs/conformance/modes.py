"""Judges of the autoreset modes: ends and the episodes after them, in each mode and across all."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import concatenate, create_empty_array, iterate

from .compare import array_fault, difference, rows_difference, space_fault, trace_difference
from .play import Case, Moment, copies, opened, play
from .report import NoVerdict, short


def autoreset(case: Case) -> str:
    case.need("int_seed")
    # Without an end there is nothing to judge.
    case.first_end()
    judge_of_mode = {
        AutoresetMode.NEXT_STEP: _next_step,
        AutoresetMode.SAME_STEP: _same_step,
        AutoresetMode.DISABLED: _disabled,
    }
    return judge_of_mode[case.mode](case)


def _next_step(case: Case) -> str:
    for previous, moment in pairwise(case.trace):
        for lane in np.flatnonzero(previous.ended):
            reward, ended = moment.reward[lane], moment.ended[lane]
            if np.any(reward != 0) or ended:
                found = f"reward {reward}{' and an end' if ended else ''}"
                return f"{moment.call}, lane {lane}, the step after an end: expected reward 0 and no end, found {found}"
    if fault := trace_difference(case.play(case.make, actions=_other_actions_after_ends(case)), case.trace):
        return f"the action of the step after an end counted: {fault}"
    if "reset_mask" in case.passed:
        end = case.first_end()
        mask, after = case.trace[end].ended, case.trace[end + 1]
        with opened(case.make) as env:
            copies(play(env, case.mode, case.actions[:end], case.seed))
            expected = case.rows(env.reset(options={"reset_mask": mask.copy()})[0])
        if fault := rows_difference(case.rows(after.observation), expected, np.flatnonzero(mask)):
            return f"{after.call}, against a reset of these lanes, {fault}"
    return ""


def _other_actions_after_ends(case: Case) -> list[Any]:
    """The actions, but others for the lanes that ended in the step before."""
    out = []
    for moment, action, other in zip(case.trace, case.actions, case.other_actions, strict=False):
        rows, other_rows = (list(iterate(case.action_space, a)) for a in (action, other))
        for lane in np.flatnonzero(moment.ended):
            rows[lane] = other_rows[lane]
        empty = create_empty_array(case.single_action_space, case.num_envs)
        out.append(concatenate(case.single_action_space, rows, empty))
    return out


def _same_step(case: Case) -> str:
    for moment in case.trace[1:]:
        for key in ("final_obs", "final_info"):
            mask = moment.info.get(f"_{key}", np.zeros(case.num_envs, dtype=bool))
            if fault := difference(mask, moment.ended, f"{moment.call}, info['_{key}']"):
                return fault
        if moment.ended.any() and (fault := _final_fault(case, moment)):
            return f"{moment.call}, {fault}"
    return ""


def _final_fault(case: Case, moment: Moment) -> str:
    final_obs, final_info = moment.info["final_obs"], moment.info["final_info"]
    if not isinstance(final_info, dict):
        return f"info['final_info']: expected a dict, found {type(final_info).__name__}"
    if fault := array_fault(final_obs, (case.num_envs,), object, "info['final_obs']"):
        return fault
    for lane, ended in enumerate(moment.ended):
        where = f"info['final_obs'], lane {lane}"
        if not ended and final_obs[lane] is not None:
            return f"{where}: expected None where nothing ended, found {short(final_obs[lane])}"
        if ended and (fault := space_fault(case.single_observation_space, final_obs[lane], where, of_lanes=False)):
            return fault
    return ""


def _disabled(case: Case) -> str:
    for previous, moment in pairwise(case.trace):
        if keys := {"final_obs", "final_info"} & moment.info.keys():
            return f"{moment.call}, info: {sorted(keys)} are for SAME_STEP"
        if previous.ended.any():
            rows, expected = case.rows(moment.observation), case.rows(previous.observation)
            if fault := rows_difference(rows, expected, np.flatnonzero(~previous.ended)):
                return f"{moment.call}, outside the mask, {fault}"
    return ""


def modes_agree(cases: list[Case]) -> str:
    first, *others = cases
    if not others:
        raise NoVerdict("not supported", f"{first.mode.name} is the only mode")
    for case in cases:
        case.need("int_seed")
    end = first.first_end()
    for case in others:
        where = f"found in {case.mode.name}, expected as in {first.mode.name}"
        found, expected = ([*c.trace[:end], c.trace[end]._replace(observation=None, info={})] for c in (case, first))
        if fault := trace_difference(found, expected):
            return f"{where}: {fault}"
        if fault := rows_difference(_last_rows(case, end), _last_rows(first, end), np.arange(case.num_envs)):
            return f"{where}: {first.trace[end].call}, last {fault}"
    by_mode = {case.mode: case for case in cases}
    same_step, disabled = by_mode.get(AutoresetMode.SAME_STEP), by_mode.get(AutoresetMode.DISABLED)
    if same_step and disabled:
        found, expected = (c.rows(c.trace[t].observation) for c, t in ((same_step, end), (disabled, end + 1)))
        if fault := rows_difference(found, expected, np.flatnonzero(first.trace[end].ended)):
            return f"found in SAME_STEP, expected as in DISABLED: {first.trace[end].call}, next episode's {fault}"
    return ""


def _last_rows(case: Case, number: int) -> list[Any]:
    """The observation of each lane after a step, before any reset."""
    moment = case.trace[number]
    rows = case.rows(moment.observation)
    if case.mode is AutoresetMode.SAME_STEP:
        for lane in np.flatnonzero(moment.ended):
            rows[lane] = moment.info["final_obs"][lane]
    return rows
