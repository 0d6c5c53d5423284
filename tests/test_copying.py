"""The copy head counts each item of the session once, and the windows it reads never leave the session."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym.envs.observation import session_windows
from sessiongym.envs.replay import ReplayVectorEnv
from sessiongym.envs.sources.options import PrepareOptions, TableFormat
from sessiongym.envs.sources.table import prepare_table
from sessiongym.nn import copying
from sessiongym.nn.copying import CopyHead, window_stream

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))

N, H, W = 9, 3, 6


@pytest.fixture
def head():
    head = CopyHead(H, W)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head


def _bonus_by_item(bonus):
    """[R, N] what a row's bonuses add to each logit."""
    return torch.zeros(len(bonus.item), N).scatter_add(1, bonus.item, bonus.amount)


def _expected(head, hidden, window):
    """The definition, item by item: gate + recency by rank among the distinct items + count, capped at 3."""
    expected = torch.zeros(len(window), N)
    for row, items in enumerate(window.tolist()):
        items = [item for item in items if item != N]
        newest_first = list(dict.fromkeys(reversed(items)))
        gate = hidden[row] @ head.gate_weight[0] + head.gate_bias[0]
        for rank, item in enumerate(newest_first):
            expected[row, item] = gate + head.recency[rank] + head.count[min(items.count(item), 3) - 1]
    return expected


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, N - 1), max_size=W), min_size=1, max_size=4))
def test_each_distinct_item_gets_its_bonus_once_and_padding_none(sessions):
    head = CopyHead(H, W)
    generator = torch.Generator().manual_seed(len(sessions))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    window = torch.tensor([[N] * (W - len(items)) + items for items in sessions])
    hidden = torch.randn(len(sessions), H, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(_bonus_by_item(head(hidden, window, N)), _expected(head, hidden, window))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6))
def test_places_are_the_same_on_every_device(seed):
    generator = torch.Generator().manual_seed(seed)
    window = torch.randint(4, (5, W), generator=generator)
    window = window.masked_fill(torch.arange(W) < torch.randint(W + 1, (5, 1), generator=generator), N)
    bought = torch.rand(5, W, generator=generator) < 0.3
    expected, found = (places(window, window != N, bought) for places in (copying._places, copying._places_on_cpu))
    for a, b in zip(expected, found, strict=True):
        assert a is not None and b is not None
        # What stands at other places is multiplied by zero.
        assert torch.equal(a & expected[0] if a.dtype == torch.bool else a * expected[0], b)


def test_an_item_that_occurs_again_counts_at_its_newest_place(head):
    hidden = torch.zeros(1, H)
    with torch.no_grad():
        bonus = _bonus_by_item(head(hidden, torch.tensor([[N, N, 4, 5, 4, 2]]), N))[0]
    gate = head.gate_bias[0]
    torch.testing.assert_close(bonus[2], gate + head.recency[0] + head.count[0])
    torch.testing.assert_close(bonus[4], gate + head.recency[1] + head.count[1])
    torch.testing.assert_close(bonus[5], gate + head.recency[2] + head.count[0])


def test_a_window_of_padding_adds_nothing_and_trains_nothing(head):
    hidden = torch.ones(2, H, requires_grad=True)
    bonus = head(hidden, torch.full((2, W), N), N)
    assert not bonus.amount.any()
    bonus.amount.sum().backward()
    assert not any(parameter.grad.any() for parameter in head.parameters())


def test_training_starts_without_a_bonus():
    bonus = CopyHead(H, W)(torch.ones(1, H), torch.tensor([[0, 1, 2, 3, 4, 4]]), N)
    assert not bonus.amount.any()


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_window_stream_keeps_to_the_session_and_carries_over_unrolls(data):
    width, n_lanes = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    carried = torch.full((n_lanes, width), 1000)
    session = [[] for _ in range(n_lanes)]
    item = 0
    for number, n_steps in enumerate(lengths):
        items, start = torch.zeros(n_steps, n_lanes, dtype=torch.int64), torch.zeros(n_steps, n_lanes, dtype=torch.bool)
        expected = torch.full((n_steps, n_lanes, width), 1000)
        for t in range(n_steps):
            for lane in range(n_lanes):
                # The very first item of a lane need not be a start: the window before it is then all padding.
                start[t, lane] = data.draw(st.booleans())
                session[lane] = ([] if start[t, lane] else session[lane]) + [item]
                items[t, lane] = item
                last = session[lane][-width:]
                expected[t, lane, width - len(last) :] = torch.tensor(last)
                item += 1
        windows = window_stream(carried, items, start, 1000)
        assert torch.equal(windows, expected), f"unroll {number}"
        carried = windows[-1]


def test_training_windows_equal_the_scored_ones_on_real_sessions():
    file = DATA / "recsys15_clicks" / "yoochoose-clicks-100k_train_full.txt"
    if not file.exists():
        pytest.skip(f"{file.name} not found; set SESSIONGYM_DATA to the folder of recorded data")
    columns = TableFormat(events=file, session="SessionId", item="ItemId", time="Time", sep="tab")
    log = prepare_table(columns, PrepareOptions(min_item_support=20)).train
    width, batch = 5, log.batch(0, 400)
    of_row = session_windows(batch, width, log.n_items)

    # One lane walks the sessions in their order, so its rows are those of the batch.
    env = ReplayVectorEnv(log, num_envs=1, window=1, feedback="logged")
    env.reset(seed=0)
    carried, found = torch.full((1, width), log.n_items), []
    while sum(map(len, found)) < len(of_row):
        rollout = env.rollout(7)
        windows = window_stream(
            carried, torch.from_numpy(rollout.item).long(), torch.from_numpy(rollout.start), log.n_items
        )
        carried = windows[-1]
        found.append(windows[:, 0].numpy())
    np.testing.assert_array_equal(np.concatenate(found)[: len(of_row)], of_row)
