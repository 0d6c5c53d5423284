"""Off-policy estimators: by hand, over all paths of a tiny shop, against the truth of the tabular one, and refusals."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false, reportOptionalMemberAccess=false, reportOptionalOperand=false

from __future__ import annotations

import contextlib
import io
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from sessiongym.envs.log import CLICK, PURCHASE, SessionLog
from sessiongym.envs.shop.tabular import TabularShop, TabularShopConfig, exact_value, simulate
from sessiongym.errors import InputError
from sessiongym.evaluate.exports import table_markdown
from sessiongym.evaluate.off_policy import (
    ActionValues,
    Estimate,
    LoggedDecisions,
    UnreliableEstimate,
    clipped_ips,
    direct_method,
    doubly_robust,
    ips,
    per_decision,
    snips,
)
from sessiongym.evaluate.off_policy_inputs import (
    estimate_propensities,
    fitted_values,
    model_values,
    policy_probabilities,
    softmax_probabilities,
)
from sessiongym.evaluate.off_policy_table import (
    GUESSED,
    all_estimates,
    coverage_table,
    estimates_table,
    mixed_policies,
    recorded_estimates,
)

ANY = {"min_effective_sample_size": 0}

# Two sessions, of two decisions and of one: weights 2, 1 and 0.5.
HAND = LoggedDecisions(np.array([0, 2, 3]), np.array([1.0, 5.0, 1.0]), np.array([0.25, 0.8, 1.0]))
HAND_TARGET = np.array([0.5, 0.4, 0.5])


def by_hand(first: float, second: float) -> tuple[float, float]:
    """Mean and standard error of two sessions' figures."""
    return (first + second) / 2, abs(first - second) / 2


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (ips(HAND, HAND_TARGET, **ANY), by_hand(1.0 * 6, 0.5 * 1)),
        (clipped_ips(HAND, HAND_TARGET, 0.75, **ANY), by_hand(0.75 * 6, 0.5)),
        (per_decision(HAND, HAND_TARGET, **ANY), by_hand(2.0 * 1 + 1.0 * 5, 0.5)),
        (direct_method(HAND, ActionValues(np.array([9.0, 9.0, 9.0]), np.array([4.0, 3.0, 2.0]))), by_hand(4.0, 2.0)),
        (
            doubly_robust(HAND, HAND_TARGET, ActionValues(np.array([2.0, 3.0, 0.5]), np.array([4.0, 3.0, 2.0])), **ANY),
            # Session 1: v + 2 (1 - 2) + 2 * 3 + 1 (5 - 3); session 2: v + 0.5 (1 - 0.5).
            by_hand(4.0 - 2.0 + 6.0 + 2.0, 2.0 + 0.25),
        ),
    ],
    ids=["ips", "clipped", "per-decision", "direct", "doubly robust"],
)
def test_two_sessions_by_hand(found, expected):
    value, error = expected
    assert (found.value, found.standard_error) == pytest.approx((value, error))
    assert (found.low, found.high) == pytest.approx((value - 1.959964 * error, value + 1.959964 * error))
    assert found.n_sessions == 2


def test_self_normalised_forms_by_hand():
    assert snips(HAND, HAND_TARGET, **ANY).value == pytest.approx((1 * 6 + 0.5 * 1) / 1.5)
    # Step 0: weights 2 and 0.5; step 1: 1, and 0.5 of the session that is over.
    expected = (2 * 1 + 0.5 * 1) / 2.5 + 1 * 5 / 1.5
    assert per_decision(HAND, HAND_TARGET, self_normalized=True, **ANY).value == pytest.approx(expected)


def test_diagnostics_by_hand():
    found = ips(HAND, HAND_TARGET, **ANY)
    assert found.effective_sample_size == pytest.approx(1.5**2 / (1 + 0.25))
    assert (found.largest_weight, found.mean_weight) == (1.0, 0.75)
    direct = direct_method(HAND, ActionValues(np.zeros(3), np.zeros(3)))
    assert (direct.effective_sample_size, direct.largest_weight) == (2.0, 1.0)


def paths(shop: TabularShop, policy: np.ndarray):
    """Every session that can be, with its chance under `policy`: (chance, [(step, state, action, reward)])."""

    def follow(chance, state, decisions):
        step = len(decisions)
        if step == shop.config.horizon or state >= len(shop.initial) - 2:
            yield chance, decisions
            return
        for action, taken in enumerate(policy.reshape(shop.config.horizon, -1, shop.config.n_items)[step, state]):
            for after in np.flatnonzero(shop.transition[state, action]):
                decision = (step, state, action, shop.gain[after])
                yield from follow(chance * taken * shop.transition[state, action, after], after, [*decisions, decision])

    for state in np.flatnonzero(shop.initial):
        yield from follow(shop.initial[state], state, [])


@pytest.mark.parametrize("name", ["ips", "per_decision", "doubly_robust"])
def test_the_expectation_over_all_sessions_that_can_be_is_the_exact_value(name):
    shop = TabularShop(TabularShopConfig(n_items=2, n_intents=2, n_levels=2, horizon=2), seed=1)
    rng = np.random.default_rng(0)
    logging, target = (shop.policy(rng.dirichlet(np.ones(2), size=2)) for _ in range(2))
    # A wrong model that sees step and item alone: doubly robust is unbiased all the same.
    q = rng.normal(size=(2, 2, 2))
    total, sum_of_chances = 0.0, 0.0
    for chance, decisions in paths(shop, logging):
        step, state, action, reward = (np.array(column) for column in zip(*decisions, strict=True))
        item = state % 2
        given, wanted = (policy[0, 0, 0, item, action] for policy in (logging, target))
        twice = np.tile(np.arange(len(step)), 2)
        logged = LoggedDecisions(np.array([0, 1, 2]) * len(step), reward[twice], given[twice])
        values = ActionValues(q[step, item, action][twice], (q[step, item] * target[0, 0, 0, item]).sum(axis=1)[twice])
        found = {
            "ips": lambda: ips(logged, wanted[twice], **ANY),  # noqa: B023 - called at once
            "per_decision": lambda: per_decision(logged, wanted[twice], **ANY),  # noqa: B023
            "doubly_robust": lambda: doubly_robust(logged, wanted[twice], values, **ANY),  # noqa: B023
        }[name]()
        total += chance * found.value
        sum_of_chances += chance
    assert sum_of_chances == pytest.approx(1.0)
    assert total == pytest.approx(exact_value(target, shop), rel=1e-12)


@pytest.fixture(scope="module")
def shop() -> TabularShop:
    return TabularShop()


def logged_sessions(shop, n_sessions, seed=0, logging_share=0.5, target_share=0.8):
    """A log of the shop, the target's probabilities of logged actions [E] and of all [E, A], and the sessions."""
    logging, target = map(shop.policy, mixed_policies(shop, logging_share, target_share))
    sessions = simulate(logging, shop, n_sessions, np.random.default_rng(seed))
    every = sessions.probabilities(target)
    logged = LoggedDecisions(sessions.offset, sessions.reward, sessions.propensity)
    return logged, every[np.arange(len(every)), sessions.action], every, sessions


def test_on_its_own_log_a_policy_is_worth_what_it_earned(shop):
    logged, _, _, sessions = logged_sessions(shop, 500)
    returns = np.add.reduceat(sessions.reward, sessions.offset[:-1])
    expected = (returns.mean(), returns.std(ddof=1) / np.sqrt(500), 500.0, 1.0)
    for estimator in (ips, clipped_ips, snips, per_decision):
        found = estimator(logged, logged.propensity)
        diagnostics = (found.effective_sample_size, found.largest_weight)
        assert (found.value, found.standard_error, *diagnostics) == pytest.approx(expected)


def test_unclipped_clipped_ips_is_ips_and_a_lower_clip_never_earns_more(shop):
    logged, target, _, _ = logged_sessions(shop, 500)
    assert clipped_ips(logged, target, 1e9) == ips(logged, target)
    values = [clipped_ips(logged, target, clip, **ANY).value for clip in (0.5, 1.0, 2.0, 4.0)]
    assert sorted(values) == values and values[0] < values[-1]


def test_without_a_model_doubly_robust_is_per_decision(shop):
    logged, target, _, _ = logged_sessions(shop, 500)
    nothing = ActionValues(*np.zeros((2, len(target))))
    assert doubly_robust(logged, target, nothing) == per_decision(logged, target)


def test_a_reward_is_not_weighted_by_what_was_done_after_it(shop):
    logged, target, _, _ = logged_sessions(shop, 500)
    first_only = LoggedDecisions(logged.offset, np.where(logged.step == 0, 1.0, 0.0), logged.propensity)
    ratio = (target / logged.propensity)[logged.offset[:-1]]
    assert per_decision(first_only, target).value == pytest.approx(ratio.mean())
    assert per_decision(first_only, target, self_normalized=True).value == pytest.approx(1.0)


@pytest.mark.parametrize("self_normalized", ["snips", "per decision"])
def test_standard_errors_of_normalised_estimators_are_those_of_the_jackknife(shop, self_normalized):
    logged, target, _, _ = logged_sessions(shop, 400)

    def value(sessions: np.ndarray) -> float:
        events = np.concatenate([np.arange(logged.offset[s], logged.offset[s + 1]) for s in sessions])
        offset = np.concatenate([[0], np.cumsum(np.diff(logged.offset)[sessions])])
        part = LoggedDecisions(offset, logged.reward[events], logged.propensity[events])
        return estimate(part, target[events]).value

    def estimate(part: LoggedDecisions, probability: np.ndarray) -> Estimate:
        if self_normalized == "snips":
            return snips(part, probability)
        return per_decision(part, probability, self_normalized=True)

    left_out = np.array([value(np.delete(np.arange(400), s)) for s in range(400)])
    jackknife = np.sqrt(399 / 400 * ((left_out - left_out.mean()) ** 2).sum())
    # They agree up to terms of relative order 1 / effective sample size.
    found = estimate(logged, target)
    assert found.standard_error == pytest.approx(jackknife, rel=10 / found.effective_sample_size)


def test_the_order_of_the_sessions_does_not_matter(shop):
    logged, target, _, _ = logged_sessions(shop, 300)
    order = np.random.default_rng(1).permutation(300)
    events = np.concatenate([np.arange(logged.offset[s], logged.offset[s + 1]) for s in order])
    offset = np.concatenate([[0], np.cumsum(np.diff(logged.offset)[order])])
    shuffled = LoggedDecisions(offset, logged.reward[events], logged.propensity[events])
    for name, found in all_estimates(logged, target).items():
        assert all_estimates(shuffled, target[events])[name].value == pytest.approx(found.value, rel=1e-12)


def test_sessions_without_decisions_earn_nothing_and_count():
    logged = LoggedDecisions(np.array([0, 0, 2, 3, 3]), HAND.reward, HAND.propensity)
    assert ips(logged, HAND_TARGET, **ANY).value == pytest.approx(6.5 / 4)
    assert ips(logged, HAND_TARGET, **ANY).mean_weight == pytest.approx((1.5 + 2) / 4)
    values = ActionValues(np.zeros(3), np.array([4.0, 3.0, 2.0]))
    assert direct_method(logged, values).value == pytest.approx(6 / 4)


def test_a_fitted_table_by_hand():
    # Two folds of two sessions: 0 and 2, 1 and 3. One state, two actions, the target always takes action 1.
    logged = LoggedDecisions(np.array([0, 2, 3, 4, 5]), np.array([1.0, 5.0, 2.0, 4.0, 8.0]), np.ones(5))
    state, action = np.zeros(5, dtype=int), np.array([1, 1, 0, 1, 1])
    target = np.tile([0.0, 1.0], (5, 1))
    found = fitted_values(logged, state, action, target, prior=1e-12)
    # Sessions 1 and 3 know no second step; their first steps gave 2 for action 0 and 8 for action 1.
    # Of sessions 0 and 2, the last step gives 5, so that the first ones are worth 1 + 5 and 4.
    np.testing.assert_allclose(found.expected, [8.0, 0.0, 5.0, 8.0, 5.0])
    np.testing.assert_allclose(found.logged, [8.0, 0.0, 5.0, 8.0, 5.0])


def test_a_fitted_table_is_drawn_to_the_means_of_state_and_step():
    logged = LoggedDecisions(np.arange(5), np.array([0.0, 6.0, 0.0, 2.0]), np.ones(4))
    state, action = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
    found = fitted_values(logged, state, action, np.tile([0.5, 0.5], (4, 1)), prior=1.0)
    # Told by sessions 1 and 3: the mean is 4; state 0 (6 + 4) / 2 = 5 and its action 0 (6 + 5) / 2.
    assert found.logged[0] == pytest.approx(5.5)
    assert found.expected[0] == pytest.approx((5.5 + 5.0) / 2)


def test_no_session_vouches_for_itself(shop):
    logged, _, every, sessions = logged_sessions(shop, 200)
    values = fitted_values(logged, sessions.item, sessions.action, every)
    own = logged.session % 2 == 0
    changed = LoggedDecisions(logged.offset, np.where(own, 100.0, logged.reward), logged.propensity)
    after = fitted_values(changed, sessions.item, sessions.action, every)
    np.testing.assert_array_equal(after.logged[own], values.logged[own])
    np.testing.assert_array_equal(after.expected[own], values.expected[own])
    assert (after.expected[~own] > values.expected[~own]).all()


def test_a_table_that_sees_all_that_is_hidden_makes_the_direct_method_right():
    shop = TabularShop(TabularShopConfig(n_items=3, n_intents=2, n_levels=2, horizon=3), seed=2)
    estimates = []
    for seed in range(20):
        logged, _, every, sessions = logged_sessions(shop, 2_000, seed)
        state = (sessions.intent * 2 + sessions.level) * 3 + sessions.item
        estimates.append(direct_method(logged, fitted_values(logged, state, sessions.action, every)).value)
    error = np.std(estimates, ddof=1) / np.sqrt(20)
    assert abs(np.mean(estimates) - exact_value(mixed_policies(shop)[1], shop)) < 4 * error


def test_models_are_asked_in_chunks_and_it_makes_no_difference():
    rng = np.random.default_rng(0)
    q, target, action = rng.normal(size=(50, 4)), rng.dirichlet(np.ones(4), size=50), rng.integers(4, size=50)
    found = model_values(action, lambda rows: q[rows], lambda rows: target[rows], chunk=7)
    np.testing.assert_allclose(found.logged, q[np.arange(50), action])
    np.testing.assert_allclose(found.expected, (q * target).sum(axis=1))
    probability = policy_probabilities(action, lambda rows: target[rows], chunk=7)
    np.testing.assert_array_equal(probability, target[np.arange(50), action])


@pytest.mark.parametrize(
    ("config", "shares", "n_sessions"),
    [
        (TabularShopConfig(), (0.5, 0.8), 1_000),
        pytest.param(TabularShopConfig(n_items=20, delay=0.8), (0.3, 0.5), 1_000, marks=pytest.mark.slow),
        pytest.param(TabularShopConfig(n_intents=2, strength=0.9), (0.8, 0.5), 2_000, marks=pytest.mark.slow),
    ],
    ids=["10 items", "20 items", "a target that tries more"],
)
def test_intervals_of_the_unbiased_estimators_cover_the_truth_in_90_to_98_percent_of_500_logs(
    config, shares, n_sessions
):
    shop = TabularShop(config, seed=1)
    table = coverage_table(shop, mixed_policies(shop, *shares), n_sessions=n_sessions)
    labels = [column.label for column in table.columns]
    rows = {row.label: dict(zip(labels, row.figures, strict=True)) for row in table.rows}
    for name in ("IPS", "per-decision", "doubly robust"):
        assert rows[name]["refused"].value == 0, "the effective sample size is at least 100 in every log"
        assert 0.90 <= rows[name]["coverage"].value <= 0.98, name


@pytest.mark.slow
def test_estimates_from_a_log_of_the_live_shop_are_what_the_policy_earns_there():
    from sessiongym.envs.shop import ShopConfig
    from sessiongym.envs.shop.live_config import LiveShopConfig
    from sessiongym.envs.shop.logged import collect
    from sessiongym.envs.shop.policies import SoftmaxPolicy
    from sessiongym.envs.shop.value import true_value

    config = LiveShopConfig(shop=ShopConfig(n_items=40, items_per_cluster=10, max_events=6), strength=0.6)
    table = np.random.default_rng(0).normal(size=(41, 40))
    logging, target = (SoftmaxPolicy(lambda seen: table[seen[:, -1]], t, epsilon=0.3) for t in (1.0, 0.7))
    _, data = collect(logging, config, 4_000, seed=1)
    every = target.probabilities(data.window)
    logged = LoggedDecisions(data.offset, data.reward, data.propensity)
    model = fitted_values(logged, data.window[:, -1], data.action, every)
    of_logged = policy_probabilities(data.action, lambda rows: target.probabilities(data.window[rows]))
    truth = true_value(target, config, 50_000, seed=2)
    outcomes = all_estimates(logged, of_logged, model)
    for name in ("IPS", "per-decision", "doubly robust"):
        error = np.hypot(outcomes[name].standard_error, truth.standard_error)
        assert abs(outcomes[name].value - truth.mean) < 4 * error, name


@pytest.mark.parametrize(
    ("propensity", "message"),
    [
        (None, "no propensities"),
        ([0.5, 0.0, 1.0], r"propensity 0 of decision 1 is not in \(0, 1\] \(1 of 3 are not\)"),
        ([0.5, 0.5, 1.5], "propensity 1.5 of decision 2"),
        ([-0.5, 0.5, 1.0], "propensity -0.5 of decision 0"),
        ([0.5, np.nan, 1.0], "with NaN or infinity"),
        ([0.5, 0.5], "expected propensity as 3 finite numbers"),
    ],
)
def test_a_log_without_usable_propensities_is_refused(propensity, message):
    with pytest.raises(InputError, match=message):
        LoggedDecisions(np.array([0, 2, 3]), np.ones(3), propensity)


@pytest.mark.parametrize("offset", [[0, 3], [0, 3, 2], [1, 2, 3], []])
def test_offsets_that_are_no_sessions_are_refused(offset):
    with pytest.raises(InputError, match="offsets of at least two sessions"):
        LoggedDecisions(np.array(offset), np.ones(3), np.ones(3))


@pytest.mark.parametrize("target", [[0.5, 1.5, 0.5], [0.5, -0.1, 0.5]])
def test_a_target_that_is_no_probability_is_refused(target):
    with pytest.raises(InputError, match=r"of decision 1 is not in 0\.\.1"):
        ips(HAND, target)


def test_other_arguments_out_of_range_are_refused():
    with pytest.raises(InputError, match="largest weight above 0"):
        clipped_ips(HAND, HAND_TARGET, 0.0)
    with pytest.raises(InputError, match=r"expected 2\.\.2 folds, found 1"):
        fitted_values(HAND, np.zeros(3, int), np.zeros(3, int), np.ones((3, 1)), folds=1)
    with pytest.raises(InputError, match=r"expected values\.logged as 3 finite numbers"):
        doubly_robust(HAND, HAND_TARGET, ActionValues(np.zeros(2), np.zeros(3)))


def full_catalogue(n_sessions: int, n_items: int = 1_000, horizon: int = 3) -> tuple[LoggedDecisions, np.ndarray]:
    """Uniform recommendations from a full catalogue, and what a nearly greedy policy thinks of them."""
    rng = np.random.default_rng(0)
    action, best = rng.integers(n_items, size=(2, n_sessions * horizon))
    offset = np.arange(n_sessions + 1) * horizon
    logged = LoggedDecisions(offset, rng.random(len(action)), np.full(len(action), 1 / n_items))
    return logged, 0.01 / n_items + 0.99 * (action == best)


@pytest.mark.parametrize("estimator", [ips, snips, per_decision])
def test_at_a_full_catalogue_a_log_is_worth_next_to_nothing_and_the_estimate_is_refused(estimator):
    logged, target = full_catalogue(20_000)
    with pytest.raises(UnreliableEstimate, match=r"the 20000 sessions are worth \d\d\.\d of the target") as refusal:
        estimator(logged, target)
    assert "\n" not in str(refusal.value)
    assert estimator(logged, target, **ANY) == refusal.value.estimate
    sent = pickle.loads(pickle.dumps(refusal.value))
    assert (str(sent), sent.estimate) == (str(refusal.value), refusal.value.estimate)


def test_at_a_full_catalogue_more_sessions_that_all_weigh_nothing_do_not_help():
    logged, target = full_catalogue(100_000)
    with pytest.raises(UnreliableEstimate, match="lacks actions of the target policy") as refusal:
        ips(logged, target)
    assert refusal.value.estimate.effective_sample_size > 100 and refusal.value.estimate.mean_weight < 0.01


@pytest.mark.filterwarnings("error")
def test_weights_beyond_any_float_are_refused_and_not_a_warning():
    logged = LoggedDecisions(np.array([0, 300, 301, 302]), np.ones(302), np.full(302, 1e-5))
    for outcome in all_estimates(logged, np.ones(302)).values():
        assert isinstance(outcome, UnreliableEstimate) and np.isfinite(outcome.estimate.value)


def test_what_no_session_shows_cannot_be_estimated_at_all():
    with pytest.raises(UnreliableEstimate, match=r"worth 0\.0"):
        snips(HAND, np.zeros(3), **ANY)


def test_a_log_that_lacks_what_the_target_does_is_refused_however_many_sessions_it_has():
    # The target takes three of four times an action that the log has never tried, so that all weights are 1/4 or so.
    rng = np.random.default_rng(0)
    logged = LoggedDecisions(np.arange(1_001), np.ones(1_000), rng.choice([0.9, 1.0], 1_000))
    with pytest.raises(UnreliableEstimate, match="lacks actions of the target policy") as refusal:
        ips(logged, np.full(1_000, 0.25))
    assert refusal.value.estimate.effective_sample_size > 900
    assert ips(logged, np.full(1_000, 0.25), **ANY).mean_weight < 0.3


def test_clipped_weights_whose_mean_is_above_1_are_refused_and_below_1_are_not():
    logged = LoggedDecisions(np.arange(1_001), np.ones(1_000), np.tile([0.5, 0.25], 500))
    assert clipped_ips(logged, np.full(1_000, 0.25), 0.9).mean_weight == pytest.approx(0.7)
    with pytest.raises(UnreliableEstimate, match=r"the mean weight of the sessions is 1\.2"):
        clipped_ips(logged, np.full(1_000, 0.45), 1.5)


def test_guesses_that_are_off_by_more_than_a_factor_of_two_are_refused():
    guessed = LoggedDecisions(np.arange(1_001), np.ones(1_000), np.full(1_000, 0.2), estimated_propensities=True)
    for target, refused in ((0.05, True), (0.15, False), (0.3, False), (0.5, True)):
        outcome = all_estimates(guessed, np.full(1_000, target))["IPS"]
        assert isinstance(outcome, UnreliableEstimate) == refused


@pytest.fixture(scope="module")
def recorded() -> SessionLog:
    """Sessions a b a, a b!, b a and c alone; the second b is bought."""
    kind = np.array([CLICK, CLICK, CLICK, CLICK, PURCHASE, CLICK, CLICK, CLICK])
    return SessionLog(
        item=np.array([0, 1, 0, 0, 1, 1, 0, 2]),
        kind=kind,
        time=np.arange(8) * 10**9,
        offset=np.array([0, 3, 5, 7, 8]),
        session_id=np.arange(4),
        item_id=np.array(["a", "b", "c"]),
    )


def test_guessed_propensities_leave_out_the_decision_itself(recorded):
    guessed = estimate_propensities(recorded, prior=2.0)
    # Decisions b, a | b! | a | none; half of them are a. Each transition is made twice, once by another decision.
    np.testing.assert_allclose(guessed.propensity, (1 + 2.0 * 0.5) / (1 + 2.0))
    np.testing.assert_array_equal(guessed.offset, [0, 2, 3, 4, 4])
    np.testing.assert_array_equal(guessed.reward, [1.0, 1.0, 5.0, 1.0])
    assert guessed.estimated_propensities


def test_guessed_propensities_of_all_items_after_one_sum_to_one():
    rng, prior = np.random.default_rng(0), 3.0
    item = rng.integers(6, size=400)
    total = 0.0
    for following in range(6):
        # One more session, whose decision is left out of the counts of transitions.
        log = SessionLog(
            item=np.append(item, [0, following]),
            kind=np.zeros(402, np.uint8),
            time=np.arange(402),
            offset=np.array([*range(0, 401, 4), 402]),
            session_id=np.arange(101),
            item_id=np.arange(6),
        )
        total += estimate_propensities(log, prior=prior).propensity[-1]
    after_0 = (item.reshape(100, 4)[:, :-1] == 0).sum()
    # The decision counts among the 301 that the items' shares are of, each time for another of the six items.
    assert total == pytest.approx((after_0 + prior * (300 + 6) / 301) / (after_0 + prior))


def test_estimates_from_guessed_propensities_are_marked(recorded):
    guessed = estimate_propensities(recorded)
    outcomes = all_estimates(guessed, np.full(4, 0.5), **ANY)
    assert all(outcome.estimated_propensities for outcome in outcomes.values())
    assert not direct_method(guessed, ActionValues(*np.zeros((2, 4)))).estimated_propensities
    text = table_markdown(estimates_table(outcomes))
    assert text.count(GUESSED) == len(outcomes) + 1 and "guessed" in text


def test_true_propensities_are_not_marked_and_refusals_are_told_once(shop):
    logged, target, every, sessions = logged_sessions(shop, 150)
    values = fitted_values(logged, sessions.item, sessions.action, every)
    table = estimates_table(all_estimates(logged, target, values), truth=4.0)
    by_label = {row.label: row.figures for row in table.rows}
    assert GUESSED not in table_markdown(table)
    assert by_label["IPS"][0].value is None and by_label["IPS"][1].value is not None
    assert by_label["direct method"][0].value is not None
    assert table.notes[0] == "True value: 4.0000." and sum("Refused" in note for note in table.notes) == 1


class Fixed:
    """Scores that depend on the item to be guessed only."""

    def fit(self, train, valid=None):
        return self

    def score_sessions(self, batch):
        return np.tile(np.log([1.0, 2.0, 5.0]), (batch.n_rows, 1)).astype(np.float32)

    def recommend(self, history, k):
        raise NotImplementedError


def test_softmax_probabilities_are_those_of_the_logged_items(recorded):
    np.testing.assert_allclose(softmax_probabilities(Fixed(), recorded), [2 / 8, 1 / 8, 2 / 8, 1 / 8], rtol=1e-6)
    cold = softmax_probabilities(Fixed(), recorded, temperature=0.5)
    np.testing.assert_allclose(cold, [4 / 30, 1 / 30, 4 / 30, 1 / 30], rtol=1e-6)
    with pytest.raises(InputError, match="temperature above 0"):
        softmax_probabilities(Fixed(), recorded, temperature=0.0)


def test_a_recorded_log_is_refused_unless_guessing_is_meant(recorded):
    with pytest.raises(InputError, match="--estimate-propensities"):
        recorded_estimates(Fixed(), recorded)
    found = recorded_estimates(Fixed(), recorded, guess_propensities=True, **ANY)
    assert found == all_estimates(estimate_propensities(recorded), softmax_probabilities(Fixed(), recorded), **ANY)


def test_guesses_without_anything_to_guess_from_are_refused(recorded):
    with pytest.raises(InputError, match="prior above 0"):
        estimate_propensities(recorded, prior=0.0)
    alone = SessionLog(
        item=np.array([0, 1]),
        kind=np.zeros(2, np.uint8),
        time=np.arange(2),
        offset=np.arange(3),
        session_id=np.arange(2),
        item_id=np.arange(2),
    )
    with pytest.raises(InputError, match="sessions of two events or more"):
        estimate_propensities(alone)


def test_the_page_prints_what_it_says():
    page = (Path(__file__).parents[1] / "docs" / "off-policy.md").read_text(encoding="utf-8")
    known, guessed = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    (printed,) = re.findall(r"^```text\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    found = []
    for block in (known, guessed):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(block, names)
        found.append(out.getvalue())
    assert found[0].strip() == printed.strip()
    assert found[1].count(f"{GUESSED} |  |") == 5, "all of them are refused"
