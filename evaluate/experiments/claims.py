"""Which claims of the IRN paper hold under each reading of what it leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..differences import FEWEST_SESSIONS, simultaneous_interval
from ..events import slice_masks
from ..metrics import recall
from ..statistics import bootstrap_sums, percentile_interval, ratio, session_sums
from ..views import Column, Figure, Row, Table
from .definitions import A3C_F, A3C_P, A3C_SPARSE, IRN_11, IRN_12, IRN_21, IRN_P, IRN_SPARSE, PRN_P, System
from .results import Results


@dataclass(frozen=True)
class Claim:
    """A sum of systems' Recall, with weights, that the paper has above 0."""

    label: str
    group: str
    slice: str
    weights: tuple[tuple[str, float], ...]
    """Names of systems in the practical preset, and what each counts."""


def _minus(one: System, other: System) -> tuple[tuple[str, float], ...]:
    return (one.name, 1.0), (other.name, -1.0)


CLAIMS = (
    Claim("IRN-P over PRN-P", "Purchases", "purchase", _minus(IRN_P, PRN_P)),
    Claim("PRN-P over A3C-P", "Purchases", "purchase", _minus(PRN_P, A3C_P)),
    Claim("IRN-P over A3C-P", "Purchases", "purchase", _minus(IRN_P, A3C_P)),
    Claim("IRN-P near A3C-F", "Clicks", "click", _minus(IRN_P, A3C_F)),
    Claim("breadth 2 over 1", "First", "first", _minus(IRN_21, IRN_11)),
    Claim("depth 2 over 1", "Purchases", "purchase", _minus(IRN_12, IRN_11)),
    Claim(
        "IRN-P less hurt by d = 0.1 than A3C-P",
        "Purchases",
        "purchase",
        (*_minus(IRN_SPARSE, A3C_SPARSE), (A3C_P.name, 1.0), (IRN_P.name, -1.0)),
    ),
)


def claims_table(results: Results) -> Table:
    """One row a reading, one column a claim: the contrast in percentage points, paired over sessions.

    A cell is empty where a system of the claim was left out.
    """
    variants, k = results.design.variants, results.ks[0]
    columns = [_contrasts(results, claim, k) for claim in CLAIMS]
    return Table(
        "claims",
        "What the paper claims, under each reading",
        tuple(Column(claim.label, group=claim.group, better="neither") for claim in CLAIMS),
        tuple(Row(v.label, tuple(column.get(v.label, Figure(None)) for column in columns)) for v in variants),
        heading="reading",
        notes=(
            f"Differences of Recall@{k} in percentage points, mean over seeds, paired; intervals over sessions "
            f"of each difference alone; ties: {results.ties}. A claim holds where the figure is above 0; the "
            "paper has IRN-P near A3C-F on clicks, not above it.",
            f"Marked ones hold for all readings of the column at once, and at least {FEWEST_SESSIONS} sessions differ. "
            "Intervals hold for the seeds at hand.",
            *results.design.notes,
        ),
    )


def _contrasts(results: Results, claim: Claim, k: int) -> dict[str, Figure]:
    """The contrast under each reading that has all its systems."""
    per_session, labels = [], []
    for variant in results.design.variants:
        by_name = {entry.system.name: entry.label for entry in results.design.entries if entry.variant == variant}
        if all(name in by_name for name, _ in claim.weights):
            labels.append(variant.label)
            per_session.append(_session_sums(results.events, {by_name[n]: w for n, w in claim.weights}, claim.slice, k))
    if not labels:
        return {}
    sums = np.stack([one[:, 0] for one in per_session] + [per_session[0][:, 1]], axis=1)
    drawn = bootstrap_sums(sums, resamples=10_000)
    draws, value = ratio(drawn[:, :-1], drawn[:, -1:]), ratio(sums[:, :-1].sum(0), sums[:, -1:].sum(0))
    low, high = percentile_interval(draws)
    all_low, all_high = simultaneous_interval(draws)
    enough = (np.abs(sums[:, :-1]) > 1e-9).sum(axis=0) >= FEWEST_SESSIONS
    differs = ((all_low > 0) | (all_high < 0)) & enough
    return {
        label: Figure(float(value[i]), float(low[i]), float(high[i]), differs=bool(differs[i]))
        for i, label in enumerate(labels)
        if not np.isnan(value[i])
    }


def _session_sums(
    events: Mapping[str, Mapping[int, pd.DataFrame]], weights: Mapping[str, float], slice_name: str, k: int
) -> np.ndarray:
    """[S, 2]: of each session the weighted sum of hits in the slice, and the events counted."""
    reference = next(iter(events[next(iter(weights))].values()))
    mask = slice_masks(reference)[slice_name]
    session, labels = pd.factorize(reference["session"])
    hits = np.zeros(len(reference))
    for label, weight in weights.items():
        by_seed = [recall(f["rank_low"].to_numpy(), f["rank_high"].to_numpy(), k) for f in events[label].values()]
        hits += weight * np.mean(by_seed, axis=0)
    return session_sums(np.stack([hits, np.ones(len(hits))], axis=1)[mask], session[mask], len(labels))
