"""Off-policy evaluation: what a policy would earn per session, from sessions that another policy served.

Each decision of the log comes with its propensity, the probability that the logging policy gave the logged action. With
rho_t = target probability / propensity of a session's decision t, weights w_t = rho_0 ... rho_t, reward r_t, a model
q(x, a) of the reward from a decision on, and v(x) the mean of q(x, a) over the target policy's actions, a session is
worth, in the mean over sessions:

- `ips`: w_T (r_0 + ... + r_T), T its last decision (Precup, Sutton, Singh, "Eligibility traces for off-policy policy
  evaluation", 2000); `clipped_ips`: with min(w_T, clip) (Ionides, "Truncated importance sampling", 2008); `snips`: over
  the mean of w_T (Swaminathan and Joachims, "The self-normalized estimator", 2015);
- `per_decision`: sum of w_t r_t (Precup et al., 2000), or each step over its mean weight;
- `direct_method`: v(x_0);
- `doubly_robust`: sum of w_(t-1) v(x_t) + w_t (r_t - q(x_t, a_t)) (Jiang and Li, 2016).

Values are undiscounted; for a discounted one multiply the rewards of the log by gamma^t. Sessions are the independent
unit. Intervals are value +- 1.96 standard errors over sessions, by the influence function where weights are
normalised: at the effective sample sizes that are let through the mean over sessions is close to normal, and unlike a
bootstrap it costs nothing and draws nothing. They say how much other sessions would move the figure, not what a clipped
weight or a wrong model does to it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError

MIN_EFFECTIVE_SAMPLE_SIZE = 100.0
"""Sessions; below it an estimate is refused, as the coverage of its interval is not known to hold."""

_MEAN_WEIGHT_ERRORS = 5.0
_MEAN_WEIGHT_GUESSED = (0.5, 2.0)
_MAX_WEIGHT = 1e100
_ROUNDING = 1e-9
_NORMAL_95 = 1.959963984540054


class UnreliableEstimate(InputError):
    """The log says too little about the target policy; `estimate` is what would have been returned."""

    def __init__(self, message: str, estimate: Estimate) -> None:
        super().__init__(message, estimate)
        self.estimate = estimate

    def __str__(self) -> str:
        return self.args[0]


@dataclass(frozen=True)
class Estimate:
    """The value per session of a target policy, and how far to trust it."""

    value: float
    low: float
    """95 % interval, with `high`."""
    high: float
    standard_error: float
    effective_sample_size: float
    """(sum w)^2 / sum w^2 over the session weights, in sessions (Kish, 1965); all sessions where none are weighted."""
    largest_weight: float
    """Of a session."""
    mean_weight: float
    """Of the sessions; 1 in expectation where the log has every action of the target policy."""
    n_sessions: int
    estimated_propensities: bool = False
    """Whether the propensities are a guess, and so the figure."""


@dataclass(frozen=True, eq=False)
class LoggedDecisions:
    """What estimators read of a log: E decisions in S sessions, one session after the other.

    Raises `InputError` where propensities are missing or outside (0, 1], and for arrays that do not fit together.
    """

    offset: np.ndarray
    """[S + 1], decisions of session s are offset[s]..offset[s + 1] - 1; it may have none."""
    reward: np.ndarray
    """[E]."""
    propensity: np.ndarray
    """[E] in (0, 1], probability that the logging policy gave the logged action."""
    estimated_propensities: bool = False
    """Whether the propensities are a guess (`estimate_propensities`)."""

    def __post_init__(self) -> None:
        if self.propensity is None:
            raise InputError(
                "off-policy evaluation: the log has no propensities, expected one for each decision; log a policy "
                "whose probabilities are known, or guess them on purpose with estimate_propensities"
            )
        object.__setattr__(self, "offset", np.asarray(self.offset, dtype=np.int64))
        n_decisions = int(self.offset[-1]) if len(self.offset) else 0
        if len(self.offset) < 3 or self.offset[0] != 0 or (np.diff(self.offset) < 0).any():
            raise InputError(
                "off-policy evaluation: expected offsets of at least two sessions, from 0 and never falling, found "
                f"{self.offset[:3].tolist()}.."
            )
        for name in ("reward", "propensity"):
            object.__setattr__(self, name, _column(name, getattr(self, name), n_decisions))
        bad = np.flatnonzero(~((self.propensity > 0) & (self.propensity <= 1 + _ROUNDING)))
        if len(bad):
            raise InputError(
                f"off-policy evaluation: propensity {self.propensity[bad[0]]:g} of decision {bad[0]} is not in (0, 1] "
                f"({len(bad)} of {n_decisions} are not); an action that was logged had a chance to be"
            )

    @property
    def n_sessions(self) -> int:
        return len(self.offset) - 1

    @property
    def session(self) -> np.ndarray:
        """[E], the session of a decision."""
        return np.repeat(np.arange(self.n_sessions), np.diff(self.offset))

    @property
    def step(self) -> np.ndarray:
        """[E], the place of a decision in its session, from 0."""
        return np.arange(len(self.reward)) - np.repeat(self.offset[:-1], np.diff(self.offset))


class ActionValues(NamedTuple):
    """What a model says of the reward from a decision on, under the target policy."""

    logged: np.ndarray
    """[E], q(x, a) of the logged action."""
    expected: np.ndarray
    """[E], v(x), the mean of q(x, a) over the target policy's actions."""


def ips(
    logged: LoggedDecisions, target: ArrayLike, *, min_effective_sample_size: float = MIN_EFFECTIVE_SAMPLE_SIZE
) -> Estimate:
    """Inverse propensity scoring of whole sessions; unbiased. `target` [E]: probabilities of the logged actions.

    This and the other estimators raise `InputError` for probabilities outside 0..1, and `UnreliableEstimate` where the
    effective sample size is below `min_effective_sample_size`, or the mean weight differs from 1 by more than five
    standard errors (guessed propensities: by more than a factor of two): then the log lacks what the target policy
    does, or the propensities are wrong. With 0 they let all through but a log in which every session has weight 0.
    """
    weight = _session_weights(logged, _weights(logged, target))
    return _estimate(logged, weight * _returns(logged), weight, min_effective_sample_size)


def clipped_ips(
    logged: LoggedDecisions,
    target: ArrayLike,
    clip: float | None = None,
    *,
    min_effective_sample_size: float = MIN_EFFECTIVE_SAMPLE_SIZE,
) -> Estimate:
    """`ips` with weights of at most `clip`, by default sqrt(S): less variance for a bias towards 0.

    The sample size, largest and mean weight are of the clipped weights; that their mean is below 1 is no refusal.
    """
    limit = float(np.sqrt(logged.n_sessions)) if clip is None else clip
    if not limit > 0:
        raise InputError(f"clipped_ips: expected a largest weight above 0, found {clip}")
    weight = np.minimum(_session_weights(logged, _weights(logged, target)), limit)
    return _estimate(logged, weight * _returns(logged), weight, min_effective_sample_size, clipped=True)


def snips(
    logged: LoggedDecisions, target: ArrayLike, *, min_effective_sample_size: float = MIN_EFFECTIVE_SAMPLE_SIZE
) -> Estimate:
    """Self-normalised `ips`: a bias of order 1/S, and never beyond the returns that were seen."""
    weight = _session_weights(logged, _weights(logged, target))
    returns, normalised = _returns(logged), weight / max(weight.mean(), np.finfo(float).tiny)
    value = (normalised * returns).mean()
    return _estimate(logged, value + normalised * (returns - value), weight, min_effective_sample_size)


def per_decision(
    logged: LoggedDecisions,
    target: ArrayLike,
    *,
    self_normalized: bool = False,
    min_effective_sample_size: float = MIN_EFFECTIVE_SAMPLE_SIZE,
) -> Estimate:
    """Per-decision importance sampling: a reward is weighted by the decisions before it alone; unbiased.

    `self_normalized` divides every step's rewards by its mean weight over all sessions, those that are over included.
    The effective sample size is that of whole sessions, in expectation the smallest of all steps.
    """
    decision_weight = _weights(logged, target)
    weight = _session_weights(logged, decision_weight)
    gained = decision_weight * logged.reward
    if not self_normalized:
        return _estimate(logged, _sums(logged, gained), weight, min_effective_sample_size)
    step, n_sessions = logged.step, logged.n_sessions
    n_steps = int(step.max(initial=0)) + 1
    length = np.diff(logged.offset)
    # A session that is over earns nothing more, and keeps its weight.
    over = np.cumsum(np.bincount(length, weights=weight, minlength=n_steps + 1)[:n_steps])
    mean_weight = (np.bincount(step, weights=decision_weight, minlength=n_steps) + over) / n_sessions
    mean_weight = np.maximum(mean_weight, np.finfo(float).tiny)
    step_value = np.bincount(step, weights=gained, minlength=n_steps) / n_sessions / mean_weight
    still = np.append(np.cumsum((step_value / mean_weight)[::-1])[::-1], 0.0)
    influence = (gained - decision_weight * step_value[step]) / mean_weight[step]
    per_session = step_value.sum() + _sums(logged, influence) - weight * still[length]
    return _estimate(logged, per_session, weight, min_effective_sample_size)


def direct_method(logged: LoggedDecisions, values: ActionValues) -> Estimate:
    """The model's word alone. Nothing is weighted or refused, and the interval knows nothing of the model's error."""
    expected = _column("values.expected", values.expected, len(logged.reward))
    first = np.zeros(logged.n_sessions)
    begun = np.diff(logged.offset) > 0
    first[begun] = expected[logged.offset[:-1][begun]]
    estimate = _estimate(logged, first, np.ones(logged.n_sessions), 0.0)
    return replace(estimate, estimated_propensities=False)


def doubly_robust(
    logged: LoggedDecisions,
    target: ArrayLike,
    values: ActionValues,
    *,
    min_effective_sample_size: float = MIN_EFFECTIVE_SAMPLE_SIZE,
) -> Estimate:
    """The model's word, corrected by `per_decision` of its errors: unbiased with true propensities whatever the model.

    As long as the model did not learn from the same session (`fitted_values`); the better it is, the less variance.
    """
    weight = _weights(logged, target)
    q, v = (_column(f"values.{name}", getattr(values, name), len(weight)) for name in ActionValues._fields)
    before = np.ones(len(weight))
    before[1:] = weight[:-1]
    before[logged.step == 0] = 1.0
    per_session = _sums(logged, before * v + weight * (logged.reward - q))
    return _estimate(logged, per_session, _session_weights(logged, weight), min_effective_sample_size)


def _column(name: str, values: ArrayLike, n_decisions: int) -> np.ndarray:
    column = np.asarray(values, dtype=np.float64)
    if column.shape != (n_decisions,) or not np.isfinite(column).all():
        raise InputError(
            f"off-policy evaluation: expected {name} as {n_decisions} finite numbers, one a decision, found an array "
            f"of shape {column.shape}" + (" with NaN or infinity" if column.shape == (n_decisions,) else "")
        )
    return column


def _weights(logged: LoggedDecisions, target: ArrayLike) -> np.ndarray:
    """[E]: w_t, the product of the ratios of a session's decisions up to each."""
    probability = _column("target", target, len(logged.reward))
    bad = np.flatnonzero((probability < 0) | (probability > 1 + _ROUNDING))
    if len(bad):
        raise InputError(
            f"off-policy evaluation: target probability {probability[bad[0]]:g} of decision {bad[0]} is not in 0..1 "
            f"({len(bad)} of {len(probability)} are not); give the probability of the logged action"
        )
    # Products over long sessions may pass any float; from here on their squares, and sums of them, are finite.
    with np.errstate(over="ignore"):
        weight = np.minimum(probability / logged.propensity, _MAX_WEIGHT)
    first, length = logged.offset[:-1], np.diff(logged.offset)
    going = np.flatnonzero(length > 1)
    for step in range(1, int(length.max(initial=0))):
        going = going[length[going] > step]
        decision = first[going] + step
        weight[decision] = np.minimum(weight[decision] * weight[decision - 1], _MAX_WEIGHT)
    return weight


def _session_weights(logged: LoggedDecisions, weight: np.ndarray) -> np.ndarray:
    """[S]: the weight of a session's last decision, 1 without decisions."""
    last = np.ones(logged.n_sessions)
    begun = np.diff(logged.offset) > 0
    last[begun] = weight[logged.offset[1:][begun] - 1]
    return last


def _sums(logged: LoggedDecisions, values: np.ndarray) -> np.ndarray:
    return np.bincount(logged.session, weights=values, minlength=logged.n_sessions)


def _returns(logged: LoggedDecisions) -> np.ndarray:
    return _sums(logged, logged.reward)


def _estimate(
    logged: LoggedDecisions,
    per_session: np.ndarray,
    weight: np.ndarray,
    min_effective_sample_size: float,
    clipped: bool = False,
) -> Estimate:
    """The mean of [S] with its interval, and the diagnostics of the session weights [S]; refuses what they forbid."""
    n_sessions, total = logged.n_sessions, weight.sum()
    value, error = float(per_session.mean()), float(per_session.std(ddof=1) / np.sqrt(n_sessions))
    estimate = Estimate(
        value=value,
        low=value - _NORMAL_95 * error,
        high=value + _NORMAL_95 * error,
        standard_error=error,
        effective_sample_size=float(total**2 / (weight**2).sum()) if total > 0 else 0.0,
        largest_weight=float(weight.max()),
        mean_weight=float(weight.mean()),
        n_sessions=n_sessions,
        estimated_propensities=logged.estimated_propensities,
    )
    if estimate.effective_sample_size < min_effective_sample_size or not total > 0:
        raise UnreliableEstimate(
            f"off-policy evaluation: the {n_sessions} sessions are worth {estimate.effective_sample_size:.1f} of the "
            f"target policy (largest weight {estimate.largest_weight:.3g}), expected at least "
            f"{min_effective_sample_size:g}; log more, log a policy nearer to it, or lower min_effective_sample_size",
            estimate,
        )
    spread = _MEAN_WEIGHT_ERRORS * max(float(weight.std(ddof=1)) / np.sqrt(n_sessions), 1e-9)
    low, high = _MEAN_WEIGHT_GUESSED if logged.estimated_propensities else (1 - spread, 1 + spread)
    if min_effective_sample_size > 0 and not (0.0 if clipped else low) <= estimate.mean_weight <= high:
        raise UnreliableEstimate(
            f"off-policy evaluation: the mean weight of the sessions is {estimate.mean_weight:.3g}, expected "
            f"{max(low, 0):.3g}..{high:.3g}; the log lacks actions of the target policy, or propensities are wrong: "
            "correct them, or set min_effective_sample_size to 0",
            estimate,
        )
    return estimate
