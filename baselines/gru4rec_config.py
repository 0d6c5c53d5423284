"""Configuration of GRU4Rec. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from ..errors import InputError
from ..nn.schedule import Schedule

Loss = Literal["cross-entropy", "bpr-max"]
ItemInput = Literal["constrained", "separate", "one-hot"]
OptimizerName = Literal["adagrad", "adam"]
Order = Literal["time", "shuffled"]


@dataclass(frozen=True)
class GRU4RecConfig(Schedule):
    """GRU4Rec. Raises `InputError` for a value out of range.

    "The published code" is that of the authors of Hidasi et al. 2016 and Hidasi & Karatzoglou 2018.
    """

    loss: Loss = "cross-entropy"
    """Over the candidates of a mini-batch, or over all items (`n_sample`)."""
    hidden_units: int = 100
    """Units of the GRU, and size of an item's row in the output layer (100 in both papers, 1000 for the best)."""
    item_input: ItemInput = "constrained"
    """What the GRU reads: the item's row in the output layer, a row of a second table, or the one-hot item itself."""
    embedding_dim: int | None = None
    """Size of an item's row in the second table of "separate"; None: `hidden_units`."""
    batch_size: int = 32
    """Sessions that advance in parallel (32 in the published settings for RSC15)."""
    n_sample: int | None = 2048
    """Negatives drawn in addition to the other targets of the mini-batch, the same for all of its rows (2048 in Hidasi
    & Karatzoglou 2018). None: all items are candidates, with cross-entropy only."""
    sample_alpha: float = 0.5
    """Negatives are drawn proportional to support^alpha, the training events of an item: 0 uniform, 1 by popularity."""
    logq: float = 0.0
    """How much of the log of its expected count in the mini-batch is subtracted from a candidate's score under
    cross-entropy, from 0 to 1."""
    bpreg: float = 0.5
    """Weight of the squared scores of negatives in BPR-max."""
    elu: float = 0.5
    """Of a score far below zero, BPR-max sees minus this (0.5 in the published code)."""
    optimizer: OptimizerName = "adagrad"
    """Adagrad with momentum on the rows touched, as published, or Adam."""
    learning_rate: float = 0.1
    """Of the optimiser, constant."""
    momentum: float = 0.0
    """Of Adagrad, below 1."""
    embedding_dropout: float = 0.0
    """Share of zeroed entries in what the GRU reads, in training only."""
    hidden_dropout: float = 0.0
    """Share of zeroed entries in the state after a step, in training only; the session goes on from what is left, as in
    the published code."""
    order: Order = "time"
    """Sessions by their start, as published, or drawn anew each epoch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in {
            "loss": Loss,
            "item_input": ItemInput,
            "optimizer": OptimizerName,
            "order": Order,
        }.items():
            if getattr(self, name) not in get_args(choices):
                raise InputError(
                    f"gru4rec: {name} must be one of {', '.join(get_args(choices))}, found {getattr(self, name)!r}"
                )
        lowest = {"hidden_units": 1, "embedding_dim": 1, "batch_size": 1, "n_sample": 0}
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"gru4rec: {name} must be at least {least}, found {value}")
        for name in ("sample_alpha", "bpreg"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"gru4rec: {name} must be a finite number from 0, found {getattr(self, name)}")
        for name in ("elu", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"gru4rec: {name} must be a finite number above 0, found {getattr(self, name)}")
        if not 0 <= self.logq <= 1:
            raise InputError(f"gru4rec: logq must be 0..1, found {self.logq}")
        for name in ("momentum", "embedding_dropout", "hidden_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"gru4rec: {name} must be from 0 to below 1, found {getattr(self, name)}")
        if self.loss == "bpr-max" and self.n_sample is None:
            raise InputError("gru4rec: bpr-max weighs sampled negatives, found n_sample=none; give a number or 0")
        if self.n_sample == 0 and self.batch_size < 2:
            raise InputError("gru4rec: with n_sample=0 the negatives are other sessions; batch_size must be at least 2")
        if self.embedding_dim is not None and self.item_input != "separate":
            raise InputError(f"gru4rec: embedding_dim is for item_input=separate, found {self.item_input}")


_BPR_MAX = GRU4RecConfig(
    epochs=10,
    patience=10,
    loss="bpr-max",
    sample_alpha=0.0,
    bpreg=0.5,
    learning_rate=0.2,
    momentum=0.1,
)

GRU4REC_PRESETS = {
    "practical": GRU4RecConfig(
        hidden_units=128,
        batch_size=64,
        n_sample=None,
        optimizer="adam",
        learning_rate=2e-3,
        embedding_dropout=0.2,
        hidden_dropout=0.3,
        order="shuffled",
    ),
    "paper": _BPR_MAX,
    "ce": replace(_BPR_MAX, loss="cross-entropy", sample_alpha=0.5, logq=1.0, momentum=0.2, hidden_dropout=0.4),
    "irn": replace(_BPR_MAX, n_sample=0),
}
"""`paper` and `ce` are published for RSC15 clicks (Hidasi & Karatzoglou 2018 and the authors' code: Recall@20 0.726 and
0.728, MRR@20 0.312 and 0.321); `irn` has the targets of the mini-batch as its only negatives, as the IRN paper says.
`practical` was chosen on validation alone; where a softmax over all items is too slow, give it `n_sample`."""
