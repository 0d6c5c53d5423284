"""The finished cells of an experiment, as its tables and charts need them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from ...envs.log import PreparedData
from ..differences import paired_differences
from ..runs import read_events, read_extra
from ..table import long_table
from ..training import training_table
from .design import Design, Entry


@dataclass(frozen=True)
class Results:
    """A design, its data and the folders of its cells."""

    design: Design
    data: PreparedData
    folders: Mapping[str, Mapping[int, Path]]
    """Of each entry's label and seed."""
    ks: tuple[int, ...]
    ties: str

    @cached_property
    def events(self) -> dict[str, dict[int, pd.DataFrame]]:
        """The event tables by entry and seed."""
        return {
            label: {seed: read_events(folder) for seed, folder in by_seed.items()}
            for label, by_seed in self.folders.items()
        }

    @cached_property
    def long(self) -> pd.DataFrame:
        """`long_table` with the entries' labels for models."""
        return long_table(self.events, self.ks, self.ties)

    @cached_property
    def training(self) -> pd.DataFrame:
        """`training_table` with the entries' labels for models."""
        return training_table(self.folders)

    @cached_property
    def cold_start(self) -> pd.DataFrame:
        """`long_table` of the capped ranks, with a column ``cap`` after the model."""
        tables = {}
        for label, by_seed in self.folders.items():
            frames = {seed: read_extra(folder, "cold-start") for seed, folder in by_seed.items()}
            for cap in sorted(next(iter(frames.values()))["cap"].unique()):
                tables[label, int(cap)] = {
                    seed: frame[frame["cap"] == cap].reset_index(drop=True) for seed, frame in frames.items()
                }
        names = {f"{label} {cap}": (label, cap) for label, cap in tables}
        long = long_table({name: tables[key] for name, key in names.items()}, self.ks, self.ties)
        long.insert(1, "cap", long["model"].map(lambda name: names[name][1]))
        return long.assign(model=long["model"].map(lambda name: names[name][0]))

    def differences(self, against: str, labels: list[str] | None = None) -> pd.DataFrame:
        """`paired_differences` of the entries, or of some of them, to one; empty where that is alone."""
        events = {label: self.events[label] for label in labels or self.events}
        if against not in events or len(events) == 1:
            return pd.DataFrame()
        return paired_differences(events, against, 5 if 5 in self.ks else self.ks[0], self.ties)

    def entry(self, label: str) -> Entry:
        """The entry of that label."""
        return next(entry for entry in self.design.entries if entry.label == label)
