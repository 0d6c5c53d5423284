"""`SessionLog` keeps order and content through memory, disk, pickles and pandas, and refuses what is damaged."""

import copy
import dataclasses
import itertools
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym.envs.folders import SCHEMA, new_folder
from sessiongym.envs.log import PURCHASE, PreparedData, SessionLog
from sessiongym.errors import InputError

DATA = Path(os.environ.get("SESSIONGYM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
COLUMNS = ("item", "kind", "time", "offset", "session_id", "item_id", "user")


def random_frame(seed: int, n_events: int = 300, n_sessions: int = 60) -> pd.DataFrame:
    """Events in no order, with many equal times."""
    rng = np.random.default_rng(seed)
    session = rng.integers(0, n_sessions, n_events)
    return pd.DataFrame(
        {
            "session": np.array([f"s{s}" for s in session]),
            "item": rng.integers(100, 120, n_events),
            "time": rng.integers(0, 40, n_events) * 10**9,
            "kind": (rng.random(n_events) < 0.3).astype(int),
            "user": session % 7,
        }
    )


@pytest.fixture(scope="module")
def log() -> SessionLog:
    return SessionLog.from_pandas(random_frame(0), notes=["imposed order"])


@pytest.fixture(scope="module")
def real_log() -> SessionLog:
    file = DATA / "taobao_actions" / "events.csv"
    if not file.exists():
        pytest.skip(f"{file} is not there; set SESSIONGYM_DATA to the data folder")
    raw = pd.read_csv(file, nrows=30_000)
    return SessionLog.from_pandas(
        pd.DataFrame(
            {
                "session": raw["user_idx"],
                "item": raw["item_idx"],
                "time": pd.to_datetime(raw["timestamp"], unit="s", utc=True),
                "kind": np.where(raw["behaviour"] == "buy", "purchase", "click"),
                "user": raw["user_idx"],
            }
        )
    )


def assert_same(found: SessionLog, expected: SessionLog) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert (found.n_train_items, found.notes) == (expected.n_train_items, expected.notes)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=30
    )
)
def test_sessions_go_by_start_and_events_by_time_with_ties_in_order_of_the_rows(events):
    log = SessionLog.from_pandas(pd.DataFrame(events, columns=["session", "item", "time", "kind"]))
    rows_of: dict[int, list] = {}
    for row in events:
        rows_of.setdefault(row[0], []).append(row)
    sessions = sorted((sorted(rows, key=lambda row: row[2]) for rows in rows_of.values()), key=lambda rows: rows[0][2])
    expected = [row for rows in sessions for row in rows]
    assert log.session_id.tolist() == [rows[0][0] for rows in sessions]
    assert log.length.tolist() == [len(rows) for rows in sessions]
    found = zip(log.item_id[log.item].tolist(), log.time.tolist(), log.kind.tolist(), strict=True)
    assert list(found) == [(item, time, kind) for _, item, time, kind in expected]


def test_the_order_of_the_rows_matters_only_between_equal_times():
    frame = random_frame(1)
    frame["time"] = np.random.default_rng(2).permutation(len(frame))
    shuffled = frame.sample(frac=1, random_state=3)
    assert_same(SessionLog.from_pandas(shuffled), SessionLog.from_pandas(frame))


def test_datetimes_of_any_zone_and_unit_are_nanoseconds_in_utc():
    frame = random_frame(3)
    expected = SessionLog.from_pandas(frame).time
    utc = pd.to_datetime(frame["time"], utc=True)
    for time in (
        utc,
        utc.dt.tz_convert("Asia/Tokyo"),
        utc.dt.tz_localize(None),
        utc.dt.tz_localize(None).dt.as_unit("s"),
    ):
        np.testing.assert_array_equal(SessionLog.from_pandas(frame.assign(time=time)).time, expected)


def test_kinds_may_be_names_or_numbers():
    frame = random_frame(4)
    named = frame.assign(kind=np.where(frame["kind"] == PURCHASE, "purchase", "click"))
    assert SessionLog.from_pandas(named).fingerprint() == SessionLog.from_pandas(frame).fingerprint()


def test_the_fingerprint_is_of_the_content_wherever_it_is(log, tmp_path):
    saved = log.save(tmp_path / "log")
    fresh = dataclasses.replace(saved, path=None, recorded_fingerprint=None)
    again = SessionLog.from_pandas(log.to_pandas(), notes=log.notes)
    for other in (saved, fresh, again, pickle.loads(pickle.dumps(log)), pickle.loads(pickle.dumps(saved))):
        assert_same(other, log)
        assert other.fingerprint() == log.fingerprint()


@pytest.mark.parametrize("column", ["item", "kind", "time", "session_id", "item_id", "user", "n_train_items"])
def test_the_fingerprint_changes_with_any_column(log, column):
    if column == "n_train_items":
        value = log.n_train_items - 1
    else:
        value = getattr(log, column).copy()
        value[0] = value[-1] if column == "session_id" else 1 - value[0] if column == "kind" else value[0] ^ 1
    changed = dataclasses.replace(log, **{column: value}, recorded_fingerprint=None)
    assert changed.fingerprint() != log.fingerprint()


def test_a_real_log_comes_back_from_pandas_and_from_disk(real_log, tmp_path):
    assert real_log.n_purchases > 10_000 and (np.diff(real_log.time[real_log.offset[:-1]]) >= 0).all()
    frame = real_log.to_pandas()
    assert frame["time"].dt.year.eq(2017).all()
    assert SessionLog.from_pandas(frame).fingerprint() == real_log.fingerprint()
    assert_same(real_log.save(tmp_path / "log"), real_log)


def test_a_saved_log_is_mapped_and_nothing_can_be_written_to_it(log, tmp_path):
    saved = log.save(tmp_path / "log")
    for name in COLUMNS:
        assert isinstance(getattr(saved, name), np.memmap), name
        for one in (log, saved):
            with pytest.raises(ValueError, match="read-only"):
                getattr(one, name)[0] = getattr(one, name)[0]


def test_a_log_made_of_writable_arrays_leaves_them_writable(log):
    item = log.item.copy()
    made = dataclasses.replace(log, item=item)
    assert item.flags.writeable and not made.item.flags.writeable


def test_a_mapped_log_travels_as_its_path(log, tmp_path):
    saved = log.save(tmp_path / "log")
    data = pickle.dumps(saved)
    assert len(data) < 500 < len(pickle.dumps(log))
    assert isinstance(pickle.loads(data).item, np.memmap)


def test_a_deep_copy_is_the_log_itself(log):
    assert copy.deepcopy({"log": log})["log"] is log


def test_select_keeps_sessions_whole_in_their_order_and_the_vocabulary(log):
    part = log.select(np.array([5, 2, 2, 9]))
    assert part.session_id.tolist() == log.session_id[[2, 5, 9]].tolist()
    for number, session in enumerate((2, 5, 9)):
        ours, theirs = slice(*part.offset[number : number + 2]), slice(*log.offset[session : session + 2])
        for name in ("item", "kind", "time"):
            np.testing.assert_array_equal(getattr(part, name)[ours], getattr(log, name)[theirs])
    assert part.n_items == log.n_items and part.notes == log.notes
    assert part.user is not None and part.user.tolist() == log.user[[2, 5, 9]].tolist()


def test_an_empty_log_is_a_log(log, tmp_path):
    nothing = log.select(np.zeros(0, dtype=int))
    assert (nothing.n_sessions, nothing.n_events, list(nothing.batches(10))) == (0, 0, [])
    assert nothing.save(tmp_path / "log").fingerprint() == nothing.fingerprint()


def test_rows_and_targets_are_the_events_that_follow_another_of_their_session(log):
    batch = log.batch(3, 20)
    first = log.offset[3]
    expected = [e for s in range(3, 20) for e in range(log.offset[s] - first + 1, log.offset[s + 1] - first)]
    assert batch.target_events().tolist() == expected
    assert batch.state_events().tolist() == [e - 1 for e in expected]
    assert batch.n_rows == len(expected) and batch.n_sessions == 17
    np.testing.assert_array_equal(batch.item, log.item[first : log.offset[20]])
    assert np.shares_memory(batch.item, log.item)


def test_the_last_row_of_a_live_session_sees_all_of_its_events(log):
    session = int(np.argmax(log.length))
    live = log.batch(session, session + 1)
    longer = live.with_unknown_next()
    assert longer.state_events()[-1] == len(live.item) - 1 and longer.n_rows == len(live.item)
    np.testing.assert_array_equal(longer.item[:-1], live.item)
    with pytest.raises(InputError, match="one session of at least one event, found 2 sessions"):
        log.batch(0, 2).with_unknown_next()


@pytest.mark.parametrize("max_rows", [1, 2, 5, 17, 10**6])
def test_batches_cover_every_session_once_within_their_budget(log, max_rows):
    batches = list(log.batches(max_rows))
    assert all(batch.n_rows <= max_rows or batch.n_sessions == 1 for batch in batches)
    assert sum(batch.n_sessions for batch in batches) == log.n_sessions
    for name in ("item", "kind", "time"):
        np.testing.assert_array_equal(np.concatenate([getattr(b, name) for b in batches]), getattr(log, name))
    # Greedy: the first session of the next batch would not have fitted.
    for batch, following in itertools.pairwise(batches):
        assert batch.n_rows + following.offset[1] - 1 > max_rows


def test_a_failure_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as temporary:
        (temporary / "half").write_text("written")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_overwriting_swaps_whole_folders_and_only_when_asked(log, tmp_path):
    other = log.select(np.arange(10))
    log.save(tmp_path / "log")
    with pytest.raises(InputError, match="already exists and is not overwritten"):
        other.save(tmp_path / "log")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "log", overwrite=True):
        raise RuntimeError
    assert SessionLog.open(tmp_path / "log").fingerprint() == log.fingerprint()
    assert other.save(tmp_path / "log", overwrite=True).fingerprint() == other.fingerprint()
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


def test_overwriting_never_replaces_what_the_package_did_not_write(log, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a folder that sessiongym wrote"):
        log.save(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert log.save(tmp_path / "empty", overwrite=True).fingerprint() == log.fingerprint()


def one_line(caught: pytest.ExceptionInfo) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_not_a_log_is_refused(log, tmp_path):
    with pytest.raises(InputError, match="no such folder") as caught:
        SessionLog.open(tmp_path / "nowhere")
    assert one_line(caught).startswith(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="not a folder that sessiongym wrote") as caught:
        SessionLog.open(tmp_path)
    one_line(caught)
    PreparedData(log, log, log, {}).save(tmp_path / "data")
    with pytest.raises(InputError, match=r"expected format 'sessiongym.log', found 'sessiongym.prepared'") as caught:
        SessionLog.open(tmp_path / "data")
    one_line(caught)


@pytest.mark.parametrize("kind", ["log", "prepared"])
def test_a_folder_of_a_newer_schema_is_refused(log, tmp_path, kind):
    folder = tmp_path / "folder"
    log.save(folder) if kind == "log" else PreparedData(log, log, log, {}).save(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema": SCHEMA + 1}))
    with pytest.raises(InputError, match=rf"manifest.json: written with schema {SCHEMA + 1}, .*upgrade") as caught:
        SessionLog.open(folder) if kind == "log" else PreparedData.open(folder)
    one_line(caught)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"format": "sessiongym.log",\n "schema": 1,', r"manifest.json:2: not valid JSON"),
        (b"\xff\xfe", r"manifest.json:1: not valid JSON"),
        (b"[]", "expected format 'sessiongym.log', found None"),
        (b'{"format": "sessiongym.log"}', "written with schema None"),
        (b'{"format": "sessiongym.log", "schema": 1}', "manifest.json: .*columns"),
        (
            b'{"format": "sessiongym.log", "schema": 1, "n_train_items": 20, "notes": [], "fingerprint": "", '
            b'"columns": ["item", "price"]}',
            "manifest.json: .*price",
        ),
    ],
)
def test_a_damaged_manifest_is_refused_in_one_line(log, tmp_path, content, expected):
    log.save(tmp_path / "log")
    (tmp_path / "log" / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=expected) as caught:
        SessionLog.open(tmp_path / "log")
    one_line(caught)


@pytest.mark.parametrize("column", ["item", "kind", "time", "offset", "session_id", "item_id", "user"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "garbage", "shorter"])
def test_a_damaged_column_is_refused_in_one_line(log, tmp_path, column, damage):
    log.save(tmp_path / "log")
    file = tmp_path / "log" / f"{column}.npy"
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "shorter":
        np.save(file, getattr(log, column)[:-1])
    else:
        file.write_bytes({"empty": b"", "cut": whole[:-10], "garbage": b"garbage" * 30}[damage])
    with pytest.raises(InputError) as caught:
        SessionLog.open(tmp_path / "log")
    assert one_line(caught).startswith(str(tmp_path / "log"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kind": np.zeros(3)}, "of one length"),
        ({"item": np.full(300, 20)}, r"items must be 0\.\.19"),
        ({"item": np.full(300, -1)}, r"items must be 0\.\.19"),
        ({"kind": np.full(300, 2)}, "kind must be 0"),
        ({"offset": np.array([0, 300, 300])}, "no empty session"),
        ({"offset": np.array([0, 299])}, "offset must rise"),
        ({"offset": np.zeros(0)}, "offset must rise"),
        ({"session_id": np.array(["a"])}, "one entry for each"),
        ({"user": np.array([1])}, "one entry for each"),
    ],
)
def test_columns_that_do_not_fit_are_refused(log, changes, expected):
    with pytest.raises(InputError, match=expected) as caught:
        dataclasses.replace(log, **changes)
    one_line(caught)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: f.drop(columns="time"), r"missing \['time'\]"),
        (lambda f: f.assign(kind="sold"), "kind must be 0, 1, 'click' or 'purchase', found 'sold'"),
        (lambda f: f.assign(kind=-1), "kind must be"),
        (lambda f: f.assign(time=f["time"].astype(str)), "'time'"),
        (lambda f: f.assign(time=f["time"] / 2), "'time'"),
        (lambda f: f.assign(time=pd.to_datetime(f["time"]).where(f.index != 4)), "'time' .* row 4"),
        (lambda f: f.assign(session=f["session"].where(f.index != 4)), "'session' .* row 4"),
        (lambda f: f.assign(item=f["item"].where(f.index != 4)), "'item' .* row 4"),
        (lambda f: f.assign(user=f["user"].where(f.index != 4)), "'user' .* row 4"),
        (lambda f: f.assign(user="somebody"), "'user'"),
    ],
)
def test_a_frame_that_is_not_a_log_is_refused_in_one_line(change, expected):
    with pytest.raises(InputError, match=expected) as caught:
        SessionLog.from_pandas(change(random_frame(0)))
    one_line(caught)


def test_an_item_outside_a_given_vocabulary_is_refused():
    with pytest.raises(InputError, match="is not in the given vocabulary of 3 items"):
        SessionLog.from_pandas(random_frame(0), item_id=np.array([100, 101, 102]))


def test_prepared_data_comes_back_from_disk(log, tmp_path):
    data = PreparedData(log.select(np.arange(10)), log.select(np.arange(10, 14)), log, {"notes": ["a note"], "step": 3})
    saved = data.save(tmp_path / "data")
    assert saved.fingerprint() == data.fingerprint() == saved.manifest["fingerprint"]
    assert saved.notes == ("a note",) and saved.manifest["step"] == 3
    assert_same(saved.train, data.train)
    assert_same(PreparedData.open(tmp_path / "data").test, log)


def test_the_manifest_of_changed_data_says_what_it_is_now(log, tmp_path):
    saved = PreparedData(log, log, log, {}).save(tmp_path / "data")
    changed = dataclasses.replace(saved, train=log.select(np.arange(10))).save(tmp_path / "other")
    assert changed.manifest["fingerprint"] == changed.fingerprint() != saved.fingerprint()


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_an_empty_split_is_refused_with_nothing_written(log, tmp_path, split):
    parts = {"train": log, "valid": log, "test": log} | {split: log.select(np.zeros(0, dtype=int))}
    with pytest.raises(InputError, match=f"the {split} split is empty; nothing written") as caught:
        PreparedData(**parts, manifest={}).save(tmp_path / "deep" / "data")
    one_line(caught)
    assert list(tmp_path.iterdir()) == []


def test_splits_of_different_vocabularies_are_refused(log, tmp_path):
    folder = tmp_path / "data"
    PreparedData(log, log, log, {}).save(folder)
    SessionLog.from_pandas(random_frame(0, n_events=5)).save(folder / "valid", overwrite=True)
    with pytest.raises(InputError, match="different vocabularies") as caught:
        PreparedData.open(folder)
    one_line(caught)
