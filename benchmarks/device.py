"""Lane-steps a second of the device-resident replay, against copying as many bytes on the same device.

Bytes that one lane-step cannot do without, each read once and written once, W items in an observation:

- `step`: two observations (the next one and `final_obs`), 8 W, and the record of the event, 16.
- `rollout`: the record, 16; with observations 4 W more.

A copy moves them in one kernel at whatever rate the device has; `step` launches about thirty, so on a fast device it
measures launches, which a CUDA graph makes cheaper, more than bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from common import N_ITEMS, WALL, interleaved, markdown, processor, zipf_log
from sessiongym.envs.device import DeviceReplayVectorEnv, capture_step
from sessiongym.envs.log import SessionLog
from torch import Tensor

WINDOW = 20
T = 20
SESSIONS = {"cuda": 1_000_000, "cpu": 50_000}
LANES = {"cuda": (1_024, 65_536), "cpu": (1_024, 8_192)}
TURN = {"cuda": 20_000_000, "cpu": 500_000}
"""Lane-steps of one turn, about."""


class Contender(NamedTuple):
    """What is timed."""

    call: Callable[[], object]
    lane_steps: int
    """Of one call."""
    bytes: int
    """That one lane-step must read, and write."""


def _newest_again(observation: Tensor) -> Tensor:
    return observation[:, -1]


def _contenders(log: SessionLog, device: str, lanes: int) -> dict[str, Contender]:
    found: dict[str, Contender] = {}
    of_step, of_rollout, of_window = 8 * WINDOW + 16, 16, 4 * WINDOW
    for assignment in ("queue", "strided"):
        make = partial(DeviceReplayVectorEnv, log, lanes, device, assignment, copy=False, window=WINDOW)
        stepped, rolled = make(), make()
        action = _newest_again(stepped.reset(seed=0)[0])
        rolled.reset(seed=0)
        found[f"step, {assignment}"] = Contender(partial(stepped.step, action), lanes, of_step)
        if device == "cuda":
            graph, _ = capture_step(make(), _newest_again, seed=0)
            found[f"step, {assignment}, CUDA graph"] = Contender(graph.replay, lanes, of_step)
        found[f"rollout({T}), {assignment}"] = Contender(partial(rolled.rollout, T), lanes * T, of_rollout)
        found[f"rollout({T}), {assignment}, observations"] = Contender(
            partial(rolled.rollout, T, observations=True), lanes * T, of_rollout + of_window
        )
    return found


def _turn(call: Callable[[], object], units: int, n_calls: int, device: str) -> Callable[[], float]:
    """Work for `interleaved`: `n_calls` calls of so many units each, finished on the device."""

    def work() -> float:
        for _ in range(n_calls):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        return n_calls * units

    return work


def _rows(log: SessionLog, device: str, lanes: int) -> list[list[str]]:
    name_of_device = torch.cuda.get_device_name() if device == "cuda" else f"{processor()}, CPU only"
    contenders = _contenders(log, device, lanes)
    turns = {}
    for name, (call, lane_steps, n_bytes) in contenders.items():
        n_calls = max(TURN[device] // lane_steps, 1)
        source = torch.ones(lane_steps * n_bytes // 4, dtype=torch.int32, device=device)
        copy = partial(torch.empty_like(source).copy_, source)
        turns[name] = _turn(call, lane_steps, n_calls, device)
        turns[f"copy of {name}"] = _turn(copy, lane_steps, n_calls, device)
    rates = interleaved(turns, WALL)
    rows = []
    for name, contender in contenders.items():
        rate, copied = rates[name], rates[f"copy of {name}"]
        moved = 2 * contender.bytes
        figures = f"{rate / 1e6:,.1f}", str(moved), f"{rate * moved / 1e9:,.1f}", f"{copied * moved / 1e9:,.1f}"
        rows.append([name, f"{lanes:,}", *figures, f"{rate / copied:.0%}", name_of_device])
    return rows


def table() -> str:
    """Millions of lane-steps a second, GB read and written, and the share of a copy's rate; one thread on a CPU."""
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    log = zipf_log(SESSIONS[device], N_ITEMS, 0.25, seed=0)
    rows = [row for lanes in LANES[device] for row in _rows(log, device, lanes)]
    columns = ["what", "lanes", "M lane-steps/s", "bytes a lane-step", "GB/s", "copy GB/s", "of copy", "device"]
    return markdown(columns, rows)


if __name__ == "__main__":
    print(table())
