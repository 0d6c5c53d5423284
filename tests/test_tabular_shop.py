"""The tabular shop: what its knobs do, and that the truth about it is the truth."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

from dataclasses import replace
from itertools import product

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym.envs.shop.tabular import (
    TabularShop,
    TabularShopConfig,
    TabularShopEnv,
    exact_value,
    optimal_policy,
    simulate,
)
from sessiongym.errors import InputError

TINY = TabularShopConfig(n_items=2, n_intents=2, n_levels=1, horizon=2)
SMALL = TabularShopConfig(n_items=4, n_intents=2, n_levels=2, horizon=3)


@pytest.fixture(scope="module")
def shop() -> TabularShop:
    return TabularShop()


def standard_error(returns: np.ndarray) -> float:
    return float(returns.std(ddof=1) / np.sqrt(len(returns)))


def returns_of(sessions) -> np.ndarray:
    return np.add.reduceat(sessions.reward, sessions.offset[:-1])


def random_policy(shop: TabularShop, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(shop.config.n_items), size=shop.policy_shape[:-1])


def told(shop: TabularShop, moves: np.ndarray, state: tuple[int, int, int], action: int) -> dict[object, float]:
    """The chances of what follows a recommendation, one thing after another as the fields of the config tell it."""
    config, (intent, level, item) = shop.config, state
    fit, show, top = shop.fit[intent], shop.show, config.n_levels - 1
    after: dict[object, float] = {}

    def add(what: object, chance: float) -> None:
        after[what] = after.get(what, 0.0) + chance

    def own_way(chance: float, level_after: int) -> None:
        buys = config.buy * fit[item] * (level + 1) / config.n_levels
        add("bought", chance * buys)
        add("left", chance * config.leave)
        clicks = chance * (1 - buys - config.leave)
        add((intent, level_after, item), clicks * config.back)
        for other in range(config.n_items):
            add((intent, level_after, other), clicks * (1 - config.back) * moves[intent, item, other])

    own_way(1 - config.strength, level)
    bait = config.clickbait * show[action] * (1 - fit[action])
    rise = config.delay * fit[action]
    follows, ignores = (config.strength * share for share in (fit[action] + bait, 1 - fit[action] - bait))
    for level_after, chance in ((min(level + 1, top), rise), (max(level - 1, 0), bait), (level, 1 - rise - bait)):
        add((intent, level_after, action), follows * chance)
    own_way(ignores * rise, min(level + 1, top))
    own_way(ignores * (1 - rise), level)
    return after


@pytest.mark.parametrize("config", [TINY, SMALL, TabularShopConfig(n_items=5, strength=0.9, delay=0.6, clickbait=0.8)])
def test_transitions_and_rewards_are_those_of_the_shopper_that_the_config_tells_of(config):
    shop = TabularShop(config, seed=4)
    unmoved = TabularShop(replace(config, strength=0.0, back=0.0, buy=0.0, leave=0.0), seed=4)
    shape = shop.policy_shape[1:4]
    live = int(np.prod(shape))
    # With nothing else in the way, a shopper does what the shop's transitions say.
    levels = unmoved.transition[:live, 0, :live].reshape(*shape, *shape).sum(axis=4)
    moves = np.stack([levels[intent, 0, :, intent] for intent in range(shape[0])])

    def number_of(what: object) -> int:
        gone = {"bought": live, "left": live + 1}
        return gone[what] if isinstance(what, str) else int(np.ravel_multi_index(what, shape))

    for state, action in product(np.ndindex(shape), range(config.n_items)):
        row = np.zeros(live + 2)
        for what, chance in told(shop, moves, state, action).items():
            row[number_of(what)] += chance
        number = number_of(state)
        np.testing.assert_allclose(shop.transition[number, action], row, atol=1e-14)
        np.testing.assert_allclose(shop.reward[number, action], row[:live].sum() + 5 * row[live], atol=1e-13)


def test_probabilities_are_probabilities_and_who_is_gone_stays_away(shop):
    np.testing.assert_allclose(shop.transition.sum(axis=2), 1.0, atol=1e-12)
    assert shop.transition.min() >= 0 and shop.initial.sum() == pytest.approx(1.0)
    assert (shop.transition[-2:, :, :-2] == 0).all() and (shop.reward[-2:] == 0).all()


def value_by_paths(shop: TabularShop, policy: np.ndarray, state: int, step: int) -> float:
    """The value of a policy from a state on, path by path."""
    if step == shop.config.horizon or state >= len(shop.initial) - 2:
        return 0.0
    chosen = policy.reshape(shop.config.horizon, -1, shop.config.n_items)[step, state]
    return sum(
        chosen[action] * chance * (shop.gain[after] + value_by_paths(shop, policy, after, step + 1))
        for action in np.flatnonzero(chosen)
        for after, chance in enumerate(shop.transition[state, action])
        if chance
    )


def test_the_exact_value_is_the_sum_over_all_paths():
    shop = TabularShop(SMALL, seed=1)
    policy = random_policy(shop, 2)
    by_paths = sum(chance * value_by_paths(shop, policy, s, 0) for s, chance in enumerate(shop.initial) if chance)
    assert exact_value(policy, shop) == pytest.approx(by_paths, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_optimum_is_the_best_of_all_policies_tried_one_by_one(seed):
    shop = TabularShop(TINY, seed=seed)
    n_places = int(np.prod(shop.policy_shape[:-1]))
    tables = np.eye(2)[np.array(list(product(range(2), repeat=n_places)))].reshape(-1, *shop.policy_shape)
    best = optimal_policy(shop)
    assert best.value == pytest.approx(max(exact_value(table, shop) for table in tables), rel=1e-12)
    assert exact_value(best.policy, shop) == pytest.approx(best.value, rel=1e-12)


def test_the_best_policy_that_does_not_see_the_intent_stays_below_the_bound():
    shop = TabularShop(TabularShopConfig(n_items=3, n_intents=3, n_levels=2, horizon=2), seed=0)
    # The value is linear in the row of each step and item, so that no random policy beats all of these.
    tables = np.eye(3)[np.array(list(product(range(3), repeat=6)))].reshape(-1, 2, 1, 1, 3, 3)
    blind = max(exact_value(table, shop) for table in tables)
    assert blind < optimal_policy(shop).value - 1e-6


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        TabularShopConfig,
        n_items=st.integers(2, 6),
        n_intents=st.integers(1, 3),
        n_levels=st.integers(1, 3),
        horizon=st.integers(1, 10),
        strength=st.floats(0, 1),
        delay=st.floats(0, 1),
        clickbait=st.floats(0, 1),
    ),
    st.integers(0, 1000),
)
def test_no_policy_exceeds_the_bound_in_any_shop(config, seed):
    shop = TabularShop(config, seed)
    assert exact_value(random_policy(shop, seed), shop) <= optimal_policy(shop).value + 1e-9


@pytest.mark.parametrize("kind", ["optimal", "random", "last item only"])
def test_simulated_sessions_earn_the_exact_value(shop, kind):
    policy = {
        "optimal": lambda: optimal_policy(shop).policy,
        "random": lambda: random_policy(shop, 5),
        "last item only": lambda: random_policy(shop, 5)[0, 0, 0],
    }[kind]()
    returns = returns_of(simulate(policy, shop, 40_000, np.random.default_rng(6)))
    assert abs(returns.mean() - exact_value(policy, shop)) < 4 * standard_error(returns)


@pytest.mark.parametrize("reveal_intent", [False, True])
def test_episodes_of_the_environment_earn_the_exact_value(reveal_intent):
    env = TabularShopEnv(SMALL, shop_seed=1, reveal_intent=reveal_intent)
    rng, best, returns = np.random.default_rng(0), optimal_policy(env.shop).policy, []
    seen_action = best.argmax(axis=-1)
    uniform = np.full((4, 4), 0.25)
    for episode in range(4_000):
        observation, _ = env.reset(seed=0 if episode == 0 else None)
        earned, over = 0.0, False
        while not over:
            action = seen_action[tuple(observation)] if reveal_intent else rng.integers(4)
            observation, reward, over, _, _ = env.step(action)
            earned += reward
        returns.append(earned)
    expected = exact_value(best if reveal_intent else uniform, env.shop)
    assert abs(np.mean(returns) - expected) < 4 * standard_error(np.array(returns))


def learned_policy(config: TabularShopConfig, reveal_intent: bool, n_episodes: int = 20_000) -> tuple[float, float]:
    """Tabular Q-learning (Watkins, 1989) in the environment: the exact value of what it learned, and the bound."""
    env, rng = TabularShopEnv(config, shop_seed=2, reveal_intent=reveal_intent), np.random.default_rng(3)
    sizes = env.observation_space.nvec
    q, visits = np.zeros((*sizes, config.n_items)), np.zeros((*sizes, config.n_items))
    env.reset(seed=1)
    for _ in range(n_episodes):
        observation, over = env.reset()[0], False
        while not over:
            state = tuple(observation)
            explore = rng.random() < 0.3
            place = (*state, int(rng.integers(config.n_items)) if explore else int(q[state].argmax()))
            observation, reward, over, _, _ = env.step(place[-1])
            visits[place] += 1
            future = 0.0 if over else q[tuple(observation)].max()
            q[place] += (reward + future - q[place]) / visits[place] ** 0.8
    policy = np.eye(config.n_items)[q[:-1].argmax(axis=-1)]
    policy = policy if reveal_intent else policy[:, None, None]
    return exact_value(policy, env.shop), optimal_policy(env.shop).value


def test_a_learner_that_sees_the_intent_comes_within_5_percent_of_the_bound_and_one_that_does_not_stays_below():
    config = TabularShopConfig(n_items=5, n_intents=3, n_levels=2, horizon=3, strength=0.9)
    seeing, bound = learned_policy(config, reveal_intent=True)
    blind, _ = learned_policy(config, reveal_intent=False)
    assert 0.95 * bound <= seeing <= bound + 1e-9
    assert blind < seeing


def test_with_strength_0_recommendations_change_nothing():
    shop = TabularShop(TabularShopConfig(strength=0.0, delay=1.0, clickbait=1.0), seed=3)
    values = [exact_value(random_policy(shop, seed), shop) for seed in range(5)]
    np.testing.assert_allclose(values, optimal_policy(shop).value, rtol=1e-12)


def test_strength_is_worth_something_to_who_knows_the_shopper():
    values = [optimal_policy(TabularShop(TabularShopConfig(strength=s))).value for s in (0.0, 0.3, 0.6, 0.9)]
    assert sorted(set(values)) == values


def earnings(policy: str, **knobs) -> tuple[np.ndarray, float, float]:
    """The chances to buy at once [S, A], and the exact clicks and purchases of a session."""
    values = []
    for rewards in ((1.0, 0.0), (0.0, 1.0)):
        shop = TabularShop(TabularShopConfig(rewards=rewards, **knobs), seed=7)
        best = shop.fit[:, None, None, :] if policy == "fitting" else shop.show * (1 - shop.fit[:, None, None, :])
        table = np.eye(shop.config.n_items)[best.argmax(axis=-1)]
        values.append(exact_value(np.broadcast_to(table, shop.policy_shape[1:]), shop))
    return shop.transition[:-2, :, -2], *values


def test_delay_raises_purchases_later_and_not_now():
    at_once, _, purchases = earnings("fitting", delay=0.0)
    at_once_delayed, _, purchases_delayed = earnings("fitting", delay=1.0)
    np.testing.assert_array_equal(at_once, at_once_delayed)
    assert purchases_delayed > purchases


def test_clickbait_raises_clicks_and_lowers_purchases():
    _, clicks, purchases = earnings("showy", clickbait=0.0)
    _, baited_clicks, baited_purchases = earnings("showy", clickbait=1.0)
    assert baited_clicks > clicks and baited_purchases < purchases


def test_policies_meet_the_same_shoppers_with_the_same_luck(shop):
    one, again, other = (
        simulate(random_policy(shop, policy), shop, 500, np.random.default_rng(8)) for policy in (1, 1, 2)
    )
    for name in ("offset", "item", "action", "propensity", "reward"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))
    for name in ("intent", "level", "item"):
        np.testing.assert_array_equal(getattr(one, name)[one.offset[:-1]], getattr(other, name)[other.offset[:-1]])
    assert np.corrcoef(returns_of(one), returns_of(other))[0, 1] > 0.1


def test_propensities_are_those_of_the_policy(shop):
    policy = shop.policy(random_policy(shop, 1))
    sessions = simulate(policy, shop, 200, np.random.default_rng(0))
    rows = np.arange(len(sessions.action))
    np.testing.assert_array_equal(sessions.propensity, sessions.probabilities(policy)[rows, sessions.action])
    assert (np.diff(sessions.offset) >= 1).all() and np.diff(sessions.offset).max() <= shop.config.horizon
    assert (sessions.step[sessions.offset[:-1]] == 0).all()


@pytest.mark.filterwarnings("ignore:.*spec.*")
@pytest.mark.parametrize("reveal_intent", [False, True])
def test_the_environment_passes_gymnasiums_checker(reveal_intent):
    check_env(TabularShopEnv(reveal_intent=reveal_intent), skip_render_check=True)


def test_what_is_hidden_is_shown_only_when_revealed():
    hidden, revealed = (TabularShopEnv(reveal_intent=reveal) for reveal in (False, True))
    seen, everything = hidden.reset(seed=3)[0], revealed.reset(seed=3)[0]
    assert isinstance(hidden.observation_space, gym.spaces.MultiDiscrete)
    assert seen.tolist() == [0, everything[-1]] and len(everything) == 4


def test_a_step_without_a_session_is_refused():
    env = TabularShopEnv(replace(TINY, leave=1.0, buy=0.0, strength=0.0))
    with pytest.raises(InputError, match="call reset first"):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"expected an item 0\.\.1 as the action, found -1"):
        env.step(-1)
    assert env.step(0)[1:3] == (0.0, True)
    with pytest.raises(InputError, match="call reset first"):
        env.step(0)


@pytest.mark.parametrize(
    "knobs",
    [
        {"n_items": 21},
        {"n_items": 2.5},
        {"horizon": 11},
        {"strength": float("nan")},
        {"rewards": (1.0,)},
        {"rewards": 5.0},
    ],
)
def test_knobs_outside_their_range_are_refused_by_name(knobs):
    with pytest.raises(InputError, match=next(iter(knobs))):
        TabularShopConfig(**knobs)


def test_a_shopper_cannot_buy_and_leave_more_than_always():
    with pytest.raises(InputError, match=r"buy \+ leave must be at most 1, found 1\.2"):
        TabularShopConfig(buy=0.7, leave=0.5)


def test_what_is_no_policy_is_refused(shop):
    with pytest.raises(InputError, match="sum to 1"):
        exact_value(np.ones((10, 10)), shop)
    with pytest.raises(InputError, match="broadcast to"):
        exact_value(np.full((3, 7), 1 / 7), shop)
    with pytest.raises(InputError, match="at least 0"):
        exact_value(np.full((10, 10), np.nan), shop)


def test_no_sessions_are_refused(shop):
    with pytest.raises(InputError, match="n_sessions: expected at least 1, found 0"):
        simulate(np.full((10, 10), 0.1), shop, 0, np.random.default_rng(0))
