"""Raw files with damaged lines: every line is in the log, in the account of what was dropped, or named in an error.

The fast form edits a few thousand lines, the slow one 10^5; with ``-s`` both print what became of them.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sessiongym.envs.log import CLICK, PURCHASE, PreparedData
from sessiongym.envs.sources import parts
from sessiongym.envs.sources.choice_sets import prepare_choice_sets
from sessiongym.envs.sources.options import PrepareOptions, Rees46Format, TableFormat, TaobaoFormat
from sessiongym.envs.sources.recsys15 import prepare_recsys15
from sessiongym.envs.sources.rees46 import prepare_rees46
from sessiongym.envs.sources.table import prepare_table
from sessiongym.envs.sources.taobao import FIRST_SECOND, prepare_taobao
from sessiongym.errors import InputError

pytestmark = pytest.mark.filterwarnings("error")

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
DAY = 86_400

LOOSE = PrepareOptions(
    min_item_support=1, min_session_length=1, unseen="keep", random_split=(0.4, 0.3, 0.3), split_by="session"
)
"""Drops nothing."""

Prepare = Callable[[Path, PrepareOptions, dict[str, Any]], PreparedData]
Event = tuple[str, str, int]
"""Session or user, item and kind."""


@dataclass(frozen=True)
class Shape:
    """One form of raw file: valid lines, how to prepare them, and what a plain reading makes of a line."""

    lines: list[bytes]
    prepare: Prepare
    events: Callable[[list[str], int], list[Event]]
    """The events of a line from its fields and its number."""
    beside: Counter[Event] = field(default_factory=Counter)
    """Events that come from another file."""
    header: bytes = b""
    sep: str = ","
    quoted: bool = False
    who: str = "session_id"
    """The column of a log that an event's first field is found in."""
    changes: st.SearchStrategy[dict[str, Any]] = field(default_factory=lambda: st.just({}))
    """Options of the format."""
    engines: tuple[dict[str, Any], ...] = ({},)
    """Ways to read the file that must come to the same result or the same error."""


def kind_of(text: str) -> int:
    return PURCHASE if text in ("buy", "purchase") else CLICK


def number(text: str) -> str:
    """A whole number as the CSV reader takes it: blanks around it, leading zeros and hexadecimal digits are fine."""
    return str(int(text.strip(" \t"), 16 if "x" in text.lower() else 10))


def week() -> list[tuple[int, int, int, int, str]]:
    """(user, session, item, seconds after the first event, kind): two sessions a day."""
    rng = np.random.default_rng(0)
    rows = []
    for session in range(14):
        for place in range(int(rng.integers(2, 5))):
            kind = "buy" if place and rng.random() < 0.4 else ("pv", "fav", "cart")[rng.integers(3)]
            rows.append(
                (session % 5 + 1, session + 1, int(rng.integers(100, 106)), session * DAY // 2 + 60 * place, kind)
            )
    return rows


WEEK = week()


def stamp(seconds: int, form: str) -> str:
    return (datetime(2014, 4, 1, tzinfo=UTC) + timedelta(seconds=seconds)).strftime(form)


def encoded(rows: list[tuple], sep: str = ",") -> list[bytes]:
    return [sep.join(map(str, row)).encode() + b"\n" for row in rows]


def recsys15(damaged: str, clicks: list[bytes], buys: list[bytes]) -> Shape:
    def prepare(file: Path, options: PrepareOptions, change: dict[str, Any]) -> PreparedData:
        other = file.with_name("other.dat")
        other.write_bytes(b"".join(buys if damaged == "clicks" else clicks))
        return prepare_recsys15(*((file, other) if damaged == "clicks" else (other, file)), options, **change)

    def events(kind: int, fields: list[str], _: int) -> list[Event]:
        return [(number(fields[0]), number(fields[2]), kind)]

    lines, others, kind = (clicks, buys, CLICK) if damaged == "clicks" else (buys, clicks, PURCHASE)
    return Shape(
        lines=lines,
        prepare=prepare,
        events=partial(events, kind),
        beside=Counter(event for line in others for event in events(1 - kind, line.decode().split(","), 0)),
        engines=({"fast": True}, {"fast": False}, {"fast": True, "memory": 64.0}, {"fast": False, "memory": 64.0}),
    )


def generated_recsys15(damaged: str) -> Shape:
    rows = [(s, stamp(t, "%Y-%m-%dT%H:%M:%S.277Z"), i, kind) for _, s, i, t, kind in WEEK]
    return recsys15(
        damaged,
        encoded([(s, t, i, "S" if i % 2 else 0) for s, t, i, kind in rows if kind != "buy"]),
        encoded([(s, t, i, 1046, 1) for s, t, i, kind in rows if kind == "buy"]),
    )


def real_buys() -> Shape:
    buys = head("recsys15_buys/sampled_buys.csv", skip=1)
    clicks = [b",".join([*line.split(b",")[:3], b"0\n"]) for line in buys]
    return recsys15("buys", clicks, buys)


def taobao(lines: list[bytes]) -> Shape:
    return Shape(
        lines=lines,
        prepare=lambda file, options, change: prepare_taobao(TaobaoFormat(file, **change), options),
        events=lambda fields, _: [(number(fields[0]), number(fields[1]), kind_of(fields[3]))],
        who="user",
        changes=st.fixed_dictionaries(
            {},
            optional={
                "gap": st.sampled_from([1.0, 90.0, 1e6]),
                "outside": st.sampled_from(["drop", "keep"]),
                "click": st.sampled_from([("pv",), ("cart", "pv"), ()]),
            },
        ),
    )


def rees46() -> Shape:
    rows = [
        (stamp(t, "%Y-%m-%d %H:%M:%S UTC"), kind, i, 2053013555631882655, "a.b", "", "35.79", u, f"{s:08x}-dd77")
        for u, s, i, t, kind in WEEK
    ]
    kinds = {"pv": "view", "fav": "remove_from_cart", "cart": "cart", "buy": "purchase"}
    return Shape(
        lines=encoded([(t, kinds[kind], *rest) for t, kind, *rest in rows]),
        prepare=lambda file, options, change: prepare_rees46(Rees46Format([file], **change), options),
        events=lambda fields, _: [(fields[8], number(fields[2]), kind_of(fields[1]))],
        header=b"event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n",
        quoted=True,
        changes=st.fixed_dictionaries(
            {}, optional={"click": st.sampled_from([("view",), ("remove_from_cart", "cart")])}
        ),
    )


def choice_sets(lines: list[bytes]) -> Shape:
    return Shape(
        lines=lines,
        prepare=lambda file, options, _: prepare_choice_sets(file, options),
        events=lambda fields, line: [
            (str(line), number(item), kind)
            for kind, side in zip((CLICK, PURCHASE), fields, strict=True)
            for item in side.split()
        ],
        sep=";",
    )


def table(form: str | None, sep: str, unit: Literal["s", "ms", "iso"], with_sessions: bool) -> Shape:
    rows = [(f"u{u}", f"v{s}", i, t if form is None else stamp(t, form), kind, "") for u, s, i, t, kind in WEEK]
    names: dict[str, Any] = {
        "item": "what",
        "time": "when",
        "kind": "how",
        "click": ("pv", "fav", "cart"),
        "purchase": ("buy",),
    }
    names |= {"session": "visit", "user": "who"} if with_sessions else {"user": "who"}
    gap = {} if with_sessions else {"gap": st.sampled_from([1.0, 90.0, 1e6])}
    return Shape(
        lines=encoded(rows, sep),
        prepare=lambda file, options, change: prepare_table(
            TableFormat(file, **{**names, **change}, time_unit=unit, sep=sep), options
        ),
        events=lambda fields, _: [(fields[1] if with_sessions else "", fields[2], kind_of(fields[4]))],
        header=sep.join(("who", "visit", "what", "when", "how", "note")).encode() + b"\n",
        sep=sep,
        quoted=True,
        who="session_id" if with_sessions else "",
        changes=st.fixed_dictionaries(gap, optional={"click": st.sampled_from([("pv",), ("cart", "pv")])}),
    )


def real_clicks() -> Shape:
    """The challenge's clicks as others pass them on: tab-separated, with a header, in seconds."""
    lines = head("recsys15_clicks/yoochoose-clicks-100k_train_full.txt")
    return Shape(
        lines=lines[1:],
        prepare=lambda file, options, _: prepare_table(
            TableFormat(file, session="SessionId", item="ItemId", time="Time", sep="tab"), options
        ),
        events=lambda fields, _: [(fields[0], fields[1], CLICK)],
        header=lines[0],
        sep="\t",
        quoted=True,
    )


def real_actions() -> Shape:
    lines = head("taobao_actions/events.csv", 150)
    names: dict[str, Any] = {"user": "user_idx", "item": "item_idx", "time": "timestamp", "kind": "behaviour"}
    return Shape(
        lines=lines[1:],
        prepare=lambda file, options, _: prepare_table(
            TableFormat(file, **names, gap=3600.0, click=("fav", "cart"), purchase=("buy",)), options
        ),
        events=lambda fields, _: [("", fields[2], kind_of(fields[3]))],
        header=lines[0],
        quoted=True,
        who="",
    )


def head(name: str, n_lines: int = 50, skip: int = 0) -> list[bytes]:
    if not (DATA / name).is_file():
        pytest.skip(f"no real data at {DATA / name}; set SESSIONGYM_DATA")
    with (DATA / name).open("rb") as stream:
        return list(islice(stream, skip, skip + n_lines))


SHAPES: dict[str, Callable[[], Shape]] = {
    "recsys15 clicks": lambda: generated_recsys15("clicks"),
    "recsys15 buys": lambda: generated_recsys15("buys"),
    "recsys15 buys, real": real_buys,
    "taobao": lambda: taobao(encoded([(u, i, i % 3, kind, FIRST_SECOND + t) for u, _, i, t, kind in WEEK])),
    "taobao, real": lambda: taobao(head("taobao_head/UserBehavior.csv", 150)),
    "rees46": rees46,
    "choice-sets": lambda: choice_sets([b"%d 2 %d;%d %d\n" % (n % 4, n % 5, n % 4, n) for n in range(1, 41)]),
    "choice-sets, real": lambda: choice_sets(head("recsys15_choice_sets/yc-items-5-10-4-8.txt")),
    "table, seconds": lambda: table(None, ",", "s", with_sessions=True),
    "table, ISO": lambda: table("%Y-%m-%dT%H:%M:%SZ", "\t", "iso", with_sessions=True),
    "table, local times": lambda: table("%Y-%m-%d %H:%M:%S", ";", "iso", with_sessions=False),
    "table, clicks, real": real_clicks,
    "table, actions, real": real_actions,
}

NUMBERS = [
    *["", " ", " 7", "7\t", "9" * 18, str(2**31), str(2**63), str(2**64), "9" * 400],
    *"0 -0 -1 +5 007 1.5 1e5 1e400 0x1F nan -inf Infinity 1_0 NULL None true ٣ ５ ²".split(),
]
TIMES = [
    *["2014-06-30T23:59:60Z", "2014-06-30T23:59:60.000Z", "2014-04-31T00:00:00.000Z", "2014-02-29 00:00:00 UTC"],
    *["0000-01-01T00:00:00.000Z", "0001-01-01 00:00:00 UTC", "9999-12-31T23:59:59.999Z", "1677-01-01T00:00:00Z"],
    *["2262-04-12T00:00:00.000Z", "2014-04-03T24:00:00.000Z", "2014-04-03", "2014-04-03T10", "2014-04-03 10:00"],
    *["2014-04-03T10:00:00.123456789Z", "2014-04-03T10:00:00.1234567890Z", "2014-04-03T10:00:00+02:00"],
    *["2014-04-03T10:00:00.277", "2014-04-03t10:00:00z", "2014-04-03T10:00:00.277 Z", "2014-04-03 10:00:00  UTC"],
]
LETTERS = [
    *["\x00", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\u00a0", "\ufeff", "\u202e", "\U0001f600", "é"],
    *['"', '""', '"a', 'a"b', '"a,b"', '"a"b', "'", "\\", "\\n", ",", ";", "\t", " "],
    *["\r", "\n", "\r\n", "\n\n", "\r\r"],
]
KINDS = ["pv", "PV", "buy ", "buy", "view", "purchase", "fav", "cart", "wish"]
TOKENS = [text.encode() for text in (*NUMBERS, *TIMES, *LETTERS, *KINDS)] + [b"\xff\xfe", b"\xc3", b"\xed\xa0\x80"]
ENDS = [b"", b"\r", b"\r\n", b"\n\n", b" \n", b",\n", b"\n \n", b"\n\x00\n"]


def with_field(line: bytes, place: int, token: bytes, sep: bytes) -> bytes:
    fields = line[:-1].split(sep)
    fields[place % len(fields)] = token
    return sep.join(fields) + b"\n"


def with_fields_swapped(line: bytes, place: int, token: bytes, sep: bytes) -> bytes:
    fields = line[:-1].split(sep)
    first = place % (len(fields) - 1)
    return sep.join([*fields[:first], fields[first + 1], fields[first], *fields[first + 2 :]]) + b"\n"


def with_insertion(line: bytes, place: int, token: bytes, sep: bytes) -> bytes:
    place %= len(line)
    return line[:place] + token + line[place:]


def with_bytes_gone(line: bytes, place: int, token: bytes, sep: bytes) -> bytes:
    place %= len(line)
    return line[:place] + line[place + 1 + len(token) % 3 :]


def cut_short(line: bytes, place: int, token: bytes, sep: bytes) -> bytes:
    return line[: place % len(line)] + b"\n"


def ended(line: bytes, place: int, token: bytes, sep: bytes) -> bytes:
    return line[:-1] + ENDS[place % len(ENDS)]


def repeated(line: bytes, place: int, token: bytes, sep: bytes) -> bytes:
    return line * (2 + place % 2)


def gone(line: bytes, place: int, token: bytes, sep: bytes) -> bytes:
    return b""


EDITS = st.tuples(
    st.sampled_from([with_field, with_field, with_field, with_insertion, with_insertion])
    | st.sampled_from([with_bytes_gone, with_fields_swapped, cut_short, ended, repeated, gone]),
    st.integers(0, 99),
    st.sampled_from(TOKENS) | st.binary(max_size=3),
)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BEGINNINGS = [b""] * 20 + [b"\n", b"\r\n", BYTE_ORDER_MARK, b"\n" + BYTE_ORDER_MARK, BYTE_ORDER_MARK + b"\n"]


@dataclass(frozen=True)
class Damage:
    edits: dict[int, tuple[Callable[[bytes, int, bytes, bytes], bytes], int, bytes]]
    """What happens to which line; 0 is the header."""
    beginning: bytes
    lost_at_the_end: int
    """Bytes."""


@st.composite
def damages(draw: st.DrawFn, n_lines: int, fewest: int) -> Damage:
    first = draw(st.sampled_from([1] * 19 + [0]))
    return Damage(
        edits=draw(st.dictionaries(st.integers(first, n_lines), EDITS, min_size=fewest, max_size=20)),
        beginning=draw(st.sampled_from(BEGINNINGS)),
        lost_at_the_end=draw(st.sampled_from([0] * 9 + [1, 2, 9])),
    )


def damaged(shape: Shape, damage: Damage) -> tuple[list[bytes], set[int]]:
    """The file in pieces, each a line before the damage, and the numbers of those that the damage changed."""
    whole = [shape.header, *shape.lines]
    pieces = list(whole)
    for piece, (edit, place, token) in damage.edits.items():
        if pieces[piece]:
            pieces[piece] = edit(pieces[piece], place, token, shape.sep.encode())
    pieces[0] = damage.beginning + pieces[0]
    pieces[-1] = pieces[-1][: len(pieces[-1]) - damage.lost_at_the_end]
    return pieces, {piece for piece, (now, before) in enumerate(zip(pieces, whole, strict=True)) if now != before}


@st.composite
def prepare_options(draw: st.DrawFn) -> PrepareOptions:
    buyers_only = draw(st.booleans())
    random_split = draw(st.sampled_from([None, (0.4, 0.3, 0.3), (0.8, 0.1, 0.1)]))
    return PrepareOptions(
        min_item_support=draw(st.integers(1, 3)),
        min_session_length=draw(st.integers(1, 3)),
        repeats=draw(st.sampled_from(["keep", "drop"])),
        basket_repeats=draw(st.sampled_from(["keep", "drop"])),
        buyers_only=buyers_only,
        buyers_cut=draw(st.sampled_from(["before", "after"])) if buyers_only else "before",
        latest_days=draw(st.sampled_from([None, None, 3.0, 30.0])),
        latest_month=draw(st.sampled_from([False, False, True])),
        split_at=draw(st.sampled_from(["end", "start"])) if random_split is None else "end",
        test_days=draw(st.sampled_from([0.5, 1.0, 2.0])),
        valid_days=draw(st.sampled_from([0.5, 1.0])),
        random_split=random_split,
        split_by=draw(st.sampled_from(["session", "content"])) if random_split is not None else "session",
        unseen=draw(st.sampled_from(["drop", "keep"])),
        seed=draw(st.integers(0, 3)),
    )


LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n|$)")
NO_LINE_IS_AT_FAULT = re.compile(
    r"split is empty|no session is left after|no event is within|has none of the values|none of its \d+ sessions is in|"
    r"has no rows of data|the file is empty|no event has a user_session|every user_session names|no events to prepare|"
    r"choice sets have no times"
)
HEADER_IS_AT_FAULT = re.compile(r"no column|\d columns")


@dataclass
class Tally:
    counts: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)

    def refuse(self, error: InputError) -> None:
        self.counts["refused"] += 1
        self.refused[reason(error)] += 1

    def accept(self, data: PreparedData) -> None:
        self.counts["accepted"] += 1
        for drop in data.manifest["dropped"]:
            self.dropped[re.sub(r"\(.*|[0-9]+(-[0-9]+)?", "", drop["reason"])] += drop["events"]

    def report(self) -> str:
        of = self.counts
        lines = [
            f"{of['lines']:,} lines damaged in {of['files']:,} files; {of['refused lines']:,} lines refused by name; "
            f"the rest prepared {of['accepted']:,} times and refused as a whole {of['refused']:,} times"
        ]
        for title, counter in (("refused", self.refused), ("dropped", self.dropped)):
            lines += [f"  {title} {n:,}: {why}" for why, n in counter.most_common()]
        return "\n".join(lines)


def file_lines(content: bytes) -> list[bytes]:
    """The lines with their ends, which are \\n, \\r\\n or \\r."""
    return [line for line in LINE.findall(content) if line]


def plain(line: bytes) -> bytes:
    return line.rstrip(b"\r\n")


def same(one: PreparedData | InputError, other: PreparedData | InputError) -> bool:
    if isinstance(one, PreparedData) and isinstance(other, PreparedData):
        return one.fingerprint() == other.fingerprint() and one.manifest == other.manifest
    return (type(one), str(one)) == (type(other), str(other))


def outcome(
    shape: Shape, file: Path, options: PrepareOptions, change: dict[str, Any], engine: int | None = None
) -> PreparedData | InputError:
    """What one way to read the file comes to, or what all of them agree on."""
    outcomes = []
    for how in shape.engines if engine is None else [shape.engines[engine % len(shape.engines)]]:
        try:
            outcomes.append(shape.prepare(file, options, change | how))
        except InputError as error:
            assert len(str(error).splitlines()) == 1, f"more than one line: {str(error)!r}"
            outcomes.append(error)
        assert same(outcomes[0], outcomes[-1]), f"{shape.engines[0]}: {outcomes[0]!r}, but {how}: {outcomes[-1]!r}"
    return outcomes[0]


def named_line(error: InputError, file: Path) -> int | None:
    match = re.match(re.escape(str(file)) + r":(\d+): ", str(error))
    return int(match[1]) if match else None


def reason(error: InputError) -> str:
    text = re.sub(r"^\S*?: ", "", str(error))
    text = re.sub(r"found .*|\(.*", "", text)
    return re.sub(r"\d+", "N", text)[:90]


def mended(
    shape: Shape, file: Path, pieces: list[bytes], damaged: set[int], change: dict[str, Any], tally: Tally
) -> PreparedData | InputError:
    """What the file comes to without the lines that errors name, taken out one by one, as a user would."""
    content = b"".join(pieces)
    piece = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    place = np.arange(len(content))
    newest: dict[str, int] = {}
    for step in count():
        file.write_bytes(content)
        result = outcome(shape, file, LOOSE, change, engine=None if step == 0 else step)
        if isinstance(result, PreparedData) or (number := named_line(result, file)) is None:
            return result
        lines = file_lines(content)
        start = sum(map(len, lines[: number - 1]))
        named = slice(start, start + len(lines[number - 1]))
        assert plain(lines[number - 1]), f"an empty line is named: {result}"
        touched = damaged.intersection(piece[named].tolist())
        assert touched or another_line_decides(str(result), shape, damaged), f"a sound line is named: {result}"
        why = reason(result)
        assert place[start] > newest.get(why, -1), f"not the first line at fault is named: {result}"
        newest[why] = place[start]
        tally.counts["refused lines"] += 1
        tally.refused[why] += 1
        content = content[: named.start] + content[named.stop :]
        piece, place = (np.delete(column, named) for column in (piece, place))
    raise AssertionError


def another_line_decides(error: str, shape: Shape, damaged: set[int]) -> bool:
    """Where lines contradict each other the later one is named, though the header or the first may be the bad one."""
    return (
        bool(shape.header and 0 in damaged)
        or ("ISO-8601" in error and 1 in damaged)
        or "belongs to more than one" in error
    )


def check_refusal(error: InputError, damaged: set[int]) -> None:
    """Without a line's name only what is true of the file as a whole may be at fault."""
    assert NO_LINE_IS_AT_FAULT.search(str(error)) or (HEADER_IS_AT_FAULT.search(str(error)) and 0 in damaged), error


def logged(data: PreparedData, shape: Shape) -> Counter[Event]:
    events = Counter()
    for log in (data.train, data.valid, data.test):
        who = np.repeat(getattr(log, shape.who), log.length) if shape.who else [""] * log.n_events
        events.update(zip(map(str, who), map(str, log.item_id[log.item]), log.kind.tolist(), strict=True))
    return events


def check_log(data: PreparedData) -> None:
    seen = set()
    for log in (data.train, data.valid, data.test):
        assert log.n_sessions and not seen.intersection(log.session_id.tolist())
        seen.update(log.session_id.tolist())
        assert (np.delete(np.diff(log.time), log.offset[1:-1] - 1) >= 0).all()
        assert (np.diff(log.time[log.offset[:-1]]) >= 0).all()
        assert len(set(log.item_id.tolist())) == log.n_items
    assert len(seen) == sum(log.n_sessions for log in (data.train, data.valid, data.test))
    assert set(data.train.item.tolist()) == set(range(data.train.n_train_items))


def fields_of(line: bytes, shape: Shape) -> list[str]:
    text = line.decode(errors="surrogateescape")
    return next(csv.reader([text], delimiter=shape.sep)) if shape.quoted else text.split(shape.sep)


def check_account(data: PreparedData, shape: Shape, content: bytes) -> None:
    """Every event of every line is in the log or dropped for a reason, and the log has no others."""
    expected = Counter(shape.beside)
    lines = enumerate(file_lines(content.removeprefix(BYTE_ORDER_MARK)), start=1)
    filled = [(place, plain(line)) for place, line in lines if plain(line)]
    found_names = fields_of(filled[0][1], shape) if shape.header else []
    names = fields_of(plain(shape.header), shape) if shape.header else []
    # A header with two names swapped says that the columns are.
    moved = {place: found_names.index(name) for place, name in enumerate(names) if name in found_names}
    for place, line in filled[bool(shape.header) :]:
        fields = fields_of(line, shape)
        expected.update(shape.events([fields[moved.get(i, i)] for i in range(len(fields))], place))
    found = logged(data, shape)
    assert found <= expected
    dropped = {drop["reason"]: drop["events"] for drop in data.manifest["dropped"]}
    assert len(dropped) == len(data.manifest["dropped"]) and all(reason and n >= 0 for reason, n in dropped.items())
    assert data.manifest["events_read"] == expected.total() == found.total() + sum(dropped.values())
    json.dumps(data.manifest)


def fuzz(name: str, folder: Path, n_files: int, fewest: int = 1) -> Tally:
    """Damage at least `fewest` lines of each of `n_files` files."""
    shape, tally, file = SHAPES[name](), Tally(), folder / "events.csv"

    slow = [HealthCheck.too_slow, HealthCheck.large_base_example]

    @settings(max_examples=n_files, deadline=None, suppress_health_check=slow, database=None)
    @given(damage=damages(len(shape.lines), fewest), options=prepare_options(), change=shape.changes)
    def every_line_is_logged_dropped_or_named(damage, options, change):
        pieces, touched = damaged(shape, damage)
        tally.counts["files"] += 1
        tally.counts["lines"] += len(touched)
        first = mended(shape, file, pieces, touched, change, tally)
        assert same(first, outcome(shape, file, LOOSE, change))
        for result in (first, outcome(shape, file, options, change)):
            if isinstance(result, InputError):
                check_refusal(result, touched)
                tally.refuse(result)
            else:
                check_log(result)
                check_account(result, shape, file.read_bytes())
                tally.accept(result)

    every_line_is_logged_dropped_or_named()
    print(f"\n{name}: {tally.report()}")
    return tally


@pytest.fixture
def small_parts(monkeypatch):
    """So that a file of some fifty lines is read in parts."""
    monkeypatch.setattr(parts, "PART_BYTES", 600)


@pytest.mark.parametrize("name", SHAPES)
def test_every_damaged_line_is_logged_dropped_with_a_reason_or_named(name, tmp_path, small_parts):
    fuzz(name, tmp_path, n_files=15 if "recsys15" in name else 35)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_so_is_each_of_a_hundred_thousand(name, tmp_path, small_parts):
    # Four readings of a file take four times as long.
    n_lines = 2_500 if "recsys15" in name else 9_250
    while n_lines > 0:
        n_lines -= fuzz(name, tmp_path, n_files=200, fewest=8).counts["lines"]
