"""The original UserBehavior file: small ones by hand, the head of the real one against pandas."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sessiongym.envs.log import CLICK, PURCHASE
from sessiongym.envs.sources.options import PrepareOptions, TaobaoFormat
from sessiongym.envs.sources.taobao import COLUMNS, FIRST_SECOND, LAST_SECOND, prepare_taobao
from sessiongym.errors import InputError

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
DAY = 86_400

LOOSE = PrepareOptions(min_item_support=1, min_session_length=1, unseen="keep")


@pytest.fixture
def taobao(tmp_path):
    def prepare(rows, options=LOOSE, **change):
        """From (user, item, category, behaviour, seconds after the first) tuples, or from text."""
        if not isinstance(rows, str):
            rows = "".join(f"{u},{i},{c},{b},{FIRST_SECOND + t}\n" for u, i, c, b, t in rows)
        (tmp_path / "UserBehavior.csv").write_text(rows)
        return prepare_taobao(TaobaoFormat(tmp_path / "UserBehavior.csv", **change), options)

    return prepare


@pytest.fixture(scope="session")
def events_of():
    """(session, user, item, kind, seconds after the first) of all events, by session and place in it."""

    def read(data):
        frame = pd.concat([log.to_pandas() for log in (data.train, data.valid, data.test)])
        seconds = frame["time"].astype("datetime64[s, UTC]").astype(np.int64) - FIRST_SECOND
        rows = zip(frame["session"], frame["user"], frame["item"], frame["kind"], seconds, strict=True)
        return sorted(rows, key=lambda row: row[0])

    return read


@pytest.fixture(scope="session")
def head():
    file = DATA / "taobao_head" / "UserBehavior.csv"
    if not file.is_file():
        pytest.skip(f"no real events at {file}; set SESSIONGYM_DATA")
    return file


SPREAD = [(9, 7, 70, "pv", 3 * DAY), (9, 7, 70, "buy", 6 * DAY)]
"""A session for valid and one for test; the others of a test are train."""


def test_users_are_cut_where_they_pause_and_keep_their_ids(taobao, events_of):
    rows = [(5, 1, 10, "pv", 0), (5, 2, 10, "pv", 1800), (5, 3, 20, "buy", 3601), (3, 1, 10, "cart", 10), *SPREAD]
    data = taobao(rows)
    assert events_of(data) == [
        (0, 3, 1, CLICK, 10),
        (1, 5, 1, CLICK, 0), (1, 5, 2, CLICK, 1800),
        (2, 5, 3, PURCHASE, 3601),
        (3, 9, 7, CLICK, 3 * DAY),
        (4, 9, 7, PURCHASE, 6 * DAY),
    ]  # fmt: skip
    assert data.manifest["source"]["format"] == {
        "file": "UserBehavior.csv", "item_level": "item", "gap": 1800.0, "click": ("pv", "fav", "cart"),
        "purchase": ("buy",), "outside": "drop",
    }  # fmt: skip
    assert [session for session, *_ in events_of(taobao(rows, gap=1801))] == [0, 1, 1, 1, 2, 3]


def test_equal_times_go_page_view_favourite_cart_purchase_whatever_the_order_of_the_file(taobao, events_of):
    rows = [(5, n, 10, behavior, 0) for n, behavior in enumerate(("buy", "cart", "fav", "pv", "buy", "cart"))]
    assert [item for _, _, item, *_ in events_of(taobao(rows + SPREAD))][:6] == [3, 2, 1, 5, 0, 4]
    swapped = taobao(rows + SPREAD, click=("cart", "fav", "pv"))
    assert [item for _, _, item, *_ in events_of(swapped)][:6] == [1, 5, 2, 3, 0, 4]


def test_a_category_can_be_the_item(taobao, events_of):
    data = taobao([(5, 1, 10, "pv", 0), (5, 2, 10, "pv", 1), (5, 3, 20, "pv", 2), *SPREAD], item_level="category")
    assert [item for _, _, item, *_ in events_of(data)] == [10, 10, 20, 70, 70]


def test_other_behaviours_are_dropped_and_counted_and_bridge_no_gap(taobao, events_of):
    rows = [(5, 1, 10, "cart", 0), (5, 1, 10, "pv", 1500), (5, 1, 10, "cart", 3000), (5, 1, 10, "oops", 3001)]
    data = taobao([*rows, (9, 7, 70, "fav", 3 * DAY), (9, 7, 70, "buy", 6 * DAY)], click=("fav", "cart"))
    assert [session for session, *_ in events_of(data)] == [0, 1, 2, 3]
    assert [(drop["reason"], drop["events"]) for drop in data.manifest["dropped"]] == [
        ("rows of other kinds (behavior: 'pv', 'oops')", 2)
    ]
    assert data.manifest["events_read"] == 6


@pytest.mark.parametrize("outside", ["drop", "keep"])
def test_events_outside_the_nine_days_are_dropped_and_counted_or_kept(taobao, events_of, outside):
    nine_days = LAST_SECOND - FIRST_SECOND + 1
    assert nine_days == 9 * DAY
    inside = [(5, 1, 10, "pv", 0), (5, 1, 10, "pv", nine_days - 1), (5, 1, 10, "buy", 4 * DAY)]
    beyond = [(5, 1, 10, "pv", -1), (5, 1, 10, "pv", nine_days), (5, 1, 10, "pv", -1_000_000_000)]
    data = taobao(inside + beyond, outside=outside)
    times = sorted(time for *_, time in events_of(data))
    dropped = [(drop["reason"], drop["events"]) for drop in data.manifest["dropped"]]
    assert data.manifest["events_read"] == 6
    if outside == "drop":
        assert times == [0, 4 * DAY, nine_days - 1]
        assert dropped == [("events outside 25 November to 3 December 2017, China Standard Time", 3)]
    else:
        assert times == sorted(time for *_, time in inside + beyond) and dropped == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([1, 2, 2**31 - 1, -(2**31)]),
            st.integers(1, 5),
            st.just(0),
            st.sampled_from(["pv", "cart", "fav", "buy"]),
            st.sampled_from([0, 1, 1800, 1801, 4 * DAY, 8 * DAY, -(2**32), 2**32]),
        ),
        max_size=20,
    ),
    outside=st.sampled_from(["drop", "keep"]),
)
def test_any_rows_equal_a_plain_python_reading(taobao, events_of, rows, outside):
    rows = [*rows, *((7, 1, 0, behavior, day * DAY) for day, behavior in ((0, "pv"), (4, "pv"), (8, "buy")))]
    options = replace(LOOSE, random_split=(0.4, 0.3, 0.3))
    data = taobao(rows, options, outside=outside)
    place = ("pv", "fav", "cart", "buy").index
    kept = [row for row in rows if outside == "keep" or 0 <= row[4] < 9 * DAY]
    expected, session, before = [], -1, None
    for user, item, _, behavior, time in sorted(kept, key=lambda row: (row[0], row[4], place(row[3]))):
        session += before is None or before[0] != user or time - before[1] > 1800
        before = (user, time)
        expected.append((session, user, item, PURCHASE if behavior == "buy" else CLICK, time))
    assert events_of(data) == expected
    assert data.manifest["events_read"] == len(rows) == len(kept) + sum(d["events"] for d in data.manifest["dropped"])


@pytest.mark.parametrize("item_level", ["item", "category"])
def test_the_head_of_the_real_file_equals_pandas(head, events_of, item_level):
    frame = pd.read_csv(head, names=COLUMNS)
    assert len(frame) == 84_474
    is_inside = frame["time"].between(FIRST_SECOND, LAST_SECOND)
    frame = frame[is_inside].assign(place=lambda f: f["behavior"].map(["pv", "fav", "cart", "buy"].index))
    frame = frame.sort_values(["user", "time", "place"], kind="stable")
    is_new = (frame["user"] != frame["user"].shift()) | (frame["time"].diff() > 1800)
    kind = (frame["behavior"] == "buy").astype(int)
    expected = zip(
        is_new.cumsum() - 1, frame["user"], frame[item_level], kind, frame["time"] - FIRST_SECOND, strict=True
    )
    data = prepare_taobao(TaobaoFormat(head, item_level=item_level), LOOSE)
    assert events_of(data) == list(expected)
    assert data.manifest["events_read"] == 84_474
    assert [drop["events"] for drop in data.manifest["dropped"]] == [35]
    read = data.manifest["steps"][0]
    assert (read["sessions"], read["events"], read["purchases"]) == (np.count_nonzero(is_new), 84_439, 1_750)
    assert read["items"] == frame[item_level].nunique()


def test_the_real_head_has_the_sessions_of_its_description(head):
    data = prepare_taobao(TaobaoFormat(head), replace(LOOSE, min_session_length=2))
    assert data.manifest["steps"][1]["sessions"] == 9_722


GOOD = "1,100,10,pv,1511544070\n1,101,10,buy,1511544071\n"


@pytest.mark.parametrize(
    ("text", "change", "message"),
    [
        (GOOD + "1,102,10,pv\n", {}, "UserBehavior.csv:3: expected 5 fields separated by ',', found 4"),
        (GOOD + "\n1,102,10,pv,soon\n", {}, "UserBehavior.csv:4: time must be a whole number, found 'soon'"),
        (GOOD + "1,1x2,10,pv,1511544070\n", {}, "UserBehavior.csv:3: item must be a whole number, found '1x2'"),
        (GOOD + ",102,10,pv,1511544070\n", {}, "UserBehavior.csv:3: user is empty"),
        (
            GOOD + "\n4294967296,102,10,pv,1511544070\n",
            {},
            "UserBehavior.csv:4: user must be a whole number of at most 32 bits, found 4294967296",
        ),
        (GOOD + "1,1,1,pv,1511544070000\n", {}, "UserBehavior.csv:3: time 1511544070000 is no time in seconds"),
        ("user,item,category,behavior,time\n" + GOOD, {}, "UserBehavior.csv:1: looks like a header line"),
        (GOOD.replace("15115", "15125"), {}, "no event is within 25 November to 3 December 2017"),
        (GOOD.replace("pv", "view"), {}, "none of the values pv,fav,cart given with --click, found 'buy', 'view'"),
        ("", {}, "UserBehavior.csv: the file is empty"),
        (GOOD, {"gap": 0.0}, "--gap: must be a positive number of seconds, found 0"),
        (GOOD, {"item_level": "shop"}, "--item-level: must be item or category, found 'shop'"),
        (GOOD, {"outside": "flag"}, "--outside: must be drop or keep, found 'flag'"),
        (GOOD, {"click": ("pv", "favs")}, "--click: expected some of pv,fav,cart,buy, found 'favs'"),
        (GOOD, {"click": ("pv", "buy")}, "'buy' is named twice in --click and --purchase"),
    ],
)
def test_bad_input_is_one_line_that_names_the_place(taobao, text, change, message):
    with pytest.raises(InputError) as error:
        taobao(text, **change)
    assert message in str(error.value) and "\n" not in str(error.value)
