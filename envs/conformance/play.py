"""Environments played with given actions, and what they returned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from .report import NoVerdict


class Moment(NamedTuple):
    """What one call of `reset` (no reward, nothing ended) or `step` returned."""

    call: str
    observation: Any
    info: dict[str, Any]
    reward: Any = None
    terminated: Any = None
    truncated: Any = None

    @property
    def is_step(self) -> bool:
        return self.reward is not None

    @property
    def ended(self) -> np.ndarray:
        return np.logical_or(self.terminated, self.truncated) if self.is_step else np.zeros(0, dtype=bool)

    def copy(self) -> Moment:
        # A plain tuple, because `deepcopy` of this class itself takes the long way that pickling takes.
        return Moment._make(deepcopy(tuple(self)))


def play(
    env: Any,
    mode: AutoresetMode,
    actions: Iterable[Any],
    seed: int | list[int] | None,
    masks: Sequence[np.ndarray] = (),
    reset_whole: bool = False,
) -> Iterator[Moment]:
    """What a reset and `actions` return, not copied.

    In DISABLED, and with `masks`, the lanes that ended are reset after each step t, as are those of ``masks[t]`` [B].
    With `reset_whole` every lane is, as soon as one has to be.
    """
    yield Moment(f"reset(seed={seed})", *env.reset(seed=seed))
    yield from go_on(env, mode, actions, masks, reset_whole)


def go_on(
    env: Any,
    mode: AutoresetMode,
    actions: Iterable[Any],
    masks: Sequence[np.ndarray] = (),
    reset_whole: bool = False,
) -> Iterator[Moment]:
    """`play` from where the environment is."""
    for number, action in enumerate(actions):
        observation, reward, terminated, truncated, info = env.step(deepcopy(action))
        moment = Moment(f"step {number}", observation, info, reward, terminated, truncated)
        mask = np.zeros(env.num_envs, dtype=bool)
        if masks:
            mask |= masks[number] | moment.ended
        elif mode is AutoresetMode.DISABLED:
            mask |= moment.ended
        yield moment
        if mask.any():
            options = None if reset_whole else {"reset_mask": mask.copy()}
            yield Moment(f"reset of lanes {np.flatnonzero(mask)} after step {number}", *env.reset(options=options))


def copies(moments: Iterable[Moment]) -> list[Moment]:
    return [moment.copy() for moment in moments]


@contextmanager
def opened(make: Callable[[], Any]) -> Iterator[Any]:
    env = make()
    try:
        yield env
    finally:
        # Whether closing works is a finding of its own.
        with suppress(Exception):
            env.close()


@dataclass(frozen=True, eq=False)
class Case:
    """The environment under test in one autoreset mode, its reference, and what both are given. B lanes, T steps."""

    make: Callable[[], VectorEnv]
    make_reference: Callable[[], SyncVectorEnv]
    mode: AutoresetMode
    seed: int
    num_envs: int
    """B."""
    single_observation_space: spaces.Space
    single_action_space: spaces.Space
    actions: list[Any]
    """[T], each one of `action_space`."""
    other_actions: list[Any]
    """[T], others."""
    passed: set[str] = field(default_factory=set)
    """The properties that hold, as far as they have been judged."""

    @cached_property
    def observation_space(self) -> spaces.Space:
        return batch_space(self.single_observation_space, self.num_envs)

    @cached_property
    def action_space(self) -> spaces.Space:
        return batch_space(self.single_action_space, self.num_envs)

    @cached_property
    def trace(self) -> list[Moment]:
        return self.play(self.make)

    @cached_property
    def reference_trace(self) -> list[Moment]:
        return self.play(self.make_reference)

    def play(
        self,
        make: Callable[[], VectorEnv],
        seed: int | list[int] | None = None,
        actions: list[Any] | None = None,
        masks: Sequence[np.ndarray] = (),
    ) -> list[Moment]:
        """Copies of what a fresh environment returns."""
        seed = self.seed if seed is None else seed
        with opened(make) as env:
            return copies(play(env, self.mode, self.actions if actions is None else actions, seed, masks))

    def need(self, name: str) -> None:
        """Raises `NoVerdict` where the property does not hold without which an answer would mean nothing."""
        if name not in self.passed:
            raise NoVerdict("not judged", f"needs {name}")

    def first_end(self) -> int:
        """The moment in `trace` at which a lane first ends, with another after it; raises `NoVerdict` if none does."""
        for number, moment in enumerate(self.trace[:-1]):
            if moment.ended.any():
                return number
        raise NoVerdict("not judged", f"no lane ended in {len(self.actions)} steps; give a larger n_steps")

    def rows(self, observation: Any) -> list[Any]:
        """[B] observations, one a lane."""
        return list(iterate(self.observation_space, observation))
