"""Which sessions are train, valid and test: by time, by chance, or by their place among the sessions of their user."""

from __future__ import annotations

import numpy as np

from .cuts import DAY
from .options import PrepareOptions
from .sessions import Sessions

SPLITS = ("train", "valid", "test")

PER_USER_NOTE = (
    "The split is per user, not a cut in time: a test session may come before a training session of another user."
)

_TRAIN, _VALID, _TEST = range(3)


def split_numbers(sessions: Sessions, user: np.ndarray | None, options: PrepareOptions, ordered: bool) -> np.ndarray:
    """[S] int8 places in `SPLITS`, of which any may go to no session. `user` [S] is needed for a split per user."""
    if options.user_split != "none":
        assert user is not None
        return _by_user(user, options)
    if options.random_split is not None:
        groups = sessions.content(ordered) if options.split_by == "content" else np.arange(sessions.n)
        return _drawn(groups, options.random_split, np.random.default_rng((options.seed, 0)))
    return _by_time(sessions.start if options.split_at == "start" else sessions.end, options)


def describe_split(options: PrepareOptions) -> str:
    """The rule in words, for the manifest."""
    if options.user_split != "none":
        newest = "the last" if options.user_split == "last" else f"the newest {options.user_test:g}, rounded up,"
        return f"per user, sessions in order of start: {newest} is test, the {options.user_valid} before it valid"
    if options.random_split is None:
        place, newest = ("first", "newest session start") if options.split_at == "start" else ("last", "newest event")
        return (
            f"by time: test is the sessions whose {place} event is within {options.test_days:g} days before the "
            f"{newest}, valid the same with {options.valid_days:g} days in what remains"
        )
    shares = " / ".join(f"{share:g}" for share in options.random_split)
    unit = "sessions" if options.split_by == "session" else "groups of sessions with identical content"
    return f"random {unit}, {shares} of the sessions, seed {options.seed}"


def empty_split(name: str, sessions: Sessions, options: PrepareOptions, source: str) -> str:
    """The error for a split that came out empty."""
    if options.user_split != "none":
        remedy = "its sessions hold too few items that train holds too; give --unseen keep or loosen the filters"
    elif options.random_split is not None:
        remedy = "too few sessions for these shares; change --random-split or loosen the filters"
    else:
        days = (int(sessions.time.max()) - int(sessions.time.min())) / DAY
        remedy = (
            f"the events span {days:.3g} days and --test-days {options.test_days:g} --valid-days "
            f"{options.valid_days:g} leave it nothing; shorten these or loosen the filters (--unseen keep)"
        )
    return f"{source}: the {name} split is empty ({sessions.n} sessions before the split): {remedy}"


def _by_time(moment: np.ndarray, options: PrepareOptions) -> np.ndarray:
    split = np.full(len(moment), _TRAIN, dtype=np.int8)
    split[moment >= moment.max() - round(options.test_days * DAY)] = _TEST
    rest = split == _TRAIN
    if rest.any():
        newest = moment[rest].max()
        split[rest & (moment >= newest - round(options.valid_days * DAY))] = _VALID
    return split


def _by_user(user: np.ndarray, options: PrepareOptions) -> np.ndarray:
    """Sessions are in order of start; no user has fewer of them than `user_valid` + 2."""
    by_user = np.argsort(user, kind="stable")
    _, first, n = np.unique(user[by_user], return_index=True, return_counts=True)
    if options.user_split == "last":
        n_test = np.ones_like(n)
    else:
        # 0.8 of 5 is 4 sessions, whatever binary fractions make of it.
        n_known = np.floor((1 - options.user_test) * n + 1e-9).astype(np.int64)
        n_test = np.clip(n - n_known, 1, n - options.user_valid - 1)
    from_the_last = np.repeat(first + n - 1, n) - np.arange(len(user))
    n_test = np.repeat(n_test, n)
    split = np.empty(len(user), dtype=np.int8)
    split[by_user] = np.select([from_the_last < n_test, from_the_last < n_test + options.user_valid], [_TEST, _VALID])
    return split


def _drawn(groups: np.ndarray, shares: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    """[S] split numbers: groups in random order are dealt until each split has its share of the sessions."""
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    order = rng.permutation(len(size))
    before = np.empty(len(size), dtype=np.int64)
    before[order] = np.cumsum(size[order]) - size[order]
    bounds = np.rint(np.cumsum(shares)[:2] * len(groups))
    return np.searchsorted(bounds, before, side="right").astype(np.int8)[group]
