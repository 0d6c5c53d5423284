"""What off-policy estimators need beside a log: a model of what actions are worth, the target's probabilities, and, on
logs that have none, a guess of the propensities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..envs.log import SessionLog
from ..errors import InputError
from .off_policy import ActionValues, LoggedDecisions

if TYPE_CHECKING:
    from .protocol import Recommender


def policy_probabilities(action: np.ndarray, target: Callable[[slice], np.ndarray], *, chunk: int = 4096) -> np.ndarray:
    """float64 [E]: the target policy's probabilities of logged actions `action` [E], a `chunk` of decisions at once.

    `target` gives its probabilities [B, A] in a slice of the decisions.
    """
    logged = np.empty(len(action))
    for rows in _slices(len(action), chunk):
        probability = np.asarray(target(rows))
        logged[rows] = probability[np.arange(len(probability)), action[rows]]
    return logged


def model_values(
    action: np.ndarray,
    action_value: Callable[[slice], np.ndarray],
    target: Callable[[slice], np.ndarray],
    *,
    chunk: int = 4096,
) -> ActionValues:
    """What any model says of logged actions `action` [E], a `chunk` of decisions at once.

    `action_value` and `target` give, for a slice of the decisions, the model's q [B, A] and the target policy's
    probabilities [B, A].
    """
    logged, expected = np.empty((2, len(action)))
    for rows in _slices(len(action), chunk):
        q = np.asarray(action_value(rows))
        logged[rows] = q[np.arange(len(q)), action[rows]]
        expected[rows] = (q * target(rows)).sum(axis=1)
    return ActionValues(logged, expected)


def fitted_values(
    logged: LoggedDecisions,
    state: np.ndarray,
    action: np.ndarray,
    target: np.ndarray,
    *,
    folds: int = 2,
    prior: float = 1.0,
) -> ActionValues:
    """Fitted Q evaluation in tables: `state` [E] (0..X - 1, what is observed), `action` [E], `target` [E, A].

    From the last step to the first, q of a step, state and action is the mean of reward + v(next state) (0 where the
    session is over), drawn to the state's mean, and that to the step's, as if `prior` decisions had come out so. Each
    of `folds` parts of the sessions is told by a table of the other parts, so that no session vouches for itself
    (cross-fitting: Chernozhukov et al., 2018). Propensities are not used. Raises `InputError` for less than two folds.
    """
    if folds < 2 or folds > logged.n_sessions:
        raise InputError(f"fitted_values: expected 2..{logged.n_sessions} folds, found {folds}; each needs the others")
    fold = logged.session % folds
    values = ActionValues(*np.zeros((2, len(action))))
    by_step = np.argsort(logged.step, kind="stable")
    steps = np.split(by_step, np.cumsum(np.bincount(logged.step))[:-1]) if len(action) else []
    ends = np.zeros(len(action), dtype=bool)
    ends[logged.offset[1:][np.diff(logged.offset) > 0] - 1] = True
    for part in range(folds):
        expected = np.zeros(len(action) + 1)
        for rows in reversed(steps):
            learn = rows[fold[rows] != part]
            outcome = logged.reward[learn] + np.where(ends[learn], 0.0, expected[learn + 1])
            q = _shrunk_table(state[learn], action[learn], outcome, (int(state.max()) + 1, target.shape[1]), prior)
            expected[rows] = (q[state[rows]] * target[rows]).sum(axis=1)
            told = rows[fold[rows] == part]
            values.logged[told] = q[state[told], action[told]]
            values.expected[told] = expected[told]
    return values


def estimate_propensities(
    log: SessionLog, *, prior: float = 10.0, rewards: tuple[float, float] = (1.0, 5.0)
) -> LoggedDecisions:
    """A guess for logs that have none: as if whoever chose the next item looked at the last one alone.

    The decisions are the events of `log` but the first of each session, in order; the action is the event's item. Its
    propensity is (n(last, item) + prior * share(item)) / (n(last) + prior), with the counts of transitions in all other
    decisions, as a decision does not vouch for itself, and the item's share of all decisions (Dirichlet smoothing:
    MacKay and Peto, 1995). Recorded shoppers are no policy, and know more than the last item: an estimate that rests on
    this is marked, and but a hint. Raises `InputError` for a log without transitions, and a `prior` of 0 or less.
    """
    if not prior > 0:
        raise InputError(f"estimate_propensities: expected a prior above 0 decisions, found {prior}")
    follows = np.ones(log.n_events, dtype=bool)
    follows[log.offset[:-1][np.diff(log.offset) > 0]] = False
    event = np.flatnonzero(follows)
    if not len(event):
        raise InputError("estimate_propensities: expected sessions of two events or more, found none")
    last, item = log.item[event - 1].astype(np.int64), log.item[event].astype(np.int64)
    _, pair, pair_count = np.unique(last * log.n_items + item, return_inverse=True, return_counts=True)
    share = np.bincount(item, minlength=log.n_items)[item] / len(item)
    from_last = np.bincount(last, minlength=log.n_items)[last]
    return LoggedDecisions(
        offset=np.concatenate([[0], np.cumsum(np.maximum(np.diff(log.offset) - 1, 0))]),
        reward=np.asarray(rewards, dtype=np.float64)[log.kind[event]],
        propensity=(pair_count[pair] - 1 + prior * share) / (from_last - 1 + prior),
        estimated_propensities=True,
    )


def softmax_probabilities(model: Recommender, log: SessionLog, *, temperature: float = 1.0) -> np.ndarray:
    """float64 [P]: the chance that a policy which draws from softmax(scores / temperature) gives each logged item.

    For the events of `log` but the first of each session, in order, as `estimate_propensities` has them. Raises
    `InputError` for a temperature of 0 or less, and for scores of another shape than [P, N].
    """
    if not temperature > 0:
        raise InputError(f"softmax_probabilities: expected a temperature above 0, found {temperature}")
    from scipy.special import log_softmax

    from .events import ScoredBatch, default_histories, score_batches

    probability = np.empty(log.n_events - log.n_sessions)

    def use(scored: ScoredBatch) -> None:
        scores = scored.scores
        scores = np.asarray(scores.detach().cpu() if hasattr(scores, "detach") else scores, dtype=np.float64)
        log_probability = log_softmax(scores / temperature, axis=1)
        probability[scored.rows] = np.exp(log_probability[np.arange(len(scores)), scored.target])

    score_batches(model, log, use, default_histories(log))
    return probability


def _slices(n_rows: int, chunk: int) -> Iterator[slice]:
    return (slice(first, min(first + chunk, n_rows)) for first in range(0, n_rows, chunk))


def _shrunk_table(
    state: np.ndarray, action: np.ndarray, outcome: np.ndarray, shape: tuple[int, int], prior: float
) -> np.ndarray:
    """[X, A]: means of the outcomes by state and action, drawn to those of the state, and these to the mean of all."""
    cell = state * shape[1] + action
    total = np.bincount(cell, weights=outcome, minlength=shape[0] * shape[1]).reshape(shape)
    count = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    everywhere = outcome.mean() if len(outcome) else 0.0
    of_state = (total.sum(axis=1) + prior * everywhere) / (count.sum(axis=1) + prior)
    return (total + prior * of_state[:, None]) / (count + prior)
