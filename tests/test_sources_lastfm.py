"""The listening histories of Last.fm-1K: small files of that shape, written by hand."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sessiongym.envs.log import CLICK
from sessiongym.envs.sources.lastfm import prepare_lastfm
from sessiongym.envs.sources.options import USER_HISTORY_OPTIONS, LastFMFormat
from sessiongym.errors import InputError

NEWEST = datetime(2009, 5, 4, 23, 8, 57, tzinfo=UTC)
HOUR = 3600
LOOSE = replace(USER_HISTORY_OPTIONS, min_session_length=1, consecutive_repeats="keep")
MBID = "f1b1cf71-bd35-4e99-8624-24a6e15f133a"


def _line(user, seconds, artist=("", "Deep Dish"), track=("", "Fuck Me Im Famous")):
    """A play so many seconds before the newest one."""
    time = (NEWEST - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return "\t".join((user, time, *artist, *track)) + "\n"


REST = "".join(_line("user_000002", hours * HOUR, (f"id-{hours}", "x"), (f"t-{hours}", "y")) for hours in (1, 2, 3))
"""A user of three sessions of one play each, so that every split holds something."""


@pytest.fixture
def lastfm(tmp_path):
    def prepare(text, options=LOOSE, **change):
        file = tmp_path / "plays.tsv"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return prepare_lastfm(LastFMFormat(file, **change), options)

    return prepare


@pytest.fixture(scope="session")
def sessions_of():
    """The items of a user's sessions, oldest first; users are numbered in order of first appearance."""

    def read(data, user=0):
        found = []
        for log in (data.train, data.valid, data.test):
            for s in range(log.n_sessions):
                if log.user[s] == user:
                    events = slice(log.offset[s], log.offset[s + 1])
                    assert (log.kind[events] == CLICK).all()
                    found.append((int(log.time[events][0]), log.item_id[log.item[events]].tolist()))
        return [items for _, items in sorted(found)]

    return read


def test_users_are_cut_where_they_pause_and_the_newest_line_comes_last(lastfm, sessions_of):
    pause = 1800
    times = [0, 10, 20 + pause, 20 + 2 * pause, 9999]
    text = "".join(_line("user_000001", t, (f"artist-{t}", "name")) for t in times)
    data = lastfm(text + REST)
    assert sessions_of(data) == [
        ["artist-9999"], [f"artist-{20 + 2 * pause}", f"artist-{20 + pause}"], ["artist-10", "artist-0"]
    ]  # fmt: skip
    newest = max(int(log.time.max()) for log in (data.train, data.valid, data.test))
    assert newest == int(NEWEST.timestamp()) * 10**9
    assert data.manifest["source"]["format"] == {"file": "plays.tsv", "item_level": "artist", "gap": 1800.0}
    assert len(sessions_of(lastfm(text + REST, gap=1799.0))) == 4


def test_plays_of_one_second_go_against_the_order_of_the_file(lastfm, sessions_of):
    text = "".join(_line("user_000001", t, (name, "")) for t, name in ((0, "d"), (5, "c"), (5, "b"), (5, "a")))
    text += "".join(_line("user_000001", hours * HOUR) for hours in (2, 3))
    assert sessions_of(lastfm(text + REST))[-1] == ["a", "b", "c", "d"]


def test_an_item_is_the_id_of_its_artist_or_the_name_where_that_is_empty(lastfm, sessions_of):
    plays = [(0, (MBID, "Björk")), (1, ("", 'The "Band')), (2, (MBID, "Bjork")), (3, ("", "Björk"))]
    text = "".join(_line("user_000001", t, artist) for t, artist in plays)
    text += "".join(_line("user_000001", hours * HOUR, (MBID, "Björk")) for hours in (2, 3))
    data = lastfm(text + REST)
    assert sessions_of(data)[-1] == ["Björk", MBID, 'The "Band', MBID]
    assert data.manifest["source"]["events_by_name"] == 2


def test_a_track_without_an_id_goes_by_artist_and_title(lastfm, sessions_of):
    plays = [("", "Intro"), ("track-id", "Intro"), ("", "")]
    text = "".join(_line("user_000001", t, (MBID, "Air"), track) for t, track in enumerate(plays))
    text += "".join(_line("user_000001", hours * HOUR) for hours in (2, 3))
    data = lastfm(text + REST, item_level="track")
    assert sessions_of(data)[-1] == ["track-id", "Air / Intro"]
    assert data.manifest["dropped"] == [{"reason": "events that name no track", "events": 1, "sessions": 0}]
    assert data.manifest["events_read"] == 8


def test_events_that_name_nothing_are_dropped_and_counted_and_bridge_no_gap(lastfm, sessions_of):
    plays = [(0, "b"), (1500, ""), (3000, "a"), (9000, "z")]
    text = "".join(_line("user_000001", t, ("", name)) for t, name in plays)
    data = lastfm(text + REST)
    assert sessions_of(data) == [["z"], ["a"], ["b"]]
    assert data.manifest["dropped"] == [{"reason": "events that name no artist", "events": 1, "sessions": 0}]


def test_unclosed_quotes_swallow_no_lines(lastfm, sessions_of):
    text = "".join(_line("user_000001", h * HOUR, (f"a{h}", '"Weird Al'), ("", '7" edit')) for h in range(4))
    assert len(sessions_of(lastfm(text + REST))) == 4


GOOD = _line("user_000001", 0) + _line("user_000001", 1)


@pytest.mark.parametrize(
    ("text", "change", "message"),
    [
        (GOOD + "user_000001\t2009-05-04T23:08:57Z\t\tname\n", {}, "plays.tsv:3: expected 6 fields separated by"),
        (GOOD + "\nuser_000001\tyesterday\t\tname\t\ttitle\n", {}, "plays.tsv:4: timestamp must be an ISO-8601 time"),
        (GOOD + _line("user_000001", 2).replace("Z", ""), {}, "plays.tsv:3: timestamp must be an ISO-8601 time with a"),
        (_line("user_000001", 0, ("", "")) + _line("", 1), {}, "plays.tsv:2: userid is empty"),
        ("userid\ttimestamp\tartid\tartname\ttraid\ttraname\n" + GOOD, {}, "plays.tsv:1: looks like a header line"),
        (_line("user_000001", 0, ("", "")), {}, "no event names its artist, expected nearly all to"),
        (b"\xff" + GOOD.encode(), {}, "plays.tsv:1: userid must be UTF-8 text"),
        ("", {}, "plays.tsv: the file is empty"),
        (GOOD, {}, "no session is left after the step 'users of at least 3 sessions'"),
        (GOOD, {"gap": 0.0}, "--gap: must be a positive number of seconds, found 0"),
        (GOOD, {"item_level": "album"}, "--item-level: must be artist or track, found 'album'"),
    ],
)
def test_bad_input_is_one_line_that_names_the_place(lastfm, text, change, message):
    with pytest.raises(InputError) as error:
        lastfm(text, **change)
    assert message in str(error.value) and "\n" not in str(error.value)
