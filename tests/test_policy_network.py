"""The network: every shape of it computes what its parts say, and no logit depends on how it is asked for."""

import itertools

import numpy as np
import pytest
import torch
from sessiongym.envs.log import PURCHASE
from sessiongym.envs.replay_options import NO_KIND
from sessiongym.nn.copying import window_stream
from sessiongym.nn.policy import NetworkConfig, RecurrentPolicy

N, T, B = 11, 6, 3

SHAPES = [
    NetworkConfig(hidden_units=5),
    NetworkConfig(hidden_units=5, embedding_dim=4),
    NetworkConfig(hidden_units=5, embedding_dim=5, tied=True),
    NetworkConfig(hidden_units=5, embedding_dim=4, tied=True, copy_window=3),
    NetworkConfig(hidden_units=5, embedding_dim=4, tied=True, copy_window=3, kinds=True),
    NetworkConfig(hidden_units=5, kinds=True),
]
NAMES = ["one-hot", "embedding", "tied", "tied, copying", "copying, kinds", "one-hot, kinds"]


@pytest.fixture(params=SHAPES, ids=NAMES)
def policy(request):
    generator = torch.Generator().manual_seed(0)
    policy = RecurrentPolicy(N, request.param, generator)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return policy


def _numpy(policy):
    return {name: p.detach().numpy().astype(np.float64) for name, p in policy.named_parameters()}


def _forward(p, config, session, kinds):
    """Logits [N] and value after the items of one session, by hand."""
    size = config.hidden_units
    h, c = np.zeros(size), np.zeros(size)
    for item, kind in zip(session, kinds, strict=True):
        x = p["item_table"][item] if config.embedding_dim is None else p["w_ih"] @ p["item_table"][item]
        gates = x + p["gate_bias"] + p["w_hh"] @ h + (p["kind_table"][kind] if config.kinds else 0)
        i, f, o = (1 / (1 + np.exp(-gates[k * size : (k + 1) * size])) for k in range(3))
        c = f * c + i * np.tanh(gates[3 * size :])
        h = o * np.tanh(c)
    features = p["head.projection"] @ h if "head.projection" in p else h
    logits = p.get("head.table", p["item_table"]) @ features + p["head.bias"]
    window, window_kinds = session[-config.copy_window :], kinds[-config.copy_window :]
    newest_first = list(dict.fromkeys(reversed(window))) if config.copy_window else []
    for rank, item in enumerate(newest_first):
        count = min(window.count(item), 3)
        if config.kinds and (item, PURCHASE) in zip(window, window_kinds, strict=True):
            logits[item] += p["head.copy_head.bought"][0]
        logits[item] += p["head.copy_head.gate_weight"][0] @ h + p["head.copy_head.gate_bias"][0]
        logits[item] += p["head.copy_head.recency"][rank] + p["head.copy_head.count"][count - 1]
    return logits, p["value_weight"][0] @ h + p["value_bias"][0]


def test_logits_and_value_equal_a_forward_pass_written_by_hand(policy):
    session, kinds = [3, 7, 3, 0, 10, 10], [0, 0, 1, 0, 1, 0]
    start = torch.zeros(len(session), 1, dtype=torch.bool)
    with torch.no_grad():
        column = [torch.tensor(values)[:, None] for values in (session, kinds)]
        states = policy.unroll(column[0], start, policy.initial_state(1), column[1])
        for j in range(1, len(session) + 1):
            state = states.map(lambda part: part[j - 1])  # noqa: B023
            expected, value = _forward(_numpy(policy), policy.config, session[:j], kinds[:j])
            np.testing.assert_allclose(policy.logits(state)[0], expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(policy.value(state.hidden), [value], rtol=1e-4, atol=1e-5)


def test_the_logit_of_one_item_is_its_column_of_all_logits_without_the_bonus(policy):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(7, policy.config.hidden_units, generator=generator)
    # A window of padding has no bonus.
    state = policy.initial_state(7)._replace(hidden=hidden)
    items = torch.randint(N, (7,), generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(policy.logit_of(state, items), policy.logits(state)[torch.arange(7), items])


def test_single_steps_equal_the_unroll(policy):
    items, kinds, _ = _events()
    state = policy.initial_state(B)
    with torch.no_grad():
        states = policy.unroll(items, torch.zeros(T, B, dtype=torch.bool), state, kinds)
        for t in range(T):
            state = policy.step(items[t], state, kinds[t])
            _assert_close(state, states.map(lambda part: part[t]))  # noqa: B023


def _events():
    generator = torch.Generator().manual_seed(2)
    kinds = (torch.rand(T, B, generator=generator) < 0.4).to(torch.uint8)
    return torch.randint(N, (T, B), generator=generator), kinds, torch.rand(T, B, generator=generator) < 0.3


def _assert_close(found, expected):
    for name, a, b in zip(found._fields, found, expected, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, msg=name)


def test_states_encoded_from_windows_equal_those_carried_along(policy):
    items, kinds, start = _events()
    with torch.no_grad():
        carried = policy.unroll(items, start, policy.initial_state(B), kinds)
        windows = window_stream(torch.full((B, T), N), items, start, N).flatten(0, 1)
        window_kinds = window_stream(torch.full((B, T), NO_KIND, dtype=torch.uint8), kinds, start, NO_KIND)
        encoded = policy.encode(windows, window_kinds.flatten(0, 1))
    _assert_close(encoded.map(lambda part: part.unflatten(0, (T, B))), carried)


def test_a_click_is_assumed_where_kinds_are_not_given(policy):
    items, kinds, _ = _events()
    with torch.no_grad():
        _assert_close(
            policy.step(items[0], policy.initial_state(B)),
            policy.step(items[0], policy.initial_state(B), torch.zeros_like(kinds[0])),
        )


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
    dropped = policy.dropped(torch.ones(500, 200), torch.Generator().manual_seed(1))
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
    start, state = torch.zeros(T, B, dtype=torch.bool), policy.initial_state(B)
    plain = [policy.unroll(items, start, state).hidden for _ in range(2)]
    dropped = [
        policy.unroll(items, start, state, generator=torch.Generator().manual_seed(seed)).hidden for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*plain) and torch.equal(dropped[0], dropped[1])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations((plain[0], dropped[0], dropped[2]), 2))
