"""What a policy does, beside how it scores: does it copy, does what it imagines come true, is V what it says."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..envs.log import PURCHASE, SessionBatch, SessionLog
from ..envs.sparsity import thin_purchases
from .imagination import ImaginationCore, TrajectoryManager, logit_bias_share, repeat_state

if TYPE_CHECKING:
    from .recurrent import RecurrentAgent

_STATES_AT_ONCE = 128
"""As many as in an update of the presets, so that a probe needs no more memory than training."""
_VALUE_BINS = 10


@torch.no_grad()
def probe(agent: RecurrentAgent, log: SessionLog, max_rows: int = 1000, k: int = 5) -> dict[str, float]:
    """Scalars over the first states of `log`, at most `max_rows`; none where there is no state.

    ``entropy``: of the policy, in nats. Shares of the states: ``copy_last``, the newest item is ranked among the top k;
    ``copy_earlier``, another item of the session is; ``copy_any``, either is. Shares of the items that the policy would
    imagine by the breadth, depth and branching of its configuration, whatever it learns from: ``imagined_true``, the
    item occurs later in its session; ``imagined_new``, it has not occurred there yet. ``imagined_bias``: share of the
    bias in their logits, in the states imagined from; near 1 the reconstruction is met by the bias alone.

    Where V is trained, ``value_bias``, ``value_rmse`` and ``value_calibration_error`` in units of reward: `calibration`
    against the returns that V is trained to predict, purchases thinned as in training. With a bootstrap these are all
    rewards to come in the session, with ``value_at="reward"`` only states whose next event has a reward are asked.
    """
    batch = next(log.batches(max_rows), None)
    if batch is None or batch.n_rows == 0:
        return {}
    scalars = _of_policy(agent, batch, k)
    if agent.config.value_coefficient == 0 or not agent.config.learns_from_rewards:
        return scalars
    return scalars | _of_value(agent, log, max_rows)


def _of_policy(agent: RecurrentAgent, batch: SessionBatch, k: int) -> dict[str, float]:
    policy, config = agent.policy, agent.config
    assert policy is not None
    # Nothing is trained here, so pi^ need not be a copy.
    core = ImaginationCore(policy, torch.Generator(agent.device).manual_seed(0), frozen_copy=False)
    planner = TrajectoryManager(core, min(config.breadth, policy.n_items), config.depth, config.branching)
    states, n_rows = agent.encode(batch), batch.n_rows
    entropy, bias_share = torch.zeros(2, dtype=torch.float64, device=agent.device)
    top, imagined = [], []
    for first in range(0, n_rows, _STATES_AT_ONCE):
        state = states.map(itemgetter(slice(first, first + _STATES_AT_ONCE)))
        log_probability = policy.logits(state).log_softmax(dim=1)
        top.append(agent.score_states(state).topk(min(k, policy.n_items), dim=1).indices)
        entropy -= (log_probability.exp() * log_probability).sum()
        items = torch.cat(planner.imagine(state))
        imagined.append(items.t())
        share = logit_bias_share(policy, repeat_state(state, len(items)), items.flatten())
        bias_share += share * items.shape[1]
    top, imagined = torch.cat(top).cpu().numpy(), torch.cat(imagined).cpu().numpy()

    newest = top == batch.item[batch.state_events()][:, None]
    copied, _ = _occurrences(batch, top, policy.n_items)
    seen, to_come = _occurrences(batch, imagined, policy.n_items)
    return {
        "entropy": entropy.item() / n_rows,
        "copy_last": float(newest.any(axis=1).mean()),
        "copy_earlier": float((copied & ~newest).any(axis=1).mean()),
        "copy_any": float(copied.any(axis=1).mean()),
        "imagined_true": float(to_come.mean()),
        "imagined_new": float(1 - seen.mean()),
        "imagined_bias": bias_share.item() / n_rows,
    }


def _occurrences(batch: SessionBatch, items: np.ndarray, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Two [P, K] bool: whether each of `items` [P, K] occurs in its row's session up to the row's state, and after."""
    session = np.repeat(np.arange(batch.n_sessions), np.diff(batch.offset))
    code = session * n_items + batch.item
    codes, first = np.unique(code, return_index=True)
    last = len(code) - 1 - np.unique(code[::-1], return_index=True)[1]
    state = batch.state_events()[:, None]
    asked = session[state] * n_items + items
    place = np.searchsorted(codes, asked).clip(max=len(codes) - 1)
    occurs = codes[place] == asked
    return occurs & (first[place] <= state), occurs & (last[place] > state)


def _of_value(agent: RecurrentAgent, log: SessionLog, max_rows: int) -> dict[str, float]:
    policy, config = agent.policy, agent.config
    assert policy is not None
    log, unrewarded = thin_purchases(log, config.density, config.drop, agent.seed)
    batch = next(log.batches(max_rows), None)
    if batch is None:
        return {}
    reward = np.where(batch.kind == PURCHASE, config.purchase_reward, config.click_reward)
    if unrewarded is not None:
        reward[unrewarded[: len(reward)]] = 0.0
    value = policy.value(agent.encode(batch).hidden).double().cpu().numpy()
    returns = session_returns(batch, reward, None if config.bootstrap else config.n_steps, config.gamma)
    fitted = reward[batch.target_events()] > 0 if config.value_at == "reward" else slice(None)
    found = calibration(value[fitted], returns[fitted])
    return {f"value_{name}": figure for name, figure in found.items()}


def session_returns(batch: SessionBatch, reward: np.ndarray, n_steps: int | None, gamma: float) -> np.ndarray:
    """[P] float64 sum_{j<n} gamma^j r_{t+j} over the next n events of each row's session; None: over all that follow.

    `reward` [E] is that of each event. As `agents.a3c.n_step_return` without a bootstrap.
    """
    event = batch.target_events()
    end = np.repeat(batch.offset[1:], np.diff(batch.offset) - 1)
    longest = int((end - event).max(initial=0))
    returns = np.zeros(len(event))
    for j in range(longest if n_steps is None else min(n_steps, longest)):
        returns += np.where(event + j < end, gamma**j * reward[np.minimum(event + j, end - 1)], 0.0)
    return returns


def calibration(value: np.ndarray, returns: np.ndarray) -> dict[str, float]:
    """How far `value` [R] is from `returns` [R], in their unit; nothing where R is 0.

    ``bias``: mean of value - return. ``rmse``: root of the mean of its square. ``calibration_error``: R states in ten
    bins of equal count by value (equal values share a bin), sum over bins of R_b / R |mean value - mean return|: the
    expected calibration error (Naeini et al. 2015) for values instead of probabilities.
    """
    if len(value) == 0:
        return {}
    error = value - returns
    edges = np.unique(np.quantile(value, np.arange(1, _VALUE_BINS) / _VALUE_BINS))
    by_bin = np.bincount(np.searchsorted(edges, value), weights=error)
    return {
        "bias": float(error.mean()),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "calibration_error": float(np.abs(by_bin).sum() / len(value)),
    }
