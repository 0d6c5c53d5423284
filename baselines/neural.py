"""What the baselines trained by gradient have in common: training, saving, serving."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..envs.log import SessionBatch, SessionLog
from ..nn.schedule import Schedule
from ..nn.training import MinibatchTrainer, Progress, Scores, train_epochs, validated

Config = TypeVar("Config", bound=Schedule)
Network = TypeVar("Network", bound=nn.Module)


class NeuralBaseline(ABC, Generic[Config, Network]):
    """Implements the `Recommender` protocol around a network that a subclass builds, trains and scores with."""

    config_class: ClassVar[type[Schedule]]

    def __init__(self, config: Config | None = None, seed: int = 0, device: str = "cpu") -> None:
        self.config: Config = config or self.config_class()  # type: ignore[assignment]
        self.seed, self.device = seed, torch.device(device)
        self.n_items = 0
        """Of the log it was trained on."""
        self.trained: Network | None = None

    @abstractmethod
    def build(self, n_items: int) -> Network:
        """The network, its weights drawn from the seed, on the device."""

    @abstractmethod
    def trainer(self, network: Network, train: SessionLog) -> MinibatchTrainer:
        """What trains it. Raises `InputError` for a log that the model has no use for."""

    @abstractmethod
    def score_sessions(self, batch: SessionBatch) -> Tensor:
        """[P, N] float32 on the device."""

    def fit(
        self,
        train: SessionLog,
        valid: SessionLog | None = None,
        *,
        validate: Callable[[Self], Scores] | None = None,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Train on `train`; keep the epoch with the best `validate` score, or the last where there is none.

        With a `folder` scalars and checkpoints are written there, and training goes on from one it finds. `valid` is
        not looked at: `validate` is what sees it.
        """
        self.n_items = train.n_items
        network = self.trained = self.build(train.n_items)
        trainer = self.trainer(network, train)

        def finish() -> dict[str, float]:
            record = trainer.take()
            if validate is not None:
                network.eval()
                record |= validated(validate(self))
            return record

        best = train_epochs(
            trainer,
            self.config.epochs,
            self.config.patience,
            weights=network.state_dict,
            finish=finish,
            folder=folder,
            progress=progress,
        )
        network.load_state_dict(best)
        network.eval()
        return self

    def recommend(self, history: SessionBatch, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best next items of one live session and their scores, best first."""
        scores = self.score_sessions(history.with_unknown_next())[-1]
        best = torch.sort(scores, descending=True, stable=True)
        return best.indices[:k].cpu().numpy(), best.values[:k].cpu().numpy()

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``model.json``."""
        save_file({k: v.contiguous() for k, v in self.network.state_dict().items()}, folder / "model.safetensors")
        content = {"n_items": self.n_items, "seed": self.seed, "config": asdict(self.config)}
        (folder / "model.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Self:
        """The model that `save` wrote."""
        content: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        model = cls(cls.config_class(**content["config"]), content["seed"], device)  # type: ignore[arg-type]
        model.n_items = content["n_items"]
        model.trained = model.build(model.n_items)
        model.trained.load_state_dict(load_file(folder / "model.safetensors", device=str(model.device)))
        model.trained.eval()
        return model

    @property
    def network(self) -> Network:
        """The network being trained or trained; raises RuntimeError where there is none yet."""
        if self.trained is None:
            raise RuntimeError(f"{type(self).__name__} has no weights yet: call fit or load first")
        return self.trained
