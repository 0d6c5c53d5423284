"""SQN: gradients against finite differences of a loss written by hand, its targets, and Q where the truth is known."""

# pyright: reportArgumentType=false, reportOptionalMemberAccess=false

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sessiongym.agents.sqn import LEAST_Q, SQNAgent, SQNLearner, q_of, q_target
from sessiongym.agents.sqn_config import SQN_PRESETS, SQNConfig
from sessiongym.envs.log import CLICK, PURCHASE, SessionLog
from sessiongym.envs.replay import ReplayVectorEnv
from sessiongym.errors import InputError
from sessiongym.evaluate.protocol import check_recommender
from sessiongym.nn import training

N = 5
TARGETS = ("alternating", "frozen")
TINY = SQNConfig(
    hidden_units=3,
    embedding_dim=None,
    tied=False,
    dropout=0.0,
    copy_window=0,
    kinds=False,
    gamma=0.7,
    q_weight=0.8,
    refresh_events=8,
    lanes=2,
    unroll=4,
    clip_norm=1e9,
    learning_rate=0.05,
)
SMALL = replace(
    SQN_PRESETS["practical"], hidden_units=8, embedding_dim=6, refresh_events=50, lanes=4, unroll=4, epochs=4
)
SMALL_PAPER = replace(SQN_PRESETS["paper"], hidden_units=8, embedding_dim=6, lanes=4, unroll=4, epochs=4)


@pytest.fixture(autouse=True)
def one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def random_log(seed, n_events, n_sessions):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "session": rng.integers(0, n_sessions, n_events),
            "item": rng.integers(0, N, n_events),
            "time": rng.integers(0, 10**15, n_events),
            "kind": (rng.random(n_events) < 0.3).astype(int),
        }
    )
    return SessionLog.from_pandas(frame, item_id=np.arange(N))


@pytest.fixture(scope="module")
def log():
    return random_log(2, 260, 60)


@pytest.fixture
def start(log):
    """A learner at the beginning of an epoch, and the list that its rollouts are kept in."""

    def make(config):
        learner = SQNLearner(config, N, 0, "cpu")
        rewards = (config.click_reward, config.purchase_reward)
        env = ReplayVectorEnv(log, num_envs=config.lanes, window=1, feedback="logged", rewards=rewards)
        env.reset(seed=0)
        rollouts = []

        def source(n_steps):
            rollouts.append(env.rollout(n_steps))
            return rollouts[-1]

        learner.start(source)
        return learner, rollouts

    return make


def _weights(module):
    return {name: p.detach().numpy().astype(np.float64) for name, p in module.named_parameters()}


def _unroll(p, stream, history=None):
    """[T, B, H] hidden states from the beginning of the stream; with a history each from its last items alone."""
    size = len(p["w_hh"][0])

    def step(item, kind, h, c):
        gates = p["item_table"][item] + p["gate_bias"] + h @ p["w_hh"].T
        if "kind_table" in p:
            gates = gates + p["kind_table"][kind]
        i, f, o = (1 / (1 + np.exp(-gates[k * size : (k + 1) * size])) for k in range(3))
        c = f * c + i * np.tanh(gates[3 * size :])
        return o * np.tanh(c), c

    hidden = np.zeros((*stream.item.shape, size))
    for lane in range(stream.item.shape[1]):
        for t in range(len(stream.item)):
            first = np.flatnonzero(stream.start[: t + 1, lane])[-1]
            if history is not None:
                first = max(first, t + 1 - history)
            h = c = np.zeros(size)
            for place in range(first, t + 1):
                h, c = step(stream.item[place, lane], stream.item_kind[place, lane], h, c)
            hidden[t, lane] = h
    return hidden


def _logits(p, hidden, head):
    return hidden @ p[f"{head}.table"].T + p[f"{head}.bias"]


def _stream(rollouts):
    names = ("item", "item_kind", "start", "action", "reward", "done")
    return SimpleNamespace(**{name: np.concatenate([getattr(r, name) for r in rollouts]) for name in names})


def _target(learning, other, config, stream):
    """[T, B] an event at a time: r + gamma Q'(s', argmax Q(s', .)), and r where the session ends."""
    q = [_logits(p, _unroll(p, stream, config.history), "head") for p in (learning, other)]
    n_steps, n_lanes = stream.reward.shape
    target = np.zeros((n_steps, n_lanes))
    for t, lane in np.ndindex(n_steps - 1, n_lanes):
        target[t, lane] = stream.reward[t, lane]
        if not stream.done[t, lane]:
            target[t, lane] += config.gamma * q[1][t + 1, lane, q[0][t + 1, lane].argmax()]
    return target


def _loss(p, config, stream, now, target):
    hidden = _unroll(p, stream, config.history)[now].reshape(-1, config.hidden_units)
    action, rows = stream.action[now].ravel(), np.arange(target.size)
    q, logits = _logits(p, hidden, "head"), _logits(p, hidden, "supervised_head")
    cross_entropy = np.log(np.exp(logits).sum(1)) - logits[rows, action]
    return cross_entropy.mean() + config.q_weight * ((target.ravel() - q[rows, action]) ** 2).mean()


@pytest.mark.parametrize(
    ("target", "kinds", "history"),
    [("alternating", False, None), ("alternating", True, 2), ("frozen", True, None), ("frozen", False, 2)],
)
def test_gradients_are_those_of_the_loss_written_by_hand(start, log, target, kinds, history):
    # One unroll as long as the whole stream so far: no gradient is cut, so none has to be by hand.
    config = replace(TINY, target=target, kinds=kinds, history=history, unroll=12, refresh_events=10**6)
    learner, rollouts = start(config)
    for _ in range(3):
        learner.update()
    learner.flush()
    # Back to the beginning of the log with other weights in both networks.
    fresh, rollouts = start(config)
    for network, trained in zip(fresh.networks, learner.networks, strict=True):
        network.load_state_dict(trained.state_dict())
    learning, other = (_weights(network) for network in fresh.networks)
    fresh.update()

    stream, now = _stream(rollouts), slice(0, config.unroll)
    wanted = _target(learning, other, config, stream)[now]
    assert stream.done[now].any() and not stream.done[config.unroll - 1].all()
    for name, parameter in fresh.policy.named_parameters():
        found = np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.to_dense().numpy()
        for place in np.ndindex(*parameter.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = learning[name].copy()
                moved[place] += step
                ends.append(_loss({**learning, name: moved}, config, stream, now, wanted))
            assert found[place] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=2e-5), (name, place)


@pytest.mark.parametrize("target", TARGETS)
def test_targets_reach_over_the_end_of_an_unroll_but_not_of_a_session(start, monkeypatch, target):
    """Many short unrolls with weights that stay: the targets of the stream as one."""
    found = []

    def recording(reward, done, value, gamma):
        found.append(q_target(reward, done, value, gamma))
        return found[-1]

    monkeypatch.setattr("sessiongym.agents.sqn.q_target", recording)
    config = replace(TINY, target=target, unroll=3, learning_rate=0.0, refresh_events=10**6, history=2)
    learner, rollouts = start(config)
    for _ in range(8):
        learner.update()
    p = [_weights(network) for network in learner.networks]
    stream = _stream(rollouts)
    by_turn = [_target(p[turn], p[1 - turn], config, stream) for turn in (0, 1)]
    for update, targets in enumerate(found):
        turn = update % 2 if target == "alternating" else 0
        np.testing.assert_allclose(targets, by_turn[turn][3 * update : 3 * update + 3], rtol=1e-4, atol=1e-6)


def test_the_value_behind_the_end_of_a_session_does_not_matter():
    reward, done = torch.tensor([[0.2], [1.0]]), torch.tensor([[False], [True]])
    value = torch.tensor([[2.0], [float("nan")]])
    assert torch.equal(q_target(reward, done, value, 0.5), torch.tensor([[1.2], [1.0]]))


def _shop(n_sessions):
    """The next item is drawn uniformly; buying it after the item named by `BOUGHT_AFTER` ends the session."""
    rng = np.random.default_rng(0)
    rows = []
    for session in range(n_sessions):
        item, kind = int(rng.integers(4)), CLICK
        rows.append((session, item, kind))
        while kind == CLICK:
            before, item = item, int(rng.integers(4))
            kind = PURCHASE if BOUGHT_AFTER[item] == before else CLICK
            rows.append((session, item, kind))
    frame = pd.DataFrame(rows, columns=["session", "item", "kind"])
    return SessionLog.from_pandas(frame.assign(time=np.arange(len(frame)) * 10**9), item_id=np.arange(4))


BOUGHT_AFTER = (1, 0, 0, 2)


def _true_q(config):
    """[4, 4] Q(newest item, next item) by value iteration."""
    q = np.zeros((4, 4))
    for _ in range(100):
        value = q.max(axis=1)
        for before in range(4):
            for item in range(4):
                ends = BOUGHT_AFTER[item] == before
                q[before, item] = config.purchase_reward if ends else config.click_reward + config.gamma * value[item]
    return q


@pytest.mark.parametrize("target", TARGETS)
def test_q_is_right_where_the_truth_is_known(target):
    config = replace(TINY, hidden_units=16, gamma=0.5, target=target, history=1, lanes=16, unroll=8, refresh_events=512)
    config = replace(config, learning_rate=0.02, learning_rate_end=0.0, q_weight=1.0, epochs=12, ranking="q")
    agent = SQNAgent(config).fit(_shop(1500))
    batch = SessionLog(
        item=np.array([0, 0, 1, 1, 2, 2, 3, 3], np.int32),
        kind=np.zeros(8, np.uint8),
        time=np.arange(8),
        offset=np.arange(0, 10, 2),
        session_id=np.arange(4),
        item_id=np.arange(4),
    ).batch()
    # The values are 0.55, 0.7 and 1: a third of the smallest gap.
    np.testing.assert_allclose(agent.score_sessions(batch).numpy(), _true_q(config), atol=0.05)


def test_q_of_one_item_is_its_entry_in_the_row(log):
    agent = SQNAgent(replace(SMALL, epochs=1)).fit(log)
    policy, states = agent.policy, agent.encode(log.batch())
    assert policy.head.copy_head is not None
    rows = policy.logits(states)
    items = torch.arange(len(rows)) % N
    torch.testing.assert_close(q_of(policy, states, items), rows[torch.arange(len(rows)), items])


def test_items_are_ranked_by_the_supervised_head_by_q_or_by_their_product(log):
    agent = SQNAgent(replace(SMALL, epochs=1)).fit(log)
    states = agent.encode(log.batch())
    q, logits = agent.policy.logits(states), agent.policy.logits(states, agent.policy.supervised_head)
    expected = {"supervised": logits, "q": q, "product": logits.softmax(1) * q.clamp(min=LEAST_Q)}
    for ranking, scores in expected.items():
        agent.config = replace(agent.config, ranking=ranking)
        torch.testing.assert_close(agent.score_sessions(log.batch()), scores)


def test_the_frozen_network_is_a_copy_refreshed_on_time(start):
    learner, _ = start(replace(TINY, target="frozen", refresh_events=16))
    first = {name: w.clone() for name, w in learner.networks[1].state_dict().items()}
    for update in range(1, 7):
        learner.update()
        now, copied = learner.policy.state_dict(), learner.networks[1].state_dict()
        fresh = all(torch.equal(now[name], copied[name]) for name in now)
        # Eight events an update.
        assert fresh == (update % 2 == 0)
        assert all(torch.equal(first[name], copied[name]) for name in first) == (update < 2)


def test_the_two_networks_learn_in_turn_and_begin_apart(start):
    learner, _ = start(replace(TINY, target="alternating"))
    before = [network.item_table.detach().clone() for network in learner.networks]
    assert not torch.equal(*before)
    for update in range(4):
        learner.update()
        learner.flush()
        after = [network.item_table.detach().clone() for network in learner.networks]
        assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [update % 2 == 1, update % 2 == 0]
        before = after


def _score(agent):
    """Any figure that depends on the weights and rises and falls."""
    return float(agent.policy.supervised_head.bias.detach().sum().mul(9).sin())


def _assert_equal(a, b):
    for (name, x), y in zip(a.policy.state_dict().items(), b.policy.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("config", [SMALL, SMALL_PAPER], ids=["practical", "paper"])
def test_a_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others(log, config):
    config = replace(config, epochs=2)
    torch.manual_seed(1)
    first = SQNAgent(config).fit(log)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    _assert_equal(first, SQNAgent(config).fit(log))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first.policy.item_table, SQNAgent(config, seed=1).fit(log).policy.item_table)


@pytest.mark.parametrize("config", [SMALL, SMALL_PAPER], ids=["practical", "paper"])
def test_training_interrupted_anywhere_ends_as_if_left_alone(log, tmp_path, config, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    folders = tmp_path / "whole", tmp_path / "cut"
    for folder in folders:
        folder.mkdir()
    n_updates, stop_at, update = 0, None, SQNLearner.update

    def counting(learner):
        nonlocal n_updates
        if n_updates == stop_at:
            raise KeyboardInterrupt
        update(learner)
        n_updates += 1

    monkeypatch.setattr(SQNLearner, "update", counting)
    expected = SQNAgent(config).fit(log, validate=_score, folder=folders[0])
    n_whole, n_updates = n_updates, 0
    # In the first epoch, between two epochs, in a later one, and again a few updates after going on.
    for stop_at in (3, n_whole // 4, n_whole // 2 + 1, n_whole // 2 + 4):  # noqa: B007 - `counting` reads it
        with pytest.raises(KeyboardInterrupt):
            SQNAgent(config).fit(log, validate=_score, folder=folders[1])
    stop_at = None
    _assert_equal(SQNAgent(config).fit(log, validate=_score, folder=folders[1]), expected)
    assert n_updates == n_whole
    whole, cut = (
        [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()] for folder in folders
    )
    assert cut == whole and len(cut) == 4


@pytest.mark.parametrize("ranking", ["supervised", "q", "product"])
@pytest.mark.parametrize("config", [SMALL, SMALL_PAPER], ids=["practical", "paper"])
def test_it_keeps_to_the_protocol(log, config, ranking):
    check_recommender(SQNAgent(replace(config, ranking=ranking, epochs=1)).fit(log), log)


def test_saved_and_loaded_scores_the_same(log, tmp_path):
    agent = SQNAgent(replace(SMALL, epochs=1), seed=3).fit(log)
    agent.save(tmp_path)
    loaded = SQNAgent.load(tmp_path)
    assert (loaded.config, loaded.seed) == (agent.config, 3)
    assert torch.equal(loaded.score_sessions(log.batch()), agent.score_sessions(log.batch()))


def test_without_weight_q_is_not_trained_and_cannot_be_ranked_by(log):
    before = SQNAgent(replace(SMALL, q_weight=0.0)).build(N).head.bias
    agent = SQNAgent(replace(SMALL, q_weight=0.0, epochs=1)).fit(log)
    assert torch.equal(agent.policy.head.bias, before)
    with pytest.raises(InputError, match="q_weight"):
        replace(SMALL, q_weight=0.0, ranking="product")


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_units": 0},
        {"embedding_dim": 0},
        {"history": 0},
        {"gamma": 1.5},
        {"q_weight": -1.0},
        {"click_reward": float("nan")},
        {"target": "none"},
        {"ranking": "policy"},
        {"refresh_events": 0},
        {"dropout": 1.0},
        {"clip_norm": 0.0},
        {"validate_by": "cart"},
        {"embedding_dim": None},
    ],
    ids=str,
)
def test_a_configuration_out_of_range_is_refused_in_one_line(change):
    with pytest.raises(InputError) as caught:
        replace(SQNConfig(), **change)
    assert next(iter(change)) in str(caught.value) and "\n" not in str(caught.value)
