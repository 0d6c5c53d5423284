"""`check_vector_env`: does a Gymnasium `VectorEnv` do what `SyncVectorEnv` over its single environments does?"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from ...errors import InputError
from . import forms, modes, runs, uses
from .play import Case, opened
from .report import NoVerdict, VectorEnvError, VectorEnvFinding, VectorEnvReport, one_line

_JUDGES = (
    forms.metadata,
    forms.spaces,
    forms.observations,
    forms.step_arrays,
    forms.info_masks,
    runs.int_seed,
    runs.equal_to_single,
    runs.int_seed_is_list,
    runs.list_seeds,
    runs.other_seed,
    runs.unseeded_reset,
    runs.reset_mask,
    runs.bad_reset_mask,
    modes.autoreset,
    uses.arrays_owned,
    uses.pickling,
    uses.spec,
    uses.record_episode_statistics,
    uses.normalize_reward,
    uses.closing,
)
"""Each is named after the property that it judges in one mode, and may ask for properties judged before it."""


def check_vector_env(
    make_single: Callable[..., gym.Env],
    make_vector: Callable[[int, AutoresetMode], VectorEnv],
    *,
    num_envs: int = 3,
    n_steps: int = 100,
    seed: int = 0,
    raise_on_failure: bool = False,
) -> VectorEnvReport:
    """Does a vector environment of NumPy arrays keep Gymnasium's contract? A finding for each property and mode.

    ``make_single(lane, lanes)`` builds the environment that one lane of so many must equal; a callable without
    arguments makes every lane alike. ``make_vector(num_envs, autoreset_mode)`` builds the environment under test: what
    raises there, or comes back in another mode, is "not supported" (all three: a failure). B is `num_envs`.

    - mode: the autoreset mode can be had;
    - metadata: ``metadata["autoreset_mode"]`` is the enum, and so is the attribute of that name where there is one;
    - spaces: the single spaces are those of `make_single`, the others their batches;
    - observations: of the dtype and shape that the space says, and inside it;
    - step_arrays: rewards [B] floating, terminated and truncated [B] bool;
    - info_masks: every info value has B entries, or is a dict of such, and beside it a mask ``_key`` [B] bool
      (`episode` and `_episode` belong to wrappers);
    - int_seed: the same seed gives the same run, on a fresh environment and on the same one again;
    - equal_to_single: observations, rewards, ends and infos (where their mask is True) are those of `SyncVectorEnv`;
    - int_seed_is_list: an int seed s is the list ``[s, s + 1, ...]``;
    - list_seeds (*): a list of seeds, one a lane, gives the same run again;
    - other_seed (*): another seed gives another run if it does so for the single environments;
    - unseeded_reset (*): `reset()` works first of all, and after a seeded one goes on reproducibly, not from its start;
    - reset_mask (*): ``options={"reset_mask": mask}`` resets these lanes and no others;
    - bad_reset_mask: a list, another length, another dtype and a mask without True are refused;
    - autoreset: NEXT_STEP: the step after an end has reward 0, is not an end, ignores the action and observes what a
      reset of these lanes observes (if reset_mask holds). SAME_STEP: `final_obs` is an object array of observations,
      None elsewhere, `final_info` a dict, the masks of both are the ends. DISABLED: resetting the lanes that ended
      leaves the others alone;
    - arrays_owned: writing into what was returned changes nothing later, and nothing later changes it;
    - pickling: a pickled copy goes on as the original does;
    - spec: ``gymnasium.make_vec(env.spec)`` behaves the same;
    - record_episode_statistics: that wrapper's returns and lengths are those counted by hand;
    - normalize_reward: that wrapper's rewards keep their shape and are finite;
    - closing: works, twice, and sets `closed`;
    - modes_agree: up to the first end the modes show the same, the last observation (`final_obs` in SAME_STEP)
      included; the next episode begins in SAME_STEP as after a reset in DISABLED.

    (*) Where equal_to_single holds, the run must be that of `SyncVectorEnv` here too.

    Floats are compared within RTOL and ATOL. Stepping an ended lane in DISABLED is undefined and not tried. Raises
    `VectorEnvError`, an AssertionError, with the report if `raise_on_failure` is on and a property fails; `InputError`
    for fewer than two lanes or steps and a `make_single` of another form; whatever `make_single` raises.
    """
    if num_envs < 2 or n_steps < 2:
        raise InputError(
            f"check_vector_env: expected num_envs and n_steps of at least 2, found {num_envs} and {n_steps}; "
            "with one lane or step there is nothing to tell apart"
        )
    env_fns = _lane_makers(make_single, num_envs)
    findings: list[VectorEnvFinding] = []
    cases: list[Case] = []
    name = "vector environment"
    for mode in AutoresetMode:
        try:
            name = _name_in_mode(make_vector, num_envs, mode)
        except Exception as error:
            findings.append(VectorEnvFinding("mode", mode, "not supported", one_line(error)))
            continue
        findings.append(VectorEnvFinding("mode", mode, "pass"))
        cases.append(_case(env_fns, make_vector, mode, n_steps, seed))
        findings += _findings(cases[-1])
    if cases:
        findings.append(_finding(modes.modes_agree, cases, None))
    else:
        findings = [replace(finding, status="fail") for finding in findings]
    report = VectorEnvReport(name, tuple(findings))
    if raise_on_failure and report.failed:
        raise VectorEnvError(report)
    return report


def _lane_makers(make_single: Callable[..., gym.Env], num_envs: int) -> list[Callable[[], gym.Env]]:
    signature = inspect.signature(make_single)
    if _takes(signature):
        return [make_single] * num_envs
    if _takes(signature, 0, num_envs):
        return [partial(make_single, lane, num_envs) for lane in range(num_envs)]
    raise InputError(
        f"check_vector_env: expected make_single() or make_single(lane, lanes), found make_single{signature}"
    )


def _takes(signature: inspect.Signature, *arguments: int) -> bool:
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def _name_in_mode(make_vector: Callable[[int, AutoresetMode], VectorEnv], num_envs: int, mode: AutoresetMode) -> str:
    """The name of the environment; raises whatever says that it cannot be had in this mode."""
    with opened(partial(make_vector, num_envs, mode)) as env:
        if not isinstance(env, VectorEnv):
            raise TypeError(f"expected a gymnasium.vector.VectorEnv, found {type(env).__name__}")
        found = _declared_mode(env)
        if found is not mode:
            raise ValueError(f"asked for {mode.name}, found {found.name}")
        return str(env)


def _declared_mode(env: VectorEnv) -> AutoresetMode:
    """What the environment says in any form, so that a badly spelt mode fails "metadata" and is judged nevertheless."""
    for declared in (env.metadata.get("autoreset_mode"), getattr(env, "autoreset_mode", None)):
        with suppress(ValueError):
            return AutoresetMode(declared)
    # Gymnasium's wrappers assume this one as well.
    return AutoresetMode.NEXT_STEP


def _case(
    env_fns: list[Callable[[], gym.Env]],
    make_vector: Callable[[int, AutoresetMode], VectorEnv],
    mode: AutoresetMode,
    n_steps: int,
    seed: int,
) -> Case:
    make_reference = partial(SyncVectorEnv, env_fns, autoreset_mode=mode)
    with opened(make_reference) as reference:
        observation_space, action_space = reference.single_observation_space, reference.single_action_space
    # Gymnasium's spaces carry a generator; a copy leaves that of the environment alone.
    sampled_space = deepcopy(batch_space(action_space, len(env_fns)))
    sampled_space.seed(seed)
    actions, other_actions = ([sampled_space.sample() for _ in range(n_steps)] for _ in range(2))
    return Case(
        make=partial(make_vector, len(env_fns), mode),
        make_reference=make_reference,
        mode=mode,
        seed=seed,
        num_envs=len(env_fns),
        single_observation_space=observation_space,
        single_action_space=action_space,
        actions=actions,
        other_actions=other_actions,
    )


def _findings(case: Case) -> Iterator[VectorEnvFinding]:
    for judge in _JUDGES:
        finding = _finding(judge, case, case.mode)
        if finding.status == "pass":
            case.passed.add(finding.property)
        yield finding


def _finding(judge: Callable[[Any], str], subject: Any, mode: AutoresetMode | None) -> VectorEnvFinding:
    """A judge returns what is wrong, or nothing; what it did not expect to be raised is wrong as well."""
    name = judge.__name__
    try:
        detail = judge(subject)
    except NoVerdict as verdict:
        return VectorEnvFinding(name, mode, verdict.status, verdict.reason)
    except Exception as error:
        return VectorEnvFinding(name, mode, "fail", f"raised {one_line(error)}")
    return VectorEnvFinding(name, mode, "fail" if detail else "pass", detail)
