"""The loop that every gradient training goes through: epochs, validation, early stopping, checkpoints, progress."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ..scalars import ScalarLog
from .checkpoint import Learner, Marks, load_checkpoint, part_of, prefixed, save_checkpoint, save_last

Progress = Callable[[int, int, str], None]
"""Called with the updates done, their largest number, and a few words."""

Scores = float | Mapping[str, float]
"""What a validation gives: a score, or several by name, of which epochs are kept by the one called "validation"."""

CHECKPOINT_SECONDS = 60.0
"""Between two checkpoints within an epoch. When they are written changes nothing in what is trained."""

UPDATES_PER_REPORT = 20
"""Updates between two reports of progress."""


class Trainer(Learner, Protocol):
    """Something that is trained epoch by epoch."""

    n_updates: int
    """Updates of an epoch."""
    resumes_within_epoch: bool
    """Whether a checkpoint taken between two updates is enough to go on from; if not, only those between epochs are."""

    def updates(self, epoch: int, done: int = 0) -> Iterator[int]:
        """Train one epoch, yielding the updates done so far; `done` of them were done before the checkpoint."""
        ...


def validated(scores: Scores) -> dict[str, float]:
    """What a validation gave, as scalars to be kept."""
    return dict(scores) if isinstance(scores, Mapping) else {"validation": scores}


def train_epochs(
    trainer: Trainer,
    n_epochs: int,
    patience: int,
    *,
    weights: Callable[[], dict[str, Tensor]],
    finish: Callable[[], dict[str, float]],
    folder: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Train up to `n_epochs` epochs and return the weights of the best, copies of what `weights` gave at its end.

    `finish` is called at the end of each epoch and gives its scalars: ``events`` trained on so far, ``validation`` (the
    score that the best epoch is chosen by; without one it is the last epoch) and any other. Training stops after
    `patience` epochs that are no better than the best.

    With a `folder` scalars, checkpoints and at the end the last weights (`save_last`) are written there, and training
    goes on from a checkpoint it finds: a run cut off at any moment and continued ends as one left alone. Raises
    `BrokenExecutor` with the epoch and what is kept where the trainer does.
    """
    marks = load_checkpoint(folder, trainer)
    scalars = ScalarLog(folder, marks.history)
    try:
        for epoch in range(marks.epoch, n_epochs):
            if epoch - marks.best_epoch > patience:
                break
            _train_epoch(trainer, marks, n_epochs, folder, progress)
            record = {"epoch": float(epoch), **finish()}
            marks.keep_best(record.get("validation", float(epoch)), epoch, weights())
            scalars.add(record)
            marks.history = scalars.history
            if folder is not None:
                save_checkpoint(folder, trainer, marks)
    finally:
        scalars.close()
    if folder is not None:
        save_last(folder, weights())
    return marks.best


def _train_epoch(trainer: Trainer, marks: Marks, n_epochs: int, folder: Path | None, progress: Progress | None) -> None:
    """The rest of the epoch under way, with a checkpoint now and then."""
    epoch, n_updates = marks.epoch, trainer.n_updates
    text = f"epoch {epoch + 1}/{n_epochs}" + (f", best {marks.best_score:.4f}" if marks.best else "")
    told, saved_at = marks.updates - UPDATES_PER_REPORT, time.monotonic()
    within = folder if trainer.resumes_within_epoch else None
    try:
        for done in trainer.updates(epoch, marks.updates):
            if progress is not None and done - told >= UPDATES_PER_REPORT:
                progress(epoch * n_updates + done, n_epochs * n_updates, text)
                told = done
            if within is not None and time.monotonic() - saved_at > CHECKPOINT_SECONDS and done < n_updates:
                marks.updates = done
                save_checkpoint(within, trainer, marks)
                saved_at = time.monotonic()
    except BrokenExecutor as error:
        there = "begins anew" if folder is None or epoch == 0 else f"goes on from the checkpoint of epoch {epoch}"
        raise BrokenExecutor(f"{error} in epoch {epoch + 1} of {n_epochs}; the same command {there}") from None
    marks.updates = 0


class Optimizer(Protocol):
    """What steps a network and can be checkpointed, as `TableAdam` does."""

    learning_rate: float

    def flush(self) -> None:
        """Bring every weight up to date, before weights are scored or copied."""
        ...

    def state_tensors(self) -> dict[str, Tensor]: ...

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...


class MinibatchTrainer(ABC):
    """A network, an optimiser and epochs of mini-batches: the `Trainer` of a supervised model.

    A subclass sets `n_updates` and says what an epoch walks (`begin`) and what an update does (`update`); everything
    that its updates carry along must be in `carried`. Draws come from `generator`, or from one that is seeded with the
    epoch. So a run that is cut off and continued computes what one left alone does, bit for bit on the CPU.
    """

    resumes_within_epoch = True
    n_updates: int

    def __init__(self, network: nn.Module, optimizer: Optimizer, seed: int) -> None:
        self.network, self.optimizer = network, optimizer
        self.device = next(network.parameters()).device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.counters = torch.zeros(2, dtype=torch.int64)
        """Events and updates trained on so far."""
        # Reading a loss every update would make the host wait for the device.
        self.loss = torch.zeros(2, dtype=torch.float64, device=self.device)
        """Sum over events since the last `take`, and their number."""

    @abstractmethod
    def begin(self, epoch: int, fresh: bool) -> None:
        """Fix the mini-batches of the epoch, which depend on its number and the seed alone. `fresh`: also forget what
        is carried; otherwise the epoch goes on in its middle, with `carried` as the checkpoint had it."""

    @abstractmethod
    def update(self, number: int) -> tuple[Tensor, int]:
        """Learn from mini-batch `number` of the epoch; its loss [] summed over events, without graph, and how many."""

    def carried(self) -> dict[str, Tensor]:
        """Tensors, beside weights and optimiser, that later updates depend on; they are loaded by copying into them."""
        return {}

    def updates(self, epoch: int, done: int = 0) -> Iterator[int]:
        """As `Trainer` says."""
        self.begin(epoch, fresh=not done)
        self.network.train()
        for number in range(done, self.n_updates):
            loss, n_events = self.update(number)
            self.loss[0] += loss
            self.loss[1] += n_events
            self.counters += torch.tensor([n_events, 1])
            yield number + 1
        self.optimizer.flush()

    def take(self) -> dict[str, float]:
        """Scalars since the last call: events so far and the mean loss."""
        total, count = self.loss.tolist()
        self.loss.zero_()
        return {"events": float(self.counters[0]), "loss": total / max(count, 1.0)}

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that the rest of the training depends on."""
        return {
            **prefixed("network", self.network.state_dict()),
            **prefixed("optimizer", self.optimizer.state_tensors()),
            **prefixed("carried", self.carried()),
            "counters": self.counters,
            "loss": self.loss,
            "generator": self.generator.get_state(),
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state_tensors` gave."""
        self.network.load_state_dict(part_of(tensors, "network"))
        self.optimizer.load_state_tensors(part_of(tensors, "optimizer"))
        saved = part_of(tensors, "carried")
        for name, tensor in self.carried().items():
            tensor.copy_(saved[name])
        self.counters.copy_(tensors["counters"])
        self.loss.copy_(tensors["loss"])
        self.generator.set_state(tensors["generator"].cpu())
