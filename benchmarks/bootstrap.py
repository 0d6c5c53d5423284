"""Resamples a second of the session bootstrap, against SciPy's and the loop that anyone would write."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from common import CPU, interleaved, markdown, processor
from scipy.stats import bootstrap
from sessiongym.evaluate.statistics import session_bootstrap

N_SESSIONS, N_EVENTS = 7_000, 63_000
"""About the test split of the IRN paper's data (section 5.1)."""
RESAMPLES = 2_000
FEW = 50
"""Resamples of the slow ones."""
LOOP = "a loop over resamples"


def _contenders(n_columns: int) -> dict[str, Callable[[], float]]:
    rng = np.random.default_rng(0)
    length = 1 + rng.multinomial(N_EVENTS - N_SESSIONS, np.full(N_SESSIONS, 1 / N_SESSIONS))
    session = np.repeat(np.arange(N_SESSIONS), length)
    values = (rng.random((N_EVENTS, n_columns)) < 0.3).astype(float)
    sums = np.add.reduceat(values, np.cumsum(length) - length)
    members = np.split(np.arange(N_EVENTS), np.cumsum(length)[:-1])

    def ours() -> float:
        session_bootstrap(values, session, resamples=RESAMPLES)
        return RESAMPLES

    def scipys() -> float:
        for column in range(n_columns):
            bootstrap(
                (sums[:, column], length),
                lambda total, count, axis=-1: total.sum(axis=axis) / count.sum(axis=axis),
                paired=True,
                method="percentile",
                n_resamples=FEW,
                rng=rng,
            )
        return FEW

    def loop() -> float:
        for _ in range(FEW):
            drawn = rng.integers(N_SESSIONS, size=N_SESSIONS)
            values[np.concatenate([members[s] for s in drawn])].mean(axis=0)
        return FEW

    return {"session_bootstrap": ours, "scipy.stats.bootstrap of sums, by column": scipys, LOOP: loop}


def table() -> str:
    """In seconds of the process, over all its threads."""
    rows = []
    for n_columns in (1, 30):
        rates = interleaved(_contenders(n_columns), CPU, rounds=3)
        rows += [
            [name, str(n_columns), f"{rate:,.0f}", f"{RESAMPLES / rate:.2f}", f"{rate / rates[LOOP]:,.0f}x"]
            for name, rate in rates.items()
        ]
    columns = ["what", "figures", "resamples/s", f"seconds for {RESAMPLES:,}", "of the loop", "device"]
    return markdown(columns, [[*row, processor()] for row in rows])


if __name__ == "__main__":
    print(table())
