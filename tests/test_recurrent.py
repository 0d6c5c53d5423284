"""The hand-written LSTM against its own single step, against torch.nn.LSTM, and against finite differences."""

# pyright: reportCallIssue=false

import pytest
import torch
from sessiongym.nn.recurrent import lstm_step, lstm_unroll

T, B, H = 5, 3, 4


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    start = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
    return draw(T, B, 4 * H), draw(4 * H, H), draw(B, H), draw(B, H), start


def test_gradients_agree_with_finite_differences_across_session_starts(case):
    *inputs, start = case
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda *x: lstm_unroll(*x, start), inputs)


def test_an_unroll_equals_single_steps_from_zeroed_states(case):
    gates, w_hh, h, c, start = case
    hidden, cell = lstm_unroll(gates, w_hh, h, c, start)
    for t in range(T):
        keep = (~start[t]).unsqueeze(1)
        h, c = lstm_step(gates[t], w_hh, h * keep, c * keep)
        torch.testing.assert_close(hidden[t], h)
        torch.testing.assert_close(cell[t], c)


def test_nothing_before_a_session_start_reaches_the_states_after_it(case):
    gates, w_hh, h, c, start = case
    expected = lstm_unroll(gates, w_hh, h, c, start)
    lane, begin = 2, 3
    gates = gates.clone()
    gates[:begin, lane] += 10
    found = lstm_unroll(gates, w_hh, h + 1, c - 1, start)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a[begin:, lane], b[begin:, lane])
        assert not torch.equal(a[:begin, lane], b[:begin, lane])


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_unrolls_that_carry_the_state_equal_one_long_unroll(case, cut):
    gates, w_hh, h, c, start = case
    hidden, cell = lstm_unroll(gates, w_hh, h, c, start)
    first = lstm_unroll(gates[:cut], w_hh, h, c, start[:cut])
    second = lstm_unroll(gates[cut:], w_hh, first[0][-1], first[1][-1], start[cut:])
    torch.testing.assert_close(torch.cat([first[0], second[0]]), hidden)
    torch.testing.assert_close(torch.cat([first[1], second[1]]), cell)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_session_without_resets_equals_torch_lstm_in_value_and_gradient(case, dtype):
    _, w_hh, h, c, _ = (x.to(dtype) for x in case)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(T, B, 6, generator=generator, dtype=dtype)
    w_ih = torch.randn(4 * H, 6, generator=generator, dtype=dtype)
    bias = torch.randn(4 * H, generator=generator, dtype=dtype)
    weight = torch.randn(T, B, H, generator=generator, dtype=dtype)
    # torch orders the gates input, forget, candidate, output; ours are input, forget, output, candidate.
    order = torch.cat([torch.arange(2 * H), torch.arange(3 * H, 4 * H), torch.arange(2 * H, 3 * H)])
    reference = torch.nn.LSTM(6, H, dtype=dtype)
    with torch.no_grad():
        reference.weight_ih_l0.copy_(w_ih[order])
        reference.weight_hh_l0.copy_(w_hh[order])
        reference.bias_ih_l0.copy_(bias[order])
        reference.bias_hh_l0.zero_()
    expected, (h_last, c_last) = reference(x, (h[None], c[None]))
    (expected * weight).sum().backward()

    w_ih, w_hh, bias = (p.clone().requires_grad_() for p in (w_ih, w_hh, bias))
    never = torch.zeros(T, B, dtype=torch.bool)
    hidden, cell = lstm_unroll(torch.nn.functional.linear(x, w_ih, bias), w_hh, h, c, never)
    (hidden * weight).sum().backward()
    torch.testing.assert_close(hidden, expected)
    torch.testing.assert_close(hidden[-1], h_last[0])
    torch.testing.assert_close(cell[-1], c_last[0])
    assert w_ih.grad is not None and w_hh.grad is not None and bias.grad is not None
    torch.testing.assert_close(w_ih.grad[order], reference.weight_ih_l0.grad)
    torch.testing.assert_close(w_hh.grad[order], reference.weight_hh_l0.grad)
    torch.testing.assert_close(bias.grad[order], reference.bias_ih_l0.grad)


@pytest.mark.parametrize("lanes, units", [(1, 1), (3, 7), (16, 64)])
def test_float32_is_float64_to_its_resolution_in_value_and_gradient(lanes, units):
    # float32 on the CPU runs compiled loops, float64 torch's operations.
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = [draw(T, lanes, 4 * units), draw(4 * units, units) / units**0.5, draw(lanes, units), draw(lanes, units)]
    start = torch.rand(T, lanes, generator=generator) < 0.3
    d_hidden, d_cell = draw(T, lanes, units), draw(T, lanes, units)
    found = {}
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in inputs]
        outputs = lstm_unroll(*leaves, start)
        gradients = torch.autograd.grad(outputs, leaves, (d_hidden.to(dtype), d_cell.to(dtype)))
        found[dtype] = [*outputs, *gradients]
    for single, double in zip(*found.values(), strict=True):
        torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=2e-5)


def test_small_activations_keep_their_relative_precision_and_large_ones_saturate():
    # One unit whose candidate gate alone varies: c = i g with i = 1, so c is tanh of the gate.
    gate = torch.cat([torch.logspace(-30, 2, 65), -torch.logspace(-30, 2, 65)])
    gates = torch.stack([torch.full_like(gate, 100.0), torch.zeros_like(gate), torch.full_like(gate, -1e4), gate], 1)
    zero = torch.zeros(len(gate), 1)
    hidden, cell = lstm_step(gates, torch.zeros(4, 1), zero, zero)
    torch.testing.assert_close(cell[:, 0].double(), torch.tanh(gate.double()), rtol=1e-6, atol=0)
    assert torch.all(hidden.abs() < 1e-30)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("used", [0, 1])
def test_an_output_that_nobody_uses_counts_as_one_of_gradient_zero(case, used, dtype):
    *inputs, start = case
    inputs = [x.to(dtype).requires_grad_() for x in inputs]
    weight = torch.zeros(2, dtype=dtype)
    weight[used] = 1
    hidden, cell = lstm_unroll(*inputs, start)
    expected = torch.autograd.grad((weight[0] * hidden).sum() + (weight[1] * cell).sum(), inputs)
    found = torch.autograd.grad(lstm_unroll(*inputs, start)[used].sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
