"""A learner's imagination: pi^ and its states in the real sessions, and the loss that reconstruction adds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..nn.checkpoint import part_of, prefixed
from ..nn.copying import window_stream
from ..nn.optimizer import TableAdam
from ..nn.policy import NetworkConfig, RecurrentPolicy, SessionState
from .config import AgentConfig
from .imagination import ImaginationCore, Planner, SeenItems, TrajectoryManager, distillation_loss, reconstruction_loss
from .lanes import LaneStates, Steps

SEEN_WINDOW = 20
"""Of a session's items, the last so many can be reconstructed by the agents that reconstruct seen items."""


CAME_TRUE_DECAY = 0.99
"""Of the running share of imagined items that come true, an update."""


class Imagining:
    """Owns pi^: a frozen copy of the policy, or a smaller network and the optimiser that distils the policy into it.

    Items are imagined in the states that pi^ itself has of the real sessions, and reconstructed in those of the policy.
    Agents that reconstruct seen items (the paper's PRN) need no pi^.
    """

    def __init__(self, config: AgentConfig, policy: RecurrentPolicy, generator: torch.Generator) -> None:
        self.config, self.n_items, self.device = config, policy.n_items, policy.w_hh.device
        self.core = self.optimizer = self.lanes = None
        if config.reconstruct == "seen":
            self.planner: Planner = SeenItems(generator, self.n_items, config.breadth, config.depth)
        else:
            if config.imagination_policy == "distilled":
                student = _student(config, policy, generator.initial_seed())
                self.optimizer = TableAdam(dict(student.named_parameters()), config.learning_rate)
                self.core = ImaginationCore(student, generator, frozen_copy=False)
            else:
                self.core = ImaginationCore(policy, generator)
            self.planner = TrajectoryManager(self.core, config.breadth, config.depth, config.branching)
            self.lanes = LaneStates(self.core.policy, config.lanes, config.history)
        self.came_true = torch.zeros((), device=self.device)
        """Running share of states whose next item was among the first imagined ones."""
        self.start()

    def start(self) -> None:
        """Lanes without a past."""
        if self.lanes is not None:
            self.lanes.start()
        self.window = torch.full((self.config.lanes, SEEN_WINDOW), self.n_items, device=self.device)

    def refresh(self, policy: RecurrentPolicy) -> None:
        """Take over the weights of the learning policy; a distilled network learns all along instead."""
        if self.core is not None and self.optimizer is None:
            self.core.refresh(policy)

    def weight(self, events: int) -> float:
        """Of the reconstruction after so many training events."""
        begun = events - self.config.imagination_start
        if begun < 0:
            return 0.0
        warmup = self.config.imagination_warmup
        return self.config.imagination_weight * (min(begun / warmup, 1.0) if warmup else 1.0)

    def loss(self, policy: RecurrentPolicy, states: SessionState, steps: Steps, events: int) -> tuple[Tensor, Tensor]:
        """What is added to the loss in the states [T B, ...] of `steps`, and the reconstruction error behind it."""
        # pi^ follows the real sessions whether or not anything is imagined yet.
        imagined_from = self._seen(steps) if self.lanes is None else self._encode(policy, states, steps)
        weight = self.weight(events)
        if weight == 0:
            zero = states.hidden.new_zeros(())
            return zero, zero
        imagined = self.planner.imagine(imagined_from)
        states, action = states.map(steps.chosen), steps.chosen(steps.action.flatten())
        error = reconstruction_loss(policy, states, imagined, self.config.reconstruction, self.config.gamma)
        loss = weight * (len(action) / steps.item.numel()) * error
        if self.config.imagination_gate > 0:
            loss = loss * (self.came_true / self.config.imagination_gate).clamp(max=1.0)
            # Only now: the weight of a rollout must not depend on what its shoppers did next.
            hit = (imagined[0] == action).any(dim=0).float().mean()
            self.came_true = torch.lerp(hit, self.came_true, CAME_TRUE_DECAY)
        return loss, error.detach()

    def _seen(self, steps: Steps) -> Tensor:
        windows = window_stream(self.window, steps.item, steps.start, self.n_items)
        self.window = windows[-1].clone()
        return steps.chosen(windows.flatten(0, 1))

    def _encode(self, policy: RecurrentPolicy, states: SessionState, steps: Steps) -> SessionState:
        """States [R, ...] of pi^ at the steps that are events; a distilled one is trained on the way."""
        assert self.lanes is not None
        own = self.lanes.advance(steps).map(lambda part: steps.chosen(part.flatten(0, 1)))
        if self.optimizer is not None:
            with torch.no_grad():
                teacher = policy.logits(states.map(steps.chosen))
            self.optimizer.zero_grad()
            distillation_loss(self.lanes.policy.logits(own), teacher).backward()
            self.optimizer.step(clip_norm=math.inf)
        return own.map(Tensor.detach)

    def state_tensors(self) -> dict[str, Tensor]:
        """All that the next loss depends on, by name."""
        tensors = {"window": self.window, "came_true": self.came_true}
        if self.lanes is not None:
            tensors |= prefixed("policy", self.lanes.policy.state_dict()) | prefixed("lanes", self.lanes.tensors())
        if self.optimizer is not None:
            tensors |= prefixed("adam", self.optimizer.state_tensors())
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state_tensors` gave."""
        self.window, self.came_true = tensors["window"], tensors["came_true"]
        if self.lanes is not None:
            self.lanes.policy.load_state_dict(part_of(tensors, "policy"))
            self.lanes.load_tensors(part_of(tensors, "lanes"))
        if self.optimizer is not None:
            self.optimizer.load_state_tensors(part_of(tensors, "adam"))


def _student(config: AgentConfig, policy: RecurrentPolicy, seed: int) -> RecurrentPolicy:
    """A network of fewer units for the same items, without dropout."""
    units = config.distilled_units
    network = NetworkConfig(
        hidden_units=units,
        embedding_dim=None if config.embedding_dim is None else units,
        tied=config.tied,
        copy_window=config.copy_window,
        kinds=config.kinds,
    )
    return RecurrentPolicy(policy.n_items, network, torch.Generator().manual_seed(seed)).to(policy.w_hh.device)
