"""Configuration of SASRec. Imports nothing heavy.

Source: Kang & McAuley, "Self-Attentive Sequential Recommendation" (ICDM 2018), below "the paper".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import InputError
from ..nn.schedule import Schedule

SASRecLoss = Literal["softmax", "sampled", "binary"]


@dataclass(frozen=True)
class SASRecConfig(Schedule):
    """A causal self-attention network and how it is trained. Raises `InputError` out of range."""

    hidden_units: int = 128
    """d: size of the item embedding, of every layer and of the output (the paper: 50)."""
    blocks: int = 2
    """Blocks of self-attention and feed-forward layers (the paper: 2)."""
    heads: int = 1
    """Attention heads, a divisor of `hidden_units` (the paper: 1; 2 did not help)."""
    max_length: int = 50
    """L: events that a state is encoded from, the session's last ones (the paper: 50, and 200 for ML-1M)."""
    dropout: float = 0.5
    """Share of zeroed entries in embeddings and after each layer while training (the paper: 0.5 on sparse data, 0.2 on
    ML-1M). Attention weights are not dropped."""
    kinds: bool = True
    """The state knows which events were purchases: a learned vector by kind is added to the item's. The paper: no."""
    bias: bool = True
    """A learned bias for each item in the output. The paper has none."""
    loss: SASRecLoss = "softmax"
    """"softmax": cross-entropy over all items. "sampled": the same, its sum over all items estimated from `n_sample`
    drawn ones, each corrected by the log of how often it is expected among them (Bengio & Senécal 2008). "binary": the
    paper's binary cross-entropy of the next item against one drawn uniformly from those not in the session."""
    n_sample: int = 2048
    """Items drawn for a mini-batch, shared by its events; for "sampled"."""
    sample_alpha: float = 0.5
    """They are drawn in proportion to their training events to this power: 0 uniformly, 1 by popularity."""
    batch_size: int = 128
    """Sessions in a mini-batch (the paper, implementation details)."""
    learning_rate: float = 4e-3
    """Of Adam, at the start (the paper, implementation details: 0.001)."""
    learning_rate_end: float = 0.0
    """Share of the learning rate that is left at the end of the last epoch; it falls linearly (the paper: 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hidden_units", "blocks", "heads", "max_length", "n_sample", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.hidden_units % self.heads:
            raise InputError(f"heads: expected a divisor of hidden_units={self.hidden_units}, found {self.heads}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: expected a share in [0, 1), found {self.dropout}")
        if self.loss not in get_args(SASRecLoss):
            raise InputError(f"loss: expected one of {', '.join(get_args(SASRecLoss))}, found {self.loss!r}")
        if not 0 <= self.sample_alpha < float("inf"):
            raise InputError(f"sample_alpha: expected a finite number from 0, found {self.sample_alpha}")
        if not 0 < self.learning_rate < float("inf"):
            raise InputError(f"learning_rate: expected a finite number above 0, found {self.learning_rate}")
        if not 0 <= self.learning_rate_end <= 1:
            raise InputError(f"learning_rate_end: expected a share in [0, 1], found {self.learning_rate_end}")


SASREC_PRESETS = {
    "practical": SASRecConfig(),
    "paper": SASRecConfig(
        hidden_units=50,
        kinds=False,
        bias=False,
        loss="binary",
        learning_rate=1e-3,
        learning_rate_end=1.0,
        epochs=200,
        patience=20,
    ),
}
"""`paper`: its implementation details, early stopping after 20 epochs without a better validation score included."""
