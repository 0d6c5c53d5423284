"""The Reddit subreddit interactions: small files of that shape, written by hand."""

from dataclasses import replace

import pytest
from sessiongym.envs.sources.options import USER_HISTORY_OPTIONS, RedditFormat
from sessiongym.envs.sources.reddit import prepare_reddit
from sessiongym.errors import InputError

START, DAY = 1_482_748_459, 86_400
HEADER = "username,subreddit,utc\n"


@pytest.fixture
def reddit(tmp_path):
    def prepare(rows, options=USER_HISTORY_OPTIONS, **change):
        """From (username, subreddit, seconds after the first) tuples, or from text."""
        if not isinstance(rows, str):
            rows = HEADER + "".join(f"{user},{subreddit},{START + time}.0\n" for user, subreddit, time in rows)
        (tmp_path / "reddit_data.csv").write_text(rows)
        return prepare_reddit(RedditFormat(tmp_path / "reddit_data.csv", **change), options)

    return prepare


@pytest.fixture(scope="session")
def sessions_of():
    def read(data):
        return [
            (int(log.user[s]), log.item_id[log.item[log.offset[s] : log.offset[s + 1]]].tolist())
            for log in (data.train, data.valid, data.test)
            for s in range(log.n_sessions)
        ]

    return read


def test_users_are_cut_after_an_hour_and_what_they_repeat_collapses(reddit, sessions_of):
    rows = [("kab", name, time) for name, time in (("pics", 0), ("pics", 3600), ("news", 7200), ("pics", 10_801))]
    rows += [("kab", name, 10_900) for name in ("aww", "aww")]
    rows += [("kab", name, DAY) for name in ("news", "pics")]
    rows += [("[deleted]", name, day * DAY) for day in (1, 2) for name in ("news", "pics")]
    data = reddit(rows)
    assert sessions_of(data) == [(0, ["pics", "news"]), (0, ["pics", "aww"]), (0, ["news", "pics"])]
    assert data.train.time.tolist() == [START * 10**9, (START + 7200) * 10**9]
    drops = {drop["reason"]: (drop["events"], drop["sessions"]) for drop in data.manifest["dropped"]}
    assert drops == {
        "repeats of the item and kind of the event before": (2, 0),
        "sessions of users with fewer than 3 sessions": (4, 2),
    }
    assert data.manifest["source"]["name"] == "reddit" and data.manifest["source"]["format"]["gap"] == 3600.0


def test_the_gap_is_an_option(reddit, sessions_of):
    rows = [("kab", name, 1000 * n + k) for n in range(4) for k, name in enumerate(("pics", "news"))]
    assert len(sessions_of(reddit(rows, gap=500.0))) == 4
    with pytest.raises(InputError, match="no session is left after the step 'users of at least 3 sessions'"):
        reddit(rows)


def test_whole_seconds_without_a_fraction_are_read_too(reddit, sessions_of):
    text = HEADER + "".join(f"kab,{name},{START + n * DAY}\n" for n in range(3) for name in ("pics", "news"))
    assert len(sessions_of(reddit(text))) == 3


@pytest.mark.parametrize(
    ("text", "change", "message"),
    [
        (HEADER + "kab,pics,soon\n", {}, "reddit_data.csv:2: utc must be a number, found 'soon'"),
        (HEADER + f"kab,pics,{START}\n,pics,{START}\n", {}, "reddit_data.csv:3: username is empty"),
        (HEADER + f"kab,,{START}\n", {}, "reddit_data.csv:2: subreddit is empty"),
        (HEADER + f"kab,pics,{START}\nkab,pics\n", {}, "reddit_data.csv:3: expected 3 fields separated by ','"),
        (HEADER + "kab,pics,1e30\n", {}, "reddit_data.csv:2: utc 1e+30 is no time in the unit 's'"),
        ("user,subreddit,utc\n", {}, "no column 'username', found user, subreddit, utc"),
        (HEADER, {}, "reddit_data.csv: has no rows of data"),
        (HEADER, {"gap": -1.0}, "--gap: must be a positive number of seconds, found -1"),
    ],
)
def test_bad_input_is_one_line_that_names_the_place(reddit, text, change, message):
    with pytest.raises(InputError) as error:
        reddit(text, **change)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_hold_one_out_is_an_option(reddit):
    rows = [("kab", name, n * DAY) for n in range(10) for name in ("pics", "news")]
    data = reddit(rows, replace(USER_HISTORY_OPTIONS, user_split="last"))
    assert [log.n_sessions for log in (data.train, data.valid, data.test)] == [8, 1, 1]
