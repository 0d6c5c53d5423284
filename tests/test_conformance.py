"""`check_vector_env` passes Gymnasium's and our vector environments and names exactly what a broken one breaks."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from sessiongym.envs.conformance import VectorEnvError, check_vector_env
from sessiongym.envs.log import SessionLog
from sessiongym.envs.replay import ReplayEnv, ReplayVectorEnv
from sessiongym.errors import InputError

N = 5
NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode
PAGE = (Path(__file__).parents[1] / "docs" / "conformance.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def log() -> SessionLog:
    """25 sessions of 1 to 6 events over few items, so that random actions hit."""
    rng = np.random.default_rng(0)
    length = rng.integers(1, 7, 25)
    n_events = int(length.sum())
    return SessionLog.from_pandas(
        pd.DataFrame(
            {
                "session": np.repeat(np.arange(25), length),
                "item": rng.integers(0, N, n_events),
                "time": np.arange(n_events),
                "kind": (rng.random(n_events) < 0.3).astype(int),
            }
        ),
        item_id=np.arange(N),
    )


def replay_lane(log, options, limit, lane, lanes):
    env = ReplayEnv(log, lane=lane, lanes=lanes, **options)
    return env if limit is None else TimeLimit(env, limit)


def failures(report) -> set[tuple[str, AutoresetMode | None]]:
    return {(finding.property, finding.mode) for finding in report.failed}


def verdicts(report, status) -> set[tuple[str, AutoresetMode | None]]:
    return {(finding.property, finding.mode) for finding in report.findings if finding.status == status}


def everywhere(*properties: str) -> set[tuple[str, AutoresetMode | None]]:
    return {(name, mode) for name in properties for mode in AutoresetMode}


REPLAYS = [({}, None), ({"order": "shuffled"}, None), ({"window": 1, "feedback": "logged"}, 2)]


@pytest.mark.parametrize(("options", "limit"), REPLAYS)
def test_sync_vector_env_passes_whole(log, options, limit):
    single = partial(replay_lane, log, options, limit)

    def make(num_envs, mode):
        return SyncVectorEnv([partial(single, lane, num_envs) for lane in range(num_envs)], autoreset_mode=mode)

    report = check_vector_env(single, make, n_steps=25)
    assert not report.failed, str(report)
    assert verdicts(report, "not supported") == everywhere("spec") and not verdicts(report, "not judged"), str(report)


def test_async_vector_env_passes_whole(log):
    single = partial(replay_lane, log, {"order": "shuffled"}, 3)

    def make(num_envs, mode):
        return AsyncVectorEnv([partial(single, lane, num_envs) for lane in range(num_envs)], autoreset_mode=mode)

    report = check_vector_env(single, make, num_envs=2, n_steps=25)
    assert not report.failed, str(report)
    expected = everywhere("spec", "pickling")
    assert verdicts(report, "not supported") == expected and not verdicts(report, "not judged"), str(report)


def test_a_sync_vector_env_made_by_make_vec_is_what_its_spec_makes():
    def make(num_envs, mode):
        return gym.make_vec("CartPole-v1", num_envs, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})

    report = check_vector_env(partial(gym.make, "CartPole-v1"), make, n_steps=40)
    assert not report.failed, str(report)
    assert everywhere("spec") <= verdicts(report, "pass"), str(report)


@pytest.mark.parametrize(("options", "limit"), REPLAYS)
def test_the_native_replay_environment_passes_whole(log, options, limit):
    def make(num_envs, mode):
        return gym.make_vec(
            "sessiongym:sessiongym/Replay-v0",
            num_envs,
            log=log,
            assignment="strided",
            autoreset_mode=mode,
            max_episode_steps=limit,
            **options,
        )

    report = check_vector_env(partial(replay_lane, log, options, limit), make, n_steps=25, seed=7)
    assert not report.failed, str(report)
    assert not verdicts(report, "not supported") | verdicts(report, "not judged"), str(report)


def test_sessions_handed_out_in_another_order_are_another_environment(log):
    """A queue gives a lane whatever comes next; everything else about it is sound."""

    def make(num_envs, mode):
        return ReplayVectorEnv(log, num_envs, assignment="queue", autoreset_mode=mode)

    report = check_vector_env(partial(replay_lane, log, {}, None), make, n_steps=25)
    assert {name for name, _ in failures(report)} == {"equal_to_single"}, str(report)


def test_gymnasiums_native_cartpole_gets_its_true_list():
    def make(num_envs, mode):
        return gym.make_vec("CartPole-v1", num_envs, vectorization_mode="vector_entry_point")

    report = check_vector_env(lambda: gym.make("CartPole-v1"), make)
    # It hands its options to the bounds of the initial state only, and overrides `close` without setting `closed`.
    failing = {"equal_to_single", "reset_mask", "bad_reset_mask", "closing"}
    assert failures(report) == {(name, NEXT_STEP) for name in failing}, str(report)
    assert verdicts(report, "not supported") == {
        ("mode", SAME_STEP),
        ("mode", DISABLED),
        ("modes_agree", None),
        ("int_seed_is_list", NEXT_STEP),
        ("list_seeds", NEXT_STEP),
    }, str(report)
    assert {("autoreset", NEXT_STEP), ("int_seed", NEXT_STEP)} <= verdicts(report, "pass")
    assert not verdicts(report, "not judged")


class Walk(gym.Env):
    """A random walk of at most 7 steps that goes on beyond its end if asked to; every second step has an info."""

    observation_space = gym.spaces.Box(-100.0, 100.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps, self.position = 0, np.float32(self.np_random.uniform(-1, 1))
        return self._observation(), {"start": float(self.position)}

    def step(self, action):
        self.n_steps += 1
        self.position = np.float32(self.position + 0.5 * (action - 1) + self.np_random.normal(scale=0.1))
        info = {"n_steps": self.n_steps} if self.n_steps % 2 else {}
        return self._observation(), 1.0 + self.position, bool(abs(self.position) > 1.5), self.n_steps >= 7, info

    def _observation(self):
        return np.array([self.n_steps, self.position], np.float32)


class IntegerMask(SyncVectorEnv):
    def reset(self, **arguments):
        observation, info = super().reset(**arguments)
        info["_start"] = info["_start"].astype(int)
        return observation, info


class MaskOfAllLanes(SyncVectorEnv):
    def step(self, actions):
        *out, info = super().step(actions)
        if "_n_steps" in info:
            info["_n_steps"][:] = True
        return *out, info


class StaleFinalObs(SyncVectorEnv):
    def step(self, actions):
        before = self._observations.copy()
        *out, info = super().step(actions)
        for lane in np.flatnonzero(info.get("_final_obs", [])):
            info["final_obs"][lane] = before[lane]
        return *out, info


class FinalObsOfTheNextEpisode(SyncVectorEnv):
    def step(self, actions):
        observation, *out, info = super().step(actions)
        for lane in np.flatnonzero(info.get("_final_obs", [])):
            info["final_obs"][lane] = observation[lane].copy()
        return observation, *out, info


class NoFinalObs(SyncVectorEnv):
    def step(self, actions):
        *out, info = super().step(actions)
        return *out, {key: value for key, value in info.items() if key not in ("final_obs", "_final_obs")}


class FinalObsOfZeros(SyncVectorEnv):
    """An array of numbers in place of objects: the last observations, zeros where nothing ended."""

    def step(self, actions):
        *out, info = super().step(actions)
        if "final_obs" in info:
            info["final_obs"] = np.array([np.zeros(2, np.float32) if row is None else row for row in info["final_obs"]])
        return *out, info


class LateReset(SyncVectorEnv):
    def reset(self, **arguments):
        self._late = np.zeros(self.num_envs, bool)
        return super().reset(**arguments)

    def step(self, actions):
        out = super().step(actions)
        if self.autoreset_mode is NEXT_STEP:
            self._autoreset_envs, self._late = self._late, self._autoreset_envs
        return out


class EarlyReset(SyncVectorEnv):
    def step(self, actions):
        observation, *out = super().step(actions)
        if self.autoreset_mode is NEXT_STEP:
            for lane in np.flatnonzero(self._autoreset_envs):
                observation[lane] = self.envs[lane].reset()[0]
            self._autoreset_envs[:] = False
        return observation, *out


class ResetsInDisabled(SyncVectorEnv):
    def step(self, actions):
        mode = self.autoreset_mode
        self.autoreset_mode = SAME_STEP if mode is DISABLED else mode
        out = super().step(actions)
        self.autoreset_mode = mode
        return out


class ActionCountsAfterEnd(SyncVectorEnv):
    def step(self, actions):
        resetting = self._autoreset_envs & (self.autoreset_mode is NEXT_STEP)
        observation, *out = super().step(actions)
        observation[resetting, 1] += actions[resetting]
        return observation, *out


class StateInTheHandsOfTheCaller(SyncVectorEnv):
    def reset(self, **arguments):
        self._returned, info = super().reset(**arguments)
        return self._returned, info

    def step(self, actions):
        lanes: list[Any] = self.envs
        for env, row in zip(lanes, self._returned, strict=True):
            env.position = row[1]
        self._returned, *out = super().step(actions)
        return self._returned, *out


class SeedIgnored(SyncVectorEnv):
    def reset(self, *, seed=None, options=None):
        return super().reset(options=options)


class SeedConstant(SyncVectorEnv):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=None if seed is None else 0, options=options)


class SeedRemembered(SyncVectorEnv):
    def reset(self, *, seed=None, options=None):
        self._seed = getattr(self, "_seed", None) if seed is None else seed
        return super().reset(seed=seed if options else self._seed, options=options)


class MaskIgnored(SyncVectorEnv):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)


class MaskedResetDoesNothing(SyncVectorEnv):
    def reset(self, *, seed=None, options=None):
        if options is None:
            return super().reset(seed=seed)
        self._autoreset_envs[:] = False
        return self._observations.copy(), {}


class WrongDtype(SyncVectorEnv):
    def step(self, actions):
        observation, *out = super().step(actions)
        return observation.astype(np.float64), *out


class LanesSwapped(SyncVectorEnv):
    def reset(self, **arguments):
        observation, info = super().reset(**arguments)
        return np.roll(observation, 1, axis=0), info

    def step(self, actions):
        observation, *out = super().step(actions)
        return np.roll(observation, 1, axis=0), *out


class ColumnOfRewards(SyncVectorEnv):
    def step(self, actions):
        observation, reward, *out = super().step(actions)
        return observation, reward[:, None], *out


class ModeAsString(SyncVectorEnv):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.metadata["autoreset_mode"] = self.autoreset_mode.value


class WrongActionSpace(SyncVectorEnv):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.action_space = gym.spaces.MultiDiscrete([4] * self.num_envs)


class PickleStartsAnew(SyncVectorEnv):
    def __setstate__(self, state):
        self.__dict__.update(state)
        self.reset()


BROKEN = [
    (IntegerMask, everywhere("info_masks")),
    (MaskOfAllLanes, everywhere("equal_to_single")),
    (StaleFinalObs, {("equal_to_single", SAME_STEP), ("modes_agree", None)}),
    (FinalObsOfTheNextEpisode, {("equal_to_single", SAME_STEP), ("modes_agree", None)}),
    (NoFinalObs, {("equal_to_single", SAME_STEP), ("autoreset", SAME_STEP), ("modes_agree", None)}),
    (FinalObsOfZeros, {("autoreset", SAME_STEP)}),
    (LateReset, {("equal_to_single", NEXT_STEP), ("autoreset", NEXT_STEP)}),
    (EarlyReset, {("equal_to_single", NEXT_STEP), ("autoreset", NEXT_STEP), ("modes_agree", None)}),
    (ResetsInDisabled, {("equal_to_single", DISABLED), ("autoreset", DISABLED), ("modes_agree", None)}),
    (ActionCountsAfterEnd, {("equal_to_single", NEXT_STEP), ("autoreset", NEXT_STEP)}),
    (partial(SyncVectorEnv, copy=False), everywhere("arrays_owned")),
    (StateInTheHandsOfTheCaller, everywhere("arrays_owned")),
    (SeedIgnored, everywhere("int_seed", "equal_to_single", "list_seeds")),
    (SeedConstant, everywhere("other_seed", "list_seeds")),
    (SeedRemembered, everywhere("unseeded_reset")),
    (
        MaskIgnored,
        everywhere("reset_mask", "bad_reset_mask") | {("equal_to_single", DISABLED), ("autoreset", DISABLED)},
    ),
    (
        MaskedResetDoesNothing,
        everywhere("reset_mask", "bad_reset_mask") | {("equal_to_single", DISABLED), ("modes_agree", None)},
    ),
    (WrongDtype, everywhere("observations")),
    (LanesSwapped, everywhere("equal_to_single", "reset_mask") | {("autoreset", DISABLED), ("modes_agree", None)}),
    (
        ColumnOfRewards,
        everywhere("step_arrays", "equal_to_single", "record_episode_statistics", "normalize_reward"),
    ),
    (ModeAsString, everywhere("metadata", "record_episode_statistics")),
    (WrongActionSpace, everywhere("spaces")),
    (PickleStartsAnew, everywhere("pickling")),
]


def check_walk(make, **options):
    return check_vector_env(Walk, lambda n, mode: make([Walk] * n, autoreset_mode=mode), n_steps=30, **options)


def test_the_environment_that_the_broken_ones_spoil_passes_whole():
    report = check_walk(SyncVectorEnv)
    assert not report.failed and verdicts(report, "not supported") == everywhere("spec"), str(report)


@pytest.mark.parametrize(("broken", "expected"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_environment_fails_exactly_what_it_breaks(broken, expected):
    report = check_walk(broken)
    assert failures(report) == expected, str(report)


def test_a_difference_is_reported_with_its_step_and_lane():
    class SpoilsOneReward(SyncVectorEnv):
        def reset(self, **arguments):
            self._n = 0
            return super().reset(**arguments)

        def step(self, actions):
            observation, reward, *out = super().step(actions)
            reward[2] += 1000 * (self._n == 4)
            self._n += 1
            return observation, reward, *out

    details = {f.property: f.detail for f in check_walk(SpoilsOneReward).failed}
    assert set(details) == {"equal_to_single"}
    assert details["equal_to_single"].startswith("step 4, reward, lane 2: expected ")


def test_a_crash_is_a_failure_and_never_stops_the_checker():
    class Crashes(SyncVectorEnv):
        def step(self, actions):
            raise RuntimeError("out of order")

    report = check_walk(Crashes)
    assert ("equal_to_single", SAME_STEP) in failures(report)
    assert "raised RuntimeError: out of order" in str(report)
    assert everywhere("mode", "metadata", "spaces", "bad_reset_mask", "closing") <= verdicts(report, "pass")


def test_without_an_end_the_contract_of_the_mode_is_not_judged():
    report = check_vector_env(
        Walk, lambda n, mode: SyncVectorEnv([Walk] * n, autoreset_mode=mode), n_steps=2, num_envs=2
    )
    assert verdicts(report, "not judged") == everywhere("autoreset", "record_episode_statistics") | {
        ("modes_agree", None)
    }


def test_an_environment_that_no_mode_can_build_fails():
    def make(num_envs, mode):
        raise OSError("no such data")

    report = check_vector_env(Walk, make)
    assert failures(report) == everywhere("mode")
    assert all(finding.detail == "OSError: no such data" for finding in report.findings)


def test_it_raises_on_request_with_the_report():
    assert not check_walk(SyncVectorEnv, raise_on_failure=True).failed
    with pytest.raises(VectorEnvError) as raised:
        check_walk(WrongDtype, raise_on_failure=True)
    assert failures(raised.value.report) == everywhere("observations")
    assert str(raised.value) == str(raised.value.report)


def test_the_report_has_one_aligned_line_a_finding():
    report = check_walk(WrongDtype)
    head, *lines = str(report).splitlines()
    assert head.startswith("WrongDtype(num_envs=3): ") and "3 fail" in head and len(lines) == len(report.findings)
    for line, finding in zip(lines, report.findings, strict=True):
        assert line.index(finding.property, 20) == lines[0].index("mode")
        assert "\n" not in finding.detail
    assert any("FAIL" in line and "float64" in line for line in lines)


@pytest.mark.parametrize(
    ("make_single", "options", "expected"),
    [
        (Walk, {"num_envs": 1}, "num_envs"),
        (Walk, {"n_steps": 0}, "n_steps"),
        (lambda a, b, c: Walk(), {}, "make_single"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(make_single, options, expected):
    with pytest.raises(InputError, match=expected):
        check_vector_env(make_single, lambda n, mode: SyncVectorEnv([Walk] * n, autoreset_mode=mode), **options)


def test_the_page_shows_what_its_code_prints(capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    (version,) = re.findall(r"^With Gymnasium (\S+) this prints$", PAGE, flags=re.MULTILINE)
    if gym.__version__ != version:
        pytest.skip(f"the page shows the report with Gymnasium {version}, here is {gym.__version__}")
    exec(code, {})
    assert f"```text\n{capsys.readouterr().out}```" in PAGE


def test_the_page_and_the_docstring_list_every_property_in_the_order_of_the_report():
    properties = list(dict.fromkeys(finding.property for finding in check_walk(SyncVectorEnv).findings))
    assert re.findall(r"^\| `(\w+)`", PAGE, flags=re.MULTILINE) == properties
    assert re.findall(r"^ *- (\w+)\b", check_vector_env.__doc__ or "", flags=re.MULTILINE) == properties
