"""`TableAdagrad` against its formula, row by row."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym.errors import InputError
from sessiongym.nn.adagrad import TableAdagrad
from torch import nn

N, D = 6, 4
RATE, MOMENTUM, EPS = 0.1, 0.6, 1e-6


def _network():
    generator = torch.Generator().manual_seed(0)
    shapes = {"table": (N, D), "matrix": (3, D), "vector": (5,)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def _optimizer(network):
    return TableAdagrad(network, RATE, MOMENTUM, tables=["table"], eps=EPS)


def _gradients(seed, sparse):
    """Gradients of the three parameters, that of the table sparse or dense, and its rows."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, N, rng.integers(0, 5))
    values = rng.normal(size=(len(rows), D)).astype(np.float32)
    table = torch.sparse_coo_tensor(torch.tensor(rows)[None], torch.tensor(values), (N, D), check_invariants=True)
    others = {"matrix": rng.normal(size=(3, D)), "vector": rng.normal(size=5)}
    gradients = {name: torch.tensor(x, dtype=torch.float32) for name, x in others.items()}
    return {"table": table if sparse else table.to_dense(), **gradients}, set(rows.tolist())


class _ByHand:
    def __init__(self, p):
        self.p, self.a, self.v = p.astype(np.float64), np.zeros(p.shape), np.zeros(p.shape)

    def step(self, g, rows):
        for row in rows:
            self.a[row] += g[row] ** 2
            self.v[row] = MOMENTUM * self.v[row] - RATE * g[row] / np.sqrt(self.a[row] + EPS)
            self.p[row] += self.v[row]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8), st.booleans())
def test_steps_are_those_of_the_formula_and_rows_not_touched_stay(seeds, sparse):
    network = _network()
    optimizer = _optimizer(network)
    by_hand = {name: _ByHand(p.detach().numpy()) for name, p in network.items()}
    for seed in seeds:
        gradients, touched = _gradients(seed, sparse)
        for name, hand in by_hand.items():
            g = (gradients[name].to_dense() if name == "table" else gradients[name]).numpy().astype(np.float64)
            hand.step(g, touched if name == "table" else range(len(g)))
            network[name].grad = gradients[name]
        optimizer.step()
    for name, hand in by_hand.items():
        np.testing.assert_allclose(network[name].detach().numpy(), hand.p, rtol=1e-4, atol=1e-5)


def test_a_row_not_touched_keeps_its_velocity_for_the_next_time():
    network = _network()
    optimizer = _optimizer(network)
    before = network["table"].detach().clone()
    for row in (1, 2, 1):
        rows = torch.tensor([[row]])
        network["table"].grad = torch.sparse_coo_tensor(rows, torch.ones(1, D), (N, D), check_invariants=True)
        optimizer.step()
    velocity = -RATE / np.sqrt(1 + EPS)
    second = MOMENTUM * velocity - RATE / np.sqrt(2 + EPS)
    moved = (network["table"].detach() - before).numpy()
    np.testing.assert_allclose(moved[1], velocity + second, rtol=1e-5)
    np.testing.assert_allclose(moved[2], velocity, rtol=1e-5)
    assert not moved[[0, 3, 4, 5]].any()


def test_saved_state_goes_on_as_if_never_interrupted():
    whole, cut = _network(), _network()
    first = _optimizer(whole)
    second = _optimizer(cut)
    for seed in range(4):
        if seed == 2:
            saved = {name: x.clone() for name, x in second.state_tensors().items()}
            second = _optimizer(cut)
            second.load_state_tensors(saved)
        for network, optimizer in ((whole, first), (cut, second)):
            for name, gradient in _gradients(seed, True)[0].items():
                network[name].grad = gradient
            optimizer.step()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_what_does_not_fit_is_an_input_error():
    network = _network()
    for rate, momentum in ((0.0, 0.1), (0.1, 1.0), (0.1, -0.1)):
        with pytest.raises(InputError, match="Adagrad: expected"):
            TableAdagrad(network, rate, momentum)
    with pytest.raises(InputError, match="load the state of the same network"):
        _optimizer(network).load_state_tensors({})
