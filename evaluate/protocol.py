"""What the evaluator asks of a model, and the checker that a model keeps to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np

from ..envs.history import UserHistories
from ..envs.log import SessionBatch, SessionLog
from ..errors import InputError

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-5
"""Largest difference between scores that must agree up to rounding, relative to the largest score of their row."""

PROPERTIES = (
    "shape",
    "dtype",
    "finite",
    "input_unchanged",
    "deterministic",
    "causal",
    "batch_invariant",
    "recommend_agrees",
    "constant_at_chance",
)


@runtime_checkable
class Recommender(Protocol):
    """Anything with these three methods; nothing has to inherit. N items, P events to predict.

    A model that can only name its best item sets the attribute ``max_k = 1``: it is then scored at K = 1 alone.
    """

    def fit(self, train: SessionLog, valid: SessionLog | None) -> Self:
        """Learn from `train`; `valid` may choose among checkpoints, never more."""
        ...

    def score_sessions(self, batch: SessionBatch) -> np.ndarray | torch.Tensor:
        """float32 [P, N], on any device, higher is better: row j of a session scores event j + 1 from its first j."""
        ...

    def recommend(self, history: SessionBatch, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best next items of one session (a batch of one, all of whose events are known) and their scores.

        Both [min(k, N)], best first, equal scores in order of item number.
        """
        ...


@dataclass(frozen=True)
class Finding:
    """What `check_recommender` found about one property."""

    property: str
    """One of PROPERTIES."""
    passed: bool | None
    """None: not judged, because of another failure."""
    detail: str = ""
    """What was found and expected, where it failed; why, where it was not judged."""


class RecommenderError(AssertionError):
    """A model breaks the protocol; the message is the report, `findings` the same as data."""

    def __init__(self, model: object, findings: list[Finding]) -> None:
        self.findings = findings
        failed = [f.property for f in findings if f.passed is False]
        verdict = {True: "ok", False: "FAIL", None: "not judged"}
        lines = [f"{type(model).__name__} breaks the Recommender protocol: {', '.join(failed)}"]
        lines += [f"  {verdict[f.passed]:10} {f.property:18} {f.detail}".rstrip() for f in findings]
        super().__init__("\n".join(lines))


def check_recommender(
    model: Recommender,
    log: SessionLog,
    *,
    n_sessions: int = 16,
    n_futures: int = 4,
    seed: int = 0,
    raise_on_failure: bool = True,
) -> list[Finding]:
    """Does a fitted model keep to the protocol? One finding for each of PROPERTIES, on sessions drawn from `log`.

    - shape, dtype, finite: float32 [P, N] without NaN or +inf;
    - input_unchanged, deterministic: the batch is left alone, and the same batch scores the same, bit for bit;
    - causal: after each of `n_futures` changes of the items, kinds and times behind some event, the rows up to it are
      the same bit for bit; cutting the session there instead leaves them within TOLERANCE (nobody knows the length
      of a session that goes on). Each session is judged alone, so that its batch mates cannot matter;
    - batch_invariant: a session alone scores as it does among others, within TOLERANCE;
    - recommend_agrees: `recommend` returns the best items of the row that `score_sessions` gives;
    - constant_at_chance: a constant scorer has Recall@K = K/N: about the rank kernel, not the model.

    Raises `RecommenderError`, an AssertionError, with the whole report where a property fails, or returns the findings
    if `raise_on_failure` is off. A property that another failure leaves without meaning has ``passed=None``. Raises
    `InputError` where `log` has no session of two events or more.
    """
    rng = np.random.default_rng(seed)
    batch = _sample(log, n_sessions, rng)
    given = _copy(batch)
    scores: Any = model.score_sessions(given)
    first = _as_numpy(scores)

    def score(sessions: SessionBatch) -> np.ndarray:
        return _as_numpy(model.score_sessions(_copy(sessions)))

    # Each judge returns what is wrong, or nothing; it is asked where the properties it builds on hold.
    judges: dict[str, tuple[Callable[[], str], set[str]]] = {
        "shape": (lambda: _shape_fault(model, scores, batch, log.n_items), set()),
        "dtype": (lambda: _dtype_fault(scores), set()),
        "finite": (lambda: _finite_fault(first), set()),
        "input_unchanged": (lambda: _input_fault(given, batch), set()),
        "deterministic": (lambda: _determinism_fault(first, score(batch)), {"shape"}),
        "causal": (lambda: _causality_fault(score, batch, log.n_items, n_futures, rng), {"shape", "deterministic"}),
        "batch_invariant": (lambda: _batch_fault(score, batch, first), {"shape", "deterministic"}),
        "recommend_agrees": (
            lambda: _recommend_fault(model, score, batch),
            {"shape", "finite", "deterministic", "causal"},
        ),
        "constant_at_chance": (lambda: _chance_fault(log.n_items), set()),
    }
    findings: list[Finding] = []
    doubtful: set[str] = set()
    for name, (fault, needs) in judges.items():
        if needs & doubtful:
            doubtful.add(name)
            findings.append(Finding(name, None, f"needs {', '.join(sorted(needs & doubtful))}"))
            continue
        detail = fault()
        if detail:
            doubtful.add(name)
        findings.append(Finding(name, not detail, detail))
    if raise_on_failure and any(finding.passed is False for finding in findings):
        raise RecommenderError(model, findings)
    return findings


def _shape_fault(model: Recommender, scores: Any, batch: SessionBatch, n_items: int) -> str:
    one = batch.part(0, 1)
    for sessions, found in ((batch, scores), (one, model.score_sessions(_copy(one)))):
        expected, shape = (sessions.n_rows, n_items), tuple(getattr(found, "shape", ()))
        if shape != expected:
            return f"expected {expected} for {sessions.n_sessions} sessions, found {shape} of {type(found).__name__}"
    return ""


def _dtype_fault(scores: Any) -> str:
    found = str(getattr(scores, "dtype", type(scores).__name__)).removeprefix("torch.")
    return "" if found == "float32" else f"expected float32, found {found}"


def _finite_fault(scores: np.ndarray) -> str:
    n_bad = np.count_nonzero(~(scores < np.inf))
    return f"{n_bad} of {scores.size} scores are NaN or +inf" if n_bad else ""


def _input_fault(given: SessionBatch, original: SessionBatch) -> str:
    columns = ("item", "kind", "time", "offset", "user")
    written = [c for c in columns if not np.array_equal(getattr(given, c), getattr(original, c))]
    if any(_input_fault(*pair) for pair in zip(given.history or (), original.history or (), strict=True)):
        written.append("history")
    return f"score_sessions wrote to batch.{', batch.'.join(written)}" if written else ""


def _determinism_fault(first: np.ndarray, second: np.ndarray) -> str:
    if np.array_equal(first, second, equal_nan=True):
        return ""
    return f"the same batch scored differently a second time, by up to {_gap(second, first):.2g} of the largest score"


def _causality_fault(
    score: Callable[[SessionBatch], np.ndarray],
    batch: SessionBatch,
    n_items: int,
    n_futures: int,
    rng: np.random.Generator,
) -> str:
    for number in range(batch.n_sessions):
        session = batch.part(number, number + 1)
        length = len(session.item)
        expected = score(session)
        # The first and the last place where the future can begin, then any.
        for known in (1, length - 1, *rng.integers(1, length, size=max(0, n_futures - 2)))[:n_futures]:
            found = score(_other_future(session, known, n_items, rng))[:known]
            if not np.array_equal(found, expected[:known], equal_nan=True):
                row = int(np.flatnonzero(~np.isclose(found, expected[:known], 0, 0, equal_nan=True).all(axis=1))[0])
                return (
                    f"sampled session {number} of {length} events: the scores after {row + 1} events changed by "
                    f"{_gap(found, expected[:known]):.2g} of the largest when events {known + 1}..{length} changed"
                )
            gap = _gap(score(_cut(session, known + 1)), expected[:known])
            if gap > TOLERANCE:
                return (
                    f"sampled session {number} of {length} events: the first {known} rows changed by {gap:.2g} of the "
                    f"largest score when the session was cut to {known + 1} events"
                )
    return ""


def _batch_fault(score: Callable[[SessionBatch], np.ndarray], batch: SessionBatch, together: np.ndarray) -> str:
    for number in range(batch.n_sessions):
        rows = slice(batch.offset[number] - number, batch.offset[number + 1] - number - 1)
        gap = _gap(together[rows], score(batch.part(number, number + 1)))
        if gap > TOLERANCE:
            return (
                f"sampled session {number} scores differently alone and among {batch.n_sessions}, by {gap:.2g} of the "
                f"largest score (tolerance {TOLERANCE:g})"
            )
    return ""


def _recommend_fault(model: Recommender, score: Callable[[SessionBatch], np.ndarray], batch: SessionBatch) -> str:
    for number in range(min(batch.n_sessions, 4)):
        history = batch.part(number, number + 1)
        row = score(history.with_unknown_next())[-1]
        k = min(5, len(row), getattr(model, "max_k", None) or len(row))
        items, scores = (_as_numpy(part) for part in model.recommend(_copy(history), k))
        where = f"sampled session {number}, k={k}"
        if items.shape != (k,) or scores.shape != (k,):
            return f"{where}: expected items and scores of shape ({k},), found {items.shape} and {scores.shape}"
        items = items.astype(np.int64)
        if len(np.unique(items)) < k or items.min() < 0 or items.max() >= len(row):
            return f"{where}: expected {k} different items of 0..{len(row) - 1}, found {items.tolist()}"
        falling = (scores[1:] < scores[:-1]) | ((scores[1:] == scores[:-1]) & (items[1:] > items[:-1]))
        if not falling.all():
            return f"{where}: expected falling scores and equal ones by item number, found {scores.tolist()}"
        best = np.sort(row)[::-1][:k]
        if _gap(np.stack([scores, row[items]]), np.stack([row[items], best])) > TOLERANCE:
            return (
                f"{where}: score_sessions gives the best items {best.tolist()}, recommend chose items that it gives "
                f"{row[items].tolist()} and says {scores.tolist()}"
            )
    return ""


def _chance_fault(n_items: int) -> str:
    from .metrics import recall
    from .ranks import rank_bounds

    k = min(5, n_items)
    everything = np.arange(n_items)
    low, high = rank_bounds(np.zeros((1, n_items), dtype=np.float32), np.zeros_like(everything), everything)
    found = recall(low, high, k)
    return "" if np.allclose(found, k / n_items, rtol=1e-12) else f"expected Recall@{k} {k / n_items}, found {found}"


def _sample(log: SessionLog, n_sessions: int, rng: np.random.Generator) -> SessionBatch:
    usable = np.flatnonzero(log.length >= 2)
    if len(usable) == 0:
        raise InputError(
            f"check_recommender: none of the {log.n_sessions} sessions has two events, so there is nothing to score; "
            "give a log with longer sessions"
        )
    sampled = log.select(rng.choice(usable, size=min(n_sessions, len(usable)), replace=False)).batch()
    return sampled if log.user is None else UserHistories(log).attach(sampled)


def _copy(batch: SessionBatch) -> SessionBatch:
    """Writable arrays, so that a model that writes to its input is found out rather than stopped."""
    return replace(
        batch,
        item=batch.item.copy(),
        kind=batch.kind.copy(),
        time=batch.time.copy(),
        offset=batch.offset.copy(),
        user=None if batch.user is None else batch.user.copy(),
        history=None if batch.history is None else tuple(map(_copy, batch.history)),
    )


def _other_future(session: SessionBatch, known: int, n_items: int, rng: np.random.Generator) -> SessionBatch:
    """Every event behind the first `known` gets another item (if there is one), the other kind and a later time."""
    changed = _copy(session)
    n_changed = len(changed.item) - known
    if n_items > 1:
        changed.item[known:] = (changed.item[known:] + rng.integers(1, n_items, size=n_changed)) % n_items
    changed.kind[known:] = 1 - changed.kind[known:]
    changed.time[known:] += np.cumsum(rng.integers(1, 3600 * 10**9, size=n_changed))
    return changed


def _cut(session: SessionBatch, length: int) -> SessionBatch:
    events = slice(0, length)
    return replace(
        session,
        item=session.item[events],
        kind=session.kind[events],
        time=session.time[events],
        offset=np.array([0, length], dtype=np.int64),
    )


def _gap(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest finite score of its row; NaN equals NaN and -inf equals -inf."""
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(found - expected))
    scale = np.max(np.abs(expected), axis=1, keepdims=True, where=np.isfinite(expected), initial=0.0)
    relative = difference / np.maximum(scale, np.finfo(np.float32).tiny)
    return float(np.nan_to_num(relative, nan=np.inf).max(initial=0.0))


def _as_numpy(array: Any) -> np.ndarray:
    """NumPy or torch, any device and precision, as float64 without loss."""
    if hasattr(array, "detach"):
        array = array.detach().cpu().double().numpy()
    return np.array(array, dtype=np.float64)
