"""The checkpoint of a training in progress: one file without pickle, replaced in one step."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

CHECKPOINT = "checkpoint.safetensors"


class Learner(Protocol):
    """What can be checkpointed: everything that the rest of its training depends on is in its tensors."""

    device: torch.device

    def state_tensors(self) -> dict[str, Tensor]: ...

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None: ...


def save_checkpoint(
    folder: Path, learner: Learner, best: dict[str, Tensor], marks: dict[str, float], history: list[dict]
) -> None:
    """One file, replaced in one step: a run cut off at any moment leaves the last whole checkpoint."""
    tensors = learner.state_tensors() | {f"best.{k}": v for k, v in best.items()}
    metadata = {"marks": json.dumps(marks), "history": json.dumps(history)}
    temporary = folder / f"{CHECKPOINT}.tmp"
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, temporary, metadata=metadata)
    os.replace(temporary, folder / CHECKPOINT)


def load_checkpoint(folder: Path | None, learner: Learner) -> tuple[int, float, int, dict[str, Tensor], list[dict]]:
    """First epoch to train, best score, its epoch, its weights, the scalars so far."""
    file = None if folder is None else folder / CHECKPOINT
    if file is None or not file.exists():
        return 0, -float("inf"), 0, {}, []
    tensors = load_file(file, device=str(learner.device))
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    marks, history = json.loads(metadata["marks"]), json.loads(metadata["history"])
    learner.load_state_tensors(tensors)
    best = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
    return len(history), marks["best_score"], int(marks["best_epoch"]), best, history
