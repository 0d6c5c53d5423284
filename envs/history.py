"""User histories: the sessions that a user had before, attached to the batches that a recommender is shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

import numpy as np

from ..errors import InputError
from .log import PreparedData, SessionBatch, SessionLog, _events_of


class UserHistories:
    """Which sessions of some logs each user had, and when they ended.

    The logs, of one vocabulary, are those whose sessions may be read: train and valid to validate, all three to test.
    Their events are copied once, by user and end, so that a history is a slice of them, which no model can write to.
    Raises `InputError` for a log without users and for logs of different vocabularies.
    """

    def __init__(self, *logs: SessionLog) -> None:
        users = [log.user for log in logs if log.user is not None]
        if len(users) < len(logs) or not logs:
            raise InputError(
                f"user histories: expected logs with users, found {len(logs)}, {len(users)} of them with users; "
                "prepare the data with its users"
            )
        if len({log.n_items for log in logs}) > 1:
            found = ", ".join(str(log.n_items) for log in logs)
            raise InputError(
                f"user histories: expected one vocabulary, found logs of {found} items; use splits of one folder"
            )
        user, end = np.concatenate(users), np.concatenate([log.time[log.offset[1:] - 1] for log in logs])
        order = np.lexsort((end, user))
        offset = np.zeros(len(end) + 1, dtype=np.int64)
        np.cumsum(np.concatenate([log.length for log in logs]), out=offset[1:])
        events, offset = _events_of(offset, order)
        columns = ([log.item for log in logs], [log.kind for log in logs], [log.time for log in logs])
        item, kind, time = (np.concatenate(column)[events] for column in columns)
        user, end = user[order], end[order]
        for column in (item, kind, time, user):
            column.flags.writeable = False
        self._all = SessionBatch(item, kind, time, offset, user)
        self._moments = np.unique(end)
        self._key = self._keys(user, np.searchsorted(self._moments, end))

    @classmethod
    def of(cls, data: PreparedData, split: Literal["train", "valid", "test"]) -> Self | None:
        """The histories to validate or to test with: those of all splits up to `split`; None without users."""
        splits = ("train", "valid", "test")
        logs = [getattr(data, name) for name in splits[: splits.index(split) + 1]]
        return None if data.train.user is None else cls(*logs)

    def attach(self, batch: SessionBatch) -> SessionBatch:
        """The batch with `history`: for each session those of its user that ended before it starts, oldest end first.

        A session that ends in the very moment in which another starts is not before it. A user without such sessions
        has a history of no session. Raises `InputError` for a batch without users.
        """
        if batch.user is None:
            raise InputError("user histories: the batch has no users; give sessions of a log with users")
        n_ended = np.searchsorted(self._moments, batch.time[batch.offset[:-1]])
        first = np.searchsorted(self._key, self._keys(batch.user, np.zeros_like(n_ended)))
        stop = np.searchsorted(self._key, self._keys(batch.user, n_ended))
        return replace(batch, history=tuple(map(self._all.part, first.tolist(), stop.tolist())))

    def _keys(self, user: np.ndarray, moment: np.ndarray) -> np.ndarray:
        """[S] int64 that sort by user, then by the number of the moment."""
        return user.astype(np.int64) * (len(self._moments) + 1) + moment
