"""Dropout draws from its generator alone and keeps the mean."""

import pytest
import torch
from sessiongym.nn.layers import dropped


def test_a_share_of_the_entries_is_zeroed_and_the_mean_stays():
    x = torch.ones(200, 500)
    kept = dropped(x, 0.25, torch.Generator().manual_seed(0))
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1, abs=5 * (1 / 3 / x.numel()) ** 0.5)


def test_without_a_generator_or_a_share_nothing_is_dropped():
    x = torch.ones(4, 3)
    assert dropped(x, 0.5, None) is x
    assert dropped(x, 0.0, torch.Generator()) is x


def test_the_global_generator_is_left_alone():
    state = torch.random.get_rng_state()
    a, b = (dropped(torch.ones(50), 0.5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.random.get_rng_state(), state)
