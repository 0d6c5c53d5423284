"""The interactive shop: an agent recommends, a simulated shopper responds; one lane (`ShopEnv`) or many
(`ShopVectorEnv`), with the spaces and infos of the replay environment.

A session begins with the shopper's first click. Then, step by step: the agent recommends an item or a slate, and the
shopper clicks on it, or does whatever else the shopper would have done, a click or a purchase; after that it is decided
whether the session goes on. Intent, price level, urgency and what recommendations have done to the shopper are hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from ...errors import InputError
from ..replay_lanes import NEXT_STEP, SAME_STEP
from ..replay_source import Assignment, order_seed
from ..session_vector import SessionVectorEnv, final_entries, with_masks
from .config import ShopConfig
from .live_config import LiveShopConfig
from .live_core import Effects, World, begin, empty_sessions, policy_uniforms, respond
from .shop import Shop, _arrivals
from .shopper import GONE, empty_lanes, rates_of

_N_STARTS = 65_536


class ShopEnv(gym.Env):
    """One shopper at a time, lane `lane` of `lanes`: those of the sessions lane, lane + lanes, lane + 2 lanes, ...

    Keyword arguments are the fields of `LiveShopConfig`. `info` carries `logged_action`, `logged_kind`,
    `logged_reward` and `logged_time` (nanoseconds since the epoch) of what the shopper just did (a reset has none),
    `followed` (whether it was a click on the recommendation) and `session`, its number.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(self, lane: int = 0, lanes: int = 1, render_mode: None = None, **options: Any) -> None:
        if not 0 <= lane < lanes:
            raise InputError(f"lane, lanes: expected 0 <= lane < lanes, found {lane}, {lanes}")
        self.config = LiveShopConfig.of(options)
        self.render_mode, self._lane = render_mode, lane
        self._sessions = LiveSessions(self.config, 1, stride=lanes)
        self.observation_space, self.action_space = self.config.observation_space(), self.config.action_space()
        self._seeded, self._over = False, True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The next shopper of the lane; `seed` begins with the first again, or as ``options["first_session"]`` says."""
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            # Drawn here where none was given.
            self.np_random  # noqa: B018
            first = _first_session(options) + self._lane
            self._sessions.restart(0, order_seed(self.np_random_seed or 0, self._lane), first)
            self._seeded = True
        self._sessions.begin(_FIRST)
        self._over = False
        return self._observation(), {"session": self._session}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Recommend `action`; raises `InputError` for what is no item, and where no session is under way."""
        if self._over:
            raise InputError(f"step: {'the session has ended' if self._seeded else 'there is no session yet'}; reset")
        recommended = np.asarray(action)
        if recommended.shape != self.action_space.shape or recommended.dtype.kind not in "iu":
            raise InputError(
                f"step: expected whole numbers of shape {self.action_space.shape}, found {recommended.dtype} of shape "
                f"{recommended.shape}"
            )
        response = self._sessions.respond(_FIRST, recommended.astype(np.int64).reshape(1, -1))
        self._over = bool(self._sessions.gone[0])
        event = {key: value[0].item() for key, value in response.items()}
        return self._observation(), event.pop("reward"), self._over, False, event | {"session": self._session}

    @property
    def _session(self) -> int:
        return int(self._sessions.number[0])

    def _observation(self) -> Any:
        observations = self._sessions.observations(_FIRST)
        if isinstance(observations, dict):
            return {key: value[0] for key, value in observations.items()}
        return observations[0]


class ShopVectorEnv(SessionVectorEnv):
    """Many shoppers in parallel; a lane whose shopper leaves takes the next.

    Observations [B, window] int32 (or a dict, see `LiveShopConfig`), actions [B] or, with a slate of K, [B, K], rewards
    [B] float64. Sessions are numbered, and the session of a number has the same shopper whoever recommends.
    ``assignment="queue"``: the next session to the lowest lane without; ``"strided"``: lane i takes sessions i, i + B,
    i + 2B, ..., which is what `SyncVectorEnv` over ``ShopEnv(lane=i, lanes=B)`` does. ``reset(seed)`` begins with
    session 0 again, or with ``options={"first_session": number}``; ``reset()``, whatever the options, goes on.

    `autoreset_mode`, `reset_mask` and `terminal_info` are those of `ReplayVectorEnv`, and so is how to read the infos:
    `logged(info)`. Further keyword arguments are the fields of `LiveShopConfig`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        assignment: Assignment = "queue",
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        terminal_info: bool = True,
        max_episode_steps: int | None = None,
        render_mode: None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_envs, autoreset_mode, terminal_info, max_episode_steps, render_mode)
        if assignment not in ("queue", "strided"):
            raise InputError(f"assignment: expected 'queue' or 'strided', found {assignment!r}")
        self.assignment, self.config = assignment, LiveShopConfig.of(options)
        self.single_observation_space = self.config.observation_space()
        self.single_action_space = self.config.action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        queue = assignment == "queue"
        self._sessions = LiveSessions(self.config, num_envs, stride=1 if queue else num_envs, queue=queue)
        self._all_lanes = np.arange(num_envs)
        self._over = np.zeros(num_envs, bool)
        self._n_steps = np.zeros(num_envs, np.int64)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """The next shopper for every lane, or for those in ``options["reset_mask"]`` [B] bool.

        An int seeds lane i with seed + i, as `SyncVectorEnv` does; a list has one for each lane, None for "go on". With
        a queue, whose lanes share their shoppers, seeds that are no int + i together make one.
        """
        lanes = self._lanes_to_reset(options, self._sessions.number >= 0)
        self._reseed(self._lane_seeds(seed), lanes, _first_session(options))
        self._begin(lanes)
        session = self._sessions.number.copy()
        if not self._terminal_info:
            return self._sessions.observations(self._all_lanes), {"session": session}
        mask = np.zeros(self.num_envs, bool)
        mask[lanes] = True
        return self._sessions.observations(self._all_lanes), with_masks({"session": np.where(mask, session, 0)}, mask)

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Recommend `actions` [B] or [B, K]; raises `InputError` for what is no item."""
        recommended = self._integer_actions(actions).reshape(self.num_envs, -1)
        self._check_steppable(self._over)
        sessions, waited = self._sessions, np.flatnonzero(self._over) if self._mode == NEXT_STEP else _NONE
        self._begin(waited)
        acting = np.delete(self._all_lanes, waited) if len(waited) else self._all_lanes
        event = sessions.respond(acting, recommended)
        reward = event.pop("reward")
        self._n_steps[acting] += 1
        terminated, truncated = sessions.gone.copy(), np.zeros(self.num_envs, bool)
        if self.max_episode_steps is not None:
            truncated = self._n_steps >= self.max_episode_steps
        self._over = terminated | truncated
        silent, final = waited, {}
        if self._mode == SAME_STEP:
            silent = np.flatnonzero(self._over)
            if self._terminal_info and len(silent):
                final = final_entries(
                    silent, sessions.observations(silent), event | {"session": sessions.number.copy()}
                )
            self._begin(silent)
        place = {"session": sessions.number.copy()}
        observations = sessions.observations(self._all_lanes)
        if not self._terminal_info:
            return observations, reward, terminated, truncated, event | place
        consumed = np.ones(self.num_envs, bool)
        info = with_masks(place, consumed)
        consumed[silent] = False
        event = {key: value * consumed for key, value in event.items()}
        return observations, reward, terminated, truncated, info | with_masks(event, consumed) | final

    def policy_uniforms(self) -> np.ndarray:
        """[B] float64 in [0, 1), one for each lane's next action, a function of its session and step alone.

        A policy that draws its actions with them meets the same luck whenever it sees the session again.
        """
        return self._sessions.policy_uniforms()

    def event_times(self) -> np.ndarray:
        """[B] int64, nanoseconds since the epoch, of the newest event of each lane."""
        return self._sessions.lanes.time.copy()

    def _begin(self, lanes: np.ndarray) -> None:
        self._sessions.begin(lanes)
        self._over[lanes], self._n_steps[lanes] = False, 0

    def _reseed(self, seeds: list[int | None] | None, lanes: np.ndarray, first: int) -> None:
        given = self._order_seeds(seeds, lanes)
        if given is None:
            return
        if self.assignment == "strided":
            for lane, seed in given.items():
                self._sessions.restart(lane, seed, first + lane)
        elif given:
            several = len(set(given.values())) > 1
            drawn = np.random.SeedSequence(list(given.values())).generate_state(1, np.uint64)
            self._sessions.restart(slice(None), int(drawn[0]) if several else next(iter(given.values())), first)
        self._seeded = True


class LiveSessions:
    """B sessions under way, which the environments of one lane and of many share: begin, respond, observe.

    In a `queue` all lanes take the next session of one sequence; otherwise each its own next one, `stride` on.
    """

    def __init__(self, config: LiveShopConfig, n_lanes: int, stride: int, queue: bool = False) -> None:
        self.config, self._queue, self._stride = config, queue, stride
        self.shoppers = empty_lanes(n_lanes, config.shop.max_events)
        self.lanes = empty_sessions(n_lanes, config.window, config.n_items)
        self._world = _world(config)
        self._reward_of = np.array(config.rewards, dtype=np.float64)

    @property
    def number(self) -> np.ndarray:
        """[B] int64, sessions under way; the array itself."""
        return self.lanes.session

    @property
    def gone(self) -> np.ndarray:
        """[B] bool, the shoppers who have left."""
        return self.shoppers.phase == GONE

    def restart(self, lanes: int | slice, seed: int, first: int) -> None:
        """The next shopper of `lanes` is that of session `first` of this `seed`."""
        self.lanes.seed[lanes], self.lanes.upcoming[lanes] = seed, first

    def begin(self, which: np.ndarray) -> None:
        """The lanes `which` [n] take a session each."""
        if len(which):
            begin(self._world, self.shoppers, self.lanes, which, self._queue, self._stride)

    def respond(self, which: np.ndarray, recommended: np.ndarray) -> dict[str, np.ndarray]:
        """What the shoppers of the lanes `which` [n] do about `recommended` [B, K]; arrays [B], 0 in other lanes."""
        if recommended.size and not (0 <= recommended.min() and recommended.max() < self.config.n_items):
            raise InputError(
                f"step: expected items 0..{self.config.n_items - 1}, found {recommended.min()}..{recommended.max()}"
            )
        n_lanes = len(recommended)
        kind, followed = np.zeros(n_lanes, np.int64), np.zeros(n_lanes, bool)
        respond(self._world, self.shoppers, self.lanes, which, recommended, kind, followed)
        acted = np.zeros(n_lanes, bool)
        acted[which] = True
        item, worth = self.lanes.items[:, -1] * acted.astype(np.int64), self._reward_of[kind] * acted
        counted = worth if self.config.feedback == "all" else worth * (recommended == item[:, None]).any(axis=1)
        return {
            "logged_action": item,
            "logged_kind": kind,
            "logged_reward": worth,
            "logged_time": self.lanes.time * acted,
            "followed": followed,
            "reward": counted if counted is not worth else worth.copy(),
        }

    def observations(self, which: np.ndarray) -> Any:
        """Of the lanes `which` [n], copied."""
        config, shoppers = self.config, self.shoppers
        items = self.lanes.items[which]
        if not config.dict_observations:
            return items
        observations = {"items": items}
        if config.kinds:
            observations["kinds"] = self.lanes.kinds[which]
        if config.reveal_intent:
            intent = shoppers.cluster[which], shoppers.level[which], shoppers.phase[which]
            observations["intent"] = np.stack(intent, axis=1).astype(np.int64)
            observations["urgency"] = shoppers.urgency[which, None].astype(np.float32)
        return observations

    def policy_uniforms(self) -> np.ndarray:
        """[B] float64 in [0, 1)."""
        out = np.empty(len(self.number))
        policy_uniforms(self.shoppers, self.lanes, out)
        return out


def _first_session(options: dict[str, Any] | None) -> int:
    """Raises `InputError` for what is no number of a session."""
    first = (options or {}).get("first_session", 0)
    if not isinstance(first, (int, np.integer)) or first < 0:
        raise InputError(f"options['first_session']: expected a number from 0 on, found {first!r}")
    return int(first)


@lru_cache(maxsize=8)
def live_shop(config: ShopConfig, seed: int) -> Shop:
    """`Shop(config, seed)`, drawn once for all environments of it in a process."""
    return Shop(config, seed)


@lru_cache(maxsize=8)
def _world(config: LiveShopConfig) -> World:
    shop = live_shop(config.shop, config.shop_seed)
    catalogue, n_items = shop.catalogue, config.n_items
    bait = np.zeros(n_items, np.bool_)
    bait[np.lexsort((-catalogue.popularity, catalogue.level))[: round(config.bait_share * n_items)]] = True
    return World(
        catalogue=catalogue,
        rates=rates_of(config.shop),
        effects=Effects(*(float(getattr(config, name)) for name in Effects._fields)),
        bait=bait,
        # The law of the log's starts, as a large sample of it.
        start=_arrivals(config.shop, _N_STARTS, np.random.default_rng(config.shop_seed)),
    )


_FIRST = np.zeros(1, np.int64)
_NONE = np.zeros(0, np.int64)
