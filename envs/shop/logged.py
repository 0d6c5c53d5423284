"""Logs of the live shop for off-policy evaluation: what a known policy recommended, with what probability, and what
came of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from ..log import SessionLog
from .live_config import LiveShopConfig
from .policies import Policy, Served, serve


@dataclass(frozen=True, eq=False)
class LoggedPolicyData:
    """S sessions of E decisions, in order of their start; decisions of a session follow each other."""

    offset: np.ndarray
    """[S + 1] int64, session s is decisions offset[s]:offset[s + 1]."""
    window: np.ndarray
    """[E, W] int32, the items that the policy saw, oldest to newest, padded on the left with N."""
    action: np.ndarray
    """[E] int64, the item that it recommended."""
    propensity: np.ndarray
    """[E] float64 in (0, 1], the probability with which it did."""
    reward: np.ndarray
    """[E] float64."""
    followed: np.ndarray
    """[E] bool, whether the shopper clicked on it."""
    log: SessionLog
    """What the shoppers did, E + S events: decision e of session s is answered by event e + s + 1."""


def collect(
    policy: Policy, config: LiveShopConfig, n_sessions: int, seed: int, lanes: int = 1024
) -> tuple[SessionLog, LoggedPolicyData]:
    """Let a sampled policy serve sessions 0..n_sessions - 1 of `seed`, and keep what a shop would have logged.

    The log alone is what replay and its models see; the data holds the log, too. Session ids are the numbers of the
    sessions, plus 1; the same policy and seed give the same data, bit for bit, for any number of lanes. Raises
    `InputError` for a policy that does not say with what probability it acts.
    """
    if not hasattr(policy, "probabilities"):
        raise InputError(
            f"collect: expected a policy with probabilities(observations), found {type(policy).__name__}; "
            "wrap its scores in SoftmaxPolicy"
        )
    steps = list(serve(policy, config, n_sessions, seed, lanes=lanes))
    session = np.concatenate([step.session for step in steps])
    # Steps come in order of time, so a stable sort leaves each session's own in order.
    order = np.argsort(session, kind="stable")
    length = np.bincount(session, minlength=n_sessions)
    started = _column(steps, "last_time")[order][np.cumsum(length) - length]
    by_start = np.argsort(started, kind="stable")
    rank = np.empty(n_sessions, np.int64)
    rank[by_start] = np.arange(n_sessions)
    order = np.argsort(rank[session], kind="stable")
    offset = np.concatenate([[0], np.cumsum(length[by_start])])

    shown = [step.observations for step in steps]
    window = np.concatenate([each["items"] if isinstance(each, dict) else each for each in shown])[order]
    log = _session_log(config, offset, window[offset[:-1], -1], started[by_start], by_start + 1, steps, order)
    data = LoggedPolicyData(
        offset=offset,
        window=window,
        action=_column(steps, "action")[order],
        propensity=_column(steps, "propensity")[order],
        reward=_column(steps, "reward")[order],
        followed=_column(steps, "followed")[order],
        log=log,
    )
    return log, data


def _session_log(
    config: LiveShopConfig,
    offset: np.ndarray,
    first_item: np.ndarray,
    started: np.ndarray,
    session_id: np.ndarray,
    steps: list[Served],
    order: np.ndarray,
) -> SessionLog:
    """The first click of each session [S], and what its shopper did at each decision."""
    first = offset[:-1]
    return SessionLog(
        item=np.insert(_column(steps, "item")[order], first, first_item),
        kind=np.insert(_column(steps, "kind")[order], first, 0),
        time=np.insert(_column(steps, "time")[order], first, started),
        offset=offset + np.arange(len(offset)),
        session_id=session_id,
        item_id=np.arange(1, config.n_items + 1),
        notes=("simulated shoppers, not recorded ones; a policy recommended to them",),
    )


def _column(steps: list[Served], name: str) -> np.ndarray:
    return np.concatenate([getattr(step, name) for step in steps])
