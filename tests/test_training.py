"""Training: the same twice, the same after an interruption of any kind, and agents that keep to the protocol."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sessiongym.agents.a3c import A3CLearner
from sessiongym.agents.config import PRESETS
from sessiongym.agents.recurrent import RecurrentAgent
from sessiongym.envs.log import PURCHASE, SessionLog
from sessiongym.evaluate.events import purchase_recall
from sessiongym.evaluate.protocol import check_recommender
from sessiongym.nn import checkpoint, training

N = 20
NAMES = tuple(PRESETS["practical"])


def small(name, preset="practical", **changes):
    """A preset in its own shape, cut down to a few units and updates."""
    config = PRESETS[preset][name]
    dim = None if config.embedding_dim is None else 6
    size = {"hidden_units": 8, "embedding_dim": dim, "distilled_units": 4, "lanes": 4, "unroll": 4, "epochs": 4}
    schedule = {"refresh_events": 100, "imagination_start": min(config.imagination_start, 50)}
    return replace(config, **{**size, **schedule, **changes})


@pytest.fixture(autouse=True)
def one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def log():
    rng = np.random.default_rng(4)
    n_events = 700
    frame = pd.DataFrame(
        {
            "session": rng.integers(0, 150, n_events),
            "item": rng.integers(0, N, n_events),
            "time": rng.integers(0, 10**15, n_events),
            "kind": (rng.random(n_events) < 0.25).astype(int),
        }
    )
    return SessionLog.from_pandas(frame, item_id=np.arange(N))


def _score(agent):
    """Any figure that depends on the weights and rises and falls."""
    return float(agent.policy.head.bias.detach().sum().sin())


def _train(config, log, folder=None, seed=0, validate=_score):
    return RecurrentAgent(config, seed).fit(log, log, validate=validate, folder=folder)


def _assert_equal(a, b):
    for (name, x), y in zip(a.policy.state_dict().items(), b.policy.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("name", ["a3c-f", "irn-p"])
def test_a_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others(log, name):
    config = small(name, epochs=2)
    torch.manual_seed(1)
    first = _train(config, log)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002 - nothing may depend on the global state
    _assert_equal(first, _train(config, log))
    other = _train(config, log, seed=1)
    assert not torch.equal(first.policy.item_table, other.policy.item_table)


@pytest.mark.parametrize(
    ("name", "preset", "stopped_in"),
    [
        ("a3c-f", "practical", 1),
        ("a3c-f", "paper", 1),
        ("irn-p", "practical", 0),
        ("irn-p", "practical", 1),
        ("irn-p", "practical", 3),
        ("irn-p", "paper", 1),
    ],
)
def test_training_that_was_interrupted_ends_as_if_left_alone(log, tmp_path, name, preset, stopped_in):
    config = small(name, preset)
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    expected = _train(config, log, tmp_path / "whole")
    n_validated = 0

    def interrupted(agent):
        nonlocal n_validated
        n_validated += 1
        if n_validated > stopped_in:
            raise KeyboardInterrupt
        return _score(agent)

    with pytest.raises(KeyboardInterrupt):
        _train(config, log, tmp_path / "cut", validate=interrupted)
    _assert_equal(_train(config, log, tmp_path / "cut"), expected)
    whole, cut = ((tmp_path / part / "scalars.jsonl").read_text().splitlines() for part in ("whole", "cut"))
    assert cut == whole
    assert [json.loads(line)["epoch"] for line in cut] == list(range(4))


CONFIGS = [
    small("a3c-f", epochs=2),
    small("a3c-f", "paper", unroll=2, history=3, value_target="online", epochs=2),
    small("irn-p", kinds=True, epochs=2),
    small("irn-p", "paper", imagination_policy="distilled", epochs=2),
    small("prn-f", "paper", imagination_warmup=300, epochs=2),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.reconstruct} {c.imagination_policy} {c.history}")
def test_training_interrupted_in_an_epoch_goes_on_from_there(log, tmp_path, config, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    folders = tmp_path / "whole", tmp_path / "cut"
    for folder in folders:
        folder.mkdir()
    n_updates, stop_at = 0, None
    update = A3CLearner.update

    def counting(learner):
        nonlocal n_updates
        if n_updates == stop_at:
            raise KeyboardInterrupt
        update(learner)
        n_updates += 1

    monkeypatch.setattr(A3CLearner, "update", counting)
    expected = _train(config, log, folders[0])
    # In the first epoch, in a later one, and again a few updates after going on.
    n_whole, n_updates = n_updates, 0
    for stop_at in (3, n_whole // 2 + 1, n_whole // 2 + 4):  # noqa: B007 - `counting` reads it
        with pytest.raises(KeyboardInterrupt):
            _train(config, log, folders[1])
    stop_at = None
    _assert_equal(_train(config, log, folders[1]), expected)
    assert n_updates == n_whole
    whole, cut = (
        [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()] for folder in folders
    )
    assert cut == whole


def test_validation_leaves_training_its_number_of_threads(log):
    """The rank kernel runs on all cores, in the OpenMP runtime of torch; results depend on how many torch uses."""
    n_threads = []

    def validate(agent):
        score = purchase_recall(agent, log)
        n_threads.append(torch.get_num_threads())
        return score

    _train(small("a3c-p", epochs=2), log, validate=validate)
    assert n_threads == [1, 1]


def test_the_learning_rate_falls_to_its_end_over_the_events_of_the_whole_training(log, monkeypatch):
    config = small("a3c-p", "paper", learning_rate_end=0.25)
    rates = []
    update = A3CLearner.update

    def recording(learner):
        update(learner)
        rates.append(learner.optimizer.learning_rate)

    monkeypatch.setattr(A3CLearner, "update", recording)
    _train(config, log, validate=None)
    n_updates = len(rates)
    expected = config.learning_rate * (1 - 0.75 * np.arange(n_updates) / n_updates)
    np.testing.assert_allclose(rates, expected)


def test_max_events_ends_training_after_whole_epochs_but_not_before_the_first(log):
    n_epochs = []
    for max_events in (1, 1100, 10**6):
        seen = []
        _train(small("a3c-p", max_events=max_events), log, validate=lambda agent: seen.append(agent) or len(seen))  # noqa: B023
        n_epochs.append(len(seen))
    assert n_epochs == [1, 2, 4]


def test_a_finished_training_is_not_trained_again(log, tmp_path):
    expected = _train(small("a3c-p"), log, tmp_path)

    def never(agent):
        raise AssertionError("trained again")

    _assert_equal(_train(small("a3c-p"), log, tmp_path, validate=never), expected)
    assert len((tmp_path / "scalars.jsonl").read_text().splitlines()) == 4


def test_a_crash_while_the_checkpoint_is_written_leaves_the_one_before(log, tmp_path, monkeypatch):
    config = small("irn-p")
    expected = _train(config, log)
    save, n_saved = checkpoint.save_file, 0

    def failing(tensors, file, metadata):
        nonlocal n_saved
        n_saved += 1
        if n_saved == 3:
            file.write_bytes(b"half a file")
            raise OSError("no space left on device")
        save(tensors, file, metadata=metadata)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", failing)
        with pytest.raises(OSError, match="no space"):
            _train(config, log, tmp_path)
    _assert_equal(_train(config, log, tmp_path), expected)
    assert not list(tmp_path.glob("*.tmp"))
    assert len((tmp_path / "scalars.jsonl").read_text().splitlines()) == 4


KILLED = """
import os, signal, sys
import torch
from pathlib import Path
from sessiongym.agents.config import AgentConfig
from sessiongym.agents.recurrent import RecurrentAgent
from sessiongym.envs.log import SessionLog
from sessiongym.nn import training
import json

torch.set_num_threads(1)
training.CHECKPOINT_SECONDS = float(sys.argv[3])
folder = Path(sys.argv[1])
log = SessionLog.open(folder / "log")

def progress(done, total, text):
    if text.startswith("epoch 3/") and done % (total // 4) > 0:
        os.kill(os.getpid(), signal.SIGKILL)

config = AgentConfig(**json.loads(sys.argv[2]))
score = lambda agent: float(agent.policy.head.bias.detach().sum().sin())
RecurrentAgent(config).fit(log, log, validate=score, folder=folder, progress=progress)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("checkpoint_seconds", [-1.0, 60.0], ids=["from there", "from its beginning"])
def test_a_process_killed_in_an_epoch_goes_on_to_the_same_weights(log, tmp_path, checkpoint_seconds):
    # Small updates, so that an epoch has more than the twenty between two calls of `progress`.
    config = small("irn-p", lanes=4, unroll=2)
    saved = log.save(tmp_path / "log")
    arguments = [str(tmp_path), json.dumps(config.__dict__), str(checkpoint_seconds)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=os.environ, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len((tmp_path / "scalars.jsonl").read_text().splitlines()) == 2
    _assert_equal(_train(config, saved, tmp_path), _train(config, saved))
    assert [json.loads(line)["epoch"] for line in (tmp_path / "scalars.jsonl").open()] == list(range(4))


def test_early_stopping_keeps_the_weights_of_the_best_epoch(log):
    scores, seen = [0.1, 0.5, 0.2, 0.5, 0.4, 0.9], []

    def validate(agent):
        seen.append({name: weight.clone() for name, weight in agent.policy.state_dict().items()})
        return scores[len(seen) - 1]

    agent = _train(small("a3c-p", epochs=6, patience=2), log, validate=validate)
    # Epochs 2 and 3 are no better than epoch 1, so the one that would have been best is never trained.
    assert len(seen) == 4
    for name, weight in agent.policy.state_dict().items():
        assert torch.equal(weight, seen[1][name]), name
    assert not torch.equal(seen[1]["w_hh"], seen[3]["w_hh"])


def test_without_a_validation_score_the_last_epoch_stays(log):
    three = RecurrentAgent(small("a3c-p", epochs=3)).fit(log)
    seen = []
    _train(small("a3c-p", epochs=3), log, validate=lambda agent: seen.append(agent.policy.w_hh.clone()) or len(seen))
    assert torch.equal(three.policy.w_hh, seen[-1])


@pytest.mark.parametrize("drop", ["event", "reward", "click"])
def test_purchases_that_are_dropped_give_no_reward(log, drop, monkeypatch):
    rewards, bought = [], []
    start = A3CLearner.start

    def recording(learner, source):
        def fetch(n_steps):
            rollout = source(n_steps)
            rewards.append(rollout.reward)
            bought.append(rollout.kind == PURCHASE)
            return rollout

        start(learner, fetch)

    monkeypatch.setattr(A3CLearner, "start", recording)
    _train(small("a3c-p", epochs=1, density=0.4, drop=drop), log)
    share = np.mean(np.concatenate(rewards) > 0) / np.mean(log.kind[log.batch().target_events()] == PURCHASE)
    assert 0.2 < share < 0.6
    if drop == "reward":
        assert np.concatenate(bought).mean() > 2 * np.mean(np.concatenate(rewards) > 0)
    else:
        np.testing.assert_array_equal(np.concatenate(bought), np.concatenate(rewards) > 0)


@pytest.mark.parametrize("drop", ["event", "reward", "click"])
def test_purchase_rewards_of_density_zero_train_neither_policy_nor_value(log, drop):
    config = small("a3c-p", "paper", density=0.0, drop=drop, epochs=1)
    agent = _train(config, log)
    untrained = agent.build(N)
    assert torch.equal(agent.policy.head.table, untrained.head.table)
    assert torch.equal(agent.policy.head.bias, untrained.head.bias)
    assert torch.equal(agent.policy.value_bias, untrained.value_bias)


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("name", NAMES)
def test_a_trained_agent_of_every_preset_keeps_to_the_protocol(log, name, preset):
    agent = _train(small(name, preset, epochs=1), log)
    findings = check_recommender(agent, log, n_sessions=8)
    assert all(finding.passed for finding in findings)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_saved_agent_scores_as_it_did(log, tmp_path, preset):
    agent = _train(small("irn-p", preset, epochs=1), log, seed=3)
    agent.save(tmp_path)
    loaded = RecurrentAgent.load(tmp_path)
    assert (loaded.config, loaded.seed) == (agent.config, agent.seed)
    assert torch.equal(loaded.score_sessions(log.batch()), agent.score_sessions(log.batch()))


def test_scalars_tell_what_the_alarms_need(log, tmp_path):
    _train(small("irn-p", epochs=1), log, tmp_path)
    record = json.loads((tmp_path / "scalars.jsonl").read_text())
    assert {"advantage_mean", "advantage_negative_share", "imagination_loss"} <= set(record)
    assert {"advantage_share_-0.5_to_0", "gradient_norm_policy", "gradient_norm_imagination"} <= set(record)
    assert {"copy_last", "copy_earlier", "imagined_true", "imagined_bias", "validation"} <= set(record)
    assert all(np.isfinite(value) for value in record.values())


def test_a_log_without_a_validation_split_trains(log):
    agent = RecurrentAgent(small("lstm", epochs=1)).fit(log)
    assert agent.score_sessions(log.batch()).shape == (log.batch().n_rows, N)
