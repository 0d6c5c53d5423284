"""The steps that make user histories, against a plain-Python reading of the recipe, and on real users."""

import os
import re
from collections import Counter, defaultdict
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym.cli import main
from sessiongym.envs.log import PreparedData
from sessiongym.envs.sources.options import (
    CHOICE_SETS_OPTIONS,
    USER_HISTORY_OPTIONS,
    LastFMFormat,
    PrepareOptions,
    RedditFormat,
    TableFormat,
    TaobaoFormat,
)
from sessiongym.envs.sources.pipeline import EventColumns, build
from sessiongym.envs.sources.table import prepare_table
from sessiongym.envs.sources.taobao import prepare_taobao
from sessiongym.errors import InputError

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
NAMES = ("train", "valid", "test")

# Three events are L here, so that short sessions meet every rule.
SHORT = replace(USER_HISTORY_OPTIONS, max_session_length=3)


def _columns(sessions):
    """From (user, start, [(item, kind), ...]) sessions, one event a second."""
    rows = [
        (number, item, start + place, kind)
        for number, (_, start, events) in enumerate(sessions)
        for place, (item, kind) in enumerate(events)
    ]
    session, item, time, kind = (np.array(column) for column in zip(*rows, strict=True))
    return EventColumns(
        session=session,
        item=item,
        time=time.astype(np.int64) * 10**9,
        kind=kind.astype(np.uint8),
        session_id=np.arange(len(sessions)),
        item_id=np.arange(1 + item.max()),
        user=np.array([user for user, _, _ in sessions], dtype=np.int32),
    )


def _clicks(*users, length=2):
    """Sessions of distinct clicks, an hour apart, of the given users in that order."""
    return [(user, 3600 * n, [(k, 0) for k in range(length)]) for n, user in enumerate(users)]


def _recipe(sessions, options):
    """{split: [(session id, user, [(item, kind), ...]), ...]} of the same recipe, slowly."""
    most, parts = options.max_session_length, []
    for number, (user, start, events) in enumerate(sessions):
        events = [(start + place, *event) for place, event in enumerate(events)]
        collapsed = [e for e, before in zip(events, [None, *events], strict=False) if not before or e[1:] != before[1:]]
        if 2 <= len(collapsed) <= 2 * most:
            parts.append((f"{number}", user, collapsed[:most]))
            if len(collapsed) > most + 1:
                parts.append((f"{number}/2", user, collapsed[most:]))
    n = Counter(user for _, user, _ in parts)
    of_user = defaultdict(list)
    for part in sorted(parts, key=lambda part: part[2][0][0]):
        if n[part[1]] >= options.min_user_sessions:
            of_user[part[1]].append(part)
    splits = {name: [] for name in NAMES}
    for some in of_user.values():
        # Shares of the tests are fifths: whole numbers need no rounding.
        n_test = 1 if options.user_split == "last" else ceil(len(some) * round(5 * options.user_test) / 5)
        n_test = min(n_test, len(some) - options.user_valid - 1)
        known = len(some) - n_test
        splits["train"] += some[: known - options.user_valid]
        splits["valid"] += some[known - options.user_valid : known]
        splits["test"] += some[known:]
    return {name: sorted((i, u, [e[1:] for e in events]) for i, u, events in s) for name, s in splits.items()}


def _contents(data):
    found = {}
    for name in NAMES:
        log = getattr(data, name)
        assert (np.diff(log.time[log.offset[:-1]]) >= 0).all(), "sessions are in order of start"
        found[name] = sorted(
            (
                str(log.session_id[s]),
                int(log.user[s]),
                [(int(log.item_id[log.item[e]]), int(log.kind[e])) for e in range(log.offset[s], log.offset[s + 1])],
            )
            for s in range(log.n_sessions)
        )
    return found


def _account(data):
    """All events that were read are there or dropped with a reason."""
    out = sum(getattr(data, name).n_events for name in NAMES)
    assert data.manifest["events_read"] == out + sum(drop["events"] for drop in data.manifest["dropped"])


@settings(max_examples=150, deadline=None)
@given(
    sessions=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(0, 10**6).map(lambda hour: 100 * hour),
            st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=9),
        ),
        max_size=25,
        unique_by=lambda session: session[1],
    ),
    split=st.sampled_from(["share", "last"]),
    user_test=st.sampled_from([0.2, 0.4, 0.8]),
    user_valid=st.sampled_from([1, 2]),
)
def test_any_sessions_equal_a_plain_python_reading(sessions, split, user_test, user_valid):
    sessions = [*sessions, *((9, start, [(0, 0), (1, 0)]) for start in (-400, -300, -200, -100))]
    options = replace(SHORT, user_split=split, user_test=user_test, user_valid=user_valid, min_user_sessions=4)
    data = build(_columns(sessions), options, source={"name": "test"})
    assert _contents(data) == _recipe(sessions, options)
    _account(data)


def test_repeats_collapse_only_where_item_and_kind_follow_themselves():
    rows = [(0, 0), (0, 0), (0, 1), (0, 1), (1, 0), (0, 0), (0, 0), (0, 0)]
    sessions = [(1, 0, rows), *((1, 3600 * n, [(0, 0), (1, 0)]) for n in (1, 2))]
    data = build(_columns(sessions), replace(USER_HISTORY_OPTIONS, max_session_length=None), source={"name": "test"})
    assert _contents(data)["train"][0][2] == [(0, 0), (0, 1), (1, 0), (0, 0)]
    assert data.manifest["dropped"] == [
        {"reason": "repeats of the item and kind of the event before", "events": 4, "sessions": 0}
    ]


@pytest.mark.parametrize(("length", "parts"), [(3, [3]), (4, [3]), (5, [3, 2]), (6, [3, 3]), (7, [])])
def test_long_sessions_are_cut_in_two_and_longer_ones_dropped(length, parts):
    sessions = [(1, 0, [(k, 0) for k in range(length)]), *_clicks(2, 2, 2)]
    data = build(_columns(sessions), replace(SHORT, min_user_sessions=1, user_split="none",
        random_split=(0.4, 0.3, 0.3)), source={"name": "test"})  # fmt: skip
    found = [session for part in _contents(data).values() for session in part if session[1] == 1]
    assert sorted((i, len(events)) for i, _, events in found) == list(zip(("0", "0/2"), parts, strict=False))
    drops = {drop["reason"]: (drop["events"], drop["sessions"]) for drop in data.manifest["dropped"]}
    expected = {
        4: {"sessions of fewer than 2 events, after the cut in two": (1, 1)},
        7: {"sessions of more than 6 events": (7, 1)},
    }
    assert drops == expected.get(length, {})


@pytest.mark.parametrize(
    ("n", "n_test"), [(3, 1), (4, 1), (5, 1), (6, 2), (9, 2), (10, 2), (11, 3), (15, 3), (25, 5), (35, 7)]
)
def test_a_fifth_of_a_users_sessions_rounded_up_is_test_and_the_one_before_valid(n, n_test):
    data = build(_columns(_clicks(*[1] * n)), USER_HISTORY_OPTIONS, source={"name": "test"})
    numbers = [[int(i) for i, _, _ in _contents(data)[name]] for name in NAMES]
    assert sorted(numbers[0]) == list(range(n - n_test - 1))
    assert numbers[1] == [n - n_test - 1]
    assert sorted(numbers[2]) == list(range(n - n_test, n))


def test_hold_one_out_tests_on_the_last_session_of_each_user():
    data = build(
        _columns(_clicks(1, 2, 1, 2, 2, 1, 2, 1)), replace(USER_HISTORY_OPTIONS, user_split="last"),
        source={"name": "test"},
    )  # fmt: skip
    found = {name: [(int(i), user) for i, user, _ in part] for name, part in _contents(data).items()}
    assert found == {"train": [(0, 1), (1, 2), (2, 1), (3, 2)], "valid": [(4, 2), (5, 1)], "test": [(6, 2), (7, 1)]}
    assert data.manifest["split"].startswith("per user, sessions in order of start: the last is test, the 1 before")


def test_users_of_few_sessions_are_dropped_and_counted_and_a_cut_session_counts_as_two():
    long = (3, 10**6, [(k, 0) for k in range(6)])
    sessions = [*_clicks(1, 1, 1, 2, 2, 3), long]
    data = build(_columns(sessions), SHORT, source={"name": "test"})
    assert {user for part in _contents(data).values() for _, user, _ in part} == {1, 3}
    assert data.manifest["dropped"] == [
        {"reason": "sessions of users with fewer than 3 sessions", "events": 4, "sessions": 2}
    ]


def test_the_folder_says_that_the_split_is_not_a_cut_in_time(tmp_path):
    data = build(_columns(_clicks(1, 1, 1)), USER_HISTORY_OPTIONS, source={"name": "test"}, notes=["first"])
    data = data.save(tmp_path / "data")
    note = "The split is per user, not a cut in time"
    for notes in (data.notes, *(getattr(data, name).notes for name in NAMES)):
        assert notes[0] == "first" and notes[1].startswith(note)
    by_time = build(_columns(_clicks(*[1] * 99)), PrepareOptions(), source={"name": "test"})
    assert by_time.notes == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_user_sessions": 3}, "test: --min-user-sessions 3 needs to know whose the sessions are"),
        ({"user_split": "share", "min_user_sessions": 3}, "test: --user-split share needs to know whose"),
    ],
)
def test_users_are_never_invented(change, message):
    anonymous = replace(_columns(_clicks(1, 1, 1, 1)), user=None)
    with pytest.raises(InputError, match=message):
        build(anonymous, PrepareOptions(**change), source={"name": "test"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_user_sessions": 2}, "found users of 2 sessions; add --min-user-sessions 3"),
        ({"user_valid": 2}, "found users of 3 sessions; add --min-user-sessions 4"),
        ({"user_valid": 0}, "--user-valid: must be at least 1, found 0"),
        ({"min_user_sessions": 0}, "--min-user-sessions: must be at least 1, found 0"),
        ({"user_test": 1.0}, "--user-test: must be a share between 0 and 1, found 1"),
        ({"user_test": float("nan")}, "--user-test: must be a share between 0 and 1, found nan"),
        ({"max_session_length": 1}, "--max-session-length: must be at least --min-session-length 2, found 1"),
        ({"split_at": "start"}, "--split-at start: belongs to the split by time, found a split per user"),
        ({"split_by": "content"}, "found a split per user"),
        ({"random_split": (0.8, 0.1, 0.1)}, "--user-split share: sorts sessions by their order, found --random-split"),
        ({"user_split": "half"}, "--user-split: must be none or share or last, found 'half'"),
        ({"consecutive_repeats": "no"}, "--consecutive-repeats: must be keep or drop, found 'no'"),
    ],
)
def test_options_that_make_no_sense_are_one_line(change, message):
    with pytest.raises(InputError) as error:
        replace(USER_HISTORY_OPTIONS, **change).check()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_options_of_anonymous_data_ask_for_no_users():
    assert CHOICE_SETS_OPTIONS.user_split == PrepareOptions().user_split == "none"
    assert PrepareOptions().min_user_sessions == 1


def _real(name) -> Path:
    if not (DATA / name).is_file():
        pytest.skip(f"no real data at {DATA / name}; set SESSIONGYM_DATA")
    return DATA / name


def _check_histories(data: PreparedData, most=20, least=3):
    """The promises of the recipe, on whatever was prepared."""
    _account(data)
    logs = [getattr(data, name) for name in NAMES]
    user = np.concatenate([log.user for log in logs])
    start = np.concatenate([log.time[log.offset[:-1]] for log in logs])
    split = np.repeat(np.arange(3), [log.n_sessions for log in logs])
    assert max(log.length.max() for log in logs) <= most
    _, n = np.unique(user, return_counts=True)
    assert n.min() >= least
    # Of one user, train comes before valid and valid before test.
    order = np.lexsort((split, start, user))
    same_user = np.diff(user[order]) == 0
    assert (np.diff(split[order])[same_user] >= 0).all()
    for number in range(3):
        assert set(user[split == number]) == set(user)
    for log in logs:
        same = (log.item[1:] == log.item[:-1]) & (log.kind[1:] == log.kind[:-1])
        same[log.offset[1:-1] - 1] = False
        assert not same.any()
    return user, split


def _globo(options=USER_HISTORY_OPTIONS):
    fmt = TableFormat(
        _real("globo/clicks.parquet"), user="user_id", session="session_id", item="click_article_id",
        time="click_timestamp", time_unit="ms",
    )  # fmt: skip
    return prepare_table(fmt, options)


def test_globo_has_the_sessions_of_its_description():
    data = _globo()
    read = data.manifest["steps"][0]
    assert (read["events"], read["sessions"], read["items"]) == (548_581, 176_596, 17_082)
    user, split = _check_histories(data)
    n, n_test = np.bincount(user), np.bincount(user[split == 2])
    assert ((n_test == np.ceil(n / 5)) | (n == 0)).all()
    assert (np.bincount(user[split == 1])[n > 0] == 1).all()


def test_the_actions_on_taobao_have_the_sessions_of_their_description():
    fmt = TableFormat(
        _real("taobao_actions/events.csv"), item="item_idx", user="user_idx", time="timestamp", gap=3600,
        kind="behaviour", click=("fav", "cart"), purchase=("buy",),
    )  # fmt: skip
    recorded = replace(USER_HISTORY_OPTIONS, consecutive_repeats="keep", max_session_length=None)
    steps = {step["step"]: step for step in prepare_table(fmt, recorded).manifest["steps"]}
    assert steps["read"]["events"] == 357_412
    assert (steps["read"]["purchases"], steps["read"]["clicks"]) == (167_862, 140_068 + 49_482)
    assert steps["sessions of at least 2 events"]["sessions"] == 73_262
    _check_histories(prepare_table(fmt, USER_HISTORY_OPTIONS))


def test_the_head_of_taobao_makes_histories_of_categories():
    fmt = TaobaoFormat(_real("taobao_head/UserBehavior.csv"), item_level="category")
    data = prepare_taobao(fmt, USER_HISTORY_OPTIONS)
    assert data.manifest["events_read"] == 84_474
    _check_histories(data)


PAGE = (Path(__file__).parents[1] / "docs" / "user-histories.md").read_text(encoding="utf-8")


@pytest.fixture
def of_the_page(tmp_path):
    """Runs the command of the documentation that writes to the named folder, on the real file."""

    def run(out, real, file):
        (command,) = re.findall(rf"^sessiongym (.* --out {out})$", PAGE, flags=re.MULTILINE)
        words = {file: str(_real(real)), out: str(tmp_path / out)}
        main([words[word] if word in words else word for word in command.split()])
        return PreparedData.open(tmp_path / out)

    return run


def test_the_command_for_globo_is_the_recipe_of_the_paper_and_the_example_reads_it(of_the_page, tmp_path, monkeypatch):
    data = of_the_page("globo", "globo/clicks.parquet", "clicks.parquet")
    assert data.fingerprint() == _globo().fingerprint()
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example, names)
    assert len(names["batch"].history) == 100
    unseen = data.test.item[data.test.batch().target_events()] >= data.test.n_train_items
    (quoted,) = re.findall(r"(\d+) % of the events to predict", PAGE)
    assert int(quoted) == round(100 * unseen.mean())
    dropping = _globo(replace(USER_HISTORY_OPTIONS, unseen="drop"))
    (quoted,) = re.findall(r"the ([\d,]+) test sessions that they leave", PAGE)
    assert int(quoted.replace(",", "")) == data.test.n_sessions - dropping.test.n_sessions


@pytest.mark.parametrize(
    ("out", "real", "file"),
    [
        ("taobao-histories", "taobao_actions/events.csv", "events.csv"),
        ("taobao-category-histories", "taobao_head/UserBehavior.csv", "UserBehavior.csv"),
    ],
)
def test_the_commands_for_taobao_split_every_user(of_the_page, out, real, file):
    data = of_the_page(out, real, file)
    assert data.manifest["options"]["user_split"] == "share"
    assert max(log.length.max() for log in (data.train, data.valid, data.test)) <= 20
    assert set(data.test.user) <= set(data.train.user)


def test_the_table_of_the_page_states_the_defaults():
    rows = re.findall(r"^\| .* \| `--([a-z-]+)`.* \| (.*) \| (.*) \|$", PAGE, flags=re.MULTILINE)
    named = {"no limit": "None"}
    for flag, ours, others in rows[1:]:
        for quoted, options in ((ours, USER_HISTORY_OPTIONS), (others, PrepareOptions())):
            assert named.get(quoted, quoted) == str(getattr(options, flag.replace("-", "_"))), flag
    assert len(rows) == 8 and rows[0][:2] == ("gap", "1800, 3600")
    assert (LastFMFormat(Path()).gap, RedditFormat(Path()).gap) == (1800, 3600)
