"""Off-policy estimates side by side, and how they do where the truth is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binomtest

from ..envs.log import SessionLog
from ..envs.shop.tabular import TabularShop, exact_value, simulate
from ..errors import InputError
from .off_policy import (
    MIN_EFFECTIVE_SAMPLE_SIZE,
    ActionValues,
    Estimate,
    LoggedDecisions,
    UnreliableEstimate,
    clipped_ips,
    direct_method,
    doubly_robust,
    ips,
    per_decision,
    snips,
)
from .off_policy_inputs import estimate_propensities, fitted_values, softmax_probabilities
from .views import Column, Figure, Row, Table

if TYPE_CHECKING:
    from .protocol import Recommender

Outcome = Estimate | UnreliableEstimate
"""What became of an estimator: its estimate, or its refusal."""

GUESSED = "‡"
"""Marks estimates that rest on guessed propensities."""


def all_estimates(
    logged: LoggedDecisions,
    target: np.ndarray,
    values: ActionValues | None = None,
    *,
    clip: float | None = None,
    min_effective_sample_size: float = MIN_EFFECTIVE_SAMPLE_SIZE,
) -> dict[str, Outcome]:
    """Every estimator's outcome by its name; the direct method and doubly robust where a model's `values` are given."""
    least = min_effective_sample_size
    estimators: dict[str, Callable[[], Estimate]] = {
        "IPS": lambda: ips(logged, target, min_effective_sample_size=least),
        "clipped IPS": lambda: clipped_ips(logged, target, clip, min_effective_sample_size=least),
        "SNIPS": lambda: snips(logged, target, min_effective_sample_size=least),
        "per-decision": lambda: per_decision(logged, target, min_effective_sample_size=least),
        "per-decision, self-normalised": lambda: per_decision(
            logged, target, self_normalized=True, min_effective_sample_size=least
        ),
    }
    if values is not None:
        estimators["direct method"] = lambda: direct_method(logged, values)
        estimators["doubly robust"] = lambda: doubly_robust(logged, target, values, min_effective_sample_size=least)
    return {name: _outcome(estimator) for name, estimator in estimators.items()}


def recorded_estimates(
    model: Recommender,
    log: SessionLog,
    *,
    guess_propensities: bool = False,
    temperature: float = 1.0,
    rewards: tuple[float, float] = (1.0, 5.0),
    min_effective_sample_size: float = MIN_EFFECTIVE_SAMPLE_SIZE,
) -> dict[str, Outcome]:
    """`all_estimates` of drawing from a model's softmax, from a recorded log, whose propensities must be guessed.

    See `estimate_propensities` and `softmax_probabilities`. Raises `InputError` as they do, and unless
    `guess_propensities` says that guessing is meant.
    """
    if not guess_propensities:
        raise InputError(
            "off-policy evaluation: a recorded log has no propensities, expected the logging policy's probability of "
            "each action; serve in the simulated shop, or guess them with --estimate-propensities "
            "(guess_propensities=True), which marks the figures"
        )
    target = softmax_probabilities(model, log, temperature=temperature)
    logged = estimate_propensities(log, rewards=rewards)
    return all_estimates(logged, target, min_effective_sample_size=min_effective_sample_size)


def _outcome(estimator: Callable[[], Estimate]) -> Outcome:
    try:
        return estimator()
    except UnreliableEstimate as refusal:
        return refusal


def estimates_table(outcomes: Mapping[str, Outcome], *, truth: float | None = None, name: str = "off-policy") -> Table:
    """Estimates a row each, with what they rest on; a refused one has no value, and a note says why.

    `truth`, where it is known, goes into the notes.
    """
    rows, notes = [], [] if truth is None else [f"True value: {truth:.4f}."]
    for label, outcome in outcomes.items():
        refused = isinstance(outcome, UnreliableEstimate)
        estimate = outcome.estimate if refused else outcome
        value = Figure(None) if refused else Figure(estimate.value, estimate.low, estimate.high)
        rest = (estimate.effective_sample_size, estimate.largest_weight, estimate.mean_weight, estimate.n_sessions)
        mark = f" {GUESSED}" if estimate.estimated_propensities else ""
        rows.append(Row(label + mark, (value, *map(Figure, rest))))
        if refused and (note := f"Refused: {outcome}.") not in notes:
            notes.append(note)
    if any(row.label.endswith(GUESSED) for row in rows):
        notes.append(
            f"{GUESSED}: the log has no propensities; they were guessed, and the figure is no more than a hint."
        )
    columns = (
        Column("reward per session", "", 4, "neither"),
        Column("effective sample size", "", 1, "neither"),
        Column("largest weight", "", 2, "neither"),
        Column("mean weight", "", 3, "neither"),
        Column("sessions", "", 0, "neither"),
    )
    return Table(name, "Value of the target policy", columns, tuple(rows), "estimator", tuple(notes))


def mixed_policies(shop: TabularShop, logging: float = 0.5, target: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Two policies [N, A] that see the last item: its intent's best item so often, and any item otherwise."""
    n_items, n_intents = shop.config.n_items, shop.config.n_intents
    best = np.eye(n_items)[shop.fit.argmax(axis=1)[np.arange(n_items) % n_intents]]
    logging_policy, target_policy = (share * best + (1 - share) / n_items for share in (logging, target))
    return logging_policy, target_policy


def coverage_table(
    shop: TabularShop | None = None,
    policies: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    n_sessions: int = 1_000,
    n_logs: int = 500,
    clip: float = 2.0,
    seed: int = 0,
    min_effective_sample_size: float = MIN_EFFECTIVE_SAMPLE_SIZE,
    progress: Callable[[int, int], object] | None = None,
) -> Table:
    """How often the 95 % intervals hold the exact value of the target policy, with bias and RMSE, over `n_logs` logs.

    `policies` are the logging and the target policy, as `simulate` takes them; by default `mixed_policies`. The model
    of the direct method and of doubly robust is `fitted_values` of step and last item. Refused estimates are counted
    and left out of the other figures; `clip` is set to bite. `progress` is called with the logs done and their total.
    """
    shop = TabularShop() if shop is None else shop
    logging, target = map(shop.policy, mixed_policies(shop) if policies is None else policies)
    truth, outcomes = exact_value(target, shop), []
    for number in range(n_logs):
        log = simulate(logging, shop, n_sessions, np.random.default_rng((seed, number)))
        probability = log.probabilities(target)
        logged = LoggedDecisions(log.offset, log.reward, log.propensity)
        values = fitted_values(logged, log.item, log.action, probability)
        of_logged = probability[np.arange(len(log.action)), log.action]
        outcomes.append(
            all_estimates(logged, of_logged, values, clip=clip, min_effective_sample_size=min_effective_sample_size)
        )
        if progress is not None:
            progress(number + 1, n_logs)
    rows = [Row(name, _quality([outcome[name] for outcome in outcomes], truth)) for name in outcomes[0]]
    columns = (
        Column("coverage", "%", 1, "neither"),
        Column("bias", "", 4, "neither"),
        Column("RMSE", "", 4, "lower"),
        Column("standard error", "", 4, "neither"),
        Column("effective sample size", "", 0, "neither"),
        Column("largest weight", "", 2, "neither"),
        Column("refused", "%", 1, "neither"),
    )
    notes = (
        f"{n_logs} logs of {n_sessions} sessions; true value {truth:.4f}, by exact computation.",
        "Standard error and effective sample size are means, the largest weight is that of all logs.",
    )
    title = "Off-policy estimators against the truth: 95 % intervals"
    return Table("off-policy-coverage", title, columns, tuple(rows), "estimator", notes)


def _quality(outcomes: list[Outcome], truth: float) -> tuple[Figure, ...]:
    """The figures of one estimator in a coverage table."""
    kept = [outcome for outcome in outcomes if isinstance(outcome, Estimate)]
    refused = Figure(1 - len(kept) / len(outcomes))
    if not kept:
        return (*[Figure(None)] * 6, refused)
    value, low, high, error, size, weight = np.array(
        [(e.value, e.low, e.high, e.standard_error, e.effective_sample_size, e.largest_weight) for e in kept]
    ).T
    covered = int(((low <= truth) & (truth <= high)).sum())
    bounds = binomtest(covered, len(kept)).proportion_ci(method="wilson")
    bias = float(value.mean() - truth)
    half = float(1.96 * value.std() / np.sqrt(len(kept)))
    return (
        Figure(covered / len(kept), float(bounds.low), float(bounds.high)),
        Figure(bias, bias - half, bias + half),
        Figure(float(np.sqrt(((value - truth) ** 2).mean()))),
        Figure(float(error.mean())),
        Figure(float(size.mean())),
        Figure(float(weight.max())),
        refused,
    )
