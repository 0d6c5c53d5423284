"""The learner: gradients against finite differences of a loss written by hand; its returns, states and snapshots."""

# pyright: reportOptionalMemberAccess=false

import re
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym.agents import a3c
from sessiongym.agents.a3c import A3CLearner, n_step_return
from sessiongym.agents.config import PRESETS, AgentConfig
from sessiongym.agents.lanes import Steps
from sessiongym.agents.recurrent import RecurrentAgent
from sessiongym.envs.log import CLICK, SessionLog
from sessiongym.envs.replay import ReplayVectorEnv
from sessiongym.errors import InputError

N = 5
TINY = AgentConfig(hidden_units=3, lanes=2, unroll=4, gamma=0.9, clip_norm=1e9, learning_rate=0.05)
FULL = replace(TINY, click_reward=1.0, policy_at="every", bootstrap=True, n_steps=3)
IMAGINING = replace(TINY, imagination_weight=0.7, breadth=2, depth=3)
SEEN = replace(IMAGINING, reconstruct="seen")


@pytest.fixture(scope="module")
def log():
    rng = np.random.default_rng(2)
    frame = pd.DataFrame(
        {
            "session": rng.integers(0, 30, 130),
            "item": rng.integers(0, N, 130),
            "time": rng.integers(0, 10**15, 130),
            "kind": (rng.random(130) < 0.3).astype(int),
        }
    )
    return SessionLog.from_pandas(frame, item_id=np.arange(N))


@pytest.fixture
def start(log):
    """A learner at the beginning of an epoch, and the list that its rollouts are kept in."""

    def make(config, log=log, seed=0):
        learner = A3CLearner(config, N, seed, "cpu")
        rewards = (config.click_reward, config.purchase_reward)
        env = ReplayVectorEnv(log, num_envs=config.lanes, window=1, feedback="logged", rewards=rewards)
        env.reset(seed=0)
        rollouts = []

        def source(n_steps):
            rollouts.append(env.rollout(n_steps))
            return rollouts[-1]

        learner.start(source)
        return learner, rollouts

    return make


def _weights(module):
    return {name: p.detach().numpy().astype(np.float64) for name, p in module.named_parameters()}


def _step(p, item, h, c, kind=0):
    size = len(p["w_hh"][0])
    gates = p["item_table"][item] + p["gate_bias"] + h @ p["w_hh"].T
    if "kind_table" in p:
        gates = gates + p["kind_table"][kind]
    i, f, o = (1 / (1 + np.exp(-gates[..., k * size : (k + 1) * size])) for k in range(3))
    c = f * c + i * np.tanh(gates[..., 3 * size :])
    return o * np.tanh(c), c


def _unroll(p, steps, h, c):
    """[T, B, H] hidden and cell states."""
    hidden, cell = [], []
    for item, kind, begins in zip(steps.item, steps.item_kind, steps.start, strict=True):
        keep = ~begins[:, None]
        h, c = _step(p, item, h * keep, c * keep, kind)
        hidden.append(h)
        cell.append(c)
    return np.stack(hidden), np.stack(cell)


def _value(p, hidden):
    return hidden @ p["value_weight"][0] + p["value_bias"][0]


def _return(reward, done, value, n_steps, gamma):
    """[T, B] one event at a time, in the words of the definition."""
    returns = np.zeros(reward.shape)
    for t, lane in np.ndindex(*reward.shape):
        for j in range(n_steps):
            if t + j == len(reward):
                break
            returns[t, lane] += gamma**j * reward[t + j, lane]
            if done[t + j, lane]:
                break
        else:
            if value is not None and t + n_steps < len(reward):
                returns[t, lane] += gamma**n_steps * value[t + n_steps, lane]
    return returns


def _stream(rollouts):
    names = ("item", "item_kind", "start", "action", "reward", "done")
    return SimpleNamespace(**{name: np.concatenate([getattr(r, name) for r in rollouts]) for name in names})


def _reconstruction(p, config, h, c, imagined):
    """Item k of a step continues item k mod K' of the K' of the step before."""
    total, states = 0.0, [(h, c)]
    for tau, level in enumerate(imagined, start=1):
        now = []
        for k, item in enumerate(level):
            before = states[k % len(states)]
            state = _step(p, item, *before)
            alone = _step(p, item, np.zeros_like(h), np.zeros_like(c))
            read = {"after": state, "before": before, "alone": alone}[config.reconstruction][0]
            logit = (read * p["head.table"][item]).sum(1) + p["head.bias"][item]
            total += config.gamma**tau * ((1 - logit) ** 2).sum()
            now.append(state)
        states = now
    return total / len(h)


def _log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def _loss(p, fixed, config, steps, carried, returns, imagined):
    """The whole loss in `p`; whatever carries no gradient is computed from the weights `fixed`."""
    hidden, cell = (x.reshape(-1, config.hidden_units) for x in _unroll(p, steps, *carried))
    hidden_fixed = _unroll(fixed, steps, *carried)[0].reshape(-1, config.hidden_units)
    returns, action, reward = returns.ravel(), steps.action.ravel(), steps.reward.ravel()
    value = _value(p, hidden_fixed if config.value_gradient == "stopped" else hidden)
    fitted = 1.0 if config.value_at == "every" else reward > 0
    loss = config.value_coefficient * (fitted * (returns - value) ** 2).mean()
    advantage = returns - _value(fixed, hidden_fixed)
    weight = {
        "advantage": advantage,
        "positive_advantage": np.maximum(advantage, 0),
        "return": returns,
        "one": np.ones_like(returns),
    }[config.policy_weight]
    if config.policy_at == "reward":
        weight = weight * (reward > 0)
    log_pi = _log_softmax(hidden @ p["head.table"].T + p["head.bias"])
    loss -= (weight * log_pi[np.arange(len(action)), action]).mean()
    head = "supervised_head" if config.supervised_head == "own" else "head"
    log_p = _log_softmax(hidden @ p[f"{head}.table"].T + p[f"{head}.bias"]) if config.supervised_weight else log_pi
    taught = config.supervised_weight * (1.0 if config.supervised_at == "every" else reward == 0)
    loss -= (taught * log_p[np.arange(len(action)), action]).mean()
    entropy = -(np.exp(log_pi) * log_pi).sum(1) * (reward > 0 if config.policy_at == "reward" else 1.0)
    loss -= config.entropy_weight * entropy.mean()
    if imagined is not None:
        loss += config.imagination_weight * _reconstruction(p, config, hidden, cell, imagined)
    return loss


def _gradient(function, p):
    """Central differences, one weight at a time."""
    gradient = {name: np.zeros_like(value) for name, value in p.items()}
    for name, value in p.items():
        for place in np.ndindex(*value.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = value.copy()
                moved[place] += step
                ends.append(function({**p, name: moved}))
            gradient[name][place] = (ends[0] - ends[1]) / 2e-5
    return gradient


@pytest.mark.parametrize(
    "config",
    [
        FULL,
        replace(FULL, policy_weight="positive_advantage", value_gradient="stopped"),
        replace(FULL, policy_weight="return", n_steps=4),
        replace(FULL, policy_weight="one", value_coefficient=0.0),
        TINY,
        replace(TINY, policy_weight="positive_advantage", value_gradient="stopped"),
        replace(TINY, policy_weight="return"),
        IMAGINING,
        replace(IMAGINING, reconstruction="before"),
        replace(IMAGINING, reconstruction="alone"),
        replace(IMAGINING, branching="tree"),
        replace(IMAGINING, branching="iid", imagination_policy="distilled"),
        replace(FULL, imagination_weight=0.3, branching="top-n", kinds=True),
        SEEN,
        replace(TINY, kinds=True, value_at="reward", supervised_weight=0.5),
        replace(TINY, supervised_weight=0.5, supervised_at="unrewarded"),
        replace(TINY, supervised_weight=0.5, supervised_at="unrewarded", supervised_head="own"),
        replace(FULL, supervised_weight=0.5, supervised_head="own"),
        replace(TINY, entropy_weight=0.2),
        replace(FULL, entropy_weight=0.2, supervised_weight=0.5),
        replace(FULL, value_target="online"),
        replace(FULL, unroll=1),
        replace(FULL, unroll=2, n_steps=5, value_target="online"),
    ],
    ids=lambda c: ", ".join(f"{k}={v}" for k, v in asdict(c).items() if v != getattr(TINY, k)) or "-P",
)
def test_gradients_are_those_of_the_loss_written_by_hand(start, config):
    learner, rollouts = start(config)
    recorded = []
    if learner.imagining is not None:
        planner = learner.imagining.planner

        def imagine(state):
            recorded.append(planner.imagine(state))
            return recorded[-1]

        learner.imagining.planner = SimpleNamespace(imagine=imagine)
    # The third update: states are carried, V^- is no longer V, and returns reach across the end of an unroll.
    for _ in range(2):
        learner.update()
    learner.metrics.take()
    learner.optimizer.flush()
    fixed = _weights(learner.policy)
    carried = [x.numpy().astype(np.float64) for x in learner.lanes.carried[:2]]
    target = None if learner.target_lanes is None else _weights(learner.target_lanes.policy)
    learner.update()

    stream = _stream(rollouts)
    zero = np.zeros((config.lanes, config.hidden_units))
    value = None if target is None else _value(target, _unroll(target, stream, zero, zero)[0])
    now = slice(2 * config.unroll, 3 * config.unroll)
    if config.value_target == "online":
        # The state carried into this unroll was made by older weights.
        ahead = SimpleNamespace(**{name: column[now.start :] for name, column in vars(stream).items()})
        value = np.zeros(stream.reward.shape)
        value[now.start :] = _value(fixed, _unroll(fixed, ahead, *carried)[0])
    returns = _return(stream.reward, stream.done, value, config.n_steps, config.gamma)[now]
    steps = SimpleNamespace(**{name: column[now] for name, column in vars(stream).items()})
    imagined = [level.numpy() for level in recorded[-1]] if recorded else None

    expected = _gradient(lambda p: _loss(p, fixed, config, steps, carried, returns, imagined), fixed)
    for name, parameter in learner.policy.named_parameters():
        found = np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.to_dense().numpy()
        np.testing.assert_allclose(found, expected[name], rtol=1e-3, atol=2e-5, err_msg=name)
    if recorded:
        h, c = (x.reshape(-1, config.hidden_units) for x in _unroll(fixed, steps, *carried))
        by_hand = _reconstruction(fixed, config, h, c, imagined)
        assert learner.metrics.take()["imagination_loss"] == pytest.approx(by_hand, rel=1e-4)


@settings(deadline=None, max_examples=100)
@given(st.data(), st.integers(1, 9), st.integers(1, 3), st.integers(1, 5), st.booleans())
def test_n_step_return_equals_a_loop_over_events(data, n_total, n_lanes, n_steps, bootstrap):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    reward = rng.choice([0.0, 1.0, 5.0], size=(n_total, n_lanes))
    done = rng.random((n_total, n_lanes)) < 0.3
    value = rng.normal(size=(n_total, n_lanes)) if bootstrap else None
    found = n_step_return(
        torch.from_numpy(reward),
        torch.from_numpy(done),
        None if value is None else torch.from_numpy(value),
        n_steps,
        0.9,
    )
    np.testing.assert_allclose(found.numpy(), _return(reward, done, value, n_steps, 0.9), atol=1e-12)


def test_the_carried_states_are_those_of_the_sessions_so_far(start):
    config = replace(FULL, imagination_weight=0.1, copy_window=3, kinds=True, learning_rate=1e-30)
    learner, rollouts = start(config)
    agent = RecurrentAgent(config)
    agent.policy = learner.policy
    ended_within = 0
    for update in range(6):
        learner.update()
        stream = _stream(rollouts[: update + 1])
        for lane in range(config.lanes):
            first = np.flatnonzero(stream.start[:, lane])[-1]
            ended_within += first > update * config.unroll
            session, kinds = stream.item[first:, lane], stream.item_kind[first:, lane]
            # One event more than the session so far, because the last event of a batch is only a target.
            batch = SessionLog(
                item=np.append(session, 0),
                kind=np.append(kinds, CLICK),
                time=np.arange(len(session) + 1),
                offset=np.array([0, len(session) + 1]),
                session_id=np.array([0]),
                item_id=np.arange(N),
            ).batch()
            expected = list(agent.encode(batch).map(lambda part: part[-1]))
            for lanes in (learner.lanes, learner.imagining.lanes):
                torch.testing.assert_close(list(lanes.carried.map(lambda part: part[lane])), expected)  # noqa: B023
    assert ended_within > 0


@pytest.mark.parametrize("history", [None, 4])
def test_scored_rows_are_the_logits_of_the_training_states(log, start, history):
    config = replace(TINY, lanes=1, copy_window=3, kinds=True, dropout=0.5, embedding_dim=3, tied=True, history=history)
    learner, rollouts = start(config)
    playable = log.select(np.flatnonzero(log.length >= 2))
    n_rows = playable.batch().n_rows
    while sum(r.item.size for r in rollouts) < n_rows:
        learner.source(4)
    agent = RecurrentAgent(config)
    agent.policy = learner.policy
    with torch.no_grad():
        steps = [Steps.of(rollout, True, learner.device) for rollout in rollouts]
        states = [learner.lanes.advance(part) for part in steps]
        trained = torch.cat([learner.policy.logits(state.map(lambda part: part[:, 0])) for state in states])[:n_rows]
    torch.testing.assert_close(agent.score_sessions(playable.batch()), trained)


def test_snapshots_are_taken_every_refresh_events(start):
    config = replace(FULL, imagination_weight=0.1, refresh_events=3 * 8)
    learner, _ = start(config)
    before = []
    for update in range(8):
        learner.optimizer.flush()
        before.append(_weights(learner.policy))
        learner.update()
        expected = before[update // 3 * 3]
        for snapshot in (learner.imagining.core.policy, learner.target_lanes.policy):
            for name, weight in _weights(snapshot).items():
                np.testing.assert_array_equal(weight, expected[name], err_msg=f"{name}, update {update}")
    assert not np.array_equal(before[0]["w_hh"], before[3]["w_hh"])


def test_the_softmax_is_computed_at_rewarded_rows_alone(start, monkeypatch):
    n_rows = []

    def counting(features, *rest):
        n_rows.append(len(features))
        return loss(features, *rest)

    loss = a3c.weighted_negative_log_likelihood
    monkeypatch.setattr(a3c, "weighted_negative_log_likelihood", counting)
    learner, rollouts = start(TINY)
    for _ in range(10):
        learner.update()
    n_rewarded = [int((r.reward > 0).sum()) for r in rollouts]
    assert n_rows == [n for n in n_rewarded if n > 0]
    assert 0 < sum(n_rows) < 10 * TINY.lanes * TINY.unroll


def test_the_paper_refreshes_after_500_iterations_of_128_events():
    for config in PRESETS["paper"].values():
        assert (config.lanes * config.unroll, config.refresh_events) == (128, 500 * 128)


def test_without_purchases_in_training_clicks_choose_the_epoch():
    for drop in ("event", "reward", "click"):
        assert replace(TINY, density=0.0, drop=drop).validation == "click"
    assert replace(TINY, density=0.01).validation == "purchase"
    assert replace(TINY, density=0.0, validate_by="mean").validation == "mean"


def test_items_are_ranked_by_the_reward_to_expect(log, start):
    config = replace(TINY, supervised_weight=1.0, supervised_head="own", ranking="expected_reward", purchase_worth=3.0)
    learner, _ = start(config)
    agent = RecurrentAgent(config)
    agent.policy = learner.policy
    with torch.no_grad():
        # From below 0 to above the purchase reward of 5, so that the probability is cut at both ends.
        learner.policy.value_weight.mul_(60)
        states = agent.encode(log.batch())
        value = learner.policy.value(states.hidden)
        clicked = learner.policy.logits(states, learner.policy.supervised_head).softmax(1)
        bought = learner.policy.logits(states).softmax(1)
    assert (value < 0).any() and (value > 5).any() and ((value > 0) & (value < 5)).any()
    q = np.clip(value.numpy() / 5, 0, 1)[:, None]
    expected = (1 - q) * clicked.numpy() + 3 * q * bought.numpy()
    np.testing.assert_allclose(agent.score_sessions(log.batch()).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranking": "expected_reward"}, "found supervised_head='shared', supervised_weight=0; add ranking=policy"),
        ({"ranking": "expected_reward", "supervised_head": "own"}, "supervised_weight=0"),
        (
            {"ranking": "expected_reward", "supervised_head": "own", "supervised_weight": 1.0, "click_reward": 1.0},
            "click_reward=1.0",
        ),
        ({"branching": "tree", "breadth": 5, "depth": 5}, "3125 leaves"),
        ({"history": 0}, "history: expected at least 1"),
        ({"workers": -1}, "workers: expected a finite number from 0"),
        ({"validate_by": "revenue"}, "validate_by: expected one of purchase, click, mean"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        replace(TINY, **changes)
    assert "\n" not in str(caught.value)


def test_the_weight_of_imagination_starts_rises_and_stays(start):
    config = replace(IMAGINING, imagination_start=16, imagination_warmup=32)
    learner, _ = start(config)
    n_events = [0, 15, 16, 32, 48, 1000]
    weights = [learner.imagining.weight(n) for n in n_events]
    assert weights == [0.0, 0.0, 0.0, pytest.approx(0.35), 0.7, 0.7]
    losses = []
    for _ in range(8):
        learner.metrics.take()
        learner.update()
        losses.append("imagination_loss" in learner.metrics.take())
    # Eight events an update, and a weight of 0 at the sixteenth.
    assert losses == [False] * 3 + [True] * 5


def test_the_gate_lets_imagination_in_as_far_as_imagined_items_came_true(start):
    config = replace(IMAGINING, imagination_gate=0.5, learning_rate=0.0)
    learner, rollouts = start(config)
    planner, expected, shares = learner.imagining.planner, 0.0, []

    def imagine(state):
        imagined = planner.imagine(state)
        shares.append(np.mean((imagined[0].numpy() == rollouts[-1].action.ravel()).any(axis=0)))
        return imagined

    learner.imagining.planner = SimpleNamespace(imagine=imagine)
    gated = []
    loss = learner.imagining.loss
    learner.imagining.loss = lambda *arguments: gated.append(loss(*arguments)) or gated[-1]
    for _ in range(40):
        learner.update()
        added, error = gated[-1]
        assert float(added.detach()) == pytest.approx(0.7 * min(expected / 0.5, 1) * float(error), rel=1e-4)
        # The rollout at hand counts from the next one on.
        expected = 0.99 * expected + 0.01 * shares[-1]
    assert 0.02 < expected < 0.5


def test_without_a_purchase_the_policy_gets_no_gradient(log, start):
    clicks = replace(log, kind=np.zeros(log.n_events, np.uint8), recorded_fingerprint=None)
    learner, _ = start(TINY, clicks)
    assert learner.policy.head.table is not None
    before = _weights(learner.policy)
    for _ in range(5):
        learner.update()
        assert learner.policy.head.table.grad is None
        assert learner.policy.head.bias.grad is None
    after = _weights(learner.policy)
    for name in ("head.table", "head.bias"):
        np.testing.assert_array_equal(after[name], before[name])
    # V still learns that nothing is bought.
    assert not np.array_equal(after["value_bias"], before["value_bias"])
