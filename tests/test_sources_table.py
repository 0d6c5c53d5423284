"""CSV and Parquet tables with named columns."""

import os
from dataclasses import replace
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sessiongym.envs.log import PURCHASE, PreparedData, SessionLog
from sessiongym.envs.sources.options import PrepareOptions, TableFormat
from sessiongym.envs.sources.table import prepare_table
from sessiongym.errors import InputError

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))

EVENTS = """\
who,visit,what,when,how
u1,a,x,0,view
u1,a,y,10,buy
u2,b,y,100000,view
u2,b,x,100010,view
u1,c,x,200000,view
u1,c,y,200010,buy
"""
FORMAT = TableFormat(Path("e.csv"), item="what", time="when", session="visit")
KINDS = replace(FORMAT, kind="how", click=("view",), purchase=("buy",))
LOOSE = PrepareOptions(min_item_support=1)


@pytest.fixture
def table(tmp_path):
    def prepare(text=EVENTS, fmt=FORMAT, options=LOOSE, **change):
        (tmp_path / "e.csv").write_bytes(text.encode() if isinstance(text, str) else text)
        return prepare_table(replace(fmt, events=tmp_path / "e.csv", **change), options)

    return prepare


@pytest.fixture
def parquet(tmp_path):
    def prepare(frame, fmt=FORMAT, **change):
        frame.to_parquet(tmp_path / "e.parquet")
        return prepare_table(replace(fmt, events=tmp_path / "e.parquet", **change), LOOSE)

    return prepare


@pytest.fixture(scope="session")
def events_of():
    def read(data):
        frames = [log.to_pandas() for log in (data.train, data.valid, data.test)]
        return list(pd.concat(frames)[["session", "item", "kind"]].itertuples(index=False, name=None))

    return read


@pytest.fixture
def real():
    def find(name):
        if not (DATA / name).is_file():
            pytest.skip(f"no real data at {DATA / name}; set SESSIONGYM_DATA")
        return DATA / name

    return find


def test_a_small_table_comes_out_event_by_event(table, events_of):
    data = table(fmt=KINDS)
    assert events_of(data) == [
        ("a", "x", 0), ("a", "y", 1), ("b", "y", 0), ("b", "x", 0), ("c", "x", 0), ("c", "y", 1)
    ]  # fmt: skip
    assert data.train.time.tolist() == [0, 10 * 10**9]


def test_without_a_kind_every_row_is_a_click(table):
    assert table().manifest["steps"][0]["clicks"] == 6


def test_equal_times_go_in_the_order_in_which_kinds_are_named(table, events_of):
    rows = [("s1", 0), ("s2", 100_000), ("s3", 200_000)]
    text = "visit,what,when,how\n" + "".join(
        f"{s},{item},{t},{how}\n" for s, t in rows for item, how in (("p", "buy"), ("q", "cart"), ("r", "fav"))
    )
    data = table(text, KINDS, click=("fav", "cart"), purchase=("buy",))
    assert events_of(data)[:3] == [("s1", "r", 0), ("s1", "q", 0), ("s1", "p", 1)]


def test_rows_of_other_kinds_are_dropped_and_counted(table):
    data = table(EVENTS + "u1,c,z,200020,wish\nu1,c,z,200030,\n", KINDS)
    assert data.manifest["dropped"] == [{"reason": "rows of other kinds (how: 'wish', '')", "events": 2, "sessions": 0}]
    assert data.manifest["events_read"] == 8


def test_a_gap_cuts_a_user_only_where_it_is_exceeded(table, events_of):
    day = 86_400
    times = [0, 60, 120, 181, 200, day * 2, day * 2 + 1, day * 4, day * 4 + 1]
    text = "who,what,when\n" + "".join(f"u,{n},{t}\n" for n, t in enumerate(times))
    options = replace(LOOSE, unseen="keep")
    data = table(text, options=options, session=None, user="who", gap=60)
    sessions = pd.Series([session for session, _, _ in events_of(data)])
    assert sessions.value_counts(sort=False).tolist() == [3, 2, 2, 2]


def test_user_codes_are_shared_between_splits(table):
    data = table(user="who")
    users = [log.user.tolist() for log in (data.train, data.valid, data.test) if log.user is not None]
    assert users == [[0], [1], [0]]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["3", "20", "100"], [3, 20, 100]),
        (["3", "20", "x"], ["20", "3", "x"]),
        (["7", "007", "8"], ["007", "7", "8"]),
        (["99999999999999999999", "1", "2"], ["1", "2", "99999999999999999999"]),
        (["NA", "nan", "null"], ["NA", "nan", "null"]),
        (["-1", "0", "5"], [-1, 0, 5]),
    ],
)
def test_no_two_ids_are_merged_and_mixed_columns_are_text(table, ids, expected):
    text = "visit,what,when\n" + "".join(f"{s},{i},{t}\n" for s, t in (("a", 0), ("b", 9e5), ("c", 2e6)) for i in ids)
    assert table(text).train.item_id.tolist() == expected


@pytest.mark.parametrize(
    ("unit", "written"),
    [
        ("s", ["1396437466.940000", "1396537466.5", "1396637466"]),
        ("ms", ["1396437466940", "1396537466500.0", "1396637466000"]),
        ("iso", ["2014-04-02T11:17:46.940Z", "2014-04-03T17:04:26.5+02:00", "2014-04-04T18:51:06Z"]),
        ("iso", ["2014-04-02 11:17:46.940", "2014-04-03T15:04:26.5", "2014-04-04 18:51:06"]),
    ],
)
def test_units_of_time_agree(table, unit, written):
    text = "visit,what,when\n" + "".join(f"{n},{item},{time}\n" for n, time in enumerate(written) for item in "xy")
    data = table(text, time_unit=unit)
    starts = [int(log.time[0]) for log in (data.train, data.valid, data.test)]
    assert starts == [1396437466940 * 10**6, 1396537466500 * 10**6, 1396637466000 * 10**6]


def test_parquet_equals_csv(table, parquet, tmp_path):
    (tmp_path / "frame.csv").write_text(EVENTS)
    frame = pd.read_csv(tmp_path / "frame.csv")
    expected = table(fmt=KINDS, user="who").fingerprint()
    assert parquet(frame, KINDS, user="who").fingerprint() == expected
    stamped = frame.assign(when=pd.to_datetime(frame["when"], unit="s"))
    assert parquet(stamped, KINDS, user="who", time_unit="iso").fingerprint() == expected
    zoned = frame.assign(when=pd.to_datetime(frame["when"], unit="s", utc=True).dt.tz_convert("Asia/Tokyo"))
    assert parquet(zoned, KINDS, user="who", time_unit="iso").fingerprint() == expected


def test_tabs_windows_line_ends_blank_lines_quotes_and_a_bom_change_nothing(table):
    expected = table(fmt=KINDS).fingerprint()
    tabbed = EVENTS.replace(",", "\t")
    assert table(tabbed, KINDS, sep="tab").fingerprint() == expected
    assert table(tabbed, KINDS, sep="\\t").fingerprint() == expected
    windows = b"\xef\xbb\xbf" + EVENTS.replace("\n", "\r\n").encode() + b"\r\n\r\n"
    assert table(windows, KINDS).fingerprint() == expected
    assert table("\n" + EVENTS.replace("u1,a,x", '"u1",a,"x"').replace("\n", "\n\n"), KINDS).fingerprint() == expected


@pytest.mark.parametrize(
    ("text", "change", "message"),
    [
        (EVENTS + "u1,c\n", {}, r"e.csv:8: expected 5 fields separated by ',', found 2"),
        ("\n" + EVENTS + "u1,c,x,1,view,more\n", {}, r"e.csv:9: expected 5 fields .* found 6"),
        (EVENTS.replace("100010", "late"), {}, r"e.csv:5: when must be a number, found 'late'"),
        (EVENTS.replace("100010", ""), {}, r"e.csv:5: when is empty, expected a number"),
        (EVENTS.replace("100010", "inf"), {}, r"e.csv:5: when inf is no time"),
        (EVENTS.replace("100010", "1511929781000000"), {}, r"e.csv:5: when 1511929781000000 is no time .*--time-unit"),
        (EVENTS.replace("b,x", "b,"), {}, r"e.csv:5: what is empty, expected an id"),
        (EVENTS.replace("\nu2", "\n\nu2").replace("b,x", ",x"), {}, r"e.csv:7: visit is empty"),
        (EVENTS, {"time_unit": "iso"}, r"e.csv:2: when must be an ISO-8601 time .*, found '0'"),
        (EVENTS, {"item": "sku"}, r"no column 'sku', found who, visit, what, when, how"),
        (EVENTS.replace("who", "what"), {}, r"2 columns 'what'"),
        (
            EVENTS,
            {"kind": "how", "click": ("look",)},
            r"none of the values look given with --click, found 'buy', 'view'",
        ),
        (EVENTS, {"kind": "how", "click": ("view",), "purchase": ("b",)}, "none of the values b given with --purchase"),
        (EVENTS.replace("u1,c,y", "u3,c,y"), {"user": "who"}, r"e.csv:7: session 'c' belongs to more than one who"),
        (EVENTS.replace("u1,a,y", 'u1,a,"y').replace("b,y", 'b,"y'), {}, r"e.csv:3: a quoted value runs over the end"),
        (EVENTS.replace("200000,view\nu1", '200000,"view\nu1"'), {}, r"e.csv:6: a quoted value runs over the end"),
        (EVENTS.encode().replace(b"b,x", b"b,\xff"), {}, r"e.csv:5: what must be UTF-8 text"),
        (EVENTS.split("\n", 1)[0] + "\n", {}, r"e.csv: has no rows"),
        ("", {}, r"e.csv: the file is empty"),
        (EVENTS, {"session": None}, "found neither"),
        (EVENTS, {"user": "who", "gap": 60.0}, "found both"),
        (EVENTS, {"session": None, "gap": 60.0}, "name the column with --user"),
        (EVENTS, {"session": None, "user": "who", "gap": 0.0}, "--gap must be a positive"),
        (EVENTS, {"time": None}, "no time column named"),
        (EVENTS, {"click": ("view",)}, "name it with --kind"),
        (EVENTS, {"kind": "how"}, "needs its values"),
        (EVENTS, {"kind": "how", "click": ("buy",), "purchase": ("buy",)}, "'buy' is named twice"),
        (EVENTS, {"sep": "::"}, "--sep must be one character"),
    ],
)
def test_bad_input_is_one_line_that_names_the_place(table, text, change, message):
    with pytest.raises(InputError, match=message) as error:
        table(text, **change)
    assert "\n" not in str(error.value) and "e.csv" in str(error.value)


def test_mixed_time_zones_are_refused_at_the_first_odd_line(table):
    text = "visit,what,when\na,x,2014-04-02T11:17:46Z\na,y,2014-04-02T11:17:47Z\nb,y,2014-04-02T11:17:46\n"
    with pytest.raises(InputError, match=r"e.csv:4: when must be an ISO-8601 time with a zone"):
        table(text, time_unit="iso")


@pytest.mark.parametrize(
    ("change", "fmt", "message"),
    [
        ({"what": ["x", None, "y"]}, {}, "row 2: what is empty"),
        ({"what": [1.0, np.nan, 2.0]}, {}, "row 2: what is empty"),
        ({"when": [1.0, 2.0, np.nan]}, {}, "row 3: when"),
        ({"when": ["1", "2", "soon"]}, {}, "row 3: when must be a number, found 'soon'"),
        ({"when": ["2014-04-02", "2014-04-03", "soon"]}, {"time_unit": "iso"}, "row 3: when must be an ISO-8601"),
        ({}, {"time_unit": "iso"}, "holds int64; give --time-unit s or ms"),
        ({"when": pd.to_datetime([0, 1, 2])}, {}, "give --time-unit iso"),
        ({}, {"item": "sku"}, "no column 'sku', found visit, what, when"),
    ],
)
def test_bad_parquet_names_the_row(parquet, change, fmt, message):
    frame = pd.DataFrame({"visit": [1, 1, 2], "what": ["x", "y", "x"], "when": [0, 1, 2], **change})
    with pytest.raises(InputError, match=message) as error:
        parquet(frame, **fmt)
    assert "\n" not in str(error.value) and "e.parquet" in str(error.value)


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "e.parquet").write_text(EVENTS)
    with pytest.raises(InputError, match="not a readable Parquet file"):
        prepare_table(replace(FORMAT, events=tmp_path / "e.parquet"), LOOSE)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    line=st.integers(1, 6),
    field=st.integers(0, 4),
    text=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8),
)
def test_any_damage_is_read_whole_or_refused_on_one_line(table, line, field, text):
    lines = [row.split(",") for row in EVENTS.splitlines()]
    lines[line][field] = text
    try:
        data = table("\n".join(",".join(row) for row in lines) + "\n", KINDS, user="who")
    except InputError as error:
        assert "\n" not in str(error)
        return
    out = sum(log.n_events for log in (data.train, data.valid, data.test))
    assert data.manifest["events_read"] == out + sum(drop["events"] for drop in data.manifest["dropped"])


@pytest.fixture
def taobao(real):
    return TableFormat(
        real("taobao_actions/events.csv"), item="item_idx", time="timestamp", user="user_idx", gap=3600,
        kind="behaviour", click=("fav", "cart"), purchase=("buy",),
    )  # fmt: skip


def test_taobao_actions_has_the_counts_of_its_description(taobao):
    everyone = prepare_table(taobao, LOOSE).manifest
    assert everyone["events_read"] == everyone["steps"][0]["events"] == 357_412
    assert everyone["steps"][1]["sessions"] == 73_262
    data = prepare_table(taobao, replace(LOOSE, buyers_only=True, unseen="keep"))
    step = data.manifest["steps"][2]
    assert (step["sessions"], step["events"], step["items"]) == (47_418, 142_220, 28_035)
    assert data.train.n_items == 28_035

    logs = [data.train, data.valid, data.test]
    targets = [log.batch().target_events() for log in logs]
    assert sum(int((log.kind[rows] == PURCHASE).sum()) for log, rows in zip(logs, targets, strict=True)) == 65_645


def test_prepared_taobao_survives_the_disk(taobao, tmp_path):
    data = prepare_table(taobao, PrepareOptions(buyers_only=True))
    data.save(tmp_path / "taobao")
    back = PreparedData.open(tmp_path / "taobao")
    assert back.fingerprint() == data.fingerprint()
    assert isinstance(back.test, SessionLog) and back.test.user is not None
    assert set(np.unique(back.train.item)) == set(range(back.train.n_train_items))


def test_recsys15_clicks_are_read_whole(real):
    file = real("recsys15_clicks/yoochoose-clicks-100k_train_full.txt")
    data = prepare_table(TableFormat(file, item="ItemId", time="Time", session="SessionId", sep="tab"))
    read = data.manifest["steps"][0]
    assert (read["events"], read["sessions"], read["items"]) == (70_278, 17_794, 2_933)
    earliest = prepare_table(
        TableFormat(file, item="ItemId", time="Time", session="SessionId", sep="tab"), LOOSE
    ).train.time[0]
    frame = pd.read_csv(file, sep="\t", dtype={"Time": str})
    assert int(earliest) == min(int(float(time) * 1000 + 0.5) for time in frame["Time"]) * 10**6


def test_globo_is_read_whole_with_its_users(real):
    fmt = TableFormat(
        real("globo/clicks.parquet"), item="click_article_id", time="click_timestamp", session="session_id",
        user="user_id", time_unit="ms",
    )  # fmt: skip
    data = prepare_table(fmt, PrepareOptions(test_days=7, valid_days=7))
    read = data.manifest["steps"][0]
    assert (read["events"], read["sessions"], read["items"]) == (548_581, 176_596, 17_082)
    assert data.train.user is not None and len(np.unique(data.train.user)) > 10_000


def test_an_id_with_a_nul_at_its_end_is_refused_as_it_would_become_another(table):
    with pytest.raises(InputError, match=r"e.csv:3: what 'x\\x00' ends with a NUL"):
        table(EVENTS.replace("a,y,10", "a,x\0,10"))


def test_a_first_time_that_is_not_utf8_is_refused_by_its_line(table):
    with pytest.raises(InputError, match=r"e.csv:2: when must be an ISO-8601 time"):
        table(EVENTS.encode().replace(b"a,x,0", b"a,x,\x80"), time_unit="iso")


def test_the_name_of_a_column_that_nobody_needs_may_be_anything(table):
    head, *rows = EVENTS.encode().splitlines()
    extra = b"\n".join([head + b",\x80", *(row + b",1" for row in rows)]) + b"\n"
    assert table(extra).fingerprint() == table().fingerprint()


COLUMNS_OF_PARQUET = {
    "int8": pa.array(range(6), pa.int8()),
    "beyond int64": pa.array([2**64 - 1 - n for n in range(6)], pa.uint64()),
    "not a number": pa.array([0.5, float("nan"), 1e300, float("inf"), -0.0, 0.0]),
    "missing": pa.array([None, 1, 2, 3, 4, 5]),
    "all missing": pa.nulls(6),
    "bool": pa.array([True, False] * 3),
    "line ends": pa.array(["a\nb\u2028", "a\x85"] * 3),
    "nul": pa.array(["a", "a\0"] * 3),
    "large text": pa.array(list("abcabc"), pa.large_string()),
    "categories": pa.array(list("abcabc")).dictionary_encode(),
    "categories of bytes": pa.array([b"\xff", b"b"] * 3).dictionary_encode(),
    "categories of numbers": pa.array([2**63, 1] * 3, pa.uint64()).dictionary_encode(),
    "bytes": pa.array([b"a", b"\xff"] * 3),
    "lists": pa.array([[1], [2]] * 3),
    "records": pa.array([{"a": 1}] * 6),
    "decimals": pa.array([Decimal("1.50")] * 6),
    "dates": pa.array([date(2019, 1, 1)] * 6),
    "times of day": pa.array([time(1)] * 6),
    "durations": pa.array([timedelta(1)] * 6),
    "beyond Python's years": pa.array([10**12] * 6, pa.timestamp("s")),
    "before Python's years": pa.array([-(2**62)] * 6, pa.timestamp("us", "UTC")),
    "unknown zone": pa.array([2**62] * 6, pa.timestamp("us", "Nowhere/Land")),
}


@pytest.mark.parametrize("values", COLUMNS_OF_PARQUET.values(), ids=COLUMNS_OF_PARQUET)
@pytest.mark.parametrize("column", ["visit", "who", "what", "when", "how"])
@pytest.mark.parametrize("unit", ["s", "iso"])
def test_a_parquet_column_of_any_type_is_read_whole_or_refused_in_one_line(tmp_path, values, column, unit):
    when = pa.array([0, 10, 100_000, 100_010, 200_000, 200_010], pa.int64() if unit == "s" else pa.timestamp("s"))
    columns = {"who": list("uuuuuu"), "visit": list("aabbcc"), "what": list("xyxyxy"), "how": list("vvvvvv")}
    pq.write_table(pa.table(columns | {"when": when} | {column: values}), tmp_path / "e.parquet")
    named = replace(FORMAT, events=tmp_path / "e.parquet", time_unit=unit, kind="how", click=("v", "true", "a", "1"))
    loose = PrepareOptions(1, 1, unseen="keep", random_split=(0.4, 0.3, 0.3))
    for fmt in (named, replace(named, user="who"), replace(named, session=None, user="who", gap=60.0)):
        try:
            data = prepare_table(fmt, loose)
        except InputError as error:
            assert len(str(error).splitlines()) == 1
            continue
        logs = (data.train, data.valid, data.test)
        sessions = [session for log in logs for session in log.session_id.tolist()]
        assert len(set(sessions)) == len(sessions) and len(set(data.train.item_id.tolist())) == data.train.n_items
        dropped = sum(drop["events"] for drop in data.manifest["dropped"])
        assert data.manifest["events_read"] == 6 == sum(log.n_events for log in logs) + dropped
        if column == "what":
            assert data.train.n_items == len(values.unique())


def test_a_parquet_id_beyond_int64_stays_what_it_is(parquet):
    frame = pd.DataFrame({"visit": [1, 1, 2, 2, 3, 3], "when": [0, 0, 10**5, 10**5, 2 * 10**5, 2 * 10**5]})
    frame["what"] = np.uint64(2**64 - 1)
    assert parquet(frame).train.item_id.tolist() == ["18446744073709551615"]
