"""REES46's monthly files: small ones of their shape, by hand and against a plain-Python reading."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sessiongym.envs.log import CLICK, PURCHASE
from sessiongym.envs.sources.options import PrepareOptions, Rees46Format
from sessiongym.envs.sources.rees46 import prepare_rees46
from sessiongym.errors import InputError

HEADER = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"
FIRST = datetime(2019, 10, 1, tzinfo=UTC)
LOOSE = PrepareOptions(min_item_support=1, min_session_length=1, unseen="keep")


@pytest.fixture(scope="session")
def line():
    def write(session, user, item, kind, hours=0.0):
        time = (FIRST + timedelta(hours=hours)).strftime("%Y-%m-%d %H:%M:%S UTC")
        return (
            f"{time},{kind},{item},{2053013555631882655 + item % 2},electronics.smartphone,,1081.98,{user},{session}\n"
        )

    return write


@pytest.fixture
def rees46(tmp_path, line):
    def prepare(*months, options=LOOSE, **change):
        """From lists of (session, user, item, type, hours after the first) tuples or texts, one a file."""
        files = []
        for number, month in enumerate(months):
            files.append(tmp_path / f"month{number}.csv")
            files[-1].write_text(month if isinstance(month, str) else HEADER + "".join(line(*row) for row in month))
        return prepare_rees46(Rees46Format(**{"files": files, **change}), options)

    return prepare


@pytest.fixture(scope="session")
def sessions_of():
    """{session: (user, [(item, kind), ...])}"""

    def read(data):
        frame = pd.concat([log.to_pandas() for log in (data.train, data.valid, data.test)])
        return {
            session: (int(of["user"].iloc[0]), list(zip(of["item"], of["kind"], strict=True)))
            for session, of in frame.groupby("session")
        }

    return read


@pytest.fixture(scope="session")
def dropped_of():
    def read(data):
        out = sum(log.n_events for log in (data.train, data.valid, data.test))
        assert data.manifest["events_read"] == out + sum(drop["events"] for drop in data.manifest["dropped"])
        return [(drop["reason"], drop["events"], drop["sessions"]) for drop in data.manifest["dropped"]]

    return read


SPREAD = [("v", 8, 3, "view", 80), ("w", 8, 3, "view", 160)]
"""A session for valid and one for test; the others of a test are train."""


def test_several_files_are_one_log_and_users_keep_their_ids(rees46, sessions_of, dropped_of):
    october = [("a", 541312140, 1, "view", 0), ("b", 520, 2, "view", 1), ("a", 541312140, 1, "cart", 2)]
    november = [("a", 541312140, 1, "purchase", 3), ("b", 520, 1, "view", 0.5), *SPREAD]
    data = rees46(october, november)
    assert sessions_of(data) == {
        "a": (541312140, [(1, CLICK), (1, CLICK), (1, PURCHASE)]),
        "b": (520, [(1, CLICK), (2, CLICK)]),
        "v": (8, [(3, CLICK)]),
        "w": (8, [(3, CLICK)]),
    }
    assert dropped_of(data) == [] and data.manifest["events_read"] == 7
    assert data.train.time[0] == int(FIRST.timestamp()) * 10**9
    source = data.manifest["source"]
    assert [file["name"] for file in source["files"]] == source["format"]["files"] == ["month0.csv", "month1.csv"]
    assert rees46(november, october).fingerprint() == data.fingerprint()


def test_a_category_can_be_the_item(rees46, sessions_of):
    data = rees46([("a", 5, 1, "view"), ("a", 5, 2, "purchase", 1), *SPREAD], item_level="category")
    assert sessions_of(data)["a"] == (5, [(2053013555631882656, CLICK), (2053013555631882655, PURCHASE)])


def test_equal_times_go_view_cart_purchase_whatever_the_order_of_the_file(rees46, sessions_of):
    kinds = ("purchase", "cart", "view", "purchase", "cart")
    rows = [("a", 5, item, kind) for item, kind in enumerate(kinds)]
    assert [item for item, _ in sessions_of(rees46(rows + SPREAD))["a"][1]] == [2, 1, 4, 0, 3]


def test_events_without_a_session_removals_and_shared_sessions_are_dropped_and_counted(rees46, sessions_of, dropped_of):
    rows = [
        ("a", 5, 1, "view"), ("", 5, 1, "view", 1), ("a", 5, 1, "remove_from_cart", 2), ("a", 5, 1, "purchase", 3),
        ("", 6, 1, "purchase", 3), ("s", 5, 1, "view", 4), ("s", 6, 2, "view", 5), ("s", 5, 2, "cart", 6), *SPREAD,
    ]  # fmt: skip
    data = rees46(rows)
    assert dropped_of(data) == [
        ("events without a session", 2, 0),
        ("events of sessions that name more than one user", 3, 1),
        ("rows of other kinds (event_type: 'remove_from_cart')", 1, 0),
    ]
    assert sessions_of(data)["a"] == (5, [(1, CLICK), (1, PURCHASE)])
    assert set(sessions_of(data)) == {"a", "v", "w"}


def test_exact_repeats_go_where_asked(rees46, dropped_of):
    rows = [("a", 5, 1, "view"), ("a", 5, 1, "view"), ("a", 5, 1, "purchase", 1), *SPREAD]
    assert dropped_of(rees46(rows)) == []
    options = PrepareOptions(min_item_support=1, min_session_length=1, unseen="keep", repeats="drop")
    assert dropped_of(rees46(rows, options=options)) == [("exact repeats of an event", 1, 0)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    months=st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(["", "a", "b", "c"]),
                st.sampled_from([5, 5, 5, 6]),
                st.integers(1, 4),
                st.sampled_from(["view", "cart", "remove_from_cart", "purchase"]),
                st.integers(0, 5),
            ),
            min_size=1,
            max_size=12,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_files_equal_a_plain_python_reading(rees46, sessions_of, dropped_of, months):
    sure = [("u", 8, 3, "view", 0), *SPREAD, ("u", 8, 3, "purchase", 1)]
    months = [*months, sure]
    data = rees46(*months)
    users, events = {}, {}
    for session, user, *_ in (row for month in months for row in month):
        users.setdefault(session, set()).add(user)
    place = ("view", "cart", "purchase").index
    kept = [row for month in months for row in month if row[0] and len(users[row[0]]) == 1 and "rem" not in row[3]]
    for session, _, item, kind, _ in sorted(kept, key=lambda row: (row[4], place(row[3]))):
        events.setdefault(session, []).append((item, PURCHASE if kind == "purchase" else CLICK))
    assert sessions_of(data) == {session: (*users[session], of) for session, of in events.items()}
    assert sum(events for _, events, _ in dropped_of(data)) == sum(map(len, months)) - len(kept)


def test_a_month_of_many_blocks_equals_pandas(tmp_path, rees46, line):
    rng = np.random.default_rng(0)
    n_events = 150_000
    session, hours = rng.integers(0, 30_000, n_events), np.sort(rng.integers(0, 744 * 3600, n_events)) / 3600
    kind = rng.choice(["view", "cart", "purchase"], n_events, p=[0.9, 0.06, 0.04])
    rows = zip(session, session % 5_000, rng.integers(0, 500, n_events), kind, hours, strict=True)
    text = HEADER + "".join(line(f"{row[0]:08x}-4d3b-30da-a5dd-7720f5a01957", *row[1:]) for row in rows)
    assert len(text) > 1 << 24
    data = rees46(text)
    frame = pd.read_csv(tmp_path / "month0.csv")
    frame["event_time"] = pd.to_datetime(frame["event_time"], format="%Y-%m-%d %H:%M:%S UTC", utc=True)
    frame["place"] = frame["event_type"].map(["view", "cart", "purchase"].index)
    expected = frame.sort_values(["user_session", "event_time", "place"], kind="stable")
    found = pd.concat([log.to_pandas() for log in (data.train, data.valid, data.test)])
    found = found.sort_values("session", kind="stable")
    names = {"session": "user_session", "user": "user_id", "time": "event_time", "item": "product_id"}
    for ours, theirs in names.items():
        assert (found[ours].to_numpy() == expected[theirs].to_numpy()).all(), ours
    assert ((found["kind"] == PURCHASE).to_numpy() == (expected["place"] == 2).to_numpy()).all()


GOOD = HEADER + (
    "2019-10-01 00:00:00 UTC,view,44600062,2103807459595387724,,shiseido,35.79,541312140,72d76fde\n"
    "2019-10-01 00:00:00 UTC,purchase,3900821,2053013552326770905,appliances.iron,aqua,33.20,554748717,9333dfbd\n"
)
TIME = "2019-10-01 00:00:00 UTC,view,1,2,,,3.0,4,s"


@pytest.mark.parametrize(
    ("text", "change", "message"),
    [
        (GOOD + TIME[:40] + "\n", {}, "month0.csv:4: expected 9 fields separated by ',', found"),
        (
            GOOD + "\n" + TIME.replace(" UTC", "") + "\n",
            {},
            "month0.csv:5: event_time must be a time such as 2019-10-01",
        ),
        (GOOD + TIME + "\n" + TIME.replace("-10-", "-13-") + "\n", {}, "month0.csv:5: event_time must be a time"),
        (GOOD + TIME.replace("2019-10-01 00:00:00 UTC", "") + "\n", {}, "month0.csv:4: event_time must be"),
        (
            GOOD + TIME.replace(",1,", ",one,") + "\n",
            {},
            "month0.csv:4: product_id must be a whole number, found 'one'",
        ),
        (GOOD + TIME.replace(",4,", ",,") + "\n", {}, "month0.csv:4: user_id is empty"),
        (GOOD + TIME.replace(",4,", ",4294967296,") + "\n", {}, "month0.csv:4: user_id must be a whole number of at"),
        (
            GOOD + TIME.replace(",s", ',"s') + "\n" + TIME + "\n",
            {},
            "month0.csv:4: a quoted value runs over the end of the line",
        ),
        (GOOD.replace("user_session", "session"), {}, "no column 'user_session', found event_time, event_type"),
        (GOOD.replace("72d76fde", "").replace("9333dfbd", ""), {}, "no event has a user_session"),
        (GOOD.replace("9333dfbd", "72d76fde"), {}, "every user_session names more than one user_id"),
        (GOOD.replace("purchase", "buy"), {}, "none of the values purchase given with --purchase, found 'buy', 'view'"),
        (HEADER, {}, "month0.csv: has no rows of data"),
        ("", {}, "month0.csv: the file is empty"),
        (GOOD, {"files": []}, "--files: expected at least one file, found none"),
        (GOOD, {"item_level": "brand"}, "--item-level: must be product or category, found 'brand'"),
        (GOOD, {"click": ("look",)}, "--click: expected some of view,cart,remove_from_cart,purchase, found 'look'"),
        (GOOD, {"click": ("view", "purchase")}, "'purchase' is named twice in --click and --purchase"),
    ],
)
def test_bad_input_is_one_line_that_names_the_place(rees46, text, change, message):
    with pytest.raises(InputError) as error:
        rees46(text, **change)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_damage_in_a_later_file_names_that_file_and_a_file_given_twice_is_refused(rees46, tmp_path):
    with pytest.raises(InputError, match=r"month1.csv:4: event_time must be"):
        rees46(GOOD, GOOD + TIME.replace("UTC", "CET") + "\n")
    with pytest.raises(InputError, match="is given twice, and its events would count twice"):
        rees46(GOOD, files=[tmp_path / "month0.csv", tmp_path / "month0.csv"])
