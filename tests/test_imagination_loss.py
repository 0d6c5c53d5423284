"""The reconstruction loss, on the package's policy and on recommenders that know nothing of the package."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from sessiongym.agents.config import Branching
from sessiongym.agents.imagination import (
    ImaginationCore,
    SeenItems,
    TrajectoryManager,
    imagination_loss,
    map_state,
    reconstruction_loss,
    repeat_state,
)
from sessiongym.errors import InputError
from sessiongym.nn.policy import NetworkConfig, RecurrentPolicy
from torch import nn

N, H, M = 7, 5, 4
CHAINS = [[[1, 2, 0, 6], [3, 1, 1, 5]], [[4, 2, 6, 0], [0, 0, 5, 3]]]
TREE = [CHAINS[0], [[4, 2, 6, 0], [0, 0, 5, 3], [1, 1, 2, 2], [6, 5, 4, 3]]]


class GruRecommender(nn.Module):
    """Someone else's: no `logit_of`, and a state that is one tensor."""

    def __init__(self, n_items=N, units=H, seed=0):
        super().__init__()
        self.embedding = nn.Embedding(n_items, units)
        self.cell = nn.GRUCell(units, units)
        self.output = nn.Linear(units, n_items)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))

    def step(self, items, state):
        return self.cell(self.embedding(items), state)

    def logits(self, state):
        return self.output(state)

    def initial_state(self, n):
        return self.output.weight.new_zeros(n, self.cell.hidden_size)


class Pair(NamedTuple):
    memory: torch.Tensor
    nothing: None
    more: tuple


class LstmRecommender(nn.Module):
    """Its state is a nest of tuples."""

    def __init__(self):
        super().__init__()
        self.embedding, self.cell, self.output = nn.Embedding(N, H), nn.LSTMCell(H, H), nn.Linear(H, N)

    def step(self, items, state):
        h, c = self.cell(self.embedding(items), (state.more[0], state.memory))
        return Pair(c, None, (h, items))

    def logits(self, state):
        return self.output(state.more[0])


def levels(items):
    return [torch.tensor(level) for level in items]


def planner(policy, breadth=2, depth=2, branching: Branching = "gumbel", seed=0):
    return TrajectoryManager(ImaginationCore(policy, torch.Generator().manual_seed(seed)), breadth, depth, branching)


def loss_by_hand(weights, begin, imagined, reading, gamma):
    """Eq. 4 for `GruRecommender`, one session and one item at a time, in NumPy."""
    table, w_ih, w_hh, b_ih, b_hh, w_out, b_out = weights

    def step(item, h):
        into, from_h = w_ih @ table[item] + b_ih, w_hh @ h + b_hh
        reset, update = (1 / (1 + np.exp(-(into[part] + from_h[part]))) for part in (slice(0, H), slice(H, 2 * H)))
        new = np.tanh(into[2 * H :] + reset * from_h[2 * H :])
        return (1 - update) * new + update * h

    total = 0.0
    for session in range(M):
        before = [begin[session]]
        for tau, level in enumerate(imagined, start=1):
            after = []
            for k, items in enumerate(level):
                item, parent = items[session], before[k % len(before)]
                after.append(step(item, parent))
                read = {"after": after[-1], "before": parent, "alone": step(item, np.zeros(H))}[reading]
                total += gamma**tau * (1 - (w_out[item] @ read + b_out[item])) ** 2
            before = after
    return total / M


@pytest.mark.parametrize("imagined", [CHAINS, TREE])
@pytest.mark.parametrize("reading", ["after", "before", "alone"])
def test_loss_and_gradient_equal_those_by_hand(reading, imagined):
    policy = GruRecommender().double()
    begin = torch.randn(M, H, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss = reconstruction_loss(policy, begin, levels(imagined), reading, 0.9)
    loss.backward()
    weights = [parameter.detach().numpy().copy() for parameter in policy.parameters()]
    weights.append(begin.detach().numpy().copy())
    assert loss.item() == pytest.approx(loss_by_hand(weights[:-1], weights[-1], imagined, reading, 0.9), rel=1e-12)
    gradients = [parameter.grad for parameter in policy.parameters()] + [begin.grad]
    for weight, gradient in zip(weights, gradients, strict=True):
        by_hand, step = np.zeros_like(weight), 1e-6
        for place in np.ndindex(weight.shape):
            there = weight[place]
            sides = []
            for weight[place] in (there + step, there - step):
                sides.append(loss_by_hand(weights[:-1], weights[-1], imagined, reading, 0.9))
            weight[place] = there
            by_hand[place] = (sides[0] - sides[1]) / (2 * step)
        found = np.zeros_like(weight) if gradient is None else gradient.numpy()
        np.testing.assert_allclose(found, by_hand, rtol=1e-6, atol=1e-8)


def test_chains_may_come_as_one_tensor():
    policy, begin = GruRecommender(), torch.zeros(M, H)
    assert torch.equal(
        reconstruction_loss(policy, begin, torch.tensor(CHAINS)), reconstruction_loss(policy, begin, levels(CHAINS))
    )


def test_a_policy_that_can_compute_one_logit_alone_is_asked_for_that():
    policy = RecurrentPolicy(N, NetworkConfig(hidden_units=H), torch.Generator().manual_seed(0))
    items = torch.randint(N, (M,), generator=torch.Generator().manual_seed(1))
    begin = policy.step(items, policy.initial_state(M))
    with_logit_of = reconstruction_loss(policy, begin, levels(TREE))
    policy.logits = None  # type: ignore[assignment]
    assert torch.equal(reconstruction_loss(policy, begin, levels(TREE)), with_logit_of)
    del policy.logits

    class Plain:
        step, logits = policy.step, policy.logits

    torch.testing.assert_close(reconstruction_loss(Plain(), begin, levels(TREE)), with_logit_of)


@pytest.mark.parametrize("reading", ["after", "before", "alone"])
def test_the_gradient_reaches_the_policy_and_what_made_its_state_but_not_the_frozen_copy(reading):
    policy = GruRecommender()
    made_from = torch.zeros(M, H, requires_grad=True)
    state = policy.step(torch.arange(M), made_from)
    plan = planner(policy)
    imagination_loss(policy, state, plan, reading=reading).backward()
    assert policy.output.weight.grad is not None and policy.output.weight.grad.any()
    assert (made_from.grad is not None and bool(made_from.grad.any())) == (reading != "alone")
    assert all(parameter.grad is None for parameter in plan.core.policy.parameters())


def test_imagination_starts_in_the_state_itself_unless_told():
    policy = GruRecommender()
    state = policy.step(torch.arange(M), policy.initial_state(M))
    by_default = imagination_loss(policy, state, planner(policy))
    assert torch.equal(by_default, imagination_loss(policy, state, planner(policy), imagined_from=state.detach()))
    items = planner(policy).imagine(state.detach())
    assert torch.equal(by_default, reconstruction_loss(policy, state, items))
    windows = torch.arange(M).unsqueeze(1)
    seen = SeenItems(torch.Generator().manual_seed(0), N, breadth=1, depth=1)
    only_item = reconstruction_loss(policy, state, [torch.arange(M).unsqueeze(0)])
    assert torch.equal(imagination_loss(policy, state, seen, imagined_from=windows), only_item)


@pytest.mark.parametrize("branching", ["gumbel", "iid", "top-n", "tree"])
def test_a_state_may_be_any_nest_of_tuples(branching):
    policy = LstmRecommender()
    begin = Pair(torch.zeros(M, H), None, (torch.zeros(M, H, requires_grad=True), torch.zeros(M, dtype=torch.int64)))
    imagination_loss(policy, begin, planner(policy, 2, 3, branching)).backward()
    assert policy.embedding.weight.grad is not None and begin.more[0].grad is not None


def test_states_are_repeated_whole_and_keep_their_type():
    state = Pair(torch.arange(6).view(2, 3), None, (torch.arange(2),))
    repeated = repeat_state(state, 2)
    assert type(repeated) is Pair and repeated.nothing is None
    assert repeated.memory.tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5]]
    assert repeated.more[0].tolist() == [0, 1, 0, 1]
    assert repeat_state(state, 1) is state


def test_what_cannot_be_reconstructed_is_refused():
    policy, begin = GruRecommender(), torch.zeros(M, H)
    with pytest.raises(InputError, match="reading: expected one of after, before, alone, found 'later'"):
        reconstruction_loss(policy, begin, levels(CHAINS), "later")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected a multiple of 2 items at step 2, found 1"):
        reconstruction_loss(policy, begin, [torch.zeros(2, M).long(), torch.zeros(1, M).long()])
    with pytest.raises(InputError, match="state: expected a tensor, None or a tuple of such, found dict"):
        map_state(torch.Tensor.detach, {"h": begin})
    with pytest.raises(InputError, match=r"logits: expected \[M, N\].*sessions first"):
        planner(policy).imagine(begin.unsqueeze(0))


def train(policy, reading, weight, n_items=30, n_sessions=64):
    """Final cross-entropy and reconstruction error, means of 20 updates, on sessions that walk round a circle."""
    plan = planner(policy)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for update in range(60):
        if update % 20 == 0:
            plan.core.refresh(policy)
        newest = torch.randint(n_items, (n_sessions,), generator=generator)
        state = policy.initial_state(n_sessions)
        for back in (2, 1, 0):
            state = policy.step((newest - back) % n_items, state)
        cross_entropy = nn.functional.cross_entropy(policy.logits(state), (newest + 1) % n_items)
        reconstruction = imagination_loss(policy, state, plan, reading=reading)
        optimizer.zero_grad()
        (cross_entropy + weight * reconstruction).backward()
        optimizer.step()
        losses.append((cross_entropy.item(), reconstruction.item()))
    return np.mean(losses[-20:], axis=0)


@pytest.fixture
def one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.mark.parametrize("reading", ["after", "before", "alone"])
def test_a_recommender_that_is_not_ours_learns_to_reconstruct_beside_its_task(reading, one_thread):
    _, without = train(GruRecommender(30, 16), reading, weight=0.0)
    cross_entropy, reconstruction = train(GruRecommender(30, 16), reading, weight=0.1)
    assert reconstruction < without
    assert cross_entropy < np.log(30)
