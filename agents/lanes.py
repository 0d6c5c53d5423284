"""The recurrent states of the lanes that a learner walks: carried along, or encoded anew from the last items."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..envs.replay_options import NO_KIND
from ..envs.rollout import Rollout
from ..errors import InputError
from ..nn.copying import window_stream
from ..nn.policy import RecurrentPolicy, SessionState


class Steps(NamedTuple):
    """A `Rollout` on the learner's device; every tensor [T, B] but the last."""

    item: Tensor
    start: Tensor
    action: Tensor
    reward: Tensor
    done: Tensor
    item_kind: Tensor
    rewarded: Tensor
    """[R] the steps with a reward above 0, as rows of the flattened [T B]; found on the host, which need not wait."""

    @classmethod
    def of(cls, rollout: Rollout, kinds: bool, device: torch.device) -> Steps:
        """Raises `InputError` where a network with `kinds` gets a rollout without them."""
        kind = rollout.item_kind
        if kind is None:
            if kinds:
                raise InputError("kinds: the rollouts do not tell the kind of the newest item; make the env kinds=True")
            kind = np.zeros_like(rollout.kind)
        rewarded = np.flatnonzero(rollout.reward > 0)
        columns = (rollout.item, rollout.start, rollout.action, rollout.reward, rollout.done, kind, rewarded)
        item, start, action, *rest = (
            torch.from_numpy(np.ascontiguousarray(column)).to(device, non_blocking=True) for column in columns
        )
        return cls(item.long(), start, action.long(), *rest)


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
