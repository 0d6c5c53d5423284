"""Wrapping a made environment is making it with the options, whatever the environment."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from sessiongym.envs.log import PURCHASE, SessionLog
from sessiongym.envs.replay import ReplayEnv, ReplayVectorEnv
from sessiongym.envs.rollout import logged
from sessiongym.envs.wrappers import ColdStart, SparsePurchases, VectorColdStart, VectorSparsePurchases
from sessiongym.errors import InputError

N, B = 10, 4
DROPS = ["event", "reward", "click"]


@pytest.fixture(scope="module")
def log() -> SessionLog:
    rng = np.random.default_rng(0)
    length = rng.integers(2, 9, 60)
    n_events = int(length.sum())
    return SessionLog(
        item=rng.integers(0, N, n_events),
        kind=rng.random(n_events) < 0.4,
        time=np.arange(n_events),
        offset=np.concatenate([[0], np.cumsum(length)]),
        session_id=np.arange(60),
        item_id=np.arange(N),
    )


class Lane:
    """Makes lane `number`; a class, because worker processes must be able to import it."""

    def __init__(self, log: SessionLog, number: int, options: dict) -> None:
        self.log, self.number, self.options = log, number, options

    def __call__(self) -> gym.Env:
        return ReplayEnv(self.log, lane=self.number, lanes=B, **self.options)


def native(log, **options):
    return ReplayVectorEnv(log, B, "strided", **options)


def sync(log, **options):
    return SyncVectorEnv([Lane(log, i, options) for i in range(B)], autoreset_mode=AutoresetMode.SAME_STEP)


def asynchronous(log, **options):
    return AsyncVectorEnv([Lane(log, i, options) for i in range(B)], autoreset_mode=AutoresetMode.SAME_STEP)


def on_a_device(log, **options):
    device = pytest.importorskip("sessiongym.envs.device", reason="torch is not installed")
    return device.DeviceReplayVectorEnv(log, B, "cpu", "strided", **options)


def walk(env, n_steps: int = 60) -> list[list]:
    """Observations, rewards and ends of a seeded walk, as lists; actions repeat the newest item."""
    observation, _ = env.reset(seed=0)
    out = [[np.asarray(observation).tolist()]]
    for _ in range(n_steps):
        newest = observation[..., -1]
        observation, reward, terminated, truncated, _ = env.step(newest if newest.ndim else int(newest))
        out.append([np.asarray(part).tolist() for part in (observation, reward, terminated, truncated)])
        if newest.ndim == 0 and (terminated or truncated):
            observation, _ = env.reset()
    return out


@pytest.mark.parametrize("make", [native, sync, asynchronous, on_a_device])
@pytest.mark.parametrize("drop", DROPS)
def test_a_wrapped_vector_is_the_vector_made_with_the_options(log, make, drop):
    options = {"density": 0.3, "drop": drop, "density_seed": 7, "cold_start": 2}
    wrapped, made = make(log), make(log, **options)
    try:
        plain = walk(wrapped)
        if make is not on_a_device:
            wrapped = RecordEpisodeStatistics(wrapped)
        wrapped = VectorColdStart(VectorSparsePurchases(wrapped, 0.3, drop, seed=7), 2)
        assert walk(wrapped) == walk(made) != plain
    finally:
        wrapped.close()
        made.close()


@pytest.mark.parametrize("drop", DROPS)
def test_a_wrapped_environment_is_the_environment_made_with_the_options(log, drop):
    options = {"density": 0.3, "drop": drop, "density_seed": 7, "cold_start": 2}
    wrapped = ColdStart(SparsePurchases(TimeLimit(ReplayEnv(log), 4), 0.3, drop, seed=7), 2)
    assert walk(wrapped) == walk(TimeLimit(ReplayEnv(log, **options), 4)) != walk(TimeLimit(ReplayEnv(log), 4))


def test_a_wrapped_environment_is_made_again_from_its_spec(log):
    wrapped = ColdStart(SparsePurchases(gym.make("sessiongym:sessiongym/Replay-v0", log=log), 0.3), 2)
    assert wrapped.spec is not None
    again = gym.make(wrapped.spec)
    assert walk(again) == walk(wrapped)


@pytest.mark.parametrize("density", [0.0, 0.25, 1.0])
def test_the_share_of_purchases_that_pays_is_the_density(log, density):
    env = VectorSparsePurchases(ReplayVectorEnv(log, B, feedback="logged", rewards=(0.0, 5.0)), density, "reward")
    _, info = env.reset(seed=0)
    paid = purchases = 0
    while (info["pass"] == 0).any():
        first_pass = info["pass"] == 0
        _, reward, _, _, info = env.step(np.zeros(B, dtype=np.int64))
        purchases += np.count_nonzero((logged(info).kind == PURCHASE) & first_pass)
        paid += np.count_nonzero((reward > 0) & first_pass)
    target = log.batch().target_events()
    assert purchases == np.count_nonzero(log.kind[target] == PURCHASE)
    # Purchases that open a session are states, not events to predict.
    opening = log.n_purchases - purchases
    assert abs(paid - density * log.n_purchases) <= opening + 1


def test_an_environment_that_is_not_ours_is_refused():
    with pytest.raises(InputError, match="expected a replay environment of sessiongym"):
        ColdStart(gym.make("CartPole-v1"), 2)
    with pytest.raises(InputError, match="expected a replay environment of sessiongym"):
        VectorSparsePurchases(gym.make_vec("CartPole-v1", 2, vectorization_mode="sync"), 0.5)


def test_values_that_mean_nothing_are_refused(log):
    with pytest.raises(InputError, match="density: expected a share"):
        SparsePurchases(ReplayEnv(log), 1.5)
    with pytest.raises(InputError, match="cold_start: expected at least 1 event"):
        VectorColdStart(ReplayVectorEnv(log, B), 0)
