"""What may serve in the live shop: functions, sampled policies and recommenders, all turned into one way to act."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ...errors import InputError
from ..log import CLICK, SessionBatch
from .live import ShopVectorEnv
from .live_config import LiveShopConfig

_CHUNK_FLOATS = 2**24
"""Largest number of scores asked for at once, 64 MiB of them."""
_NS_PER_S = 10**9


@runtime_checkable
class SampledPolicy(Protocol):
    """A policy that draws one item, and says with what probability."""

    def probabilities(self, observations: Any) -> np.ndarray:
        """[B, N] float64, each row sums to 1."""
        ...


Policy = Any
"""One of: a function of observations (windows [B, W] int32, or a dict where the shop shows more) that returns actions
[B] or, for slates, [B, K]; a `SampledPolicy`; anything with ``score_sessions``, whose best item, or K items, are shown.
"""


class SoftmaxPolicy:
    """Draws an item with probability (1 - epsilon) softmax(scores / temperature) + epsilon / N.

    `scores` maps observations to [B, N]: a network's logits, or `recommender_scores` of a model. With an `epsilon` the
    weights that off-policy estimators put on its actions are at most N / epsilon.
    """

    def __init__(self, scores: Callable[[Any], Any], temperature: float = 1.0, epsilon: float = 0.0) -> None:
        if not temperature > 0 or not 0 <= epsilon <= 1:
            raise InputError(
                f"SoftmaxPolicy: expected temperature above 0 and epsilon in 0..1, found {temperature}, {epsilon}"
            )
        self.scores, self.temperature, self.epsilon = scores, temperature, epsilon

    def probabilities(self, observations: Any) -> np.ndarray:
        """[B, N] float64."""
        scores = _as_numpy(self.scores(observations)).astype(np.float64) / self.temperature
        weight = np.exp(scores - scores.max(axis=1, keepdims=True))
        weight *= (1 - self.epsilon) / weight.sum(axis=1, keepdims=True)
        return weight + self.epsilon / weight.shape[1]


class UniformPolicy:
    """Draws any of N items."""

    def __init__(self, n_items: int) -> None:
        self.n_items = n_items

    def probabilities(self, observations: Any) -> np.ndarray:
        """[B, N] float64."""
        return np.full((len(_items(observations)), self.n_items), 1 / self.n_items)


def recommender_scores(model: Any, n_items: int, unseen_only: bool = False) -> Callable[[Any], np.ndarray]:
    """Observations to scores [B, N] of a fitted recommender, which takes the window for the whole session.

    Where the observations do not tell kinds it is shown clicks, a second apart. With `unseen_only` the items of the
    window score -inf, since what shoppers go back to by themselves is not worth a recommendation (which models trained
    on logs, where most of what comes next has been seen, do not know).
    """

    def scores(observations: Any) -> np.ndarray:
        items = _items(observations)
        step = max(1, _CHUNK_FLOATS // (n_items * items.shape[1]))
        parts = [_scored(model, rows_of(observations, slice(b, b + step)), n_items) for b in range(0, len(items), step)]
        found = np.concatenate(parts)
        if unseen_only:
            # Column N takes the padding.
            found = np.column_stack([found, np.zeros(len(found), found.dtype)])
            np.put_along_axis(found, items.astype(np.int64), -np.inf, axis=1)
            found = found[:, :n_items]
        return found

    return scores


class Served(NamedTuple):
    """One step of the n lanes whose sessions are asked for; every array is [n] but the first and the actions."""

    observations: Any
    """What the policy saw."""
    action: np.ndarray
    """[n] or [n, K] int64, what it recommended."""
    propensity: np.ndarray | None
    """float64, with what probability; None where nothing was drawn."""
    session: np.ndarray
    """int64, number of the session, counted from the first one served."""
    last_time: np.ndarray
    """int64, nanoseconds since the epoch, of the newest event that the policy saw."""
    item: np.ndarray
    """int64, what the shopper did about it."""
    kind: np.ndarray
    """int64."""
    time: np.ndarray
    """int64, nanoseconds since the epoch."""
    followed: np.ndarray
    """bool, whether it was a click on the recommendation."""
    reward: np.ndarray
    """float64."""


def serve(
    policy: Policy, config: LiveShopConfig, n_sessions: int, seed: int, first_session: int = 0, lanes: int = 1024
) -> Iterator[Served]:
    """Let `policy` serve `n_sessions` sessions of a shop from their first to their last event, `lanes` at a time.

    Whatever the policy, the session of a number has the same shopper. Raises `InputError` for fewer than one session.
    """
    if n_sessions < 1:
        raise InputError(f"n_sessions: expected at least 1, found {n_sessions}")
    act = _acting(policy, config)
    env = ShopVectorEnv(min(lanes, n_sessions), terminal_info=False, **vars(config))
    observations, info = env.reset(seed=seed, options={"first_session": first_session})
    action = np.zeros(env.action_space.shape or (), np.int64)
    while True:
        session = info["session"] - first_session
        asked = np.flatnonzero(session < n_sessions)
        if len(asked) == 0:
            return
        shown, last_time = rows_of(observations, asked), env.event_times()[asked]
        action[asked], propensity = act(shown, env.policy_uniforms()[asked])
        observations, reward, _, _, info = env.step(action)
        yield Served(
            observations=shown,
            action=action[asked],
            propensity=propensity,
            session=session[asked],
            last_time=last_time,
            item=info["logged_action"][asked],
            kind=info["logged_kind"][asked],
            time=info["logged_time"][asked],
            followed=info["followed"][asked],
            reward=reward[asked],
        )


def rows_of(observations: Any, rows: Any) -> Any:
    """Some rows of an array or of a dict of arrays."""
    if isinstance(observations, dict):
        return {key: value[rows] for key, value in observations.items()}
    return observations[rows]


def _acting(policy: Policy, config: LiveShopConfig) -> Callable[[Any, np.ndarray], tuple[np.ndarray, Any]]:
    """(observations, uniform numbers [n]) to (actions, their probabilities or None)."""
    if isinstance(policy, SampledPolicy):
        if config.slate is not None:
            raise InputError("a sampled policy draws one item; make the shop without a slate")
        return lambda observations, uniforms: _sampled(policy.probabilities(observations), uniforms)
    if hasattr(policy, "score_sessions"):
        scores, k = recommender_scores(policy, config.n_items), config.slate
        return lambda observations, uniforms: (_best(scores(observations), k), None)
    if not callable(policy):
        raise InputError(
            "policy: expected a function of observations, or an object with probabilities or score_sessions, "
            f"found {type(policy).__name__}"
        )
    return lambda observations, uniforms: (_as_numpy(policy(observations)), None)


def _sampled(probabilities: np.ndarray, uniforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cumulative = np.cumsum(probabilities, axis=1, dtype=np.float64)
    action = (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(axis=1)
    return action, probabilities[np.arange(len(action)), action]


def _best(scores: np.ndarray, k: int | None) -> np.ndarray:
    """[n], or [n, k] best first, equal scores in order of item number."""
    if k is None:
        return scores.argmax(axis=1)
    scores, best = scores.copy(), np.empty((len(scores), k), np.int64)
    for place in range(k):
        best[:, place] = scores.argmax(axis=1)
        scores[np.arange(len(scores)), best[:, place]] = -np.inf
    return best


def _scored(model: Any, observations: Any, n_items: int) -> np.ndarray:
    """[n, N]: a batch of the windows as sessions, each with a stand-in for its next event."""
    items = _items(observations)
    known = np.column_stack([items != n_items, np.ones(len(items), bool)])
    kinds = observations.get("kinds") if isinstance(observations, dict) else None
    if kinds is None:
        kinds = np.full(items.shape, CLICK, np.uint8)
    length = known.sum(axis=1)
    batch = SessionBatch(
        item=np.column_stack([items, items[:, -1]])[known],
        kind=np.column_stack([kinds, np.full(len(kinds), CLICK, np.uint8)])[known],
        time=np.arange(length.sum()) * _NS_PER_S,
        offset=np.concatenate([[0], np.cumsum(length)]),
    )
    newest = np.cumsum(length - 1) - 1
    if hasattr(model, "score_rows"):
        return _as_numpy(model.score_rows(batch, newest))
    return _as_numpy(model.score_sessions(batch))[newest]


def _items(observations: Any) -> np.ndarray:
    return observations["items"] if isinstance(observations, dict) else observations


def _as_numpy(array: Any) -> np.ndarray:
    """NumPy or torch, on any device, with or without a gradient."""
    return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
