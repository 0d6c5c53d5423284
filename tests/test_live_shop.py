"""The interactive shop: Gymnasium's contract, the law of the log without recommendations, what each knob does, values
with common random numbers, logs with propensities, and agents that learn in it."""

# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false

import re
import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as check_gymnasium_env
from gymnasium.vector import AutoresetMode
from scipy.stats import ks_2samp
from sessiongym.agents.a3c import A3CLearner
from sessiongym.agents.config import PRESETS, AgentConfig
from sessiongym.agents.lanes import Steps
from sessiongym.agents.on_policy import acting_source
from sessiongym.agents.sb3 import TiedActorCriticPolicy, TiedDQNPolicy
from sessiongym.agents.sqn import SQNLearner
from sessiongym.agents.sqn_config import SQN_PRESETS, SQNConfig
from sessiongym.baselines.item_knn import ItemKNN
from sessiongym.envs.conformance import check_vector_env
from sessiongym.envs.log import PURCHASE
from sessiongym.envs.observation import session_windows
from sessiongym.envs.rollout import RolloutCollector, logged
from sessiongym.envs.sb3 import SB3VecEnv
from sessiongym.envs.shop.config import ShopConfig
from sessiongym.envs.shop.live import ShopEnv, ShopVectorEnv, live_shop
from sessiongym.envs.shop.live_config import LiveShopConfig
from sessiongym.envs.shop.logged import collect
from sessiongym.envs.shop.policies import SoftmaxPolicy, UniformPolicy, recommender_scores, serve
from sessiongym.envs.shop.value import session_returns, true_value, value_difference
from sessiongym.errors import InputError
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_checker import check_env as check_sb3_env

ID = "sessiongym:sessiongym/Shop-v0"
PAGE = (Path(__file__).parents[1] / "docs" / "live-shop.md").read_text(encoding="utf-8")
N = 40
SHOP = ShopConfig(n_items=N, items_per_cluster=8, new_item_share=0.0)
NONE = LiveShopConfig(shop=SHOP, strength=0.0)
CATALOGUE = live_shop(SHOP, 0).catalogue
UNIFORM = UniformPolicy(N)
OPTIONS = [
    {},
    {"kinds": True, "reveal_intent": True, "slate": 3, "strength": 1.0, "delay": 0.5, "clickbait": 0.5},
    {"feedback": "match", "slate": 2, "window": 1},
]
EASY = LiveShopConfig(
    shop=ShopConfig(n_items=20, items_per_cluster=5, n_levels=1, decide_rate=0.3, max_events=50),
    strength=1.0,
    repeat_fit=1.0,
    window=5,
)
"""A shop of four clusters in which recommending any item of the right one keeps the shopper."""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fitting(observations, shift=0):
    """An unseen item of the intent's cluster (or of the one `shift` on) and of the nearest price level."""
    items, intent = observations["items"], observations["intent"]
    n_clusters = CATALOGUE.cluster.max() + 1
    score = 10.0 * (CATALOGUE.cluster == (intent[:, :1] + shift) % n_clusters)
    score = np.column_stack([score - np.abs(CATALOGUE.level - intent[:, 1:2]), np.zeros(len(items))])
    np.put_along_axis(score, items.astype(np.int64), -100.0, axis=1)
    return score[:, :N].argmax(axis=1)


def column(steps, name):
    return np.concatenate([getattr(step, name) for step in steps])


def serve_all(policy, config):
    return list(serve(policy, config, 2_000, seed=0))


def z_score(first, second):
    """Of the difference of two independent means."""
    return (first.mean() - second.mean()) / np.sqrt(first.var() / len(first) + second.var() / len(second))


@pytest.mark.parametrize("options", OPTIONS)
def test_it_passes_the_whole_conformance_suite(options):
    def single(lane, lanes):
        return gymnasium.make(ID, lane=lane, lanes=lanes, shop=SHOP, disable_env_checker=True, **options)

    def vector(num_envs, mode):
        return gymnasium.make_vec(
            ID,
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            assignment="strided",
            autoreset_mode=mode,
            shop=SHOP,
            **options,
        )

    report = check_vector_env(single, vector, n_steps=60)
    assert {finding.status for finding in report.findings} == {"pass"}, str(report)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.filterwarnings("ignore")
def test_the_checkers_of_gymnasium_and_stable_baselines3_pass(options):
    check_gymnasium_env(gymnasium.make(ID, shop=SHOP, **options).unwrapped)
    check_sb3_env(ShopEnv(shop=SHOP, **options))


def test_without_effects_the_sessions_follow_the_law_of_the_log():
    expected = live_shop(SHOP, 0).log(6_000, seed=1)
    found, _ = collect(UNIFORM, NONE, 6_000, seed=2)
    hooked, _ = collect(UNIFORM, replace(NONE, clickbait=1.0, bait_share=1.0), 6_000, seed=2)

    def figures(log):
        session = np.repeat(np.arange(log.n_sessions), log.length)
        bought = np.bincount(session[log.kind == PURCHASE], minlength=log.n_sessions)
        pairs = np.unique(session * np.int64(N) + log.item)
        distinct = np.bincount(pairs // N, minlength=log.n_sessions)
        again = np.r_[False, (log.item[1:] == log.item[:-1]) & (np.diff(session) == 0)]
        dwell = np.log(log.time[log.offset[1:] - 1] - log.time[log.offset[:-1]] + 1.0)
        popular = np.bincount(session, CATALOGUE.popularity[log.item]) / log.length
        repeats = np.bincount(session, again, minlength=log.n_sessions)
        return {"length": log.length, "bought": bought, "distinct": distinct, "repeats": repeats, "dwell": dwell,
                "popular": popular, "start": log.time[log.offset[:-1]] / 1e9}  # fmt: skip

    one, other, third = figures(expected), figures(found), figures(hooked)
    for name in one:
        assert ks_2samp(one[name], other[name]).pvalue > 1e-3, name
        assert abs(z_score(one[name].astype(float), other[name].astype(float))) < 4, name
    # The same comparison finds recommendations that do something.
    assert ks_2samp(one["distinct"], third["distinct"]).pvalue < 1e-9


def test_without_effects_every_policy_earns_the_same_in_every_session():
    shown = replace(NONE, reveal_intent=True)
    returns = session_returns(UNIFORM, NONE, 500, seed=3)
    assert np.array_equal(returns, session_returns(fitting, shown, 500, seed=3))
    assert not np.array_equal(returns, session_returns(UNIFORM, replace(NONE, strength=1.0), 500, seed=3))


@pytest.mark.parametrize("policy", [UNIFORM, fitting])
def test_a_session_does_not_depend_on_the_lanes_or_on_what_came_before(policy):
    config = LiveShopConfig(shop=SHOP, strength=0.7, delay=0.3, clickbait=0.3, reveal_intent=True)
    expected = session_returns(policy, config, 60, seed=5, lanes=60)
    for lanes in (1, 7):
        assert np.array_equal(session_returns(policy, config, 60, seed=5, lanes=lanes), expected)
    assert np.array_equal(session_returns(policy, config, 20, seed=5, first_session=40), expected[40:])
    assert not np.array_equal(session_returns(policy, config, 60, seed=6), expected)


def test_policies_that_agree_so_far_have_met_the_same_events():
    config = LiveShopConfig(shop=SHOP, strength=0.7, delay=0.5, reveal_intent=True)

    def changes_its_mind(observations):
        young = (observations["items"] < N).sum(axis=1) <= 3
        return np.where(young, fitting(observations), fitting(observations, shift=1))

    histories = []
    for policy in (fitting, changes_its_mind):
        steps = list(serve(policy, config, 200, seed=0))
        session, item = column(steps, "session"), column(steps, "item")
        histories.append([item[session == s] for s in range(200)])
    assert all(np.array_equal(one[:3], other[:3]) for one, other in zip(*histories, strict=True))
    assert sum(not np.array_equal(one, other) for one, other in zip(*histories, strict=True)) > 50


def test_a_new_fitting_item_is_clicked_with_the_stated_chance_and_no_other():
    config = LiveShopConfig(shop=SHOP, strength=0.6, reveal_intent=True, window=200)
    steps = list(serve(fitting, config, 3_000, seed=0))
    phase = np.concatenate([step.observations["intent"][:, 2] for step in steps])
    intent = np.concatenate([step.observations["intent"] for step in steps])
    window = np.concatenate([step.observations["items"] for step in steps])
    action, followed = column(steps, "action"), column(steps, "followed")
    fits = (CATALOGUE.cluster[action] == intent[:, 0]) & (CATALOGUE.level[action] == intent[:, 1])
    looking = (phase != 1) & ~(window == action[:, None]).any(axis=1)
    exact = followed[fits & looking]
    assert len(exact) > 500 and abs(exact.mean() - 0.6) < 4 * np.sqrt(0.24 / len(exact))
    near = followed[(CATALOGUE.cluster[action] == intent[:, 0]) & looking & ~fits]
    assert 0 < near.mean() < exact.mean()
    assert np.array_equal(column(steps, "item")[followed], action[followed])
    assert not followed[phase == 1].any()
    assert not column(list(serve(partial(fitting, shift=1), config, 500, seed=0)), "followed").any()

    def seen(observations):
        return observations["items"][:, -1]

    assert not column(list(serve(seen, config, 500, seed=0)), "followed").any()
    assert column(list(serve(seen, replace(config, repeat_fit=1.0), 500, seed=0)), "followed").any()


def test_a_slate_is_looked_at_from_the_top_and_an_item_counts_once():
    shop = replace(SHOP, n_levels=1)
    config = LiveShopConfig(shop=shop, strength=0.5, repeat_fit=1.0, attention=0.6, slate=3, reveal_intent=True)
    cluster = live_shop(shop, 0).catalogue.cluster
    members = np.array([np.flatnonzero(cluster == c)[:2] for c in range(cluster.max() + 1)])

    def twice_the_first(observations):
        first, second = members[observations["intent"][:, 0]].T
        return np.column_stack([first, first, second])

    steps = list(serve(twice_the_first, config, 3_000, seed=0))
    looking = np.concatenate([step.observations["intent"][:, 2] != 1 for step in steps])
    clicked = column(steps, "item")[looking & column(steps, "followed")]
    action = column(steps, "action")[looking & column(steps, "followed")]
    n = looking.sum()
    for place, chance in ((0, 0.5), (2, 0.5 * 0.6 * 0.6 * 0.5)):
        share = (clicked == action[:, place]).sum() / n
        assert abs(share - chance) < 4 * np.sqrt(chance * (1 - chance) / n)


def test_delay_raises_purchases_later_and_no_click_now():
    config = LiveShopConfig(shop=SHOP, strength=0.0, delay=0.5, reveal_intent=True)
    persuaded, left_alone = serve_all(fitting, config), serve_all(partial(fitting, shift=1), config)
    assert not column(persuaded, "followed").any()
    purchases = [np.bincount(column(s, "session"), column(s, "kind"), 2_000) for s in (persuaded, left_alone)]
    assert (purchases[0] >= purchases[1]).mean() > 0.9 and z_score(*purchases) > 4
    # A shopper meets the first recommendation before it can have done anything.
    assert np.array_equal(persuaded[0].item, left_alone[0].item)
    rare = replace(config, shop=replace(SHOP, buyer_share=0.2))
    buyers = [
        np.bincount(column(s, "session"), column(s, "kind"), 2_000) > 0
        for s in (serve_all(fitting, rare), serve_all(partial(fitting, shift=1), rare))
    ]
    assert z_score(*(share.astype(float) for share in buyers)) > 4


def test_clickbait_is_clicked_more_and_sells_less():
    config = LiveShopConfig(shop=SHOP, strength=0.3, clickbait=0.8, bait_share=0.1, reveal_intent=True)
    n_bait = round(0.1 * N)
    bait = np.lexsort((-CATALOGUE.popularity, CATALOGUE.level))[:n_bait]

    def baiting(observations):
        unseen = ~(observations["items"][:, :, None] == bait).any(axis=1)
        return bait[unseen.argmax(axis=1)]

    honest, baited = serve_all(UNIFORM, config), serve_all(baiting, config)
    assert column(baited, "followed").mean() > 2 * column(honest, "followed").mean()
    assert z_score(*(np.bincount(column(s, "session"), column(s, "kind"), 2_000) for s in (honest, baited))) > 4


def test_match_rewards_only_what_was_recommended():
    config = LiveShopConfig(shop=SHOP, strength=0.5, feedback="match", slate=4)
    rng = np.random.default_rng(0)
    steps = list(serve(lambda windows: rng.integers(0, N, (len(windows), 4)), config, 300, seed=0))
    item, action, kind = (column(steps, name) for name in ("item", "action", "kind"))
    expected = np.where((action == item[:, None]).any(axis=1), np.where(kind == PURCHASE, 5.0, 1.0), 0.0)
    assert np.array_equal(column(steps, "reward"), expected) and 0 < (expected > 0).mean() < 1


def test_items_not_yet_on_sale_are_not_clicked():
    config = LiveShopConfig(shop=replace(SHOP, new_item_share=1.0), strength=1.0, repeat_fit=1.0, clickbait=1.0)
    appears = live_shop(config.shop, 0).catalogue.appears
    steps = list(serve(UNIFORM, config, 1_000, seed=0))
    followed, item = column(steps, "followed"), column(steps, "item")
    # A session's start is before its events, so this allows too much if anything, yet bites: most items are late.
    assert followed.any() and (appears[item] <= column(steps, "time"))[followed].all()
    action = column(steps, "action")
    assert (appears[action] > column(steps, "time")).mean() > 0.2


def test_infos_tell_what_the_shopper_did_and_rollouts_can_be_collected():
    env = ShopVectorEnv(16, shop=SHOP, kinds=True)
    observations, info = env.reset(seed=0)
    assert np.array_equal(info["session"], np.arange(16))
    n_ended = 0
    for _ in range(30):
        before = info["session"]
        observations, reward, terminated, _, info = env.step(env.action_space.sample())
        event = logged(info)
        assert event.valid.all() and np.array_equal(event.reward, reward)
        assert np.array_equal(reward, np.where(event.kind == PURCHASE, 5.0, 1.0))
        going_on = ~terminated
        assert np.array_equal(observations["items"][going_on, -1], event.action[going_on])
        assert (info["session"][terminated] > before.max()).all() and terminated.any() == ("final_obs" in info)
        for lane in np.flatnonzero(terminated):
            assert info["final_obs"][lane]["items"][-1] == event.action[lane]
            assert info["final_info"]["session"][lane] == before[lane]
        n_ended += terminated.sum()
    assert n_ended > 10
    rollout = RolloutCollector(env, lambda shown: (np.zeros(16, np.int64), None), seed=1).rollout(20)
    assert rollout.done.any() and np.array_equal(rollout.start[1:], rollout.done[:-1])
    carried = ~rollout.done[:-1]
    assert np.array_equal(rollout.item[1:][carried], rollout.action[:-1][carried])


def test_max_episode_steps_cuts_sessions():
    env = gymnasium.make_vec(ID, 8, max_episode_steps=2, shop=SHOP)
    env.reset(seed=0)
    _, _, terminated, truncated, _ = env.step(np.zeros(8, np.int64))
    assert not truncated.any()
    _, _, _, after, _ = env.step(np.zeros(8, np.int64))
    assert np.array_equal(after, ~terminated)


def test_the_value_is_the_mean_return_to_the_stated_error_and_differences_are_paired():
    config = LiveShopConfig(shop=SHOP, strength=0.5, reveal_intent=True)
    returns = session_returns(fitting, config, 1_000, seed=4)
    value = true_value(fitting, config, 1_000, seed=4)
    assert value.mean == returns.mean() and value.n_sessions == 1_000
    assert np.isclose(value.standard_error, returns.std(ddof=1) / np.sqrt(1_000))
    closer = true_value(fitting, config, 1_000, seed=4, error=value.standard_error / 2)
    assert closer.standard_error <= value.standard_error / 2 and closer.n_sessions > 3_000
    assert abs(closer.mean - value.mean) < 4 * value.standard_error
    difference = value_difference(fitting, UNIFORM, config, 1_000, seed=4)
    other = true_value(UNIFORM, config, 1_000, seed=4)
    assert np.isclose(difference.mean, value.mean - other.mean)
    assert difference.mean > 4 * difference.standard_error
    assert difference.standard_error < np.hypot(value.standard_error, other.standard_error)


def test_a_logged_policy_is_logged_with_its_propensities_and_what_came_of_it():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(N + 1, N))
    policy = SoftmaxPolicy(lambda windows: table[windows[:, -1]], temperature=0.5, epsilon=0.2)
    config = LiveShopConfig(shop=SHOP, strength=0.8, window=6)
    log, data = collect(policy, config, 400, seed=9)
    n_decisions = len(data.action)
    assert log is data.log and (log.n_sessions, log.n_events) == (400, n_decisions + 400)
    assert np.array_equal(data.offset + np.arange(401), log.offset)
    batch = log.batch()
    assert np.array_equal(data.window, session_windows(batch, 6, N))
    target = batch.target_events()
    assert np.array_equal(data.reward, np.where(log.kind[target] == PURCHASE, 5.0, 1.0))
    assert np.array_equal(data.action[data.followed], log.item[target][data.followed]) and data.followed.any()
    expected = policy.probabilities(data.window)[np.arange(n_decisions), data.action]
    assert np.allclose(data.propensity, expected, rtol=1e-12) and data.propensity.min() >= 0.2 / N
    assert (np.diff(log.time[log.offset[:-1]]) >= 0).all()
    within = np.ones(log.n_events - 1, bool)
    within[log.offset[1:-1] - 1] = False
    assert (np.diff(log.time)[within] > 0).all()
    _, fewer = collect(policy, config, 400, seed=9, lanes=3)
    assert np.array_equal(fewer.action, data.action) and np.array_equal(fewer.log.time, log.time)
    returns = np.add.reduceat(data.reward, data.offset[:-1])
    assert np.isclose(returns.mean(), true_value(policy, config, 400, seed=9).mean)
    # Actions are drawn as often as their propensities say.
    chosen = np.bincount(data.action, minlength=N)
    wanted = policy.probabilities(data.window)
    spread = np.sqrt((wanted * (1 - wanted)).sum(axis=0))
    assert (np.abs(chosen - wanted.sum(axis=0)) < 5 * spread).all()


def test_a_recommender_shows_what_it_recommends():
    log = live_shop(SHOP, 0).log(500, seed=0)
    model = ItemKNN().fit(log, None)
    config = LiveShopConfig(shop=SHOP, slate=3, window=50)
    steps = list(serve(model, config, 20, seed=0))
    _, data = collect(UNIFORM, replace(config, slate=None), 20, seed=0)
    scores = recommender_scores(model, N)(data.window)
    for session in range(data.log.n_sessions):
        first, end = data.offset[session : session + 2]
        one = data.log.batch().part(session, session + 1)
        rows = np.asarray(model.score_sessions(one))
        assert np.allclose(scores[first:end], rows)
    unseen = recommender_scores(model, N, unseen_only=True)(data.window)
    is_seen = (data.window[:, :, None] == np.arange(N)).any(axis=1)
    assert np.isneginf(unseen[is_seen]).all() and np.array_equal(unseen[~is_seen], scores[~is_seen])
    shown = steps[0]
    ranked = np.argsort(-recommender_scores(model, N)(shown.observations), axis=1, kind="stable")[:, :3]
    assert np.array_equal(shown.action, ranked)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ShopEnv(strenght=1), "did you mean 'strength'"),
        (lambda: LiveShopConfig(strength=1.5), "strength must be a number from 0 to 1"),
        (lambda: LiveShopConfig(delay=-1.0), "delay must be a number from 0 on"),
        (lambda: LiveShopConfig(shop=ShopConfig(users=10)), "users=0"),
        (lambda: LiveShopConfig(feedback="logged"), "feedback: expected"),
        (lambda: LiveShopConfig(slate=0), "slate: expected"),
        (lambda: ShopEnv(lane=2, lanes=2), "lane, lanes"),
        (lambda: ShopEnv(shop=SHOP).step(0), "there is no session yet"),
        (lambda: ShopVectorEnv(0, shop=SHOP), "num_envs"),
        (lambda: ShopEnv(shop=SHOP).reset(options={"first_session": -1}), "first_session"),
        (lambda: ShopVectorEnv(2, shop=SHOP, assignment="random"), "assignment"),
        (lambda: ShopVectorEnv(2, shop=SHOP).step(np.zeros(2, int)), "call reset first"),
        (lambda: ShopVectorEnv(2, autoreset_mode="sometimes"), "autoreset_mode"),
        (lambda: collect(lambda windows: windows[:, -1], NONE, 5, 0), "wrap its scores in SoftmaxPolicy"),
        (lambda: true_value(UNIFORM, NONE, 1), "at least 2"),
        (lambda: true_value(UNIFORM, NONE, 10, error=1e-9), "raise it"),
        (lambda: true_value(UNIFORM, replace(NONE, slate=2), 10), "without a slate"),
        (lambda: true_value(3, NONE, 10), "found int"),
        (lambda: SoftmaxPolicy(UNIFORM.probabilities, temperature=0), "temperature"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("action", [[0, 1], [0, 1, 2, 3], [0.0, 1.0, 2.0], [0, 1, N]])
def test_a_slate_of_another_form_is_refused(action):
    env = ShopEnv(shop=SHOP, slate=3)
    env.reset(seed=0)
    with pytest.raises(InputError, match="step: expected"):
        env.step(np.array(action))


@pytest.mark.parametrize("action", [-1, N])
def test_an_action_that_is_no_item_is_refused_before_anything_happens(action):
    env, other = (ShopVectorEnv(3, shop=SHOP, autoreset_mode=AutoresetMode.DISABLED) for _ in range(2))
    env.reset(seed=0)
    other.reset(seed=0)
    with pytest.raises(InputError, match=rf"expected items 0..{N - 1}"):
        env.step(np.array([0, action, 0]))
    assert np.array_equal(env.step(np.zeros(3, int))[0], other.step(np.zeros(3, int))[0])


SB3 = {
    "ppo": partial(PPO, TiedActorCriticPolicy, n_steps=32, batch_size=256, n_epochs=4, gamma=0.95),
    "a2c": partial(A2C, TiedActorCriticPolicy, n_steps=8, gamma=0.95),
    "dqn": partial(DQN, TiedDQNPolicy, gamma=0.9, learning_starts=1_000, train_freq=2, gradient_steps=2, batch_size=128,
                   target_update_interval=500, exploration_fraction=0.5),
}  # fmt: skip


def sb3_model(name):
    env = SB3VecEnv(ShopVectorEnv(32, **vars(EASY)))
    size = {"features_extractor_kwargs": {"embedding_dim": 16, "hidden_units": 16}}
    return SB3[name](env, learning_rate=5e-3, seed=0, policy_kwargs=size)


@pytest.mark.parametrize("name", SB3)
def test_stable_baselines3_learns_in_it(name):
    model = sb3_model(name)
    model.learn(1_100)
    assert model.num_timesteps >= 1_100
    assert true_value(lambda windows: model.predict(windows)[0], EASY, 50).mean > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_what_stable_baselines3_has_learned_is_worth_more_than_chance(name):
    model = sb3_model(name)
    model.learn(30_000)
    gain = value_difference(lambda windows: model.predict(windows, deterministic=True)[0], UniformPolicy(20), EASY)
    assert gain.mean > 3 * gain.standard_error


def acting_learner(config, n_updates, seed=0):
    learner = (SQNLearner if isinstance(config, SQNConfig) else A3CLearner)(config, 20, seed, "cpu")
    options = {**vars(EASY), "kinds": config.kinds}
    learner.start(acting_source(learner, ShopVectorEnv(config.lanes, **options), seed))
    for _ in range(n_updates):
        learner.update()
    return learner


SMALL = {"hidden_units": 8, "lanes": 8, "unroll": 4}
CONFIGS = {
    **{name: replace(config, **SMALL, embedding_dim=8) for name, config in PRESETS["practical"].items()},
    **{f"{name}@paper": replace(config, **SMALL) for name, config in PRESETS["paper"].items()},
    "sqn": SQNConfig(**SMALL, embedding_dim=8),
    "sqn@paper": replace(SQN_PRESETS["paper"], **SMALL),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_agent_trains_in_it_and_again_to_the_same_weights(name):
    config = CONFIGS[name]
    if getattr(config, "imagination_weight", 0) > 0:
        config = replace(config, imagination_start=0)
    first, again = (acting_learner(config, 6).policy.state_dict() for _ in range(2))
    untrained = acting_learner(config, 0).policy.state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], untrained[key]) for key in first)


def test_rewards_are_credited_to_what_was_recommended_and_clicks_teach_what_was_clicked():
    learner = A3CLearner(replace(CONFIGS["a3c-f"], policy_weight="return"), 20, 0, "cpu")
    source = acting_source(learner, ShopVectorEnv(8, **{**vars(EASY), "kinds": True}), seed=0)
    rollout = source(4)
    assert np.array_equal(rollout.credited_action, rollout.sampled_action)
    assert not np.array_equal(rollout.credited_action, rollout.action)
    steps = Steps.of(rollout, True, torch.device("cpu"))
    assert steps.credited is not None
    other = steps._replace(credited=(steps.credited + 1) % 20), steps._replace(action=(steps.action + 1) % 20)

    def losses(config, steps):
        learner = A3CLearner(replace(config, dropout=0.0), 20, 0, "cpu")
        return learner._losses(steps, torch.ones(32), apart=False)

    by_reward = replace(CONFIGS["a3c-f"], policy_weight="return")
    taught = replace(by_reward, supervised_weight=1.0)
    for config, changed_by_credit, changed_by_click in (
        (by_reward, {"policy"}, set()),
        (taught, {"policy"}, {"supervised"}),
        (CONFIGS["lstm"], set(), {"policy"}),
    ):
        before = losses(config, steps)
        for changed, changes in zip(other, (changed_by_credit, changed_by_click), strict=True):
            after = losses(config, changed)
            assert {key for key in before if not torch.equal(before[key], after[key])} == changes


ACTING = AgentConfig(
    hidden_units=32, click_reward=1.0, n_steps=8, bootstrap=True, value_target="online", policy_at="every",
    entropy_weight=0.01, lanes=64, unroll=8, learning_rate=5e-3, gamma=0.95,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("imagination_weight", [0.0, 0.001])
def test_a3c_and_irn_learn_from_the_actions_that_they_draw(imagination_weight):
    learner = acting_learner(replace(ACTING, imagination_weight=imagination_weight), 300)

    @torch.no_grad()
    def logits(windows):
        return learner.policy.logits(learner.policy.encode(torch.as_tensor(windows).long()))

    gain = value_difference(SoftmaxPolicy(logits), UniformPolicy(20), EASY, 2_000)
    assert gain.mean > 3 * gain.standard_error


def test_the_page_runs_and_names_every_option():
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"Value\(.*\)\nValue\(.*\)\n100 0\.005\n", done.stdout)
    assert {each.name for each in fields(LiveShopConfig)} <= set(re.findall(r"`(\w+)`", PAGE))
