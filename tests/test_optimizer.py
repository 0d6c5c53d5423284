"""`TableAdam` against `torch.optim.Adam` on dense gradients."""

# pyright: reportOptionalMemberAccess=false

import copy
import subprocess
import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sessiongym.errors import InputError
from sessiongym.nn.optimizer import TableAdam
from torch import nn

N, D = 12, 5
NEVER_CLIPS = 1e9


@pytest.fixture(autouse=True)
def one_thread():
    # On tensors this small threads do nothing but wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _network(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    table, dense = (torch.randn(N, D, generator=generator, dtype=dtype) for _ in range(2))
    return nn.ParameterDict({"table": nn.Parameter(table), "dense": nn.Parameter(dense)})


def _optimizer(network, learning_rate=1e-2, **options):
    return TableAdam(dict(network.items()), learning_rate, tables=["table"], **options)


def _draw_gradients(generator, scale, dtype, n_rows=N, largest=4):
    """Rows with repetitions, their gradients, and the gradient of the dense parameter."""
    n = int(torch.randint(0, largest, (), generator=generator))
    rows = torch.randint(0, n_rows, (n,), generator=generator)
    # Exponents apart as those of real gradients are.
    size = scale * 10 ** (-3 * torch.rand(n, D, generator=generator, dtype=dtype))
    gradient = size * torch.randn(n, D, generator=generator, dtype=dtype)
    return rows, gradient, torch.randn(N, D, generator=generator, dtype=dtype)


def _sparse(rows, gradient):
    return torch.sparse_coo_tensor(rows.unsqueeze(0), gradient, (N, D), check_invariants=True)


def _step(network, optimizer, rows, gradient, dense_gradient, clip_norm=NEVER_CLIPS):
    optimizer.catch_up("table", rows)
    network["table"].grad, network["dense"].grad = _sparse(rows, gradient), dense_gradient.clone()
    return optimizer.step(clip_norm)


def _reference_step(network, adam, rows, gradient, dense_gradient):
    network["table"].grad, network["dense"].grad = _sparse(rows, gradient).to_dense(), dense_gradient.clone()
    before = network["table"].detach().clone()
    adam.step()
    return (network["table"].detach() - before).abs()


# Gradients down to 1e-11 put sqrt(v) far below eps = 1e-8, where the making-up is least exact.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 1e-8])
def test_it_equals_adam_on_dense_gradients_over_more_steps_than_a_sweep(scale, dtype):
    network, n_steps = _network(dtype), 1100
    reference = copy.deepcopy(network)
    optimizer, adam = _optimizer(network), torch.optim.Adam(reference.values(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    way = torch.zeros(N, D, dtype=dtype)
    for step in range(n_steps):
        optimizer.learning_rate = adam.param_groups[0]["lr"] = 1e-2 * (1 - step / n_steps)
        # Two thirds of the rows are left alone from a third of the way on, longer than their first moments last.
        drawn = _draw_gradients(generator, scale, dtype, n_rows=N if step < n_steps / 3 else N // 3)
        _step(network, optimizer, *drawn)
        way += _reference_step(reference, adam, *drawn)
    optimizer.flush()
    # The documented bound, and in float32 what rounding each of the reference's steps may add up to.
    tolerance = way * 2**-18
    if dtype == torch.float32:
        tolerance += n_steps * torch.finfo(dtype).eps * (network["table"].detach().abs().max() + way)
    assert torch.all((network["table"] - reference["table"]).abs() <= tolerance)
    torch.testing.assert_close(network["dense"], reference["dense"])


@given(
    st.lists(st.tuples(st.integers(1, 300), st.lists(st.integers(0, N - 1), max_size=4)), min_size=1, max_size=5),
    st.sampled_from([(0.9, 0.999), (0.0, 0.9), (0.5, 0.99)]),
    st.floats(1e-10, 1e-2),
    st.randoms(use_true_random=False),
)
@example([(1, [0]), (400, [1]), (400, [0])], (0.9, 0.999), 1e-8, None)
@settings(max_examples=10, deadline=None)
def test_it_equals_adam_whatever_the_rows_and_the_pauses_between_them(touches, betas, scale, random):
    network = _network()
    reference = copy.deepcopy(network)
    optimizer, adam = _optimizer(network, betas=betas), torch.optim.Adam(reference.values(), lr=1e-2, betas=betas)
    generator = torch.Generator().manual_seed(random.randrange(2**32) if random else 0)
    way = torch.zeros(N, D, dtype=torch.float64)
    for pause, touched in touches:
        for rows in [*[[]] * (pause - 1), touched]:
            rows = torch.tensor(rows, dtype=torch.int64)
            gradient = scale * torch.randn(len(rows), D, generator=generator, dtype=torch.float64)
            drawn = rows, gradient, torch.zeros(N, D, dtype=torch.float64)
            _step(network, optimizer, *drawn)
            way += _reference_step(reference, adam, *drawn)
    optimizer.flush()
    # Numbers of size 1 are rounded in every step.
    rounding = sum(pause for pause, _ in touches) * torch.finfo(torch.float64).eps * 10
    assert torch.all((network["table"] - reference["table"]).abs() <= way * 2**-18 + rounding)


@given(st.lists(st.integers(0, N - 1), max_size=8))
@settings(max_examples=20, deadline=None)
def test_rows_that_are_caught_up_are_those_of_a_flush_and_the_others_wait(rows):
    network, generator = _network(), torch.Generator().manual_seed(2)
    optimizer = _optimizer(network)
    for _ in range(30):
        _step(network, optimizer, *_draw_gradients(generator, 1.0, torch.float64))
    before = network["table"].detach().clone()
    optimizer.catch_up("table", torch.tensor(rows, dtype=torch.int64))
    caught_up = network["table"].detach().clone()
    optimizer.flush()
    rest = [row for row in range(N) if row not in rows]
    assert torch.equal(caught_up[rows], network["table"][rows])
    assert torch.equal(caught_up[rest], before[rest])


def test_flushing_twice_is_flushing_once():
    network, generator = _network(), torch.Generator().manual_seed(3)
    optimizer = _optimizer(network)
    for _ in range(20):
        _step(network, optimizer, *_draw_gradients(generator, 1.0, torch.float64))
    unflushed = network["table"].detach().clone()
    optimizer.flush()
    once = [x.clone() for x in (network["table"], *optimizer.state_tensors().values())]
    optimizer.flush()
    assert not torch.equal(unflushed, once[0])
    assert all(map(torch.equal, once, (network["table"], *optimizer.state_tensors().values())))


def test_rows_never_touched_do_not_move_and_keep_no_time():
    network = _network()
    start = network["table"].detach().clone()
    optimizer = _optimizer(network)
    for _ in range(50):
        _step(network, optimizer, torch.tensor([3]), torch.ones(1, D, dtype=torch.float64), torch.zeros(N, D).double())
    optimizer.flush()
    others = [row for row in range(N) if row != 3]
    assert torch.equal(network["table"][others], start[others]) and not torch.equal(network["table"][3], start[3])
    assert (optimizer.state_tensors()["table.reached"][others] == -1).all()


def test_a_row_not_caught_up_before_its_gradient_comes_is_caught_up_by_the_step():
    networks = [_network() for _ in range(2)]
    for network, asks in zip(networks, (True, False), strict=True):
        optimizer, generator = _optimizer(network), torch.Generator().manual_seed(4)
        for _ in range(50):
            rows, gradient, dense_gradient = _draw_gradients(generator, 1.0, torch.float64)
            if asks:
                optimizer.catch_up("table", rows)
            network["table"].grad, network["dense"].grad = _sparse(rows, gradient), dense_gradient
            optimizer.step(NEVER_CLIPS)
    assert torch.equal(networks[0]["table"], networks[1]["table"])


def test_several_uses_of_a_table_in_one_graph_count_together():
    network = _network()
    reference = copy.deepcopy(network)
    for parameters, sparse in ((network, True), (reference, False)):
        first, second = (
            nn.functional.embedding(torch.tensor(rows), parameters["table"], sparse=sparse)
            for rows in ([0, 3, 3], [3, 5])
        )
        ((first**2).sum() + (second * parameters["dense"][:2]).sum()).backward()
    _optimizer(network).step(NEVER_CLIPS)
    torch.optim.Adam(reference.values(), lr=1e-2).step()
    for name in network:
        torch.testing.assert_close(network[name], reference[name])


@pytest.mark.parametrize("clip_norm", [1e-3, 1.0, 1e3])
def test_clipping_is_that_of_torch_over_all_gradients(clip_norm):
    network, generator = _network(), torch.Generator().manual_seed(5)
    reference = copy.deepcopy(network)
    optimizer, adam = _optimizer(network), torch.optim.Adam(reference.values(), lr=1e-2)
    for _ in range(5):
        rows, gradient, dense_gradient = _draw_gradients(generator, 1.0, torch.float64, largest=9)
        norm = _step(network, optimizer, rows, gradient, dense_gradient, clip_norm)
        reference["table"].grad, reference["dense"].grad = _sparse(rows, gradient).to_dense(), dense_gradient
        expected = nn.utils.clip_grad_norm_(reference.values(), clip_norm)
        adam.step()
        torch.testing.assert_close(norm, expected)
    optimizer.flush()
    for name in network:
        torch.testing.assert_close(network[name], reference[name], rtol=1e-5, atol=1e-9)


def test_a_gradient_that_is_not_a_number_shows_in_all_parameters_that_have_one():
    network = _network()
    gradient = torch.full((1, D), torch.nan, dtype=torch.float64)
    norm = _step(network, _optimizer(network), torch.tensor([2]), gradient, torch.ones(N, D, dtype=torch.float64), 1.0)
    assert norm.isnan() and network["table"][2].isnan().all() and network["dense"].isnan().all()


def test_a_parameter_without_a_gradient_is_not_stepped_and_its_moments_keep():
    network, generator = _network(), torch.Generator().manual_seed(6)
    reference = copy.deepcopy(network)
    optimizer, adam = _optimizer(network), torch.optim.Adam(reference.values(), lr=1e-2)
    for step in range(40):
        drawn = _draw_gradients(generator, 1.0, torch.float64)
        optimizer.catch_up("table", drawn[0])
        for parameters, table_gradient in ((network, _sparse(*drawn[:2])), (reference, _sparse(*drawn[:2]).to_dense())):
            parameters["table"].grad = table_gradient if step % 3 else None
            parameters["dense"].grad = drawn[2].clone() if step % 2 else None
        optimizer.step(NEVER_CLIPS)
        adam.step()
    optimizer.flush()
    for name in network:
        torch.testing.assert_close(network[name], reference[name], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("tables", [[], ["table", "dense"]])
def test_it_steps_networks_without_tables_and_networks_of_nothing_else(tables):
    network = _network()
    reference = copy.deepcopy(network)
    optimizer, adam = TableAdam(dict(network.items()), 1e-2, tables=tables), torch.optim.Adam(reference.values(), 1e-2)
    for name in network:
        gradient = torch.ones(N, D, dtype=torch.float64)
        network[name].grad = gradient.to_sparse(1) if name in tables else gradient
        reference[name].grad = gradient.clone()
    optimizer.step(NEVER_CLIPS)
    adam.step()
    for name in network:
        torch.testing.assert_close(network[name], reference[name])
    optimizer.zero_grad()
    assert network["table"].grad is None and network["dense"].grad is None


# 1,030 steps: a sweep lies between saving and the end.
def test_a_run_saved_and_loaded_goes_on_bit_for_bit():
    def train(network, optimizer, first, last):
        for step in range(first, last):
            optimizer.learning_rate = 1e-2 * (1 - step / 2000)
            drawn = _draw_gradients(torch.Generator().manual_seed(step), 1.0, torch.float32)
            _step(network, optimizer, *drawn, clip_norm=5.0)

    network = _network(torch.float32)
    optimizer = _optimizer(network)
    train(network, optimizer, 0, 1000)
    weights = copy.deepcopy(network.state_dict())
    saved = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    train(network, optimizer, 1000, 1030)

    again = _network(torch.float32)
    again.load_state_dict(weights)
    resumed = _optimizer(again)
    resumed.load_state_tensors(saved)
    train(again, resumed, 1000, 1030)
    for name in network:
        assert torch.equal(network[name], again[name])
    for name, tensor in optimizer.state_tensors().items():
        assert torch.equal(tensor, resumed.state_tensors()[name])


def test_the_state_of_another_network_is_refused_and_leaves_the_own_as_it_was():
    optimizer = _optimizer(_network())
    other = nn.ParameterDict({"table": nn.Parameter(torch.zeros(N, D + 1)), "dense": nn.Parameter(torch.zeros(N, D))})
    state = {name: tensor + 1 for name, tensor in _optimizer(other).state_tensors().items()}
    with pytest.raises(InputError, match=r"expected table.exp_avg of shape \(12, 5\), found \(12, 6\)"):
        optimizer.load_state_tensors(state)
    del state["dense.step"]
    with pytest.raises(InputError, match="state of the same network"):
        optimizer.load_state_tensors(state)
    assert all((tensor <= 0).all() for tensor in optimizer.state_tensors().values())


def test_what_it_cannot_do_is_refused():
    network = _network()
    optimizer = _optimizer(network)
    for rows in ([-1], [0, N]):
        with pytest.raises(IndexError, match=r"expected 0\.\.11"):
            optimizer.catch_up("table", torch.tensor(rows))
    network["table"].grad = torch.ones(N, D, dtype=torch.float64)
    with pytest.raises(ValueError, match="sparse=True"):
        optimizer.step(1.0)
    for betas, eps in (((0.9995, 0.999), 1e-8), ((0.9, 1.0), 1e-8), ((0.9, 0.999), 0.0)):
        with pytest.raises(InputError, match="beta"):
            _optimizer(network, betas=betas, eps=eps)


WORKERS = """
import torch
from sessiongym.nn.optimizer import TableAdam
from torch import nn

N, D, STEPS = 12, 5, 300

def work(worker, network, optimizer):
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(worker)
    assert optimizer.parameters["table"] is network["table"]
    for _ in range(STEPS):
        # Every worker its own row, and one that both touch.
        rows = torch.tensor([0, 1 + worker])
        optimizer.catch_up("table", rows)
        gradient = torch.randn(2, D, generator=generator)
        network["table"].grad = torch.sparse_coo_tensor(rows[None], gradient, (N, D), check_invariants=False)
        network["dense"].grad = torch.randn(N, D, generator=generator)
        optimizer.step(1e9)

if __name__ == "__main__":
    network = nn.ParameterDict({name: nn.Parameter(torch.ones(N, D)) for name in ("table", "dense")}).share_memory()
    optimizer = TableAdam(dict(network.items()), 1e-2, tables=["table"])
    optimizer.share_memory()
    torch.multiprocessing.spawn(work, args=(network, optimizer), nprocs=2)
    optimizer.flush()
    moved = (network["table"] != 1).all(1)
    assert moved[:3].all() and not moved[3:].any(), network["table"]
    assert torch.isfinite(network["table"]).all() and torch.isfinite(network["dense"]).all()
    # Steps of the two may fall together.
    assert 0 < optimizer.state_tensors()["table.step"] <= 2 * STEPS
"""


@pytest.mark.slow
def test_two_processes_step_shared_parameters_and_both_contribute(tmp_path):
    # A file of its own, because processes that are spawned import the module of what they run.
    script = tmp_path / "workers.py"
    script.write_text(WORKERS, encoding="utf-8")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert run.returncode == 0, run.stderr
