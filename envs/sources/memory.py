"""How much memory the process has taken, and whether what is still to come has room."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from ...errors import InputError

GB = 10**9
_BYTES_AN_EVENT, _BYTES_A_SESSION = 44, 64
"""What `pipeline.build` takes at its peak for an event and a session that survive the first cuts: measured at 34
million events, and a fifth more."""


def peak_bytes() -> int:
    """The most resident memory that this process has had so far."""
    try:
        # A child's rusage starts at what its parent had; this figure is the process's own.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def check_room(memory: float, n_events: int, n_sessions: int, source: str) -> None:
    """Raises `InputError` where so many events and sessions, on top of what is in use, need more than `memory` GB."""
    needed = peak_bytes() + n_events * _BYTES_AN_EVENT + n_sessions * _BYTES_A_SESSION
    if needed > memory * GB:
        raise InputError(
            f"{source}: the {n_events:,} events of {n_sessions:,} sessions that remain need about "
            f"{math.ceil(needed / GB * 10) / 10:g} GB, found --memory {memory:g}; raise it, or keep less with "
            "--buyers-only, --latest-days or --latest-month"
        )
