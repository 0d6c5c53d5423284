"""Lane-steps a second of the interactive shop, beside the replay environment and a bare loop over the same shoppers.

The bare loop is the log generator: the same shoppers one after the other, without lanes, actions, windows or infos.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from common import CPU, N_ITEMS, markdown, measured, processor
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from sessiongym.envs.replay import ReplayVectorEnv
from sessiongym.envs.shop.config import ShopConfig
from sessiongym.envs.shop.live import ShopEnv, ShopVectorEnv, live_shop

LANES = (1, 128, 1024)
TURN = 100_000
"""Lane-steps of one turn, about; a hundredth of them for single environments, a tenth for few lanes."""
SHOP = ShopConfig(n_items=N_ITEMS)
BARE = "bare Numba loop: the shoppers of the log, one by one"


def _stepping(env: VectorEnv, total: int) -> Callable[[], float]:
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    actions = [rng.integers(0, N_ITEMS, env.action_space.shape) for _ in range(32)]
    n_steps = max(total // env.num_envs, 1)

    def work() -> float:
        for step in range(n_steps):
            env.step(actions[step % len(actions)])
        return n_steps * env.num_envs

    return work


def _contenders(lanes: int) -> dict[str, Callable[[], float]]:
    shop = live_shop(SHOP, 0)
    total = TURN if lanes > 1 else TURN // 10
    native = partial(ShopVectorEnv, num_envs=lanes, shop=SHOP)
    plain = [partial(ShopEnv, lane=lane, lanes=lanes, shop=SHOP) for lane in range(lanes)]
    return {
        "SyncVectorEnv of ShopEnv": _stepping(
            SyncVectorEnv(plain, autoreset_mode=AutoresetMode.SAME_STEP), TURN // 100
        ),
        "ShopVectorEnv, full contract": _stepping(native(), total),
        "… NEXT_STEP": _stepping(native(autoreset_mode=AutoresetMode.NEXT_STEP), total),
        "… slate of 10, delay, clickbait": _stepping(native(slate=10, delay=0.2, clickbait=0.2), total),
        "… kinds and intent shown": _stepping(native(kinds=True, reveal_intent=True), total),
        "… terminal_info=False": _stepping(native(terminal_info=False), total),
        "ReplayVectorEnv, full contract": _stepping(ReplayVectorEnv(shop.log(20_000, 0), lanes), total),
        BARE: lambda: shop.log(TURN // 20, 0).n_events,
    }


def table() -> str:
    """Millions of lane-steps (of the bare loop: events) a second by number of lanes; all are single-threaded."""
    rates = [measured(_contenders(lanes), CPU, rounds=3) for lanes in LANES]
    columns = ["M lane-steps/s", *(f"{lanes:,} lane{'s' if lanes > 1 else ''}" for lanes in LANES), "device"]
    rows = [[name, *(f"{np.median(rate[name]) / 1e6:.3g}" for rate in rates), processor()] for name in rates[0]]
    return markdown(columns, rows)


if __name__ == "__main__":
    print(table())
