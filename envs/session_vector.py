"""What vector environments of sessions share: modes, checks of what they are given, and the infos of Gymnasium."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv

from ..errors import InputError
from .replay_lanes import DISABLED, MODES
from .replay_source import order_seed


class SessionVectorEnv(VectorEnv):
    """B lanes that walk sessions. A subclass sets the spaces and `_seeded`, and implements `reset` and `step`."""

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - Gymnasium's convention

    def __init__(
        self,
        num_envs: int,
        autoreset_mode: AutoresetMode | str,
        terminal_info: bool,
        max_episode_steps: int | None,
        render_mode: None,
    ) -> None:
        super().__init__()
        self.num_envs, self.render_mode = num_envs, render_mode
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            known = ", ".join(str(mode) for mode in AutoresetMode)
            raise InputError(f"autoreset_mode: expected one of {known}, found {autoreset_mode!r}") from None
        if num_envs < 1:
            raise InputError(f"num_envs: expected at least 1 lane, found {num_envs}")
        if not terminal_info and self.autoreset_mode == AutoresetMode.NEXT_STEP:
            raise InputError(
                "terminal_info=False: in AutoresetMode.NEXT_STEP the masks say which lanes consumed an event; "
                "leave it on or choose SAME_STEP"
            )
        if max_episode_steps is not None and max_episode_steps < 1:
            raise InputError(f"max_episode_steps: expected at least 1 or None, found {max_episode_steps}")
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.max_episode_steps, self._terminal_info = max_episode_steps, terminal_info
        self._mode = MODES[self.autoreset_mode]
        self._seeded = False

    def _lane_seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None] | None:
        """A seed for each lane, or None where all go on."""
        if seed is None:
            return None
        seeds: list[Any] = [seed]
        if isinstance(seed, (int, np.integer)):
            seeds = [int(seed) + lane for lane in range(self.num_envs)]
        elif isinstance(seed, (Sequence, np.ndarray)):
            seeds = list(seed)
        whole = all(value is None or (isinstance(value, (int, np.integer)) and value >= 0) for value in seeds)
        if len(seeds) != self.num_envs or not whole:
            raise InputError(
                f"reset: expected seed None, an int of at least 0 or a list of {self.num_envs} of these, found {seed!r}"
            )
        return [None if value is None else int(value) for value in seeds]

    def _order_seeds(self, seeds: list[int | None] | None, lanes: np.ndarray) -> dict[int, int] | None:
        """What decides the order of the sessions of those lanes that begin anew; None where all go on."""
        if seeds is None or all(seed is None for seed in seeds):
            if self._seeded:
                return None
            # Drawn here where none was given.
            self.np_random  # noqa: B018
            seeds = [(self.np_random_seed or 0) + lane for lane in range(self.num_envs)]
        else:
            self._np_random, self._np_random_seed = seeding.np_random(next(s for s in seeds if s is not None))
        given = {lane: order_seed(seed, lane) for lane in lanes.tolist() if (seed := seeds[lane]) is not None}
        if not self._seeded:
            given |= {lane: int(self.np_random.integers(2**63)) for lane in lanes.tolist() if lane not in given}
        return given

    def _integer_actions(self, actions: Any) -> np.ndarray:
        """[B] or [B, K] int64, contiguous and writeable: one form, one compilation."""
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise InputError(f"step: expected actions of shape {self.action_space.shape}, found {actions.shape}")
        if not (actions.dtype == np.int64 and actions.flags.carray):
            if actions.dtype.kind not in "iu":
                raise InputError(f"step: expected actions of an integer type, found {actions.dtype}")
            actions = actions.astype(np.int64, order="C")
        return actions

    def _lanes_to_reset(self, options: dict[str, Any] | None, begun: np.ndarray) -> np.ndarray:
        """[n] numbers of the lanes in ``options["reset_mask"]``, all where there is none; others have `begun` [B]."""
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return np.arange(self.num_envs)
        if not (isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == (self.num_envs,) and mask.any()):
            raise InputError(
                f"options['reset_mask']: expected a bool array of shape ({self.num_envs},) with a True in it, "
                f"found {mask!r}"
            )
        if not begun[~mask].all():
            raise InputError(
                "reset: options['reset_mask'] leaves out lanes that have never been reset; call reset without it first"
            )
        return np.flatnonzero(mask)

    def _check_steppable(self, over: np.ndarray) -> None:
        """`over` [B]: the lanes that wait for a reset."""
        if not self._seeded:
            raise InputError("there are no sessions to go on with; call reset first")
        if self._mode == DISABLED and over.any():
            waiting = np.flatnonzero(over)
            lanes = ", ".join(map(str, waiting[:5].tolist())) + (", ..." if len(waiting) > 5 else "")
            raise InputError(
                f"step: lanes {lanes} have ended and autoreset is disabled; "
                "call reset(options={'reset_mask': terminated | truncated}) first"
            )


def with_masks(values: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, Any]:
    """`values`, each [B], and beside each its mask as Gymnasium has it, an array of its own."""
    return values | {f"_{key}": mask.copy() for key in values}


def final_entries(lanes: np.ndarray, observations: Any, values: dict[str, np.ndarray]) -> dict[str, Any]:
    """`final_obs` and `final_info` of the lanes [n] that have ended: their observations, n rows, and `values`, [B]."""
    n_lanes = len(next(iter(values.values())))
    mask = np.zeros(n_lanes, dtype=bool)
    mask[lanes] = True
    rows = observations
    if isinstance(observations, dict):
        rows = [dict(zip(observations, row, strict=True)) for row in zip(*observations.values(), strict=True)]
    final_obs = np.empty(n_lanes, dtype=object)
    # `fromiter`, because an assignment of rows of one length would make one array of them.
    final_obs[lanes] = np.fromiter(rows, dtype=object, count=len(lanes))
    entries = {"final_obs": final_obs, "final_info": with_masks(values, mask)}
    return entries | {"_final_obs": mask, "_final_info": mask.copy()}
