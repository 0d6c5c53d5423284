"""How long gradient training goes on and which epoch it keeps. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import InputError

ValidateBy = Literal["purchase", "click", "mean"]


@dataclass(frozen=True)
class Schedule:
    """What the configurations of all baselines trained by gradient begin with. Raises `InputError` out of range."""

    epochs: int = 20
    """Largest number of passes over the training sessions."""
    patience: int = 3
    """Epochs without a better validation score before training stops."""
    validate_by: ValidateBy = "mean"
    """Recall@5 on validation that keeps an epoch: over purchases, over clicks, or the mean of the two figures, of which
    a log with one kind only has one."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.patience < 0:
            raise InputError(
                f"epochs, patience: expected at least 1 and 0, found epochs={self.epochs}, patience={self.patience}"
            )
        if self.validate_by not in get_args(ValidateBy):
            raise InputError(
                f"validate_by: expected one of {', '.join(get_args(ValidateBy))}, found {self.validate_by!r}"
            )
