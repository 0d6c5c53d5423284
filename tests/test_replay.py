"""The replay environments keep Gymnasium's contracts, agree with each other, and lose no event of the log."""

import copy
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from gymnasium.spaces import MultiDiscrete
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import NormalizeReward, NumpyToTorch, RecordEpisodeStatistics
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sessiongym.envs.log import CLICK, PURCHASE, SessionLog
from sessiongym.envs.replay import ReplayEnv, ReplayVectorEnv
from sessiongym.envs.rollout import logged
from sessiongym.envs.sparsity import thin_purchases
from sessiongym.errors import InputError

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
ENV = "sessiongym:sessiongym/Replay-v0"
N = 12
B = 7

OPTIONS = [
    {},
    {"feedback": "logged"},
    {"order": "shuffled"},
    {"window": 1},
    {"window": 3, "rewards": (0.0, 5.0)},
    {"density": 0.4, "drop": "event"},
    {"density": 0.4, "drop": "reward", "feedback": "logged", "density_seed": 5},
    {"density": 0.4, "drop": "click", "feedback": "logged", "order": "shuffled"},
    {"cold_start": 1},
    {"cold_start": 3, "window": 2, "order": "shuffled"},
    {"kinds": True, "window": 4},
    {"kinds": True, "cold_start": 2, "feedback": "logged", "density": 0.5},
    {"slate": 3},
    {"slate": 1, "kinds": True, "order": "shuffled"},
]
MODES = list(AutoresetMode)


@pytest.fixture(scope="module")
def log() -> SessionLog:
    """62 sessions of 1 to 12 events over few items, so that actions hit and items come again."""
    rng = np.random.default_rng(0)
    length = rng.integers(1, 13, 62)
    length[:3] = 1, 12, 2
    n_events = int(length.sum())
    return SessionLog.from_pandas(
        pd.DataFrame(
            {
                "session": np.repeat(np.arange(62) * 10, length),
                "item": rng.integers(0, N, n_events),
                "time": np.arange(n_events),
                "kind": (rng.random(n_events) < 0.35).astype(int),
            }
        ),
        item_id=np.arange(N),
    )


@pytest.fixture(scope="module")
def playable(log) -> np.ndarray:
    sessions = np.flatnonzero(log.length >= 2)
    # Or all lanes would end their passes together.
    assert len(sessions) % B and len(sessions) < log.n_sessions
    return sessions


@pytest.fixture(scope="module")
def real_log() -> SessionLog:
    file = DATA / "taobao_actions" / "events.csv"
    if not file.exists():
        pytest.skip(f"{file} is not there; set SESSIONGYM_DATA to the data folder")
    raw = pd.read_csv(file, nrows=20_000)
    session = raw["user_idx"] * 1000 + raw.groupby("user_idx")["timestamp"].transform(
        lambda t: (t.diff() > 3600).cumsum()
    )
    return SessionLog.from_pandas(
        pd.DataFrame(
            {
                "session": session,
                "item": raw["item_idx"],
                "time": raw["timestamp"] * 10**9,
                "kind": (raw["behaviour"] == "buy").astype(int),
            }
        )
    )


def assert_same(found, expected, where="") -> None:
    """Equal in structure, dtypes and values, down to the arrays of an object array."""
    assert type(found) is type(expected), where
    if isinstance(expected, tuple):
        for number, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_same(a, b, f"{where}[{number}]")
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype and found.shape == expected.shape, where
        if expected.dtype == object:
            for number, (a, b) in enumerate(zip(found, expected, strict=True)):
                assert_same(a, b, f"{where}[{number}]")
        else:
            np.testing.assert_array_equal(found, expected, err_msg=where)
    else:
        assert found == expected, where


def actions_of(env, seed: int, n_steps: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, N, (n_steps, *env.action_space.shape))


def step_and_reset(env, action) -> list:
    """What a step returns and, where the caller is the one to reset ended lanes, what that returns."""
    out = [env.step(action)]
    ended = out[0][2] | out[0][3]
    if env.metadata["autoreset_mode"] == AutoresetMode.DISABLED and ended.any():
        out.append(env.reset(options={"reset_mask": ended.copy()}))
    return out


def play(env, n_steps: int, seed: int | Sequence[int | None] | None = 3) -> list:
    """Everything that a reset and `n_steps` steps return."""
    out = [env.reset(seed=seed)]
    for action in actions_of(env, 1, n_steps):
        out += step_and_reset(env, action)
    return out


def started_sessions(steps: list) -> list[tuple[int, int]]:
    """(pass, session) of every session started, by step and then by lane; `steps` is what `play` returns."""
    first = steps[0][1]
    out = list(zip(first["pass"].tolist(), first["session"].tolist(), strict=True))
    for _, _, terminated, truncated, info in steps[1:]:
        lanes = np.flatnonzero(terminated | truncated)
        out += zip(info["pass"][lanes].tolist(), info["session"][lanes].tolist(), strict=True)
    return out


# Gymnasium's own advice for observations of other kinds than item numbers.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("options", OPTIONS)
def test_the_checkers_of_gymnasium_and_stable_baselines3_pass(log, options):
    from stable_baselines3.common.env_checker import check_env as check_env_sb3

    env = gym.make(ENV, log=log, **options)
    check_env(env.unwrapped, skip_render_check=True)
    check_env_sb3(env)


def test_a_log_may_be_given_as_its_path(log, tmp_path):
    folder = tmp_path / "log"
    log.save(folder)
    check_env(gym.make(ENV, log=folder).unwrapped, skip_render_check=True)
    from_path = gym.make_vec(ENV, num_envs=B, log=str(folder))
    for found, expected in zip(play(from_path, 40), play(ReplayVectorEnv(log, B), 40), strict=True):
        assert_same(found, expected)


def test_make_vec_gives_the_native_environment_and_can_do_it_again(log):
    env = gym.make_vec(ENV, num_envs=B, log=log, window=4, feedback="logged")
    assert isinstance(env.unwrapped, ReplayVectorEnv) and env.unwrapped.log is log
    assert env.spec is not None and env.observation_space.shape == (B, 4)
    assert env.action_space == MultiDiscrete([N] * B)
    again = gym.make_vec(env.spec, num_envs=B)
    for found, expected in zip(play(again, 20), play(env, 20), strict=True):
        assert_same(found, expected)


def test_the_autoreset_mode_is_the_enum(log):
    env = ReplayVectorEnv(log, B, autoreset_mode=AutoresetMode.SAME_STEP.value)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.autoreset_mode is AutoresetMode.SAME_STEP


def strided_and_single(log, mode=AutoresetMode.SAME_STEP, limit=None, **options):
    def lane(number):
        env = ReplayEnv(log, lane=number, lanes=B, **options)
        return env if limit is None else TimeLimit(env, limit)

    many = ReplayVectorEnv(log, B, assignment="strided", autoreset_mode=mode, max_episode_steps=limit, **options)
    single = SyncVectorEnv([lambda i=i: lane(i) for i in range(B)], autoreset_mode=mode)
    return many, single


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("limit", [None, 3])
def test_strided_lanes_are_single_environments_side_by_side(log, playable, mode, options, limit):
    many, single = strided_and_single(log, mode, limit, **options)
    assert many.observation_space == single.observation_space and many.action_space == single.action_space
    assert many.metadata["autoreset_mode"] is single.metadata["autoreset_mode"] is many.autoreset_mode
    # A first reset without a seed would draw another order for each single environment.
    assert_same(many.reset(seed=7), single.reset(seed=7))
    mask = np.arange(B) % 3 == 0
    total = 0.0
    for step, action in enumerate(actions_of(many, 2, 150)):
        found = step_and_reset(many, action)
        assert_same(tuple(found), tuple(step_and_reset(single, action)), f"step {step}")
        total += found[0][1].sum()
        if step == 40:
            assert_same(many.reset(), single.reset(), "reset()")
        if step == 60:
            found = many.reset(options={"reset_mask": mask})
            assert_same(found, single.reset(options={"reset_mask": mask}), "reset_mask")
        if step == 80:
            assert_same(many.reset(seed=2**40), single.reset(seed=2**40), "reset(seed)")
        if step == 100:
            found = many.reset(seed=5, options={"reset_mask": mask})
            assert_same(found, single.reset(seed=5, options={"reset_mask": mask}), "reset(seed, reset_mask)")
        if step == 120:
            seeds = [9, None, 3, 3, None, 0, 2**33]
            assert_same(many.reset(seed=seeds), single.reset(seed=seeds), "reset(list)")
    assert total > 0


@pytest.mark.parametrize("assignment", ["queue", "strided"])
@pytest.mark.parametrize("order", ["chronological", "shuffled"])
def test_an_int_seed_is_the_list_of_the_ints_from_it_on(log, assignment, order):
    one, many = (ReplayVectorEnv(log, B, assignment=assignment, order=order) for _ in range(2))
    for found, expected in zip(
        play(many, 60, seed=[4 + lane for lane in range(B)]), play(one, 60, seed=4), strict=True
    ):
        assert_same(found, expected)
    assert_same(many.reset(seed=[None] * B), one.reset())


def test_a_queue_has_one_order_whatever_the_seeds(log, playable):
    orders = []
    for seeds in ([5, 5, 5, 5, 5, 5, 5], [5, 5, 5, 5, 5, 5, 6], [5, 5, 5, 5, 5, 5, 5]):
        started = started_sessions(play(ReplayVectorEnv(log, B, order="shuffled"), 120, seeds))
        assert sorted(session for number, session in started if number == 0) == playable.tolist()
        orders.append(started)
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize("assignment", ["queue", "strided"])
def test_lanes_that_wait_are_reset_in_the_order_of_their_numbers(log, playable, assignment):
    """All modes start the same sessions, whoever resets the lanes; only when differs."""
    started = []
    for mode in MODES:
        env = ReplayVectorEnv(log, B, assignment=assignment, autoreset_mode=mode)
        _, info = env.reset(seed=0)
        sessions = [[session] for session in info["session"].tolist()]
        for action in actions_of(env, 0, 150):
            for result in step_and_reset(env, action):
                for lane, session in enumerate(result[-1]["session"].tolist()):
                    if result[-1]["_session"][lane] and sessions[lane][-1] != session:
                        sessions[lane].append(session)
        started.append(sessions)
    if assignment == "strided":
        for by_lane in zip(*started, strict=True):
            n = min(map(len, by_lane))
            assert n > 5 and by_lane[0][:n] == by_lane[1][:n] == by_lane[2][:n]
    for sessions in started:
        assert {session for lane in sessions for session in lane} == set(playable.tolist())


def test_the_next_step_after_an_end_ignores_its_action_and_consumes_nothing(log):
    env = ReplayVectorEnv(log, B, autoreset_mode=AutoresetMode.NEXT_STEP, feedback="logged")
    env.reset(seed=0)
    waiting = np.zeros(B, dtype=bool)
    n_resets = 0
    for action in actions_of(env, 0, 60):
        observation, reward, terminated, truncated, info = env.step(action)
        np.testing.assert_array_equal(logged(info).valid, ~waiting)
        assert (reward[waiting] == 0).all() and not (terminated | truncated)[waiting].any()
        assert (observation[waiting, :-1] == N).all() and (reward[~waiting] > 0).all()
        n_resets += waiting.sum()
        waiting = terminated | truncated
    assert n_resets > 20


def test_with_autoreset_disabled_an_ended_lane_cannot_be_stepped(log):
    env = ReplayVectorEnv(log, B, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    ended = np.zeros(B, dtype=bool)
    while not ended.any():
        ended = env.step(np.zeros(B, dtype=int))[2]
    with pytest.raises(InputError, match=rf"lanes {np.flatnonzero(ended)[0]}.* have ended and autoreset is disabled"):
        env.step(np.zeros(B, dtype=int))
    env.reset(options={"reset_mask": ended})
    env.step(np.zeros(B, dtype=int))


@st.composite
def random_logs(draw) -> SessionLog:
    n_items = draw(st.integers(1, 6))
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=12).filter(lambda x: max(x) > 1))
    n_events = sum(lengths)
    events = st.lists(st.tuples(st.integers(0, n_items - 1), st.booleans()), min_size=n_events, max_size=n_events)
    item, kind = zip(*draw(events), strict=True)
    return SessionLog(
        item=np.array(item, np.int32),
        kind=np.array(kind, np.uint8),
        time=np.arange(n_events),
        offset=np.concatenate([[0], np.cumsum(lengths)]),
        session_id=np.arange(len(lengths)),
        item_id=np.arange(n_items),
    )


random_options = st.fixed_dictionaries(
    {},
    optional={
        "window": st.integers(1, 5),
        "kinds": st.booleans(),
        "slate": st.integers(1, 3),
        "feedback": st.sampled_from(["match", "logged"]),
        "rewards": st.sampled_from([(1.0, 5.0), (0.0, 5.0), (0.3, -2.0)]),
        "drop": st.sampled_from(["event", "reward", "click"]),
        "density": st.floats(0, 1),
        "cold_start": st.integers(1, 4),
        "order": st.sampled_from(["chronological", "shuffled"]),
        "max_episode_steps": st.integers(1, 4),
        "autoreset_mode": st.sampled_from(MODES),
    },
)


@settings(max_examples=60, deadline=None)
@given(log=random_logs(), options=random_options, n_lanes=st.integers(1, 9), strided=st.booleans(), data=st.data())
def test_the_compiled_core_agrees_with_the_numpy_reference(log, options, n_lanes, strided, data):
    thinned, _ = thin_purchases(log, options.get("density", 1.0), options.get("drop", "event"))
    n_playable = int((thinned.length >= 2).sum())
    assume(n_playable > 0)
    assignment = "strided" if strided and n_lanes <= n_playable else "queue"
    plain = options.get("autoreset_mode") != AutoresetMode.NEXT_STEP and data.draw(st.booleans())
    fast, reference = (
        ReplayVectorEnv(log, n_lanes, assignment, terminal_info=not plain, engine=engine, **options)
        for engine in ("numba", "numpy")
    )
    assert_same(fast.reset(seed=1), reference.reset(seed=1))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    for step in range(25):
        action = rng.integers(0, log.n_items, fast.action_space.shape)
        assert_same(tuple(step_and_reset(fast, action)), tuple(step_and_reset(reference, action)), f"step {step}")
        if step == 20:
            mask = rng.random(n_lanes) < 0.5
            mask[0] = True
            given_mask = {"reset_mask": mask}
            assert_same(fast.reset(seed=step, options=given_mask), reference.reset(seed=step, options=given_mask))


@pytest.mark.parametrize("n_lanes", [1, B, 50, 200])
def test_the_queue_gives_each_session_once_per_pass_to_the_lowest_finished_lane(log, playable, n_lanes):
    started = started_sessions(play(ReplayVectorEnv(log, n_lanes), 1500 // n_lanes))
    expected = [(p, s) for p in range(20) for s in playable.tolist()]
    assert len(started) > 2 * len(playable) and started == expected[: len(started)]


@pytest.mark.parametrize("n_lanes", [1, B, 200])
def test_a_shuffled_pass_has_every_session_once_in_a_new_order_from_the_seed(log, playable, n_lanes):
    def passes(seed):
        env = ReplayVectorEnv(log, n_lanes, order="shuffled")
        started = started_sessions(play(env, 1500 // n_lanes, seed))
        return [[session for number, session in started if number == p] for p in range(2)]

    first, second = passes(3)
    assert sorted(first) == sorted(second) == playable.tolist()
    assert first != second and first != playable.tolist()
    assert passes(3) == [first, second] and passes(4) != [first, second]


@pytest.mark.parametrize("n_lanes", [1, B, 200])
def test_the_orders_of_passes_gone_by_are_forgotten(log, n_lanes):
    env = ReplayVectorEnv(log, n_lanes, order="shuffled")
    play(env, 3000 // n_lanes)
    assert env._order.upcoming[:, 1].max() > 5 and len(env._source._orders) <= 2


@pytest.mark.parametrize("assignment", ["queue", "strided"])
@pytest.mark.parametrize("order", ["chronological", "shuffled"])
def test_a_seed_restarts_bit_for_bit_and_no_seed_goes_on(log, assignment, order):
    env, fresh = (ReplayVectorEnv(log, B, assignment=assignment, order=order) for _ in range(2))
    first = play(env, 60)
    for found, expected in zip(play(env, 60), first, strict=True):
        assert_same(found, expected)
    for found, expected in zip(play(env, 60, seed=4), play(fresh, 60, seed=4), strict=True):
        assert_same(found, expected)
    play(env, 0)
    _, info = env.reset()
    assert not set(info["session"]) & set(first[0][1]["session"])


def test_an_environment_without_a_seed_draws_one(log):
    orders = [ReplayEnv(log, order="shuffled").reset()[1]["session"] for _ in range(12)]
    assert len(set(orders)) > 1


def test_a_masked_reset_leaves_the_other_lanes_and_the_options_alone(log, playable):
    env = ReplayVectorEnv(log, B)
    before, info = env.reset(seed=0)
    mask = np.zeros(B, dtype=bool)
    mask[[2, 5]] = True
    options = {"reset_mask": mask, "other": 1}
    after, masked = env.reset(options=options)
    assert options == {"reset_mask": mask, "other": 1} and mask.sum() == 2
    np.testing.assert_array_equal(after[~mask], before[~mask])
    np.testing.assert_array_equal(masked["_session"], mask)
    following = playable[playable > info["session"].max()]
    assert masked["session"][mask].tolist() == following[:2].tolist()
    _, _, ended, _, going_on = env.step(np.zeros(B, dtype=int))
    stayed = ~mask & ~ended
    assert stayed.any() and going_on["session"][stayed].tolist() == info["session"][stayed].tolist()


@pytest.mark.parametrize("feedback", ["match", "logged"])
def test_a_reward_counts_for_the_logged_item_or_always(log, feedback):
    rewards = (1.5, 4.0)
    env = ReplayVectorEnv(log, B, feedback=feedback, rewards=rewards)
    env.reset(seed=0)
    hits = 0
    for action in actions_of(env, 4, 200):
        _, reward, _, _, info = env.step(action)
        event = logged(info)
        worth = np.where(event.kind == PURCHASE, rewards[1], rewards[0])
        hit = action == event.action
        np.testing.assert_array_equal(event.reward, worth)
        np.testing.assert_array_equal(reward, worth if feedback == "logged" else worth * hit)
        hits += hit.sum()
    assert 0 < hits < 200 * B


def test_an_observation_is_the_session_so_far_and_the_info_names_the_session(log, playable):
    env = ReplayEnv(log, window=5)
    for session in playable:
        events = slice(*log.offset[session : session + 2])
        items = log.item[events].tolist()
        observation, info = env.reset(seed=0 if session == playable[0] else None)
        assert info == {"session": session, "pass": 0}
        for position in range(1, len(items)):
            assert observation.tolist() == ([N] * 5 + items[:position])[-5:]
            observation, _, terminated, truncated, info = env.step(0)
            assert info["logged_action"] == items[position] and info["logged_kind"] == log.kind[events][position]
            assert (terminated, truncated) == (position == len(items) - 1, False) and truncated is False
        assert observation.tolist() == ([N] * 5 + items)[-5:]
    assert env.reset()[1] == {"session": playable[0], "pass": 1}


def purchases_of_a_pass(env, read) -> tuple[int, int]:
    """Events and purchases of the first pass, as `read(info)` tells them: (kinds [B], valid [B])."""
    _, info = env.reset(seed=0)
    action = np.zeros(env.num_envs, dtype=np.int64)
    events = purchases = 0
    while (info["pass"] == 0).any():
        first_pass = info["pass"] == 0
        info = env.step(action)[4]
        kind, valid = read(info)
        events += int(np.count_nonzero(valid & first_pass))
        purchases += int(np.count_nonzero((kind == PURCHASE) & valid & first_pass))
    return events, purchases


@pytest.mark.parametrize("terminal_info", [True, False])
@pytest.mark.parametrize("n_lanes", [1, 64])
@pytest.mark.parametrize("name", ["log", "real_log"])
def test_no_purchase_is_lost_in_a_pass(request, name, n_lanes, terminal_info):
    log = request.getfixturevalue(name)
    batch = log.batch()
    expected = batch.n_rows, int(np.count_nonzero(log.kind[batch.target_events()] == PURCHASE))
    env = ReplayVectorEnv(log, n_lanes, terminal_info=terminal_info)
    assert purchases_of_a_pass(env, lambda info: (logged(info).kind, logged(info).valid)) == expected
    if terminal_info:

        def top_level(info):
            nothing = np.zeros(n_lanes, dtype=bool)
            return info.get("logged_kind", nothing), info.get("_logged_kind", nothing)

        assert purchases_of_a_pass(env, top_level)[1] < expected[1]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("limit", [None, 3])
def test_plain_infos_say_what_full_ones_say(log, options, limit):
    full = ReplayVectorEnv(log, B, max_episode_steps=limit, **options)
    plain = ReplayVectorEnv(log, B, max_episode_steps=limit, terminal_info=False, **options)
    steps = list(zip(play(full, 120), play(plain, 120), strict=True))
    for full_step, plain_step in steps:
        assert_same(plain_step[:-1], full_step[:-1])
        assert not any(key.startswith(("_", "final")) for key in plain_step[-1])
        for key in ("session", "pass"):
            np.testing.assert_array_equal(plain_step[-1][key], full_step[-1][key])
    for full_step, plain_step in steps[1:]:
        assert_same(tuple(logged(plain_step[-1])), tuple(logged(full_step[-1])))
        assert logged(full_step[-1]).valid.all()


@pytest.mark.parametrize("terminal_info", [True, False])
@pytest.mark.parametrize("assignment", ["queue", "strided"])
def test_what_the_environment_returned_never_changes_and_may_be_written_to(log, terminal_info, assignment):
    untouched, scribbled = (
        ReplayVectorEnv(log, B, assignment=assignment, terminal_info=terminal_info) for _ in range(2)
    )
    expected = play(untouched, 60)
    kept = copy.deepcopy(expected)
    play(untouched, 60, seed=None)
    for was, now in zip(kept, expected, strict=True):
        assert_same(now, was)

    def scribble(value):
        if isinstance(value, dict):
            value = tuple(value.values())
        if isinstance(value, tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
            for part in value:
                scribble(part)
        elif isinstance(value, np.ndarray):
            value[...] = 1

    steps: list[tuple] = [scribbled.reset(seed=3)]
    for action in actions_of(scribbled, 1, 60):
        assert_same(steps[-1], kept[len(steps) - 1])
        scribble(steps[-1])
        steps.append(scribbled.step(action))


def test_without_copies_the_observation_is_the_environments_memory(log):
    shared, copied = ReplayVectorEnv(log, B, copy=False, window=70), ReplayVectorEnv(log, B, window=70)
    assert_same(shared.reset(seed=3), copied.reset(seed=3))
    # Long enough for the memory to be gone through more than once.
    for action in actions_of(shared, 1, 10_000):
        previous = shared.step(action)[0]
        assert not previous.flags.owndata
        np.testing.assert_array_equal(previous, copied.step(action)[0])


def test_a_step_limit_truncates_and_nothing_else_does(log):
    env = gym.make_vec(ENV, num_envs=B, log=log, max_episode_steps=3)
    position, ends = np.zeros(B, dtype=int), [0, 0]
    env.reset(seed=0)
    for action in actions_of(env, 0, 100):
        _, _, terminated, truncated, info = env.step(action)
        position += 1
        np.testing.assert_array_equal(truncated, position == 3)
        if (terminated | truncated).any():
            np.testing.assert_array_equal(info["_final_obs"], terminated | truncated)
        ends = [ends[0] + terminated.sum(), ends[1] + (truncated & ~terminated).sum()]
        position[terminated | truncated] = 0
    assert min(ends) > 0


def test_a_cold_start_freezes_the_state_and_nothing_else(log, playable):
    frozen, growing = ReplayEnv(log, cold_start=2, window=4), ReplayEnv(log, window=4)
    for session in playable:
        seed = 0 if session == playable[0] else None
        observation, _ = frozen.reset(seed=seed)
        growing.reset(seed=seed)
        items = log.item[log.offset[session] : log.offset[session + 1]].tolist()
        for position in range(1, len(items)):
            assert observation.tolist() == ([N] * 4 + items[: min(position, 2)])[-4:]
            observation, *rest = frozen.step(items[position])
            assert tuple(rest) == growing.step(items[position])[1:]


@pytest.mark.parametrize("drop", ["event", "reward", "click"])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_density_leaves_its_share_of_purchase_rewards_in_a_pass(log, density, drop):
    env = ReplayEnv(log, feedback="logged", density=density, drop=drop, rewards=(1.0, 5.0))
    rewards, kinds = [], []
    info = env.reset(seed=0)[1]
    while info["pass"] == 0:
        ended = False
        while not ended:
            _, reward, ended, _, info = env.step(0)
            rewards.append(reward)
            kinds.append(info["logged_kind"])
        info = env.reset()[1]
    # A session's first event is its initial state and pays nothing.
    target = env.log.kind[env.log.batch().target_events()]
    assert kinds == target.tolist()
    if drop != "reward":
        assert rewards == np.where(target == PURCHASE, 5.0, 1.0).tolist()
    paid = rewards.count(5.0)
    assert rewards.count(0.0) == (np.count_nonzero(target == PURCHASE) - paid if drop == "reward" else 0)
    assert paid <= round(density * log.n_purchases) and (paid > 0) == (density > 0)
    if drop != "click":
        assert rewards.count(1.0) == np.count_nonzero(target == CLICK)


def test_episode_statistics_are_the_returns_and_lengths_of_the_sessions(log):
    env = RecordEpisodeStatistics(ReplayVectorEnv(log, B, feedback="logged", rewards=(1.0, 5.0)))
    _, info = env.reset(seed=0)
    session = info["session"]
    worth = np.where(log.kind == PURCHASE, 5.0, 1.0)
    n_ended = 0
    for action in actions_of(env, 0, 60):
        _, _, terminated, _, info = env.step(action)
        for lane in np.flatnonzero(terminated):
            first, last = log.offset[session[lane]], log.offset[session[lane] + 1]
            episode = info["final_info"]["episode"] if "episode" in info.get("final_info", {}) else info["episode"]
            assert episode["r"][lane] == worth[first + 1 : last].sum()
            assert episode["l"][lane] == last - first - 1
            n_ended += 1
        session = info["session"]
    assert n_ended > 20


def test_reward_normalisation_rescales_and_keeps_zeros(log):
    env, plain = (ReplayVectorEnv(log, B, feedback="match") for _ in range(2))
    env = NormalizeReward(env)
    env.reset(seed=0)
    plain.reset(seed=0)
    rewards = np.array([(env.step(a)[1], plain.step(a)[1]) for a in actions_of(env, 0, 200)])
    assert np.isfinite(rewards).all() and np.array_equal(rewards[:, 0] > 0, rewards[:, 1] > 0)


@pytest.mark.parametrize("options", [{"order": "shuffled"}, {"autoreset_mode": AutoresetMode.NEXT_STEP}])
@pytest.mark.parametrize("assignment", ["queue", "strided"])
def test_an_environment_goes_on_after_a_pickle(log, options, assignment):
    env = ReplayVectorEnv(log, B, assignment, **options)
    play(env, 30)
    twin = pickle.loads(pickle.dumps(env))
    for action in actions_of(env, 5, 60):
        assert_same(twin.step(action), env.step(action))


def test_observations_rewards_and_infos_convert_to_tensors(log):
    """Gymnasium's conversion takes no object arrays, so not the `final_obs` of SAME_STEP, whoever gives them."""
    torch = pytest.importorskip("torch")
    env = NumpyToTorch(ReplayVectorEnv(log, B, terminal_info=False))
    plain = ReplayVectorEnv(log, B, terminal_info=False)
    observation, _ = env.reset(seed=0)
    assert isinstance(observation, torch.Tensor)
    plain.reset(seed=0)
    for action in actions_of(plain, 1, 30):
        found, expected = env.step(torch.from_numpy(action)), plain.step(action)
        for a, b in zip(found[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(a.numpy(), b)
        for key, value in expected[4].items():
            np.testing.assert_array_equal(found[4][key].numpy(), value)


def test_options_of_a_made_environment_change_until_the_next_reset(log):
    changes = {"density": 0.4, "drop": "event", "cold_start": 2, "feedback": "logged"}
    for changed, made in (
        (ReplayVectorEnv(log, B), ReplayVectorEnv(log, B, **changes)),
        (ReplayVectorEnv(log, B, "strided"), ReplayVectorEnv(log, B, "strided", **changes)),
    ):
        play(changed, 10)
        changed.reconfigure(**changes)
        for found, expected in zip(play(changed, 40), play(made, 40), strict=True):
            assert_same(found, expected)
    with pytest.raises(InputError, match="reconfigure: kinds, window would change the spaces"):
        ReplayEnv(log).reconfigure(window=3, kinds=True)
    with pytest.raises(InputError, match="unknown option"):
        ReplayEnv(log).reconfigure(densty=0.5)


@pytest.mark.parametrize("make", [ReplayEnv, ReplayVectorEnv])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"window": 0}, "window: expected at least 1 item, found 0"),
        ({"feedback": "hit"}, "feedback: expected 'match' or 'logged', found 'hit'"),
        ({"order": "random"}, "order: expected 'chronological' or 'shuffled', found 'random'"),
        ({"rewards": (1.0,)}, r"rewards: expected \(click, purchase\)"),
        ({"cold_start": 0}, "cold_start: expected at least 1 event or None, found 0"),
        ({"slate": 0}, "slate: expected at least 1 item or None, found 0"),
        ({"windw": 3}, "unknown option 'windw'; did you mean 'window'"),
        ({"density": 2}, r"density: expected a share of purchases in \[0, 1\], found 2"),
        ({"drop": "all"}, "drop: expected 'event', 'reward' or 'click', found 'all'"),
    ],
)
def test_options_that_mean_nothing_are_refused(log, make, options, expected):
    with pytest.raises(InputError, match=expected) as caught:
        make(log, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_envs": 0}, "num_envs: expected"),
        ({"num_envs": 100, "assignment": "strided"}, "num_envs: expected 1.*found 100"),
        ({"assignment": "random"}, "assignment: expected 'queue' or 'strided', found 'random'"),
        ({"autoreset_mode": "same"}, "autoreset_mode: expected one of .*SAME_STEP.*, found 'same'"),
        ({"autoreset_mode": AutoresetMode.NEXT_STEP, "terminal_info": False}, "terminal_info=False: in .*NEXT_STEP"),
        ({"engine": "c"}, "engine: expected 'numba' or 'numpy', found 'c'"),
        ({"max_episode_steps": 0}, "max_episode_steps: expected at least 1 or None, found 0"),
        ({"log": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_lanes_that_cannot_be_are_refused(log, options, expected):
    with pytest.raises(InputError, match=expected) as caught:
        ReplayVectorEnv(**{"log": log, "num_envs": B} | options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("lane", "lanes"), [(-1, 2), (2, 2), (0, 0), (0, 1000)])
def test_a_lane_that_cannot_be_is_refused(log, lane, lanes):
    with pytest.raises(InputError, match="expected 0 <= lane < lanes <= "):
        ReplayEnv(log, lane=lane, lanes=lanes)


@pytest.mark.parametrize("make", [ReplayEnv, ReplayVectorEnv])
def test_a_log_without_two_events_in_a_session_is_refused(log, make):
    with pytest.raises(InputError, match="at least one session of two or more events to replay, found none among"):
        make(log.select(np.flatnonzero(log.length == 1)))


def test_stepping_where_there_is_no_state_is_refused(log):
    single, many = ReplayEnv(log), ReplayVectorEnv(log, B)
    with pytest.raises(InputError, match="call reset first"):
        single.step(0)
    with pytest.raises(InputError, match="call reset first"):
        many.step(np.zeros(B, dtype=int))
    with pytest.raises(InputError, match="never been reset"):
        many.reset(options={"reset_mask": np.arange(B) == 0})
    single.reset(seed=0)
    while not single.step(0)[2]:
        pass
    with pytest.raises(InputError, match="the session has ended"):
        single.step(0)


@pytest.mark.parametrize(
    "mask",
    [np.zeros(B, dtype=bool), np.ones(B, dtype=int), np.ones(B - 1, dtype=bool), [True] * B],
    ids=["nothing", "integers", "short", "list"],
)
def test_a_reset_mask_of_another_form_is_refused(log, mask):
    env = ReplayVectorEnv(log, B)
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"reset_mask.*expected a bool array of shape") as caught:
        env.reset(options={"reset_mask": mask})
    assert "\n" not in str(caught.value)


def test_calls_of_another_form_are_refused(log):
    env = ReplayVectorEnv(log, B)
    for seed in ([1] * (B - 1), -1, [1, -1, 1, 1, 1, 1, 1], 1.5, ["a"] * B):
        with pytest.raises(InputError, match="reset: expected seed None, an int of at least 0 or a list of 7 of these"):
            env.reset(seed=seed)  # type: ignore[arg-type]
    env.reset(seed=0)
    with pytest.raises(InputError, match="step: expected actions of an integer type, found float64"):
        env.step(np.zeros(B))
    with pytest.raises(InputError, match=r"step: expected actions of shape \(7,\), found \(3,\)"):
        env.step(np.zeros(3, dtype=int))
