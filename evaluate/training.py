"""How the trained models of a comparison came about: every scalar of every epoch, and a summary of the kept ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from .views import Unit


class ScalarColumn(NamedTuple):
    """A scalar as a column of a table."""

    scalar: str
    heading: str
    decimals: int = 1
    unit: Unit = "%"


@dataclass(frozen=True)
class Section:
    """A table of scalars."""

    name: str
    title: str
    columns: tuple[ScalarColumn, ...]
    explanation: str


# Headings are short so that a table fits into 80 columns.
SECTIONS = (
    Section(
        "policy",
        "What the policy does",
        (
            ScalarColumn("epoch", "epoch", unit=""),
            ScalarColumn("validation", "valid."),
            ScalarColumn("entropy", "nats", 2, ""),
            ScalarColumn("copy_last", "last"),
            ScalarColumn("copy_any", "any"),
            ScalarColumn("imagined_true", "true"),
            ScalarColumn("imagined_new", "new"),
            ScalarColumn("imagined_bias", "bias"),
        ),
        "At the epoch kept on validation, mean over seeds. Valid.: the Recall@5 on the validation split that it was "
        "kept by. In the states there, nats: entropy of the policy; last: the newest item is among its top 5; any: "
        "some item of the session is; true: items that it would imagine and that occur later in the session; new: not "
        "in it yet; bias: share of the output bias in their logits.",
    ),
    Section(
        "learning",
        "How it learns",
        (
            ScalarColumn("advantage_mean", "adv.", 2, ""),
            ScalarColumn("advantage_negative_share", "neg."),
            ScalarColumn("value_bias", "V bias", 2, ""),
            ScalarColumn("value_calibration_error", "V err.", 2, ""),
            ScalarColumn("gradient_norm_policy", "policy", 3, ""),
            ScalarColumn("gradient_norm_value", "value", 3, ""),
            ScalarColumn("gradient_norm_supervised", "sup.", 3, ""),
            ScalarColumn("gradient_norm_imagination", "imag.", 3, ""),
        ),
        "At the same epochs, in units of reward but for neg., in %. Adv.: return minus V where the policy was updated; "
        "neg.: share of negative ones; V bias: mean V minus mean return on validation; V err.: calibration error of V "
        "there. Then the gradient norm of each loss as weighted: policy, value, supervised, imagination.",
    ),
)
"""`agents.probes` and the learner say what the scalars are."""


def training_table(folders: Mapping[str, Mapping[int, Path]]) -> pd.DataFrame:
    """One row for each model, seed and epoch of the given cells, `kept` where that epoch's weights were kept.

    Empty where no model of the comparison was trained.
    """
    parts = []
    for model, by_seed in folders.items():
        for seed, folder in by_seed.items():
            file = folder / "scalars.jsonl"
            if not file.exists():
                continue
            frame = pd.DataFrame([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])
            frame.insert(0, "model", model)
            frame.insert(1, "seed", seed)
            frame.insert(2, "kept", frame.index == frame["validation"].idxmax())
            parts.append(frame)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def kept_figures(training: pd.DataFrame, section: Section) -> pd.DataFrame:
    """The scalars of a section at the epochs that were kept, mean over seeds: models (index) by scalars with any."""
    kept = training.loc[training["kept"].to_numpy(dtype=bool)]
    # Epochs are counted from 1 for people.
    kept = kept.assign(epoch=kept["epoch"] + 1)
    scalars = [column.scalar for column in section.columns if column.scalar in kept]
    mean = kept.groupby("model", sort=False)[scalars].mean()
    return mean.dropna(axis="index", how="all").dropna(axis="columns", how="all")
