"""The true value of a policy: its mean return a session in the live shop, by simulation with common random numbers."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, sqrt
from typing import NamedTuple

import numpy as np

from ...errors import InputError
from .live_config import LiveShopConfig
from .policies import Policy, serve

MOST_SESSIONS = 20_000_000
"""An error that needs more is refused."""


class Value(NamedTuple):
    """A mean over sessions, in units of reward."""

    mean: float
    standard_error: float
    n_sessions: int


def true_value(
    policy: Policy,
    config: LiveShopConfig,
    n_sessions: int = 10_000,
    seed: int = 0,
    error: float | None = None,
    lanes: int = 1024,
) -> Value:
    """The mean return of a session (its undiscounted rewards, after the shopper's first click) under `policy`.

    Sessions 0, 1, ... of `seed`: another policy meets the same shoppers. With an `error` there are as many more
    sessions as bring the standard error to it. Raises `InputError` for fewer than two sessions, and for an error that
    would take more than MOST_SESSIONS.
    """
    return _mean(
        lambda first, n: session_returns(policy, config, n, seed, first_session=first, lanes=lanes), n_sessions, error
    )


def value_difference(
    policy: Policy,
    other: Policy,
    config: LiveShopConfig,
    n_sessions: int = 10_000,
    seed: int = 0,
    error: float | None = None,
    lanes: int = 1024,
) -> Value:
    """The mean of the difference, session by session, between the returns of `policy` and `other`; see `true_value`.

    Both meet the same shoppers with the same luck, so this takes fewer sessions than the difference of two values.
    """

    def differences(first: int, n: int) -> np.ndarray:
        returns = (session_returns(each, config, n, seed, first_session=first, lanes=lanes) for each in (policy, other))
        return next(returns) - next(returns)

    return _mean(differences, n_sessions, error)


def session_returns(
    policy: Policy, config: LiveShopConfig, n_sessions: int, seed: int, first_session: int = 0, lanes: int = 1024
) -> np.ndarray:
    """[S] float64, the return of each session from `first_session` on; the same for any number of lanes."""
    returns = np.zeros(n_sessions)
    for step in serve(policy, config, n_sessions, seed, first_session, lanes):
        returns[step.session] += step.reward
    return returns


def _mean(sample: Callable[[int, int], np.ndarray], n_sessions: int, error: float | None) -> Value:
    if n_sessions < 2:
        raise InputError(f"n_sessions: expected at least 2, found {n_sessions}; one has no standard error")
    if error is not None and not error > 0:
        raise InputError(f"error: expected a standard error above 0, found {error}")
    values = sample(0, n_sessions)
    while error is not None and (spread := float(values.std(ddof=1))) / sqrt(len(values)) > error:
        needed = ceil((spread / error) ** 2)
        if needed > MOST_SESSIONS:
            raise InputError(
                f"error: a standard error of {error:g} takes about {needed:,} sessions, more than {MOST_SESSIONS:,}; "
                "raise it"
            )
        # A tenth more at least, or estimates of the spread that creep up would take many rounds.
        values = np.append(values, sample(len(values), max(needed - len(values), len(values) // 10, 1)))
    return Value(float(values.mean()), float(values.std(ddof=1) / sqrt(len(values))), len(values))
