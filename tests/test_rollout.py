"""`rollout(T)` is stepping, in one call; `logged` and the collector read any environment of the same contract."""

import numpy as np
import pandas as pd
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from sessiongym.envs.log import SessionLog
from sessiongym.envs.replay import ReplayEnv, ReplayVectorEnv
from sessiongym.envs.rollout import Rollout, RolloutCollector, logged
from sessiongym.errors import InputError

N, B = 15, 6
LOGGED = ("item", "start", "action", "kind", "reward", "done", "item_kind")
DTYPES = (np.int32, bool, np.int32, np.uint8, np.float32, bool, np.uint8)


@pytest.fixture(scope="module")
def log() -> SessionLog:
    rng = np.random.default_rng(1)
    return SessionLog.from_pandas(
        pd.DataFrame(
            {
                "session": rng.integers(0, 50, 220),
                "item": rng.integers(0, N, 220),
                "time": np.arange(220),
                "kind": (rng.random(220) < 0.3).astype(int),
            }
        ),
        item_id=np.arange(N),
    )


@pytest.fixture
def act():
    rng = np.random.default_rng(5)

    def act(observation):
        return rng.integers(0, N, B), rng.standard_normal(B)

    return act


def assert_same(found: Rollout, expected: Rollout) -> None:
    for name, dtype in zip(LOGGED, DTYPES, strict=True):
        a, b = getattr(found, name), getattr(expected, name)
        if a is None:
            continue
        assert a.dtype == b.dtype == dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)


OPTIONS = [
    {},
    {"assignment": "strided"},
    {"order": "shuffled", "window": 1},
    {"feedback": "logged", "rewards": (0.0, 5.0)},
    {"density": 0.3, "drop": "event", "kinds": True},
    {"density": 0.3, "drop": "reward", "kinds": True},
    {"density": 0.3, "drop": "click", "terminal_info": False},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_rollout_is_what_stepping_gives_call_after_call(log, act, options):
    whole, stepped = ReplayVectorEnv(log, B, **options), ReplayVectorEnv(log, B, **options)
    whole.reset(seed=9)
    collector = RolloutCollector(stepped, act, seed=9)
    for n_steps in (1, 5, 40, 3):
        found = collector.rollout(n_steps)
        assert_same(found, whole.rollout(n_steps))
        assert (found.item_kind is not None) == options.get("kinds", False)


def test_the_collector_gives_the_same_from_single_environments(log, act):
    many = ReplayVectorEnv(log, B, assignment="strided")
    many.reset(seed=2)
    single = SyncVectorEnv(
        [lambda i=i: ReplayEnv(log, lane=i, lanes=B) for i in range(B)], autoreset_mode=AutoresetMode.SAME_STEP
    )
    assert_same(RolloutCollector(single, act, seed=2).rollout(40), many.rollout(40))


def test_rollouts_join_and_stepping_in_between_is_seen(log):
    whole, parts = ReplayVectorEnv(log, B), ReplayVectorEnv(log, B)
    for env in (whole, parts):
        env.reset(seed=0)
    expected = whole.rollout(30)
    first = parts.rollout(10)
    observation, _, _, _, info = parts.step(np.zeros(B, dtype=int))
    last = parts.rollout(19)
    assert_same(first, Rollout(*(getattr(expected, name)[:10] for name in LOGGED)))
    np.testing.assert_array_equal(logged(info).action, expected.action[10])
    np.testing.assert_array_equal(observation[:, -1], expected.item[11])
    assert_same(last, Rollout(*(getattr(expected, name)[11:] for name in LOGGED)))


def test_a_rollout_walks_each_session_from_its_first_item_to_its_last_event(log):
    env = ReplayVectorEnv(log, 1)
    env.reset(seed=0)
    batch = log.select(np.flatnonzero(log.length >= 2)).batch()
    found = env.rollout(batch.n_rows)
    state, target = batch.state_events(), batch.target_events()
    np.testing.assert_array_equal(found.item[:, 0], batch.item[state])
    np.testing.assert_array_equal(found.action[:, 0], batch.item[target])
    np.testing.assert_array_equal(found.kind[:, 0], batch.kind[target])
    assert found.item_kind is not None
    np.testing.assert_array_equal(found.item_kind[:, 0], batch.kind[state])
    np.testing.assert_array_equal(np.flatnonzero(found.start), np.flatnonzero(np.isin(state, batch.offset)))
    np.testing.assert_array_equal(np.flatnonzero(found.done), np.flatnonzero(np.isin(target + 1, batch.offset)))


def test_the_collector_keeps_what_the_agent_did(log):
    seen = []

    def act(observation):
        action = observation[:, -1] % 3
        seen.append(observation.copy())
        return action, -action.astype(float)

    rollout = RolloutCollector(ReplayVectorEnv(log, B), act, seed=0).rollout(25)
    assert rollout.sampled_action is not None and rollout.log_probability is not None
    np.testing.assert_array_equal(rollout.item, np.stack(seen)[:, :, -1])
    np.testing.assert_array_equal(rollout.sampled_action, rollout.item % 3)
    np.testing.assert_array_equal(rollout.log_probability, -(rollout.item % 3).astype(np.float32))
    silent = RolloutCollector(ReplayVectorEnv(log, B), lambda o: (o[:, -1], None), seed=0).rollout(2)
    assert silent.log_probability is None


def test_a_shared_observation_buffer_does_not_change_a_rollout(log, act):
    shared = RolloutCollector(ReplayVectorEnv(log, B, copy=False), act, seed=0).rollout(30)
    assert_same(shared, RolloutCollector(ReplayVectorEnv(log, B), act, seed=0).rollout(30))


def test_a_reset_has_consumed_nothing(log):
    for terminal_info in (True, False):
        _, info = ReplayVectorEnv(log, B, terminal_info=terminal_info).reset(seed=0)
        assert not logged(info).valid.any()
    # With a single lane a step may be nothing but a reset, and Gymnasium then leaves the keys out.
    env = ReplayVectorEnv(log, 1, autoreset_mode=AutoresetMode.NEXT_STEP)
    _, info = env.reset(seed=0)
    ended = np.zeros(1, bool)
    for _ in range(40):
        _, _, terminated, _, info = env.step(np.zeros(1, int))
        np.testing.assert_array_equal(logged(info).valid, ~ended)
        ended = terminated


def test_the_info_of_another_environment_is_refused():
    with pytest.raises(InputError, match="expected the info of a vector of replay environments") as caught:
        logged({"episode": 1})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"cold_start": 2}, {"max_episode_steps": 3}])
def test_a_rollout_of_states_that_are_not_the_session_so_far_is_refused(log, options):
    env = ReplayVectorEnv(log, B, **options)
    env.reset(seed=0)
    with pytest.raises(InputError, match="rollout: cold_start and max_episode_steps are for step"):
        env.rollout(3)


def test_a_rollout_before_the_first_reset_is_refused(log):
    with pytest.raises(InputError, match="no sessions to go on with; call reset first"):
        ReplayVectorEnv(log, B).rollout(3)


def test_the_collector_refuses_lanes_that_are_reset_later(log):
    env = SyncVectorEnv([lambda: ReplayEnv(log)], autoreset_mode=AutoresetMode.NEXT_STEP)
    with pytest.raises(InputError, match=r"expected AutoresetMode\.SAME_STEP"):
        RolloutCollector(env, lambda o: (o[:, -1], None))
