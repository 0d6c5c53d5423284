"""The probes against policies whose behaviour is known."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sessiongym.agents.a3c import n_step_return
from sessiongym.agents.config import AgentConfig
from sessiongym.agents.probes import calibration, probe, session_returns
from sessiongym.agents.recurrent import RecurrentAgent
from sessiongym.envs.log import SessionLog

N = 30
PAGE = Path(__file__).parents[1] / "docs" / "probes.md"
CONFIG = AgentConfig(hidden_units=4, copy_window=10, breadth=1, depth=1)

SESSIONS = [[1, 2, 3], [4, 4, 5, 4], [0, 6, 0, 0], [7, 8, 9, 0, 7, 10], [2, 2]]


SHARES = ("copy_last", "copy_earlier", "copy_any", "imagined_true", "imagined_new", "imagined_bias")


def _log(sessions, kinds=None):
    """Sessions of clicks, or of the given kinds."""
    length = [len(session) for session in sessions]
    return SessionLog(
        item=np.concatenate([np.zeros(0), *sessions]),
        kind=np.zeros(sum(length)) if kinds is None else np.concatenate(kinds),
        time=np.arange(sum(length)),
        offset=np.r_[0, np.cumsum(length)],
        session_id=np.arange(len(sessions)),
        item_id=np.arange(N),
    )


@pytest.fixture
def log():
    return _log(SESSIONS)


@pytest.fixture
def agent():
    """All weights zero: every item is as likely as any other, whatever the session."""
    agent = RecurrentAgent(CONFIG)
    agent.policy = agent.build(N)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.zero_()
    return agent


def _states(sessions=SESSIONS):
    """(items so far, items to come) of each row."""
    return [(session[:j], session[j:]) for session in sessions for j in range(1, len(session))]


def test_a_uniform_policy_has_the_entropy_of_log_n(agent, log):
    assert probe(agent, log)["entropy"] == pytest.approx(np.log(N))


def test_a_copier_copies_every_newest_item_and_every_earlier_one(agent, log):
    with torch.no_grad():
        agent.policy.head.copy_head.gate_bias.fill_(10)
    found = probe(agent, log)
    assert found["copy_last"] == 1
    # Only where there is an earlier item other than the newest.
    assert found["copy_earlier"] == pytest.approx(np.mean([len(set(past)) > 1 for past, _ in _states()]))
    assert found["copy_any"] == 1


def test_a_policy_that_ignores_the_session_copies_only_what_it_always_ranks(agent, log):
    always = [0, 11, 12, 13, 14]
    with torch.no_grad():
        agent.policy.head.bias[always] = 20.0
    found = probe(agent, log)
    assert found["copy_last"] == pytest.approx(np.mean([past[-1] in always for past, _ in _states()]))
    assert found["copy_earlier"] == pytest.approx(np.mean([past[-1] != 0 and 0 in past for past, _ in _states()]))
    assert found["copy_any"] == pytest.approx(np.mean([bool({*past} & {*always}) for past, _ in _states()]))
    assert found["imagined_bias"] == 1


def test_imagined_items_come_true_where_they_occur_later_in_their_session(agent, log):
    # Item 0 is all that is ever imagined.
    with torch.no_grad():
        agent.policy.head.bias[0] = 50.0
    found = probe(agent, log)
    assert found["imagined_true"] == pytest.approx(np.mean([0 in future for _, future in _states()]))
    assert found["imagined_new"] == pytest.approx(np.mean([0 not in past for past, _ in _states()]))


def test_probing_changes_neither_the_agent_nor_the_global_state(agent, log):
    before = {name: weight.clone() for name, weight in agent.policy.state_dict().items()}
    state = torch.get_rng_state()
    assert probe(agent, log) == probe(agent, log)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in agent.policy.state_dict().items())
    assert all(parameter.requires_grad for parameter in agent.policy.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"breadth": 3, "depth": 1},
        {"breadth": 1, "depth": 3},
        *({"breadth": 2, "depth": 3, "branching": branching} for branching in ("gumbel", "iid", "top-n", "tree")),
        {"breadth": N + 1},
        {"imagination_weight": 1.0, "imagination_policy": "distilled"},
        {"imagination_weight": 1.0, "reconstruct": "seen"},
        {"kinds": True, "copy_window": 3, "history": 4},
    ],
)
def test_every_way_to_imagine_gives_shares(log, changes):
    agent = RecurrentAgent(replace(CONFIG, **{"copy_window": 0, **changes}))
    agent.policy = agent.build(N)
    found = probe(agent, log)
    assert all(0 <= found[name] <= 1 for name in SHARES)


def test_rates_are_those_counted_one_by_one():
    # More states than are looked at in one go, and sessions of few items, so that everything happens.
    rng = np.random.default_rng(1)
    sessions = [rng.integers(0, 12, rng.integers(1, 15)).tolist() for _ in range(60)]
    log = _log(sessions)
    agent = RecurrentAgent(AgentConfig(hidden_units=4, breadth=3, depth=1, branching="top-n"), seed=2)
    agent.policy = agent.build(N)
    with torch.no_grad():
        agent.policy.head.bias.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    log_probability = agent.score_sessions(log.batch()).double().log_softmax(dim=1).numpy()
    counted = {name: [] for name in SHARES if name != "imagined_bias"}
    for (past, future), row in zip(_states(sessions), log_probability, strict=True):
        top = np.argsort(-row)[:5]
        counted["copy_last"].append(past[-1] in top)
        counted["copy_earlier"].append(bool(set(top) & (set(past) - {past[-1]})))
        counted["copy_any"].append(bool(set(top) & set(past)))
        counted["imagined_true"].append(np.isin(top[:3], future))
        counted["imagined_new"].append(~np.isin(top[:3], past))
    found = probe(agent, log)
    assert {name: found[name] for name in counted} == pytest.approx({n: np.mean(c) for n, c in counted.items()})
    assert found["entropy"] == pytest.approx(-(np.exp(log_probability) * log_probability).sum(1).mean())
    fewer = probe(agent, log, max_rows=40)
    n_rows = next(log.batches(40)).n_rows
    assert fewer["copy_any"] == pytest.approx(np.mean(counted["copy_any"][:n_rows]))


def test_a_log_without_a_state_has_no_scalars(agent):
    assert probe(agent, _log([[1], [2]])) == {}
    assert probe(agent, _log([])) == {}


PURCHASES = [[0, 1, 0], [0, 0, 1, 1], [1, 0]]
"""Kinds of three sessions. Rewards of their events to predict, at 1 and 5: 5 1, 1 5 5, 1."""


@pytest.mark.parametrize(
    ("changes", "returns"),
    [
        ({}, [5, 1, 1, 5, 5, 1]),
        ({"n_steps": 2}, [5.5, 1, 3.5, 7.5, 5, 1]),
        ({"bootstrap": True}, [5.5, 1, 4.75, 7.5, 5, 1]),
        ({"bootstrap": True, "n_steps": 2}, [5.5, 1, 4.75, 7.5, 5, 1]),
        ({"value_at": "reward", "click_reward": 0.0}, [5, 5, 5]),
        ({"density": 0.0, "drop": "reward"}, [0, 1, 1, 0, 0, 1]),
        ({"density": 0.0, "drop": "click"}, [1] * 6),
        ({"density": 0.0, "drop": "event"}, [1, 1]),
    ],
)
def test_v_is_held_against_the_returns_that_it_learns_to_predict(agent, changes, returns):
    log = _log([[1, 2, 3], [4, 4, 5, 4], [0, 6]], PURCHASES)
    agent.config = replace(agent.config, **{"click_reward": 1.0, "gamma": 0.5, **changes})
    with torch.no_grad():
        agent.policy.value_bias.fill_(2.0)
    found = probe(agent, log)
    error = 2.0 - np.array(returns)
    assert found["value_bias"] == pytest.approx(error.mean())
    assert found["value_rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    # Equal values share a bin.
    assert found["value_calibration_error"] == pytest.approx(abs(error.mean()))


def test_an_untrained_v_is_left_out(agent, log):
    agent.config = replace(agent.config, value_coefficient=0.0)
    assert not [name for name in probe(agent, log) if name.startswith("value")]
    # A V of purchases only, where there is none.
    agent.config = replace(agent.config, value_coefficient=0.5, value_at="reward")
    assert not [name for name in probe(agent, log) if name.startswith("value")]


@pytest.mark.parametrize("n_steps", [1, 3, 100])
def test_returns_are_those_of_the_learner(n_steps):
    rng = np.random.default_rng(3)
    length = rng.integers(1, 9, 40)
    log = _log([rng.integers(0, N, n).tolist() for n in length])
    batch, reward = log.batch(), rng.random(log.n_events)
    targets = batch.target_events()
    done = torch.from_numpy(np.isin(targets, batch.offset[1:] - 1))[:, None]
    expected = n_step_return(torch.from_numpy(reward[targets])[:, None], done, None, n_steps, 0.9)
    assert session_returns(batch, reward, n_steps, 0.9) == pytest.approx(expected[:, 0].numpy())
    if n_steps >= length.max():
        assert session_returns(batch, reward, None, 0.9) == pytest.approx(expected[:, 0].numpy())


def test_the_calibration_error_is_that_of_ten_bins_of_equal_count():
    rng = np.random.default_rng(0)
    value, returns = rng.normal(size=200), rng.normal(size=200)
    order = np.argsort(value).reshape(10, 20)
    expected = np.abs(value[order].mean(axis=1) - returns[order].mean(axis=1)).mean()
    assert calibration(value, returns)["calibration_error"] == pytest.approx(expected)


def test_a_value_that_is_right_on_average_everywhere_is_calibrated_however_wide_the_returns():
    value = np.repeat([0.0, 1.0, 2.0, 3.0], 50)
    found = calibration(value, value + np.tile([-4.0, 4.0], 100))
    assert found == pytest.approx({"bias": 0, "rmse": 4, "calibration_error": 0}, abs=1e-12)
    assert calibration(value, value[::-1])["calibration_error"] == pytest.approx(2)


FLOATS = st.floats(-100, 100, width=32)


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1))
def test_the_calibration_error_lies_between_the_bias_and_the_rmse(pairs):
    found = calibration(*np.array(pairs, dtype=float).T)
    assert abs(found["bias"]) <= found["calibration_error"] + 1e-9
    assert found["calibration_error"] <= found["rmse"] + 1e-9


def test_the_page_names_every_scalar_of_a_training(tmp_path):
    rng = np.random.default_rng(0)
    sessions = [rng.integers(0, N, 6).tolist() for _ in range(40)]
    log = _log(sessions, [rng.integers(0, 2, 6) for _ in sessions])
    config = AgentConfig(hidden_units=4, imagination_weight=0.1, supervised_weight=0.1, epochs=1, lanes=4, unroll=4)
    RecurrentAgent(config).fit(log, log, validate=lambda _: 0.0, folder=tmp_path)
    scalars = json.loads((tmp_path / "scalars.jsonl").read_text())
    named = set(re.findall(r"`([a-z_]+)\*?`", PAGE.read_text(encoding="utf-8")))
    found = {re.sub(r"(?<=advantage_share_).*", "", name) for name in scalars}
    assert {"advantage_share_", "gradient_norm_imagination", "value_bias", "imagined_true"} <= found <= named
