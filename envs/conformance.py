"""`check_vector_env`: does a Gymnasium `VectorEnv` do what `SyncVectorEnv` over its single environments does?

Gymnasium checks single environments (`gymnasium.utils.env_checker.check_env`) but no vector ones. Here one function
judges one property; all of them replay the same seeded actions, so that a difference has a step and a lane.
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from gymnasium.wrappers.vector import NormalizeReward, RecordEpisodeStatistics

from ..errors import InputError

RTOL, ATOL = 1e-6, 1e-8
"""Floats that must be equal may differ by ATOL + RTOL * |expected|; everything else must be equal exactly."""

Status = Literal["pass", "fail", "not supported", "not judged"]


@dataclass(frozen=True)
class VectorEnvFinding:
    """What `check_vector_env` found about one property."""

    property: str
    """One of those that `check_vector_env` lists."""
    mode: AutoresetMode | None
    """The autoreset mode it was found in; None: about all of them together."""
    status: Status
    """"not supported": the environment refuses; "not judged": the run, or an earlier failure, left nothing to judge."""
    detail: str = ""
    """Expected and found, with the step and the lane; why, where it is not a verdict."""

    def __str__(self) -> str:
        status = "FAIL" if self.status == "fail" else self.status
        return f"  {status:13}  {self.mode.name if self.mode else 'all':9}  {self.property:25}  {self.detail}".rstrip()


@dataclass(frozen=True)
class VectorEnvReport:
    """The findings of `check_vector_env`; `print` shows them one a line."""

    name: str
    findings: tuple[VectorEnvFinding, ...]

    @property
    def failed(self) -> list[VectorEnvFinding]:
        return [finding for finding in self.findings if finding.status == "fail"]

    def __str__(self) -> str:
        statuses = [finding.status for finding in self.findings]
        summary = ", ".join(f"{statuses.count(status)} {status}" for status in get_args(Status))
        return "\n".join([f"{self.name}: {summary}", *map(str, self.findings)])


class VectorEnvError(AssertionError):
    """A vector environment breaks the contract; the message is the report, `report` the same as data."""

    def __init__(self, report: VectorEnvReport) -> None:
        self.report = report
        super().__init__(str(report))


class _NoVerdict(Exception):
    def __init__(self, status: Status, reason: str) -> None:
        self.status: Status = status
        self.reason = reason


class _Moment(NamedTuple):
    """What one call of `reset` (no reward, nothing ended) or `step` returned."""

    call: str
    observation: Any
    info: dict[str, Any]
    reward: Any = None
    terminated: Any = None
    truncated: Any = None

    @property
    def ended(self) -> np.ndarray:
        if self.reward is None:
            return np.zeros(0, dtype=bool)
        return np.logical_or(self.terminated, self.truncated)


def _play(
    env: Any,
    mode: AutoresetMode,
    actions: Iterable[Any],
    seed: int | list[int] | None,
    masks: Sequence[np.ndarray] = (),
    reset_whole: bool = False,
) -> Iterator[_Moment]:
    """What a reset and `actions` return, not copied.

    In DISABLED, and with `masks`, the lanes that ended are reset after each step t, as are those of ``masks[t]`` [B].
    With `reset_whole` every lane is, as soon as one has to be.
    """
    yield _Moment(f"reset(seed={seed})", *env.reset(seed=seed))
    yield from _go_on(env, mode, actions, masks, reset_whole)


def _go_on(
    env: Any,
    mode: AutoresetMode,
    actions: Iterable[Any],
    masks: Sequence[np.ndarray] = (),
    reset_whole: bool = False,
) -> Iterator[_Moment]:
    for number, action in enumerate(actions):
        observation, reward, terminated, truncated, info = env.step(deepcopy(action))
        moment = _Moment(f"step {number}", observation, info, reward, terminated, truncated)
        mask = np.zeros(env.num_envs, dtype=bool)
        if masks:
            mask |= masks[number] | moment.ended
        elif mode is AutoresetMode.DISABLED:
            mask |= moment.ended
        yield moment
        if mask.any():
            options = None if reset_whole else {"reset_mask": mask.copy()}
            yield _Moment(f"reset of lanes {np.flatnonzero(mask)} after step {number}", *env.reset(options=options))


@contextmanager
def _opened(make: Callable[[], Any]) -> Iterator[Any]:
    env = make()
    try:
        yield env
    finally:
        # Whether closing works is a finding of its own.
        with suppress(Exception):
            env.close()


@dataclass(frozen=True, eq=False)
class _Case:
    """The environment under test in one autoreset mode, its reference, and what both are given. B lanes, T steps."""

    make: Callable[[], VectorEnv]
    make_reference: Callable[[], SyncVectorEnv]
    mode: AutoresetMode
    seed: int
    num_envs: int
    single_observation_space: spaces.Space
    single_action_space: spaces.Space
    actions: list[Any]
    other_actions: list[Any]
    passed: set[str] = field(default_factory=set)
    """The properties that hold, as far as they have been judged."""

    def play(
        self,
        make: Callable[[], VectorEnv],
        seed: int | list[int] | None = None,
        actions: list[Any] | None = None,
        masks: Sequence[np.ndarray] = (),
    ) -> list[_Moment]:
        """Copies of what a fresh environment returns."""
        seed = self.seed if seed is None else seed
        with _opened(make) as env:
            return _copies(_play(env, self.mode, self.actions if actions is None else actions, seed, masks))

    @cached_property
    def trace(self) -> list[_Moment]:
        return self.play(self.make)

    @property
    def first_end(self) -> int:
        """The moment in `trace` at which a lane first ends; there is another one after it."""
        for number, moment in enumerate(self.trace[:-1]):
            if moment.ended.any():
                return number
        raise _NoVerdict("not judged", f"no lane ended in {len(self.actions)} steps; give a larger n_steps")

    def rows(self, observation: Any) -> list[Any]:
        """The observation of each lane."""
        return list(iterate(batch_space(self.single_observation_space, self.num_envs), observation))


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
    for fewer than two lanes, no steps or a `make_single` of another form; whatever `make_single` raises.
    """
    if num_envs < 2 or n_steps < 2:
        raise InputError(
            f"check_vector_env: expected num_envs and n_steps of at least 2, found {num_envs} and {n_steps}; "
            "with one lane or step there is nothing to tell apart"
        )
    env_fns = _lane_makers(make_single, num_envs)
    findings: list[VectorEnvFinding] = []
    cases: list[_Case] = []
    name = "vector environment"
    for mode in AutoresetMode:
        try:
            name = _name_in_mode(make_vector, num_envs, mode)
        except Exception as error:
            findings.append(VectorEnvFinding("mode", mode, "not supported", _one_line(error)))
            continue
        findings.append(VectorEnvFinding("mode", mode, "pass"))
        cases.append(_case(env_fns, make_vector, mode, n_steps, seed))
        findings += _findings(cases[-1])
    if cases:
        findings.append(_finding("modes_agree", None, lambda: _modes_agree(cases)))
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
    with _opened(partial(make_vector, num_envs, mode)) as env:
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
) -> _Case:
    make_reference = partial(SyncVectorEnv, env_fns, autoreset_mode=mode)
    with _opened(make_reference) as reference:
        single = reference.single_observation_space, reference.single_action_space
    # Gymnasium's spaces carry a generator; a copy leaves that of the environment alone.
    action_space = deepcopy(batch_space(single[1], len(env_fns)))
    action_space.seed(seed)
    actions = [action_space.sample() for _ in range(n_steps)]
    return _Case(
        make=partial(make_vector, len(env_fns), mode),
        make_reference=make_reference,
        mode=mode,
        seed=seed,
        num_envs=len(env_fns),
        single_observation_space=single[0],
        single_action_space=single[1],
        actions=actions,
        other_actions=[action_space.sample() for _ in range(n_steps)],
    )


def _findings(case: _Case) -> Iterator[VectorEnvFinding]:
    for name, (judge, needs) in _JUDGES.items():
        if missing := needs - case.passed:
            yield VectorEnvFinding(name, case.mode, "not judged", f"needs {', '.join(sorted(missing))}")
            continue
        finding = _finding(name, case.mode, lambda judge=judge: judge(case))
        if finding.status == "pass":
            case.passed.add(name)
        yield finding


def _finding(name: str, mode: AutoresetMode | None, judge: Callable[[], str]) -> VectorEnvFinding:
    """A judge returns what is wrong, or nothing; what it did not expect to be raised is wrong as well."""
    try:
        detail = judge()
    except _NoVerdict as verdict:
        return VectorEnvFinding(name, mode, verdict.status, verdict.reason)
    except Exception as error:
        return VectorEnvFinding(name, mode, "fail", f"raised {_one_line(error)}")
    return VectorEnvFinding(name, mode, "fail" if detail else "pass", detail)


def _metadata(case: _Case) -> str:
    with _opened(case.make) as env:
        for where, declared in (
            ("metadata['autoreset_mode']", env.metadata.get("autoreset_mode")),
            ("attribute autoreset_mode", getattr(env, "autoreset_mode", case.mode)),
        ):
            if declared is not case.mode:
                return f"{where}: expected {case.mode}, found {declared!r}"
    return ""


def _spaces(case: _Case) -> str:
    expected = {
        "num_envs": case.num_envs,
        "single_observation_space": case.single_observation_space,
        "single_action_space": case.single_action_space,
        "observation_space": batch_space(case.single_observation_space, case.num_envs),
        "action_space": batch_space(case.single_action_space, case.num_envs),
    }
    with _opened(case.make) as env:
        for name, value in expected.items():
            if getattr(env, name) != value:
                return f"{name}: expected {_short(value)}, found {_short(getattr(env, name))}"
    return ""


def _observations(case: _Case) -> str:
    space = batch_space(case.single_observation_space, case.num_envs)
    return _first(_space_fault(space, moment.observation, f"{moment.call}, observation") for moment in case.trace)


def _step_arrays(case: _Case) -> str:
    for moment in case.trace:
        if moment.reward is None:
            continue
        for name, kind, dtype in (
            ("reward", np.floating, "floating"),
            ("terminated", np.bool_, "bool"),
            ("truncated", np.bool_, "bool"),
        ):
            array = getattr(moment, name)
            if not _is_array(array, (case.num_envs,), kind):
                return f"{moment.call}, {name}: expected {dtype} ({case.num_envs},), found {_form(array)}"
    return ""


def _info_masks(case: _Case) -> str:
    return _first(_mask_fault(moment.info, case.num_envs, f"{moment.call}, info") for moment in case.trace)


def _int_seed(case: _Case) -> str:
    with _opened(case.make) as env:
        for which in ("a fresh environment", "the same environment again"):
            found = _copies(_play(env, case.mode, case.actions, case.seed))
            if fault := _trace_difference(found, case.trace):
                return f"{which}: {fault}"
    return ""


def _equal_to_single(case: _Case) -> str:
    return _trace_difference(case.trace, case.play(case.make_reference))


def _int_seed_is_list(case: _Case) -> str:
    return _trace_difference(_play_list(case, list(range(case.seed, case.seed + case.num_envs))), case.trace)


def _list_seeds(case: _Case) -> str:
    # Apart and falling, so that nothing derived from the first or the least of them will do.
    seeds = [case.seed + 10 * lane + 5 for lane in reversed(range(case.num_envs))]
    found = _play_list(case, seeds)
    if fault := _trace_difference(case.play(case.make, seeds), found):
        return f"the same list again: {fault}"
    return _trace_difference(found, case.play(case.make_reference, seeds)) if "equal_to_single" in case.passed else ""


def _play_list(case: _Case, seeds: list[int]) -> list[_Moment]:
    with _opened(case.make) as env:
        moments = _play(env, case.mode, case.actions, seeds)
        try:
            first = deepcopy(next(moments))
        except Exception as error:
            raise _NoVerdict("not supported", f"reset(seed={seeds}) raised {_one_line(error)}") from error
        return [first, *_copies(moments)]


def _other_seed(case: _Case) -> str:
    other = case.seed + case.num_envs
    found, expected = case.play(case.make, other), case.play(case.make_reference, other)
    if "equal_to_single" in case.passed:
        return _trace_difference(found, expected)
    if not _trace_difference(found, case.trace) and _trace_difference(expected, case.play(case.make_reference)):
        return f"seeds {case.seed} and {other} give the same run, for the single environments they do not"
    return ""


def _unseeded_reset(case: _Case) -> str:
    with _opened(case.make) as env:
        env.reset()
    first, found = _two_plays(case, case.make)
    if fault := _trace_difference(_two_plays(case, case.make)[1], found):
        return f"reset() after reset(seed={case.seed}) is not reproducible: {fault}"
    expected_first, expected = _two_plays(case, case.make_reference)
    if "equal_to_single" in case.passed:
        return _trace_difference(found, expected)
    restarts = not _difference(found[0].observation, first[0].observation)
    if restarts and _difference(expected[0].observation, expected_first[0].observation):
        return f"reset() starts reset(seed={case.seed}) again, for the single environments it goes on"
    return ""


def _two_plays(case: _Case, make: Callable[[], VectorEnv]) -> tuple[list[_Moment], list[_Moment]]:
    half = len(case.actions) // 2
    with _opened(make) as env:
        seeded = _copies(_play(env, case.mode, case.actions[:half], case.seed))
        return seeded, _copies(_play(env, case.mode, case.actions[half:], None))


def _reset_mask(case: _Case) -> str:
    # A step at which nothing ended: every lane is somewhere in an episode.
    steps = [moment for moment in case.trace if moment.reward is not None]
    step = next((t for t, moment in enumerate(steps) if not moment.ended.any()), 0)
    mask = np.arange(case.num_envs) % 2 == 0
    shown = {}
    for which, options in (("masked", {"reset_mask": mask.copy()}), ("whole", None)):
        with _opened(case.make) as env:
            before = _copies(_play(env, case.mode, case.actions[: step + 1], case.seed))[-1]
            shown[which] = case.rows(env.reset(options=options)[0])
    shown["before"] = case.rows(before.observation)
    where = f"reset of lanes {np.flatnonzero(mask)} after step {step}"
    if fault := _rows_difference(shown["masked"], shown["before"], np.flatnonzero(~mask)):
        return f"{where}, outside the mask, {fault}"
    lanes = np.flatnonzero(mask)
    unchanged = not _rows_difference(shown["masked"], shown["before"], lanes)
    if unchanged and _rows_difference(shown["whole"], shown["before"], lanes):
        return f"{where}: they were not reset"
    if "equal_to_single" not in case.passed:
        return ""
    rng = np.random.default_rng(case.seed)
    masks = [rng.random(case.num_envs) < 0.05 for _ in case.actions]
    fault = _trace_difference(case.play(case.make, masks=masks), case.play(case.make_reference, masks=masks))
    return f"a run with masked resets: {fault}" if fault else ""


def _bad_reset_mask(case: _Case) -> str:
    n = case.num_envs
    bad = {
        "that is a list": [True] * n,
        "of another length": np.ones(n + 1, dtype=bool),
        "of dtype int": np.ones(n, dtype=int),
        "without True": np.zeros(n, dtype=bool),
    }
    with _opened(case.make) as env:
        env.reset(seed=case.seed)
        for what, mask in bad.items():
            with suppress(Exception):
                env.reset(options={"reset_mask": mask})
                return f"a mask {what}: expected an exception, found none for {mask!r}"
    return ""


def _autoreset(case: _Case) -> str:
    return {
        AutoresetMode.NEXT_STEP: _next_step_contract,
        AutoresetMode.SAME_STEP: _same_step_contract,
        AutoresetMode.DISABLED: _disabled_contract,
    }[case.mode](case)


def _next_step_contract(case: _Case) -> str:
    end = case.first_end
    for previous, moment in pairwise(case.trace):
        for lane in np.flatnonzero(previous.ended):
            reward, ended = moment.reward[lane], bool(moment.ended[lane])
            if np.any(reward != 0) or ended:
                return f"{moment.call}, lane {lane}, after its end: expected reward 0, no end, found {reward}, {ended}"
    if fault := _trace_difference(case.play(case.make, actions=_other_actions_after_ends(case)), case.trace):
        return f"the action of the step after an end counted: {fault}"
    if "reset_mask" in case.passed:
        mask = case.trace[end].ended
        with _opened(case.make) as env:
            _copies(_play(env, case.mode, case.actions[:end], case.seed))
            expected = case.rows(env.reset(options={"reset_mask": mask.copy()})[0])
        if fault := _rows_difference(case.rows(case.trace[end + 1].observation), expected, np.flatnonzero(mask)):
            return f"{case.trace[end + 1].call}, against a reset of these lanes, {fault}"
    return ""


def _other_actions_after_ends(case: _Case) -> list[Any]:
    """The actions, but others for the lanes that ended in the step before."""
    space = batch_space(case.single_action_space, case.num_envs)
    out = []
    for moment, action, other in zip(case.trace, case.actions, case.other_actions, strict=False):
        rows, other_rows = list(iterate(space, action)), list(iterate(space, other))
        for lane in np.flatnonzero(moment.ended):
            rows[lane] = other_rows[lane]
        empty = create_empty_array(case.single_action_space, case.num_envs)
        out.append(concatenate(case.single_action_space, rows, empty))
    return out


def _same_step_contract(case: _Case) -> str:
    case.first_end  # noqa: B018 - nothing to judge without an end
    for moment in case.trace[1:]:
        for key in ("final_obs", "final_info"):
            mask = moment.info.get(f"_{key}", np.zeros(case.num_envs, dtype=bool))
            if fault := _difference(mask, moment.ended, f"{moment.call}, info['_{key}']"):
                return fault
        if moment.ended.any() and (fault := _final_fault(case, moment)):
            return f"{moment.call}, {fault}"
    return ""


def _final_fault(case: _Case, moment: _Moment) -> str:
    final_obs, final_info = moment.info["final_obs"], moment.info["final_info"]
    if not isinstance(final_info, dict):
        return f"info['final_info']: expected a dict, found {type(final_info).__name__}"
    if not _is_array(final_obs, (case.num_envs,), np.object_):
        return f"info['final_obs']: expected object ({case.num_envs},), found {_form(final_obs)}"
    for lane, ended in enumerate(moment.ended):
        where = f"info['final_obs'], lane {lane}"
        if not ended and final_obs[lane] is not None:
            return f"{where}: expected None where nothing ended, found {_short(final_obs[lane])}"
        if ended and (fault := _space_fault(case.single_observation_space, final_obs[lane], where, "entry")):
            return fault
    return ""


def _disabled_contract(case: _Case) -> str:
    case.first_end  # noqa: B018 - nothing to judge without an end
    for previous, moment in pairwise(case.trace):
        if autoreset := {"final_obs", "final_info"} & moment.info.keys():
            return f"{moment.call}, info: {sorted(autoreset)} are for SAME_STEP"
        if previous.ended.any():
            others = np.flatnonzero(~previous.ended)
            rows, expected = case.rows(moment.observation), case.rows(previous.observation)
            if fault := _rows_difference(rows, expected, others):
                return f"{moment.call}, outside the mask, {fault}"
    return ""


def _arrays_owned(case: _Case) -> str:
    with _opened(case.make) as env:
        returned = [(moment, deepcopy(moment)) for moment in _play(env, case.mode, case.actions, case.seed)]
    if fault := _trace_difference(*([*moments] for moments in zip(*returned, strict=True))):
        return f"a later call changed what was returned: {fault}"
    found = []
    with _opened(case.make) as env:
        for moment in _play(env, case.mode, case.actions, case.seed):
            found.append(deepcopy(moment))
            for part in moment[1:]:
                _overwrite(part)
    if fault := _trace_difference(found, case.trace):
        return f"writing into what was returned changed what came next: {fault}"
    return ""


def _pickling(case: _Case) -> str:
    half = len(case.actions) // 2
    with _opened(case.make) as env:
        _copies(_play(env, case.mode, case.actions[:half], case.seed))
        try:
            pickled = pickle.dumps(env)
        except Exception as error:
            raise _NoVerdict("not supported", _one_line(error)) from error
        with _opened(lambda: pickle.loads(pickled)) as copy:
            found = _copies(_go_on(copy, case.mode, case.actions[half:]))
        return _trace_difference(found, _copies(_go_on(env, case.mode, case.actions[half:])))


def _spec(case: _Case) -> str:
    with _opened(case.make) as env:
        spec = env.spec
    if spec is None:
        raise _NoVerdict("not supported", "env.spec is None: not made by gymnasium.make_vec")
    return _trace_difference(case.play(partial(gym.make_vec, spec)), case.trace)


def _record_episode_statistics(case: _Case) -> str:
    case.first_end  # noqa: B018 - nothing to judge without an end
    returns, lengths = np.zeros(case.num_envs), np.zeros(case.num_envs, dtype=int)
    resetting = np.zeros(case.num_envs, dtype=bool)
    # In DISABLED all lanes are reset: SyncVectorEnv takes the mask out of the options before the wrapper looks for it.
    with _opened(lambda: RecordEpisodeStatistics(case.make())) as env:
        for moment in _play(env, case.mode, case.actions, case.seed, reset_whole=True):
            if moment.reward is None:
                returns[:], lengths[:], resetting[:] = 0, 0, False
                continue
            returns += np.where(resetting, 0.0, moment.reward)
            lengths += ~resetting
            if moment.ended.any():
                found = {key: moment.info["episode"][key][moment.ended] for key in ("r", "l")}
                expected = {"r": returns[moment.ended], "l": lengths[moment.ended]}
                fault = _difference(moment.info["_episode"], moment.ended, "info['_episode']")
                if fault := fault or _difference(found, expected, "info['episode']", "ended lane"):
                    return f"{moment.call}, {fault}"
            returns[moment.ended], lengths[moment.ended] = 0, 0
            resetting = moment.ended & (case.mode is AutoresetMode.NEXT_STEP)
    return ""


def _normalize_reward(case: _Case) -> str:
    with _opened(lambda: NormalizeReward(case.make())) as env:
        for moment in _play(env, case.mode, case.actions, case.seed, reset_whole=True):
            reward = moment.reward
            if reward is None:
                continue
            if not _is_array(reward, (case.num_envs,), np.floating):
                return f"{moment.call}, reward: expected floating ({case.num_envs},), found {_form(reward)}"
            if not np.isfinite(reward).all():
                return f"{moment.call}, reward: expected finite values, found {_short(reward)}"
    return ""


def _closing(case: _Case) -> str:
    env = case.make()
    env.reset(seed=case.seed)
    env.close()
    env.close()
    return "" if env.closed is True else f"closed: expected True, found {env.closed!r}"


def _modes_agree(cases: list[_Case]) -> str:
    if len(cases) < 2:
        raise _NoVerdict("not supported", f"{cases[0].mode.name} is the only mode")
    if not all("int_seed" in case.passed for case in cases):
        raise _NoVerdict("not judged", "needs int_seed")
    first, *others = cases
    end = first.first_end
    for case in others:
        where = f"found in {case.mode.name}, expected as in {first.mode.name}"
        found, expected = ([*c.trace[:end], c.trace[end]._replace(observation=None, info={})] for c in (case, first))
        if fault := _trace_difference(found, expected):
            return f"{where}: {fault}"
        if fault := _rows_difference(_last_rows(case, end), _last_rows(first, end), np.arange(case.num_envs)):
            return f"{where}: {first.trace[end].call}, last {fault}"
    by_mode = {case.mode: case for case in cases}
    same_step, disabled = by_mode.get(AutoresetMode.SAME_STEP), by_mode.get(AutoresetMode.DISABLED)
    if same_step and disabled:
        found, expected = (c.rows(c.trace[t].observation) for c, t in ((same_step, end), (disabled, end + 1)))
        lanes = np.flatnonzero(first.trace[end].ended)
        if fault := _rows_difference(found, expected, lanes):
            return f"found in SAME_STEP, expected as in DISABLED: {first.trace[end].call}, next episode's {fault}"
    return ""


def _last_rows(case: _Case, number: int) -> list[Any]:
    """The observation of each lane after a step, before any reset."""
    moment = case.trace[number]
    rows = case.rows(moment.observation)
    if case.mode is AutoresetMode.SAME_STEP:
        for lane in np.flatnonzero(moment.ended):
            rows[lane] = moment.info["final_obs"][lane]
    return rows


_JUDGES: dict[str, tuple[Callable[[_Case], str], set[str]]] = {
    "metadata": (_metadata, set()),
    "spaces": (_spaces, set()),
    "observations": (_observations, set()),
    "step_arrays": (_step_arrays, set()),
    "info_masks": (_info_masks, set()),
    "int_seed": (_int_seed, set()),
    "equal_to_single": (_equal_to_single, set()),
    "int_seed_is_list": (_int_seed_is_list, {"int_seed"}),
    "list_seeds": (_list_seeds, set()),
    "other_seed": (_other_seed, {"int_seed"}),
    "unseeded_reset": (_unseeded_reset, {"int_seed"}),
    "reset_mask": (_reset_mask, {"int_seed"}),
    "bad_reset_mask": (_bad_reset_mask, set()),
    "autoreset": (_autoreset, {"int_seed"}),
    "arrays_owned": (_arrays_owned, {"int_seed"}),
    "pickling": (_pickling, set()),
    "spec": (_spec, {"int_seed"}),
    "record_episode_statistics": (_record_episode_statistics, set()),
    "normalize_reward": (_normalize_reward, set()),
    "closing": (_closing, set()),
}
"""The judge of each property and the properties without which its answer would mean nothing."""


def _copies(moments: Iterable[_Moment]) -> list[_Moment]:
    return [deepcopy(moment) for moment in moments]


def _trace_difference(found: list[_Moment], expected: list[_Moment]) -> str:
    return _first(_moment_difference(f, e) for f, e in zip(found, expected, strict=False))


def _moment_difference(found: _Moment, expected: _Moment) -> str:
    fault = _first(
        _difference(getattr(found, name), getattr(expected, name), name)
        for name in ("observation", "reward", "terminated", "truncated")
    ) or _info_difference(found.info, expected.info)
    return f"{expected.call}, {fault}" if fault else ""


def _rows_difference(found: list[Any], expected: list[Any], lanes: np.ndarray) -> str:
    return _first(_difference(found[lane], expected[lane], f"observation of lane {lane}", "entry") for lane in lanes)


def _info_difference(found: dict[str, Any], expected: dict[str, Any], where: str = "info") -> str:
    """Values count only where their mask is True, and a key without a True might as well be absent."""
    for key in sorted(_value_keys(found) | _value_keys(expected)):
        masks = [np.asarray(info.get(f"_{key}", False), dtype=bool) for info in (found, expected)]
        if not any(mask.any() for mask in masks):
            continue
        if fault := _difference(*masks, where=f"{where}['_{key}']"):
            return fault
        if isinstance(found[key], dict) and isinstance(expected[key], dict):
            fault = _info_difference(found[key], expected[key], f"{where}[{key!r}]")
        else:
            fault = _first(
                _difference(found[key][lane], expected[key][lane], f"{where}[{key!r}], lane {lane}", "entry")
                for lane in np.flatnonzero(masks[1])
            )
        if fault:
            return fault
    return ""


def _value_keys(info: dict[str, Any]) -> set[str]:
    masks = {f"_{key}" for key in info}
    return {key for key in info if key not in masks} - {"episode", "_episode"}


def _mask_fault(info: dict[str, Any], num_envs: int, where: str) -> str:
    for key in sorted(_value_keys(info)):
        value, mask = info[key], info.get(f"_{key}")
        if not _is_array(mask, (num_envs,), np.bool_):
            return f"{where}['_{key}']: expected bool ({num_envs},), found {_form(mask)}"
        if isinstance(value, dict):
            if fault := _mask_fault(value, num_envs, f"{where}[{key!r}]"):
                return fault
        elif not (isinstance(value, np.ndarray) and value.shape[:1] == (num_envs,)):
            return f"{where}[{key!r}]: expected an array of {num_envs} entries, found {_form(value)}"
    return ""


def _difference(found: Any, expected: Any, where: str = "", axis: str = "lane") -> str:
    """The first difference of two nests of dicts, sequences and arrays; `axis` names the first axis of the arrays."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if found.keys() != expected.keys():
            return f"{where}: expected keys {sorted(expected)}, found {sorted(found)}"
        return _first(_difference(found[key], expected[key], f"{where}[{key!r}]", axis) for key in expected)
    if isinstance(expected, (tuple, list)) and isinstance(found, (tuple, list)) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return _first(_difference(f, e, f"{where}[{number}]", axis) for number, (f, e) in pairs)
    found_array, expected_array = np.asarray(found), np.asarray(expected)
    if found_array.shape != expected_array.shape:
        return f"{where}: expected {_form(expected)}, found {_form(found)}"
    kinds = {found_array.dtype.kind, expected_array.dtype.kind}
    if "f" in kinds and kinds <= set("fiub"):
        same = np.isclose(found_array, expected_array, rtol=RTOL, atol=ATOL, equal_nan=True)
    else:
        same = np.asarray(found_array == expected_array)
    if same.all():
        return ""
    if same.ndim == 0:
        return f"{where}: expected {_short(expected)}, found {_short(found)}"
    index = np.argwhere(~same)[0][0]
    return f"{where}, {axis} {index}: expected {_short(expected_array[index])}, found {_short(found_array[index])}"


def _space_fault(space: spaces.Space, value: Any, where: str, axis: str = "lane") -> str:
    """`Space.contains`, but with the very dtype of the space, and a reason."""
    if isinstance(space, spaces.Dict) and isinstance(value, dict) and value.keys() == space.spaces.keys():
        return _first(_space_fault(part, value[key], f"{where}[{key!r}]", axis) for key, part in space.items())
    if isinstance(space, spaces.Tuple) and isinstance(value, tuple) and len(value) == len(space):
        parts = enumerate(zip(space, value, strict=True))
        return _first(_space_fault(part, v, f"{where}[{number}]", axis) for number, (part, v) in parts)
    if isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        if not _is_array(value, space.shape, space.dtype):
            return f"{where}: expected {space.dtype} {space.shape}, found {_form(value)}"
    if isinstance(space, spaces.Box):
        outside = np.argwhere(~((value >= space.low) & (value <= space.high)))
        if len(outside):
            index = tuple(outside[0].tolist())
            low, high = space.low[index], space.high[index]
            return f"{where}, {axis} {index[0]}: expected {low}..{high}, found {np.asarray(value)[index]}"
    return "" if space.contains(value) else f"{where}: {_short(value)} is outside {_short(space)}"


def _overwrite(value: Any) -> None:
    """Change every array of a nest, in place, where that is allowed."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)) or (isinstance(value, np.ndarray) and value.dtype == object):
        for part in value:
            _overwrite(part)
    elif isinstance(value, np.ndarray) and value.flags.writeable and value.dtype.kind in "fiub":
        value[...] = ~value if value.dtype == bool else value + np.ones((), dtype=value.dtype)


def _is_array(value: Any, shape: tuple[int, ...], dtype: Any) -> bool:
    return isinstance(value, np.ndarray) and value.shape == shape and np.issubdtype(value.dtype, dtype)


def _form(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return f"{type(value).__name__} {_short(value)}"


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {_short(error)}"


def _first(faults: Iterable[str]) -> str:
    return next(filter(None, faults), "")
