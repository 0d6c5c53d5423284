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


def test_a_session_without_resets_equals_torch_lstm_in_value_and_gradient(case):
    _, w_hh, h, c, _ = case
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(T, B, 6, generator=generator, dtype=torch.float64)
    w_ih = torch.randn(4 * H, 6, generator=generator, dtype=torch.float64)
    bias = torch.randn(4 * H, generator=generator, dtype=torch.float64)
    weight = torch.randn(T, B, H, generator=generator, dtype=torch.float64)
    # torch orders the gates input, forget, candidate, output; ours are input, forget, output, candidate.
    order = torch.cat([torch.arange(2 * H), torch.arange(3 * H, 4 * H), torch.arange(2 * H, 3 * H)])
    reference = torch.nn.LSTM(6, H, dtype=torch.float64)
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
