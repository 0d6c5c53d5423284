"""Checks that a figure is not too good to be true: nothing leaks between the splits, and no model sees what comes next.

`check_data` looks at the prepared splits, once for each data set; `check_model` at a fitted model, before its figures
are believed. Both raise `HonestyError` at the first check that fails, and return what they measured otherwise. They are
cheap enough for every run: `protocol.check_recommender` is the thorough one, for whoever writes a model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..envs.history import UserHistories
from ..envs.log import PreparedData, SessionBatch, SessionLog
from ..errors import InputError
from .events import max_k_of, rank_events
from .metrics import recall
from .protocol import TOLERANCE, _as_numpy, _copy, _finite_fault, _gap
from .ranks import rank_bounds

if TYPE_CHECKING:
    from .protocol import Recommender

FALSE_ALARM = 1e-6
"""Largest probability that an honest model is taken to know targets drawn by chance."""

MOST_EVENTS = 20
"""Longer sessions are judged by their first events."""

_REMEDY = "its figures would mean nothing: mend the model (check_recommender says more)"
_HOUR = 3600 * 10**9
_SPLITS = ("train", "valid", "test")


class HonestyError(InputError):
    """A check failed, so the figures would not mean what they say. The message is one line."""

    def __init__(self, message: str, check: str = "") -> None:
        super().__init__(message)
        self.check = check
        """Which of the checks that `check_data` and `check_model` list."""


def check_data(data: PreparedData) -> dict[str, str]:
    """What was measured, by check; raises `HonestyError` at the first that fails.

    - disjoint_sessions: no session id occurs in two splits;
    - vocabulary: all splits have the same items, those below `n_train_items` are those of train, later ones occur in
      valid or test alone, and there are none of them with ``--unseen drop``;
    - split_order: sessions follow each other as the manifest says. By time: those of valid come after those of train,
      and those of test after both; per user: the same for each user; random: nothing to check. Where the preparation
      removed events after the split, sessions may have lost the one that they were sorted by, so as many as there were
      such events may be out of order, in each pair of splits;
    - overlap: the share of sessions with the content of a training session, from the manifest. It is reported only.
    """
    where = str(data.path or "PreparedData")
    checks = {
        "disjoint_sessions": _disjoint_sessions,
        "vocabulary": _vocabulary,
        "split_order": _split_order,
        "overlap": _overlap,
    }
    measured = {}
    for name, check in checks.items():
        measured[name], fault = check(data)
        if fault:
            raise HonestyError(f"{where}: honesty check {name!r} failed: {fault}; prepare the data again", name)
    return measured


def check_model(
    model: Recommender,
    data: PreparedData,
    *,
    name: str | None = None,
    histories: UserHistories | None = None,
    seed: int = 0,
    n_sessions: int = 64,
    max_scores: int = 2**22,
) -> dict[str, str]:
    """What was measured of a fitted model, by check; raises `HonestyError` at the first that fails.

    Judged on at most `n_sessions` sessions drawn from the test split, and fewer (at least 2) where their scores would
    be more than `max_scores`. In each, everything behind a random event is drawn anew: items uniformly from the
    catalogue, the other kind, later times.

    - shape, finite: scores [P, N] without NaN or +inf;
    - repeatable: the same sessions score the same, bit for bit, after others were scored in between: no random draws,
      no state between calls;
    - future: rows up to that event do not change, bit for bit;
    - length: nor do they, within TOLERANCE, where the sessions end behind it;
    - batch_mates: each half of the sessions scores the same without the other, within TOLERANCE;
    - permuted_targets: no model can know targets that are drawn by chance, so Recall@K over them is K/N whatever the
      scores. It fails where a figure so far out has a probability below FALSE_ALARM, by Hoeffding's bound
      2 exp(-n KL(found, K/N)) (1963, theorem 1), which holds under ties and for rows that depend on earlier draws;
    - constant_scorer: the evaluator gives a scorer without opinion Recall@K = K/N.

    K is 5, or what the model can be scored at. The model is asked for scores and nothing else. `histories` are those
    to test with, made here where the data has users and none are given; `name` says in errors which model it is.
    Raises `InputError` where no test session has two events.
    """
    rng = np.random.default_rng(seed)
    log = _sample(data.test, n_sessions, max_scores, rng)
    batch = _first_events(log.batch(), MOST_EVENTS)
    if data.test.user is not None:
        # `UserHistories.of` is None without users alone.
        batch = cast("UserHistories", histories or UserHistories.of(data, "test")).attach(batch)
    length = np.diff(batch.offset)
    known = rng.integers(1, length)
    changed, redrawn = _other_futures(batch, known, log.n_items, rng)
    target, middle = batch.target_events(), batch.n_sessions // 2
    row_session, row_events = np.repeat(log.session_id, length - 1), _position(batch)[target]
    early, late = row_events <= np.repeat(known, length - 1), np.flatnonzero(redrawn[target])
    judged = f"{batch.n_sessions} test sessions, {batch.n_rows} rows"
    record = _Record(f"{name or type(model).__name__}: honesty check {{!r}} failed on {judged}: found {{}}; {_REMEDY}")

    def score(sessions: SessionBatch) -> np.ndarray:
        given: Any = model.score_sessions(_copy(sessions))
        shape, found = (sessions.n_rows, log.n_items), tuple(getattr(given, "shape", ()))
        record("shape", found == shape, f"scores of shape {found}, expected {shape}", f"[P, {log.n_items}], {judged}")
        scores = _as_numpy(given)
        fault = _finite_fault(scores)
        record("finite", not fault, f"{fault}, expected finite numbers or -inf", "no NaN or +inf")
        return scores

    def agree(check: str, found: np.ndarray, which: np.ndarray | slice, tolerance: float, when: str) -> None:
        expected = first[which]
        fault = ""
        if _gap(found, expected) > tolerance:
            gaps = [_gap(found[[row]], expected[[row]]) for row in range(len(found))]
            row = int(np.argmax(gaps))
            where = f"session {row_session[which][row]}, after {row_events[which][row]} events"
            fault = f"scores that change by {gaps[row]:.2g} of the largest {when} ({where}), expected the same"
        how = f"within {tolerance:g}" if tolerance else "bit for bit"
        record(check, not fault, fault, f"{len(found)} rows the same {how} {when}")

    first, other = score(batch), score(changed)
    agree("repeatable", score(batch), slice(None), 0, "when asked again after others")
    agree("future", other[early], early, 0, "when the events behind them change")
    agree("length", score(_first_events(batch, known + 1)), early, TOLERANCE, "when the session ends sooner")
    for half in (slice(0, middle), slice(middle, batch.n_sessions)) if middle else ():
        rows = slice(*(batch.offset[[half.start, half.stop]] - [half.start, half.stop]))
        agree("batch_mates", score(batch.part(half.start, half.stop)), rows, TOLERANCE, "without half of their batch")
    k = min(max_k_of(model) or 5, 5, log.n_items)
    found = float(recall(*rank_bounds(other, late, changed.item[target[late]]), k).mean())
    _judge_chance(record, found, len(late), _constant_recall(log, k, max_scores), k, log.n_items)
    return record.measured


class _Record:
    """What was measured, by check, until one fails."""

    def __init__(self, message: str) -> None:
        self.message = message
        self.measured: dict[str, str] = {}

    def __call__(self, check: str, passed: bool, fault: str, measured: str) -> None:
        if not passed:
            raise HonestyError(self.message.format(check, fault), check)
        self.measured[check] = measured


def _judge_chance(record: _Record, found: float, n: int, constant: float, k: int, n_items: int) -> None:
    chance = k / n_items
    bound = _probability_bound(found, chance, n)
    figure = f"Recall@{k} {found:.4g} of {n} targets drawn by chance, expected {k}/{n_items} = {chance:.4g}"
    record(
        "permuted_targets",
        bound >= FALSE_ALARM,
        f"{figure} (probability below {bound:.1g})",
        f"{figure}; probability bound {min(bound, 1.0):.2g}, false alarm below {FALSE_ALARM:g}",
    )
    figure = f"Recall@{k} {constant:.4g} of a constant scorer, expected {chance:.4g}"
    record("constant_scorer", bool(np.isclose(constant, chance, rtol=1e-9)), figure, figure)


def _disjoint_sessions(data: PreparedData) -> tuple[str, str]:
    for i, one in enumerate(_SPLITS):
        for other in _SPLITS[i + 1 :]:
            shared = np.intersect1d(getattr(data, one).session_id, getattr(data, other).session_id)
            if len(shared):
                return (
                    "",
                    f"{len(shared)} session ids are in both {one} and {other}, such as {shared[0]}, expected none",
                )
    n_ids = sum(getattr(data, split).n_sessions for split in _SPLITS)
    return f"none of {n_ids:,} session ids is in two splits", ""


def _vocabulary(data: PreparedData) -> tuple[str, str]:
    train, n_known = data.train, data.train.n_train_items
    for split in _SPLITS[1:]:
        log = getattr(data, split)
        if log.n_train_items != n_known or not np.array_equal(log.item_id, train.item_id):
            return "", f"{split} numbers items otherwise than train, expected one vocabulary"
    occurs = np.bincount(train.item, minlength=train.n_items) > 0
    wrong = np.flatnonzero(occurs != (np.arange(train.n_items) < n_known))
    if len(wrong):
        does = "occurs" if occurs[wrong[0]] else "does not occur"
        return "", (
            f"item {train.item_id[wrong[0]]} (number {wrong[0]}) {does} in train, expected items 0..{n_known - 1} to "
            f"occur there and no others ({len(wrong)} items are affected)"
        )
    n_unseen = train.n_items - n_known
    if n_unseen and data.manifest.get("options", {}).get("unseen") == "drop":
        return "", f"{n_unseen} items do not occur in train, expected none with --unseen drop"
    return f"{n_known:,} items, all of train, and {n_unseen:,} of valid or test alone", ""


def _split_order(data: PreparedData) -> tuple[str, str]:
    options = data.manifest.get("options", {})
    if not options:
        return "not checked: the manifest does not say how the data was split", ""
    if options.get("random_split"):
        return "nothing to check: the split is random", ""
    per_user = options.get("user_split", "none") != "none"
    if per_user and data.train.user is None:
        return "", "the manifest says that the split is per user, but the splits have no users"
    pairs = ((data.train, data.valid), (data.valid, data.test), (data.train, data.test))
    by_start = per_user or options.get("split_at") == "start"
    wrong = max(_users_out_of_order(*pair) if per_user else _out_of_order(*pair, by_start) for pair in pairs)
    allowed = _removed_after_split(data)
    rule = "per user" if per_user else f"by time, at the {'start' if by_start else 'end'} of sessions"
    found = f"{wrong} {'users with sessions' if per_user else 'sessions'} out of order in a split {rule}"
    found = f"{found}, expected at most the {allowed} events removed after the split"
    return found, found if wrong > allowed else ""


def _out_of_order(earlier: SessionLog, later: SessionLog, by_start: bool) -> int:
    """The fewest sessions that would have to move."""
    before, after = (log.time[log.offset[:-1] if by_start else log.offset[1:] - 1] for log in (earlier, later))
    return int(min(np.count_nonzero(after <= before.max()), np.count_nonzero(before >= after.min())))


def _users_out_of_order(earlier: SessionLog, later: SessionLog) -> int:
    """How many users have a session in `later` that starts before one of theirs in `earlier`."""
    assert earlier.user is not None and later.user is not None
    n_users = 1 + int(max(earlier.user.max(), later.user.max()))
    newest, oldest = np.full(n_users, np.iinfo(np.int64).min), np.full(n_users, np.iinfo(np.int64).max)
    np.maximum.at(newest, earlier.user, earlier.time[earlier.offset[:-1]])
    np.minimum.at(oldest, later.user, later.time[later.offset[:-1]])
    return int(np.count_nonzero(newest > oldest))


def _removed_after_split(data: PreparedData) -> int:
    """Events: each may have been the one that its session was sorted by."""
    steps = data.manifest.get("steps", [])
    place = next((i for i, step in enumerate(steps) if step["step"] == "train+valid"), 0)
    if not place:
        return 0
    return steps[place - 1]["events"] - sum(getattr(data, split).n_events for split in _SPLITS)


def _overlap(data: PreparedData) -> tuple[str, str]:
    overlap = data.manifest.get("overlap")
    if not overlap:
        return "not known: the manifest does not say", ""
    shares = [f"{100 * overlap[split]['share']:.2f} % of {split}" for split in _SPLITS[1:]]
    return f"{' and '.join(shares)} sessions have {overlap['content']} as one of train", ""


def _sample(log: SessionLog, n_sessions: int, max_scores: int, rng: np.random.Generator) -> SessionLog:
    usable = np.flatnonzero(log.length >= 2)
    if len(usable) == 0:
        raise InputError(
            f"{log.path or 'check_model'}: none of the {log.n_sessions} test sessions has two events, so there is "
            "nothing to score; prepare longer sessions (--min-session-length 2)"
        )
    drawn = rng.permutation(usable)[:n_sessions]
    rows = np.cumsum(np.minimum(log.length[drawn], MOST_EVENTS) - 1)
    return log.select(drawn[: max(2, int(np.searchsorted(rows, max_scores // log.n_items, side="right")))])


def _first_events(batch: SessionBatch, most: np.ndarray | int) -> SessionBatch:
    """The sessions, or each of them, cut to their first `most` events."""
    length = np.diff(batch.offset)
    most = np.minimum(length, most)
    kept = _position(batch) < np.repeat(most, length)
    columns = {name: getattr(batch, name)[kept] for name in ("item", "kind", "time")}
    return replace(batch, **columns, offset=np.concatenate([[0], np.cumsum(most)]))


def _other_futures(
    batch: SessionBatch, known: np.ndarray, n_items: int, rng: np.random.Generator
) -> tuple[SessionBatch, np.ndarray]:
    """The batch with everything behind the first `known` [S] events of each session drawn anew; which events these are.

    Items are uniform over the catalogue, so that nothing that is known says anything about them.
    """
    changed = _copy(batch)
    length = np.diff(batch.offset)
    future = _position(batch) >= np.repeat(known, length)
    changed.item[future] = rng.integers(n_items, size=np.count_nonzero(future))
    changed.kind[future] = 1 - changed.kind[future]
    pause = np.cumsum(np.where(future, rng.integers(1, _HOUR, size=len(future)), 0))
    changed.time[:] += pause - np.repeat(pause[batch.offset[:-1]], length)
    return changed, future


def _position(batch: SessionBatch) -> np.ndarray:
    """[E] place of each event in its session, from 0."""
    return np.arange(len(batch.item)) - np.repeat(batch.offset[:-1], np.diff(batch.offset))


def _probability_bound(found: float, chance: float, n: int) -> float:
    """Of a mean of n values in 0..1, of expectation `chance` whatever came before, at least as far out as `found`."""
    from scipy.special import rel_entr

    return 2 * float(np.exp(-n * (rel_entr(found, chance) + rel_entr(1 - found, 1 - chance))))


class _Constant:
    """A scorer without opinion."""

    def __init__(self, n_items: int) -> None:
        self.n_items = n_items

    def score_sessions(self, batch: SessionBatch) -> np.ndarray:
        return np.zeros((batch.n_rows, self.n_items), dtype=np.float32)


def _constant_recall(log: SessionLog, k: int, max_scores: int) -> float:
    """As the evaluator gives it, over the items of train; K/N where there are none to predict."""
    events = rank_events(cast("Recommender", _Constant(log.n_items)), log, max_scores=max_scores)
    low, high = (events[name].to_numpy()[events["seen"].to_numpy()] for name in ("rank_low", "rank_high"))
    return float(recall(low, high, k).mean()) if len(low) else k / log.n_items
