"""The strict parser of event lines: what Arrow reads, or nothing."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sessiongym.envs.sources.event_lines import parse_event_lines
from sessiongym.envs.sources.reader import UTC_TIME, parse_csv

TYPES = {"session": pa.int64(), "time": UTC_TIME, "item": pa.int64()}
FIELDS = ("session", "time", "item", "price", "quantity")
GOOD = b"420374,2014-04-06T18:44:58.314Z,214537888,12462,1\n"


@pytest.fixture(scope="session")
def arrow():
    def read(lines, n_fields):
        """Columns as Arrow reads them, None where it refuses the lines or finds a value missing."""
        try:
            table = parse_csv(pa.BufferReader(lines), TYPES, FIELDS[:n_fields], quoted=False)
        except pa.ArrowInvalid:
            return None
        if any(table[name].null_count for name in TYPES):
            return None
        return [table[name].cast(pa.int64()).to_numpy() for name in TYPES]

    return read


NUMBERS = ["", " 7", "7 ", "-7", "+7", "007", "7.0", "1e3", "x", "0" * 30 + "7", "9" * 18, "9" * 19, "9" * 20]
TIMES = [
    *["", "2014-04-06", "2014-04-06T18:44:58Z", "2014-04-06 18:44:58.314Z", "2014-04-06T18:44:58.314"],
    *["2014-02-30T00:00:00.000Z", "2014-02-29T00:00:00.000Z", "2016-02-29T00:00:00.000Z", "2100-02-29T00:00:00.000Z"],
    *["2014-04-06T24:00:00.000Z", "2014-04-06T23:60:00.000Z", "2014-04-06T23:59:60.000Z", "2014-13-01T00:00:00.000Z"],
    *["1677-01-01T00:00:00.000Z", "1969-12-31T23:59:59.999Z", "2262-05-01T00:00:00.000Z", "2014-04-06T18:44:58.3x4Z"],
    *["2014-04-06T18:44:58.314+02:00", "2014-04-06T18:44:58.314z", "2014-04-06t18:44:58.314Z"],
    *[f"2014-04-06T18:44:58.{'1' * n}Z" for n in range(11)],
]
TEXTS = ["", ",", "\r", "a\rb", "\n", '"', '"a', "\x00", "\v\f", "é", "\ufeff", " "]
ENDS = ["", "\r", "\r\n", "\n\n", ",\n", " \n"]


@pytest.fixture(scope="session")
def agrees(arrow):
    def check(lines, n_fields):
        parsed = parse_event_lines(lines, n_fields)
        if parsed is not None and lines:
            expected = arrow(lines, n_fields)
            assert expected is not None
            for ours, theirs in zip(parsed, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)

    return check


@st.composite
def nearly_valid_lines(draw):
    """Lines in the form of the challenge, every field of which is now and then something else."""
    odd = draw(st.floats(0, 0.3))

    def one_of(usual, unusual):
        return draw(unusual) if draw(st.floats(0, 1)) < odd else draw(usual)

    def number():
        return one_of(st.integers(0, 10**9).map(str), st.sampled_from(NUMBERS) | st.integers(-(2**65), 2**65).map(str))

    def time():
        whole = st.datetimes().map(lambda time: time.isoformat(timespec="milliseconds") + "Z")
        return one_of(
            whole,
            st.tuples(whole, st.integers(0, 24), st.sampled_from("0123456789:-TZ. +,x")).map(
                lambda edit: edit[0][: edit[1]] + edit[2] + edit[0][edit[1] + 1 :]
            )
            | st.sampled_from(TIMES),
        )

    def text():
        return one_of(
            st.sampled_from(["0", "S", "12", "2089051464"]),
            st.sampled_from(TEXTS) | st.text("0 ,\"'\n\r\x00\v\fé\ufeff", max_size=3),
        )

    n_fields = draw(st.sampled_from([4, 5]))
    lines = []
    for _ in range(draw(st.integers(0, 5))):
        fields = [number(), time(), number(), *(text() for _ in range(n_fields - 3))]
        end = one_of(st.just("\n"), st.sampled_from(ENDS))
        lines.append(",".join(fields) + end)
    return one_of(st.just(""), st.sampled_from(["\ufeff", "\n", " "])).encode() + "".join(lines).encode(), n_fields


@settings(max_examples=600, deadline=None)
@given(nearly_valid_lines())
@example((GOOD[:-1], 5))
@example((GOOD.replace(b"\n", b"\r\n"), 5))
@example((b"\xef\xbb\xbf" + GOOD, 5))
@example((b"", 5))
@example((GOOD, 4))
def test_gives_what_arrow_gives_or_declines(agrees, case):
    agrees(*case)


def test_gives_what_arrow_gives_or_declines_for_one_odd_field_in_a_good_line(agrees):
    session, time, item, price, quantity = GOOD[:-1].decode().split(",")
    lines = [
        *(f"{odd},{time},{item},{price},{quantity}\n" for odd in NUMBERS),
        *(f"{session},{odd},{item},{price},{quantity}\n" for odd in TIMES),
        *(f"{session},{time},{odd},{price},{quantity}\n" for odd in NUMBERS),
        *(f"{session},{time},{item},{odd},{quantity}\n" for odd in TEXTS),
        *(f"{session},{time},{item},{price},{odd}\n" for odd in TEXTS),
        *(f"{session},{time},{item},{price},{quantity}{odd}" for odd in ENDS),
    ]
    for line in lines:
        for text in (line.encode(), line.encode() + GOOD, GOOD + line.encode()):
            agrees(text, 5)


@settings(max_examples=500, deadline=None)
@given(data=st.data(), n_edits=st.integers(1, 3))
def test_gives_what_arrow_gives_or_declines_whatever_bytes_are_changed(agrees, data, n_edits):
    lines = bytearray(GOOD * 2)
    for _ in range(n_edits):
        place = data.draw(st.integers(0, len(lines) - 1))
        lines[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    agrees(bytes(lines), 5)


def test_the_form_of_the_challenge_is_never_declined():
    rng = np.random.default_rng(0)
    first, last = (np.datetime64(year, "ms").astype(np.int64) for year in ("1970", "2200"))
    time = np.sort(np.append(rng.integers(first, last, 20_000), [first, last - 1]))
    session, item = rng.integers(0, 10**18, (2, len(time)))
    stamps = np.datetime_as_string(time.astype("datetime64[ms]"))
    lines = "".join(f"{s},{t}Z,{i},S\n" for s, t, i in zip(session, stamps, item, strict=True))
    parsed = parse_event_lines(lines.encode(), 4)
    assert parsed is not None
    for column, expected in zip(parsed, (session, time * 10**6, item), strict=True):
        np.testing.assert_array_equal(column, expected)


def test_every_day_of_a_leap_year_a_common_year_and_the_ends_of_centuries_is_known():
    days = np.concatenate(
        [np.arange(f"{year}-01-01", f"{year + 1}-01-01", dtype="datetime64[D]") for year in (1972, 2014, 2000, 2100)]
    )
    lines = "".join(f"1,{day}T23:59:59.999Z,2,0\n" for day in days)
    parsed = parse_event_lines(lines.encode(), 4)
    assert parsed is not None
    np.testing.assert_array_equal(
        parsed[1], days.astype("datetime64[ms]").astype(np.int64) * 10**6 + 86_399_999 * 10**6
    )


@pytest.mark.parametrize("day", ["2014-02-29", "2100-02-29", "2014-04-31", "2014-13-01", "2014-00-10", "2014-01-00"])
def test_a_day_that_does_not_exist_is_declined(day):
    assert parse_event_lines(f"1,{day}T00:00:00.000Z,2,0\n".encode(), 4) is None
