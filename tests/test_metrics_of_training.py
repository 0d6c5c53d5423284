"""What a learner counts: means over everything added, an advantage histogram, and no wait for the device."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sessiongym.agents.metrics import ADVANTAGE_EDGES, TrainingMetrics

CPU = torch.device("cpu")
PREFIX = "advantage_share_"


def _shares(taken):
    return np.array([value for name, value in taken.items() if name.startswith(PREFIX)])


def test_a_mean_is_of_everything_added_since_the_last_time():
    metrics = TrainingMetrics(CPU)
    metrics.add("loss", 1.0)
    metrics.add("loss", torch.tensor(4.0, requires_grad=True))
    metrics.add("share", torch.tensor(6), 8)
    taken = metrics.take()
    assert taken == {"loss": 2.5, "share": 0.75}
    assert {type(value) for value in taken.values()} == {float}
    metrics.add("loss", 7.0)
    assert metrics.take() == {"loss": 7.0}


def test_what_was_never_counted_is_left_out():
    metrics = TrainingMetrics(CPU)
    metrics.add("loss", 0.0, 0.0)
    metrics.add_advantages(torch.zeros(0))
    assert metrics.take() == {}


@given(st.lists(st.lists(st.sampled_from([*ADVANTAGE_EDGES, -9, -1.5, 0.1, 3, 40]), min_size=1), min_size=1))
def test_the_histogram_counts_each_advantage_once_and_a_bin_holds_its_upper_edge(updates):
    metrics = TrainingMetrics(CPU)
    for advantages in updates:
        metrics.add_advantages(torch.tensor(advantages, dtype=torch.float32))
    taken, everything = metrics.take(), np.concatenate(updates)
    bounds = [-np.inf, *ADVANTAGE_EDGES, np.inf]
    expected = [((everything > low) & (everything <= high)).mean() for low, high in pairwise(bounds)]
    assert _shares(taken) == pytest.approx(expected)
    assert taken["advantage_mean"] == pytest.approx(everything.mean(), abs=1e-6)
    assert taken["advantage_negative_share"] == pytest.approx((everything < 0).mean())


def test_counting_reads_nothing_back_from_the_device():
    # A tensor on the meta device has no values: reading one raises.
    meta = torch.device("meta")
    metrics = TrainingMetrics(meta)
    advantage = torch.zeros(8, device=meta)
    with pytest.raises((RuntimeError, NotImplementedError)):
        advantage.sum().item()
    for _ in range(2):
        metrics.add_advantages(advantage)
        metrics.add("loss", advantage.sum(), 8)
        metrics.add("events", 8.0)


def test_the_sums_are_all_there_is_and_those_of_two_learners_add_up():
    batches = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    whole, parts = TrainingMetrics(CPU), [TrainingMetrics(CPU) for _ in range(2)]
    for i, batch in enumerate(batches):
        for metrics in (whole, parts[i % 2]):
            metrics.add_advantages(batch)
            metrics.add("loss", batch.square().mean())
    merged = TrainingMetrics(CPU)
    merged.sums = {name: parts[0].sums[name] + parts[1].sums[name] for name in parts[0].sums}
    assert merged.take() == pytest.approx(whole.take())


def test_names_are_tags_as_tensorboard_takes_them():
    metrics = TrainingMetrics(CPU)
    metrics.add_advantages(torch.ones(1))
    names = list(metrics.take())
    assert len(set(names)) == len(ADVANTAGE_EDGES) + 3
    assert all(re.fullmatch(r"[-\w.]+", name) for name in names)
