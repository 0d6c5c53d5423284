"""Lane-steps a second through the adapter to Stable-Baselines3, beside the environment itself and SB3's own way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from common import CPU, N_ITEMS, interleaved, markdown, processor
from gymnasium import Env
from sessiongym.envs.log import SessionLog
from sessiongym.envs.replay import ReplayEnv, ReplayVectorEnv
from sessiongym.envs.sb3 import SB3VecEnv
from sessiongym.envs.shop.config import ShopConfig
from sessiongym.envs.shop.shop import Shop
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

LANES = (1, 128, 1024)
WINDOW = 20
TURN = 200_000
"""Lane-steps of one turn, about; SB3's own way does a tenth."""

NATIVE, ADAPTER = "ReplayVectorEnv", "SB3VecEnv of ReplayVectorEnv"


def _stepping(env: ReplayVectorEnv | VecEnv, total: int) -> Callable[[], float]:
    """A policy that always recommends item 0."""
    env.reset()
    action = np.zeros(env.num_envs, dtype=np.int64)
    n_steps = max(total // env.num_envs, 1)

    def work() -> float:
        for _ in range(n_steps):
            env.step(action)
        return n_steps * env.num_envs

    return work


def _contenders(log: SessionLog, lanes: int) -> dict[str, Callable[[], float]]:
    native = partial(ReplayVectorEnv, log, num_envs=lanes, window=WINDOW)
    plain: list[Callable[[], Env]] = [
        partial(ReplayEnv, log, lane=lane, lanes=lanes, window=WINDOW) for lane in range(lanes)
    ]
    return {
        "DummyVecEnv of ReplayEnv": _stepping(DummyVecEnv(plain), TURN // 10),
        ADAPTER: _stepping(SB3VecEnv(native()), TURN),
        "… copy=False": _stepping(SB3VecEnv(native(copy=False)), TURN),
        NATIVE: _stepping(native(), TURN),
    }


def table() -> str:
    """Millions of lane-steps a second by number of lanes, one thread; no policy, so all of it is the environment."""
    log = Shop(ShopConfig(n_items=N_ITEMS), 0).log(20_000, 0)
    rates = [interleaved(_contenders(log, lanes), CPU) for lanes in LANES]
    columns = ["M lane-steps/s", *(f"{lanes:,} lane{'s' if lanes > 1 else ''}" for lanes in LANES)]
    rows = [
        [
            name,
            *(f"{rate[name] / 1e6:.3g}" for rate in rates),
            f"{rates[-1][name] / rates[-1][NATIVE]:.0%}",
            processor(),
        ]
        for name in rates[0]
    ]
    return markdown([*columns, f"of native at {LANES[-1]:,}", "device"], rows)


if __name__ == "__main__":
    print(table())
