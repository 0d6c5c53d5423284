"""Exported files hold the logged transitions, say what they are, and are written whole or not at all."""

import json
import re
import runpy
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym import cli
from sessiongym.commands import TransitionOptions
from sessiongym.envs import export
from sessiongym.envs.export import Exported, export_minari, export_parquet, items_file
from sessiongym.envs.log import PreparedData, SessionLog
from sessiongym.envs.replay import ReplayOptions
from sessiongym.envs.transitions import Transitions, logged_transitions
from sessiongym.errors import InputError

DOCS = (Path(__file__).parents[1] / "docs" / "offline-data.md").read_text(encoding="utf-8")
N = 8
OPTIONS = [
    {},
    {"window": 1},
    {"window": 3, "kinds": True},
    {"rewards": (0.0, 5.0), "density": 0.4, "drop": "event"},
    {"density": 0.4, "drop": "reward", "density_seed": 3},
    {"cold_start": 2, "kinds": True},
]


def make_log(lengths: list[int], seed: int = 0) -> SessionLog:
    rng = np.random.default_rng(seed)
    n_events = sum(lengths)
    return SessionLog(
        item=rng.integers(0, N, n_events),
        kind=(rng.random(n_events) < 0.4).astype(np.uint8),
        time=np.arange(n_events) + 1_400_000_000_123_456_789,
        offset=np.cumsum([0, *lengths]),
        session_id=np.array([f"s{number}" for number in range(len(lengths))]),
        item_id=np.array([f"item {number}" for number in range(N)]),
        notes=("a caveat",),
    )


@pytest.fixture(scope="module")
def log() -> SessionLog:
    return make_log(np.random.default_rng(1).integers(1, 30, 60).tolist())


def whole(log: SessionLog, **options) -> Transitions:
    (chunk,) = logged_transitions(log, max_rows=10**9, **options)
    return chunk


def about(file: Path) -> dict:
    return json.loads(pq.read_schema(file).metadata[b"sessiongym"])


def rebuilt(file: Path) -> dict:
    """What the documentation's lines for a compact file leave behind."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
    script = file.with_name("rebuild.py")
    script.write_text(code.replace('"compact.parquet"', repr(str(file))), encoding="utf-8")
    return runpy.run_path(str(script))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_parquet_file_gives_back_the_transitions(log, options, tmp_path):
    file, expected = tmp_path / "new" / "t.parquet", whole(log, **options)
    made = export_parquet(log, file, **options)
    assert made == Exported(int(expected.done.sum()), len(expected))
    table = pq.read_table(file)
    assert not any(column.nullable for column in table.schema)
    for field in fields(Transitions):
        wanted = getattr(expected, field.name)
        if wanted is None:
            assert field.name not in table.column_names
        elif wanted.ndim == 2:
            found = table[field.name].combine_chunks().flatten().to_numpy().reshape(wanted.shape)
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)
        else:
            np.testing.assert_array_equal(table[field.name].to_numpy().astype(wanted.dtype), wanted)
    np.testing.assert_array_equal(table["session_id"].to_numpy(), log.session_id[expected.session])
    stated = {**about(file), "rewards": tuple(about(file)["rewards"])}
    assert stated | options == stated
    assert stated["log_fingerprint"] == log.fingerprint() and stated["padding"] == log.padding == N
    assert stated["notes"] == ["a caveat"] and not stated["compact"]


def test_pandas_reads_it_with_original_ids(log, tmp_path):
    export_parquet(log, tmp_path / "t.parquet", window=4)
    frame, expected = pd.read_parquet(tmp_path / "t.parquet"), whole(log, window=4)
    np.testing.assert_array_equal(np.stack(list(frame["observation"])), expected.observation)
    np.testing.assert_array_equal(frame["time"], pd.to_datetime(expected.time, utc=True))
    frame = frame.merge(pd.read_parquet(items_file(tmp_path / "t.parquet")), left_on="action", right_on="item")
    events = log.to_pandas().groupby("session").agg(list)
    for session, rows in frame.sort_values("time").groupby("session_id"):
        assert rows["item_id"].tolist() == events["item"][session][1:]


def test_columns_and_metadata_are_those_documented(log, tmp_path):
    export_parquet(log, tmp_path / "t.parquet", kinds=True)
    export_parquet(log, tmp_path / "c.parquet", kinds=True, compact=True)
    documented = re.findall(r"^\| (`.*?) \|", DOCS, re.MULTILINE)
    names = [name for cell in documented for name in re.findall(r"`(\w+)`", cell)]
    columns = pq.read_schema(tmp_path / "t.parquet").names
    assert set(names) == set(columns) | about(tmp_path / "t.parquet").keys()
    compact = set(pq.read_schema(tmp_path / "c.parquet").names)
    assert {name for name in columns if "observation" not in name} == compact - {"item", "start", "item_kind"}
    assert pq.read_schema(tmp_path / "t.items.parquet").names == ["item", "item_id"]
    assert about(tmp_path / "t.items.parquet") == about(tmp_path / "t.parquet")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 6), st.booleans())
def test_windows_are_rebuilt_from_a_compact_file(tmp_path_factory, lengths, window, kinds):
    log, file = make_log([*lengths, 2]), tmp_path_factory.mktemp("compact") / "t.parquet"
    options = {"window": window, "kinds": kinds, "density": 0.5, "drop": "click"}
    export_parquet(log, file, compact=True, **options)
    found, expected = rebuilt(file), whole(log, **options)
    np.testing.assert_array_equal(found["observation"], expected.observation)
    np.testing.assert_array_equal(found["next_observation"], expected.next_observation)
    rows = found["rows"]
    for name in ("action", "kind", "reward", "done", "session"):
        np.testing.assert_array_equal(rows[name].to_numpy(), getattr(expected, name))
    if expected.observation_kind is not None:
        np.testing.assert_array_equal(rows["item_kind"].to_numpy(), expected.observation_kind[:, -1])
    assert ("item_kind" in rows.column_names) == kinds


def test_row_groups_hold_whole_sessions_and_progress_reaches_the_end(log, tmp_path, monkeypatch):
    monkeypatch.setattr(
        export, "logged_transitions", lambda *args, **options: logged_transitions(*args, max_rows=50, **options)
    )
    seen = []
    made = export_parquet(log, tmp_path / "t.parquet", progress=lambda *call: seen.append(call))
    file = pq.ParquetFile(tmp_path / "t.parquet")
    assert file.num_row_groups == len(seen) > 5
    assert all(file.read_row_group(group, ["done"])["done"][-1].as_py() for group in range(file.num_row_groups))
    assert seen[-1][:2] == (log.n_sessions, log.n_sessions) and f"{made.transitions:,}" in seen[-1][2]
    assert pyarrow.dataset.dataset(tmp_path / "t.parquet").count_rows() == made.transitions


def test_files_that_exist_are_kept_unless_told_otherwise(log, tmp_path):
    export_parquet(log, tmp_path / "t.parquet", window=2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"t\.parquet: already exists and is not overwritten; .*--overwrite"):
        export_parquet(log, tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t\.items\.parquet: already exists"):
        export_parquet(log, tmp_path / "t.pq")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    export_parquet(log, tmp_path / "t.parquet", window=3, overwrite=True)
    assert about(tmp_path / "t.parquet")["window"] == 3
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: already exists"):
        export_parquet(log, tmp_path / "folder", overwrite=True)


def test_an_interrupted_export_leaves_what_was_there(log, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    export_parquet(log, tmp_path / "t.parquet", window=2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        export_parquet(log, tmp_path / "t.parquet", overwrite=True, progress=interrupt)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(log, tmp_path):
    with pytest.raises(InputError, match="compact: frozen states cannot be rebuilt"):
        export_parquet(log, tmp_path / "t.parquet", compact=True, cold_start=3)
    with pytest.raises(InputError, match="feedback='logged'"):
        export_parquet(log, tmp_path / "t.parquet", feedback="match")
    with pytest.raises(InputError, match="at least one session of two or more events"):
        export_parquet(make_log([1, 1]), tmp_path / "t.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def minari(tmp_path, monkeypatch):
    pytest.importorskip("h5py", reason="h5py is not installed; pip install 'sessiongym[minari]'")
    module = pytest.importorskip("minari", reason="minari is not installed; pip install 'sessiongym[minari]'")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return module


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_minari_dataset_gives_back_the_transitions(minari, log, options):
    expected = whole(log, **options)
    made = export_minari(log, "shop/replay-v0", 10**6, **options)
    assert made == Exported(int(expected.done.sum()), len(expected))
    dataset = minari.load_dataset("shop/replay-v0")
    row = 0
    for episode in dataset.iterate_episodes():
        rows = slice(row, row + len(episode))
        seen = episode.observations
        if expected.observation_kind is not None and expected.next_observation_kind is not None:
            np.testing.assert_array_equal(seen["kinds"][:-1], expected.observation_kind[rows])
            np.testing.assert_array_equal(seen["kinds"][1:], expected.next_observation_kind[rows])
            seen = seen["items"]
        np.testing.assert_array_equal(seen[:-1], expected.observation[rows])
        np.testing.assert_array_equal(seen[1:], expected.next_observation[rows])
        np.testing.assert_array_equal(episode.actions, expected.action[rows])
        np.testing.assert_array_equal(episode.rewards, expected.reward[rows])
        np.testing.assert_array_equal(episode.terminations, expected.done[rows])
        np.testing.assert_array_equal(episode.infos["logged_kind"], [2, *expected.kind[rows]])
        assert set(episode.infos["session"]) == set(expected.session[rows]) and not episode.truncations.any()
        row += len(episode)
    assert row == len(expected) == dataset.total_steps
    stated = dataset.storage.metadata["sessiongym"]
    assert stated["log_fingerprint"] == log.fingerprint() and stated["padding"] == N
    assert "a caveat" in dataset.storage.metadata["description"]


def test_a_sample_is_drawn_by_its_seed_and_kept_in_order(minari, log):
    def sampled(name, seed):
        assert export_minari(log, name, 10, seed=seed).sessions == 10
        return [int(episode.infos["session"][0]) for episode in minari.load_dataset(name).iterate_episodes()]

    first = sampled("shop/a-v0", 0)
    assert len(first) == 10
    assert first == sorted(set(first)) == sampled("shop/b-v0", 0) != sampled("shop/c-v0", 1)


def test_a_minari_dataset_is_whole_or_absent_and_never_replaced(minari, log, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_minari(log, "shop/replay-v0", progress=interrupt)
    assert not list(tmp_path.rglob("replay*")) and minari.list_local_datasets() == {}
    made = export_minari(log, "shop/replay-v0", 5)
    with pytest.raises(InputError, match="replay-v0: already exists and is not overwritten; choose another version"):
        export_minari(log, "shop/replay-v0", 7)
    assert minari.load_dataset("shop/replay-v0").total_steps == made.transitions
    for wrong in ("shop/replay", "shop replay-v0", ""):
        with pytest.raises(InputError, match="--dataset-id: expected a name such as shop/replay-v0, found"):
            export_minari(log, wrong)
    with pytest.raises(InputError, match="--sessions: expected at least 1, found 0"):
        export_minari(log, "shop/replay-v1", 0)
    assert list(minari.list_local_datasets()) == ["shop/replay-v0"]


def test_many_sessions_come_with_a_warning_of_time_and_size(minari, log, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_minari(log, "shop/few-v0", 20)
    monkeypatch.setattr(export, "MANY_SESSIONS", 19)
    with pytest.warns(UserWarning, match=r"20 sessions will take about \d+ minutes and [\d.]+ GB.*export_parquet"):
        export_minari(log, "shop/many-v0", 20)


def test_without_minari_the_error_says_how_to_get_it(log, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(InputError, match=r"not installed; run pip install 'sessiongym\[minari\]'"):
        export_minari(log, "shop/replay-v0")


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shop"
    cli.main(["shop", "--sessions", "150", "--items", "30", "--min-item-support", "1", "--out", str(folder)])
    return folder


def test_the_documented_commands_run(minari, shop, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop").symlink_to(shop)
    commands = re.findall(r"^sessiongym (export .*)$", DOCS, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        cli.main(command.split())
    printed, train = capsys.readouterr().out, PreparedData.open(shop).train
    assert printed.count(f"{train.n_events - train.n_sessions:,} transitions") == 3
    assert printed.count("note: simulated") == 3
    np.testing.assert_array_equal(pq.read_table("transitions.parquet")["action"].to_numpy(), whole(train).action)
    assert about(Path("compact.parquet"))["compact"]
    assert minari.load_dataset("shop/replay-v0").total_steps == train.n_events - train.n_sessions


def test_the_command_line_passes_every_option_on(shop, tmp_path, capsys):
    file = tmp_path / "t.parquet"
    given = "--window 4 --rewards 0,3 --density 0.5 --drop reward --density-seed 2 --cold-start 3 --kinds --split test"
    cli.main(["export", "parquet", "--data", str(shop), "--out", str(file), *given.split()])
    options = {"window": 4, "rewards": [0.0, 3.0], "density": 0.5, "drop": "reward", "density_seed": 2}
    stated = about(file)
    assert stated | options | {"cold_start": 3, "kinds": True} == stated
    assert stated["log_fingerprint"] == PreparedData.open(shop).test.fingerprint()
    with pytest.raises(SystemExit) as end:
        cli.main(["export", "parquet", "--data", str(shop), "--out", str(file)])
    assert end.value.code == 2 and "error: " in capsys.readouterr().err


def test_options_of_the_command_are_those_of_the_environment():
    replay = {field.name: field.default for field in fields(ReplayOptions)}
    for field in fields(TransitionOptions):
        assert field.default == replay[field.name]
    # Those that logged events leave no choice about.
    assert replay.keys() - {field.name for field in fields(TransitionOptions)} <= {
        "feedback",
        "order",
        "slate",
        "shard",
    }
