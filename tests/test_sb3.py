"""Stable-Baselines3: the adapter is the environment step for step, buffers hold the log, agents learn and resume."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportUnusedExpression=false

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from sessiongym.agents.sb3 import SB3Recommender, SessionEncoder, TiedActorCriticPolicy, TiedDQNPolicy, TiedHead
from sessiongym.agents.sb3_agent import SB3Agent
from sessiongym.agents.sb3_config import SB3_PRESETS, SB3QRDQNConfig, check_installed
from sessiongym.envs.log import SessionLog
from sessiongym.envs.replay import ReplayEnv, ReplayVectorEnv
from sessiongym.envs.sb3 import SB3VecEnv, fill_replay_buffer
from sessiongym.envs.transitions import logged_transitions
from sessiongym.errors import InputError
from sessiongym.evaluate.events import rank_events
from sessiongym.evaluate.protocol import Recommender, check_recommender
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

N, WINDOW, LANES = 8, 5, 4
needs_contrib = pytest.mark.skipif(
    importlib.util.find_spec("sb3_contrib") is None, reason="sb3-contrib is not installed (extra: contrib)"
)
NAMES = [pytest.param(name, marks=needs_contrib if name == "sb3-qrdqn" else ()) for name in SB3_PRESETS["practical"]]
ON_POLICY = {"sb3-ppo": {"n_steps": 8, "batch_size": 64}, "sb3-a2c": {"n_steps": 4}}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def log():
    """Sessions of 2 to 7 random events, an eighth of them purchases."""
    rng = np.random.default_rng(0)
    length = rng.integers(2, 8, 60)
    n_events = int(length.sum())
    return _log(rng.integers(0, N, n_events), length, rng.random(n_events) < 0.125)


@pytest.fixture(scope="module")
def cycle():
    """The next item is a fixed function of the last: item i is followed by i + 3 modulo N."""
    rng = np.random.default_rng(1)
    length = rng.integers(3, 7, 100)
    first = np.repeat(rng.integers(0, N, 100), length)
    position = np.concatenate([np.arange(n) for n in length])
    return _log((first + 3 * position) % N, length, np.zeros(int(length.sum()), dtype=bool))


def _log(item, length, kind):
    offset = np.concatenate([[0], np.cumsum(length)])
    return SessionLog(
        item=item,
        kind=kind,
        time=np.arange(len(item)) * 10**9,
        offset=offset,
        session_id=np.arange(len(length)),
        item_id=np.arange(N),
    )


def vec_env(log, lanes=LANES, **options):
    return SB3VecEnv(ReplayVectorEnv(log, num_envs=lanes, **{"window": WINDOW, **options}))


def dqn(log, lanes=1, policy=TiedDQNPolicy, **arguments):
    kinds = arguments.pop("kinds", False)
    env = vec_env(log, lanes, **({"kinds": True} if kinds else {}))
    return DQN(policy, env, **{"buffer_size": 1000, **arguments})


def small(name, **changes):
    size = {"embedding_dim": 16, "hidden_units": 16, "window": WINDOW, "lanes": 16, **ON_POLICY.get(name, {})}
    return replace(SB3_PRESETS["practical"][name], **{**size, **changes})


def weights(agent):
    return {name: weight.detach().clone() for name, weight in agent.weights().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def part_of(observation, lane):
    return {k: v[lane] for k, v in observation.items()} if isinstance(observation, dict) else observation[lane]


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)
    return np.array_equal(one, other)


@pytest.mark.parametrize("options", [{}, {"copy": False}, {"kinds": True}, {"max_episode_steps": 3}])
def test_the_adapter_is_the_environment_step_for_step(log, options):
    made = {"order": "shuffled", **options}
    reference = ReplayVectorEnv(log, num_envs=LANES, window=WINDOW, **{**made, "copy": True})
    env = vec_env(log, **made)
    env.seed(7)
    observation, kept = env.reset(), []
    expected, _ = reference.reset(seed=7)
    assert equal(observation, expected)
    rng, returns, lengths, n_ended = np.random.default_rng(0), np.zeros(LANES), np.zeros(LANES, int), 0
    for _ in range(60):
        actions = rng.integers(0, N, LANES)
        observation, reward, done, infos = env.step(actions)
        expected, expected_reward, terminated, truncated, info = reference.step(actions)
        kept.append((observation, expected))
        assert reward.dtype == np.float32 and np.array_equal(reward, expected_reward)
        assert np.array_equal(done, terminated | truncated)
        returns, lengths = returns + expected_reward, lengths + 1
        for lane in range(LANES):
            if not done[lane]:
                assert infos[lane] == {}
                continue
            n_ended += 1
            assert set(infos[lane]) == {"terminal_observation", "TimeLimit.truncated", "episode"}
            assert equal(infos[lane]["terminal_observation"], info["final_obs"][lane])
            assert infos[lane]["TimeLimit.truncated"] == (truncated[lane] and not terminated[lane])
            episode = infos[lane]["episode"]
            assert (episode["r"], episode["l"]) == (returns[lane], lengths[lane]) and episode["t"] >= 0
            returns[lane], lengths[lane] = 0, 0
    assert n_ended > 20
    # Later steps have not changed what earlier ones returned.
    assert all(equal(observation, expected) for observation, expected in kept)


def test_the_adapter_agrees_with_the_vec_env_of_stable_baselines3(log):
    ours = vec_env(log, assignment="strided")
    theirs = DummyVecEnv([lambda i=i: ReplayEnv(log, lane=i, lanes=LANES, window=WINDOW) for i in range(LANES)])
    for env in (ours, theirs):
        env.seed(3)
    assert np.array_equal(ours.reset(), theirs.reset())
    rng = np.random.default_rng(0)
    for _ in range(40):
        actions = rng.integers(0, N, LANES)
        (one, one_reward, one_done, one_info), (two, two_reward, two_done, two_info) = (
            ours.step(actions),
            theirs.step(actions),
        )
        assert (
            np.array_equal(one, two) and np.array_equal(one_reward, two_reward) and np.array_equal(one_done, two_done)
        )
        for lane in np.flatnonzero(one_done):
            assert equal(one_info[lane]["terminal_observation"], two_info[lane]["terminal_observation"])
            assert one_info[lane]["TimeLimit.truncated"] == two_info[lane]["TimeLimit.truncated"]


def test_any_vector_environment_in_the_right_mode_will_do():
    import gymnasium

    make = [lambda: gymnasium.make("CartPole-v1") for _ in range(2)]
    env = SB3VecEnv(RecordEpisodeStatistics(SyncVectorEnv(make, autoreset_mode=AutoresetMode.SAME_STEP)))
    env.seed(0)
    env.reset()
    lengths = [i["episode"]["l"] for _ in range(60) for i in env.step(np.zeros(2, int))[3] if i]
    # A cart that is always pushed to the left falls within about ten steps.
    assert len(lengths) > 5 and max(lengths) < 15


def test_what_cannot_be_adapted_is_refused_in_one_line(log):
    wrong = SyncVectorEnv([lambda: ReplayEnv(log, window=WINDOW)])
    with pytest.raises(InputError, match=r"expected AutoresetMode\.SAME_STEP, found AutoresetMode\.NEXT_STEP"):
        SB3VecEnv(wrong)
    env = vec_env(log, terminal_info=False)
    env.reset()
    with pytest.raises(InputError, match="terminal_info=True"):
        for _ in range(10):
            env.step(np.zeros(LANES, int))
    with pytest.raises(InputError, match="found a list"):
        env.set_options([{}])


def test_the_adapter_keeps_the_contract_of_a_vec_env(log):
    env = vec_env(log)
    assert env.num_envs == LANES and isinstance(env.action_space, spaces.Discrete)
    assert env.get_attr("num_envs") == [LANES] * LANES and env.get_attr("num_envs", [0, 2]) == [LANES] * 2
    assert env.has_attr("options") and not env.has_attr("no_such_thing")
    env.set_attr("max_episode_steps", 3)
    assert env.get_attr("max_episode_steps", 1) == [3]
    with pytest.raises(InputError, match=r"expected all 4 lanes, found \[1\]"):
        env.set_attr("max_episode_steps", 4, indices=1)
    with pytest.raises(InputError, match="expected all 4 lanes"):
        env.env_method("reset", indices=[0, 1])
    assert len(env.env_method("reset")) == LANES
    assert env.env_is_wrapped(RecordEpisodeStatistics) == [False] * LANES
    wrapped = SB3VecEnv(RecordEpisodeStatistics(ReplayVectorEnv(log, num_envs=2)))
    assert wrapped.env_is_wrapped(RecordEpisodeStatistics, 0) == [True]
    assert wrapped.get_attr("options", 0)[0].window == 20
    env.close()


def test_wrappers_of_stable_baselines3_work_on_top(log):
    env = VecNormalize(VecMonitor(vec_env(log)), norm_obs=False)
    env.seed(0)
    env.reset()
    episodes = [i["episode"] for _ in range(30) for i in env.step(np.zeros(LANES, int))[3] if i]
    assert len(episodes) > 10 and all(2 <= e["l"] + 1 <= 7 for e in episodes)
    assert np.isfinite(env.normalize_reward(np.ones(LANES))).all()


@pytest.mark.parametrize("options", [{}, {"kinds": True}])
def test_the_environment_passes_the_checker_of_stable_baselines3(log, options):
    check_env(ReplayEnv(log, window=WINDOW, **options))


def test_a_state_depends_on_the_items_in_their_order_and_not_on_the_padding():
    torch.manual_seed(0)
    short, long = (SessionEncoder(spaces.Box(0, N, (width,), np.int32), 6, 6) for width in (3, 9))
    long.load_state_dict(short.state_dict())

    def state(encoder, items):
        width = encoder._observation_space.shape[0]
        return encoder(torch.tensor([[N] * (width - len(items)) + items], dtype=torch.float32))

    assert torch.allclose(state(short, [1, 2]), state(long, [1, 2]), atol=1e-6)
    assert not torch.allclose(state(short, [1, 2]), state(short, [2, 1]), atol=1e-3)
    assert not torch.allclose(state(short, [0]), state(short, [0, 0]), atol=1e-3)
    assert torch.isfinite(state(short, [])).all()


def test_kinds_change_the_state():
    torch.manual_seed(0)
    space = spaces.Dict({"items": spaces.Box(0, N, (3,), np.int32), "kinds": spaces.Box(0, 2, (3,), np.uint8)})
    encoder = SessionEncoder(space, 6, 6)
    items = torch.tensor([[N, 1, 2]]).float()
    click, bought = (encoder({"items": items, "kinds": torch.tensor([[2, 0, k]]).float()}) for k in (0, 1))
    assert not torch.allclose(click, bought, atol=1e-3)


def test_the_last_item_that_float32_can_tell_apart_is_still_looked_up_exactly():
    with pytest.raises(InputError, match="at most 2\\^24 items"):
        SessionEncoder(spaces.Box(0, 2**24 + 1, (3,), np.int32), 1, 1)
    assert torch.tensor([2**24, 2**24 - 1], dtype=torch.int32).float().long().tolist() == [2**24, 2**24 - 1]
    for wrong in (spaces.Discrete(3), spaces.Box(0, 1, (3,), np.float32), spaces.Dict({"x": spaces.Discrete(2)})):
        with pytest.raises(InputError, match="SessionEncoder: expected an integer Box"):
            SessionEncoder(wrong)


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_the_head_is_the_embedding_again(n_outputs):
    torch.manual_seed(0)
    encoder = SessionEncoder(spaces.Box(0, N, (3,), np.int32), 4, 6)
    head, state = TiedHead(encoder, n_outputs), torch.randn(2, 6)
    torch.nn.init.normal_(head.bias)
    scores = head(state).view(2, n_outputs, N)
    for q in range(n_outputs):
        projected = state @ head.projection.weight[4 * q : 4 * (q + 1)].T + head.projection.bias[4 * q : 4 * (q + 1)]
        assert torch.allclose(scores[:, q], projected @ encoder.embedding.weight[:N].T + head.bias, atol=1e-6)
    assert head.embedding is encoder.embedding


@pytest.mark.parametrize(
    ("algorithm", "policy"), [(PPO, TiedActorCriticPolicy), (A2C, TiedActorCriticPolicy), (DQN, TiedDQNPolicy)]
)
def test_no_layer_has_a_row_of_its_own_for_an_item_but_the_embedding(log, algorithm, policy):
    arguments = {"buffer_size": 100} if algorithm is DQN else {"n_steps": 16}
    model = algorithm(
        policy, vec_env(log), policy_kwargs={"features_extractor_kwargs": {"hidden_units": 6}}, **arguments
    )
    nets = 2 if algorithm is DQN else 1
    with_items = [p for p in model.policy.parameters() if p.ndim == 2 and N in (p.shape[0] - 1, p.shape[0], p.shape[1])]
    assert len(with_items) == nets
    model.learn(64)


def test_a_slate_is_refused(log):
    env = SB3VecEnv(ReplayVectorEnv(log, num_envs=2, window=WINDOW))
    env.action_space = spaces.MultiDiscrete([N, N])
    with pytest.raises(InputError, match="expected a Discrete action space"):
        A2C(TiedActorCriticPolicy, env)


def flat(buffer):
    """Observations, actions, rewards, next observations, dones of a buffer, lane after lane."""
    n = buffer.size()
    columns = (buffer.observations, buffer.actions, buffer.rewards, buffer.next_observations, buffer.dones)
    return [column[:n].swapaxes(0, 1).reshape(n * buffer.n_envs, -1) for column in columns]


@pytest.mark.parametrize("lanes", [1, 3, 7])
def test_a_filled_buffer_holds_every_logged_transition_in_order(log, lanes):
    model = dqn(log, lanes)
    parts = list(logged_transitions(log, window=WINDOW, max_rows=20))
    n = fill_replay_buffer(model, log)
    assert n == sum(map(len, parts)) == int((log.length - 1).sum())
    assert 0 <= model.replay_buffer.size() * lanes - n < lanes
    for name, found in zip(
        ("observation", "action", "reward", "next_observation", "done"), flat(model.replay_buffer), strict=True
    ):
        expected = np.concatenate([getattr(part, name) for part in parts]).reshape(n, -1)
        assert np.array_equal(found[:n], expected), name
        assert np.array_equal(found[n:], expected[: len(found) - n]), name


def test_the_newest_transitions_are_those_at_the_end(log):
    whole, newest = dqn(log), dqn(log)
    n = fill_replay_buffer(whole, log)
    assert fill_replay_buffer(newest, log, newest=50) == 50
    assert all(
        np.array_equal(a[n - 50 :], b)
        for a, b in zip(flat(whole.replay_buffer), flat(newest.replay_buffer), strict=True)
    )


def test_options_reach_the_buffer(log):
    model = dqn(log)
    fill_replay_buffer(model, log, rewards=(0.0, 7.0), density=0.5, drop="reward")
    rewards = model.replay_buffer.rewards[: model.replay_buffer.size(), 0]
    expected = np.concatenate(
        [p.reward for p in logged_transitions(log, rewards=(0.0, 7.0), density=0.5, drop="reward")]
    )
    assert np.array_equal(rewards, expected) and set(rewards) == {0.0, 7.0}


def test_kinds_reach_the_buffer(log):
    model = dqn(log, lanes=2, kinds=True)
    n = fill_replay_buffer(model, log)
    parts = list(logged_transitions(log, window=WINDOW, kinds=True))
    for column, name in (("observations", "observation_kind"), ("next_observations", "next_observation_kind")):
        kinds = getattr(model.replay_buffer, column)["kinds"][: model.replay_buffer.size()]
        found = kinds.swapaxes(0, 1).reshape(-1, WINDOW)[:n]
        assert np.array_equal(found, np.concatenate([getattr(part, name) for part in parts]))
    model.learn(16)


def test_a_memory_saving_buffer_gives_the_same_transitions(log):
    arguments = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = dqn(log, lanes=2, **arguments)
    fill_replay_buffer(model, log)
    parts = list(logged_transitions(log, window=WINDOW))
    known = {(*o, a) for part in parts for o, a in zip(part.observation.tolist(), part.action.tolist(), strict=True)}
    np.random.seed(0)  # noqa: NPY002 - the buffer draws from it
    sample, n_going_on = model.replay_buffer.sample(400), 0
    observations, actions, next_observations, dones = (column.tolist() for column in sample[:4])
    for o, (a,), then, (done,) in zip(observations, actions, next_observations, dones, strict=True):
        assert (*o, a) in known
        if not done:
            n_going_on += 1
            assert then == [*o[1:], a]
    assert n_going_on > 100


def test_an_n_step_return_is_that_of_the_session(log):
    model = dqn(log, lanes=3, n_steps=3, gamma=0.5)
    fill_replay_buffer(model, log)
    buffer = model.replay_buffer
    returns = {}
    for s in range(log.n_sessions):
        first, last = log.offset[s], log.offset[s + 1]
        for e in range(first, last - 1):
            rewards = [5.0 if log.kind[j] else 1.0 for j in range(e + 1, min(e + 4, last))]
            window = [N] * WINDOW + log.item[first : e + 1].tolist()
            total = sum(0.5**k * r for k, r in enumerate(rewards))
            returns.setdefault((tuple(window[-WINDOW:]), int(log.item[e + 1])), set()).add(total)
    sample = buffer._get_samples(np.arange(buffer.size() - 3))
    for o, a, r in zip(sample.observations.numpy(), sample.actions.numpy(), sample.rewards.numpy(), strict=True):
        assert float(r[0]) in returns[tuple(o), int(a[0])]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda log: dqn(log, buffer_size=50), "expected room for .* found a buffer of 50"),
        (lambda log: A2C(TiedActorCriticPolicy, vec_env(log)), "expected an off-policy model .* found A2C"),
        (lambda log: dqn(replace(log, item_id=np.arange(N + 1), n_train_items=-1)), "of the 8 items of the log"),
    ],
)
def test_a_buffer_that_does_not_fit_is_refused_and_stays_empty(log, make, message):
    model = make(log)
    with pytest.raises(InputError, match=message) as caught:
        fill_replay_buffer(model, log)
    assert "\n" not in str(caught.value)
    buffer = getattr(model, "replay_buffer", None)
    assert buffer is None or (buffer.size() == 0 and not buffer.observations.any())


def test_a_buffer_is_filled_once_and_with_the_window_of_the_model(log):
    model = dqn(log)
    with pytest.raises(InputError, match="expected window=5 as the model has it, found 6"):
        fill_replay_buffer(model, log, window=6)
    fill_replay_buffer(model, log)
    with pytest.raises(InputError, match="expected an empty buffer"):
        fill_replay_buffer(model, log)


@pytest.mark.parametrize("name", NAMES)
def test_an_agent_finds_the_next_item_where_it_follows_from_the_last(cycle, name):
    """Chance is 1/N; the log is learned by acting, with a reward for the right item alone."""
    agent = SB3Agent(small(name, total_steps=3000, evaluation_steps=3000, learning_rate=5e-3)).fit(cycle)
    hits = (rank_events(agent, cycle)["rank_low"].to_numpy() == 0).mean()
    assert hits > 4 / N


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kinds", [False, True])
def test_an_agent_keeps_to_the_protocol_and_scores_the_same_when_loaded(log, tmp_path, name, kinds):
    agent = SB3Agent(small(name, total_steps=256, evaluation_steps=256, kinds=kinds), seed=3).fit(log)
    assert isinstance(agent, Recommender)
    check_recommender(agent, log)
    agent.save(tmp_path)
    loaded = SB3Agent.load(tmp_path)
    assert torch.equal(loaded.score_sessions(log.batch()), agent.score_sessions(log.batch()))
    assert (loaded.config, loaded.seed) == (agent.config, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"agent.json", "model.safetensors"}


def test_any_network_of_stable_baselines3_can_be_scored(log):
    model = PPO("MlpPolicy", vec_env(log), n_steps=8, batch_size=32, seed=0).learn(32)
    check_recommender(SB3Recommender(model), log)
    observation = np.concatenate([part.observation for part in logged_transitions(log, window=WINDOW)])
    best = SB3Recommender(model).score_sessions(log.batch()).argmax(1).numpy()
    assert np.array_equal(best, model.predict(observation, deterministic=True)[0])
    with pytest.raises(InputError, match="expected PPO, A2C, DQN or QR-DQN"):
        SB3Recommender(model.policy.features_extractor)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_weights_and_another_one_others(log, name):
    config = small(name, total_steps=512, evaluation_steps=256)
    first = weights(SB3Agent(config, seed=1).fit(log))
    torch.rand(3), np.random.rand(3)  # noqa: NPY002 - a process that has drawn in between
    assert same(first, weights(SB3Agent(config, seed=1).fit(log)))
    assert not same(first, weights(SB3Agent(config, seed=2).fit(log)))


def test_training_leaves_nothing_in_the_temporary_folder(log, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    SB3Agent(small("sb3-a2c", total_steps=64, evaluation_steps=64)).fit(log)
    assert not list(tmp_path.iterdir())


def test_training_leaves_the_random_streams_of_the_process_alone(log):
    torch.manual_seed(5), np.random.seed(5)  # noqa: NPY002
    expected = torch.rand(2), np.random.rand(2)  # noqa: NPY002
    torch.manual_seed(5), np.random.seed(5)  # noqa: NPY002
    SB3Agent(small("sb3-a2c", total_steps=64, evaluation_steps=64)).fit(log)
    assert torch.equal(torch.rand(2), expected[0]) and np.array_equal(np.random.rand(2), expected[1])  # noqa: NPY002


class Interrupt:
    """Progress that ends the training once `steps` are done, and remembers where it began."""

    def __init__(self, steps):
        self.steps, self.first = steps, None

    def __call__(self, done, total, text):
        self.first = done if self.first is None else self.first
        if done >= self.steps:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_training_goes_on_from_its_last_checkpoint(log, tmp_path, name):
    config = small(name, total_steps=1024, evaluation_steps=256)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    expected = SB3Agent(config, seed=1).fit(log, folder=whole)
    with pytest.raises(KeyboardInterrupt):
        SB3Agent(config, seed=1).fit(log, folder=cut, progress=Interrupt(600))
    going_on = Interrupt(10**9)
    agent = SB3Agent(config, seed=1).fit(log, folder=cut, progress=going_on)
    assert going_on.first == 512
    events = [json.loads(line)["events"] for line in (cut / "scalars.jsonl").read_text().splitlines()]
    assert events == [256, 512, 768, 1024]
    # The replay buffer of the others is not kept.
    if name in ON_POLICY:
        assert same(weights(agent), weights(expected))
        assert (cut / "scalars.jsonl").read_bytes() == (whole / "scalars.jsonl").read_bytes()
    # Nothing is left to do, and nothing is done.
    again = SB3Agent(config, seed=1).fit(log, folder=cut, progress=Interrupt(0))
    assert same(weights(again), weights(agent))


def test_the_best_round_on_validation_is_kept_and_patience_ends_the_training(log, tmp_path):
    scores, seen = iter([0.1, 0.3, 0.2, 0.1, 0.0, 0.9]), []

    def validate(agent):
        seen.append(weights(agent))
        return next(scores)

    config = small("sb3-a2c", total_steps=64 * 6, evaluation_steps=64, patience=2)
    agent = SB3Agent(config).fit(log, validate=validate, folder=tmp_path)
    assert len(seen) == 4 and same(weights(agent), seen[1]) and not same(seen[1], seen[3])
    records = [json.loads(line) for line in (tmp_path / "scalars.jsonl").read_text().splitlines()]
    assert [record["validation"] for record in records] == [0.1, 0.3, 0.2, 0.1]
    assert all({"epoch", "events", "value_loss", "episode_return"} <= set(record) for record in records)
    assert not list(tmp_path.rglob("*.pkl")) and not list(tmp_path.rglob("*.zip"))


def test_a_missing_contrib_is_answered_with_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sessiongym.agents.sb3_config.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'sessiongym\[contrib\]'"):
        SB3Agent(SB3QRDQNConfig())
    check_installed(SB3_PRESETS["practical"]["sb3-dqn"])
