"""Recorded sessions as a Markov decision process, one at a time (`ReplayEnv`) or many (`ReplayVectorEnv`).

State: the items of the session so far. Action: one item, or a slate of them. The logged event decides the next state
whatever the agent did, so replay is deterministic and an action never changes what comes next: a return under
``feedback="match"`` is a count of hits, not what a shop would have earned. The first item of a session is its initial
state, never an action.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from ..errors import InputError
from .log import SessionLog
from .replay_lanes import (
    ACTION,
    CURSOR,
    ENDED,
    KIND,
    LAST_EVENT,
    LOGGED_REWARD,
    NEXT_STEP,
    OVER,
    PASS,
    REWARD,
    SAME_STEP,
    SESSION,
    RingWindows,
    begin_lanes,
)
from .replay_options import NO_KIND, ReplayOptions, reconfigured
from .replay_source import Assignment, ReplaySource, SessionQueue, SessionStrides, order_seed
from .rollout import Rollout
from .session_vector import SessionVectorEnv, final_entries

Observation = Any
"""An array, or with kinds a dict of arrays."""


class ReplayEnv(gym.Env):
    """One session at a time, lane `lane` of `lanes`: it walks sessions lane, lane + lanes, lane + 2 lanes, ...

    Observation: Box(0, N, (window,), int32). Action: Discrete(N). `log` is a `SessionLog` or the path of one; further
    keyword arguments are those of `ReplayOptions`. `info` carries `logged_action`, `logged_kind` and `logged_reward` of
    the event just consumed (a reset consumed none), `session` (number in `log`, which a `density` thins) and `pass`.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(
        self,
        log: SessionLog | str | os.PathLike[str],
        lane: int = 0,
        lanes: int = 1,
        render_mode: None = None,
        **options: Any,
    ) -> None:
        self._given_log, self._lane, self._lanes, self.render_mode = log, lane, lanes, render_mode
        self._set_up(ReplayOptions.of(options))

    def reconfigure(self, **changes: Any) -> None:
        """Change fields of `ReplayOptions` that leave the spaces alone; `reset` comes next. Wrappers call this."""
        self._set_up(reconfigured(self.options, changes))

    def _set_up(self, options: ReplayOptions) -> None:
        self.options = options
        self._source = ReplaySource(self._given_log, options)
        self.log, n_sessions = self._source.log, len(self._source.playable)
        if not 0 <= self._lane < self._lanes <= n_sessions:
            raise InputError(
                f"lane, lanes: expected 0 <= lane < lanes <= {n_sessions} sessions, found {self._lane}, {self._lanes}"
            )
        self._turn, self._turns_per_pass = 0, -(-(n_sessions - self._lane) // self._lanes)
        self._order_seed: int | None = None
        self.observation_space = options.observation_space(self.log.n_items)
        self.action_space = options.action_space(self.log.n_items)
        self._cursor = self._last = -1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """The next session of the lane; `seed` restarts the order."""
        super().reset(seed=seed)
        if seed is not None or self._order_seed is None:
            # Drawn here where none was given.
            self.np_random  # noqa: B018
            self._order_seed = order_seed(self.np_random_seed or 0, self._lane)
            self._turn = 0
        self._pass, turn = divmod(self._turn, self._turns_per_pass)
        place = np.array(self._lane + turn * self._lanes)
        self._session = int(self._source.sessions(self._order_seed, self._pass, place))
        self._turn += 1
        first, end = self._source.offset[self._session : self._session + 2].tolist()
        self._first = self._cursor = self._newest = first
        self._last = end - 1
        return self._observation(), self._place()

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Consume the next logged event of the session, whatever the action."""
        if self._cursor >= self._last:
            state = "there is no session yet" if self._cursor < 0 else "the session has ended"
            raise InputError(f"step: {state}; call reset first")
        self._cursor += 1
        event, source, options = self._cursor, self._source, self.options
        item = int(source.item[event])
        logged_reward = float(source.reward_of[source.worth[event]])
        if options.cold_start is None or event - self._first < options.cold_start:
            self._newest = event
        hit = options.feedback == "logged" or (
            int(action) == item if options.slate is None else item in np.asarray(action).tolist()
        )
        logged_event = {
            "logged_action": item,
            "logged_kind": int(source.kind[event]),
            "logged_reward": logged_reward,
        }
        reward = logged_reward if hit else 0.0
        return self._observation(), reward, event == self._last, False, logged_event | self._place()

    def _observation(self) -> Observation:
        items = self._window(self._source.item, self.log.padding)
        return {"items": items, "kinds": self._window(self._source.kind, NO_KIND)} if self.options.kinds else items

    def _window(self, column: np.ndarray, padding: int) -> np.ndarray:
        width = self.options.window
        known = column[max(self._first, self._newest + 1 - width) : self._newest + 1]
        window = np.full(width, padding, dtype=column.dtype)
        window[width - len(known) :] = known
        return window

    def _place(self) -> dict[str, int]:
        return {"session": self._session, "pass": self._pass}


class ReplayVectorEnv(SessionVectorEnv):
    """Many sessions in parallel, session-parallel as in Hidasi et al. (2016): a lane whose session ends takes another.

    Observations [B, window] int32 (with ``kinds=True`` a dict of them and of kinds), actions [B] or, with a slate of K,
    [B, K], rewards [B] float64. ``assignment="queue"``: each session once per pass, the next one to the lowest lane
    without; ``"strided"``: lane i takes sessions i, i + B, i + 2B, ..., which is what `SyncVectorEnv` over
    ``ReplayEnv(lane=i, lanes=B)`` does. ``reset(seed)`` restarts the order, ``reset()`` goes on; after the last session
    it wraps, and ``info["pass"]`` counts passes.

    `autoreset_mode` is Gymnasium's: a lane is reset in the step that ends it (SAME_STEP), in the next one, whose action
    is ignored (NEXT_STEP), or by the caller with ``options={"reset_mask": [B] bool}`` (DISABLED). `logged(info)` reads
    the consumed events of all lanes in every mode. ``terminal_info=False`` drops `final_obs` and `final_info` (which
    cost more than the step itself, and which Gymnasium's `ArrayConversion` cannot take) and the masks, and gives plain
    arrays of all lanes. ``copy=False`` returns the environment's own memory as the observation, good until the next
    call. `engine` "numpy" is the slow reference of "numba". Further keyword arguments are those of `ReplayOptions`.
    """

    def __init__(
        self,
        log: SessionLog | str | os.PathLike[str],
        num_envs: int = 1,
        assignment: Assignment = "queue",
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        terminal_info: bool = True,
        copy: bool = True,
        engine: Literal["numba", "numpy"] = "numba",
        max_episode_steps: int | None = None,
        render_mode: None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_envs, autoreset_mode, terminal_info, max_episode_steps, render_mode)
        self._given_log, self.assignment, self._copy = log, assignment, copy
        for name, value, known in (
            ("assignment", assignment, ("queue", "strided")),
            ("engine", engine, ("numba", "numpy")),
        ):
            if value not in known:
                raise InputError(f"{name}: expected {known[0]!r} or {known[1]!r}, found {value!r}")
        self.engine = engine
        self._set_up(ReplayOptions.of(options))

    def reconfigure(self, **changes: Any) -> None:
        """Change fields of `ReplayOptions` that leave the spaces alone; `reset` comes next. Wrappers call this."""
        self._set_up(reconfigured(self.options, changes))

    def _set_up(self, options: ReplayOptions) -> None:
        from .replay_core import step_lanes, step_lanes_numpy

        self.options = options
        self._source = ReplaySource(self._given_log, options)
        self.log, n_sessions, n_lanes = self._source.log, len(self._source.playable), self.num_envs
        if n_lanes < 1 or (self.assignment == "strided" and n_lanes > n_sessions):
            raise InputError(
                f"num_envs: expected 1..{n_sessions} (sessions of two or more events), found {n_lanes}; "
                "with more lanes than sessions use assignment='queue'"
            )
        self.single_observation_space = options.observation_space(self.log.n_items)
        self.single_action_space = options.action_space(self.log.n_items)
        self.observation_space = batch_space(self.single_observation_space, n_lanes)
        self.action_space = batch_space(self.single_action_space, n_lanes)

        self._order: SessionQueue | SessionStrides
        if self.assignment == "queue":
            self._order = SessionQueue(self._source, n_lanes)
        else:
            self._order = SessionStrides(self._source, range(n_lanes), n_lanes)
        self._seeded = False
        self._state = np.zeros((5, n_lanes), dtype=np.int64)
        self._state[CURSOR] = -1
        # Windows that freeze, and kinds, are gathered from the log; the usual ones are kept.
        keeps = self.engine == "numba" and not options.kinds and options.cold_start is None
        self._ring = RingWindows(n_lanes, options.window, self.log.padding) if keeps else None
        self._ring_is_current = False

        # What `step` hands on unchanged, put together once.
        source = self._source
        self._advance = step_lanes if self.engine == "numba" else step_lanes_numpy
        self._log_columns = source.item, source.worth, source.offset, source.reward_of
        always, by_lane = options.feedback == "logged", self.assignment == "strided"
        limit, padding = self.max_episode_steps or 0, self.log.padding
        self._constants = int(by_lane), self._mode, limit, int(always), padding
        self._splits_info = self._terminal_info and self._mode == SAME_STEP
        self._no_final = np.zeros((5, 0), np.int64)
        self._final_rows = np.empty((n_lanes if self._splits_info else 0, options.window), np.int32)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """The next session for every lane, or for those in ``options["reset_mask"]`` [B] bool.

        A `seed` restarts the order of sessions. An int seeds lane i with seed + i, as `SyncVectorEnv` does; a list has
        one for each lane, None for "go on". Strided lanes have an order each, a queue has one for all: from seeds that
        are no int + i it is drawn from all of them.
        """
        lanes = self._lanes_to_reset(options, self._state[CURSOR] >= 0)
        self._reseed(self._lane_seeds(seed), lanes)
        self._order.ready()
        order, source = self._order, self._source
        by_lane, limit = self.assignment == "strided", self.max_episode_steps or 0
        begin_lanes(lanes, source.offset, self._state, order.upcoming, order.at, by_lane, limit)
        order.taken(lanes)
        self._state[OVER, lanes] = 0
        self._ring_is_current = False
        return self._observations(), self._reset_info(lanes)

    def step(self, actions: np.ndarray) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Consume the next logged event in every lane, whatever the actions [B] or [B, K]."""
        n_lanes, order = self.num_envs, self._order
        actions = self._integer_actions(actions).reshape(-1)
        self._check_steppable(self._state[OVER])
        order.ready()
        began = np.flatnonzero(self._state[OVER]) if self._mode == NEXT_STEP else None
        ring, base = self._moved_ring()
        out, flags = np.empty((8, n_lanes), np.int64), np.empty((2, n_lanes), bool)
        final = np.zeros((5, n_lanes), np.int64) if self._splits_info else self._no_final
        n_ended = self._advance(
            *self._log_columns, self._state, order.upcoming, order.at, *self._constants, actions,
            ring, base, self.options.window, out, flags, final, self._final_rows,
        )  # fmt: skip
        values = out.view(np.float64)
        ended = out[ENDED, :n_ended]
        # Lanes that took a session consumed no event, or told of it in `final_info`.
        taken = began if began is not None else ended if self._mode == SAME_STEP else ended[:0]
        order.taken(taken)
        info = _consumed(out, values)
        if self._terminal_info:
            info = _masked_step_info(info, taken)
        if self._splits_info and n_ended:
            consumed = _consumed(final, final.view(np.float64))
            rows = self._final_rows[:n_ended].copy()
            if self._ring is None:
                rows = self._windows(consumed["session"][ended], out[LAST_EVENT, :n_ended])
            info |= final_entries(ended, rows, consumed)
        return self._observations(), values[REWARD], flags[0], flags[1], info

    def rollout(self, n_steps: int) -> Rollout:
        """The next `n_steps` logged steps of every lane, [T, B], as stepping would have given them.

        Continues from wherever `reset`, `step` or `rollout` left the lanes. Raises `InputError` with `cold_start`,
        whose frozen states a recurrent learner cannot be fed item by item, with `max_episode_steps`, and in another
        mode than SAME_STEP, where not every step is an event.
        """
        from .replay_core import roll_lanes

        if self.options.cold_start is not None or self.max_episode_steps is not None:
            raise InputError("rollout: cold_start and max_episode_steps are for step(); make the env without them")
        if self.autoreset_mode != AutoresetMode.SAME_STEP:
            raise InputError(f"rollout: expected AutoresetMode.SAME_STEP, found {self.autoreset_mode}; use step()")
        self._check_steppable(self._state[OVER])
        shape = (n_steps, self.num_envs)
        out = Rollout(
            item=np.empty(shape, np.int32),
            start=np.empty(shape, bool),
            action=np.empty(shape, np.int32),
            kind=np.empty(shape, np.uint8),
            reward=np.empty(shape, np.float32),
            done=np.empty(shape, bool),
            item_kind=np.empty(shape, np.uint8),
        )
        assert out.item_kind is not None
        source, order, by_lane = self._source, self._order, self.assignment == "strided"
        ended = np.empty(self.num_envs, np.int64)
        for t in range(n_steps):
            order.ready()
            n_ended = roll_lanes(
                source.item, source.worth, source.offset, source.reward_of, self._state, order.upcoming, order.at,
                by_lane, out.item[t], out.item_kind[t], out.start[t], out.action[t], out.kind[t], out.reward[t],
                out.done[t], ended,
            )  # fmt: skip
            order.taken(ended[:n_ended])
        self._ring_is_current = False
        return out

    def _observations(self) -> Observation:
        if self._ring is None:
            return self._windows(self._state[SESSION], self._state[CURSOR])
        if not self._ring_is_current:
            self._refresh_ring()
        return self._ring.view().copy() if self._copy else self._ring.view()

    def _windows(self, session: np.ndarray, event: np.ndarray) -> Observation:
        """The state after `event` [n] of `session` [n]."""
        from .replay_core import gather_windows, gather_windows_numpy

        gather = gather_windows if self.engine == "numba" else gather_windows_numpy
        options, source = self.options, self._source
        first = source.offset[session]
        newest = event if options.cold_start is None else np.minimum(event, first + options.cold_start - 1)
        items = gather(source.item, first, newest, options.window, self.log.padding)
        if not options.kinds:
            return items
        return {"items": items, "kinds": gather(source.kind, first, newest, options.window, NO_KIND)}

    def _refresh_ring(self) -> None:
        assert self._ring is not None
        self._ring.view()[...] = self._windows(self._state[SESSION], self._state[CURSOR])
        self._ring_is_current = True

    def _moved_ring(self) -> tuple[np.ndarray, int]:
        if self._ring is None:
            return _NO_RING, 0
        if not self._ring_is_current:
            self._refresh_ring()
        self._ring.move_on()
        return self._ring.ring, self._ring.base

    def _reset_info(self, lanes: np.ndarray) -> dict[str, Any]:
        place = {"session": self._state[SESSION].copy(), "pass": self._state[PASS].copy()}
        if not self._terminal_info:
            return place
        mask = np.zeros(self.num_envs, dtype=bool)
        mask[lanes] = True
        return {key: np.where(mask, value, 0) for key, value in place.items()} | dict(_masks(mask, "_session", "_pass"))

    def _reseed(self, seeds: list[int | None] | None, lanes: np.ndarray) -> None:
        given = self._order_seeds(seeds, lanes)
        if given is None:
            return
        if isinstance(self._order, SessionStrides):
            self._order.restart(given)
        elif given:
            several = len(set(given.values())) > 1
            drawn = np.random.SeedSequence(list(given.values())).generate_state(1, np.uint64)
            self._order.restart(int(drawn[0]) if several else next(iter(given.values())))
        self._seeded = True


_NO_RING = np.zeros(0, np.int32)


def _consumed(out: np.ndarray, values: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of an output of `replay_core`, whose float64 rows are read from `values`."""
    return {
        "logged_action": out[ACTION],
        "logged_kind": out[KIND],
        "logged_reward": values[LOGGED_REWARD],
        "session": out[SESSION],
        "pass": out[PASS],
    }


def _masks(mask: np.ndarray, *keys: str) -> Iterator[tuple[str, np.ndarray]]:
    """Gymnasium's `_key` masks, each an array of its own."""
    masks = np.empty((len(keys), len(mask)), dtype=bool)
    masks[:] = mask
    return zip(keys, masks, strict=True)


def _masked_step_info(values: dict[str, np.ndarray], silent: np.ndarray) -> dict[str, Any]:
    """All lanes tell their place, all but the `silent` ones [n] what they consumed."""
    n_lanes = len(values["session"])
    mask = np.ones(n_lanes, dtype=bool)
    info: dict[str, Any] = dict(_masks(mask, "_session", "_pass"))
    if len(silent) == n_lanes:
        return info | {key: values[key] for key in ("session", "pass")}
    mask[silent] = False
    info.update(values)
    info.update(_masks(mask, "_logged_action", "_logged_kind", "_logged_reward"))
    return info
