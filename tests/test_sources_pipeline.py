"""The steps that every source shares, against a plain-Python reading of the recipe."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

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

        def buyers(some):
            return {s: e for s, e in some.items() if any(k == PURCHASE for _, _, k in e)}

        def month(time):
            return datetime.fromtimestamp(time / 1e9, UTC).strftime("%Y-%m")

        def bought_once(events):
            bought = set()
            return [x for x in events if x[2] != PURCHASE or not (x[1] in bought or bought.add(x[1]))]

        newest = max(e[-1][0] for e in sessions.values())
        if options.latest_month:
            sessions = {s: e for s, e in sessions.items() if month(e[0][0]) == month(newest)}
        elif options.latest_days is not None:
            sessions = {s: e for s, e in sessions.items() if e[0][0] >= newest - options.latest_days * DAY}
        if options.buyers_only and options.buyers_cut == "before":
            sessions = buyers(sessions)
        if options.repeats == "drop":
            sessions = {s: list(dict.fromkeys(e)) for s, e in sessions.items()}
        if options.basket_repeats == "drop":
            sessions = {s: bought_once(e) for s, e in sessions.items()}
        sessions = long(sessions)
        support = Counter(i for e in sessions.values() for _, i, _ in e)
        sessions = {s: [x for x in e if support[x[1]] >= options.min_item_support] for s, e in sessions.items()}
        train, cut = long({s: e for s, e in sessions.items() if e}), {}
        if options.buyers_only and options.buyers_cut == "after":
            train = buyers(train)
        at = 0 if options.split_at == "start" else -1
        for name, days in (("test", options.test_days), ("valid", options.valid_days)):
            bound = max((e[at][0] for e in train.values()), default=0) - days * DAY
            cut[name] = {s: e for s, e in train.items() if e[at][0] >= bound}
            train = {s: e for s, e in train.items() if e[at][0] < bound}
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
        repeats=st.sampled_from(["keep", "drop"]),
        basket_repeats=st.sampled_from(["keep", "drop"]),
        latest_month=st.booleans(),
        split_at=st.sampled_from(["end", "start"]),
        latest_days=st.sampled_from([None, 2.0, 4.5]),
        test_days=st.sampled_from([0.25, 1.0]),
        valid_days=st.sampled_from([0.25, 1.0]),
        unseen=st.sampled_from(["drop", "keep"]),
    ),
    late_cut=st.booleans(),
    n_items=st.sampled_from([3, 12]),
)
def test_equals_the_recipe_in_plain_python(
    columns, recipe, contents, account, n_events, seed, options, late_cut, n_items
):
    if options.buyers_only and late_cut:
        options = replace(options, buyers_cut="after")
    rng = np.random.default_rng(seed)
    # Quarters of a day, so that times tie and fall on the bounds of the splits; from 29 January on.
    session = rng.integers(0, 30, n_events)
    day = 28 + (rng.integers(0, 24, 30)[session] + rng.integers(0, 3, n_events)) / 4
    rows = list(zip(session, rng.integers(0, n_items, n_events), day, rng.integers(0, 2, n_events), strict=True))
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


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    options=st.builds(
        PrepareOptions,
        min_item_support=st.integers(1, 4),
        min_session_length=st.integers(1, 3),
        repeats=st.sampled_from(["keep", "drop"]),
        basket_repeats=st.sampled_from(["keep", "drop"]),
        buyers_only=st.just(True),
        buyers_cut=st.sampled_from(["before", "after"]),
        latest_month=st.booleans(),
        random_split=st.sampled_from([(0.4, 0.3, 0.3), (0.8, 0.1, 0.1)]),
        split_by=st.sampled_from(["session", "content"]),
        unseen=st.sampled_from(["drop", "keep"]),
        seed=st.integers(0, 3),
    ),
    torn=st.integers(0, 9),
)
def test_what_comes_in_goes_out_or_is_dropped_with_a_reason(columns, account, seed, options, torn):
    rng = np.random.default_rng(seed)
    session = rng.integers(0, 60, 600)
    day = 28 + rng.integers(0, 24, 60)[session] / 4
    events = columns(list(zip(session, rng.integers(0, 9, 600), day, rng.integers(0, 2, 600), strict=True)))
    data = build(events, options, source={"name": "test"}, dropped=[Dropped("torn", torn)] if torn else [])
    out, dropped = account(data)
    assert out + dropped == 600 + torn
    assert all(drop["events"] > 0 and drop["reason"] for drop in data.manifest["dropped"])


@pytest.fixture
def prepared(columns, contents, account):
    """The steps by name, the drops by reason and all sessions of rows prepared with loose filters and some options."""

    def prepare(rows, **options):
        loose = {"min_item_support": 1, "min_session_length": 1, "unseen": "keep"}
        data = build(columns(rows), PrepareOptions(**{**loose, **options}), source={"name": "test"})
        account(data)
        assert data.manifest["options"]["split_at"] == options.get("split_at", "end")
        dropped = {drop["reason"]: (drop["events"], drop["sessions"]) for drop in data.manifest["dropped"]}
        sessions = {name: contents(getattr(data, name)) for name in ("train", "valid", "test")}
        return data, dropped, sessions

    return prepare


THREE_DAYS = [(7, 2, 0, CLICK), (8, 2, 3, CLICK), (9, 2, 6, CLICK)]
"""A session for each split, so that a test can look at others."""


def test_exact_repeats_are_dropped_but_for_the_first_even_where_others_stand_between(prepared):
    rows = [
        (0, 0, 0, CLICK), (0, 1, 0, CLICK), (0, 0, 0, CLICK), (0, 0, 0, PURCHASE), (0, 0, 0.1, CLICK), (1, 0, 0, CLICK),
        (0, 0, 0, PURCHASE), (1, 0, 0, CLICK), *THREE_DAYS,
    ]  # fmt: skip
    _, dropped, sessions = prepared(rows, repeats="drop")
    assert dropped == {"exact repeats of an event": (3, 0)}
    assert sessions["train"][100] == [(1002, CLICK), (1001, CLICK), (1002, PURCHASE), (1002, CLICK)]
    assert sessions["train"][101] == [(1002, CLICK)]
    assert prepared(rows)[1] == {}


def test_an_item_is_bought_once_a_session_where_asked_and_its_clicks_stay(prepared):
    rows = [
        (0, 0, 0, PURCHASE), (0, 0, 0.1, CLICK), (0, 1, 0.1, PURCHASE), (0, 0, 0.2, PURCHASE), (0, 0, 0.3, PURCHASE),
        (0, 0, 0.4, CLICK), (1, 0, 0.5, PURCHASE), *THREE_DAYS,
    ]  # fmt: skip
    _, dropped, sessions = prepared(rows, basket_repeats="drop")
    assert dropped == {"purchases of an item that the session has bought already": (2, 0)}
    assert sessions["train"][100] == [(1002, PURCHASE), (1002, CLICK), (1001, PURCHASE), (1002, CLICK)]
    assert sessions["train"][101] == [(1002, PURCHASE)]
    assert prepared(rows)[1] == {}


def test_the_buyer_cut_before_the_filters_starves_items_and_after_them_loses_sessions(prepared):
    # Item 0 has support 3 with the browser of session 3 and 2 without; session 4 buys only the rare item 1.
    rows = [(s, i, s, k) for s in range(3) for i, k in ((2, CLICK), (2, PURCHASE))]
    rows += [(s, 0, s, CLICK) for s in (0, 1, 3)] + [(3, 2, 3, CLICK)]
    rows += [(4, 1, 4, PURCHASE), (4, 2, 4, CLICK), (4, 2, 4, CLICK)]
    options = {"min_item_support": 3, "buyers_only": True, "random_split": (0.4, 0.3, 0.3)}
    _, before, _ = prepared(rows, **options)
    data, after, _ = prepared(rows, **options, buyers_cut="after")
    assert before == {"sessions without a purchase": (2, 1), "events of items with fewer than 3 events": (3, 0)}
    assert after == {
        "events of items with fewer than 3 events": (1, 0),
        "sessions without a purchase, after the item filter": (4, 2),
    }
    assert data.manifest["sessions_without_purchase"] == {"train": 0, "valid": 0, "test": 0}


def test_the_latest_month_is_the_calendar_month_of_the_newest_event_in_utc(prepared):
    first_of_march = 31 + 28
    rows = [(0, 0, first_of_march - 2e-5, CLICK), (0, 0, first_of_march + 9, CLICK), (1, 0, first_of_march, CLICK)]
    rows += [(s, 0, first_of_march + 3 * s, CLICK) for s in (2, 3)]
    data, dropped, sessions = prepared(rows, latest_month=True, latest_days=1.0)
    assert dropped == {"sessions that do not start in 1970-03, the month of the newest event": (2, 1)}
    assert data.manifest["steps"][1]["step"] == "sessions that start in 1970-03, the month of the newest event"
    assert [list(part) for part in sessions.values()] == [[101], [102], [103]]


def test_a_session_over_the_bound_of_a_split_goes_by_its_end_or_by_its_start(prepared):
    rows = [(0, 0, 0, CLICK), (1, 0, 3, CLICK), (1, 0, 5.5, CLICK), (2, 0, 3, CLICK), (3, 0, 6, CLICK)]
    data, _, sessions = prepared(rows)
    assert [list(part) for part in sessions.values()] == [[100], [102], [101, 103]]
    assert "whose last event is within 1 days before the newest event" in data.manifest["split"]
    data, _, sessions = prepared(rows, split_at="start")
    assert [list(part) for part in sessions.values()] == [[100], [101, 102], [103]]
    assert "whose first event is within 1 days before the newest session start" in data.manifest["split"]


def test_sessions_are_in_order_of_start_and_events_in_order_of_time(columns):
    rng = np.random.default_rng(0)
    rows = [(rng.integers(40), rng.integers(5), rng.random() * 9, rng.integers(2)) for _ in range(400)]
    data = build(columns(rows), PrepareOptions(), source={"name": "test"})
    for log in (data.train, data.valid, data.test):
        assert (np.diff(log.time[log.offset[:-1]]) >= 0).all()
        within = np.ones(log.n_events, bool)
        within[log.offset[:-1]] = False
        assert (np.diff(log.time)[within[1:]] >= 0).all()


def test_a_session_that_loses_its_first_event_moves_to_where_it_now_starts(prepared):
    rows = [(0, 1, 0, CLICK), (0, 0, 0.2, CLICK), (1, 0, 0.1, CLICK), (2, 0, 3, CLICK), (3, 0, 6, CLICK)]
    data, dropped, _ = prepared(rows, min_item_support=2)
    assert dropped == {"events of items with fewer than 2 events": (1, 0)}
    assert data.train.session_id.tolist() == [101, 100]
    assert data.train.time.tolist() == [int(0.1 * DAY), int(0.2 * DAY)]


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
        ({"repeats": "yes"}, "--repeats: must be keep or drop, found 'yes'; give one of these"),
        ({"split_at": "middle"}, "--split-at: must be end or start, found 'middle'"),
        ({"buyers_cut": "after"}, "--buyers-cut after: .*; add --buyers-only"),
        ({"split_at": "start", "random_split": (0.8, 0.1, 0.1)}, "--split-at start: .* found a random split"),
    ],
)
def test_options_that_make_no_sense_are_refused(columns, change, message):
    with pytest.raises(InputError, match=message):
        build(columns([(0, 0, 0, 0)]), PrepareOptions(**change), source={"name": "test"})
