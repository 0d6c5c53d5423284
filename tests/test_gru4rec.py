"""GRU4Rec: its updates against a plain one, sessions side by side against sessions alone, and what it keeps to."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym.baselines.gru4rec import GRU4Rec, Negatives, session_parallel
from sessiongym.baselines.gru4rec_config import GRU4REC_PRESETS, GRU4RecConfig
from sessiongym.baselines.popularity import MostPopular
from sessiongym.envs.log import SessionLog
from sessiongym.errors import InputError
from sessiongym.evaluate.events import validation_recall
from sessiongym.evaluate.protocol import check_recommender
from sessiongym.nn import training
from torch.utils._python_dispatch import TorchDispatchMode

N = 23
DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
TINY = GRU4RecConfig(hidden_units=6, batch_size=4, n_sample=5, epochs=3, momentum=0.3)
BPR_MAX = replace(TINY, loss="bpr-max", sample_alpha=0.0)
CONFIGS = {
    "cross-entropy": TINY,
    "corrected": replace(TINY, logq=0.8, sample_alpha=0.7),
    "bpr-max": BPR_MAX,
    "bpr-max, no samples": replace(BPR_MAX, n_sample=0),
    "all items": replace(TINY, n_sample=None),
    "all items, separate": replace(TINY, n_sample=None, item_input="separate", embedding_dim=3),
    "separate": replace(TINY, item_input="separate", embedding_dim=3),
    "one-hot": replace(TINY, item_input="one-hot"),
    "adam": replace(TINY, optimizer="adam", learning_rate=0.01),
    "adam, separate": replace(BPR_MAX, optimizer="adam", learning_rate=0.01, item_input="separate"),
    "adam, all items": replace(TINY, optimizer="adam", learning_rate=0.01, n_sample=None),
}
DROPPING = replace(TINY, embedding_dropout=0.3, hidden_dropout=0.4, order="shuffled", n_sample=3)


@pytest.fixture(autouse=True)
def one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def log():
    """Sessions of one event to a dozen; the last items of the vocabulary never occur."""
    rng = np.random.default_rng(4)
    frame = pd.DataFrame(
        {
            "session": rng.integers(0, 40, 160),
            "item": rng.choice(N - 3, 160, p=np.arange(1, N - 2) / np.arange(1, N - 2).sum()),
            "time": rng.integers(0, 10**15, 160),
            "kind": (rng.random(160) < 0.25).astype(int),
        }
    )
    return SessionLog.from_pandas(frame, item_id=np.arange(N))


def _trainer(config, log, seed=0, sparse=True):
    model = GRU4Rec(config, seed)
    model.n_items, model.trained = log.n_items, model.build(log.n_items)
    trainer = model.trainer(model.trained, log)
    return model, trainer if sparse else type(trainer)(model.trained, config, log, seed, sparse=False)


def _frozen(config):
    """A learning rate so small that no weight changes."""
    return replace(config, learning_rate=1e-30)


def _assert_equal(a, b):
    for (name, x), y in zip(a.network.state_dict().items(), b.network.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), max_size=12), st.integers(1, 5), st.randoms(use_true_random=False))
def test_lanes_walk_every_session_once_from_its_first_event(lengths, n_lanes, random):
    offset = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    order = random.sample(range(len(lengths)), len(lengths))
    walk = session_parallel(offset, np.array(order, dtype=np.int64), n_lanes)
    last = set((offset[1:] - 1).tolist())
    assert sorted(walk.event) == [e for e in range(offset[-1]) if e not in last]
    sizes = np.diff(walk.step)
    assert (np.diff(sizes) <= 0).all() and (len(sizes) == 0 or sizes[0] <= n_lanes)
    begun = []
    for t in range(len(sizes)):
        for row in range(walk.step[t], walk.step[t + 1]):
            event, previous = walk.event[row], walk.previous[row]
            if previous < 0:
                assert event in offset
                begun.append(int(np.searchsorted(offset, event, side="right")) - 1)
            else:
                assert walk.event[walk.step[t - 1] + previous] == event - 1
    assert begun == [s for s in order if lengths[s] > 1]
    # A lane ends only when no session is left to begin.
    if len(begun) >= n_lanes and len(sizes):
        assert sizes[0] == n_lanes


@pytest.mark.parametrize("name", ["cross-entropy", "separate", "one-hot"])
def test_states_in_training_are_those_of_each_session_alone(log, name):
    # Neither carried over the end of a session, nor lost within one.
    model, trainer = _trainer(_frozen(CONFIGS[name]), log)
    walk = session_parallel(log.offset, np.arange(log.n_sessions), TINY.batch_size)
    alone = {}
    for s in range(log.n_sessions):
        states = model._states(log.batch(s, s + 1)).detach()
        alone.update(zip(range(log.offset[s], log.offset[s + 1] - 1), states, strict=True))
    n_carried = 0
    for done in trainer.updates(0):
        now = slice(walk.step[done - 1], walk.step[done])
        expected = torch.stack([alone[event] for event in walk.event[now]])
        torch.testing.assert_close(trainer.hidden[: len(expected)], expected)
        n_carried += np.count_nonzero(walk.previous[now] >= 0)
    assert n_carried > 40 and not trainer.hidden[-1].any()


def _plain_gru(p, x, h):
    size = h.shape[1]
    gates, from_state = x + p["gate_bias"], h @ p["w_hh"].T
    r, u = torch.sigmoid(gates + from_state)[:, : 2 * size].split(size, 1)
    c = torch.tanh(gates[:, 2 * size :] + r * from_state[:, 2 * size :])
    return u * h + (1 - u) * c


def _plain_loss(config, scores, targets, negatives, support):
    """Mean loss of [R, N] scores, row by row."""
    total = torch.zeros((), dtype=torch.float64)
    share, drawn = support / support.sum(), torch.where(support > 0, support**config.sample_alpha, 0)
    counts = config.batch_size * share + (config.n_sample or 0) * drawn / drawn.sum()
    for r, row in enumerate(scores):
        others = torch.cat([targets[:r], targets[r + 1 :], negatives])
        if config.n_sample is None:
            total = total - torch.log(row.softmax(0)[targets[r]])
        elif config.loss == "cross-entropy":
            candidates = torch.cat([targets[r : r + 1], others])
            o = row[candidates] - config.logq * counts[candidates].log()
            total = total - torch.log(torch.softmax(o, 0)[0])
        else:
            row = torch.where(row > 0, row, config.elu * torch.expm1(row))
            s, negative = row[others].softmax(0), row[others]
            total = total - torch.log((s * torch.sigmoid(row[targets[r]] - negative)).sum() + 1e-24)
            total = total + config.bpreg * (s * negative**2).sum()
    return total / len(targets)


def _plain_updates(config, log, model, n_updates):
    """The weights after some updates computed in double precision with dense gradients."""
    p = {name: x.detach().double().requires_grad_() for name, x in model.network.named_parameters()}
    gathered = {"output_table", "bias"} if config.n_sample is not None else set()
    state = {name: [torch.zeros_like(x), torch.zeros_like(x)] for name, x in p.items()}
    adam = torch.optim.Adam(p.values(), lr=config.learning_rate) if config.optimizer == "adam" else None
    support = torch.bincount(torch.tensor(log.item), minlength=log.n_items).double()
    negatives = Negatives(support, config.sample_alpha, config.n_sample or 0, model.seed, torch.device("cpu"))
    walk = session_parallel(log.offset, np.arange(log.n_sessions), config.batch_size)
    h = torch.zeros(0, config.hidden_units, dtype=torch.float64)
    for t in range(n_updates):
        now = slice(walk.step[t], walk.step[t + 1])
        items, targets = (torch.tensor(log.item[walk.event[now] + k], dtype=torch.int64) for k in (0, 1))
        before = torch.stack([h[k] if k >= 0 else torch.zeros(config.hidden_units) for k in walk.previous[now]])
        x = p["output_table" if config.item_input == "constrained" else "item_table"][items]
        h = _plain_gru(p, x if config.item_input == "one-hot" else x @ p["w_ih"].T, before.detach().double())
        scores = h @ p["output_table"].T + p["bias"].squeeze(1)
        loss = _plain_loss(config, scores, targets, negatives.of(t), support)
        for x in p.values():
            x.grad = None
        loss.backward()
        if adam is not None:
            adam.step()
            continue
        with torch.no_grad():
            for name, x in p.items():
                a, v = state[name]
                a += x.grad**2
                step = config.momentum * v - config.learning_rate * x.grad / (a + 1e-6).sqrt()
                lazy = name in gathered or name == "item_table"
                touched = x.grad.ne(0).any(1, keepdim=True) if lazy else torch.ones_like(x).bool()
                v.copy_(torch.where(touched, step, v))
                x += step * touched
    return p


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_updates_are_those_of_the_formulas(log, name, sparse):
    config = CONFIGS[name]
    model, trainer = _trainer(config, log, sparse=sparse)
    expected = _plain_updates(config, log, model, 6)
    updates = trainer.updates(0)
    for _ in range(6):
        next(updates)
    trainer.optimizer.flush()
    for parameter, x in model.network.named_parameters():
        np.testing.assert_allclose(x.detach(), expected[parameter].detach(), rtol=1e-3, atol=2e-5, err_msg=parameter)


class _LargestResult(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if "mm" in str(func):
            self.largest = max(self.largest, result.numel())
        return result


def test_a_sampled_update_scores_the_candidates_and_nothing_else(log):
    wide = SessionLog(log.item, log.kind, log.time, log.offset, log.session_id, np.arange(5000))
    _, trainer = _trainer(replace(TINY, optimizer="adagrad"), wide)
    updates = trainer.updates(0)
    next(updates)
    with _LargestResult() as products:
        next(updates)
    assert 0 < products.largest < 5000


@pytest.mark.parametrize("name", ["cross-entropy", "all items", "bpr-max, no samples"])
def test_the_loss_reported_is_the_mean_over_events_though_batches_shrink(log, name):
    config = _frozen(CONFIGS[name])
    _, trainer = _trainer(config, log)
    losses, sizes = [], []
    trainer.begin(0, fresh=True)
    for number in range(trainer.n_updates):
        loss, n = trainer.update(number)
        losses.append(loss.item())
        sizes.append(n)
    assert len(set(sizes)) > 1
    for _ in trainer.updates(0):
        pass
    taken = trainer.take()
    assert taken["events"] == sum(sizes)
    assert taken["loss"] == pytest.approx(sum(losses) / sum(sizes), rel=1e-6)


def test_without_samples_a_row_alone_is_not_trained_on_and_nothing_else_is_left_out(log):
    # Two sessions that begin together, one longer than the other.
    lengths = log.length
    two = log.select(np.array([lengths.argmax(), np.flatnonzero(lengths == 3)[0]]))
    _, trainer = _trainer(CONFIGS["bpr-max, no samples"], two)
    assert trainer.n_updates == 2
    assert _trainer(TINY, two)[1].n_updates == lengths.max() - 1 > 2


def test_dropout_acts_in_training_and_not_in_scoring(log):
    model, trainer = _trainer(replace(_frozen(TINY), hidden_units=200, hidden_dropout=0.4), log)
    next(trainer.updates(0))
    dropped = trainer.hidden[:-1].eq(0).double().mean().item()
    # 800 draws.
    assert dropped == pytest.approx(0.4, abs=5 * (0.24 / 800) ** 0.5)
    assert not model._states(log.batch()).eq(0).any()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_negatives_come_as_often_as_support_to_the_power_of_alpha_says(alpha):
    support = torch.tensor([4, 0, 1, 9, 0])
    negatives = Negatives(support, alpha, 50, 0, torch.device("cpu"))
    drawn = torch.cat([negatives.of(number) for number in range(200)])
    expected = np.where(support > 0, support.double().numpy() ** alpha, 0)
    expected /= expected.sum()
    share = torch.bincount(drawn, minlength=5).numpy() / len(drawn)
    assert not share[[1, 4]].any()
    np.testing.assert_allclose(share, expected, atol=5 * (0.25 / len(drawn)) ** 0.5)


def test_negatives_depend_on_seed_epoch_and_mini_batch_alone():
    def drawn(seed, epoch, number):
        negatives = Negatives(torch.ones(1000), 0.0, 20, seed, torch.device("cpu"))
        negatives.begin(epoch)
        return negatives.of(number).tolist()

    in_order = Negatives(torch.ones(1000), 0.0, 20, 0, torch.device("cpu"))
    assert [in_order.of(number).tolist() for number in range(150)][140] == drawn(0, 0, 140)
    others = [drawn(*place) for place in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 64))]
    assert len({tuple(x) for x in others}) == 5


def test_a_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others(log):
    torch.manual_seed(1)
    first = GRU4Rec(DROPPING).fit(log)
    torch.manual_seed(2)
    _assert_equal(first, GRU4Rec(DROPPING).fit(log))
    assert not torch.equal(first.network.w_hh, GRU4Rec(DROPPING, 1).fit(log).network.w_hh)


def _score(model):
    """Any figure that depends on the weights and rises and falls."""
    return float(model.network.bias.detach().sum().mul(100).sin())


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
@pytest.mark.parametrize("after", [3, 40])
def test_training_that_was_interrupted_ends_as_if_left_alone(log, tmp_path, monkeypatch, optimizer, after):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(training, "UPDATES_PER_REPORT", 1)
    config = replace(DROPPING, optimizer=optimizer, learning_rate=0.02)
    expected = GRU4Rec(config).fit(log, validate=_score)
    n_told = 0

    def interrupt(done, total, text):
        nonlocal n_told
        n_told += 1
        if n_told > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GRU4Rec(config).fit(log, validate=_score, folder=tmp_path, progress=interrupt)
    _assert_equal(GRU4Rec(config).fit(log, validate=_score, folder=tmp_path), expected)


@pytest.mark.parametrize("name", ["bpr-max", "all items, separate", "one-hot"])
def test_it_keeps_to_the_protocol_and_comes_back_from_a_folder(log, tmp_path, name):
    model = GRU4Rec(replace(CONFIGS[name], epochs=1)).fit(log)
    check_recommender(model, log)
    model.save(tmp_path)
    loaded = GRU4Rec.load(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded.score_sessions(log.batch()), model.score_sessions(log.batch()))


def _cycle():
    """Sessions that go round twelve items, from anywhere, for any while."""
    rng = np.random.default_rng(0)
    length = rng.integers(2, 9, 300)
    item = np.concatenate([(rng.integers(12) + np.arange(n)) % 12 for n in length])
    offset = np.concatenate([[0], np.cumsum(length)])
    return SessionLog(item, np.zeros(len(item)), np.arange(len(item)), offset, np.arange(300), np.arange(12))


@pytest.mark.parametrize(
    "name", ["corrected", "bpr-max", "bpr-max, no samples", "all items, separate", "one-hot", "adam"]
)
def test_it_learns_what_always_follows(name):
    log = _cycle()
    model = GRU4Rec(replace(CONFIGS[name], hidden_units=16, embedding_dim=None, batch_size=8, epochs=4)).fit(log)
    batch = log.batch()
    assert (model.score_sessions(batch).argmax(1).numpy() == batch.item[batch.target_events()]).all()


@pytest.mark.parametrize(("preset", "epochs"), [("paper", 1), ("irn", 2)])
def test_few_epochs_on_real_clicks_beat_popularity(preset, epochs):
    folder = DATA / "recsys15_clicks"
    if not folder.exists():
        pytest.skip(f"needs the recorded clicks in {folder}")
    frame = pd.read_csv(folder / "yoochoose-clicks-100k_train_full.txt", sep="\t")
    frame = frame.rename(columns=str.lower).rename(columns={"sessionid": "session", "itemid": "item"}).assign(kind=0)
    whole = SessionLog.from_pandas(frame.assign(time=(frame["time"] * 1e9).astype(np.int64)))
    log, held_out = (whole.select(np.arange(*span)) for span in ((0, 4000), (4000, 4500)))
    model = GRU4Rec(replace(GRU4REC_PRESETS[preset], epochs=epochs)).fit(log)
    assert validation_recall(model, held_out, "click") > validation_recall(MostPopular().fit(log), held_out, "click")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "top1"}, "loss must be one of"),
        ({"item_input": "both"}, "item_input must be one of"),
        ({"optimizer": "sgd"}, "optimizer must be one of"),
        ({"order": "sorted"}, "order must be one of"),
        ({"n_sample": -1}, "n_sample must be at least 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"elu": 0.0}, "elu must be"),
        ({"learning_rate": 0.0}, "learning_rate must be"),
        ({"logq": 1.5}, "logq must be 0..1"),
        ({"hidden_dropout": 1.0}, "hidden_dropout must be"),
        ({"loss": "bpr-max", "n_sample": None}, "bpr-max weighs sampled negatives"),
        ({"n_sample": 0, "batch_size": 1}, "batch_size must be at least 2"),
        ({"embedding_dim": 8}, "embedding_dim is for"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_a_setting_out_of_range_is_an_input_error(change, message):
    with pytest.raises(InputError, match=message):
        replace(GRU4RecConfig(), **change)


def test_a_log_with_nothing_to_learn_from_is_an_input_error(log):
    short = SessionLog(log.item[:3], log.kind[:3], log.time[:3], np.arange(4), np.arange(3), log.item_id)
    with pytest.raises(InputError, match="no mini-batch to learn from"):
        GRU4Rec(TINY).fit(short)
    longest = log.select(np.array([int(log.length.argmax())]))
    GRU4Rec(TINY).fit(longest)
    with pytest.raises(InputError, match="no mini-batch to learn from"):
        GRU4Rec(replace(TINY, n_sample=0)).fit(longest)
