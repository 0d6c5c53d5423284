"""Stable-Baselines3's door to the environments: a `VecEnv` over any vector environment, and logged transitions in a
replay buffer. Imported where it is used, since Stable-Baselines3 brings torch with it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv

from ..errors import InputError
from .log import SessionLog
from .replay_options import ReplayOptions
from .transitions import Transitions, logged_transitions

if TYPE_CHECKING:
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


class SB3VecEnv(VecEnv):
    """A Gymnasium vector environment of B lanes as the `VecEnv` that Stable-Baselines3 trains on.

    ``step(actions [B])`` gives observations [B, ...] (a dict of them where the space is one), float32 rewards [B],
    ``dones = terminated | truncated`` [B] and one info dict a lane. Those of lanes that just ended hold
    ``terminal_observation``, ``TimeLimit.truncated`` and ``episode`` (r: sum of rewards, l: steps, t: seconds since
    this object was made); all others are empty, and `vector_info` is the info as the environment gave it.
    Observations are copies, so the environment may reuse its buffer (``copy=False``).

    Raises `InputError` unless the environment resets lanes in the step that ends them (``AutoresetMode.SAME_STEP``)
    and reports their last observation in ``final_obs``.
    """

    def __init__(self, env: VectorEnv) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise InputError(f"SB3VecEnv: expected AutoresetMode.SAME_STEP, found {mode}; make the env with it")
        self.env = env
        self.vector_info: dict[str, Any] = {}
        self._returns, self._lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, np.int64)
        self._began = time.time()
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """The first observations; lane i is seeded with the seed of `seed` plus i, as in Gymnasium."""
        options = self._options[0]
        observation, self.vector_info = self.env.reset(seed=self._seeds[0], options=options or None)
        lanes = options.get("reset_mask", slice(None))
        self._returns[lanes], self._lengths[lanes] = 0, 0
        self._reset_seeds()
        self._reset_options()
        return _copied(observation)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        observation, reward, terminated, truncated, info = self.env.step(self._actions)
        self.vector_info = info
        self._returns += reward
        self._lengths += 1
        done = np.logical_or(terminated, truncated)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        ended = np.flatnonzero(done)
        if len(ended):
            if "final_obs" not in info:
                raise InputError(
                    "SB3VecEnv: expected the last observation of ended lanes in info['final_obs'], found none; "
                    "make the env with terminal_info=True"
                )
            elapsed = round(time.time() - self._began, 6)
            columns = (info["final_obs"][ended], (truncated & ~terminated)[ended], self._returns[ended])
            rows = zip(ended.tolist(), *(column.tolist() for column in (*columns, self._lengths[ended])), strict=True)
            for lane, last, cut, total, length in rows:
                episode = {"r": total, "l": length, "t": elapsed}
                infos[lane] = {"terminal_observation": last, "TimeLimit.truncated": cut, "episode": episode}
            self._returns[ended], self._lengths[ended] = 0, 0
        return _copied(observation), np.array(reward, dtype=np.float32), done, infos

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """Options of the next reset: one dict for all lanes. Raises `InputError` for a list of them."""
        if isinstance(options, list):
            raise InputError("set_options: expected one dict for all lanes of the vector environment, found a list")
        super().set_options(options)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of the vector environment, or of the first one it wraps that has it, once for each lane."""
        for layer in self._layers():
            if hasattr(layer, attr_name):
                return [getattr(layer, attr_name) for _ in self._get_indices(indices)]
        raise AttributeError(f"{self.env} has no attribute {attr_name!r}")

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Raises `InputError` for some of the lanes only: they share the attribute."""
        self._check_all_lanes(f"set_attr({attr_name!r})", indices)
        layer = next((layer for layer in self._layers() if hasattr(layer, attr_name)), self.env.unwrapped)
        setattr(layer, attr_name, value)

    def env_method(self, method_name: str, *method_args, indices: VecEnvIndices = None, **method_kwargs) -> list[Any]:
        """Calls it once; every lane gets the result. Raises `InputError` for some of the lanes only."""
        self._check_all_lanes(f"env_method({method_name!r})", indices)
        result = self.get_attr(method_name, 0)[0](*method_args, **method_kwargs)
        return [result] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        wrapped = any(isinstance(layer, wrapper_class) for layer in self._layers())
        return [wrapped for _ in self._get_indices(indices)]

    def close(self) -> None:
        self.env.close()

    def _layers(self) -> Iterator[VectorEnv]:
        """The environment and, one after the other, what it wraps."""
        layer: VectorEnv | None = self.env
        while layer is not None:
            yield layer
            layer = getattr(layer, "env", None)

    def _check_all_lanes(self, call: str, indices: VecEnvIndices) -> None:
        lanes = set(self._get_indices(indices))
        if lanes != set(range(self.num_envs)):
            raise InputError(
                f"{call}: expected all {self.num_envs} lanes, found {sorted(lanes)}; they are one vector environment, "
                "so leave indices out"
            )


def fill_replay_buffer(model: OffPolicyAlgorithm, log: SessionLog, *, newest: int | None = None, **options: Any) -> int:
    """Load the logged transitions of `log` into the empty replay buffer of an off-policy model; how many there were.

    `newest` leaves out all but the last so many. `options` are those of `ReplayOptions`; window and kinds are the
    model's. Each lane of the buffer gets a run of consecutive transitions, so n-step returns stay right. A buffer holds
    whole rows of lanes: the first few transitions come twice where the lanes do not divide their number. With
    ``optimize_memory_usage``, where a row's next observation is the row after it, the last row of each lane ends its
    session, as Stable-Baselines3 itself does when learning begins.

    Raises `InputError`, with the buffer untouched, for a model without such a buffer or with other spaces than the log
    has, and where the buffer is not empty or too small.
    """
    buffer, expected = _checked_buffer(model, log)
    for name, value in expected.items():
        if options.setdefault(name, value) != value:
            raise InputError(
                f"fill_replay_buffer: expected {name}={value} as the model has it, found {options[name]}; leave it out"
            )
    if newest is not None and newest < 1:
        raise InputError(f"newest: expected at least 1 transition or None, found {newest}")
    n_logged = sum(len(part) for part in logged_transitions(log, **options))
    n_transitions = n_logged if newest is None else min(newest, n_logged)
    n_rows = -(-n_transitions // buffer.n_envs)
    if n_rows > buffer.buffer_size:
        raise InputError(
            f"fill_replay_buffer: expected room for {n_transitions} transitions, found a buffer of "
            f"{buffer.buffer_size * buffer.n_envs}; give the model a larger buffer_size or load the newest=... of them"
        )
    start = n_transitions - n_logged
    for part in logged_transitions(log, **options):
        _write(buffer, n_rows, start, part)
        start += len(part)
    _complete(buffer, n_rows, n_transitions)
    return n_transitions


def _checked_buffer(model: OffPolicyAlgorithm, log: SessionLog) -> tuple[ReplayBuffer, dict[str, Any]]:
    """The buffer, and the options that its observations were made with."""
    buffer = getattr(model, "replay_buffer", None)
    if buffer is None or type(buffer) not in (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer):
        raise InputError(
            "fill_replay_buffer: expected an off-policy model with a ReplayBuffer of Stable-Baselines3, found "
            f"{type(model).__name__} with {type(buffer).__name__}"
        )
    if buffer.size():
        raise InputError(
            f"fill_replay_buffer: expected an empty buffer, found {buffer.size() * buffer.n_envs} transitions in it; "
            "fill it before learning, or empty it with its reset()"
        )
    space, action = buffer.observation_space, buffer.action_space
    kinds = isinstance(space, spaces.Dict)
    shape = (space.spaces.get("items", space) if isinstance(space, spaces.Dict) else space).shape
    options = ReplayOptions(window=shape[0] if shape else 1, kinds=kinds)
    if space != options.observation_space(log.n_items) or action != options.action_space(log.n_items):
        raise InputError(
            f"fill_replay_buffer: expected windows and actions of the {log.n_items} items of the log, found "
            f"observations {space} and actions {action}; make the model on an environment of this log"
        )
    return buffer, {"window": options.window, "kinds": kinds}


def _write(buffer: ReplayBuffer, n_rows: int, start: int, part: Transitions) -> None:
    """Put `part` at places `start` and following of the lanes laid end to end; places below 0 are left out."""
    of = slice(max(-start, 0), None)
    lane, row = np.divmod(np.arange(max(start, 0), max(start + len(part), 0)), n_rows)
    if isinstance(buffer, DictReplayBuffer):
        assert part.observation_kind is not None and part.next_observation_kind is not None
        buffer.observations["items"][row, lane] = part.observation[of]
        buffer.observations["kinds"][row, lane] = part.observation_kind[of]
        buffer.next_observations["items"][row, lane] = part.next_observation[of]
        buffer.next_observations["kinds"][row, lane] = part.next_observation_kind[of]
    else:
        buffer.observations[row, lane] = part.observation[of]
        if not buffer.optimize_memory_usage:
            buffer.next_observations[row, lane] = part.next_observation[of]
    buffer.actions[row, lane, 0] = part.action[of]
    buffer.rewards[row, lane] = part.reward[of]
    buffer.dones[row, lane] = part.done[of]
    buffer.timeouts[row, lane] = 0


def _complete(buffer: ReplayBuffer, n_rows: int, n_transitions: int) -> None:
    """Fill up the last lanes with the first transitions again, and move the cursor behind the rows."""
    again = np.arange(n_transitions, n_rows * buffer.n_envs)
    (to_lane, to_row), (lane, row) = np.divmod(again, n_rows), np.divmod(again % n_transitions, n_rows)
    columns: list[np.ndarray] = [buffer.actions, buffer.rewards, buffer.dones, buffer.timeouts]
    for states in (buffer.observations, getattr(buffer, "next_observations", {})):
        columns += states.values() if isinstance(states, dict) else [states]
    for column in columns:
        column[to_row, to_lane] = column[row, lane]
    # What the agent adds behind the last row belongs to other sessions.
    if buffer.optimize_memory_usage:
        buffer.dones[n_rows - 1] = 1
    else:
        buffer.timeouts[n_rows - 1] = 1 - buffer.dones[n_rows - 1]
    buffer.pos, buffer.full = n_rows % buffer.buffer_size, n_rows == buffer.buffer_size


def _copied(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: value.copy() for key, value in observation.items()}
    return observation.copy()
