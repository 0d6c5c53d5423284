"""Run every benchmark, each in a process of its own, and write its table into RESULTS.md between its markers."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from common import processor

FOLDER = Path(__file__).parent
BENCHMARKS = (
    "environment",
    "device",
    "sb3",
    "recsys15",
    "training",
    "gru4rec",
    "evaluation",
    "bootstrap",
    "session_knn",
    "rnn",
    "shop",
    "live_shop",
)


def machine() -> str:
    """Where and when a table was made."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numba", "numpy", "gymnasium"))
    load = f"{os.getloadavg()[0]:.1f}"
    return (
        f"{datetime.date.today()}; {processor()}, {cores} cores, {memory:.0f} GiB; "
        f"Python {sys.version.split()[0]}, {packages}; load average at the start {load}."
    )


def replace_between(text: str, name: str, content: str) -> str:
    """`text` with `content` between the markers of `name`. Raises ValueError where the markers are missing."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    text, count = pattern.subn(lambda found: f"{found[1]}{content.strip()}\n{found[2]}", text)
    if count != 1:
        raise ValueError(f"RESULTS.md: expected the markers of {name} once, found them {count} times")
    return text


def main() -> None:
    """The names given on the command line, or all."""
    file = FOLDER / "RESULTS.md"
    text = file.read_text(encoding="utf-8")
    for name in sys.argv[1:] or BENCHMARKS:
        print(f"benchmarks/{name}.py", file=sys.stderr, flush=True)
        where = machine()
        command = [sys.executable, str(FOLDER / f"{name}.py")]
        table = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        print(table, flush=True)
        text = replace_between(text, name, f"{where}\n\n{table}")
    file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
