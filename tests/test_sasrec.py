"""SASRec: gradients against finite differences of a network written by hand; what it reads, draws and remembers."""

# pyright: reportArgumentType=false, reportOptionalMemberAccess=false

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym.baselines.sasrec import (
    Pieces,
    SASRec,
    SASRecTrainer,
    corrected_cross_entropy,
    draw_unseen,
    pack,
    training_pieces,
)
from sessiongym.baselines.sasrec_config import SASREC_PRESETS, SASRecConfig
from sessiongym.envs.log import CLICK, PURCHASE, SessionLog
from sessiongym.errors import InputError
from sessiongym.evaluate.protocol import check_recommender
from sessiongym.nn import training
from sessiongym.nn.losses import weighted_negative_log_likelihood
from sessiongym.nn.optimizer import TableAdam

N = 6
CPU = torch.device("cpu")
LOSSES = ("softmax", "sampled", "binary")
TINY = SASRecConfig(hidden_units=4, blocks=2, heads=2, max_length=3, dropout=0.0, n_sample=5, batch_size=3, epochs=4)
SMALL = replace(TINY, hidden_units=8, max_length=6, dropout=0.3, n_sample=8, batch_size=16)


@pytest.fixture(autouse=True)
def one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def make_log(sessions, n_items=N, kinds=None):
    item = np.concatenate(sessions).astype(np.int32)
    return SessionLog(
        item=item,
        kind=np.full(len(item), CLICK) if kinds is None else np.concatenate(kinds),
        time=np.arange(len(item)),
        offset=np.cumsum([0, *map(len, sessions)]),
        session_id=np.arange(len(sessions)),
        item_id=np.arange(n_items),
    )


@pytest.fixture(scope="module")
def log():
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 15, 60)
    return make_log([rng.integers(0, N, n) for n in lengths], N, [rng.integers(0, 2, n) for n in lengths])


def _norm(x, weight, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def _hidden(p, config, item, kind):
    """[T, D] of one piece, a state at a time."""
    x = p["item_table"][item] * math.sqrt(config.hidden_units) + p["position_table"][: len(item)]
    if config.kinds:
        x = x + p["kind_table"][kind]
    size = config.hidden_units // config.heads
    for number in range(config.blocks):
        block = {name.split(".", 2)[2]: w for name, w in p.items() if name.startswith(f"blocks.{number}.")}
        y = _norm(x, block["attention_norm.weight"], block["attention_norm.bias"])
        query, key, value = (y @ block[name].T for name in ("queries", "keys", "values"))
        attended = np.zeros_like(x)
        for state in range(len(x)):
            for head in range(config.heads):
                part = slice(head * size, (head + 1) * size)
                weight = np.exp(key[: state + 1, part] @ query[state, part] / math.sqrt(size))
                attended[state, part] = weight / weight.sum() @ value[: state + 1, part]
        x = x + (attended @ block["mix"].T if config.heads > 1 else attended)
        y = _norm(x, block["feedforward_norm.weight"], block["feedforward_norm.bias"])
        inner = np.maximum(y @ block["inner"].T + block["inner_bias"], 0)
        x = x + inner @ block["outer"].T + block["outer_bias"]
    return _norm(x, p["output_norm.weight"], p["output_norm.bias"])


def _loss(p, config, log, pieces, drawn, expected):
    """[] mean over the states of `pieces`; `drawn` are the recorded negatives, `expected` [N] how often each is."""
    total, n_states = 0.0, 0
    for first, length in zip(pieces.first, pieces.length, strict=True):
        now = slice(first, first + length)
        logits = _hidden(p, config, log.item[now], log.kind[now]) @ p["item_table"].T + p["bias"]
        for row, target in zip(logits, log.item[first + 1 : first + length + 1], strict=True):
            match config.loss:
                case "softmax":
                    total += np.log(np.exp(row).sum()) - row[target]
                case "sampled":
                    others = sum(np.exp(row[j]) / expected[j] for j in drawn if j != target)
                    total += np.log(np.exp(row[target]) + others) - row[target]
                case "binary":
                    total += np.log1p(np.exp(-row[target])) + np.log1p(np.exp(row[drawn[n_states]]))
            n_states += 1
    return total / n_states


@pytest.mark.parametrize(
    "config",
    [
        *(replace(TINY, loss=loss) for loss in LOSSES),
        replace(TINY, heads=1, kinds=False, bias=False),
        replace(TINY, loss="sampled", sample_alpha=0.0, heads=1),
    ],
    ids=lambda c: f"{c.loss} heads={c.heads} kinds={c.kinds} alpha={c.sample_alpha}",
)
def test_gradients_are_those_of_the_loss_written_by_hand(log, config, monkeypatch):
    model = SASRec(config)
    trainer = model.trainer(model.build(N), log)
    drawn, draw = [], SASRecTrainer._draw
    monkeypatch.setattr(SASRecTrainer, "_draw", lambda self, packed: drawn.append(draw(self, packed)) or drawn[-1])
    trainer.begin(0, fresh=True)
    # The third update: weights have moved away from where ones and zeros hide mistakes.
    for number in range(2):
        trainer.update(number)
    trainer.optimizer.flush()
    p = {name: w.detach().numpy().astype(np.float64) for name, w in trainer.network.named_parameters()}
    loss, n_states = trainer.update(2)

    pieces = trainer.pieces.take(trainer.order[6:9])
    assert n_states == pieces.length.sum() > 3
    support = np.bincount(log.item, minlength=N) ** config.sample_alpha
    expected = config.n_sample * support / support.sum()
    recorded = drawn[-1].numpy() if drawn else None
    assert float(loss) / n_states == pytest.approx(_loss(p, config, log, pieces, recorded, expected), rel=1e-5)
    for name, parameter in trainer.network.named_parameters():
        found = np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.to_dense().numpy()
        if name == "bias" and not config.bias:
            assert not found.any()
            continue
        for place in np.ndindex(*parameter.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = p[name].copy()
                moved[place] += step
                ends.append(_loss({**p, name: moved}, config, log, pieces, recorded, expected))
            assert found[place] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=2e-5), (name, place)


def test_items_drawn_as_often_as_expected_make_the_full_softmax():
    generator = torch.Generator().manual_seed(0)
    hidden, table, bias = (torch.randn(*shape, generator=generator) for shape in ((7, 4), (N, 4), (N,)))
    target = torch.randint(N, (7,), generator=generator)
    times = torch.tensor([1, 4, 2, 1, 3, 2])
    drawn = torch.arange(N).repeat_interleave(times)
    logits = hidden @ table.t() + bias
    found = corrected_cross_entropy(logits[torch.arange(7), target], logits[:, drawn], target, drawn, times.log())
    full, _ = weighted_negative_log_likelihood(hidden, table, bias, target, torch.full((7,), 1 / 7))
    torch.testing.assert_close(found, full)


def test_negatives_are_drawn_by_support_to_the_power_alpha_and_never_outside_training():
    log = make_log([[0, 1, 1, 1, 1, 3, 3]], n_items=5)
    model = SASRec(SASRecConfig(loss="sampled", n_sample=200_000, sample_alpha=0.5, hidden_units=2))
    trainer = model.trainer(model.build(5), log)
    count = np.bincount(trainer._draw(pack(log, trainer.pieces, CPU)), minlength=5)
    assert count[2] == count[4] == 0
    share = np.array([1, 2, 0, math.sqrt(2), 0]) / (3 + math.sqrt(2))
    np.testing.assert_allclose(count / 200_000, share, atol=5 * 0.5 / math.sqrt(200_000))


def test_the_negative_of_binary_is_uniform_over_the_items_not_in_the_session():
    log = make_log([[1, 4, 4, 2], [5, 5], [0, 1, 2, 3, 4, 5]])
    generator = torch.Generator().manual_seed(0)
    pieces = Pieces(np.tile(log.offset[:-1], 5000), np.tile(log.length - 1, 5000))
    packed = pack(log, pieces, CPU)
    drawn = draw_unseen(packed, N, generator).numpy()
    session = (packed.place.numpy() // 5) % 3
    for number, unseen in enumerate(([0, 3, 5], [0, 1, 2, 3, 4])):
        count = np.bincount(drawn[session == number], minlength=N)
        assert set(np.flatnonzero(count)) == set(unseen)
        n_drawn = count.sum()
        np.testing.assert_allclose(count[unseen] / n_drawn, 1 / len(unseen), atol=5 * 0.5 / math.sqrt(n_drawn))
    # There is none for a session that holds every item.
    assert (0 <= drawn).all() and (drawn < N).all()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 5))
def test_every_event_but_a_first_one_is_a_target_once_and_pieces_keep_to_their_session(lengths, max_length):
    offset = np.cumsum([0, *lengths])
    pieces = training_pieces(offset, max_length)
    assert (pieces.length >= 1).all() and (pieces.length <= max_length).all()
    targets = np.concatenate(
        [np.arange(f + 1, f + n + 1) for f, n in zip(pieces.first, pieces.length, strict=True)] or [[]]
    )
    assert targets.tolist() == sorted(set(range(offset[-1])) - set(offset[:-1].tolist()))
    session = np.searchsorted(offset, pieces.first, side="right")
    assert (pieces.first + pieces.length < offset[session]).all()


def test_a_state_is_encoded_from_its_last_events_alone_and_as_in_training(log):
    model = SASRec(SMALL, seed=1)
    network, model.n_items = model.build(N), N
    model.trained = network.eval()
    batch = log.batch()
    states, n_kept = model.encode(batch), SMALL.max_length
    session = np.repeat(np.arange(log.n_sessions), log.length)
    for row, event in enumerate(batch.state_events()):
        first = max(log.offset[session[event]], event - n_kept + 1)
        alone = network(pack(batch, Pieces(np.array([first]), np.array([event - first + 1])), CPU))[-1]
        torch.testing.assert_close(states[row], alone)
    assert log.length.max() > n_kept + 1


def test_scores_do_not_depend_on_how_many_pieces_are_encoded_at_once(log, monkeypatch):
    model = SASRec(replace(SMALL, epochs=1)).fit(log)
    expected = model.score_sessions(log.batch())
    monkeypatch.setattr("sessiongym.baselines.sasrec._PLACES", 20)
    torch.testing.assert_close(model.score_sessions(log.batch()), expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("preset", list(SASREC_PRESETS))
def test_it_keeps_to_the_protocol(log, preset, loss):
    config = replace(SASREC_PRESETS[preset], epochs=1, batch_size=16, hidden_units=8, max_length=5, loss=loss)
    check_recommender(SASRec(config).fit(log), log)


def _score(model):
    """Any figure that depends on the weights and rises and falls."""
    return float(model.network.item_table.detach().sum().mul(9).sin())


def _assert_equal(a, b):
    for (name, x), y in zip(a.network.state_dict().items(), b.network.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("loss", LOSSES)
def test_a_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others(log, loss):
    config = replace(SMALL, loss=loss, epochs=2)
    torch.manual_seed(1)
    first = SASRec(config).fit(log)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    _assert_equal(first, SASRec(config).fit(log))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first.network.item_table, SASRec(config, seed=1).fit(log).network.item_table)


@pytest.mark.parametrize("loss", LOSSES)
def test_training_interrupted_anywhere_ends_as_if_left_alone(log, tmp_path, loss, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    config, folders = replace(SMALL, loss=loss), (tmp_path / "whole", tmp_path / "cut")
    for folder in folders:
        folder.mkdir()
    n_updates, stop_at, update = 0, None, SASRecTrainer.update

    def counting(trainer, number):
        nonlocal n_updates
        if n_updates == stop_at:
            raise KeyboardInterrupt
        n_updates += 1
        return update(trainer, number)

    monkeypatch.setattr(SASRecTrainer, "update", counting)
    expected = SASRec(config).fit(log, validate=_score, folder=folders[0])
    n_whole, n_updates = n_updates, 0
    # In the first epoch, between two epochs, in a later one, and again a few updates after going on.
    for stop_at in (2, n_whole // 4, n_whole // 2 + 1, n_whole // 2 + 3):  # noqa: B007 - `counting` reads it
        with pytest.raises(KeyboardInterrupt):
            SASRec(config).fit(log, validate=_score, folder=folders[1])
    stop_at = None
    _assert_equal(SASRec(config).fit(log, validate=_score, folder=folders[1]), expected)
    assert n_updates == n_whole
    whole, cut = ((folder / "scalars.jsonl").read_text().splitlines() for folder in folders)
    assert cut == whole and len(cut) == 4


@pytest.mark.parametrize("loss", ["sampled", "binary"])
def test_stepping_only_the_rows_that_were_read_trains_as_stepping_all_of_them(log, loss):
    config = replace(SMALL, loss=loss, learning_rate_end=1.0)
    weights = []
    for sparse in (True, False):
        model = SASRec(config)
        trainer = model.trainer(model.build(N), log)
        assert trainer.network.sparse
        if not sparse:
            trainer.network.sparse = False
            trainer.optimizer = TableAdam(trainer.optimizer.parameters, config.learning_rate)
        for epoch in range(3):
            list(trainer.updates(epoch))
        weights.append(trainer.network.item_table.detach())
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_saved_and_loaded_scores_the_same(log, tmp_path):
    model = SASRec(replace(SMALL, epochs=1), seed=3).fit(log)
    model.save(tmp_path)
    loaded = SASRec.load(tmp_path)
    assert (loaded.config, loaded.seed) == (model.config, 3)
    assert torch.equal(loaded.score_sessions(log.batch()), model.score_sessions(log.batch()))


@pytest.mark.parametrize("kinds", [True, False])
def test_only_with_kinds_does_a_state_tell_a_purchase_from_a_click(log, kinds):
    model = SASRec(replace(SMALL, epochs=1, kinds=kinds)).fit(log)
    clicked, bought = (make_log([[1, 2, 3]], N, [[kind, CLICK, CLICK]]).batch() for kind in (CLICK, PURCHASE))
    assert torch.equal(model.score_sessions(clicked), model.score_sessions(bought)) != kinds


@pytest.mark.parametrize("loss", LOSSES)
def test_it_learns_to_go_back_to_the_first_item(loss):
    """Sessions a b c a of 8 items: without a look at the first event no more than an eighth can be right."""
    rng = np.random.default_rng(0)
    sessions = [[a, *rng.integers(0, 8, 2), a] for a in rng.integers(0, 8, 400)]
    config = SASRecConfig(hidden_units=16, dropout=0.0, loss=loss, n_sample=16, learning_rate=1e-2, epochs=15)
    model = SASRec(replace(config, batch_size=32)).fit(make_log(sessions[:300], 8))
    batch = make_log(sessions[300:], 8).batch()
    best = model.score_sessions(batch)[2::3].argmax(dim=1).numpy()
    assert (best == batch.item[3::4]).mean() > 0.5


def test_the_learning_rate_falls_to_its_end_over_the_whole_training(log, monkeypatch):
    config, rates, update = replace(SMALL, learning_rate_end=0.25), [], SASRecTrainer.update

    def recording(trainer, number):
        found = update(trainer, number)
        rates.append(trainer.optimizer.learning_rate)
        return found

    monkeypatch.setattr(SASRecTrainer, "update", recording)
    SASRec(config).fit(log)
    np.testing.assert_allclose(rates, config.learning_rate * (1 - 0.75 * np.arange(len(rates)) / len(rates)))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_units": 0},
        {"heads": 3},
        {"max_length": 0},
        {"dropout": 1.0},
        {"loss": "hinge"},
        {"n_sample": 0},
        {"sample_alpha": -1.0},
        {"learning_rate": float("nan")},
        {"learning_rate_end": 2.0},
        {"epochs": 0},
    ],
    ids=str,
)
def test_a_configuration_out_of_range_is_refused_in_one_line(change):
    with pytest.raises(InputError) as caught:
        replace(SASRecConfig(), **change)
    assert next(iter(change)) in str(caught.value) and "\n" not in str(caught.value)


def test_a_log_without_anything_to_predict_and_an_unknown_item_are_refused(log):
    with pytest.raises(InputError, match="two or more events"):
        SASRec(SMALL).fit(make_log([[1], [2]]))
    model = SASRec(replace(SMALL, epochs=1)).fit(log)
    with pytest.raises(InputError, match="one vocabulary"):
        model.score_sessions(make_log([[1, N]], N + 1).batch())
