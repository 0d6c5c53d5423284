"""The lanes of `ReplayVectorEnv`: what the rows of their arrays mean, how they begin a session, and their windows.

Apart from `replay_core`, because that needs Numba, which is slow to import.
"""

from __future__ import annotations

import numpy as np
from gymnasium.vector import AutoresetMode

SAME_STEP, NEXT_STEP, DISABLED = range(3)
MODES = {
    AutoresetMode.SAME_STEP: SAME_STEP,
    AutoresetMode.NEXT_STEP: NEXT_STEP,
    AutoresetMode.DISABLED: DISABLED,
}
CURSOR, STOP, SESSION, PASS, OVER = range(5)
"""Rows of `state`: last event consumed, event to stop at, session (number in the log), pass, waits for a reset."""
ACTION, KIND = range(2)
LOGGED_REWARD, REWARD, ENDED, LAST_EVENT = range(4, 8)
"""Rows of `out`, with SESSION and PASS between them as in `state`."""


def begin_lanes(lanes, offset, state, upcoming, at, by_lane, max_steps) -> None:
    """`lanes` [n] begin the sessions that they take from `upcoming`."""
    rows = lanes if by_lane else at + np.arange(len(lanes))
    session, passes = upcoming[rows, 0], upcoming[rows, 1]
    first, stop = offset[session], offset[session + 1] - 1
    if max_steps > 0:
        stop = np.minimum(stop, first + max_steps)
    state[:OVER, lanes] = np.stack([first, stop, session, passes])


class RingWindows:
    """Windows [B, W] of all lanes that move on without being moved.

    They lie one after the other in a flat array. When `base` goes one to the right, every window loses its oldest item,
    whose place is by then the newest of the window before: one store a lane in place of W.
    """

    def __init__(self, n_lanes: int, width: int, padding: int) -> None:
        self.shape = n_lanes, width
        self._size = n_lanes * width
        self.ring = np.full(self._size + max(self._size, 4096), padding, dtype=np.int32)
        self.base = 0

    def move_on(self) -> None:
        """Make room for the newest item of every window."""
        self.base += 1
        if self.base + self._size > len(self.ring):
            self.ring[: self._size - 1] = self.ring[self.base : self.base + self._size - 1]
            self.base = 0

    def view(self) -> np.ndarray:
        """[B, W] int32, the windows themselves."""
        return self.ring[self.base : self.base + self._size].reshape(self.shape)
