"""Recorded sessions as a Markov decision process, one at a time (`ReplayEnv`) or many (`ReplayVectorEnv`).

State: the items of the session so far. Action: one item. The logged event decides the next state whatever the agent
did, so replay is deterministic and an action never changes what comes next: a return under ``feedback="match"`` is a
count of hits, not what a shop would have earned. The first item of a session is its initial state, never an action.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ..errors import InputError
from .log import SessionLog
from .rollout import Rollout
from .sparsity import Drop, thin_purchases

Feedback = Literal["match", "logged"]
Order = Literal["chronological", "shuffled"]
Assignment = Literal["queue", "strided"]


@dataclass(frozen=True)
class ReplayOptions:
    """What both replay environments understand."""

    window: int = 20
    """Items in an observation: the last ones of the session, oldest to newest, padded on the left with N."""
    feedback: Feedback = "match"
    """"match": the reward counts only if the action is the logged item. "logged": always (IRN paper, section 3)."""
    rewards: tuple[float, float] = (1.0, 5.0)
    """Reward of a click and of a purchase (IRN paper, section 5.1; (0, 5) is its -P, (1, 5) its -F)."""
    density: float = 1.0
    """Share of the purchases that stay (IRN paper, section 5.3)."""
    drop: Drop = "event"
    """What happens to the others: the event is deleted, its reward is 0, or it becomes a click."""
    density_seed: int = 0
    """Which purchases stay; the sets of one seed are nested as `density` grows."""
    cold_start: int | None = None
    """The state stops growing after so many events (IRN paper, section 5.5); None: never."""
    order: Order = "chronological"
    """Order of the sessions in a pass; "shuffled" draws a new one each pass from the seed of `reset`."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise InputError(f"window: expected at least 1 item, found {self.window}")
        if self.feedback not in ("match", "logged"):
            raise InputError(f"feedback: expected 'match' or 'logged', found {self.feedback!r}")
        if self.order not in ("chronological", "shuffled"):
            raise InputError(f"order: expected 'chronological' or 'shuffled', found {self.order!r}")
        if len(self.rewards) != 2:
            raise InputError(f"rewards: expected (click, purchase), found {self.rewards!r}")
        if self.cold_start is not None and self.cold_start < 1:
            raise InputError(f"cold_start: expected at least 1 event or None, found {self.cold_start}")


class _Sessions:
    """The events that are replayed and the order in which sessions come; shared by both environments."""

    def __init__(self, log: SessionLog | str | os.PathLike[str], options: ReplayOptions) -> None:
        log = log if isinstance(log, SessionLog) else SessionLog.open(log)
        self.log, silenced = thin_purchases(log, options.density, options.drop, options.density_seed)
        self.silenced = silenced
        self.item, self.kind = np.asarray(self.log.item), np.asarray(self.log.kind)
        self.reward_of_kind = np.asarray(options.rewards, dtype=np.float64)
        # A session of one event has a state but nothing to decide.
        self.playable = np.flatnonzero(self.log.length >= 2)
        if len(self.playable) == 0:
            raise InputError(
                f"log {log.path or ''}: expected at least one session of two or more events to replay, found none "
                f"among {log.n_sessions} sessions; prepare it with --min-session-length 2"
            )
        self.first = np.asarray(self.log.offset[self.playable])
        self.last = np.asarray(self.log.offset[self.playable + 1]) - 1
        self.shuffled = options.order == "shuffled"
        self._permutations: dict[int, np.ndarray] = {}
        self._seed = 0

    def __len__(self) -> int:
        return len(self.playable)

    def reseed(self, seed: int) -> None:
        self._seed = seed % 2**64
        self._permutations.clear()

    def at(self, pass_number: int, place: np.ndarray | int) -> np.ndarray | int:
        """The session(s) at `place` in the order of one pass."""
        if not self.shuffled:
            return place
        if pass_number not in self._permutations:
            # Lanes are at most a pass or two apart; older permutations are never asked for again.
            for old in [p for p in self._permutations if p < pass_number - 2]:
                del self._permutations[old]
            generator = np.random.default_rng([self._seed, pass_number])
            self._permutations[pass_number] = generator.permutation(len(self))
        return self._permutations[pass_number][place]

    def reward(self, event: np.ndarray) -> np.ndarray:
        """[B] float64 logged reward of events [B]."""
        reward = self.reward_of_kind[self.kind[event]]
        if self.silenced is not None:
            reward[self.silenced[event]] = 0.0
        return reward


def _spaces(n_items: int, window: int) -> tuple[gym.spaces.Box, gym.spaces.Discrete]:
    return gym.spaces.Box(0, n_items, shape=(window,), dtype=np.int32), gym.spaces.Discrete(n_items)


class ReplayEnv(gym.Env):
    """One session at a time, lane `lane` of `lanes`: it walks sessions lane, lane + lanes, lane + 2 lanes, ...

    Observation: Box(0, N, (window,), int32). Action: Discrete(N). `log` is a `SessionLog` or the path of one; further
    keyword arguments are those of `ReplayOptions`. `info` carries `logged_action`, `logged_kind` and `logged_reward` of
    the event just consumed (a reset consumed none), `session` (number in the log) and `pass`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(
        self, log: SessionLog | str, lane: int = 0, lanes: int = 1, render_mode: None = None, **options: Any
    ) -> None:
        self.options = ReplayOptions(**options)
        self._sessions = _Sessions(log, self.options)
        if not 0 <= lane < lanes <= len(self._sessions):
            raise InputError(
                f"lane, lanes: expected 0 <= lane < lanes <= {len(self._sessions)} sessions, found {lane}, {lanes}"
            )
        self.log, self.render_mode = self._sessions.log, render_mode
        self._lane, self._lanes, self._turn = lane, lanes, 0
        self._turns_per_pass = -(-(len(self._sessions) - lane) // lanes)
        self.observation_space, self.action_space = _spaces(self.log.n_items, self.options.window)
        self._cursor = self._last = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """The next session of the lane; `seed` restarts the order."""
        unseeded = self._np_random is None
        super().reset(seed=seed)
        if seed is not None or unseeded:
            # SyncVectorEnv seeds lane i with seed + i; taking the lane off again gives all lanes one order.
            self._sessions.reseed((self.np_random_seed or 0) - self._lane)
            self._turn = 0
        self._pass, turn = divmod(self._turn, self._turns_per_pass)
        self._session = int(self._sessions.at(self._pass, self._lane + turn * self._lanes))
        self._turn += 1
        self._cursor = int(self._sessions.first[self._session])
        self._last = int(self._sessions.last[self._session])
        self._window = np.full(self.options.window, self.log.padding, dtype=np.int32)
        self._window[-1] = self._sessions.item[self._cursor]
        self._n_events = 1
        return self._window.copy(), self._place()

    def step(self, action: Any):
        """Consume the next logged event of the session, whatever the action."""
        if self._cursor >= self._last:
            raise InputError("step: the session has ended; call reset first")
        self._cursor += 1
        item, kind = int(self._sessions.item[self._cursor]), int(self._sessions.kind[self._cursor])
        logged_reward = float(self._sessions.reward(np.array([self._cursor]))[0])
        if self.options.cold_start is None or self._n_events < self.options.cold_start:
            self._window[:-1] = self._window[1:].copy()
            self._window[-1] = item
        self._n_events += 1
        hit = self.options.feedback == "logged" or int(action) == item
        info = {"logged_action": item, "logged_kind": kind, "logged_reward": logged_reward, **self._place()}
        return self._window.copy(), logged_reward if hit else 0.0, self._cursor == self._last, False, info

    def _place(self) -> dict[str, int]:
        return {"session": int(self._sessions.playable[self._session]), "pass": self._pass}


class ReplayVectorEnv(VectorEnv):
    """Many sessions in parallel, session-parallel as in Hidasi et al. (2016): a lane whose session ends takes another.

    Observations [B, window] int32, actions [B], rewards [B] float64. ``assignment="queue"``: each session once per
    pass, the next one to the lowest finished lane; ``"strided"``: lane i takes sessions i, i + B, i + 2B, ..., which is
    what `SyncVectorEnv` over ``ReplayEnv(lane=i, lanes=B)`` does. ``reset(seed)`` restarts the order, ``reset()`` goes
    on; after the last session it wraps, and ``info["pass"]`` counts passes.

    Lanes are reset in the step that ends them. `logged(info)` reads the consumed events of all lanes;
    ``terminal_info=False`` drops `final_obs` and `final_info` (which cost more than the step itself) and gives
    `logged_*` as plain arrays of all lanes. ``copy=False`` returns the environment's own observation buffer.
    Further keyword arguments are those of `ReplayOptions`.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - Gymnasium's convention

    def __init__(
        self,
        log: SessionLog | str,
        num_envs: int = 1,
        assignment: Assignment = "queue",
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        terminal_info: bool = True,
        copy: bool = True,
        max_episode_steps: int | None = None,
        render_mode: None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.options = ReplayOptions(**options)
        self._sessions = _Sessions(log, self.options)
        self.log, self.render_mode = self._sessions.log, render_mode
        if autoreset_mode not in (AutoresetMode.SAME_STEP, AutoresetMode.SAME_STEP.value):
            raise InputError(f"autoreset_mode: expected AutoresetMode.SAME_STEP, found {autoreset_mode}")
        self.autoreset_mode = AutoresetMode.SAME_STEP
        if assignment not in ("queue", "strided"):
            raise InputError(f"assignment: expected 'queue' or 'strided', found {assignment!r}")
        if num_envs < 1 or (assignment == "strided" and num_envs > len(self._sessions)):
            raise InputError(
                f"num_envs: expected 1..{len(self._sessions)} (sessions of two or more events), found {num_envs}; "
                "with more lanes than sessions use assignment='queue'"
            )
        self.num_envs, self.assignment = num_envs, assignment
        self.max_episode_steps, self._terminal_info, self._copy = max_episode_steps, terminal_info, copy
        window = self.options.window
        self.single_observation_space, self.single_action_space = _spaces(self.log.n_items, window)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._window = np.full((num_envs, window), self.log.padding, dtype=np.int32)
        self._cursor, self._last = np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64)
        self._session, self._pass = np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64)
        self._n_events = np.zeros(num_envs, np.int64)
        self._start = np.ones(num_envs, dtype=bool)
        self._restart()

    def _restart(self) -> None:
        self._next = 0
        self._turn = np.zeros(self.num_envs, np.int64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """The next session for every lane, or for those in ``options["reset_mask"]`` [B] bool."""
        if seed is not None and not isinstance(seed, (int, np.integer)):
            raise InputError(f"reset: expected an int seed or None, found {type(seed).__name__}")
        unseeded = self._np_random is None
        super().reset(seed=None if seed is None else int(seed))
        if unseeded:
            self.np_random  # noqa: B018 - draws a seed where none was given
        if seed is not None or unseeded:
            self._sessions.reseed(self.np_random_seed or 0)
            self._restart()
        mask = (options or {}).get("reset_mask")
        lanes = np.arange(self.num_envs) if mask is None else np.flatnonzero(self._checked_mask(mask))
        if (np.delete(self._n_events, lanes) == 0).any():
            raise InputError(
                "reset: options['reset_mask'] leaves out lanes that have never been reset; call reset without it first"
            )
        self._take_sessions(lanes)
        info: dict[str, Any] = {}
        self._add_place(info, np.isin(np.arange(self.num_envs), lanes))
        return self._observations(), info

    def step(self, actions: np.ndarray):
        """Consume the next logged event in every lane, whatever the actions [B]."""
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,):
            raise InputError(f"step: expected actions of shape ({self.num_envs},), found {actions.shape}")
        item, kind, logged_reward, done = self._advance()
        reward = logged_reward.copy()
        if self.options.feedback == "match":
            reward[actions != item] = 0.0
        truncated = np.zeros(self.num_envs, dtype=bool)
        if self.max_episode_steps is not None:
            truncated = self._n_events > self.max_episode_steps
        ended = done | truncated
        info = self._step_info(item, kind, logged_reward, ended)
        self._take_sessions(np.flatnonzero(ended))
        self._add_place(info, np.ones(self.num_envs, dtype=bool))
        return self._observations(), reward, done, truncated, info

    def rollout(self, n_steps: int) -> Rollout:
        """The next `n_steps` logged steps of every lane, [T, B], as stepping would have given them.

        Continues from wherever `reset`, `step` or `rollout` left the lanes. Raises `InputError` with `cold_start`,
        whose frozen states a recurrent learner cannot be fed item by item, or `max_episode_steps`.
        """
        if self.options.cold_start is not None or self.max_episode_steps is not None:
            raise InputError("rollout: cold_start and max_episode_steps are for step(); make the env without them")
        if self._n_events[0] == 0:
            raise InputError("rollout: call reset first")
        shape = (n_steps, self.num_envs)
        out = Rollout(
            item=np.empty(shape, np.int32),
            start=np.empty(shape, bool),
            action=np.empty(shape, np.int32),
            kind=np.empty(shape, np.uint8),
            reward=np.empty(shape, np.float32),
            done=np.empty(shape, bool),
        )
        for t in range(n_steps):
            out.item[t], out.start[t] = self._window[:, -1], self._start
            out.action[t], out.kind[t], out.reward[t], out.done[t] = self._advance()
            self._take_sessions(np.flatnonzero(out.done[t]))
        return out

    def _advance(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        if self._n_events[0] == 0:
            raise InputError("step: call reset first")
        self._cursor += 1
        item, kind = self._sessions.item[self._cursor], self._sessions.kind[self._cursor]
        if self.options.cold_start is None:
            self._window[:, :-1] = self._window[:, 1:]
            self._window[:, -1] = item
        else:
            growing = self._n_events < self.options.cold_start
            self._window[growing, :-1] = self._window[growing, 1:]
            self._window[growing, -1] = item[growing]
        self._n_events += 1
        self._start[:] = False
        return item, kind, self._sessions.reward(self._cursor), self._cursor == self._last

    def _take_sessions(self, lanes: np.ndarray) -> None:
        if len(lanes) == 0:
            return
        if self.assignment == "queue":
            pass_number, place = np.divmod(np.arange(self._next, self._next + len(lanes)), len(self._sessions))
            self._next += len(lanes)
        else:
            turns_per_pass = -(-(len(self._sessions) - lanes) // self.num_envs)
            pass_number, turn = np.divmod(self._turn[lanes], turns_per_pass)
            place = lanes + turn * self.num_envs
            self._turn[lanes] += 1
        session = place
        if self._sessions.shuffled:
            for number in np.unique(pass_number):
                of_pass = pass_number == number
                session[of_pass] = self._sessions.at(int(number), place[of_pass])
        first = self._sessions.first[session]
        self._session[lanes], self._pass[lanes] = session, pass_number
        self._cursor[lanes], self._last[lanes] = first, self._sessions.last[session]
        self._window[lanes] = self.log.padding
        self._window[lanes, -1] = self._sessions.item[first]
        self._n_events[lanes] = 1
        self._start[lanes] = True

    def _step_info(self, item: np.ndarray, kind: np.ndarray, reward: np.ndarray, ended: np.ndarray) -> dict[str, Any]:
        event = {"logged_action": item.astype(np.int64), "logged_kind": kind.astype(np.int64), "logged_reward": reward}
        if not self._terminal_info:
            return event
        info: dict[str, Any] = {}
        going_on = ~ended
        if going_on.any():
            _add_masked(info, event, going_on)
        if ended.any():
            final_obs = np.full(self.num_envs, None, dtype=object)
            lanes = np.flatnonzero(ended)
            # `for ... zip` keeps each lane's row an array of its own; a slice assignment would try to broadcast.
            for lane, row in zip(lanes.tolist(), self._window[lanes], strict=True):
                final_obs[lane] = row
            final_info: dict[str, Any] = {}
            _add_masked(final_info, {**event, **self._place()}, ended)
            info.update(final_obs=final_obs, _final_obs=ended.copy(), final_info=final_info, _final_info=ended.copy())
        return info

    def _place(self) -> dict[str, np.ndarray]:
        return {"session": self._sessions.playable[self._session], "pass": self._pass.copy()}

    def _add_place(self, info: dict[str, Any], mask: np.ndarray) -> None:
        if self._terminal_info:
            _add_masked(info, self._place(), mask)
        else:
            info.update(self._place())

    def _observations(self) -> np.ndarray:
        return self._window.copy() if self._copy else self._window

    def _checked_mask(self, mask: Any) -> np.ndarray:
        if not (isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == (self.num_envs,) and mask.any()):
            raise InputError(
                f"options['reset_mask']: expected a bool array of shape ({self.num_envs},) with a True in it, "
                f"found {mask!r}"
            )
        return mask


def _add_masked(info: dict[str, Any], values: dict[str, np.ndarray], mask: np.ndarray) -> None:
    """Gymnasium's vector info: each array beside its `_key` mask, zero where the mask is False."""
    for key, value in values.items():
        info[key] = np.where(mask, value, value.dtype.type(0))
        info[f"_{key}"] = mask.copy()
