"""What a self-supervised Q-learning agent is made of. Imports nothing heavy.

Source: Xin, Karatzoglou, Arapakis, Jose, "Self-Supervised Reinforcement Learning for Recommender Systems" (SIGIR 2020),
below "the paper".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..envs.sparsity import Drop
from ..errors import InputError
from ..nn.schedule import ValidateBy

Target = Literal["alternating", "frozen"]
Ranking = Literal["supervised", "q", "product"]
Order = Literal["chronological", "shuffled"]


@dataclass(frozen=True)
class SQNConfig:
    """One recurrent network with a supervised and a Q head: its shape, its rewards, its training.

    Fields mean what they mean in `AgentConfig`. Raises `InputError` out of range.
    """

    hidden_units: int = 128
    """Units of the LSTM (the paper: 64, of a GRU)."""
    embedding_dim: int | None = 128
    """Size of the item embedding (the paper: 64); None feeds one-hot items straight into the gates."""
    tied: bool = True
    """Both output layers are the item embedding, each behind a projection of its own; needs `embedding_dim`."""
    dropout: float = 0.5
    """Share of zeroed entries in embeddings and before the supervised output layer while training."""
    copy_window: int = 20
    """The last so many items of the session get a learned bonus on their logits and on their Q; 0: no copy head."""
    kinds: bool = True
    """The state knows which events were purchases (the paper: no)."""
    history: int | None = None
    """Items that a state is encoded from, anew for every event (the paper, section 4.1: 10); None carries the
    recurrent state along the session."""

    click_reward: float = 0.2
    """Reward of a click (the paper, section 4.1: a fifth of a purchase's)."""
    purchase_reward: float = 1.0
    """Reward of a purchase (the paper, section 4.1)."""
    density: float = 1.0
    """Share of the training purchases that stay (IRN paper, section 5.3)."""
    drop: Drop = "event"
    """What happens to the others; see `envs.sparsity.thin_purchases`."""
    gamma: float = 0.5
    """Discount per event (the paper, section 4.1)."""
    q_weight: float = 1.0
    """Weight of the squared error of Q, beside cross-entropy (the paper: 1); 0 leaves Q untrained."""
    target: Target = "frozen"
    """Whose Q a target holds, of the next item that the learning network's Q finds best. "alternating": of a second
    network, the two learning in turn, an update each (the paper, algorithm 1, draws whose turn it is), so that the
    ranked one learns from half of the events. "frozen": of a copy refreshed every `refresh_events` (double DQN, van
    Hasselt et al. 2016)."""
    refresh_events: int = 8_000
    """Events between refreshes of that copy."""
    ranking: Ranking = "supervised"
    """What items are ranked by: the logits of the supervised head (the paper), Q, or the product of Q and the
    supervised probability, the return to expect through each item."""

    lanes: int = 16
    """B: sessions walked at once."""
    unroll: int = 8
    """T: steps of back-propagation through time between updates; lanes x unroll events an update (the paper: 256)."""
    learning_rate: float = 4e-3
    """Of Adam, at the start (the paper, section 4.1: 0.01 on RecSys15, 0.005 on RetailRocket)."""
    learning_rate_end: float = 0.0
    """Share of the learning rate that is left at the end of the last epoch; it falls linearly."""
    clip_norm: float = 40.0
    """Largest global norm of a gradient."""
    order: Order = "shuffled"
    """Order of the training sessions within an epoch."""
    epochs: int = 20
    """Largest number of passes over the training sessions."""
    max_events: int = 1_500_000
    """Largest number of training events, rounded down to whole epochs but never below one."""
    validate_by: ValidateBy = "mean"
    """Recall@5 on validation that keeps an epoch, as in `AgentConfig`."""
    patience: int = 5
    """Epochs without a better validation score before training stops."""

    def __post_init__(self) -> None:
        for name in ("hidden_units", "refresh_events", "lanes", "unroll", "epochs", "max_events"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.tied and self.embedding_dim is None:
            raise InputError("tied: expected an embedding_dim to tie the output layers to, found None; set one")
        for name in ("embedding_dim", "history"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}: expected at least 1 or None, found {value}")
        for name in ("copy_window", "q_weight", "learning_rate", "patience"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name}: expected a finite number from 0, found {getattr(self, name)}")
        for name in ("click_reward", "purchase_reward"):
            if not abs(getattr(self, name)) < float("inf"):
                raise InputError(f"{name}: expected a finite number, found {getattr(self, name)}")
        for name in ("gamma", "density", "learning_rate_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: expected a number in [0, 1], found {getattr(self, name)}")
        if not self.clip_norm > 0:
            raise InputError(f"clip_norm: expected a norm above 0, found {self.clip_norm}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: expected a share in [0, 1), found {self.dropout}")
        if self.q_weight == 0 and self.ranking != "supervised":
            raise InputError(f"ranking: {self.ranking!r} needs Q, which a q_weight of 0 leaves untrained; raise it")
        choices = {"drop": Drop, "target": Target, "ranking": Ranking, "order": Order, "validate_by": ValidateBy}
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                found = getattr(self, name)
                raise InputError(f"{name}: expected one of {', '.join(get_args(allowed))}, found {found!r}")

    @property
    def has_supervised_head(self) -> bool:
        """It always has one, beside the head of Q."""
        return True

    @property
    def validation(self) -> ValidateBy:
        """`validate_by`, or what stands in for it where training has no purchase."""
        return "click" if self.density == 0 and self.validate_by == "purchase" else self.validate_by


SQN_PRESETS = {
    "practical": SQNConfig(),
    "paper": SQNConfig(
        hidden_units=64,
        embedding_dim=64,
        tied=False,
        dropout=0.0,
        copy_window=0,
        kinds=False,
        history=10,
        target="alternating",
        lanes=32,
        learning_rate=0.01,
        learning_rate_end=1.0,
        epochs=30,
        max_events=10_000_000,
    ),
}
"""`practical` is the agents' practical network with the paper's rewards and discount."""
