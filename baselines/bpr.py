"""BPR-MF (Rendle et al. 2009) on `implicit`: matrix factorisation that ranks what a user touched above what not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_matrix
from torch import Tensor

from ..envs.log import SessionBatch, SessionLog
from ..errors import InputError
from ..nn.training import Progress, Scores, train_epochs, validated
from .config import BPRConfig
from .popularity import best_first, check_vocabulary

Validate = Callable[["BPR"], Scores]


class BPR:
    """A score is the product of a user's vector and an item's, plus the item's bias.

    The shopper of a session is the mean of the vectors of its events so far (Hidasi et al. 2016, section 4); with
    ``users="known"`` the user's own vector where training has seen the user. Each item that a user touched is one
    interaction, however often; negatives are drawn from the interactions of all users, that is by popularity. An item
    that never occurs in training scores -inf. Training is on one thread of the CPU, and the same bit for bit for the
    same seed; the device is where scores are computed.
    """

    def __init__(self, config: BPRConfig | None = None, seed: int = 0, device: str = "cpu") -> None:
        self.config, self.seed, self.device = config or BPRConfig(), seed, torch.device(device)
        self.weights: dict[str, Tensor] = {}
        """``items`` [N, F], ``bias`` [N], and of known users ``users`` [U, F] and ``user`` [U], rising."""

    def fit(
        self,
        train: SessionLog,
        valid: SessionLog | None = None,
        *,
        validate: Validate | None = None,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Train on `train`; keep the epoch with the best `validate` score, or the last where there is none.

        With a `folder` scalars and a checkpoint per epoch are written there, and training goes on from one it finds.
        Raises `InputError` where ``users="known"`` meets a log without users, and for a log without events.
        """
        trainer = _Trainer(train, self.config, self.seed)

        def finish() -> dict[str, float]:
            self.weights = self._placed(trainer.weights())
            record = {"events": float(trainer.n_draws), "correct": trainer.correct}
            return record if validate is None else record | validated(validate(self))

        best = train_epochs(
            trainer,
            self.config.epochs,
            self.config.patience,
            weights=trainer.weights,
            finish=finish,
            folder=folder,
            progress=progress,
        )
        self.weights = self._placed(best)
        return self

    @torch.no_grad()
    def score_sessions(self, batch: SessionBatch) -> Tensor:
        """[P, N] float32 on the device. Raises `InputError` where known users are asked for and the batch has none."""
        weights = self._trained()
        check_vocabulary(batch, len(weights["bias"]))
        events = batch.state_events()
        vectors = self._means(batch, events)
        if self.config.users == "known":
            if batch.user is None:
                raise InputError("bpr: users=known needs the users of the sessions, found none; train users=sessions")
            session = np.searchsorted(batch.offset, events, side="right") - 1
            user = torch.from_numpy(batch.user[session].astype(np.int64)).to(self.device)
            row = torch.searchsorted(weights["user"], user).clamp_(max=len(weights["user"]) - 1)
            seen = weights["user"][row] == user
            vectors = torch.where(seen[:, None], weights["users"][row], vectors)
        return torch.addmm(weights["bias"], vectors, weights["items"].T)

    def recommend(self, history: SessionBatch, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best next items of one live session and their scores, best first."""
        return best_first(self.score_sessions(history.with_unknown_next())[-1].cpu().numpy(), k)

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``model.json``."""
        save_file({name: weight.contiguous() for name, weight in self._trained().items()}, folder / "model.safetensors")
        content = {"seed": self.seed, "config": asdict(self.config)}
        (folder / "model.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> BPR:
        """The model that `save` wrote."""
        content: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        model = cls(BPRConfig(**content["config"]), content["seed"], device)
        model.weights = load_file(folder / "model.safetensors", device=str(model.device))
        return model

    def _means(self, batch: SessionBatch, events: np.ndarray) -> Tensor:
        """[P, F] the mean vector of each session's known items up to and with the given events, repeats included."""
        items, bias = self.weights["items"], self.weights["bias"]
        first = batch.offset[np.searchsorted(batch.offset, events, side="right") - 1]
        item = torch.from_numpy(batch.item.astype(np.int64)).to(self.device)
        # The sums run on over session ends, which costs digits; double precision has them to spare.
        total = torch.cat([items.new_zeros(1, items.shape[1]), items[item]]).double().cumsum(0)
        known = torch.cat([bias.new_zeros(1), bias[item].isfinite().float()]).double().cumsum(0)
        start, end = (torch.from_numpy(bound).to(self.device) for bound in (first, events + 1))
        count = (known[end] - known[start]).clamp_(min=1)
        return ((total[end] - total[start]) / count[:, None]).float()

    def _placed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: weight.to(self.device) for name, weight in weights.items()}

    def _trained(self) -> dict[str, Tensor]:
        if not self.weights:
            raise RuntimeError("the model has no weights yet: call fit or load first")
        return self.weights


class _Trainer:
    """Passes of `implicit` over the interactions, each epoch with random streams of its own (see `nn.training`)."""

    n_updates = 1
    resumes_within_epoch = False

    def __init__(self, train: SessionLog, config: BPRConfig, seed: int) -> None:
        # A part of the package that is slow to import, and that scoring does without.
        from implicit.bpr import BayesianPersonalizedRanking

        self.config, self.seed, self.device = config, seed, torch.device("cpu")
        self.user, row = _rows(train, config)
        interactions = csr_matrix(
            (np.ones(train.n_events, np.float32), (row, train.item)), shape=(len(self.user), train.n_items)
        )
        interactions.sum_duplicates()
        self.interactions = interactions
        self.unseen = torch.from_numpy(np.bincount(train.item, minlength=train.n_items) == 0)
        self.model: Any = BayesianPersonalizedRanking(
            factors=config.factors,
            learning_rate=config.learning_rate,
            regularization=config.regularisation,
            iterations=config.passes,
            num_threads=1,
            use_gpu=False,
        )
        self.n_draws, self.correct = 0, 0.0
        """Interactions drawn so far, and the share of the last pass's pairs that were in the right order."""

    def updates(self, epoch: int, done: int = 0) -> Iterator[int]:
        """As `Trainer` says."""

        def count(_pass: int, _seconds: float, correct: int, skipped: int) -> None:
            self.n_draws += self.interactions.nnz
            self.correct = correct / max(self.interactions.nnz - skipped, 1)

        self.model.random_state = np.random.default_rng([self.seed, epoch])
        self.model.fit(self.interactions, show_progress=False, callback=count)
        yield 1

    def weights(self) -> dict[str, Tensor]:
        """What scores need: no vectors of sessions."""
        items, users = torch.from_numpy(self.model.item_factors), torch.from_numpy(self.model.user_factors)
        # The last factor of an item is its bias, that of a user is one.
        weights = {"items": items[:, :-1], "bias": items[:, -1].masked_fill(self.unseen, -torch.inf)}
        if self.config.users == "known":
            weights |= {"users": users[:, :-1], "user": torch.from_numpy(self.user)}
        return weights

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that the rest of the training depends on."""
        factors = {name: torch.from_numpy(getattr(self.model, name)) for name in ("item_factors", "user_factors")}
        return {**factors, "n_draws": torch.tensor(self.n_draws)}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state_tensors` gave."""
        self.n_draws = int(tensors["n_draws"])
        self.model.item_factors, self.model.user_factors = (
            tensors[name].numpy().copy() for name in ("item_factors", "user_factors")
        )


def _rows(train: SessionLog, config: BPRConfig) -> tuple[np.ndarray, np.ndarray]:
    """The users in rising order, int64 [U], and the place of each event's user among them, [E]."""
    if train.n_events == 0:
        raise InputError("bpr: the training log has no events, nothing can be learned; prepare the data again")
    if config.users == "sessions":
        user = np.arange(train.n_sessions)
    elif train.user is not None:
        user = train.user.astype(np.int64)
    else:
        raise InputError(
            "bpr: users=known needs a log with users, found none; prepare one with them or use users=sessions"
        )
    users, place = np.unique(user, return_inverse=True)
    return users, np.repeat(place, train.length)
