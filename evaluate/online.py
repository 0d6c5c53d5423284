"""Online learning (the IRN paper, figure 4 c and d): every training event is ranked first and learned from then, once.

One pass over the training sessions in the order of their start, several side by side. An event is ranked among all
items by a model that no update has shown that event, or any after it in its session: progressive validation (Blum,
Kalai & Langford 1999), also called prequential evaluation (Dawid 1984). Along the way the test split is ranked as well.
Nothing is selected, and no event is learned from twice.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, is_dataclass
from itertools import product
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..agents.config import AgentConfig
from ..agents.lanes import PartialRollout
from ..agents.recurrent import RecurrentAgent
from ..agents.training import OnlineTrainer
from ..envs.folders import SCHEMA, write_json
from ..envs.history import UserHistories
from ..envs.log import PreparedData, SessionBatch, SessionLog
from ..envs.replay import ReplayVectorEnv
from ..errors import InputError
from ..nn.checkpoint import Learner, load_checkpoint, part_of, prefixed, save_checkpoint
from ..nn.training import CHECKPOINT_SECONDS, UPDATES_PER_REPORT, Progress
from .events import SLICES, rank_events, slice_masks
from .metrics import metric_at
from .protocol import Recommender
from .ranks import rank_bounds

ONLINE_FORMAT = "sessiongym.online"
PLAN, STREAM, TEST, EVENTS = "online.json", "stream.parquet", "test.parquet", "events.parquet"

LANES, UNROLL = 16, 8
"""Sessions side by side, and events of each an update, for models that have no such numbers of their own: those of the
agents, so that the stream is the same."""


@runtime_checkable
class OnlineModel(Recommender, Protocol):
    """A `Recommender` that learns a few events at a time. `MostPopular` and `MostRecent` are; agents need not be.

    A run that goes on after an interruption calls `learn` again for all events before, so it must be deterministic.
    """

    def begin(self, n_items: int) -> object:
        """Forget everything; N items from now on."""
        ...

    def score_rows(self, batch: SessionBatch, rows: np.ndarray) -> np.ndarray | Tensor:
        """float32 [R, N], higher is better: those of the rows of ``score_sessions(batch)``."""
        ...

    def learn(self, batch: SessionBatch, rows: np.ndarray) -> object:
        """Learn from the targets of `rows` [R]; the sessions of the batch end with the newest of them."""
        ...


@dataclass(frozen=True)
class OnlineResult:
    """What `run_online` has written to `folder`. E events were ranked and learned from, P are in the test split."""

    folder: Path
    stream: pd.DataFrame
    """[E] in the order in which they were ranked: session int32 (index in the training split), position int32 (in the
    session, from 1), kind uint8, item int32, repeat bool (the item occurs earlier in the session), update int32 (how
    many updates the weights had that ranked it), rank_low and rank_high int32 (`rank_bounds`)."""
    test: pd.DataFrame
    """[moments P]: update int32 and events_learned int64 at the moment, event int32 (row of `events`), rank_low and
    rank_high int32."""
    events: pd.DataFrame
    """[P] the event table of the test split at the end, as `rank_events` gives it."""


def run_online(
    model: Recommender,
    data: PreparedData,
    *,
    folder: Path,
    progress: Progress | None = None,
    points: int = 20,
    max_scores: int = 2**24,
) -> OnlineResult:
    """One pass of `model`, which need not be fitted, over the training sessions; it ends with the last weights.

    Every event of ``data.train`` that has one before it in its session is ranked, then learned from, once. The test
    split is ranked at `points` moments, evenly spaced in events. The validation split has no part in it. At most
    `max_scores` floats are scored at once.

    Agents walk ``lanes`` sessions and learn from ``lanes x unroll`` events an update, at the learning rate that their
    configuration begins with; `order`, `learning_rate_end` and what chooses an epoch are of no account.

    `folder`, which must exist, gets ``online.json`` at once and at the end ``stream.parquet``, ``test.parquet`` and
    ``events.parquet``, each whole or not at all, and in between a checkpoint from which the same call goes on, with the
    same result bit for bit on the CPU. Raises `InputError` for a model that cannot learn this way (`check_online`), and
    where the folder holds another run.
    """
    if points < 1:
        raise InputError(f"points: expected at least 1 moment at which the test split is ranked, found {points}")
    if data.test.batch().n_rows == 0:
        raise InputError("online learning: the test split has no session of two events to rank; prepare a larger one")
    check_online(model)
    run = _Run(model, data, points, max_scores)
    _check_plan(folder, _plan(model, data, points))
    marks = load_checkpoint(folder, run)
    run.replay(marks.updates)
    saved_at, told = time.monotonic(), marks.updates - UPDATES_PER_REPORT
    while run.n_learned < run.stream.n_events:
        run.update()
        marks.updates += 1
        finished = run.n_learned == run.stream.n_events
        if progress is not None and (finished or marks.updates - told >= UPDATES_PER_REPORT):
            moments = f"test ranked {len(run.moments)} of {points} times"
            progress(run.n_learned, run.stream.n_events, f"online, {moments}")
            told = marks.updates
        if finished or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            save_checkpoint(folder, run, marks)
            saved_at = time.monotonic()
    result = OnlineResult(folder, run.stream_table(), run.test_table(), run.events())
    run.learner.finish()
    for name, frame in ((STREAM, result.stream), (EVENTS, result.events), (TEST, result.test)):
        _replace(folder / name, lambda file, frame=frame: frame.to_parquet(file, index=False))
    return result


def check_online(model: Recommender) -> None:
    """Raises `InputError` for a model that cannot be trained one event after the other."""
    agent = isinstance(model, RecurrentAgent) and isinstance(model.config, AgentConfig)
    if not (agent or isinstance(model, OnlineModel)):
        raise InputError(
            f"online learning: {type(model).__name__} is trained on a whole log at once; expected an A3C, IRN, PRN or "
            "LSTM agent, most-popular, most-recent, or a model with begin, score_rows and learn"
        )


def read_online(folder: Path) -> OnlineResult:
    """What a finished `run_online` has written. Raises `InputError` where there is none."""
    for name in (STREAM, TEST, EVENTS):
        if not (folder / name).exists():
            raise InputError(f"{folder / name}: not found, expected a finished online run; run the same command again")
    return OnlineResult(folder, *(pd.read_parquet(folder / name) for name in (STREAM, TEST, EVENTS)))


def online_curves(
    folder: Path,
    *,
    metrics: Sequence[str] = ("recall", "mrr"),
    ks: Sequence[int] = (5,),
    slices: Sequence[str] = SLICES,
    ties: str = "expected",
    window: int | None = None,
) -> pd.DataFrame:
    """Both curves of a finished run: one row for each moment, curve, slice, metric and K.

    curve "stream" or "test"; update and events_learned at the moment; slice, metric, k; value, a share of 1; n_events,
    how many it is the mean of. The stream's is the mean over those of the slice among the last `window` events learned
    from, each with the rank it had before; without a window, among those since the moment before, so that the points
    share no event. Where a slice has no event there, there is no row. Raises `InputError` for a window below 1.
    """
    if window is not None and window < 1:
        raise InputError(f"window: expected at least 1 event, found {window}")
    result = read_online(folder)
    n_test = len(result.events)
    moments = result.test[["update", "events_learned"]].to_numpy()[::n_test].tolist()
    masks = {"stream": slice_masks(result.stream), "test": slice_masks(result.events)}
    ranks = {
        "stream": result.stream[["rank_low", "rank_high"]].to_numpy().T,
        "test": result.test[["rank_low", "rank_high"]].to_numpy().T,
    }
    rows = []
    for curve in ("stream", "test"):
        learned_before = 0
        for number, (update, learned) in enumerate(moments):
            if curve == "stream":
                start = learned_before if window is None else max(learned - window, 0)
                ranked = described = slice(start, learned)
            else:
                ranked, described = slice(number * n_test, (number + 1) * n_test), slice(None)
            low, high = ranks[curve][:, ranked]
            among = {name: masks[curve][name][described] for name in slices}
            among = {name: mask for name, mask in among.items() if mask.any()}
            for metric, k in product(metrics, ks):
                value = metric_at(metric, low, high, k, ties)
                rows += [
                    (curve, update, learned, name, metric, k, float(value[mask].mean()), int(mask.sum()))
                    for name, mask in among.items()
                ]
            learned_before = learned
    columns = ["curve", "update", "events_learned", "slice", "metric", "k", "value", "n_events"]
    return pd.DataFrame(rows, columns=columns)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Chunk(PartialRollout):
    """A rollout of the stream, and what is to rank before it is learned from."""

    event: np.ndarray
    """[n] int64 rows of the log: the targets, step after step."""
    first: int
    """Events of the stream before it."""
    batch: SessionBatch
    """Their sessions so far, in the order of the log."""
    rows: np.ndarray
    """[n] int64 rows of the batch that have the targets, sorted by event."""


class _Learner(Learner, Protocol):
    """What `OnlineTrainer` makes of an agent, and `_Incremental` of an `OnlineModel`."""

    env: ReplayVectorEnv
    unroll: int
    n_ahead: int

    def score_rows(self, batch: SessionBatch, rows: np.ndarray) -> np.ndarray | Tensor: ...

    def learn(self, rollouts: Sequence[Any], /) -> None: ...

    def between(self) -> AbstractContextManager: ...

    def finish(self) -> None: ...


class _Incremental:
    """The learner around an `OnlineModel`, which is taught again what a checkpoint has behind it."""

    device, unroll, n_ahead = torch.device("cpu"), UNROLL, 0

    def __init__(self, model: OnlineModel, train: SessionLog) -> None:
        self.model, self.score_rows = model, model.score_rows
        self.env = ReplayVectorEnv(train, num_envs=LANES, window=1, feedback="logged")
        model.begin(train.n_items)

    def learn(self, chunks: Sequence[_Chunk]) -> None:
        for chunk in chunks:
            self.model.learn(chunk.batch, chunk.rows)

    def between(self) -> AbstractContextManager:
        return nullcontext()

    def finish(self) -> None:
        """The model is as it should be."""

    def state_tensors(self) -> dict[str, Tensor]:
        return {}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Nothing was saved."""


class _Stream:
    """The training sessions in the order of their start, through the lanes of an environment, chunk after chunk."""

    def __init__(self, env: ReplayVectorEnv, unroll: int) -> None:
        self.env, self.unroll, self.log = env, unroll, env.log
        self.sessions = np.flatnonzero(self.log.length >= 2)
        self.n_events = int((self.log.length[self.sessions] - 1).sum())
        self.session_of = np.repeat(np.arange(self.log.n_sessions, dtype=np.int32), self.log.length)
        self.newest = np.full(env.num_envs, -1, dtype=np.int64)
        """Of each lane, -1 where no session is left for it."""
        self.n_begun = self.n_given = 0
        """Sessions and events of the stream so far."""
        env.reset(seed=0)

    def next(self) -> _Chunk:
        """What comes next; at the end of the stream lanes run out of sessions, and after it all have."""
        rollout = self.env.rollout(self.unroll)
        event = np.empty(rollout.start.shape, dtype=np.int64)
        for step, starts in enumerate(rollout.start):
            # The queue of the environment: the next session to the lowest lane without. It would begin a second pass.
            lanes = np.flatnonzero(starts)
            taken = self.sessions[self.n_begun : self.n_begun + len(lanes)]
            self.n_begun += len(taken)
            self.newest[lanes[: len(taken)]] = self.log.offset[taken]
            self.newest[lanes[len(taken) :]] = -1
            self.newest[self.newest >= 0] += 1
            event[step] = self.newest
        real = event >= 0
        batch, rows = self._sessions_so_far(np.sort(event[real]))
        partly = None if real.all() else real
        chunk = _Chunk(**vars(rollout), real=partly, event=event[real], first=self.n_given, batch=batch, rows=rows)
        self.n_given += len(chunk.event)
        return chunk

    def _sessions_so_far(self, event: np.ndarray) -> tuple[SessionBatch, np.ndarray]:
        """The sessions of the sorted `event` [n] up to the newest of each, and the rows that they are targets of."""
        log, session = self.log, self.session_of[event]
        last = np.flatnonzero(np.diff(session, append=-1))
        first, stop = log.offset[session[last]], event[last] + 1
        spans = [np.arange(*span) for span in zip(first, stop, strict=True)]
        among = np.concatenate([np.zeros(0, dtype=np.int64), *spans])
        offset = np.concatenate([[0], np.cumsum(stop - first)])
        user = None if log.user is None else log.user[session[last]]
        batch = SessionBatch(log.item[among], log.kind[among], log.time[among], offset, user)
        return batch, np.flatnonzero(np.isin(among[batch.target_events()], event))


class _Run:
    """A pass in progress; as a `Learner` it can be checkpointed between two updates."""

    def __init__(self, model: Recommender, data: PreparedData, points: int, max_scores: int) -> None:
        self.model, self.data, self.points, self.max_scores = model, data, points, max_scores
        self.learner: _Learner = (
            _Incremental(model, data.train)
            if isinstance(model, OnlineModel)
            else OnlineTrainer(cast(RecurrentAgent, model), data.train)
        )
        self.device = self.learner.device
        self.stream = _Stream(self.learner.env, self.learner.unroll)
        self.histories = UserHistories.of(data, "test")
        n_events, n_targets = data.train.n_events, data.test.batch().n_rows
        self.ranked = torch.full((4, n_events), -1, dtype=torch.int32)
        """By training event: place in the stream, update, rank_low, rank_high; -1 where it is not ranked yet."""
        self.moments = torch.zeros((0, 2), dtype=torch.int64)
        """Updates and events learned from at the moments so far."""
        self.test_ranks = torch.zeros((0, 2, n_targets), dtype=torch.int32)
        """rank_low and rank_high there."""
        self.last_table: pd.DataFrame | None = None
        self.ends: list[int] = []
        """Events of the stream up to the end of each chunk that has come."""
        self.n_updates = 0

    @property
    def n_learned(self) -> int:
        """Events learned from so far."""
        return self.ends[self.n_updates - 1] if self.n_updates else 0

    def update(self) -> None:
        """Rank what the next update is the first to see, learn, and rank the test split if it is time."""
        due = self._moments_due()
        chunks = self._next_chunks()
        for chunk in chunks:
            self._rank(chunk)
        self.learner.learn(chunks)
        self.n_updates += 1
        if self._moments_due() > due:
            self._rank_test()

    def replay(self, n_updates: int) -> None:
        """Bring the stream to where it was after so many updates; ranks and weights are those of the checkpoint."""
        for _ in range(n_updates):
            chunks = self._next_chunks()
            if isinstance(self.learner, _Incremental):
                self.learner.learn(chunks)
            self.n_updates += 1

    def _moments_due(self) -> int:
        return self.n_learned * self.points // self.stream.n_events

    def _next_chunks(self) -> list[_Chunk]:
        chunks = [self.stream.next() for _ in range(1 if self.n_updates else 1 + self.learner.n_ahead)]
        self.ends += [chunk.first + len(chunk.event) for chunk in chunks]
        return chunks

    def _rank(self, chunk: _Chunk) -> None:
        """By the weights after the last update."""
        log, event = self.stream.log, np.sort(chunk.event)
        n_rows = max(1, self.max_scores // log.n_items)
        for start in range(0, len(event), n_rows):
            part = slice(start, start + n_rows)
            scores, target = self.learner.score_rows(chunk.batch, chunk.rows[part]), log.item[event[part]]
            self.ranked[2:, event[part]] = torch.from_numpy(
                np.stack(rank_bounds(scores, np.arange(len(target)), target))
            )
        self.ranked[0, chunk.event] = chunk.first + torch.arange(len(event), dtype=torch.int32)
        self.ranked[1, chunk.event] = self.n_updates

    def _rank_test(self) -> None:
        with self.learner.between():
            self.last_table = rank_events(
                self.model, self.data.test, train=self.data.train, histories=self.histories, max_scores=self.max_scores
            )
        ranks = torch.from_numpy(self.last_table[["rank_low", "rank_high"]].to_numpy(dtype=np.int32).T.copy())
        self.test_ranks = torch.cat([self.test_ranks, ranks[None]])
        self.moments = torch.cat([self.moments, torch.tensor([[self.n_updates, self.n_learned]])])

    def stream_table(self) -> pd.DataFrame:
        """As `OnlineResult` has it, of a finished pass."""
        log = self.stream.log
        place, update, low, high = self.ranked.numpy()
        ranked = np.flatnonzero(place >= 0)
        event = ranked[np.argsort(place[ranked])]
        session = self.stream.session_of
        repeat = pd.DataFrame({"session": session, "item": log.item}).duplicated().to_numpy()
        return pd.DataFrame(
            {
                "session": session[event],
                "position": (event - log.offset[session[event]] + 1).astype(np.int32),
                "kind": log.kind[event],
                "item": log.item[event],
                "repeat": repeat[event],
                "update": update[event],
                "rank_low": low[event],
                "rank_high": high[event],
            }
        )

    def test_table(self) -> pd.DataFrame:
        """As `OnlineResult` has it."""
        n_moments, _, n_events = self.test_ranks.shape
        update, n_learned = np.repeat(self.moments.numpy(), n_events, axis=0).T
        low, high = self.test_ranks.numpy().transpose(1, 0, 2).reshape(2, -1)
        return pd.DataFrame(
            {
                "update": update.astype(np.int32),
                "events_learned": n_learned,
                "event": np.tile(np.arange(n_events, dtype=np.int32), n_moments),
                "rank_low": low,
                "rank_high": high,
            }
        )

    def events(self) -> pd.DataFrame:
        """The event table of the test split by the last weights."""
        if self.last_table is None:
            # The pass was over when it was cut off.
            self.test_ranks, self.moments = self.test_ranks[:-1], self.moments[:-1]
            self._rank_test()
        assert self.last_table is not None
        return self.last_table

    def state_tensors(self) -> dict[str, Tensor]:
        """All but the stream, which `replay` brings to its place."""
        own = {"ranked": self.ranked, "moments": self.moments, "test_ranks": self.test_ranks}
        return prefixed("learner", self.learner.state_tensors()) | prefixed("run", own)

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `state_tensors` gave."""
        self.learner.load_state_tensors(part_of(tensors, "learner"))
        own = {name: tensor.cpu() for name, tensor in part_of(tensors, "run").items()}
        self.ranked, self.moments, self.test_ranks = own["ranked"], own["moments"], own["test_ranks"]


def _plan(model: Any, data: PreparedData, points: int) -> dict[str, Any]:
    """What makes a run this one."""
    config = getattr(model, "config", None)
    return {
        "format": ONLINE_FORMAT,
        "schema": SCHEMA,
        "model": type(model).__name__,
        "config": asdict(config) if is_dataclass(config) and not isinstance(config, type) else None,
        "seed": getattr(model, "seed", 0),
        "data": data.fingerprint(),
        "points": points,
    }


def _check_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Write the plan, or find the same one there."""
    file = folder / PLAN
    if not file.exists():
        _replace(file, lambda temporary: write_json(temporary, plan))
    elif json.loads(file.read_text(encoding="utf-8")) != json.loads(json.dumps(plan)):
        raise InputError(f"{file}: an online run of another model, data set or seed; remove the folder or give another")


def _replace(file: Path, write: Callable[[Path], object]) -> None:
    temporary = file.with_name(f".{file.name}")
    write(temporary)
    os.replace(temporary, file)
