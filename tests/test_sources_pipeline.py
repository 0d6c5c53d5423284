"""The steps that every source shares, against a plain-Python reading of the recipe."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym.envs.log import CLICK, PURCHASE, PreparedData
from sessiongym.envs.sources.options import PrepareOptions
from sessiongym.envs.sources.pipeline import DAY, Dropped, EventColumns, build, repeated_content
from sessiongym.errors import InputError


@pytest.fixture(scope="session")
def columns():
    def make(rows, **extra):
        """From (session, item, time in days, kind) tuples; sessions and items are small integers."""
        session, item, day, kind = (np.array(column) for column in zip(*rows, strict=True))
        return EventColumns(
            session=session,
            item=item,
            time=(day * DAY).astype(np.int64),
            kind=kind.astype(np.uint8),
            session_id=np.arange(100, 101 + session.max()),
            item_id=np.arange(1000, 1001 + item.max())[::-1].copy(),
            **extra,
        )

    return make


@pytest.fixture(scope="session")
def recipe():
    """The same recipe, slowly. Returns {split: [(session id, [(item id, kind), ...]), ...]} and the training items."""

    def prepare(events, options):
        sessions = {}
        rows = zip(events.session, events.item, events.time, events.kind, strict=True)
        for s, i, t, k in sorted(rows, key=lambda row: row[2]):
            sessions.setdefault(int(events.session_id[s]), []).append((int(t), int(events.item_id[i]), int(k)))

        def long(some):
            return {s: e for s, e in some.items() if len(e) >= options.min_session_length}

        newest = max(e[-1][0] for e in sessions.values())
        if options.latest_days is not None:
            sessions = {s: e for s, e in sessions.items() if e[0][0] >= newest - options.latest_days * DAY}
        if options.buyers_only:
            sessions = {s: e for s, e in sessions.items() if any(k == PURCHASE for _, _, k in e)}
        sessions = long(sessions)
        support = Counter(i for e in sessions.values() for _, i, _ in e)
        sessions = {s: [x for x in e if support[x[1]] >= options.min_item_support] for s, e in sessions.items()}
        train, cut = long(sessions), {}
        for name, days in (("test", options.test_days), ("valid", options.valid_days)):
            bound = max((e[-1][0] for e in train.values()), default=0) - days * DAY
            cut[name] = {s: e for s, e in train.items() if e[-1][0] >= bound}
            train = {s: e for s, e in train.items() if e[-1][0] < bound}
        items = {i for e in train.values() for _, i, _ in e}
        for name, part in cut.items():
            if options.unseen == "drop":
                part = {s: [x for x in e if x[1] in items] for s, e in part.items()}
                cut[name] = long({s: e for s, e in part.items() if e})
        cut["train"] = train
        return {n: {s: [(i, k) for _, i, k in e] for s, e in part.items()} for n, part in cut.items()}, items

    return prepare


@pytest.fixture(scope="session")
def contents():
    def read(log):
        return {
            int(log.session_id[s]): [
                (int(log.item_id[log.item[e]]), int(log.kind[e])) for e in range(log.offset[s], log.offset[s + 1])
            ]
            for s in range(log.n_sessions)
        }

    return read


@pytest.fixture(scope="session")
def account():
    def check(data):
        out = sum(part.n_events for part in (data.train, data.valid, data.test))
        dropped = sum(drop["events"] for drop in data.manifest["dropped"])
        assert data.manifest["events_read"] == out + dropped
        return out, dropped

    return check


@settings(max_examples=200, deadline=None)
@given(
    n_events=st.integers(1, 300),
    seed=st.integers(0, 2**32),
    options=st.builds(
        PrepareOptions,
        min_item_support=st.integers(1, 4),
        min_session_length=st.integers(1, 3),
        buyers_only=st.booleans(),
        latest_days=st.sampled_from([None, 2.0, 4.5]),
        test_days=st.sampled_from([0.25, 1.0]),
        valid_days=st.sampled_from([0.25, 1.0]),
        unseen=st.sampled_from(["drop", "keep"]),
    ),
)
def test_equals_the_recipe_in_plain_python(columns, recipe, contents, account, n_events, seed, options):
    rng = np.random.default_rng(seed)
    # Quarters of a day, so that times tie and fall on the bounds of the splits.
    session = rng.integers(0, 30, n_events)
    day = (rng.integers(0, 24, 30)[session] + rng.integers(0, 3, n_events)) / 4
    rows = list(zip(session, rng.integers(0, 12, n_events), day, rng.integers(0, 2, n_events), strict=True))
    events = columns(rows)
    expected, train_items = recipe(events, options)
    if not all(expected.values()):
        with pytest.raises(InputError):
            build(events, options, source={"name": "test"})
        return
    data = build(events, options, source={"name": "test"})
    assert {name: contents(getattr(data, name)) for name in ("train", "valid", "test")} == expected
    known = data.train.item_id.tolist()
    assert known[: data.train.n_train_items] == sorted(train_items)
    assert known[data.train.n_train_items :] == sorted(set(known) - train_items)
    account(data)


def test_sessions_are_in_order_of_start_and_events_in_order_of_time(columns):
    rng = np.random.default_rng(0)
    rows = [(rng.integers(40), rng.integers(5), rng.random() * 9, rng.integers(2)) for _ in range(400)]
    data = build(columns(rows), PrepareOptions(), source={"name": "test"})
    for log in (data.train, data.valid, data.test):
        assert (np.diff(log.time[log.offset[:-1]]) >= 0).all()
        within = np.ones(log.n_events, bool)
        within[log.offset[:-1]] = False
        assert (np.diff(log.time)[within[1:]] >= 0).all()


def test_equal_times_keep_the_order_of_the_rows(columns, contents):
    rows = [(0, 0, 0, 0), (0, 1, 0, 1), (0, 0, 0, 1), (1, 0, 2, 0), (1, 1, 2, 0), (2, 0, 5, 0), (2, 1, 5, 0)]
    events = columns(rows)
    data = build(events, PrepareOptions(min_item_support=1), source={"name": "test"})
    assert contents(data.train)[100] == [(1001, CLICK), (1000, PURCHASE), (1001, PURCHASE)]


def test_a_purchase_lost_to_the_item_filter_leaves_its_session_and_is_stated(columns):
    rows = [(s, i, s, 0) for s in range(6) for i in (0, 1)] + [(s, 2 + s, s + 0.1, 1) for s in range(6)]
    options = PrepareOptions(min_item_support=2, buyers_only=True)
    data = build(columns(rows), options, source={"name": "test"})
    assert [step["purchases"] for step in data.manifest["steps"][:4]] == [6, 6, 6, 0]
    assert data.manifest["sessions_without_purchase"] == {"train": 2, "valid": 2, "test": 2}


def test_what_the_reader_dropped_is_part_of_the_account(columns, account):
    rows = [(s, i, s, 0) for s in range(6) for i in (0, 1)]
    data = build(columns(rows), PrepareOptions(), source={"name": "test"}, dropped=[Dropped("torn", 7, 2)])
    assert account(data) == (12, 7)
    assert {"reason": "torn", "events": 7, "sessions": 2} in data.manifest["dropped"]


@pytest.fixture(scope="session")
def repetitive(columns):
    rng = np.random.default_rng(3)
    rows = [(s, item, s, 0) for s in range(500) for item in rng.integers(0, 4, 2)]
    return columns(rows)


@pytest.fixture(scope="session")
def shares():
    return PrepareOptions(random_split=(0.6, 0.3, 0.1), seed=5)


def test_a_random_split_has_its_shares_and_depends_on_the_seed_alone(repetitive, shares):
    first, again, other = (
        build(repetitive, options, source={"name": "test"}) for options in (shares, shares, replace(shares, seed=6))
    )
    assert [part.n_sessions for part in (first.train, first.valid, first.test)] == [300, 150, 50]
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    ids = np.concatenate([part.session_id for part in (first.train, first.valid, first.test)])
    assert sorted(ids) == list(range(100, 600))


def test_a_split_by_content_keeps_identical_sessions_together(repetitive, shares):
    by_session = build(repetitive, shares, source={"name": "test"})
    by_content = build(repetitive, replace(shares, split_by="content"), source={"name": "test"})
    assert by_session.manifest["overlap"]["valid"]["share"] == 1
    assert by_content.manifest["overlap"]["valid"]["sessions_also_in_train"] == 0
    assert by_content.manifest["overlap"]["test"]["sessions_also_in_train"] == 0
    assert sum(part.n_sessions for part in (by_content.train, by_content.valid, by_content.test)) == 500


@pytest.mark.parametrize("ordered", [True, False])
def test_overlap_counts_the_sessions_whose_content_is_in_train(columns, contents, ordered):
    rng = np.random.default_rng(4)
    rows = [(s, item, s, k) for s in range(300) for item, k in zip(rng.integers(0, 6, 3), (0, 0, 1), strict=True)]
    events = columns(rows, ordered=ordered)
    data = build(events, PrepareOptions(random_split=(0.5, 0.2, 0.3)), source={"name": "test"})
    key = tuple if ordered else (lambda content: tuple(sorted(content)))
    keys = {name: [key(c) for c in contents(getattr(data, name)).values()] for name in ("train", "valid", "test")}
    for name in ("valid", "test"):
        shared = sum(content in set(keys["train"]) for content in keys[name])
        assert 0 < shared < len(keys[name])
        assert data.manifest["overlap"][name]["sessions_also_in_train"] == shared
    everything = [content for part in keys.values() for content in part]
    assert repeated_content(events) == len(everything) - len(set(everything))


def test_users_follow_their_sessions_into_every_split(columns):
    rows = [(s, i, s, 0) for s in range(9) for i in (0, 1)]
    user = np.arange(9, dtype=np.int32) % 4
    data = build(columns(rows, user=user), PrepareOptions(), source={"name": "test"})
    for log in (data.train, data.valid, data.test):
        assert log.user is not None
        assert log.user.tolist() == [int(session_id - 100) % 4 for session_id in log.session_id]


def test_notes_reach_the_logs_and_the_data_survives_the_disk(columns, tmp_path):
    rows = [(s, i, s, 0) for s in range(9) for i in (0, 1)]
    data = build(columns(rows), PrepareOptions(), source={"name": "test"}, notes=["made up"])
    back = data.save(tmp_path / "out")
    assert PreparedData.open(tmp_path / "out").fingerprint() == data.fingerprint() == back.fingerprint()
    assert back.notes == back.test.notes == ("made up",)
    assert back.manifest["steps"] == data.manifest["steps"]


def test_an_empty_split_and_an_empty_filter_say_why(columns):
    one_day = columns([(s, i, 0.1 * s, 0) for s in range(9) for i in (0, 1)])
    with pytest.raises(InputError, match=r"train split is empty .* span 0.8 days and --test-days 1") as error:
        build(one_day, PrepareOptions(), source={"name": "test"})
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no session is left after the step 'sessions with a purchase'"):
        build(one_day, PrepareOptions(buyers_only=True), source={"name": "test"})
    with pytest.raises(InputError, match="--random-split"):
        build(
            columns([(0, 0, 0, 0), (0, 1, 0, 0)]), PrepareOptions(1, random_split=(0.8, 0.1, 0.1)), source={"name": ""}
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"random_split": (0.8, 0.1, 0.2)}, r"sum to 1, found 0.8,0.1,0.2 \(sum 1.1\)"),
        ({"random_split": (1.0, 0.0, 0.0)}, "three positive shares"),
        ({"split_by": "content"}, "add --random-split"),
        ({"test_days": 0.0}, "--test-days: must be a positive number of days, found 0"),
        ({"latest_days": -1.0}, "--latest-days"),
        ({"min_item_support": 0}, "--min-item-support: must be at least 1, found 0"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_options_that_make_no_sense_are_refused(columns, change, message):
    with pytest.raises(InputError, match=message):
        build(columns([(0, 0, 0, 0)]), PrepareOptions(**change), source={"name": "test"})
