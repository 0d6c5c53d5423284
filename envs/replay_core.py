"""The inner loop of `ReplayVectorEnv`, compiled, and the same in NumPy to check it against.

Both functions advance all lanes by one step in place and share their arguments, so either can stand in for the other:

- the log: `item` [E] int32, `worth` [E] uint8 (0 click, 1 purchase, 2 purchase without reward), `offset` [S + 1] int64,
  `reward_of` [3] float64, the reward by worth;
- the lanes: `state` [5, B] int64, rows CURSOR, STOP, SESSION, PASS and OVER (1 where a lane waits for a reset);
- `upcoming` [n, 2] int64 (session, pass) from row `at` on, in which lanes in turn take the next row, or, `by_lane`,
  each its own;
- the call: `mode` (SAME_STEP, NEXT_STEP or DISABLED), `max_steps` (0: no limit), `always` (1: the reward counts
  whatever the action), `actions` [B * K] int64;
- `ring` and `base`: see `replay_lanes.RingWindows`; a `ring` of no elements leaves the windows alone;
- the outputs: `out` [8, B] int64, rows ACTION, KIND, SESSION, PASS, LOGGED_REWARD and REWARD (these two hold bits of
  float64), ENDED and LAST_EVENT, whose first n columns name the lanes that have ended and their last events; `flags`
  [2, B] bool (terminated, truncated). Where `final` [5, B] is not empty, what ending lanes consumed goes into its rows
  (ACTION to LOGGED_REWARD) and out of `out`, and their windows into `final_rows` [B, W].

They return n, the number of lanes that have ended in this step. Lanes that begin a session take rows of `upcoming` in
order of their number; the caller then tells the order of sessions that they are taken.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .replay_lanes import (
    ACTION,
    CURSOR,
    ENDED,
    KIND,
    LAST_EVENT,
    LOGGED_REWARD,
    NEXT_STEP,
    OVER,
    PASS,
    REWARD,
    SAME_STEP,
    SESSION,
    STOP,
    begin_lanes,
)


@njit(cache=True, inline="always")
def _begin(lane, row, item, offset, state, upcoming, max_steps, padding, ring, base, width):
    session = upcoming[row, 0]
    first = offset[session]
    stop = offset[session + 1] - 1
    if max_steps > 0:
        stop = min(stop, first + max_steps)
    state[CURSOR, lane] = first
    state[STOP, lane] = stop
    state[SESSION, lane] = session
    state[PASS, lane] = upcoming[row, 1]
    if len(ring) > 0:
        last_column = base + (lane + 1) * width - 1
        for place in range(last_column - width + 1, last_column):
            ring[place] = padding
        ring[last_column] = item[first]


@njit(cache=True)
def step_lanes(
    item, worth, offset, reward_of, state, upcoming, at, by_lane, mode, max_steps, always, padding, actions, ring, base,
    width, out, flags, final, final_rows,
):  # fmt: skip
    """One step of every lane, compiled."""
    n_lanes = state.shape[1]
    values = out.view(np.float64)
    n_begun = 0
    if mode == NEXT_STEP:
        for lane in range(n_lanes):
            if state[OVER, lane]:
                row = lane if by_lane else at + n_begun
                n_begun += 1
                _begin(lane, row, item, offset, state, upcoming, max_steps, padding, ring, base, width)
                # The loop below moves every cursor on.
                state[CURSOR, lane] -= 1

    # Short loops without branches, each over few arrays, are what compiler and processor do best.
    n_ended = 0
    for lane in range(n_lanes):
        state[CURSOR, lane] += 1
    for lane in range(n_lanes):
        out[ENDED, n_ended] = lane
        n_ended += state[CURSOR, lane] == state[STOP, lane]
    for lane in range(n_lanes):
        event = state[CURSOR, lane]
        out[ACTION, lane] = item[event]
        # A purchase is worth 1, or 2 if its reward is forced to 0.
        out[KIND, lane] = (worth[event] + 1) >> 1
        values[LOGGED_REWARD, lane] = reward_of[worth[event]]
    if len(ring) > 0:
        for lane in range(n_lanes):
            ring[base + (lane + 1) * width - 1] = out[ACTION, lane]
    if always:
        for lane in range(n_lanes):
            values[REWARD, lane] = values[LOGGED_REWARD, lane]
    elif len(actions) == n_lanes:
        for lane in range(n_lanes):
            values[REWARD, lane] = values[LOGGED_REWARD, lane] if actions[lane] == out[ACTION, lane] else 0.0
    else:
        slate = len(actions) // n_lanes
        for lane in range(n_lanes):
            hit = (actions[lane * slate : (lane + 1) * slate] == out[ACTION, lane]).any()
            values[REWARD, lane] = values[LOGGED_REWARD, lane] if hit else 0.0
    flags[:] = False

    if n_begun > 0:
        for lane in range(n_lanes):
            if state[OVER, lane]:
                state[OVER, lane] = 0
                out[ACTION, lane] = 0
                out[KIND, lane] = 0
                values[LOGGED_REWARD, lane] = 0.0
                values[REWARD, lane] = 0.0
    for number in range(n_ended):
        lane = out[ENDED, number]
        event, session = state[CURSOR, lane], state[SESSION, lane]
        out[LAST_EVENT, number] = event
        flags[0, lane] = event == offset[session + 1] - 1
        flags[1, lane] = max_steps > 0 and event - offset[session] >= max_steps
        if mode != SAME_STEP:
            state[OVER, lane] = 1
            continue
        if final.shape[1] > 0:
            final[ACTION, lane] = out[ACTION, lane]
            final[KIND, lane] = out[KIND, lane]
            final[SESSION, lane] = session
            final[PASS, lane] = state[PASS, lane]
            final[LOGGED_REWARD, lane] = out[LOGGED_REWARD, lane]
            out[ACTION, lane] = 0
            out[KIND, lane] = 0
            values[LOGGED_REWARD, lane] = 0.0
            if len(ring) > 0:
                for place in range(width):
                    final_rows[number, place] = ring[base + lane * width + place]
        row = lane if by_lane else at + number
        _begin(lane, row, item, offset, state, upcoming, max_steps, padding, ring, base, width)
    for lane in range(n_lanes):
        out[SESSION, lane] = state[SESSION, lane]
    for lane in range(n_lanes):
        out[PASS, lane] = state[PASS, lane]
    return n_ended


def step_lanes_numpy(
    item, worth, offset, reward_of, state, upcoming, at, by_lane, mode, max_steps, always, padding, actions, ring, base,
    width, out, flags, final, final_rows,
):  # fmt: skip
    """One step of every lane, the readable reference. Does not keep a `ring`."""
    assert len(ring) == 0
    over = state[OVER].astype(bool)
    begins = over if mode == NEXT_STEP else np.zeros_like(over)
    event = np.where(begins, state[CURSOR], state[CURSOR] + 1)
    state[CURSOR] = event
    logged_reward = np.where(begins, 0.0, reward_of[worth[event]])
    hit = (actions.reshape(len(over), -1) == item[event][:, None]).any(axis=1) | bool(always)
    values = out.view(np.float64)
    values[REWARD], values[LOGGED_REWARD] = np.where(hit, logged_reward, 0.0), logged_reward
    out[ACTION] = np.where(begins, 0, item[event])
    out[KIND] = np.where(begins, 0, np.minimum(worth[event], 1))

    session = state[SESSION]
    stops = ~begins & (event == state[STOP])
    flags[0] = stops & (event == offset[session + 1] - 1)
    flags[1] = stops & (max_steps > 0) & (event - offset[session] >= max_steps)
    lanes = np.flatnonzero(stops)
    out[ENDED, : len(lanes)], out[LAST_EVENT, : len(lanes)] = lanes, event[lanes]
    if mode == SAME_STEP:
        if final.shape[1] > 0:
            consumed = np.stack([out[ACTION], out[KIND], session, state[PASS], out[LOGGED_REWARD]])
            final[:, lanes] = consumed[:, lanes]
            out[:2, lanes] = 0
            values[LOGGED_REWARD, lanes] = 0.0
        begins = stops
    else:
        state[OVER] = (over & ~begins) | stops
    begin_lanes(np.flatnonzero(begins), offset, state, upcoming, at, by_lane, max_steps)
    out[SESSION], out[PASS] = state[SESSION], state[PASS]
    return len(lanes)


@njit(cache=True)
def roll_lanes(item, worth, offset, reward_of, state, upcoming, at, by_lane, newest, newest_kind, start, action, kind,
               reward, done, ended):  # fmt: skip
    """One step of every lane as a `Rollout` has it, SAME_STEP; the outputs are rows [B]. Returns how many ended."""
    n_ended = 0
    for lane in range(state.shape[1]):
        event = state[CURSOR, lane] + 1
        session = state[SESSION, lane]
        newest[lane] = item[event - 1]
        newest_kind[lane] = min(worth[event - 1], 1)
        start[lane] = event - 1 == offset[session]
        action[lane] = item[event]
        kind[lane] = min(worth[event], 1)
        reward[lane] = reward_of[worth[event]]
        done[lane] = event == state[STOP, lane]
        if done[lane]:
            row = lane if by_lane else at + n_ended
            ended[n_ended] = lane
            n_ended += 1
            session = upcoming[row, 0]
            event = offset[session]
            state[STOP, lane] = offset[session + 1] - 1
            state[SESSION, lane] = session
            state[PASS, lane] = upcoming[row, 1]
        state[CURSOR, lane] = event
    return n_ended


@njit(cache=True)
def gather_windows(column, first, newest, width, padding):
    """[n, W], of the dtype of `column` [E]: the last W events up to `newest` [n], none before `first` [n], padded."""
    out = np.empty((len(newest), width), column.dtype)
    for row in range(len(newest)):
        n_padded = max(width - (newest[row] - first[row] + 1), 0)
        for place in range(n_padded):
            out[row, place] = padding
        leftmost = newest[row] - width + 1
        for place in range(n_padded, width):
            out[row, place] = column[leftmost + place]
    return out


def gather_windows_numpy(column, first, newest, width, padding):
    """The same, the readable reference."""
    event = newest[:, None] + np.arange(1 - width, 1)
    inside = event >= first[:, None]
    return np.where(inside, column[np.maximum(event, 0)], column.dtype.type(padding))
