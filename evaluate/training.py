"""How the trained models of a comparison came about: every scalar of every epoch, and a summary of the kept ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from rich.table import Table

_SUMMARY = {
    "epoch": ("epoch", 1.0),
    "validation": ("valid.", 100.0),
    "copy_last": ("last", 100.0),
    "copy_earlier": ("earlier", 100.0),
    "imagined_true": ("true", 100.0),
    "imagined_new": ("new", 100.0),
    "imagined_bias": ("bias", 100.0),
    "advantage_mean": ("adv.", 1.0),
    "advantage_negative_share": ("neg.", 100.0),
}
"""Scalars of the summary, their headings and factors; `agents.probes` and the learner say what they are."""

EXPLANATION = (
    "At the epoch kept on validation, mean over seeds, in % but for epoch and adv. Valid.: purchase Recall@5 on the "
    "validation split. In its states, last: the newest item is among the top 5; earlier: an earlier one is; true: "
    "items that the policy would imagine and that occur later in the session; new: not in it yet; bias: share of the "
    "output bias in their logits. Adv.: return minus V where the policy was updated; neg.: how many are negative."
)


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


def training_console_table(training: pd.DataFrame) -> Table:
    """The summary for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Training", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    heads, rows = _summary(training)
    table.add_column("model", overflow="fold", min_width=16, max_width=24)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for model, cells in rows:
        table.add_row(Text(model), *cells)
    table.caption, table.caption_justify = EXPLANATION, "left"
    return table


def training_markdown(training: pd.DataFrame) -> str:
    """The summary in Markdown."""
    heads, rows = _summary(training)
    lines = ["**Training**", "", "| model | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    lines += [f"| {model} | " + " | ".join(cells) + " |" for model, cells in rows]
    return "\n".join([*lines, "", EXPLANATION]) + "\n"


def _summary(training: pd.DataFrame) -> tuple[list[str], list[tuple[str, list[str]]]]:
    columns = [name for name in _SUMMARY if name in training.columns]
    kept = training.loc[training["kept"].to_numpy(dtype=bool)]
    rows = []
    for model in kept["model"].unique():
        mean = kept.loc[(kept["model"] == model).to_numpy(), columns].to_numpy(dtype=float).mean(axis=0)
        # Epochs are counted from 1 for people.
        shown = [(value + (name == "epoch")) * _SUMMARY[name][1] for name, value in zip(columns, mean, strict=True)]
        rows.append((str(model), ["" if np.isnan(value) else f"{value:.1f}" for value in shown]))
    return [_SUMMARY[name][0] for name in columns], rows
