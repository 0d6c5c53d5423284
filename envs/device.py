"""`DeviceReplayVectorEnv`: what `ReplayVectorEnv` does, with log, state and outputs as torch tensors on one device.

Three ideas keep a step short. The S sessions of two or more events are laid out in the order in which lanes take them;
a *step record* of 16 bytes holds all that consuming one event tells (P records, one for each event that has one before
it), so that a step is one gather and its outputs are views of the record. The newest event of a lane's state is then
number ``step + slot`` (P leaves out one event, the first, of each session before), so that an observation is one gather
from overlapping windows of the item column, padded where the session is shorter. And every lane computes the session it
would take next, kept only where its own has ended: shapes are static, and the host is never asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from ..errors import InputError
from .log import SessionLog, _events_of
from .replay_options import NO_KIND, ReplayOptions, reconfigured
from .replay_source import Assignment, ReplaySource, order_seed

_STEP = np.dtype("i4, i4, f4, u1, ?, ?, u1")
_STEP.names = ("item", "action", "reward", "kind", "start", "done", "item_kind")
"""What consuming an event tells, as the fields of `DeviceRollout`; `_columns` knows their places."""

_RECORD = torch.complex128
"""The one element of 16 bytes that torch has: a record is gathered by one load and one store."""

INT32_ROWS = 2**30
"""Tables of at most so many rows are numbered in int32, longer ones in int64."""


@dataclass(frozen=True, eq=False)
class DeviceRollout:
    """T steps of B lanes on the device, as `Rollout` has them; every tensor [T, B] is a strided view of one buffer."""

    item: Tensor
    """int32, newest item of the state."""
    start: Tensor
    """bool, the state is the first one of its session."""
    action: Tensor
    """int32, the item of the logged event."""
    kind: Tensor
    """uint8, kind of that event: 0 click, 1 purchase."""
    reward: Tensor
    """float32, logged reward of that event."""
    done: Tensor
    """bool, that event ends the session."""
    item_kind: Tensor
    """uint8, kind of the event that brought the newest item."""
    observation: Tensor | None = None
    """[T, B, W] int32, the items of the state, where they were asked for."""


class DeviceReplayVectorEnv(VectorEnv):
    """`ReplayVectorEnv` on a device: step for step the same, but `reset` and `step` take and give its torch tensors.

    Observations [B, W] int32 (with ``kinds=True`` a dict of them and of kinds, uint8); actions [B] or, with a slate of
    K, [B, K] integers; rewards [B] float32; ``terminated``, ``truncated`` [B] bool. Lanes
    are reset in the step that ends them (``AutoresetMode.SAME_STEP``). The info of a step holds, for all lanes and
    without masks, ``logged_action`` int32, ``logged_kind`` uint8, ``logged_reward`` float32, and ``final_obs`` [B, W],
    the state after the consumed event (the returned observation is another one only where the lane has ended); that of
    a reset and of a step, ``session`` and ``pass``.

    A step never waits for the device or for the host. With ``copy=False`` it writes into the same tensors each time,
    which the caller must not change, and can be captured in a CUDA graph (`capture_step`). `reset` may wait.

    ``order="shuffled"`` draws the permutations of the first `orders` passes at a seeded reset, the same ones as
    `ReplayVectorEnv`; pass p uses number p mod `orders`, where `ReplayVectorEnv` would draw a new one for each pass.

    Memory on the device: 20 bytes an event, 8 a session, and 4 `orders` a session where shuffled (twice the last two
    beyond 2^30 events). `assignment`, `max_episode_steps` and the keyword arguments of `ReplayOptions` are as for
    `ReplayVectorEnv`. Raises `InputError` for what it refuses, and for a device that is not there.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - Gymnasium's convention

    def __init__(
        self,
        log: SessionLog | str | os.PathLike[str],
        num_envs: int = 1,
        device: torch.device | str = "cuda",
        assignment: Assignment = "queue",
        max_episode_steps: int | None = None,
        copy: bool = True,
        orders: int = 8,
        **options: Any,
    ) -> None:
        super().__init__()
        if assignment not in ("queue", "strided"):
            raise InputError(f"assignment: expected 'queue' or 'strided', found {assignment!r}")
        if orders < 1:
            raise InputError(f"orders: expected at least 1 permutation, found {orders}")
        self._given_log, self.device = log, _checked_device(device)
        self.autoreset_mode, self.render_mode = AutoresetMode.SAME_STEP, None
        self.num_envs, self.assignment, self.copy = num_envs, assignment, copy
        self.max_episode_steps, self._given_orders = max_episode_steps, orders
        self._set_up(ReplayOptions.of(options))

    def reconfigure(self, **changes: Any) -> None:
        """Change fields of `ReplayOptions` that leave the spaces alone; `reset` comes next. Wrappers call this."""
        self._set_up(reconfigured(self.options, changes))

    def _set_up(self, options: ReplayOptions) -> None:
        self.options, num_envs = options, self.num_envs
        self._source = ReplaySource(self._given_log, options)
        self.log, n_sessions = self._source.log, len(self._source.playable)
        if num_envs < 1 or (self.assignment == "strided" and num_envs > n_sessions):
            raise InputError(
                f"num_envs: expected 1..{n_sessions} (sessions of two or more events), found {num_envs}; "
                "with more lanes than sessions use assignment='queue'"
            )
        self.single_observation_space = options.observation_space(self.log.n_items)
        self.single_action_space = options.action_space(self.log.n_items)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._orders = self._given_orders if self._source.shuffled else 0
        n_rows = max(self.log.n_events + options.window, self._orders * n_sessions, num_envs)
        self._index = torch.int32 if n_rows <= INT32_ROWS else torch.int64
        self._lay_out()
        self._allocate()

    def _lay_out(self) -> None:
        """The columns of the log, in the order in which lanes take the sessions where that is fixed."""
        n_sessions = len(self._source.playable)
        self._lane_major = self.assignment == "strided" and not self._source.shuffled
        order = np.arange(n_sessions)
        if self._lane_major:
            order = np.argsort(order % self.num_envs, kind="stable")
        sessions = self._source.playable[order]
        events, offset = _events_of(self._source.offset, sessions)
        first_step = offset - np.arange(n_sessions + 1)
        self._steps = torch.from_numpy(_records(self._source, events, offset).view(np.complex128)).to(self.device)
        self._items = self._padded(self._source.item[events])
        self._kinds = self._padded(self._source.kind[events]) if self.options.kinds else None
        self._first_step, self._number = self._tensor(first_step), self._tensor(sessions)
        self._order = torch.zeros(self._orders * n_sessions, dtype=self._index, device=self.device)

        if self.assignment == "queue":
            self._turns = self._tensor([n_sessions])
            return
        lane = np.arange(self.num_envs)
        turns = -(-(n_sessions - lane) // self.num_envs)
        self._turns = self._tensor(turns)
        slot = np.concatenate([[0], np.cumsum(turns)])
        # Turn k of a lane is the session at first + k * stride of the order.
        self._lane_first = self._tensor(slot[:-1] if self._lane_major else lane)
        self._lane_stride = 1 if self._lane_major else self.num_envs
        if self._lane_major:
            self._lane_step = self._tensor(first_step[slot[:-1]])
            self._lane_steps = self._tensor(np.diff(first_step[slot]))

    def _allocate(self) -> None:
        """The state, and with ``copy=False`` the outputs; neither is ever allocated again."""
        n_lanes, window = self.num_envs, self.options.window

        def zeros(*shape: int, dtype: torch.dtype = self._index) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        self._step, self._slot, self._pass, self._n_events = (zeros(n_lanes) for _ in range(4))
        self._next, self._next_pass = torch.zeros_like(self._turns), torch.zeros_like(self._turns)
        self._begun, self._seeded = False, False
        self._ages = torch.arange(window, 0, -1, dtype=self._index, device=self.device)
        self._no_reward = zeros(dtype=torch.float32)
        self._every_lane = torch.ones(n_lanes, dtype=torch.bool, device=self.device)
        self._limit = torch.iinfo(self._index).max if self.max_episode_steps is None else self.max_episode_steps
        self._outputs: dict[str, Tensor] = {}
        if not self.copy:
            self._outputs = {
                **{name: zeros(n_lanes, window, dtype=torch.int32) for name in ("observation", "final_obs")},
                **{f"{name} kinds": zeros(n_lanes, window, dtype=torch.uint8) for name in ("observation", "final_obs")},
                "record": zeros(n_lanes, dtype=_RECORD),
                "reward": zeros(n_lanes, dtype=torch.float32),
                "truncated": zeros(n_lanes, dtype=torch.bool),
                "session": zeros(n_lanes),
            }

    def _padded(self, column: np.ndarray) -> Tensor:
        """A column with room for the window of its first event; what stands there is never seen."""
        before = np.zeros(self.options.window - 1, dtype=column.dtype)
        return torch.from_numpy(np.concatenate([before, column])).to(self.device)

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values).to(self._index).to(self.device)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The next session for every lane, or for those in ``options["reset_mask"]`` [B] bool, a tensor or an array."""
        if seed is not None and not isinstance(seed, (int, np.integer)):
            raise InputError(f"reset: expected an int seed or None, found {type(seed).__name__}")
        mask = self._checked_mask((options or {}).get("reset_mask"))
        if seed is not None and self._orders and self.assignment == "strided" and mask is not self._every_lane:
            raise InputError(
                "reset: on a device shuffled lanes share one order, so a seed is for all of them; found a seed and a "
                "reset_mask; use ReplayVectorEnv for orders of their own"
            )
        super().reset(seed=None if seed is None else int(seed))
        restarts = seed is not None or not self._seeded
        if restarts:
            # Drawn here where none was given.
            self.np_random  # noqa: B018
            self._seeded = True
            self._restart(self.np_random_seed or 0, mask)
        self._take_sessions(mask)
        self._begun = True
        return self._observe("observation"), self._place()

    def _restart(self, seed: int, mask: Tensor) -> None:
        n_sessions = len(self._source.playable)
        for number in range(self._orders):
            order = torch.from_numpy(self._source.order(order_seed(seed, 0), number))
            self._order[number * n_sessions :][:n_sessions].copy_(order)
        # A queue has one place in the order for all lanes.
        restarted = mask if self.assignment == "strided" else self._every_lane[:1]
        self._next.masked_fill_(restarted, 0)
        self._next_pass.masked_fill_(restarted, 0)

    def step(self, actions: Tensor) -> tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Consume the next logged event in every lane, whatever the `actions` [B], a tensor on the device."""
        self._check_begun("step")
        shape = self.action_space.shape
        if not isinstance(actions, Tensor) or actions.shape != shape or actions.device != self._step.device:
            found = f"{tuple(actions.shape)} on {actions.device}" if isinstance(actions, Tensor) else type(actions)
            raise InputError(
                f"step: expected a tensor of actions of shape {shape} on {self._step.device}, found {found}"
            )
        out = self._outputs.get
        logged = _columns(torch.index_select(self._steps, 0, self._step, out=out("record")))
        truncated = torch.ge(self._n_events, self._limit, out=out("truncated"))
        if self.options.feedback == "logged":
            hit = self._every_lane
        else:
            hit = (actions.view(self.num_envs, -1) == logged["action"].unsqueeze(1)).any(1)
        reward = torch.where(hit, logged["reward"], self._no_reward, out=out("reward"))
        self._step += 1
        self._n_events += 1
        info: dict[str, Any] = {f"logged_{name}": logged[name] for name in ("action", "kind", "reward")}
        info["final_obs"] = self._observe("final_obs")
        self._take_sessions(logged["done"] | truncated)
        return self._observe("observation"), reward, logged["done"], truncated, {**info, **self._place()}

    @property
    def state_tensors(self) -> tuple[Tensor, ...]:
        """What a step changes, in place: step, session, pass and events of each lane, and the place in the order."""
        return self._step, self._slot, self._pass, self._n_events, self._next, self._next_pass

    def rollout(self, n_steps: int, observations: bool = False) -> DeviceRollout:
        """The next `n_steps` logged steps of every lane, [T, B], as stepping would have given them.

        Continues from wherever `reset`, `step` or `rollout` left the lanes. Chronological ``"strided"`` lanes walk
        fixed circles of records, so all T steps are gathered at once; otherwise only the walk from session to session
        is a loop. Raises `InputError` with `cold_start` or `max_episode_steps`, as `ReplayVectorEnv.rollout` does.
        """
        if self.options.cold_start is not None or self.max_episode_steps is not None:
            raise InputError("rollout: cold_start and max_episode_steps are for step(); make the env without them")
        self._check_begun("rollout")
        shape = n_steps, self.num_envs
        observation = None
        if observations:
            observation = torch.empty((*shape, self.options.window), dtype=torch.int32, device=self.device)
        walk = self._walk_circles if self._lane_major else self._walk_sessions
        records = torch.empty(shape, dtype=_RECORD, device=self.device)
        walk(records, observation)
        return DeviceRollout(**_columns(records), observation=observation)

    def _walk_sessions(self, records: Tensor, observation: Tensor | None) -> None:
        for t in range(len(records)):
            if observation is not None:
                self._windows(self._items, self.log.padding, self._step + self._slot, self._n_events, observation[t])
            torch.index_select(self._steps, 0, self._step, out=records[t])
            self._step += 1
            self._n_events += 1
            self._take_sessions(_columns(records[t])["done"])

    def _walk_circles(self, records: Tensor, observation: Tensor | None) -> None:
        """The records of a lane's sessions are one circle, and the slot of a session follows from the step."""
        place = self._step - self._lane_step
        steps = place + torch.arange(len(records), dtype=self._index, device=self.device).unsqueeze(1)
        steps = steps.remainder_(self._lane_steps).add_(self._lane_step).flatten()
        torch.index_select(self._steps, 0, steps, out=records.view(-1))
        if observation is not None:
            slot, n_events = self._located(steps)
            rows = observation.view(-1, self.options.window)
            self._windows(self._items, self.log.padding, steps + slot, n_events, rows)

        place += len(records)
        torch.add(place % self._lane_steps, self._lane_step, out=self._step)
        self._pass += place // self._lane_steps
        slot, n_events = self._located(self._step)
        self._slot.copy_(slot)
        self._n_events.copy_(n_events)
        torch.sub(slot + 1, self._lane_first, out=self._next)
        self._next_pass.copy_(self._pass)
        self._close_passes()

    def _located(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Slot of the session and number of events of the state from which `step` goes on."""
        narrow = self._index == torch.int32
        slot = torch.searchsorted(self._first_step, step, right=True, out_int32=narrow).sub_(1)
        return slot, step - self._first_step.index_select(0, slot) + 1

    def _take_sessions(self, mask: Tensor) -> None:
        """The next session for the lanes in `mask` [B], in the order of the lanes; all others stay where they are."""
        if self.assignment == "queue":
            taken = torch.cumsum(mask, 0, dtype=self._index)
            turn = taken + (self._next - 1)
            number, place = self._next_pass + turn // self._turns, turn % self._turns
            taken = taken[-1:]
        else:
            taken, number = mask, self._next_pass
            place = self._next * self._lane_stride + self._lane_first
        slot = place
        if self._orders:
            slot = self._order.index_select(0, number % self._orders * len(self._source.playable) + place)
        torch.where(mask, self._first_step.index_select(0, slot), self._step, out=self._step)
        torch.where(mask, slot, self._slot, out=self._slot)
        torch.where(mask, number, self._pass, out=self._pass)
        self._n_events.masked_fill_(mask, 1)
        self._next += taken
        self._close_passes()

    def _close_passes(self) -> None:
        # Counted per pass, not from the start: a fast device would overflow int32 within a minute.
        self._next_pass += self._next // self._turns
        self._next %= self._turns

    def _observe(self, name: str) -> Tensor | dict[str, Tensor]:
        """The states [B, W], into the output of that name where there is one."""
        newest, known = self._step + self._slot, self._n_events
        if self.options.cold_start is not None:
            known = known.clamp(max=self.options.cold_start)
            newest -= self._n_events - known
        items = self._windows(self._items, self.log.padding, newest, known, self._outputs.get(name))
        if self._kinds is None:
            return items
        kinds = self._windows(self._kinds, NO_KIND, newest, known, self._outputs.get(f"{name} kinds"))
        return {"items": items, "kinds": kinds}

    def _windows(self, column: Tensor, padding: int, newest: Tensor, known: Tensor, out: Tensor | None) -> Tensor:
        """[..., W] the last of the `known` [...] events of a state up to event `newest` [...], padded on the left."""
        window = torch.index_select(column.unfold(0, self.options.window, 1), 0, newest, out=out)
        return window.masked_fill_(self._ages > known.unsqueeze(-1), padding)

    def _place(self) -> dict[str, Tensor]:
        session = torch.index_select(self._number, 0, self._slot, out=self._outputs.get("session"))
        return {"session": session, "pass": self._pass.clone() if self.copy else self._pass}

    def _check_begun(self, call: str) -> None:
        if not self._begun:
            raise InputError(f"{call}: call reset first")

    def _checked_mask(self, mask: Any) -> Tensor:
        if mask is None:
            return self._every_lane
        found = mask
        if isinstance(mask, np.ndarray):
            mask = torch.from_numpy(mask)
        if not (isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == (self.num_envs,)):
            mask = torch.zeros(0, dtype=torch.bool)
        if not mask.any():
            raise InputError(
                f"options['reset_mask']: expected a bool tensor or array of shape ({self.num_envs},) with a True in "
                f"it, found {' '.join(repr(found).split())}"
            )
        if mask.all():
            return self._every_lane
        if not self._begun:
            raise InputError(
                "reset: options['reset_mask'] leaves out lanes that have never been reset; call reset without it first"
            )
        return mask.to(self.device)


def _records(source: ReplaySource, events: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """[P] step records of `events` [E], sessions offset[s]:offset[s + 1] of them one after the other."""
    is_first, is_last = np.zeros(len(events), dtype=bool), np.zeros(len(events), dtype=bool)
    is_first[offset[:-1]], is_last[offset[1:] - 1] = True, True
    consumed = events[~is_first]
    records = np.zeros(len(consumed), dtype=_STEP)
    records["item"], records["action"] = source.item[events[~is_last]], source.item[consumed]
    records["item_kind"] = source.kind[events[~is_last]]
    records["kind"], records["reward"] = source.kind[consumed], source.reward_of[source.worth[consumed]]
    records["start"], records["done"] = is_first[~is_last], is_last[~is_first]
    return records


def _columns(records: Tensor) -> dict[str, Tensor]:
    """Views [...] of step records [...], by the names of `DeviceRollout`."""
    element = records.unsqueeze(-1)
    return {
        "item": element.view(torch.int32)[..., 0],
        "action": element.view(torch.int32)[..., 1],
        "reward": element.view(torch.float32)[..., 2],
        "kind": element.view(torch.uint8)[..., 12],
        "start": element.view(torch.bool)[..., 13],
        "done": element.view(torch.bool)[..., 14],
        "item_kind": element.view(torch.uint8)[..., 15],
    }


def _checked_device(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device: expected one that torch has here, such as 'cpu' or 'cuda', found {str(device)!r}: "
            f"{str(error).splitlines()[0]}"
        ) from None


def capture_step(
    env: DeviceReplayVectorEnv, policy: Callable[[Any], Tensor], seed: int, warmup: int = 3
) -> tuple[torch.cuda.CUDAGraph, tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]]:
    """``env.step(policy(observation))`` as one CUDA graph, and the tensors that each replay of it overwrites.

    `policy` maps observations [B, W] to actions [B] on the device, and must not ask the host either; draws from a
    generator of its own need ``graph.register_generator_state``, so let it use CUDA's default one. `env` is made with
    ``copy=False`` and left as ``reset(seed=seed)`` leaves it, so that the first replay is its first step:

        env = DeviceReplayVectorEnv(log, 65_536, copy=False)
        graph, (observation, reward, terminated, truncated, info) = capture_step(env, policy, seed=0)
        for _ in range(n_steps):
            graph.replay()
            returns += reward

    Raises `InputError` for an env that is not on a CUDA device or copies its outputs.
    """
    if env.device.type != "cuda" or env.copy:
        raise InputError(
            f"capture_step: expected an env on a CUDA device with copy=False, found one on {env.device} "
            f"with copy={env.copy}"
        )
    observation, _ = env.reset(seed=seed)
    with torch.cuda.device(env.device):
        # Libraries set themselves up on first use, which a capture cannot record; torch asks for a side stream.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warmup):
                env.step(policy(observation))
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = env.step(policy(observation))
    env.reset(seed=seed)
    return graph, result
