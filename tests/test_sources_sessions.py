"""Numbering of ids and the order of events and sessions, against plain NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym.envs.log import PURCHASE
from sessiongym.envs.sources import sessions as sessions_module
from sessiongym.envs.sources.cuts import session_cuts, survey, survivors
from sessiongym.envs.sources.numbering import Numbering
from sessiongym.envs.sources.options import PrepareOptions
from sessiongym.envs.sources.sessions import EventColumns, Events, in_order


@settings(max_examples=200, deadline=None)
@given(
    ids=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 40) | st.integers(0, 40).map(lambda n: n << 50)),
    cuts=st.lists(st.integers(0, 100), max_size=4),
)
def test_ids_are_numbered_in_order_of_first_appearance_in_whatever_parts(ids, cuts):
    numbering = Numbering()
    column = np.array(ids, dtype=np.int64)
    numbers = np.concatenate([numbering.add(part) for part in np.split(column, sorted(cuts))])
    distinct = list(dict.fromkeys(ids))
    assert numbering.ids.tolist() == distinct and len(numbering) == len(distinct)
    assert numbers.tolist() == [distinct.index(one) for one in ids]
    assert numbering.find(column).tolist() == numbers.tolist()


@pytest.mark.parametrize("step", [1, 3, 1 << 20, 1 << 40])
def test_many_ids_are_numbered_and_others_are_not_found(step):
    rng = np.random.default_rng(0)
    known = rng.permutation(100_000) * step
    numbering = Numbering()
    numbers = np.concatenate([numbering.add(part) for part in np.array_split(np.repeat(known, 2), 7)])
    np.testing.assert_array_equal(numbers, np.repeat(np.arange(100_000), 2))
    np.testing.assert_array_equal(numbering.ids, known)
    assert (numbering.find(100_000 * step + np.arange(1000)) == -1).all()


@pytest.fixture(scope="session")
def drawn():
    def draw(n_events, seed, disorder):
        """Events nearly, or not at all, in order; times and sessions tie."""
        rng = np.random.default_rng(seed)
        session = np.sort(rng.integers(0, n_events // 3 + 1, n_events))
        time = np.arange(n_events) // 2
        moved = rng.random(n_events) < disorder
        session[moved], time[moved] = session[moved][::-1], rng.permutation(time[moved])
        kind = (rng.random(n_events) < 0.2) * PURCHASE
        return Events(session, np.arange(n_events, dtype=np.int32), time, kind.astype(np.uint8))

    return draw


@settings(max_examples=200, deadline=None)
@given(
    n_events=st.integers(1, 200),
    seed=st.integers(0, 2**32),
    disorder=st.sampled_from([0.0, 0.1, 1.0]),
    at_once=st.integers(1, 50),
)
def test_events_go_by_session_and_time_and_sessions_by_start(drawn, n_events, seed, disorder, at_once):
    events = drawn(n_events, seed, disorder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions_module, "_PART_SESSIONS", at_once)
        ordered = in_order(events)
    rows = sorted(range(n_events), key=lambda row: (events.session[row], events.time[row], row))
    by_session = {}
    for row in rows:
        by_session.setdefault(int(events.session[row]), []).append(row)
    expected = sorted(by_session.items(), key=lambda session: (events.time[session[1][0]], session[0]))
    assert ordered.number.tolist() == [number for number, _ in expected]
    assert ordered.length.tolist() == [len(rows) for _, rows in expected]
    # The items are the numbers of the rows.
    assert ordered.item.tolist() == [row for _, rows in expected for row in rows]
    np.testing.assert_array_equal(ordered.time, events.time[ordered.item])
    np.testing.assert_array_equal(ordered.kind, events.kind[ordered.item])


@settings(max_examples=100, deadline=None)
@given(
    n_events=st.integers(1, 200),
    seed=st.integers(0, 2**32),
    at_once=st.integers(1, 50),
    latest_days=st.sampled_from([None, 20.0]),
    buyers_only=st.booleans(),
)
def test_cuts_do_not_depend_on_the_parts(drawn, n_events, seed, at_once, latest_days, buyers_only):
    events = drawn(n_events, seed, 0.3)
    day = 86_400 * 10**9
    columns = EventColumns(
        events.session, events.item, events.time * day, events.kind, np.arange(n_events), np.arange(n_events)
    )
    options = PrepareOptions(latest_days=latest_days, buyers_only=buyers_only)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions_module, "_PART_EVENTS", at_once)
        surveyed = survey(columns.parts())
        kept, counts = survivors(columns, surveyed, session_cuts(surveyed, options))
    stays = np.ones(n_events, dtype=bool)
    for session in np.unique(events.session):
        of_session = events.session == session
        starts = events.time[of_session].min()
        late_enough = latest_days is None or starts >= events.time.max() - latest_days
        buys = (events.kind[of_session] == PURCHASE).any()
        stays[of_session] = late_enough and (buys or not buyers_only)
    np.testing.assert_array_equal(kept.item, np.flatnonzero(stays))
    assert len(counts) == 1 + (latest_days is not None) + buyers_only
    assert counts[-1] == {
        "sessions": len(np.unique(events.session[stays])),
        "events": np.count_nonzero(stays),
        "clicks": np.count_nonzero(events.kind[stays] != PURCHASE),
        "purchases": np.count_nonzero(events.kind[stays] == PURCHASE),
        "items": np.count_nonzero(stays),
    }
