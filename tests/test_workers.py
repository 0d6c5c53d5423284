"""Asynchronous workers: one is the synchronous learner, several lose nothing, and whatever dies is told."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium.vector import AutoresetMode
from safetensors.torch import load_file
from sessiongym.agents import training as agents_training
from sessiongym.agents import workers
from sessiongym.agents.a3c import A3CLearner
from sessiongym.agents.config import PRESETS
from sessiongym.agents.recurrent import RecurrentAgent
from sessiongym.agents.training import training_env, updates_per_epoch
from sessiongym.agents.workers import AsynchronousTrainer
from sessiongym.cli import main
from sessiongym.envs.log import SessionLog
from sessiongym.envs.replay import ReplayVectorEnv
from sessiongym.errors import InputError
from sessiongym.nn.training import UPDATES_PER_REPORT

N = 20
EVENTS = 16
"""Of an update."""


def small(name, preset="practical", **changes):
    """A preset in its own shape, cut down to a few units and updates."""
    config = PRESETS[preset][name]
    dim = None if config.embedding_dim is None else 6
    size = {"hidden_units": 8, "embedding_dim": dim, "lanes": 4, "unroll": 4, "epochs": 2}
    schedule = {"refresh_events": 100, "imagination_start": min(config.imagination_start, 50)}
    return replace(config, **{**size, **schedule, **changes})


@pytest.fixture(autouse=True)
def one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(autouse=True)
def no_process_stays():
    yield
    assert multiprocessing.active_children() == []


@pytest.fixture(scope="module")
def log():
    """200 sessions of two to ten events and some of one, in which each item follows from the one before."""
    rng = np.random.default_rng(4)
    length = rng.integers(2, 11, 220)
    length[::11] = 1
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    frame = pd.DataFrame(
        {
            "session": np.repeat(np.arange(220), length),
            "item": (np.repeat(rng.integers(0, N, 220), length) + within) % N,
            "time": np.arange(length.sum()),
            "kind": (rng.random(length.sum()) < 0.25).astype(int),
        }
    )
    return SessionLog.from_pandas(frame, item_id=np.arange(N))


@pytest.fixture(scope="module")
def playable(log):
    return np.flatnonzero(log.length >= 2)


def _score(agent):
    """Any figure that depends on the weights and rises and falls."""
    return float(agent.policy.head.bias.detach().sum().sin())


def _train(config, log, folder=None, validate=_score, **options):
    return RecurrentAgent(config).fit(log, validate=validate, folder=folder, **options)


def _assert_equal(a, b):
    for (name, x), y in zip(a.policy.state_dict().items(), b.policy.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


def _scalars(folder):
    return [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("shard", [(0, 3), (2, 3)])
@pytest.mark.parametrize("order", ["chronological", "shuffled"])
@pytest.mark.parametrize("assignment", ["queue", "strided"])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_shard_is_replayed_as_a_log_of_every_wth_playable_session(log, playable, mode, assignment, order, shard):
    sessions = playable[shard[0] :: shard[1]]
    options = {"num_envs": 3, "assignment": assignment, "autoreset_mode": mode, "order": order, "feedback": "logged"}
    of_shard, of_log = ReplayVectorEnv(log, **options, shard=shard), ReplayVectorEnv(log.select(sessions), **options)
    found, expected = of_shard.reset(seed=5), of_log.reset(seed=5)
    pass_number = 0
    while pass_number == 0:
        (*values, info), (*expected_values, expected_info) = found, expected
        for a, b in zip(values, expected_values, strict=True):
            np.testing.assert_array_equal(a, b)
        told = expected_info.get("_session", np.ones(3, bool))
        np.testing.assert_array_equal(info["session"][told], sessions[expected_info["session"][told]])
        pass_number = expected_info["pass"].min()
        ended = values[2] if len(values) > 1 else np.zeros(3, bool)
        if mode == AutoresetMode.DISABLED and ended.any():
            found, expected = (env.reset(options={"reset_mask": ended}) for env in (of_shard, of_log))
        else:
            found, expected = (env.step(np.zeros(3, np.int64)) for env in (of_shard, of_log))


@pytest.mark.parametrize("n_workers", [1, 2, 7])
@pytest.mark.parametrize("density", [1.0, 0.5])
def test_the_shards_share_out_all_playable_sessions_and_an_epoch_walks_each_about_once(log, n_workers, density):
    config = small("a3c-p", density=density)
    visited = []
    for shard in ((w, n_workers) for w in range(n_workers)):
        env = training_env(config, log, 0, shard)
        _, info = env.reset(seed=0)
        sessions = set()
        while info["pass"].min() == 0:
            sessions.update(info["session"][info["pass"] == 0].tolist())
            *_, info = env.step(np.zeros(config.lanes, np.int64))
        n_decisions = (env.log.length[list(sessions)] - 1).sum()
        assert 0 <= n_decisions - updates_per_epoch(config, env.log, shard) * EVENTS < EVENTS
        visited += sessions
    assert sorted(visited) == np.flatnonzero(env.log.length >= 2).tolist()


@pytest.mark.parametrize(("name", "preset"), [("a3c-f", "paper"), ("irn-p", "practical")])
def test_one_worker_computes_bit_for_bit_what_the_synchronous_learner_does(log, tmp_path, name, preset):
    config = small(name, preset)
    folders = tmp_path / "synchronous", tmp_path / "worker"
    agents = []
    for folder, n_workers in zip(folders, (0, 1), strict=True):
        folder.mkdir()
        agents.append(_train(replace(config, workers=n_workers), log, folder))
    _assert_equal(*agents)
    assert _scalars(folders[1]) == _scalars(folders[0])
    synchronous, worker = (load_file(folder / "checkpoint.safetensors") for folder in folders)
    assert torch.equal(worker["generators"][0], synchronous["generator"])
    for key in synchronous:
        if key.startswith(("adam.", "imagining.adam.", "imagining.policy.", "target.", "counters")):
            assert torch.equal(worker[key], synchronous[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"imagination_policy": "distilled"}, {"history": 5}, {"density": 0.5}])
def test_one_worker_stopped_between_epochs_ends_as_the_synchronous_learner(log, tmp_path, changes):
    config = small("irn-p", **changes, epochs=3)
    expected, n_validated = _train(config, log), 0

    def interrupted(agent):
        nonlocal n_validated
        n_validated += 1
        if n_validated == 2:
            raise KeyboardInterrupt
        return _score(agent)

    with pytest.raises(KeyboardInterrupt):
        _train(replace(config, workers=1), log, tmp_path, validate=interrupted)
    assert multiprocessing.active_children() == []
    _assert_equal(_train(replace(config, workers=1), log, tmp_path), expected)


def test_workers_together_count_every_event_and_refresh_once_whenever_one_is_due(log):
    """Updates of two events and a refresh every five, so that the workers meet in the counting all the time."""
    config = small("irn-p", workers=2, lanes=2, unroll=1, refresh_events=5, imagination_start=10**9)
    learner = A3CLearner(config, N, 0, "cpu")
    # A tied network has no table to flush, so the call is free to count refreshes.
    n_refreshes = torch.zeros((), dtype=torch.int64).share_memory_()
    learner.optimizer.flush = partial(n_refreshes.add_, 1)  # type: ignore[method-assign,assignment]
    with AsynchronousTrainer(learner, log, 0) as trainer:
        told = list(trainer.updates(0))
        n_events = 2 * trainer.n_updates
    assert told == sorted(told) and told[-1] > trainer.n_updates - 2 * UPDATES_PER_REPORT
    assert learner.events == n_events
    # Due at the beginning of an update; nobody begins one after the last events.
    assert n_events // 5 - 1 <= int(n_refreshes) <= n_events // 5
    assert learner.metrics.sums["policy_log_probability"][1] > 0


@pytest.fixture(scope="module")
def killed(log, tmp_path_factory):
    """A training whose worker is killed in its second epoch, and the same call again."""
    folder, config = tmp_path_factory.mktemp("killed"), small("a3c-f", "paper", workers=2, epochs=4)
    # The value loss of so few units would leave the policy nothing to learn with.
    config = replace(config, policy_weight="one", value_gradient="stopped", learning_rate=0.01)
    victim = None

    def kill(done, total, text):
        nonlocal victim
        if victim is None and text.startswith("epoch 2/"):
            victim = multiprocessing.active_children()[0].pid
            os.kill(victim, signal.SIGKILL)

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.raises(BrokenExecutor) as error:
        _train(config, log, folder, validate=None, progress=kill)
    left = multiprocessing.active_children()
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    n_epochs = len(_scalars(folder))
    agent = _train(config, log, folder, validate=None)
    torch.set_num_threads(n_threads)
    return {
        "config": config,
        "folder": folder,
        "victim": victim,
        "message": str(error.value),
        "left": left,
        "files": files,
        "n_epochs": n_epochs,
        "agent": agent,
    }


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_worker_is_named_in_one_line_and_the_checkpoint_is_there(killed):
    pattern = (
        r"worker [12] of 2 \(process (\d+)\) was killed by signal 9 \(SIGKILL\), perhaps for want of memory, "
        r"in epoch 2 of 4; the same command goes on from the checkpoint of epoch 1"
    )
    match = re.fullmatch(pattern, killed["message"])
    assert match is not None and int(match[1]) == killed["victim"]
    assert killed["left"] == []
    assert killed["files"] == ["checkpoint.safetensors", "scalars.jsonl"]
    assert killed["n_epochs"] == 1


def test_the_same_call_finishes_what_a_killed_worker_left(killed):
    records = _scalars(killed["folder"])
    assert [record["epoch"] for record in records] == [0, 1, 2, 3]
    per_epoch = records[0]["events"]
    assert [record["events"] for record in records] == [per_epoch * n for n in (1, 2, 3, 4)]
    assert load_file(killed["folder"] / "checkpoint.safetensors")["counters"][0] == 4 * per_epoch


def test_two_workers_learn(killed, log):
    batch = log.batch()
    target = torch.from_numpy(batch.item[batch.target_events()].astype(np.int64))

    def loss(agent):
        return float(torch.nn.functional.cross_entropy(agent.score_sessions(batch), target))

    untrained = RecurrentAgent(killed["config"])
    untrained.policy = untrained.build(N)
    assert loss(untrained) > 2.8
    assert loss(killed["agent"]) < 2.0


def test_an_exception_in_a_worker_is_told(log, monkeypatch, capfd):
    def broken(*arguments):
        learner = A3CLearner(*arguments)
        learner.n_ahead = None  # type: ignore[assignment]
        return learner

    monkeypatch.setattr(agents_training, "A3CLearner", broken)
    with pytest.raises(BrokenExecutor) as error:
        _train(small("a3c-p", workers=1), log)
    assert re.fullmatch(
        r"worker 1 of 1 \(process \d+\) failed: TypeError: '<=' not supported .* in epoch 1 of 2; "
        r"the same command begins anew",
        str(error.value),
    )
    # Where, for whoever mends it.
    assert "in _returns" in capfd.readouterr().err


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_workers_on_another_device_than_the_cpu_are_refused(log, device):
    with pytest.raises(InputError, match=f"share parameters on the CPU only, found device {device}"):
        RecurrentAgent(small("a3c-p", workers=2), device=device).fit(log)


def test_more_workers_than_sessions_are_refused_before_anything_starts(log):
    with pytest.raises(InputError, match="expected at most as many shards as there are sessions"):
        _train(small("a3c-p", workers=log.n_sessions), log)


def test_too_little_shared_memory_is_told_before_it_kills(log, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=10**3)
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(InputError, match=r"expected 0 MB of shared memory for the learner, found 0 MB free"):
        _train(small("a3c-p", workers=2), log)


def test_a_finished_training_starts_no_process(log, tmp_path, monkeypatch):
    config = small("a3c-p", epochs=1)
    expected = _train(config, log, tmp_path)
    # As the checkpoint of one worker would have it.
    monkeypatch.setattr(AsynchronousTrainer, "_start", lambda self: pytest.fail("started"))
    monkeypatch.setattr(AsynchronousTrainer, "load_state_tensors", lambda self, t: self.learner.load_state_tensors(t))
    _assert_equal(_train(replace(config, workers=1), log, tmp_path), expected)


LONG = "a3c-p:workers=2,hidden_units=16,embedding_dim=16,epochs=200,patience=200"
PROC = Path("/proc")
needs_proc = pytest.mark.skipif(not (PROC / "self" / "stat").exists(), reason="finds processes through /proc")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shop"
    main(["shop", "--sessions", "200", "--items", "40", "--min-item-support", "1", "--out", str(folder)])
    return folder


@pytest.fixture
def start():
    """Starts the command as a process of a group of its own, as a shell does; nothing of it outlives the test."""
    started = []

    def call(*arguments):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # A shell starts what it runs in the background with SIGINT ignored, and so would every process from there on.
        heard = {"start_new_session": True, "preexec_fn": partial(signal.signal, signal.SIGINT, signal.SIG_DFL)}
        given = [sys.executable, "-m", "sessiongym", *map(str, arguments)]
        started.append(subprocess.Popen(given, **heard, **pipes))
        return started[-1]

    yield call
    for process in started:
        for pid in _group(process):
            os.kill(pid, signal.SIGKILL)


def _group(process):
    """{pid: command line} of the living members of the process's group."""
    members = {}
    for folder in PROC.glob("[0-9]*"):
        try:
            state, _, group = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:3]
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(group) == process.pid and state != "Z":
            members[int(folder.name)] = command
    return members


def _wait_until(condition, process=None):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        assert process is None or process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def _interrupt(process, workers=None):
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "Traceback" not in process.communicate()[1]


def _kill_parent(process, workers):
    process.kill()
    assert "Traceback" not in process.communicate(timeout=60)[1]


def _kill_worker(process, workers):
    os.kill(workers[0], signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in stderr
    *_, last = stderr.splitlines()
    assert re.match(rf"error: worker [12] of 2 \(process {workers[0]}\) was killed by signal 9 ", last)


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("disturb", [_interrupt, _kill_parent, _kill_worker])
def test_however_the_command_is_stopped_no_process_stays_and_it_goes_on(start, shop, tmp_path, disturb):
    out = tmp_path / "run"
    checkpoint = tmp_path / "run.partial" / "checkpoint.safetensors"
    process = start("train", LONG, "--data", shop, "--out", out)
    _wait_until(checkpoint.exists, process)
    workers = [pid for pid, command in _group(process).items() if "multiprocessing.spawn" in command]
    assert len(workers) == 2
    disturb(process, workers)
    _wait_until(lambda: not _group(process))
    n_epochs = len(_scalars(checkpoint.parent))
    assert sorted(p.name for p in checkpoint.parent.glob("*checkpoint*")) == [checkpoint.name]
    again = start("train", LONG, "--data", shop, "--out", out)
    _wait_until(lambda: len(_scalars(checkpoint.parent)) > n_epochs, again)
    assert [record["epoch"] for record in _scalars(checkpoint.parent)][: n_epochs + 1] == list(range(n_epochs + 1))
    _interrupt(again)


@needs_proc
@pytest.mark.slow
def test_workers_serve_in_comparisons_of_several_jobs_as_well(start, shop, tmp_path):
    model = "a3c-p:workers=2,hidden_units=16,embedding_dim=16,epochs=2"
    plan = "--data", shop, "--out", tmp_path / "out", "--models", model, "--seeds", 2, "--jobs", 2, "--no-references"
    process = start("compare", *plan)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert model in (tmp_path / "out" / "table.md").read_text()
    _wait_until(lambda: not _group(process))
