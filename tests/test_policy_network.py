"""The network: every shape of it computes what its parts say, and no logit depends on how it is asked for."""

import itertools

import numpy as np
import pytest
import torch
from sessiongym.nn.policy import NetworkConfig, RecurrentPolicy

N, T, B = 11, 6, 3

SHAPES = [
    NetworkConfig(hidden_units=5),
    NetworkConfig(hidden_units=5, embedding_dim=4),
    NetworkConfig(hidden_units=5, embedding_dim=5, tied=True),
    NetworkConfig(hidden_units=5, embedding_dim=4, tied=True, copy_window=3),
]


@pytest.fixture(params=SHAPES, ids=["one-hot", "embedding", "tied", "tied, projected, copying"])
def policy(request):
    generator = torch.Generator().manual_seed(0)
    policy = RecurrentPolicy(N, request.param, generator)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return policy


def _numpy(policy):
    return {name: p.detach().numpy().astype(np.float64) for name, p in policy.named_parameters()}


def _forward(p, config, session):
    """Logits [N] and value after the items of one session, by hand."""
    size = config.hidden_units
    h, c = np.zeros(size), np.zeros(size)
    for item in session:
        x = p["item_table"][item] if config.embedding_dim is None else p["w_ih"] @ p["item_table"][item]
        gates = x + p["gate_bias"] + p["w_hh"] @ h
        i, f, o = (1 / (1 + np.exp(-gates[k * size : (k + 1) * size])) for k in range(3))
        c = f * c + i * np.tanh(gates[3 * size :])
        h = o * np.tanh(c)
    features = p["projection"] @ h if "projection" in p else h
    logits = p.get("output_table", p["item_table"]) @ features + p["output_bias"]
    newest_first = list(dict.fromkeys(reversed(session[-config.copy_window :]))) if config.copy_window else []
    for rank, item in enumerate(newest_first):
        count = min(session[-config.copy_window :].count(item), 3)
        logits[item] += p["copy_head.gate_weight"][0] @ h + p["copy_head.gate_bias"][0]
        logits[item] += p["copy_head.recency"][rank] + p["copy_head.count"][count - 1]
    return logits, p["value_weight"][0] @ h + p["value_bias"][0]


def test_logits_and_value_equal_a_forward_pass_written_by_hand(policy):
    session = [3, 7, 3, 0, 10, 10]
    start = torch.zeros(len(session), 1, dtype=torch.bool)
    width = max(policy.config.copy_window, 1)
    with torch.no_grad():
        hidden, _ = policy.unroll(torch.tensor(session)[:, None], start, policy.initial_state(1))
        for j in range(1, len(session) + 1):
            window = torch.tensor([([N] * width + session[:j])[-width:]])
            expected, value = _forward(_numpy(policy), policy.config, session[:j])
            np.testing.assert_allclose(policy.logits(hidden[j - 1], window)[0], expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(policy.value(hidden[j - 1]), [value], rtol=1e-4, atol=1e-5)


def test_the_logit_of_one_item_is_its_column_of_all_logits_without_the_bonus(policy):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(7, policy.config.hidden_units, generator=generator)
    items = torch.randint(N, (7,), generator=generator)
    with torch.no_grad():
        # A window of padding has no bonus.
        logits = policy.logits(hidden, torch.full((7, max(policy.config.copy_window, 1)), N))
        torch.testing.assert_close(policy.logit_of(hidden, items), logits[torch.arange(7), items])


def test_single_steps_equal_the_unroll(policy):
    items = torch.randint(N, (T, B), generator=torch.Generator().manual_seed(2))
    state = policy.initial_state(B)
    with torch.no_grad():
        hidden, cell = policy.unroll(items, torch.zeros(T, B, dtype=torch.bool), state)
        for t in range(T):
            state = policy.step(items[t], state)
            torch.testing.assert_close(state, (hidden[t], cell[t]))


def test_weights_depend_on_the_seed_alone():
    def weights(seed):
        return list(RecurrentPolicy(N, SHAPES[3], torch.Generator().manual_seed(seed)).parameters())

    torch.manual_seed(5)
    first = weights(0)
    torch.manual_seed(6)
    assert all(torch.equal(a, b) for a, b in zip(first, weights(0), strict=True))
    assert not torch.equal(first[0], weights(1)[0])


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    config = NetworkConfig(hidden_units=200, embedding_dim=4, dropout=0.3)
    policy = RecurrentPolicy(N, config, torch.Generator().manual_seed(0))
    dropped = policy.features(torch.ones(500, 200), torch.Generator().manual_seed(1))
    n = dropped.numel()
    zeros = int((dropped == 0).sum())
    # Five standard deviations of a binomial.
    assert abs(zeros - 0.3 * n) < 5 * np.sqrt(n * 0.3 * 0.7)
    torch.testing.assert_close(dropped[dropped != 0], torch.full((n - zeros,), 1 / 0.7))


def test_dropout_is_off_without_a_generator_and_never_touches_the_global_one():
    config = NetworkConfig(hidden_units=8, embedding_dim=8, tied=True, dropout=0.5)
    policy = RecurrentPolicy(N, config, torch.Generator().manual_seed(0))
    items = torch.randint(N, (T, B), generator=torch.Generator().manual_seed(2))
    before = torch.get_rng_state()
    plain = [policy.input_gates(items) for _ in range(2)]
    dropped = [policy.input_gates(items, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*plain) and torch.equal(dropped[0], dropped[1])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations((plain[0], dropped[0], dropped[2]), 2))
