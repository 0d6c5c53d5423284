"""Session-KNN: events scored a second on a log of the IRN paper's size, and index and query at 31 million clicks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from common import CPU, N_ITEMS, PAPER_SESSIONS, interleaved, markdown, processor, zipf_log
from scipy.sparse import csr_array
from sessiongym.baselines.config import SessionKNNConfig
from sessiongym.baselines.session_knn import SessionKNN
from sessiongym.envs.log import SessionLog

SETTINGS = ((500, 100), (1000, 500))
"""m candidates, k neighbours."""
ROWS, PLAIN_ROWS = 2_000, 40

LARGE_SESSIONS, LARGE_ITEMS = 3_263_000, 37_483
"""31 million clicks at 9.5 a session, and the items of RecSys15 (Hidasi et al. 2016, section 4)."""
QUERIES = 200


def _plain(train: SessionLog, test: SessionLog, m: int, k: int) -> Callable[[], float]:
    """SKNN as one would write it with dictionaries and sets: the m newest sessions, cosine, the k nearest."""
    sessions = [set(train.item[a:b].tolist()) for a, b in zip(train.offset[:-1], train.offset[1:], strict=True)]
    holders = defaultdict(list)
    for number, items in enumerate(sessions):
        for item in items:
            holders[item].append(number)

    def score(current: set[int]) -> dict[int, float]:
        found = {number for item in current for number in holders[item]}
        newest = sorted(found, reverse=True)[:m]
        similarity = [(len(current & sessions[n]) / (len(current) * len(sessions[n])) ** 0.5, n) for n in newest]
        scores: dict[int, float] = defaultdict(float)
        for weight, number in sorted(similarity, reverse=True)[:k]:
            for item in sessions[number]:
                scores[item] += weight
        return scores

    def work() -> float:
        n_rows = 0
        for first, end in zip(test.offset[:-1], test.offset[1:], strict=True):
            for event in range(first + 1, end):
                score(set(test.item[first:event].tolist()))
                n_rows += 1
                if n_rows == PLAIN_ROWS:
                    return n_rows
        return n_rows

    return work


def _kernel(train: SessionLog, test: SessionLog, config: SessionKNNConfig) -> Callable[[], float]:
    model = SessionKNN(config).fit(train)

    def work() -> float:
        for batch in test.batches(ROWS):
            model.score_sessions(batch)
        return test.batch().n_rows

    return work


def _writing(test: SessionLog) -> Callable[[], float]:
    def work() -> float:
        for batch in test.batches(ROWS):
            np.empty((batch.n_rows, test.n_items), dtype=np.float32).fill(0.0)
        return test.batch().n_rows

    return work


def _throughput() -> str:
    """Events a second; scores are [P, N], so that writing them bounds any model."""
    log = zipf_log(PAPER_SESSIONS + ROWS // 8, N_ITEMS, 0.25, seed=0)
    train, test = (log.select(np.arange(*span)) for span in ((0, PAPER_SESSIONS), (PAPER_SESSIONS, log.n_sessions)))
    rows = []
    for m, k in SETTINGS:
        contenders = {
            "session-knn, V-SKNN": _kernel(train, test, SessionKNNConfig(m=m, k=k)),
            "session-knn, SKNN": _kernel(
                train, test, SessionKNNConfig(m=m, k=k, position="none", decay="none", idf_weight=0.0)
            ),
            "SKNN in plain Python": _plain(train, test, m, k),
            "writing the scores alone": _writing(test),
        }
        rates = interleaved(contenders, CPU, rounds=3)
        rows += [[name, f"{m:,}", f"{k:,}", f"{rate:,.0f}", "1", processor()] for name, rate in rates.items()]
    return markdown(["model", "m", "k", "events/s", "threads", "device"], rows)


def _at_scale() -> str:
    """Seconds of the index beside a bare transposition of the same clicks; milliseconds of a recommendation."""
    log = zipf_log(LARGE_SESSIONS + QUERIES, LARGE_ITEMS, 0.0, seed=0)
    train, test = (log.select(np.arange(*span)) for span in ((0, LARGE_SESSIONS), (LARGE_SESSIONS, log.n_sessions)))
    del log
    models = {(m, k): SessionKNN(SessionKNNConfig(m=m, k=k)) for m, k in SETTINGS}
    clicks = csr_array((np.ones(train.n_events, np.int8), train.item, train.offset), (train.n_sessions, train.n_items))

    def index(model: SessionKNN) -> Callable[[], float]:
        def work() -> float:
            model.fit(train)
            return 1

        return work

    def transposition() -> float:
        clicks.tocsc()
        return 1

    def queries(model: SessionKNN) -> Callable[[], float]:
        def work() -> float:
            for number in range(QUERIES):
                model.recommend(test.batch(number, number + 1), 20)
            return QUERIES

        return work

    def writing() -> float:
        for _ in range(QUERIES):
            np.empty(LARGE_ITEMS, dtype=np.float32).fill(0.0)
        return QUERIES

    building: dict[Any, Callable[[], float]] = {setting: index(model) for setting, model in models.items()}
    built = interleaved(building | {"transposition": transposition}, CPU, rounds=2)
    asking: dict[Any, Callable[[], float]] = {setting: queries(model) for setting, model in models.items()}
    asked = interleaved(asking | {"writing": writing}, CPU)
    rows = [
        ["session-knn", f"{m:,}", f"{k:,}", f"{1 / built[m, k]:.1f}", f"{1000 / asked[m, k]:.2f}", "1", processor()]
        for m, k in SETTINGS
    ]
    rows += [
        ["transposing the clicks alone", "", "", f"{1 / built['transposition']:.1f}", "", "1", processor()],
        ["writing the scores alone", "", "", "", f"{1000 / asked['writing']:.2f}", "1", processor()],
    ]
    return markdown([f"{train.n_events:,} clicks", "m", "k", "index, s", "query, ms", "threads", "device"], rows)


def table() -> str:
    """Both tables, on one thread."""
    numba.set_num_threads(1)
    return f"{_throughput()}\n\n{_at_scale()}"


if __name__ == "__main__":
    print(table())
