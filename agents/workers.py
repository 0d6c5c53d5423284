"""Asynchronous training: processes that step shared parameters without locks (Hogwild, Niu et al. 2011; the IRN paper,
section 3.2)."""

from __future__ import annotations

import shutil
import signal
import traceback
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing import get_context

from ..envs.log import SessionLog
from ..errors import InputError
from ..interrupts import interrupt_later
from ..nn.training import UPDATES_PER_REPORT
from .a3c import A3CLearner
from .training import SynchronousTrainer, training_env, updates_per_epoch

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps memory that processes share; containers often give it 64 MB, and who exceeds it is killed."""


def _generator(state: np.ndarray) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(torch.from_numpy(state))
    return generator


# Generators travel as a tensor of their own making, which a child that is only just starting does not find any more.
ForkingPickler.register(torch.Generator, lambda generator: (_generator, (generator.get_state().numpy(),)))


class AsynchronousTrainer:
    """W processes, each a `SynchronousTrainer` of its own shard of the sessions, on one network and one optimiser.

    What `A3CLearner.state_tensors` names lies in shared memory: weights, Adam's moments, frozen networks and the count
    of events, by which the learning rate falls and frozen networks are refreshed. Each process has lanes, a generator
    and an order of sessions of its own. One process computes bit for bit what the synchronous learner does; the steps
    of several interleave as the machine has it, so no two of their runs are alike.

    A context manager: at its end, whatever it is, no process is left. The processes are spawned at the first epoch, so
    a script that trains with workers needs ``if __name__ == "__main__":``. Raises `InputError` for more workers than
    sessions of two or more events, and for less shared memory than the learner needs.
    """

    # Each worker is at a place of its own.
    resumes_within_epoch = False

    def __init__(self, learner: A3CLearner, train: SessionLog, seed: int) -> None:
        n_workers = learner.config.workers
        self.learner, self.train, self.seed, self.device = learner, train, seed, learner.device
        self.shards = [(w, n_workers) for w in range(n_workers)]
        log = training_env(learner.config, train, seed, self.shards[-1]).log
        self.n_updates = sum(updates_per_epoch(learner.config, log, shard) for shard in self.shards)
        """Updates of an epoch, all workers together."""
        own_seeds = [int(np.random.SeedSequence([seed, w]).generate_state(1)[0]) for w in range(1, n_workers)]
        others = [torch.Generator().manual_seed(own_seed) for own_seed in own_seeds]
        self.generators = torch.stack([generator.get_state() for generator in (learner.generator, *others)])
        """[W, ...] uint8, states of the generators between two epochs."""
        self.workers: list[_Worker] = []

    def updates(self, epoch: int, done: int = 0) -> Iterator[int]:
        """Train one epoch, yielding now and then the updates done so far by all. Epochs are trained whole: `done` is 0.

        Raises `BrokenExecutor` at once where a worker dies or fails; then the learner is good for nothing.
        """
        if not self.workers:
            self._start()
        for worker, generator in zip(self.workers, self.generators, strict=True):
            worker.send((epoch, generator.numpy()))
        n_done, sums = dict.fromkeys(self.workers, 0), {}
        running: dict[Any, _Worker] = {worker.connection: worker for worker in self.workers}
        while running:
            for connection in wait(list(running)):
                worker = running[connection]
                message = worker.receive()
                if isinstance(message, int):
                    n_done[worker] = message
                    yield sum(n_done.values())
                else:
                    sums[worker], state = message
                    self.generators[worker.number] = torch.from_numpy(state)
                    del running[connection]
        merged = self.learner.metrics.sums
        # In the order of their numbers, whoever was first.
        for worker in self.workers:
            for name, total in sums[worker].items():
                merged[name] = merged.get(name, 0.0) + torch.from_numpy(total)

    def state_tensors(self) -> dict[str, Tensor]:
        """The learner's, and the generators of all workers; good between two epochs."""
        return {**self.learner.state_tensors(), "generators": self.generators}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state_tensors` gave, before the first epoch."""
        self.learner.load_state_tensors(tensors)
        self.generators = tensors["generators"]

    def _start(self) -> None:
        _share(self.learner)
        context = get_context("spawn")
        self.learner.counting = context.Lock()
        n_threads = max(torch.get_num_threads() // len(self.shards), 1)
        with interrupt_later():
            for shard in self.shards:
                ours, theirs = context.Pipe()
                arguments = theirs, self.learner, self.train, self.seed, shard, n_threads
                process = context.Process(target=_work, args=arguments, daemon=True)
                process.start()
                self.workers.append(_Worker(*shard, process, ours))
                # Or a dead worker's pipe would stay open.
                theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # They hold nothing that is not here as well, so there is nothing to wait for.
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()
            worker.connection.close()
        self.workers = []


@dataclass(frozen=True, eq=False)
class _Worker:
    """The parent's end of a worker."""

    number: int
    n_workers: int
    process: BaseProcess
    connection: Connection

    def send(self, message: tuple) -> None:
        try:
            self.connection.send(message)
        except ConnectionError:
            raise self._death() from None

    def receive(self) -> Any:
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionError):
            raise self._death() from None
        if isinstance(message, str):
            raise BrokenExecutor(f"{self._name()} failed: {message}")
        return message

    def _death(self) -> BrokenExecutor:
        self.process.join()
        code = self.process.exitcode or 0
        how = f"ended with exit status {code}" if code >= 0 else f"was killed by signal {-code}"
        if code == -signal.SIGKILL:
            how += " (SIGKILL), perhaps for want of memory,"
        return BrokenExecutor(f"{self._name()} {how}")

    def _name(self) -> str:
        return f"worker {self.number + 1} of {self.n_workers} (process {self.process.pid})"


def _work(
    connection: Connection, learner: A3CLearner, train: SessionLog, seed: int, shard: tuple[int, int], n_threads: int
) -> None:
    """What a worker does until its parent is gone: epochs, of which it says how far it is and how it ended."""
    torch.set_num_threads(n_threads)
    try:
        trainer = SynchronousTrainer(learner, train, seed, shard)
        while True:
            epoch, generator = connection.recv()
            learner.generator.set_state(torch.from_numpy(generator))
            for done in trainer.updates(epoch):
                if done % UPDATES_PER_REPORT == 0:
                    connection.send(done)
            sums = {name: total.numpy() for name, total in learner.metrics.sums.items()}
            learner.metrics.sums = {}
            connection.send((sums, learner.generator.get_state().numpy()))
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        traceback.print_exc()
        connection.send(f"{type(error).__name__}: {' '.join(str(error).split())}")


def _share(learner: A3CLearner) -> None:
    """Move what the learner's state consists of to shared memory, where it stays the same tensors."""
    tensors = list(learner.state_tensors().values())
    needed = sum(tensor.nbytes for tensor in tensors)
    if SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(SHARED_MEMORY).free) < needed:
        raise InputError(
            f"workers: expected {needed / 1e6:.0f} MB of shared memory for the learner, found {free / 1e6:.0f} MB free "
            f"in {SHARED_MEMORY}; make it larger (of a container: --shm-size) or use workers=0"
        )
    for tensor in tensors:
        tensor.share_memory_()
