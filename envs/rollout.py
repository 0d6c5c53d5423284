"""`Rollout`, the one form in which every learner receives experience, and a collector for any vector environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Rollout:
    """T steps of B lanes; every array is [T, B].

    At step t a lane is in the state whose newest item is `item`; the event that follows is (`action`, `kind`).
    A recurrent learner zeroes its state where `start` is set, then consumes `item`, then predicts `action`.
    """

    item: np.ndarray
    """int32, newest item of the state."""
    start: np.ndarray
    """bool, the state is the first one of its session."""
    action: np.ndarray
    """int32, the item of the logged event (of the shopper's event, in a live shop)."""
    kind: np.ndarray
    """uint8, kind of that event: 0 click, 1 purchase."""
    reward: np.ndarray
    """float32, logged reward of that event."""
    done: np.ndarray
    """bool, that event ends the session."""
    item_kind: np.ndarray | None = None
    """uint8, kind of the event that brought the newest item; None where the observations do not tell kinds."""
    sampled_action: np.ndarray | None = None
    """int32, what the agent did, where it acted."""
    log_probability: np.ndarray | None = None
    """float32, natural log of the probability it gave to that action."""
    credited_action: np.ndarray | None = None
    """int32, what `reward` is to be credited to, where that is not `action`: what the agent did, of one that learns
    from its own doings."""


class Logged(NamedTuple):
    """The events that one step consumed; every array is [B]."""

    action: np.ndarray
    """int64, logged item; meaningless where `valid` is False."""
    kind: np.ndarray
    """int64, 0 click, 1 purchase."""
    reward: np.ndarray
    """float64."""
    valid: np.ndarray
    """bool, the lane consumed an event in this step."""


def logged(info: Mapping[str, Any]) -> Logged:
    """What the step that returned `info` consumed in every lane, the lanes that just ended included.

    Under ``AutoresetMode.SAME_STEP`` Gymnasium moves the info of an ending lane into ``final_info``; reading the top
    level alone would lose the last event of each session, which is mostly its purchase. Lanes that were reset, and
    the info of a reset, have consumed nothing. Raises `InputError` for the info of another environment.
    """
    if "session" not in info:
        raise InputError(
            "logged(info): expected the info of a vector of replay environments, which says each lane's 'session', "
            f"found {sorted(info)}"
        )
    n_lanes = len(info["session"])
    merged = Logged(
        np.zeros(n_lanes, np.int64), np.zeros(n_lanes, np.int64), np.zeros(n_lanes), np.zeros(n_lanes, bool)
    )
    for part in (info, info.get("final_info")):
        if part is None or "logged_action" not in part:
            continue
        mask = np.asarray(part.get("_logged_action", np.ones(n_lanes, bool)))
        merged.action[mask] = part["logged_action"][mask]
        merged.kind[mask] = part["logged_kind"][mask]
        merged.reward[mask] = part["logged_reward"][mask]
        merged.valid[mask] = True
    return merged


class RolloutCollector:
    """Rollouts from any vector environment whose observations are windows of items and whose info carries `logged_*`.

    `act` maps observations, [B, W] int32 or with ``kinds=True`` a dict of them and of kinds, to (actions [B],
    log-probabilities [B] or None). The environment must reset a lane in the step that ends it
    (``AutoresetMode.SAME_STEP``), or its steps would not all be events.
    """

    def __init__(
        self,
        env: VectorEnv,
        act: Callable[[Any], tuple[np.ndarray, np.ndarray | None]],
        seed: int | None = None,
    ) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise InputError(f"RolloutCollector: expected AutoresetMode.SAME_STEP, found {mode}; make the env with it")
        self.env, self.act = env, act
        self.observation, _ = env.reset(seed=seed)
        self.start = np.ones(env.num_envs, dtype=bool)

    def rollout(self, n_steps: int) -> Rollout:
        """The next `n_steps` steps of every lane, [T, B]."""
        rows: list[tuple[np.ndarray, ...]] = []
        newest_kinds: list[np.ndarray] = []
        samples: list[np.ndarray] = []
        log_probabilities: list[np.ndarray] = []
        for _ in range(n_steps):
            action, log_probability = self.act(self.observation)
            newest, newest_kind = _newest(self.observation)
            start = self.start
            self.observation, _, terminated, truncated, info = self.env.step(action)
            event = logged(info)
            done = np.logical_or(terminated, truncated)
            rows.append((newest, start, event.action, event.kind, event.reward, done))
            if newest_kind is not None:
                newest_kinds.append(newest_kind)
            samples.append(np.asarray(action))
            if log_probability is not None:
                log_probabilities.append(log_probability)
            self.start = done
        item, start, action, kind, reward, done = (np.stack(column) for column in zip(*rows, strict=True))
        return Rollout(
            item=item.astype(np.int32),
            start=start,
            action=action.astype(np.int32),
            kind=kind.astype(np.uint8),
            reward=reward.astype(np.float32),
            done=done,
            item_kind=np.stack(newest_kinds).astype(np.uint8) if newest_kinds else None,
            sampled_action=np.stack(samples).astype(np.int32),
            log_probability=np.stack(log_probabilities).astype(np.float32) if log_probabilities else None,
        )


def _newest(observation: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """[B] items and kinds of the newest events, copied: the environment may write into its arrays again."""
    if isinstance(observation, Mapping):
        return observation["items"][:, -1].copy(), observation["kinds"][:, -1].copy()
    return observation[:, -1].copy(), None
