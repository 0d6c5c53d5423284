"""The checkpoint of a training in progress: one file without pickle, replaced in one step."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

CHECKPOINT, LAST = "checkpoint.safetensors", "last.safetensors"


class Learner(Protocol):
    """What can be checkpointed: everything that the rest of its training depends on is in its tensors."""

    device: torch.device

    def state_tensors(self) -> dict[str, Tensor]: ...

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None: ...


@dataclass
class Marks:
    """Where a training stands."""

    best_score: float = -float("inf")
    """Of the epochs so far."""
    best_epoch: int = 0
    """The epoch with that score."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """Its weights by name."""
    history: list[dict] = field(default_factory=list)
    """The scalars of each finished epoch."""
    updates: int = 0
    """Updates of the epoch under way; 0 between two epochs."""

    @property
    def epoch(self) -> int:
        """The epoch under way, or the next."""
        return len(self.history)

    def keep_best(self, score: float, epoch: int, weights: dict[str, Tensor]) -> None:
        """Copy the weights where no epoch before was as good."""
        if score > self.best_score:
            self.best_score, self.best_epoch = score, epoch
            self.best = {name: weight.detach().clone() for name, weight in weights.items()}


def save_checkpoint(folder: Path, learner: Learner, marks: Marks) -> None:
    """One file, replaced in one step: a run cut off at any moment leaves the last whole checkpoint."""
    tensors = learner.state_tensors() | prefixed("best", marks.best)
    plain = {"best_score": marks.best_score, "best_epoch": marks.best_epoch, "updates": marks.updates}
    metadata = {"marks": json.dumps(plain), "history": json.dumps(marks.history)}
    temporary = folder / f"{CHECKPOINT}.tmp"
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, temporary, metadata=metadata)
    os.replace(temporary, folder / CHECKPOINT)


def load_checkpoint(folder: Path | None, learner: Learner) -> Marks:
    """Bring `learner` to where the training of `folder` stopped; a training without a checkpoint begins."""
    file = None if folder is None else folder / CHECKPOINT
    if file is None or not file.exists():
        return Marks()
    tensors = load_file(file, device=str(learner.device))
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    learner.load_state_tensors(tensors)
    return Marks(
        **json.loads(metadata["marks"]), best=part_of(tensors, "best"), history=json.loads(metadata["history"])
    )


def save_last(folder: Path, weights: dict[str, Tensor]) -> None:
    """Keep the weights that training ended with beside those of the best epoch, under the same names."""
    save_file({name: weight.detach().clone().contiguous() for name, weight in weights.items()}, folder / LAST)


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``PREFIX.name`` for each name."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those that `prefixed` named, by their own names."""
    dotted = f"{prefix}."
    return {name.removeprefix(dotted): t for name, t in tensors.items() if name.startswith(dotted)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments and counters of an optimiser, by ``PARAMETER.name``."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": moment for index, moments in state.items() for key, moment in moments.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Go on from what `optimizer_tensors` gave."""
    content = optimizer.state_dict()
    for name, moment in tensors.items():
        index, key = name.split(".")
        content["state"].setdefault(int(index), {})[key] = moment
    optimizer.load_state_dict(content)
