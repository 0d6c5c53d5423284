"""The probes against policies whose behaviour is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sessiongym.agents.config import AgentConfig
from sessiongym.agents.probes import probe
from sessiongym.agents.recurrent import RecurrentAgent
from sessiongym.envs.log import SessionLog

N = 30
CONFIG = AgentConfig(hidden_units=4, copy_window=10, breadth=1, depth=1)

SESSIONS = [[1, 2, 3], [4, 4, 5, 4], [0, 6, 0, 0], [7, 8, 9, 0, 7, 10], [2, 2]]


@pytest.fixture
def log():
    length = [len(session) for session in SESSIONS]
    return SessionLog(
        item=np.concatenate(SESSIONS),
        kind=np.zeros(sum(length)),
        time=np.arange(sum(length)),
        offset=np.r_[0, np.cumsum(length)],
        session_id=np.arange(len(SESSIONS)),
        item_id=np.arange(N),
    )


@pytest.fixture
def agent():
    """All weights zero: every item is as likely as any other, whatever the session."""
    agent = RecurrentAgent(CONFIG)
    agent.policy = agent.build(N)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.zero_()
    return agent


def _states():
    """(items so far, items to come) of each row."""
    return [(session[:j], session[j:]) for session in SESSIONS for j in range(1, len(session))]


def test_a_uniform_policy_has_the_entropy_of_log_n(agent, log):
    assert probe(agent, log)["entropy"] == pytest.approx(np.log(N))


def test_a_copier_copies_every_newest_item_and_every_earlier_one(agent, log):
    with torch.no_grad():
        agent.policy.copy_head.gate_bias.fill_(10)
    found = probe(agent, log)
    assert found["copy_last"] == 1
    # Only where there is an earlier item other than the newest.
    assert found["copy_earlier"] == pytest.approx(np.mean([len(set(past)) > 1 for past, _ in _states()]))


def test_a_policy_that_ignores_the_session_copies_only_what_it_always_ranks(agent, log):
    always = [0, 11, 12, 13, 14]
    with torch.no_grad():
        agent.policy.output_bias[always] = 20.0
    found = probe(agent, log)
    assert found["copy_last"] == pytest.approx(np.mean([past[-1] in always for past, _ in _states()]))
    assert found["copy_earlier"] == pytest.approx(np.mean([past[-1] != 0 and 0 in past for past, _ in _states()]))
    assert found["imagined_bias"] == 1


def test_imagined_items_come_true_where_they_occur_later_in_their_session(agent, log):
    # Item 0 is all that is ever imagined.
    with torch.no_grad():
        agent.policy.output_bias[0] = 50.0
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


def test_every_planner_gives_shares(log):
    for breadth, depth in ((1, 1), (3, 1), (1, 3), (2, 2)):
        agent = RecurrentAgent(replace(CONFIG, breadth=breadth, depth=depth, copy_window=0))
        agent.policy = agent.build(N)
        found = probe(agent, log)
        assert all(0 <= found[name] <= 1 for name in found if name != "entropy")
