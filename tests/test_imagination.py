"""What is imagined: drawn from a frozen policy by the law that was asked for, and blind to the future."""

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from sessiongym.agents.a3c import A3CLearner
from sessiongym.agents.config import AgentConfig
from sessiongym.agents.imagination import (
    ImaginationCore,
    SeenItems,
    TrajectoryManager,
    distillation_loss,
    logit_bias_share,
)
from sessiongym.agents.imagination import sampling as kernels
from sessiongym.agents.imagination.sampling import sample_items
from sessiongym.agents.probes import probe
from sessiongym.agents.recurrent import RecurrentAgent
from sessiongym.envs.replay import ReplayVectorEnv
from sessiongym.envs.sources.options import PrepareOptions, TableFormat
from sessiongym.envs.sources.table import prepare_table
from sessiongym.errors import InputError
from sessiongym.evaluate.events import purchase_recall
from sessiongym.nn.policy import NetworkConfig, RecurrentPolicy
from torch import nn

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))

N, H, W = 6, 4, 3
WAYS = [kernels._by_inverse_cdf, kernels._by_gumbel_noise]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def policy():
    policy = RecurrentPolicy(N, NetworkConfig(hidden_units=H, embedding_dim=H, tied=True, copy_window=W), seeded(3))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(parameter.numel())))
    return policy


@pytest.fixture
def core(policy):
    return ImaginationCore(policy, seeded())


def states(policy, n_states, seed=1):
    items = torch.randint(N, (4, n_states), generator=seeded(seed))
    with torch.no_grad():
        return policy.unroll(items, torch.zeros(items.shape, dtype=torch.bool), policy.initial_state(n_states)).map(
            lambda part: part[-1]
        )


class OneOrTwoAhead(nn.Module):
    """After item i come i + 1 or i + 2, around a circle of 12; nothing else can."""

    def step(self, items, state):
        return (items,)

    def logits(self, state):
        ahead = (torch.arange(12) - state[0].unsqueeze(1)) % 12
        return torch.where((ahead == 1) | (ahead == 2), 0.0, -torch.inf)


def chi_square(observed, expected):
    assert expected.min() > 5
    return ((observed - expected) ** 2 / expected).sum()


@pytest.mark.parametrize("way", WAYS)
def test_distinct_items_follow_the_law_of_drawing_without_replacement(way):
    n_draws = 40_000
    logits = torch.tensor([0.3, -1.0, 0.8, 0.0, -0.5, 1.2])
    p = logits.softmax(0).double().numpy()
    first, second = way(logits.expand(n_draws, N), 2, True, seeded()).numpy()
    assert (first != second).all()
    expected = n_draws * p[:, None] * p[None] / (1 - p[:, None])
    observed = np.bincount(first * N + second, minlength=N * N).reshape(N, N)
    off = ~np.eye(N, dtype=bool)
    # The 99.9 % quantile of chi-square with 30 - 1 degrees of freedom.
    assert chi_square(observed[off], expected[off]) < 58.3


@pytest.mark.parametrize("way", WAYS)
def test_independent_items_follow_the_product_of_their_laws(way):
    n_draws = 40_000
    logits = torch.tensor([0.3, -1.0, 0.8, 0.0, -0.5, 1.2])
    p = logits.softmax(0).double().numpy()
    first, second = way(logits.expand(n_draws, N), 2, False, seeded()).numpy()
    observed = np.bincount(first * N + second, minlength=N * N)
    # The 99.9 % quantile of chi-square with 36 - 1 degrees of freedom.
    assert chi_square(observed, n_draws * np.outer(p, p).ravel()) < 66.6


@pytest.mark.parametrize("n_items", [1, 127, 128, 129, 300])
def test_even_uniforms_draw_every_item_in_exactly_its_share(n_items, monkeypatch):
    n_draws = 20_000
    even = (torch.arange(n_draws, dtype=torch.float64) + 0.5) / n_draws
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: even.view(shape))
    logits = 3 * torch.randn(n_items, generator=seeded())
    logits[n_items // 2 :: 7] = -torch.inf if n_items > 1 else 0.0
    observed = np.bincount(sample_items(logits.expand(n_draws, -1), 1, "iid", seeded())[0], minlength=n_items)
    expected = n_draws * logits.double().softmax(0).numpy()
    # An interval of the cdf holds its length in even points, one more or one fewer; float32 moves its ends a little.
    assert np.abs(observed - expected).max() < 1.05
    assert not observed[torch.isinf(logits).numpy()].any()


def test_distinct_items_are_distinct_even_where_the_others_have_no_weight_left():
    logits = torch.tensor([[0.0, -1000.0, -400.0, -200.0], [-500.0, 0.0, -torch.inf, 500.0]])
    drawn = sample_items(logits, 3, "gumbel", seeded()).t().tolist()
    assert drawn == [[0, 3, 2], [3, 1, 0]]


def test_the_most_probable_items_come_in_order():
    logits = torch.randn(9, N, generator=seeded())
    expected = logits.argsort(dim=1, descending=True)[:, :3].t()
    assert torch.equal(sample_items(logits, 3, "top-n", seeded()), expected)


@pytest.mark.parametrize(
    ("logits", "n", "message"),
    [
        (torch.zeros(1, 2, N), 1, r"expected \[M, N\].*found \(1, 2, 6\)"),
        (torch.zeros(2, N), 7, "breadth: expected at most the 6 items.*found 7"),
        (torch.tensor([[0.0, 0.0], [0.0, torch.nan]]), 1, "no NaN, found fewer in row 1"),
        (torch.tensor([[torch.inf, 0.0]]), 1, "expected 1 or more finite"),
        (torch.tensor([[0.0, -torch.inf]]), 2, "expected 2 or more finite"),
    ],
)
def test_logits_that_cannot_be_drawn_from_are_refused(logits, n, message):
    with pytest.raises(InputError, match=message) as error:
        sample_items(logits, n, "gumbel", seeded())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("breadth", [2, N])
def test_the_first_items_of_a_state_are_distinct(policy, core, breadth):
    items = TrajectoryManager(core, breadth, 1).imagine(states(policy, 500))[0].sort(dim=0).values
    assert items.shape == (breadth, 500)
    assert (items[1:] != items[:-1]).all()


@pytest.mark.parametrize("branching", ["gumbel", "iid", "top-n", "tree"])
def test_every_item_follows_from_the_one_it_continues(branching):
    core = ImaginationCore(OneOrTwoAhead(), seeded())
    start = torch.randint(12, (200,), generator=seeded(1))
    imagined = TrajectoryManager(core, 2, 3, branching).imagine((start,))
    assert [len(items) for items in imagined] == ([2, 4, 8] if branching == "tree" else [2, 2, 2])
    before = start.unsqueeze(0)
    for tau, items in enumerate(imagined):
        step = (items - before.repeat(len(items) // len(before), 1)) % 12
        assert ((step == 1) | (step == 2)).all()
        if len(items) == 2 * len(before) and branching != "iid":
            assert (items[: len(before)] != items[len(before) :]).all()
        # Chains choose at every step, on their own.
        if tau > 0 and branching != "tree":
            assert 0 < int((step[0] != step[1]).sum()) < 200
        before = items


def test_an_imagined_item_enters_the_window_of_the_copy_head(policy):
    # So peaked that every draw is the best item, which makes the trajectories known.
    with torch.no_grad():
        policy.item_table.mul_(40)
        policy.head.bias.mul_(40)
    core = ImaginationCore(policy, seeded())
    begin = states(policy, 50)
    imagined = torch.stack(TrajectoryManager(core, breadth=2, depth=3).imagine(begin))
    n_certain = 0
    with torch.no_grad():
        for chain in imagined.unbind(1):
            state = begin
            for items, following in pairwise(chain):
                state = policy.step(items, state)
                best = policy.logits(state).softmax(1).max(1)
                certain = best.values > 1 - 1e-6
                assert torch.equal(following[certain], best.indices[certain])
                n_certain += int(certain.sum())
    assert n_certain > 100


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"breadth": 0}, "breadth: expected at least 1"), ({"depth": 0}, "depth: .*"), ({"branching": "x"}, "one of")],
)
def test_a_planner_that_makes_no_sense_is_refused(core, wrong, message):
    with pytest.raises(InputError, match=message):
        TrajectoryManager(**{"core": core, "breadth": 2, "depth": 2, **wrong})


def test_the_same_seed_imagines_the_same_and_draws_from_nowhere_else(policy):
    def imagine(seed):
        return torch.stack(TrajectoryManager(ImaginationCore(policy, seeded(seed)), 2, 3).imagine(states(policy, 40)))

    torch.manual_seed(1)
    untouched = torch.get_rng_state()
    first = imagine(0)
    assert torch.equal(torch.get_rng_state(), untouched)
    torch.manual_seed(2)
    assert torch.equal(imagine(0), first)
    assert not torch.equal(imagine(1), first)


def test_the_frozen_copy_learns_nothing_until_it_is_refreshed(policy):
    policy.head.bias.grad = torch.ones(N)
    core = ImaginationCore(policy.train(), seeded())
    assert all(p.grad is None and not p.requires_grad for p in core.policy.parameters())
    assert policy.training and not core.policy.training
    state = states(policy, 3)
    before = core.policy.logits(state).clone()
    with torch.no_grad():
        policy.head.bias += torch.arange(float(N))
    assert torch.equal(core.policy.logits(state), before)
    address = core.policy.head.bias.data_ptr()
    core.refresh(policy)
    assert torch.equal(core.policy.logits(state), policy.logits(state).detach())
    assert core.policy.head.bias.data_ptr() == address


def test_a_network_that_is_not_copied_is_distilled_from_the_policy(policy):
    student = RecurrentPolicy(N, NetworkConfig(hidden_units=2), seeded(8))
    core = ImaginationCore(student, seeded(), frozen_copy=False)
    assert core.policy is student
    teacher, begin = policy.logits(states(policy, 200)), states(student, 200)
    p = teacher.detach().double().softmax(1)
    by_hand = -(p * student.logits(begin).double().log_softmax(1)).sum(1).mean()
    assert distillation_loss(student.logits(begin), teacher).item() == pytest.approx(by_hand.item(), rel=1e-6)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    losses = []
    for _ in range(100):
        loss = distillation_loss(student.logits(begin), teacher)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    entropy = float(-(p * p.log()).sum(1).mean())
    assert entropy < losses[-1] < losses[0]
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_imagination_never_reads_the_future(policy):
    rng = np.random.default_rng(0)
    items = torch.from_numpy(rng.integers(0, N, (12, 3)))
    start = torch.from_numpy(rng.random((12, 3)) < 0.3)
    poisoned_items, poisoned_start = items.clone(), start.clone()
    known = 7
    poisoned_items[known:] = (items[known:] + 1) % N
    poisoned_start[known:] = ~start[known:]

    def imagine(items, start):
        core = ImaginationCore(policy, seeded())
        carried, imagined, seen = core.policy.initial_state(3), [], []
        for now in (slice(0, 6), slice(6, 12)):
            with torch.no_grad():
                real = core.policy.unroll(items[now], start[now], carried)
            carried = real.map(lambda part: part[-1])
            rows = real.map(lambda part: part.flatten(0, 1))
            for found, planner, begin in (
                (imagined, TrajectoryManager(core, 2, 3), rows),
                (seen, SeenItems(core.generator, N, 2, 3), rows.window),
            ):
                found.append(torch.stack(planner.imagine(begin)).unflatten(2, (6, 3)))
        return torch.cat(imagined, dim=2), torch.cat(seen, dim=2)

    for honest, poisoned in zip(imagine(items, start), imagine(poisoned_items, poisoned_start), strict=True):
        assert torch.equal(honest[:, :, :known], poisoned[:, :, :known])
        assert not torch.equal(honest[:, :, known:], poisoned[:, :, known:])


def test_seen_items_are_those_of_the_session_distinct_as_far_as_it_goes():
    windows = torch.tensor([[N, N, N, 2], [N, 4, 1, 4], [0, 3, 5, 1]])
    imagined = SeenItems(seeded(), N, breadth=3, depth=2).imagine(windows.repeat(500, 1))
    first, second, third = imagined[0].sort(dim=0).values
    assert (first[0::3] == 2).all() and (third[0::3] == 2).all()
    one, four = torch.tensor(1), torch.tensor(4)
    assert (first[1::3] == one).all() and (third[1::3] == four).all()
    assert ((second[1::3] == one) | (second[1::3] == four)).all()
    assert ((first < second) & (second < third))[2::3].all()


def test_seen_items_are_drawn_uniformly_from_the_distinct_ones():
    n_draws = 30_000
    windows = torch.tensor([[N, 4, 1, 4, 4, 0]]).expand(n_draws, -1)
    imagined = torch.stack(SeenItems(seeded(), N, breadth=2, depth=2).imagine(windows)).numpy()
    assert set(np.unique(imagined)) == {0, 1, 4}
    (first, second), after = imagined[0], imagined[1]
    pairs = np.bincount(first * N + second, minlength=N * N).reshape(N, N)[np.ix_([0, 1, 4], [0, 1, 4])]
    assert not pairs.diagonal().any()
    off = ~np.eye(3, dtype=bool)
    # The 99.9 % quantiles of chi-square with 6 - 1 and 9 - 1 degrees of freedom.
    assert chi_square(pairs[off], np.full(6, n_draws / 6)) < 20.5
    pairs = np.bincount(after[0] * N + after[1], minlength=N * N).reshape(N, N)[np.ix_([0, 1, 4], [0, 1, 4])]
    assert chi_square(pairs.ravel(), np.full(9, n_draws / 9)) < 26.1


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (torch.zeros(2, 3), r"int64 \[M, W\], found torch.float32 \(2, 3\)"),
        ((torch.zeros(2),), "found tuple"),
        (torch.tensor([[N, 1], [N, N]]), r"found padding \(6\) only"),
    ],
)
def test_windows_without_items_are_refused(windows, message):
    with pytest.raises(InputError, match=message):
        SeenItems(seeded(), N, 2, 2).imagine(windows)


def test_bias_share_is_one_where_the_bias_alone_makes_the_logit_and_zero_without_it(policy):
    state = states(policy, 9)
    items = torch.arange(9) % N
    with torch.no_grad():
        assert 0 < float(logit_bias_share(policy, state, items)) < 1
        policy.head.bias.zero_()
        assert float(logit_bias_share(policy, state, items)) == 0
        policy.item_table.zero_()
        policy.head.bias.fill_(-2)
        assert float(logit_bias_share(policy, state, items)) == 1


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
