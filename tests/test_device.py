"""The device-resident replay is `ReplayVectorEnv`, step for step, and never makes the host wait."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym.envs import device
from sessiongym.envs.device import DeviceReplayVectorEnv, capture_step
from sessiongym.envs.log import SessionLog
from sessiongym.envs.replay import ReplayVectorEnv
from sessiongym.errors import InputError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
N = 5
"""Few items, so that actions hit."""
ORDERS = 400
"""Permutations: more than any test here has passes (36 steps of 20 lanes over 2 sessions), but the one about them."""
INFO = ("logged_action", "logged_kind", "logged_reward", "session", "pass")
NO_GPU = "CUDA graphs need a CUDA device, and torch sees none here"
"""Why a test that is about CUDA itself is skipped."""


def log_of(lengths: list[int], seed: int = 0) -> SessionLog:
    rng = np.random.default_rng(seed)
    n_events = sum(lengths)
    return SessionLog(
        item=rng.integers(0, N, n_events),
        kind=rng.random(n_events) < 0.4,
        time=np.arange(n_events),
        offset=np.concatenate([[0], np.cumsum(lengths)]),
        session_id=np.arange(len(lengths)),
        item_id=np.arange(N),
    )


@pytest.fixture(scope="module")
def log() -> SessionLog:
    return log_of([1, 9, 2, 1, 3, 5, 2, 2, 7, 4, 1, 6, 2, 3, 3, 12, 2, 5])


@pytest.fixture(scope="module")
def real_log() -> SessionLog:
    file = DATA / "taobao_actions" / "events.csv"
    if not file.exists():
        pytest.skip(f"{file} is not there; set SESSIONGYM_DATA to the data folder")
    raw = pd.read_csv(file, nrows=20_000)
    time = raw["timestamp"] // 3600
    frame = pd.DataFrame(
        {
            "session": raw["user_idx"] * 10**6 + time - time.min(),
            "item": raw["item_idx"],
            "time": raw["timestamp"] * 10**9,
            "kind": (raw["behaviour"] == "buy").astype(int),
        }
    )
    return SessionLog.from_pandas(frame)


def pair(log, lanes, limit=None, where="cpu", **options) -> tuple[DeviceReplayVectorEnv, ReplayVectorEnv]:
    """The same environment on the device and in NumPy."""
    resident = {name: options.pop(name) for name in ("copy", "orders") if name in options}
    there = DeviceReplayVectorEnv(
        log, lanes, where, max_episode_steps=limit, **{"orders": ORDERS, **resident}, **options
    )
    return there, ReplayVectorEnv(log, lanes, terminal_info=False, max_episode_steps=limit, **options)


def assert_equal(found: Tensor | dict[str, Tensor], expected: np.ndarray | dict[str, np.ndarray]) -> None:
    """Equal values; the device keeps rewards in float32 and numbers in the narrowest type."""
    if isinstance(expected, dict):
        assert isinstance(found, dict) and found.keys() == expected.keys()
        for name in expected:
            assert_equal(found[name], expected[name])
        return
    assert isinstance(found, Tensor)
    expected = expected.astype(np.float32) if expected.dtype == np.float64 else expected
    np.testing.assert_array_equal(found.cpu().numpy(), expected)


def assert_same_reset(found: tuple, expected: tuple) -> None:
    assert_equal(found[0], expected[0])
    assert found[1].keys() == expected[1].keys() == {"session", "pass"}
    for name in expected[1]:
        assert_equal(found[1][name], expected[1][name])


def assert_same_step(found: tuple, expected: tuple) -> None:
    for value, other in zip(found[:4], expected[:4], strict=True):
        assert_equal(value, other)
    items = found[0]["items"] if isinstance(found[0], dict) else found[0]
    assert [value.dtype for value in (items, *found[1:4])] == [torch.int32, torch.float32, torch.bool, torch.bool]
    assert found[4].keys() - {"final_obs"} == expected[4].keys() == set(INFO)
    for name in INFO:
        assert_equal(found[4][name], expected[4][name])


def drive(there: DeviceReplayVectorEnv, here: ReplayVectorEnv, n_steps: int, seed: int = 0) -> None:
    """Step both with the same random actions."""
    rng = np.random.default_rng(seed)
    for _ in range(n_steps):
        action = rng.integers(0, N, there.action_space.shape)
        assert_same_step(there.step(torch.from_numpy(action).to(there.device)), here.step(action))


def options() -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries(
        {},
        optional={
            "assignment": st.sampled_from(["queue", "strided"]),
            "copy": st.booleans(),
            "limit": st.integers(1, 4),
            "window": st.integers(1, 6),
            "feedback": st.sampled_from(["match", "logged"]),
            "rewards": st.sampled_from([(0.1, 5.0), (0.0, 1.0)]),
            "density": st.sampled_from([0.0, 0.5]),
            "drop": st.sampled_from(["event", "reward", "click"]),
            "cold_start": st.integers(1, 4),
            "order": st.sampled_from(["chronological", "shuffled"]),
            "kinds": st.booleans(),
            "slate": st.integers(1, 3),
        },
    )


def random_setup(data) -> tuple[SessionLog, int, dict]:
    """A log, a number of lanes and options that fit it."""
    # The two long sessions outlive any thinning of their purchases.
    lengths = [12, 12, *data.draw(st.lists(st.integers(1, 7), max_size=12))]
    log, chosen = log_of(lengths, data.draw(st.integers(0, 3))), data.draw(options())
    thinned = ReplayVectorEnv(log, **{name: chosen[name] for name in ("density", "drop") if name in chosen}).log
    strided = chosen.get("assignment") == "strided"
    most = np.count_nonzero(thinned.length >= 2) if strided else 20
    return log, data.draw(st.integers(1, int(most))), chosen


def items_of(observation) -> np.ndarray:
    return observation["items"] if isinstance(observation, dict) else observation


def random_mask(data, lanes: int) -> np.ndarray:
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=lanes, max_size=lanes)))
    mask[data.draw(st.integers(0, lanes - 1))] = True
    return mask


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_every_step_and_every_reset_is_that_of_the_numpy_environment(data):
    log, lanes, chosen = random_setup(data)
    there, here = pair(log, lanes, **chosen)
    assert there.observation_space == here.observation_space and there.action_space == here.action_space
    seed = data.draw(st.integers(0, 3))
    assert_same_reset(there.reset(seed=seed), here.reset(seed=seed))
    for round_number in range(3):
        drive(there, here, data.draw(st.integers(0, 8)), round_number)
        mask, seed = random_mask(data, lanes), data.draw(st.sampled_from([None, 5]))
        if chosen.get("assignment") == "strided" and chosen.get("order") == "shuffled" and not mask.all():
            seed = None
        of_device = torch.from_numpy(mask) if data.draw(st.booleans()) else mask
        assert_same_reset(
            there.reset(seed=seed, options={"reset_mask": of_device}),
            here.reset(seed=seed, options={"reset_mask": mask}),
        )
    drive(there, here, 8, 9)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_rollouts_are_the_numpy_ones_wherever_resets_and_steps_left_the_lanes(data):
    log, lanes, chosen = random_setup(data)
    chosen |= {"cold_start": None, "limit": None}
    (there, here), (_, walked) = pair(log, lanes, **chosen), pair(log, lanes, **chosen)
    no_action = np.zeros_like(walked.action_space.sample())
    reset: dict[str, Any] = {"seed": 1}
    for round_number in range(3):
        assert_same_reset(there.reset(**reset), here.reset(**reset))
        observation = items_of(walked.reset(**reset)[0])
        n_steps = data.draw(st.integers(1, 40))
        found, expected = there.rollout(n_steps, observations=True), here.rollout(n_steps)
        for name in ("item", "start", "action", "kind", "reward", "done"):
            assert_equal(getattr(found, name), getattr(expected, name))
            assert getattr(found, name).numpy().dtype == getattr(expected, name).dtype
        assert found.observation is not None
        for t in range(n_steps):
            assert_equal(found.observation[t], observation)
            observation = items_of(walked.step(no_action)[0])
        n_steps = data.draw(st.integers(0, 5))
        drive(there, here, n_steps, round_number)
        for _ in range(n_steps):
            walked.step(no_action)
        mask, seed = random_mask(data, lanes), data.draw(st.sampled_from([None, 2]))
        if chosen.get("assignment") == "strided" and chosen.get("order") == "shuffled" and not mask.all():
            seed = None
        reset = {"seed": seed, "options": {"reset_mask": mask}}


def test_a_rollout_has_the_fields_of_the_numpy_one(log):
    there, here = pair(log, 3)
    there.reset(seed=0)
    here.reset(seed=0)
    columns = {name for name, value in vars(here.rollout(2)).items() if value is not None}
    assert columns == {name for name, value in vars(there.rollout(2)).items() if value is not None}


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("assignment", ["queue", "strided"])
def test_a_final_observation_is_the_state_after_the_event(log, assignment, copy):
    env = DeviceReplayVectorEnv(log, 5, "cpu", assignment, max_episode_steps=4, window=3, copy=copy)
    before, _ = env.reset(seed=0)
    before, n_ended = before.clone(), 0
    for _ in range(60):
        after, _, terminated, truncated, info = env.step(torch.zeros(5, dtype=torch.int32))
        ended = terminated | truncated
        n_ended += int(ended.sum())
        assert torch.equal(info["final_obs"][:, -1], info["logged_action"])
        assert torch.equal(info["final_obs"][:, :-1], before[:, 1:])
        assert torch.equal(info["final_obs"][~ended], after[~ended])
        before = after.clone()
    assert n_ended > 50


@pytest.mark.parametrize("assignment", ["queue", "strided"])
def test_a_real_log_replays_alike(real_log, assignment):
    there, here = pair(real_log, 64, assignment=assignment, order="shuffled", density=0.5)
    assert_same_reset(there.reset(seed=7), here.reset(seed=7))
    drive(there, here, 50)
    found, expected = there.rollout(50), here.rollout(50)
    for name in ("item", "start", "action", "kind", "reward", "done"):
        assert_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("assignment", ["queue", "strided"])
def test_a_shuffled_order_comes_again_after_as_many_passes_as_there_are_orders(log, assignment):
    env = DeviceReplayVectorEnv(log, 1, "cpu", assignment, orders=3, order="shuffled")
    _, info = env.reset(seed=0)
    passes: dict[int, list[int]] = {}
    while info["pass"] < 6:
        passes.setdefault(int(info["pass"]), []).append(int(info["session"]))
        info = env.reset()[1]
    assert len({tuple(passes[number]) for number in range(3)}) == 3
    assert [passes[number] for number in range(3)] == [passes[number + 3] for number in range(3)]


@pytest.mark.parametrize("order", ["chronological", "shuffled"])
@pytest.mark.parametrize("assignment", ["queue", "strided"])
def test_long_tables_are_numbered_in_int64_with_the_same_result(log, monkeypatch, assignment, order):
    narrow, _ = pair(log, 4, assignment=assignment, order=order)
    monkeypatch.setattr(device, "INT32_ROWS", 0)
    wide, here = pair(log, 4, assignment=assignment, order=order)
    assert {t.dtype for t in narrow.state_tensors} == {torch.int32}
    assert {t.dtype for t in wide.state_tensors} == {torch.int64}
    narrow.reset(seed=0)
    assert_same_reset(wide.reset(seed=0), here.reset(seed=0))
    drive(wide, here, 30)
    narrow.rollout(30)
    expected, found = narrow.rollout(30, observations=True), wide.rollout(30, observations=True)
    for name, column in vars(expected).items():
        assert torch.equal(getattr(found, name), column)


class HostMustNotWait(TorchDispatchMode):
    """Raises on operations whose result, or its shape, the host would have to fetch from the device, or send to it."""

    FORBIDDEN = frozenset(
        "_local_scalar_dense item is_nonzero equal nonzero nonzero_numpy argwhere masked_select masked_scatter "
        "_unique2 unique_dim unique_consecutive repeat_interleave bincount lift_fresh".split()
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.FORBIDDEN:
            raise AssertionError(f"the host waits for {func}")
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
                raise AssertionError(f"the host waits for {func} with a mask")
        found = func(*args, **(kwargs or {}))
        devices = {value.device for value in (*args, found) if isinstance(value, Tensor)}
        if len(devices) > 1:
            raise AssertionError(f"{func} goes from one device to another")
        return found


ASKS = {
    "item": lambda x, mask: x[0].item(),
    "int": lambda x, mask: int(x.sum()),
    "truth": lambda x, mask: bool(mask.any()),
    "tolist": lambda x, mask: x.tolist(),
    "comparison": lambda x, mask: torch.equal(x, x),
    "nonzero": lambda x, mask: mask.nonzero(),
    "where": lambda x, mask: torch.where(mask),
    "masked_select": lambda x, mask: torch.masked_select(x, mask),
    "read by mask": lambda x, mask: x[mask],
    "write by mask": lambda x, mask: x.__setitem__(mask, x[:2]),
    "unique": lambda x, mask: torch.unique(x),
    "repeat_interleave": lambda x, mask: torch.repeat_interleave(x),
    "bincount": lambda x, mask: torch.bincount(x),
    "from the host": lambda x, mask: x + torch.tensor([1, 2, 3, 4]),
    "to a device": lambda x, mask: x.to("meta"),
}


@pytest.mark.parametrize("asks", ASKS.values(), ids=ASKS.keys())
def test_the_guard_catches_what_makes_the_host_wait(asks):
    with pytest.raises(AssertionError, match=r"the host waits|from one device"), HostMustNotWait():
        asks(torch.arange(4), torch.tensor([True, False, True, False]))


RESIDENT = [
    {"copy": copy, "assignment": assignment, **options}
    for copy in (True, False)
    for assignment in ("queue", "strided")
    for options in (
        {},
        {"order": "shuffled", "kinds": True},
        {"cold_start": 2, "feedback": "logged"},
        {"max_episode_steps": 2},
    )
]


@pytest.mark.parametrize("options", RESIDENT, ids=str)
def test_no_step_and_no_rollout_makes_the_host_wait(log, options):
    env = DeviceReplayVectorEnv(log, 5, "cpu", **options)
    env.reset(seed=0)
    actions = torch.zeros(5, dtype=torch.int64)
    with HostMustNotWait():
        for _ in range(20):
            env.step(actions)
        if not {"cold_start", "max_episode_steps"} & options.keys():
            env.rollout(20, observations=True)


@pytest.mark.parametrize("options", RESIDENT, ids=str)
def test_a_step_and_a_rollout_need_no_value_of_any_tensor(log, options):
    # Tensors of the meta device have shapes and no values; whatever would read one raises.
    env = DeviceReplayVectorEnv(log, 5, "meta", **options)
    observation, info = env.reset(seed=0)
    assert info["session"].shape == (5,)
    observation, reward, *_ = env.step(torch.zeros(5, dtype=torch.int64, device="meta"))
    items = observation["items"] if isinstance(observation, dict) else observation
    assert items.shape == (5, 20) and reward.shape == (5,)
    if not {"cold_start", "max_episode_steps"} & options.keys():
        assert env.rollout(7).item.shape == (7, 5)


def tensors(value) -> list[Tensor]:
    if isinstance(value, dict):
        value = tuple(value.values())
    return [value] if isinstance(value, Tensor) else [tensor for part in value for tensor in tensors(part)]


@pytest.mark.parametrize("options", RESIDENT, ids=str)
def test_the_state_stays_where_it_is_and_without_copies_so_do_the_outputs(log, options):
    env = DeviceReplayVectorEnv(log, 5, "cpu", **options)
    reset, actions = env.reset(seed=0), torch.zeros(5, dtype=torch.int64)
    first = env.step(actions)
    kept = [tensor.clone() for tensor in tensors(first)]
    state = [tensor.data_ptr() for tensor in env.state_tensors]
    outputs = {tensor.data_ptr() for tensor in tensors((reset, first))}
    for _ in range(30):
        later = {tensor.data_ptr() for tensor in tensors(env.step(actions))}
        assert (later <= outputs) if not options["copy"] else (later.isdisjoint(outputs))
    if not {"cold_start", "max_episode_steps"} & options.keys():
        env.rollout(5)
    env.reset(seed=1)
    assert state == [tensor.data_ptr() for tensor in env.state_tensors]
    if options["copy"]:
        assert all(torch.equal(now, was) for now, was in zip(tensors(first), kept, strict=True))


def test_what_was_returned_may_be_written_to(log):
    there, here = pair(log, 5, assignment="strided")
    there.reset(seed=0)[0].zero_()
    here.reset(seed=0)
    for _ in range(30):
        found, expected = there.step(torch.ones(5, dtype=torch.int64)), here.step(np.ones(5, dtype=np.int64))
        assert_same_step(found, expected)
        for tensor in tensors(found):
            tensor.zero_()


@pytest.mark.parametrize("assignment", ["queue", "strided"])
@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
@pytest.mark.parametrize("order", ["chronological", "shuffled"])
def test_a_captured_step_is_the_step_of_the_numpy_environment(log, assignment, order):
    there, here = pair(log, 6, where="cuda", copy=False, assignment=assignment, order=order)

    def newest_again(observation: Tensor) -> Tensor:
        return observation[:, -1].clone()

    graph, result = capture_step(there, newest_again, seed=3)
    observation, _ = here.reset(seed=3)
    for _ in range(60):
        action = observation[:, -1].copy()
        graph.replay()
        expected = here.step(action)
        observation = expected[0]
        assert_same_step(result, expected)
    found, wanted = there.rollout(20), here.rollout(20)
    for name in ("item", "start", "action", "kind", "reward", "done"):
        assert_equal(getattr(found, name), getattr(wanted, name))
    assert_same_reset(there.reset(), here.reset())


@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
@pytest.mark.parametrize("assignment", ["queue", "strided"])
def test_cuda_agrees_with_numpy_and_never_synchronises(log, assignment):
    there, here = pair(log, 6, where="cuda", assignment=assignment, order="shuffled")
    assert_same_reset(there.reset(seed=3), here.reset(seed=3))
    drive(there, here, 30)
    actions = torch.zeros(6, dtype=torch.int64, device="cuda")
    there.step(actions)
    torch.cuda.set_sync_debug_mode("error")
    try:
        there.step(actions)
        there.rollout(5, observations=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"device": "nowhere"}, "device: expected one that torch has here.*found 'nowhere'"),
        ({"num_envs": 0}, "num_envs: expected"),
        ({"num_envs": 100, "assignment": "strided"}, "num_envs: expected 1.*found 100"),
        ({"assignment": "random"}, "assignment: expected 'queue' or 'strided', found 'random'"),
        ({"orders": 0}, "orders: expected at least 1 permutation, found 0"),
        ({"window": 0}, "window: expected at least 1 item, found 0"),
    ],
)
def test_an_environment_that_cannot_be_is_refused(log, options, expected):
    with pytest.raises(InputError, match=expected) as caught:
        DeviceReplayVectorEnv(**{"log": log, "num_envs": 4, "device": "cpu"} | options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "mask",
    [np.zeros(4, dtype=bool), torch.zeros(4, dtype=torch.bool), np.ones(4, dtype=int), torch.ones(3) > 0, [True] * 4],
    ids=["nothing", "nothing, a tensor", "integers", "short", "list"],
)
def test_a_reset_mask_of_another_form_is_refused_and_changes_nothing(log, mask):
    env = DeviceReplayVectorEnv(log, 4, "cpu")
    env.reset(seed=0)
    state = [tensor.clone() for tensor in env.state_tensors]
    with pytest.raises(InputError, match=r"reset_mask.*expected a bool tensor or array of shape \(4,\)") as caught:
        env.reset(seed=1, options={"reset_mask": mask})
    assert "\n" not in str(caught.value)
    assert all(torch.equal(now, was) for now, was in zip(env.state_tensors, state, strict=True))


def test_calls_that_cannot_be_are_refused(log):
    env = DeviceReplayVectorEnv(log, 4, "cpu")
    for call in (lambda: env.step(torch.zeros(4)), lambda: env.rollout(3)):
        with pytest.raises(InputError, match="call reset first"):
            call()
    with pytest.raises(InputError, match="never been reset"):
        env.reset(options={"reset_mask": np.arange(4) == 0})
    with pytest.raises(InputError, match="reset: expected an int seed or None, found list"):
        env.reset(seed=[1] * 4)  # type: ignore[arg-type]
    env.reset(seed=0)
    for actions in (torch.zeros(3), np.zeros(4), torch.zeros(4, device="meta")):
        with pytest.raises(InputError, match=r"step: expected a tensor of actions of shape \(4,\) on cpu, found"):
            env.step(actions)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="capture_step: expected an env on a CUDA device"):
        capture_step(env, lambda observation: observation[:, -1], seed=0)
    limits: list[dict[str, Any]] = [{"cold_start": 2}, {"max_episode_steps": 3}]
    for options in limits:
        limited = DeviceReplayVectorEnv(log, 4, "cpu", **options)
        limited.reset(seed=0)
        with pytest.raises(InputError, match="rollout: cold_start and max_episode_steps"):
            limited.rollout(2)


def test_a_seed_for_some_shuffled_lanes_is_refused(log):
    env = DeviceReplayVectorEnv(log, 5, "cpu", "strided", order="shuffled")
    env.reset(seed=0)
    with pytest.raises(InputError, match="shuffled lanes share one order"):
        env.reset(seed=1, options={"reset_mask": np.arange(5) == 0})


def test_options_of_a_made_environment_change_until_the_next_reset(log):
    there, here = pair(log, 4, order="shuffled")
    there.reset(seed=0)
    for env in (there, here):
        env.reconfigure(density=0.4, cold_start=2)
    assert_same_reset(there.reset(seed=5), here.reset(seed=5))
    drive(there, here, 30)
