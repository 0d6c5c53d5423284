"""The intra-session RNN, its packed GRU, and what both RNNs share: training, resuming, saving."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym.baselines import rnn
from sessiongym.baselines.ii_rnn import IIRNN
from sessiongym.baselines.rnn import RNN
from sessiongym.baselines.rnn_config import RNN_PRESETS, IIRNNConfig, RNNConfig
from sessiongym.envs.log import SessionLog
from sessiongym.errors import InputError
from sessiongym.evaluate.protocol import check_recommender
from sessiongym.nn import training
from sessiongym.nn.gru import pack, run_gru, seeded_gru
from torch import nn

N = 12
SMALL = {"hidden_units": 6, "batch_size": 8, "epochs": 3, "patience": 9}
MODELS = {
    "rnn": lambda: RNN(RNNConfig(**SMALL)),
    "ap": lambda: IIRNN(IIRNNConfig(**SMALL, representation="average")),
    "lhs": lambda: IIRNN(IIRNNConfig(**SMALL, representation="last_hidden", sessions_read=2)),
    "recomputed": lambda: IIRNN(IIRNNConfig(**SMALL, recompute=True, sessions_read=2)),
}


@pytest.fixture(autouse=True)
def one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def log():
    rng = np.random.default_rng(4)
    sessions = np.repeat(np.arange(90), rng.integers(1, 9, 90))
    frame = pd.DataFrame(
        {
            "session": sessions,
            "item": rng.integers(0, N, len(sessions)),
            "time": sessions * 10**12 + rng.integers(0, 10**12, len(sessions)),
            "kind": 0,
            "user": (sessions * 7 % 23) ** 2 // 40,
        }
    )
    return SessionLog.from_pandas(frame, item_id=np.arange(N))


def weights(model):
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def begun(model, log):
    model.n_items = log.n_items
    model.trained = model.build(log.n_items)
    trainer = model.trainer(model.trained, log)
    trainer.begin(0, fresh=True)
    return trainer


@settings(deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=9))
def test_packing_holds_every_event_once_step_by_step(length):
    length = np.array(length)
    first = np.cumsum(length) - length
    packing = pack(first, length)
    step = packing.event - first[packing.sequence]
    assert sorted(packing.event) == list(range(length.sum()))
    assert (np.diff(step) >= 0).all() and packing.size.tolist() == np.bincount(step).tolist()
    assert (packing.last == (step == length[packing.sequence] - 1)).all()
    # Of each step the sequences are the first ones of the step before, in the same order.
    start = np.cumsum(packing.size) - packing.size
    for a, b, n in zip(start[:-1], start[1:], packing.size[1:], strict=True):
        assert (packing.sequence[a : a + n] == packing.sequence[b : b + n]).all()


@pytest.mark.parametrize("from_zero", [False, True])
@pytest.mark.parametrize(("units", "dtype"), [(5, torch.float64), (5, torch.float32), (100, torch.float32)])
def test_gru_and_its_gradients_are_those_of_the_module_run_on_each_sequence_alone(units, dtype, from_zero):
    # float32 on the CPU runs compiled loops; what they are held to is computed in float64.
    generator = torch.Generator().manual_seed(0)
    gru = seeded_gru(units, generator).to(dtype)
    length = np.array([3, 1, 6, 6, 2])
    inputs = torch.randn(18, units, generator=generator, dtype=dtype, requires_grad=True)
    initial = torch.randn(5, units, generator=generator, dtype=dtype) * (not from_zero)
    initial.requires_grad_(not from_zero)
    packing = pack(np.cumsum(length) - length, length)
    weight = torch.randn(18, units, generator=generator, dtype=dtype)
    outputs, last = run_gru(gru, inputs[torch.from_numpy(packing.event)], packing, None if from_zero else initial)
    wanted = [inputs, *gru.parameters(), *([] if from_zero else [initial])]
    found = torch.autograd.grad((outputs * weight).sum() + last.square().sum(), wanted)

    exact = copy.deepcopy(gru).double()
    x, h = (part.detach().double().requires_grad_(part.requires_grad) for part in (inputs, initial))
    alone = [exact(part, h[s : s + 1])[0] for s, part in enumerate(x.split(length.tolist()))]
    expected, ends = torch.cat(alone)[torch.from_numpy(packing.event)], torch.stack([part[-1] for part in alone])
    wanted = [x, *exact.parameters(), *([] if from_zero else [h])]
    gradients = torch.autograd.grad((expected * weight).sum() + ends.square().sum(), wanted)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.0, "atol": 1e-12}
    for a, b in zip([outputs, last, *found], [expected, ends, *gradients], strict=True):
        torch.testing.assert_close(a.double(), b, **close)


def test_a_seeded_gru_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    one, two = (seeded_gru(4, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state()) and same(one.state_dict(), two.state_dict())


@pytest.mark.parametrize("rows", [3, 256])
def test_the_update_follows_the_mean_cross_entropy_of_every_real_next_event_and_nothing_else(log, rows, monkeypatch):
    monkeypatch.setattr(rnn, "ROWS", rows)
    model = RNN(RNNConfig(**SMALL, dropout=0.0))
    trainer = begun(model, log)
    network = model.network
    logits, targets = [], []
    for s in trainer.batches[0]:
        items = torch.from_numpy(log.item[log.offset[s] : log.offset[s + 1]].astype(np.int64))
        states, _ = network.intra(network.embedding[items[:-1]])
        logits.append(nn.functional.linear(states, network.output_weight, network.output_bias))
        targets.append(items[1:])
    expected = nn.functional.cross_entropy(torch.cat(logits), torch.cat(targets))
    gradients = torch.autograd.grad(expected, list(network.parameters()))
    loss, n_events = trainer.update(0)
    assert n_events == sum(map(len, targets)) and loss.item() == pytest.approx(expected.item() * n_events, rel=1e-5)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert parameter.grad is not None and torch.allclose(parameter.grad.to_dense(), gradient, atol=1e-6)


def test_an_epoch_walks_every_session_with_something_to_predict_once_in_an_order_of_its_own(log):
    trainer = begun(MODELS["rnn"](), log)
    first = np.concatenate(trainer.batches)
    assert len(trainer.batches) == trainer.n_updates
    assert sorted(first) == np.flatnonzero(log.length > 1).tolist()
    trainer.begin(1, fresh=True)
    assert (np.concatenate(trainer.batches) != first).any()


def test_dropout_acts_in_training_and_not_in_scoring(log):
    with_dropout, without = (
        RNN(RNNConfig(**{**SMALL, "epochs": 1}, dropout=dropout)).fit(log) for dropout in (0.5, 0.0)
    )
    assert not same(weights(with_dropout), weights(without))
    assert torch.equal(with_dropout.score_sessions(log.batch()), with_dropout.score_sessions(log.batch()))


def test_it_learns_which_item_follows_which():
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 10, 300)
    frame = pd.DataFrame(
        {
            "session": np.repeat(np.arange(300), 5),
            "item": ((starts[:, None] + 3 * np.arange(5)) % 10).ravel(),
            "time": np.arange(1500),
            "kind": 0,
        }
    )
    log = SessionLog.from_pandas(frame, item_id=np.arange(10))
    model = RNN(RNNConfig(hidden_units=16, batch_size=10, epochs=10, learning_rate=0.01, dropout=0.0)).fit(log)
    batch = log.batch()
    assert model.score_sessions(batch).argmax(1).tolist() == batch.item[batch.target_events()].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_keeps_to_the_protocol(log, name):
    check_recommender(MODELS[name]().fit(log), log)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(log, name):
    first, second, other = (MODELS[name]() for _ in range(3))
    other.seed = 1
    torch.manual_seed(0)
    first.fit(log)
    torch.manual_seed(1)
    assert same(weights(first), weights(second.fit(log)))
    assert not same(weights(first), weights(other.fit(log)))


@pytest.mark.parametrize("name", MODELS)
def test_a_training_interrupted_in_an_epoch_and_continued_equals_one_left_alone(log, name, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(training, "UPDATES_PER_REPORT", 1)
    alone = MODELS[name]().fit(log)
    n_updates = begun(MODELS[name](), log).n_updates
    # In the middle of the first epoch, and of the second, which the first continuation reaches.
    for stop in (n_updates // 2, n_updates + n_updates // 2 + 1):

        def stopping(done, total, text, stop=stop):
            if done == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            MODELS[name]().fit(log, folder=tmp_path, progress=stopping)
    assert same(weights(alone), weights(MODELS[name]().fit(log, folder=tmp_path)))


@pytest.mark.parametrize("name", MODELS)
def test_the_best_epoch_on_validation_is_kept_and_none_other(log, name):
    seen = []

    def validate(model):
        seen.append(weights(model))
        return [0.1, 0.3, 0.2][len(seen) - 1]

    model = MODELS[name]().fit(log, validate=validate)
    assert len(seen) == 3 and same(weights(model), seen[1])


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_scores_as_before(log, name, tmp_path):
    model = MODELS[name]().fit(log)
    model.save(tmp_path)
    loaded = type(model).load(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded.score_sessions(log.batch()), model.score_sessions(log.batch()))


def test_sessions_of_one_event_have_no_row(log):
    model = MODELS["rnn"]().fit(log)
    ones = log.select(np.flatnonzero(log.length == 1))
    assert model.score_sessions(ones.batch()).shape == (0, N)
    with pytest.raises(InputError, match="nothing can be predicted"):
        MODELS["rnn"]().fit(ones)


def test_an_item_outside_the_vocabulary_is_refused(log):
    frame = log.to_pandas().assign(item=N)
    with pytest.raises(InputError, match=f"items must be 0..{N - 1}"):
        MODELS["rnn"]().fit(log).score_sessions(SessionLog.from_pandas(frame, item_id=np.arange(N + 1)).batch())


@pytest.mark.parametrize(
    "change", [{"hidden_units": 0}, {"batch_size": 0}, {"dropout": 1.0}, {"learning_rate": 0.0}, {"epochs": 0}]
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(InputError, match=next(iter(change))):
        RNNConfig(**change)


def test_the_literal_presets_are_the_authors_settings():
    for presets in RNN_PRESETS.values():
        lastfm, reddit = presets["paper"], presets["reddit"]
        assert (lastfm.hidden_units, lastfm.dropout, lastfm.batch_size, lastfm.learning_rate) == (100, 0.2, 100, 1e-3)
        assert (reddit.hidden_units, reddit.dropout, reddit.batch_size, reddit.learning_rate) == (50, 0.0, 100, 1e-3)
        for config in (lastfm, reddit):
            assert not isinstance(config, IIRNNConfig) or (config.sessions_read, config.recompute) == (15, False)
