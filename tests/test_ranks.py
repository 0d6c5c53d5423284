"""The rank kernel and the lists of the best items against a sort, and what they refuse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sessiongym.errors import InputError
from sessiongym.evaluate import ranks
from sessiongym.evaluate.ranks import rank_bounds, top_k_items

# Few different values, so that ties are the rule.
_SCORES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40),
    elements=st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 1e-30, 2.0, 3e38]),
)


def _by_sorting(scores, row, target):
    low, high = [], []
    for r, t in zip(row, target, strict=True):
        order = sorted(scores[r].tolist(), reverse=True)
        low.append(order.index(scores[r, t]))
        high.append(len(order) - order[::-1].index(scores[r, t]))
    return np.array(low), np.array(high)


@settings(deadline=None, max_examples=60)
@given(scores=_SCORES, data=st.data())
def test_bounds_are_the_places_of_a_stable_sort(scores, data):
    pairs = data.draw(
        st.lists(st.tuples(st.integers(0, scores.shape[0] - 1), st.integers(0, scores.shape[1] - 1)), max_size=30)
    )
    row, target = (np.array([pair[i] for pair in pairs], dtype=np.int64) for i in (0, 1))
    low, high = rank_bounds(scores, row, target)
    expected_low, expected_high = _by_sorting(scores, row, target)
    np.testing.assert_array_equal(low, expected_low)
    np.testing.assert_array_equal(high, expected_high)
    assert low.dtype == high.dtype == np.int32


@pytest.fixture
def case():
    rng = np.random.default_rng(3)
    scores = rng.integers(-20, 20, size=(30, 257)).astype(np.float32)
    row = rng.integers(0, 30, size=90)
    return scores, row, rng.integers(0, 257, size=90)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_torch_scores_rank_as_numpy_scores_do(case, dtype):
    scores, row, target = case
    expected = rank_bounds(scores, row, target)
    found = rank_bounds(torch.from_numpy(scores).to(dtype).requires_grad_(), row, target)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("layout", ["fortran", "strided", "float64", "int64", "read-only"])
def test_layout_and_precision_of_the_scores_do_not_matter(case, layout):
    scores, row, target = case
    expected = rank_bounds(scores, row, target)
    wide = np.zeros((30, 514), dtype=np.float32)
    wide[:, ::2] = scores
    frozen = scores.copy()
    frozen.flags.writeable = False
    variants = {
        "fortran": np.asfortranarray(scores),
        "strided": wide[:, ::2],
        "float64": scores.astype(np.float64),
        "int64": scores.astype(np.int64),
        "read-only": frozen,
    }
    np.testing.assert_array_equal(rank_bounds(variants[layout], row, target), expected)


def test_the_path_for_accelerators_agrees_with_the_kernel(case):
    scores, row, target = case
    for rows, targets in ((row, target), (np.arange(30), target[:30])):
        low, high, n_finite = ranks._count_torch(torch.from_numpy(scores), rows, targets)
        np.testing.assert_array_equal((low, high), rank_bounds(scores, rows, targets))
        assert (n_finite == scores.shape[1]).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_scores_on_a_gpu_rank_as_on_the_cpu(case):
    scores, row, target = case
    on_gpu = torch.from_numpy(scores).cuda()
    np.testing.assert_array_equal(rank_bounds(on_gpu, row, target), rank_bounds(scores, row, target))
    on_gpu[int(row[0]), 5] = torch.nan
    with pytest.raises(InputError, match=f"row {row[0]}: item 5 scores nan"):
        rank_bounds(on_gpu, row, target)


@pytest.mark.parametrize("as_torch", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("column", [0, 17, 256])
def test_nan_and_infinity_are_refused_by_row_and_item(case, as_torch, value, column):
    scores, _, _ = case
    scores[4, column] = value
    given_scores = torch.from_numpy(scores) if as_torch else scores
    with pytest.raises(InputError, match=f"row 4: item {column} scores {value}"):
        rank_bounds(given_scores, np.array([2, 4]), np.array([1, 1]))


def test_a_row_of_minus_infinity_is_one_tie():
    scores = np.full((1, 7), -np.inf, dtype=np.float32)
    assert [bound.tolist() for bound in rank_bounds(scores, np.array([0]), np.array([3]))] == [[0], [7]]


@pytest.mark.parametrize(
    ("row", "target", "message"),
    [([0, 30], [0, 0], "rows 0..29"), ([0], [257], "targets 0..256"), ([0], [-1], "targets"), ([0, 1], [0], "length")],
)
def test_rows_and_targets_outside_the_scores_are_refused(case, row, target, message):
    with pytest.raises(InputError, match=message):
        rank_bounds(case[0], np.array(row), np.array(target))


@settings(deadline=None, max_examples=60)
@given(scores=_SCORES, k=st.integers(1, 50))
def test_lists_are_the_head_of_a_stable_sort(scores, k):
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = top_k_items(scores, k)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int32


@pytest.mark.parametrize("n_items", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("order", ["rising", "falling", "random", "few values"])
def test_lists_are_right_in_every_block_and_order(n_items, order):
    rng = np.random.default_rng(5)
    rows = {
        "rising": np.tile(np.arange(n_items), (4, 1)),
        "falling": np.tile(-np.arange(n_items), (4, 1)),
        "random": rng.standard_normal((4, n_items)),
        "few values": rng.integers(0, 5, (4, n_items)),
    }
    scores = rows[order].astype(np.float64)
    for k in (1, 7, n_items):
        np.testing.assert_array_equal(top_k_items(scores, k), np.argsort(-scores, axis=1, kind="stable")[:, :k])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_lists_of_torch_scores_are_those_of_numpy_scores(case, dtype):
    scores = case[0]
    np.testing.assert_array_equal(top_k_items(torch.from_numpy(scores).to(dtype), 9), top_k_items(scores, 9))


def test_lists_by_the_path_for_accelerators_agree_with_the_kernel(case, monkeypatch):
    expected = top_k_items(case[0], 9)
    monkeypatch.setattr(ranks, "_in_memory", lambda scores: scores)
    np.testing.assert_array_equal(top_k_items(torch.from_numpy(case[0]), 9), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_lists_of_scores_on_a_gpu_are_those_on_the_cpu(case):
    np.testing.assert_array_equal(top_k_items(torch.from_numpy(case[0]).cuda(), 9), top_k_items(case[0], 9))


def test_the_target_is_listed_where_its_rank_says_so(case):
    scores, row, target = case
    low, high = rank_bounds(scores, row, target)
    for k in (1, 10, 100):
        listed = (top_k_items(scores, k)[row] == target[:, None]).any(axis=1)
        assert listed[high <= k].all() and not listed[low >= k].any()


def test_kernels_leave_torch_its_threads(case):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        rank_bounds(*case)
        top_k_items(case[0], 5)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("as_torch", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_lists_of_nan_and_infinity_are_refused_by_row_and_item(case, as_torch, value):
    scores = case[0]
    scores[4, 100] = value
    with pytest.raises(InputError, match=f"row 4: item 100 scores {value}"):
        top_k_items(torch.from_numpy(scores) if as_torch else scores, 3)


def test_lists_without_items_and_scores_of_another_shape_are_refused(case):
    with pytest.raises(InputError, match="found k = 0"):
        top_k_items(case[0], 0)
    with pytest.raises(InputError, match=r"shape \[P, N\], found \(257,\)"):
        top_k_items(case[0][0], 3)
