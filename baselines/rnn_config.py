"""Configurations of the intra-session RNN and of II-RNN. Imports nothing heavy.

Source: Ruocco, Skrede & Langseth 2017, "Inter-Session Modeling for Session-Based Recommendation", below "the paper",
and its authors' code, whose settings the presets `paper` (Last.fm) and `reddit` are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from ..errors import InputError
from ..nn.schedule import Schedule

Representation = Literal["average", "last_hidden"]


@dataclass(frozen=True)
class RNNConfig(Schedule):
    """The intra-session RNN. Raises `InputError` for a value out of range."""

    hidden_units: int = 100
    """Units of the GRU, and size of the item embedding (authors' code: 100 for Last.fm, 50 for Reddit)."""
    dropout: float = 0.2
    """Share of zeroed entries before the output layer while training (authors' code: 0.2 for Last.fm, 0 for Reddit)."""
    learning_rate: float = 1e-3
    """Of Adam (authors' code)."""
    batch_size: int = 100
    """Sessions of one update (authors' code)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_units < 1 or self.batch_size < 1:
            raise InputError(
                f"rnn: expected hidden_units and batch_size of at least 1, found {self.hidden_units} and "
                f"{self.batch_size}"
            )
        if not (0 <= self.dropout < 1 and 0 < self.learning_rate < float("inf")):
            raise InputError(
                f"rnn: expected 0 <= dropout < 1 and a learning_rate above 0, found {self.dropout} and "
                f"{self.learning_rate}"
            )


@dataclass(frozen=True)
class IIRNNConfig(RNNConfig):
    """II-RNN. Raises `InputError` for a value out of range."""

    representation: Representation = "last_hidden"
    """What stands for an earlier session: the average of its item embeddings (the paper's AP), or the last hidden state
    of the intra-session GRU (LHS)."""
    sessions_read: int = 15
    """g: of the sessions that the user ended before, the last so many are read (authors' code)."""
    recompute: bool = False
    """Training computes representations anew, with the weights of the moment and gradients through them, instead of
    reading those stored, without gradients, when the sessions were trained on in the same pass (the paper). Costs up to
    `sessions_read` times the intra-session GRU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sessions_read < 1:
            raise InputError(f"ii-rnn: expected sessions_read of at least 1, found {self.sessions_read}")
        if self.representation not in get_args(Representation):
            raise InputError(
                f"ii-rnn: representation must be one of {', '.join(get_args(Representation))}, "
                f"found {self.representation!r}"
            )


_LASTFM = {"epochs": 50, "patience": 5, "hidden_units": 100, "dropout": 0.2}
_REDDIT = {"epochs": 31, "patience": 5, "hidden_units": 50, "dropout": 0.0}


def _presets(config: RNNConfig) -> dict[str, RNNConfig]:
    # On the validation sessions of a twentieth of Globo's users `rnn` and `ii-rnn-ap` took a third of the epochs,
    # for a Recall@5 no lower.
    practical = replace(config, learning_rate=3e-3)
    return {"practical": practical, "paper": replace(config, **_LASTFM), "reddit": replace(config, **_REDDIT)}


RNN_PRESETS = {
    "rnn": _presets(RNNConfig()),
    "ii-rnn-ap": _presets(IIRNNConfig(representation="average")),
    "ii-rnn-lhs": _presets(IIRNNConfig(representation="last_hidden")),
}
"""Configurations by name and preset."""
