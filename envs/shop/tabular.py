"""A shop so small that the truth about it is computed, not estimated.

The agent recommends one item a step. A shopper has a hidden intent, a hidden persuasion level, and the item looked at
last, and either follows the recommendation, follows a transition of the shop, stays with the last item, buys it, or
leaves. Everything is in explicit arrays: `optimal_policy` solves the decision process that sees what is hidden, by
backward induction (Bellman, 1957), which bounds every policy from above; `exact_value` is the value of any one policy.

A policy is an array of action probabilities that broadcasts to [H, I, L, N, A]: step, intent, persuasion level, last
item, recommended item, with A = N. So [N, A] is one that sees the last item only, [H, 1, 1, N, A] the step as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from numbers import Integral, Real
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike

from ...errors import InputError


@dataclass(frozen=True)
class TabularShopConfig:
    """The knobs of the tabular shop. Raises `InputError` for a value outside its range."""

    n_items: int = 10
    """Items, 2 to 20; every one is also an action."""
    n_intents: int = 3
    """Hidden intents, 1 to 3; item j serves intent j % n_intents, and others a little."""
    n_levels: int = 3
    """Hidden persuasion levels, 1 to 3; a session begins on level n_levels // 2."""
    horizon: int = 5
    """Recommendations in a session at most, 1 to 10."""
    strength: float = 0.6
    """Chance that a recommendation is noticed; 0: it changes nothing, and all policies are worth the same."""
    delay: float = 0.3
    """Chance that a noticed item that fits the intent perfectly raises persuasion by a level: it sells later."""
    clickbait: float = 0.3
    """How much of an item's show replaces fit: it is clicked for its show, and persuasion falls by a level after."""
    back: float = 0.2
    """Chance that a click of the shopper's own stays with the last item."""
    buy: float = 0.4
    """Chance at the highest level that a shopper who does not follow buys a last item of perfect fit."""
    leave: float = 0.2
    """Chance that a shopper who does not follow leaves without buying."""
    rewards: tuple[float, float] = (1.0, 5.0)
    """Of a click and a purchase (IRN paper, section 5.1)."""

    def __post_init__(self) -> None:
        for knob in fields(self):
            value = getattr(self, knob.name)
            if knob.name == "rewards":
                if np.shape(value) != (2,) or not np.isfinite(np.asarray(value, dtype=np.float64)).all():
                    raise InputError(
                        f"TabularShopConfig: rewards must be two numbers, of a click and a purchase, found {value!r}"
                    )
                continue
            low, high = _RANGES.get(knob.name, (0, 1))
            is_number = isinstance(value, Integral if knob.type == "int" else Real) and not isinstance(value, bool)
            if not (is_number and low <= float(value) <= high):
                kind = "a whole number" if knob.type == "int" else "a number"
                raise InputError(
                    f"TabularShopConfig: {knob.name} must be {kind} from {low} to {high}, found {value!r}; correct it"
                )
        if self.buy + self.leave > 1:
            raise InputError(
                f"TabularShopConfig: buy + leave must be at most 1, found {self.buy + self.leave:g}; lower one of them"
            )


_RANGES = {"n_items": (2, 20), "n_intents": (1, 3), "n_levels": (1, 3), "horizon": (1, 10)}


@dataclass(frozen=True, eq=False)
class TabularShop:
    """The shop that follows from `config` and `seed`; its arrays are read-only.

    A state is (intent, level, last item), number (intent * L + level) * N + item of S = I * L * N + 2; the last two are
    BOUGHT and LEFT, where the session is over and nothing more is earned. An intent lasts for the session.
    """

    config: TabularShopConfig = TabularShopConfig()
    seed: int = 0
    fit: np.ndarray = field(init=False, repr=False)
    """[I, N] in 0..1, how well an item serves an intent."""
    show: np.ndarray = field(init=False, repr=False)
    """[N] in 0..1, what an item promises beyond its fit."""
    initial: np.ndarray = field(init=False, repr=False)
    """[S], distribution of the first state; its item was the shopper's own choice."""
    transition: np.ndarray = field(init=False, repr=False)
    """[S, A, S], P[state, action, next]."""
    gain: np.ndarray = field(init=False, repr=False)
    """[S], reward of entering a state, which is by a click, a purchase or leaving; staying over earns nothing."""
    reward: np.ndarray = field(init=False, repr=False)
    """[S, A], R[state, action], expected."""

    def __post_init__(self) -> None:
        config, rng = self.config, np.random.default_rng(self.seed)
        n_items, n_intents = config.n_items, config.n_intents
        serves = np.arange(n_items) % n_intents == np.arange(n_intents)[:, None]
        fit = np.where(serves, rng.uniform(0.5, 1.0, n_items), rng.uniform(0.0, 0.2, (n_intents, n_items)))
        show = rng.random(n_items)
        moves = fit[:, None, :] * rng.gamma(1.0, size=(n_items, n_items)) * (1 - np.eye(n_items))
        moves /= moves.sum(axis=2, keepdims=True)
        first = fit * rng.gamma(1.0, size=n_items)
        first /= first.sum(axis=1, keepdims=True) * n_intents

        start = np.zeros((n_intents, config.n_levels, n_items))
        start[:, config.n_levels // 2] = first
        transition = _transition(config, fit, show, moves)
        gain = np.full(len(transition), config.rewards[0])
        gain[-2:] = config.rewards[1], 0.0
        reward = transition @ gain
        reward[-2:] = 0.0
        initial = np.append(start.ravel(), [0.0, 0.0])
        for name, array in {
            "fit": fit,
            "show": show,
            "initial": initial,
            "transition": transition,
            "gain": gain,
            "reward": reward,
        }.items():
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @property
    def policy_shape(self) -> tuple[int, int, int, int, int]:
        """[H, I, L, N, A]."""
        config = self.config
        return config.horizon, config.n_intents, config.n_levels, config.n_items, config.n_items

    @property
    def n_live(self) -> int:
        """I * L * N, the states in which the session goes on."""
        return len(self.initial) - 2

    @cached_property
    def _arrive(self) -> _Draws:
        return _Draws(self.initial[None])

    @cached_property
    def _respond(self) -> _Draws:
        """Next states, a row for each live state and action."""
        return _Draws(self.transition[:-2].reshape(-1, len(self.initial)))

    def policy(self, probabilities: ArrayLike) -> np.ndarray:
        """`probabilities` as a read-only [H, I, L, N, A]. Raises `InputError` where they are no policy of this shop."""
        table = np.asarray(probabilities, dtype=np.float64)
        try:
            policy = np.broadcast_to(table, self.policy_shape)
        except ValueError:
            raise InputError(
                f"policy: expected probabilities that broadcast to [H, I, L, N, A] = {self.policy_shape}, found shape "
                f"{table.shape}; give axes of length 1 to what it does not see"
            ) from None
        if not (policy >= 0).all() or np.abs(policy.sum(axis=-1) - 1).max() > 1e-9:
            raise InputError("policy: expected probabilities of at least 0 that sum to 1 over actions; normalise them")
        return policy


def _transition(config: TabularShopConfig, fit: np.ndarray, show: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """[S, A, S]; axes i intent, l level, j last item, a action, m next level, k next item; `moves` [I, N, N]."""
    n_items, n_levels, n_intents = config.n_items, config.n_levels, config.n_intents
    same, level = np.eye(n_items), np.arange(n_levels)
    rise, fall = config.delay * fit, config.clickbait * show * (1 - fit)
    up, stay, down = (np.eye(n_levels)[np.clip(level + step, 0, n_levels - 1)] for step in (1, 0, -1))

    def moved(rise: np.ndarray, fall: np.ndarray) -> np.ndarray:
        chances = np.stack([rise, 1 - rise - fall, fall])
        return np.einsum("cia,clm->ialm", chances, np.stack([up, stay, down]))

    # Show closes part of the gap between an item's fit and 1.
    followed = config.strength * (fit + fall)
    ignored = config.strength - followed
    bought = config.buy * fit[:, None, :] * ((level + 1) / n_levels)[:, None]
    own = (1 - bought - config.leave)[..., None] * (config.back * same + (1 - config.back) * moves)[:, None]

    clicks = np.einsum("ia,ialm,ak->ilamk", followed, moved(rise, fall), same)[:, :, None]
    clicks = clicks + np.einsum("ia,ialm,iljk->iljamk", ignored, moved(rise, np.zeros_like(fall)), own)
    clicks += (1 - config.strength) * np.einsum("lm,iljk->iljmk", stay, own)[:, :, :, None]

    n_live = n_intents * n_levels * n_items
    live = np.zeros((n_intents, n_levels, n_items, n_items, n_live + 2))
    for intent in range(n_intents):
        first = intent * n_levels * n_items
        live[intent, ..., first : first + n_levels * n_items] = clicks[intent].reshape(*clicks.shape[1:4], -1)
    unfollowed = (1 - followed)[:, None, None]
    live[..., -2] = unfollowed * bought[..., None]
    live[..., -1] = unfollowed * config.leave
    transition = np.zeros((n_live + 2, n_items, n_live + 2))
    transition[:-2] = live.reshape(n_live, n_items, -1)
    transition[-2:, :, -2:] = np.eye(2)[:, None]
    return transition


class Optimum(NamedTuple):
    """The best that can be done by who sees what is hidden."""

    value: float
    """Expected reward of a session, undiscounted."""
    policy: np.ndarray
    """[H, I, L, N, A], 1 for the recommended item; of equally good ones the first."""


def optimal_policy(shop: TabularShop) -> Optimum:
    """The best policy of all that see step, intent, level and last item: an upper bound for every agent."""
    future, best = np.zeros(len(shop.initial)), []
    for _ in range(shop.config.horizon):
        action_value = shop.reward + shop.transition @ future
        best.append(action_value.argmax(axis=1)[:-2])
        future = action_value.max(axis=1)
    chosen = np.eye(shop.config.n_items)[np.stack(best[::-1])]
    return Optimum(float(shop.initial @ future), chosen.reshape(shop.policy_shape))


def exact_value(policy: ArrayLike, shop: TabularShop) -> float:
    """Expected reward of a session, undiscounted, by the exact distribution of states after every step.

    `policy` broadcasts to [H, I, L, N, A]. Raises `InputError` as `TabularShop.policy` does.
    """
    steps = shop.policy(policy).reshape(shop.config.horizon, -1, shop.config.n_items)
    state, value = shop.initial[:-2], 0.0
    for chosen in steps:
        taken = state[:, None] * chosen
        value += float((taken * shop.reward[:-2]).sum())
        state = np.tensordot(taken, shop.transition[:-2], axes=2)[:-2]
    return value


@dataclass(frozen=True, eq=False)
class TabularSessions:
    """Simulated sessions: E decisions in S sessions, one after the other."""

    offset: np.ndarray
    """[S + 1] int64, decisions of session s are offset[s]..offset[s + 1] - 1, at least one."""
    step: np.ndarray
    """[E] int64, from 0."""
    intent: np.ndarray
    """[E] int64, hidden from an agent."""
    level: np.ndarray
    """[E] int64, of persuasion; hidden from an agent."""
    item: np.ndarray
    """[E] int64, the last item."""
    action: np.ndarray
    """[E] int64, the recommended item."""
    propensity: np.ndarray
    """[E] float64, probability that the logging policy gave that action."""
    reward: np.ndarray
    """[E] float64."""

    def probabilities(self, policy: np.ndarray) -> np.ndarray:
        """[E, A]: what a `policy` [H, I, L, N, A] (`TabularShop.policy`) does in each decision."""
        return policy[self.step, self.intent, self.level, self.item]


def simulate(policy: ArrayLike, shop: TabularShop, n_sessions: int, rng: np.random.Generator) -> TabularSessions:
    """`n_sessions` sessions under `policy`, which broadcasts to [H, I, L, N, A].

    Two policies simulated with generators of one seed meet the same shoppers with the same luck: the draws of a session
    depend on its number and the step alone. Raises `InputError` as `TabularShop.policy` does, and for no sessions.
    """
    if n_sessions < 1:
        raise InputError(f"n_sessions: expected at least 1, found {n_sessions}")
    probabilities, config = shop.policy(policy), shop.config
    shape = (config.n_intents, config.n_levels, config.n_items)
    choose = _Draws(probabilities.reshape(-1, config.n_items))
    luck = rng.random((2 * config.horizon + 1, n_sessions))
    session = np.arange(n_sessions)
    state = shop._arrive(np.zeros(n_sessions, dtype=np.int64), luck[0])
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("session", "step", "state", "action", "next")}
    for step in range(config.horizon):
        action = choose(step * shop.n_live + state, luck[2 * step + 1, session])
        after = shop._respond(state * config.n_items + action, luck[2 * step + 2, session])
        decisions = (session, np.full(len(session), step), state, action, after)
        for column, part in zip(columns.values(), decisions, strict=True):
            column.append(part)
        going = after < shop.n_live
        session, state = session[going], after[going]
    flat = {name: np.concatenate(parts) for name, parts in columns.items()}
    order = np.argsort(flat["session"], kind="stable")
    session, step, state, action, after = (column[order] for column in flat.values())
    intent, level, item = np.unravel_index(state, shape)
    return TabularSessions(
        offset=np.concatenate([[0], np.cumsum(np.bincount(session, minlength=n_sessions))]),
        step=step,
        intent=intent,
        level=level,
        item=item,
        action=action,
        propensity=probabilities[step, intent, level, item, action],
        reward=shop.gain[after],
    )


class _Draws:
    """Draws from given rows of a table of probabilities [R, C], by one binary search over all of them."""

    def __init__(self, probabilities: np.ndarray) -> None:
        cumulative = np.cumsum(probabilities, axis=1)
        # From the last outcome that can be on, sums are 1 exactly, so that rounding leaves no gap and makes none.
        cumulative[cumulative >= cumulative[:, -1:]] = 1.0
        self._n_outcomes = probabilities.shape[1]
        self._ends = (np.arange(len(cumulative))[:, None] + cumulative).ravel()

    def __call__(self, row: Any, uniform: Any) -> Any:
        found = np.searchsorted(self._ends, row + uniform, side="right")
        # A uniform number just below 1 may round up to the next row.
        return np.minimum(found - row * self._n_outcomes, self._n_outcomes - 1)


class TabularShopEnv(gym.Env):
    """The tabular shop, live. Action: Discrete(N), the recommended item.

    Observation: MultiDiscrete([H + 1, N]), step and last item; with `reveal_intent` MultiDiscrete([H + 1, I, L, N]),
    all that is hidden as well, which is what `optimal_policy` sees, in the order of its axes. An episode is a session;
    it terminates when the shopper buys, leaves, or has had `horizon` recommendations.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(
        self,
        config: TabularShopConfig = TabularShopConfig(),
        shop_seed: int = 0,
        reveal_intent: bool = False,
        render_mode: None = None,
    ) -> None:
        self.shop, self.reveal_intent, self.render_mode = TabularShop(config, shop_seed), reveal_intent, render_mode
        n_steps, *hidden, n_items, _ = self.shop.policy_shape
        self.observation_space = gym.spaces.MultiDiscrete([n_steps + 1, *(hidden if reveal_intent else []), n_items])
        self.action_space = gym.spaces.Discrete(n_items)
        self._over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """A new shopper, who looks at an item of their own choice."""
        super().reset(seed=seed)
        self._state, self._step, self._over = int(self.shop._arrive(0, self.np_random.random())), 0, False
        self._observed = np.unravel_index(self._state, self.shop.policy_shape[1:4])
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Recommend an item; the shopper responds. Raises `InputError` without a session, and for what is no item."""
        if self._over:
            raise InputError("step: there is no session, or it has ended; call reset first")
        n_items = self.shop.config.n_items
        if not 0 <= action < n_items:
            raise InputError(f"step: expected an item 0..{n_items - 1} as the action, found {action}")
        row = self._state * n_items + int(action)
        self._state, self._step = int(self.shop._respond(row, self.np_random.random())), self._step + 1
        gone = self._state >= self.shop.n_live
        if not gone:
            self._observed = np.unravel_index(self._state, self.shop.policy_shape[1:4])
        self._over = gone or self._step == self.shop.config.horizon
        return self._observation(), float(self.shop.gain[self._state]), self._over, False, {}

    def _observation(self) -> np.ndarray:
        seen = self._observed if self.reveal_intent else self._observed[-1:]
        return np.array([self._step, *seen], dtype=np.int64)
