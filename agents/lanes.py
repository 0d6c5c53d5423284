"""The recurrent states of the lanes that a learner walks: carried along, or encoded anew from the last items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..envs.replay_options import NO_KIND
from ..envs.rollout import Rollout
from ..errors import InputError
from ..nn.copying import window_stream
from ..nn.policy import RecurrentPolicy, SessionState


@dataclass(frozen=True, eq=False)
class PartialRollout(Rollout):
    """A rollout in which some lanes have no session left; what they hold instead is a session to nobody."""

    real: np.ndarray | None = None
    """[T, B] bool, the steps that are events; None: all are."""


class Steps(NamedTuple):
    """A `Rollout` on the learner's device; every tensor [T, B] but `rewarded`."""

    item: Tensor
    start: Tensor
    action: Tensor
    reward: Tensor
    done: Tensor
    item_kind: Tensor
    rewarded: Tensor
    """[R] the steps with a reward above 0, as rows of the flattened [T B]; found on the host, which need not wait."""
    real: Tensor | None = None
    """[T B] bool, the steps that are events and to be learned from, in a `PartialRollout`; None: all are."""
    credited: Tensor | None = None
    """[T, B] actions that the rewards are for, where these are not `action`."""

    @classmethod
    def of(cls, rollout: Rollout, kinds: bool, device: torch.device) -> Steps:
        """Raises `InputError` where a network with `kinds` gets a rollout without them."""
        kind = rollout.item_kind
        if kind is None:
            if kinds:
                raise InputError("kinds: the rollouts do not tell the kind of the newest item; make the env kinds=True")
            kind = np.zeros_like(rollout.kind)
        reward, real = rollout.reward, rollout.real if isinstance(rollout, PartialRollout) else None
        if real is not None:
            reward = np.where(real, reward, np.float32(0))
        rewarded = np.flatnonzero(reward > 0)
        columns = (rollout.item, rollout.start, rollout.action, reward, rollout.done, kind, rewarded)
        item, start, action, *rest = (
            torch.from_numpy(np.ascontiguousarray(column)).to(device, non_blocking=True) for column in columns
        )
        to_learn = None if real is None else torch.from_numpy(real.ravel()).to(device)
        credited = rollout.credited_action
        if credited is not None:
            credited = torch.from_numpy(credited).to(device).long()
        return cls(item.long(), start, action.long(), *rest, real=to_learn, credited=credited)

    def tensors(self) -> dict[str, Tensor]:
        """By name; `Steps(**steps.tensors())` is the same again."""
        return {name: part for name, part in self._asdict().items() if part is not None}

    @property
    def rewarded_action(self) -> Tensor:
        """[T, B] what the rewards are for."""
        return self.action if self.credited is None else self.credited

    @property
    def n_events(self) -> int:
        """Steps that are events."""
        return self.item.numel() if self.real is None else int(self.real.sum())

    def masked(self, values: Tensor) -> Tensor:
        """`values` [T B], 0 at steps that are no events."""
        return values if self.real is None else values * self.real

    def chosen(self, rows: Tensor) -> Tensor:
        """Of `rows` [T B, ...] those of the steps that are events."""
        return rows if self.real is None else rows[self.real]


class LaneStates:
    """The states of one network in B lanes, rollout after rollout.

    With a `history` of L items each state is encoded anew from the last L items of its session.
    """

    def __init__(self, policy: RecurrentPolicy, n_lanes: int, history: int | None) -> None:
        self.policy, self.n_lanes, self.history = policy, n_lanes, history
        self.start()

    def start(self) -> None:
        """Lanes without a past."""
        policy = self.policy
        self.carried = policy.initial_state(self.n_lanes)
        if self.history is not None:
            device, shape = policy.w_hh.device, (self.n_lanes, self.history)
            self.window = torch.full(shape, policy.n_items, device=device)
            self.window_kind = torch.full(shape, NO_KIND, dtype=torch.uint8, device=device)

    def advance(self, steps: Steps, generator: torch.Generator | None = None) -> SessionState:
        """States [T, B, ...] after each item of `steps`, where the next call goes on; a generator: with dropout."""
        if self.history is None:
            kinds = steps.item_kind if self.policy.config.kinds else None
            states = self.policy.unroll(steps.item, steps.start, self.carried, kinds, generator)
            self.carried = states.map(lambda part: part[-1].detach().clone())
            return states
        windows = window_stream(self.window, steps.item, steps.start, self.policy.n_items)
        kinds = window_stream(self.window_kind, steps.item_kind, steps.start, NO_KIND)
        self.window, self.window_kind = windows[-1].clone(), kinds[-1].clone()
        states = self.policy.encode(windows.flatten(0, 1), kinds.flatten(0, 1), generator)
        return states.map(lambda part: part.unflatten(0, steps.item.shape))

    def tensors(self) -> dict[str, Tensor]:
        """What the next call depends on, by name."""
        if self.history is not None:
            return {"window": self.window, "window_kind": self.window_kind}
        return {name: part for name, part in self.carried._asdict().items() if part is not None}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        if self.history is not None:
            self.window, self.window_kind = tensors["window"], tensors["window_kind"]
        else:
            self.carried = SessionState(**tensors)
