"""Judges of what is done with an environment: keeping its arrays, copying it, making it again, wrapping, closing."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import NormalizeReward, RecordEpisodeStatistics

from .compare import array_fault, difference, trace_difference
from .play import Case, copies, go_on, opened, play
from .report import NoVerdict, one_line, short


def arrays_owned(case: Case) -> str:
    case.need("int_seed")
    returned, kept = [], []
    with opened(case.make) as env:
        for moment in play(env, case.mode, case.actions, case.seed):
            returned.append(moment)
            kept.append(moment.copy())
    if fault := trace_difference(returned, kept):
        return f"a later call changed what was returned: {fault}"
    found = []
    with opened(case.make) as env:
        for moment in play(env, case.mode, case.actions, case.seed):
            found.append(moment.copy())
            _overwrite(moment[1:])
    if fault := trace_difference(found, case.trace):
        return f"writing into what was returned changed what came next: {fault}"
    return ""


def _overwrite(value: Any) -> None:
    """Change every array of a nest, in place, where that is allowed."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)) or (isinstance(value, np.ndarray) and value.dtype == object):
        for part in value:
            _overwrite(part)
    elif isinstance(value, np.ndarray) and value.flags.writeable and value.dtype.kind in "fiub":
        value[...] = ~value if value.dtype == bool else value + np.ones((), dtype=value.dtype)


def pickling(case: Case) -> str:
    half = len(case.actions) // 2
    with opened(case.make) as env:
        copies(play(env, case.mode, case.actions[:half], case.seed))
        try:
            pickled = pickle.dumps(env)
        except Exception as error:
            raise NoVerdict("not supported", one_line(error)) from error
        with opened(partial(pickle.loads, pickled)) as copy:
            found = copies(go_on(copy, case.mode, case.actions[half:]))
        return trace_difference(found, copies(go_on(env, case.mode, case.actions[half:])))


def spec(case: Case) -> str:
    case.need("int_seed")
    with opened(case.make) as env:
        env_spec = env.spec
    if env_spec is None:
        raise NoVerdict("not supported", "env.spec is None: not made by gymnasium.make_vec")
    return trace_difference(case.play(partial(gym.make_vec, env_spec)), case.trace)


def record_episode_statistics(case: Case) -> str:
    # Without an end there is nothing to judge.
    case.first_end()
    returns, lengths = np.zeros(case.num_envs), np.zeros(case.num_envs, dtype=int)
    resetting = np.zeros(case.num_envs, dtype=bool)
    # In DISABLED all lanes are reset: SyncVectorEnv takes the mask out of the options before the wrapper looks for it.
    with opened(lambda: RecordEpisodeStatistics(case.make())) as env:
        for moment in play(env, case.mode, case.actions, case.seed, reset_whole=True):
            if not moment.is_step:
                returns[:], lengths[:], resetting[:] = 0, 0, False
                continue
            returns += np.where(resetting, 0.0, moment.reward)
            lengths += ~resetting
            ended = moment.ended
            if ended.any():
                found = {key: np.where(ended, moment.info["episode"][key], 0) for key in ("r", "l")}
                expected = {"r": np.where(ended, returns, 0), "l": np.where(ended, lengths, 0)}
                fault = difference(moment.info["_episode"], ended, "info['_episode']")
                if fault := fault or difference(found, expected, "info['episode']"):
                    return f"{moment.call}, {fault}"
            returns[ended], lengths[ended] = 0, 0
            resetting = ended & (case.mode is AutoresetMode.NEXT_STEP)
    return ""


def normalize_reward(case: Case) -> str:
    with opened(lambda: NormalizeReward(case.make())) as env:
        for moment in play(env, case.mode, case.actions, case.seed, reset_whole=True):
            if not moment.is_step:
                continue
            if fault := array_fault(moment.reward, (case.num_envs,), np.floating, f"{moment.call}, reward"):
                return fault
            if not np.isfinite(moment.reward).all():
                return f"{moment.call}, reward: expected finite values, found {short(moment.reward)}"
    return ""


def closing(case: Case) -> str:
    env = case.make()
    env.reset(seed=case.seed)
    env.close()
    env.close()
    return "" if env.closed is True else f"closed: expected True, found {env.closed!r}"
