"""Lane-steps a second of the replay environment, against plain environments side by side and a bare Numba loop.

The bare loop does what the observations and rewards of replay need and nothing that Gymnasium's contract adds: no
arrays of the caller's own, no info, no final observations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import gymnasium
import numpy as np
from common import CPU, N_ITEMS, markdown, measured, processor, zipf_log
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numba import njit
from sessiongym.envs.log import SessionLog
from sessiongym.envs.replay import ReplayEnv, ReplayVectorEnv
from sessiongym.envs.shop.config import ShopConfig
from sessiongym.envs.shop.shop import Shop

LANES = (1, 128, 1024)
WINDOW = 20
TURN = 200_000
"""Lane-steps of one turn, about; the plain environments do a tenth."""
SIZES = (10_000, 1_000_000, 30_000_000)
"""Events of the logs that are compared by size."""

BARE = "bare Numba loop: gather, shift, cursor"
COPYING = "bare Numba loop, observations copied"


@njit
def _bare_step(item, first, last, window, cursor, end, next_session, action, reward, done):
    for lane in range(len(cursor)):
        cursor[lane] += 1
        newest = item[cursor[lane]]
        for place in range(window.shape[1] - 1):
            window[lane, place] = window[lane, place + 1]
        window[lane, -1] = newest
        reward[lane] = 1.0 if action[lane] == newest else 0.0
        done[lane] = cursor[lane] == end[lane]
        if done[lane]:
            session = next_session % len(first)
            next_session += 1
            cursor[lane], end[lane] = first[session], last[session]
            window[lane] = -1
            window[lane, -1] = item[first[session]]
    return next_session


def _bare(log: SessionLog, lanes: int, copy: bool = False) -> Callable[[], float]:
    item, first, last = np.array(log.item), np.array(log.offset[:-1]), np.array(log.offset[1:] - 1)
    window = np.full((lanes, WINDOW), -1, np.int32)
    cursor, end = first[:lanes].copy(), last[:lanes].copy()
    action, reward, done = np.zeros(lanes, np.int64), np.zeros(lanes), np.zeros(lanes, bool)
    window[:, -1] = item[cursor]
    next_session = lanes

    def work() -> float:
        nonlocal next_session
        n_steps = max(10 * TURN // lanes, 1)
        for _ in range(n_steps):
            next_session = _bare_step(item, first, last, window, cursor, end, next_session, action, reward, done)
            if copy:
                window.copy()
        return n_steps * lanes

    return work


def _stepping(env: gymnasium.vector.VectorEnv, total: int) -> Callable[[], float]:
    env.reset(seed=0)
    action = np.zeros(env.num_envs, dtype=np.int64)
    n_steps = max(total // env.num_envs, 1)

    def work() -> float:
        for _ in range(n_steps):
            env.step(action)
        return n_steps * env.num_envs

    return work


def _rolling(env: ReplayVectorEnv, n_steps: int = 8) -> Callable[[], float]:
    env.reset(seed=0)
    n_rollouts = max(TURN // (n_steps * env.num_envs), 1)

    def work() -> float:
        for _ in range(n_rollouts):
            env.rollout(n_steps)
        return n_rollouts * n_steps * env.num_envs

    return work


def _single(log: SessionLog) -> Callable[[], float]:
    env = ReplayEnv(log, window=WINDOW)
    env.reset(seed=0)

    def work() -> float:
        for _ in range(TURN // 10):
            if env.step(0)[2]:
                env.reset()
        return TURN // 10

    return work


def _contenders(log: SessionLog, lanes: int) -> dict[str, Callable[[], float]]:
    plain = SyncVectorEnv(
        [partial(ReplayEnv, log, lane=lane, lanes=lanes, window=WINDOW) for lane in range(lanes)],
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    native = partial(ReplayVectorEnv, log, num_envs=lanes, window=WINDOW)
    return {
        **({"ReplayEnv": _single(log)} if lanes == 1 else {}),
        "SyncVectorEnv of ReplayEnv": _stepping(plain, TURN // 10),
        "ReplayVectorEnv, full contract": _stepping(native(), TURN),
        "… NEXT_STEP": _stepping(native(autoreset_mode=AutoresetMode.NEXT_STEP), TURN),
        "… with kinds": _stepping(native(kinds=True), TURN),
        "… terminal_info=False": _stepping(native(terminal_info=False), TURN),
        "… terminal_info=False, copy=False": _stepping(native(terminal_info=False, copy=False), TURN),
        "… rollout(8)": _rolling(native()),
        COPYING: _bare(log, lanes, copy=True),
        BARE: _bare(log, lanes),
    }


def _figure(rates: list[float] | None) -> str:
    """Median, and lowest to highest."""
    if rates is None:
        return ""
    return f"{np.median(rates) / 1e6:.3g} ({min(rates) / 1e6:.3g}–{max(rates) / 1e6:.3g})"


def table() -> str:
    """Millions of lane-steps a second by number of lanes; every contender is single-threaded."""
    log = Shop(ShopConfig(n_items=N_ITEMS), 0).log(20_000, 0)
    rates = [measured(_contenders(log, lanes), CPU) for lanes in LANES]
    columns = ["M lane-steps/s", *(f"{lanes:,} lane{'s' if lanes > 1 else ''}" for lanes in LANES)]
    bare = np.median(rates[-1][BARE])
    rows = []
    for name in rates[0]:
        share = f"{np.median(rates[-1][name]) / bare:.1%}" if name in rates[-1] else ""
        rows.append([name, *(_figure(rate.get(name)) for rate in rates), share, processor()])
    return markdown([*columns, f"of bare at {LANES[-1]:,}", "device"], rows)


def by_size() -> str:
    """Microseconds of one step of all lanes by number of events in the log."""
    lanes, rows = LANES[-1], []
    logs = [zipf_log(round(size / 9.5), N_ITEMS, 0.05, 0) for size in SIZES]
    for order in ("chronological", "shuffled"):
        for name, terminal_info in (("full contract", True), ("terminal_info=False", False)):
            make = partial(ReplayVectorEnv, num_envs=lanes, window=WINDOW, order=order, terminal_info=terminal_info)
            envs = [make(log) for log in logs]
            rates = measured({str(size): _stepping(env, TURN) for size, env in zip(SIZES, envs, strict=True)}, CPU)
            steps = [f"{lanes / np.median(rates[str(size)]) * 1e6:.0f}" for size in SIZES]
            rows.append([f"{name}, {order}", *steps, processor()])
    return markdown([f"µs a step of {lanes:,} lanes", *(f"{size:,} events" for size in SIZES), "device"], rows)


if __name__ == "__main__":
    print(table())
    print()
    print(by_size())
