"""What is imagined: drawn without replacement from a frozen policy, blind to the future, and what its loss teaches."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sessiongym.agents.a3c import A3CLearner
from sessiongym.agents.config import AgentConfig
from sessiongym.agents.imagination.core import ImaginationCore
from sessiongym.agents.imagination.executor import logit_bias_share, reconstruction_loss
from sessiongym.agents.imagination.planner import TrajectoryManager
from sessiongym.agents.probes import probe
from sessiongym.agents.recurrent import RecurrentAgent
from sessiongym.envs.replay import ReplayVectorEnv
from sessiongym.envs.sources.options import PrepareOptions, TableFormat
from sessiongym.envs.sources.table import prepare_table
from sessiongym.evaluate.events import purchase_recall
from sessiongym.nn.copying import window_stream
from sessiongym.nn.policy import NetworkConfig, RecurrentPolicy

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))

N, H, W = 6, 4, 3


@pytest.fixture
def policy():
    generator = torch.Generator().manual_seed(3)
    policy = RecurrentPolicy(N, NetworkConfig(hidden_units=H, embedding_dim=H, tied=True, copy_window=W), generator)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.fixture
def core(policy):
    return ImaginationCore(policy, 2, torch.Generator().manual_seed(0))


def _states(n_states, seed=1):
    generator = torch.Generator().manual_seed(seed)
    window = torch.randint(N, (n_states, W), generator=generator)
    return (torch.randn(n_states, H, generator=generator), torch.randn(n_states, H, generator=generator)), window


def _flatten(policy):
    """Every outcome often enough for a chi-square test, and still far from equal."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(0.4)


def test_first_items_follow_the_law_of_drawing_without_replacement(core):
    n_draws = 40_000
    _flatten(core.policy)
    (h, c), window = _states(1)
    p = core.policy.logits(h, window).softmax(1)[0].detach().double().numpy()
    state = h.expand(n_draws, H), c.expand(n_draws, H)
    first, second = core.first_items(state, window.expand(n_draws, W), 2).numpy()
    assert (first != second).all()
    expected = n_draws * p[:, None] * p[None] / (1 - p[:, None])
    np.fill_diagonal(expected, 0)
    observed = np.bincount(first * N + second, minlength=N * N).reshape(N, N)
    off = ~np.eye(N, dtype=bool)
    assert expected[off].min() > 5
    chi_square = ((observed - expected)[off] ** 2 / expected[off]).sum()
    # The 99.9 % quantile of chi-square with 30 - 1 degrees of freedom.
    assert chi_square < 58.3


def test_next_items_follow_the_policy(core):
    n_draws = 40_000
    _flatten(core.policy)
    (h, c), window = _states(1)
    p = core.policy.logits(h, window).softmax(1)[0].detach().double().numpy()
    items = core.next_items((h.expand(n_draws, H), c.expand(n_draws, H)), window.expand(n_draws, W)).numpy()
    expected = n_draws * p
    assert expected.min() > 5
    # The 99.9 % quantile of chi-square with 6 - 1 degrees of freedom.
    assert ((np.bincount(items, minlength=N) - expected) ** 2 / expected).sum() < 20.5


@pytest.mark.parametrize("breadth", [2, N])
def test_the_first_items_of_a_state_are_distinct(core, breadth):
    state, window = _states(500)
    items = core.first_items(state, window, breadth).sort(dim=0).values
    assert (items[1:] != items[:-1]).all()


def test_a_trajectory_goes_on_from_the_items_imagined_before(policy):
    # So peaked that every draw is the best item, which makes the trajectories known.
    with torch.no_grad():
        policy.item_table.mul_(40)
        policy.output_bias.mul_(40)
    core = ImaginationCore(policy, 1, torch.Generator().manual_seed(0))
    state, window = _states(50)
    imagined = TrajectoryManager(breadth=2, depth=3).imagine(core, state, window)
    assert imagined.shape == (3, 2, 50)
    n_certain = 0
    with torch.no_grad():
        for j in range(2):
            (h, c), w = state, window
            for tau in range(2):
                h, c = policy.step(imagined[tau, j], (h, c))
                w = torch.cat([w[:, 1:], imagined[tau, j][:, None]], 1)
                best = policy.logits(h, w).softmax(1).max(1)
                certain = best.values > 1 - 1e-6
                assert torch.equal(imagined[tau + 1, j][certain], best.indices[certain])
                n_certain += int(certain.sum())
    assert n_certain > 100


@pytest.mark.parametrize("reading", ["after", "before", "alone"])
def test_no_gradient_reaches_the_frozen_policy(policy, core, reading):
    state, window = _states(7)
    imagined = TrajectoryManager(2, 2).imagine(core, state, window)
    assert not imagined.requires_grad
    reconstruction_loss(policy, state, imagined, reading, 0.99).backward()
    assert policy.item_table.grad is not None and policy.item_table.grad.any()
    assert all(p.grad is None and not p.requires_grad for p in core.policy.parameters())


def test_imagination_never_reads_the_future():
    config = AgentConfig(hidden_units=H, lanes=3, unroll=6, copy_window=W, imagination_weight=1.0, depth=3)
    rng = np.random.default_rng(0)
    items = torch.from_numpy(rng.integers(0, N, (12, 3)))
    start = torch.from_numpy(rng.random((12, 3)) < 0.3)
    poisoned_items, poisoned_start = items.clone(), start.clone()
    known = 7
    poisoned_items[known:] = (items[known:] + 1) % N
    poisoned_start[known:] = ~start[known:]

    def imagine(items, start):
        learner = A3CLearner(config, N, 0, "cpu")
        carried, imagined = torch.full((3, W), N), []
        for now in (slice(0, 6), slice(6, 12)):
            state = learner.imagination.encode(items[now], start[now])
            windows = window_stream(carried, items[now], start[now], N)
            carried = windows[-1]
            state = state[0].flatten(0, 1), state[1].flatten(0, 1)
            found = learner.planner.imagine(learner.imagination, state, windows.flatten(0, 1))
            imagined.append(found.unflatten(2, (6, 3)))
        return torch.cat(imagined, dim=2)

    honest, poisoned = imagine(items, start), imagine(poisoned_items, poisoned_start)
    assert torch.equal(honest[:, :, :known], poisoned[:, :, :known])
    assert not torch.equal(honest[:, :, known:], poisoned[:, :, known:])


def test_bias_share_is_one_where_the_bias_alone_makes_the_logit_and_zero_without_it(policy):
    state, _ = _states(9)
    items = torch.arange(9) % N
    with torch.no_grad():
        assert 0 < float(logit_bias_share(policy, state[0], items)) < 1
        policy.output_bias.zero_()
        assert float(logit_bias_share(policy, state[0], items)) == 0
        policy.item_table.zero_()
        policy.output_bias.fill_(-2)
        assert float(logit_bias_share(policy, state[0], items)) == 1


@pytest.fixture
def one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.mark.slow
def test_reconstruction_after_learns_to_copy_and_before_learns_nothing(one_thread):
    """No reward at all, so only the imagination trains (clicks of RecSys15, 64 units, 1,000 updates of 128, seed 0).

    Items with at least 26 events, about 500 of them: reading `after` ends as a copier of the newest item, which is a
    good guess of the next click, and reading `before` stays at the 5/N of chance.
    """
    file = DATA / "recsys15_clicks" / "yoochoose-clicks-100k_train_full.txt"
    if not file.exists():
        pytest.skip(f"{file.name} not found; set SESSIONGYM_DATA to the folder of recorded data")
    columns = TableFormat(events=file, session="SessionId", item="ItemId", time="Time", sep="tab")
    data = prepare_table(columns, PrepareOptions(min_item_support=26))
    base = AgentConfig(hidden_units=64, value_coefficient=0.0, imagination_weight=1.0, breadth=2, depth=2)
    recall, copied = {}, {}
    for reading in ("after", "before"):
        config = replace(base, reconstruction=reading)
        learner = A3CLearner(config, data.train.n_items, 0, "cpu")
        env = ReplayVectorEnv(data.train, config.lanes, window=1, feedback="logged", rewards=(0, 5), order="shuffled")
        env.reset(seed=0)
        learner.start(env.rollout)
        for _ in range(1000):
            learner.update()
        agent = RecurrentAgent(config)
        agent.policy = learner.policy
        recall[reading] = purchase_recall(agent, data.test)
        copied[reading] = probe(agent, data.test)["copy_last"]
    chance = 5 / data.train.n_items
    print(f"{data.train.n_items} items, chance {chance:.4f}, Recall@5 {recall}, newest item in the top five {copied}")
    # A policy that learned nothing ranks five items of its own choice; some items are clicked far more than others.
    share = np.bincount(data.test.item[data.test.batch().target_events()], minlength=data.train.n_items)
    spread = np.sqrt(5) * np.std(share / share.sum())
    assert recall["before"] < chance + 3 * spread
    assert recall["after"] > recall["before"] + 10 * spread
    assert copied["after"] > 0.5 > 0.1 > copied["before"]
