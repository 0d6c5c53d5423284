"""Folders that something else has written to: opened as a valid log or refused in one line, never a crash."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sessiongym.envs.log import PreparedData, SessionLog
from sessiongym.errors import InputError

pytestmark = pytest.mark.filterwarnings("error")

COLUMNS = ("item", "kind", "time", "offset", "session_id", "item_id", "user")
FOLDERS = ("", "train", "valid", "test")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    logs = [
        SessionLog(
            item=rng.integers(0, 9, 60),
            kind=rng.integers(0, 2, 60),
            time=np.sort(rng.integers(0, 10**15, 60)),
            offset=np.arange(21) * 3,
            session_id=np.array([f"s{number}" for number in range(20)]),
            item_id=np.arange(9),
            user=np.arange(20),
            n_train_items=8,
        )
        for _ in range(3)
    ]
    folder = tmp_path_factory.mktemp("damage") / "data"
    PreparedData(*logs, manifest={"notes": ["a note"]}).save(folder)
    return folder


@pytest.fixture(scope="module")
def opens(prepared):
    def check(damage) -> PreparedData | None:
        """Open a copy after `damage(folder)`: usable data, or None for an `InputError` of one line about the folder."""
        with tempfile.TemporaryDirectory() as place:
            folder = shutil.copytree(prepared, Path(place) / "data")
            damage(folder)
            try:
                data = PreparedData.open(folder)
            except InputError as error:
                assert len(str(error).splitlines()) == 1 and str(error).startswith(str(folder)), error
                return None
            for log in (data.train, data.valid, data.test):
                assert len(log.to_pandas()) == log.n_events == sum(len(batch.item) for batch in log.batches(7))
            assert all(isinstance(note, str) for note in data.notes) and data.fingerprint()
            return data

    return check


def test_whole_data_opens(opens):
    assert opens(lambda folder: None) is not None


@settings(max_examples=150, deadline=None)
@given(
    folder=st.sampled_from(FOLDERS[1:]),
    column=st.sampled_from(COLUMNS),
    place=st.integers(0, 200),
    cut=st.integers(0, 3),
    inserted=st.binary(max_size=3) | st.sampled_from([b"{", b"(", b"'", b"\n", b"\0", b"9", b">", b"O", b"f"]),
)
def test_a_column_with_other_bytes_opens_or_is_refused(opens, folder, column, place, cut, inserted):
    def damage(data):
        file = data / folder / f"{column}.npy"
        content = file.read_bytes()
        file.write_bytes(content[:place] + inserted + content[place + cut :])

    opens(damage)


@settings(max_examples=60, deadline=None)
@given(folder=st.sampled_from(FOLDERS[1:]), column=st.sampled_from(COLUMNS), kept=st.integers(0, 500))
def test_a_column_cut_short_is_refused(opens, prepared, folder, column, kept):
    size = (prepared / folder / f"{column}.npy").stat().st_size
    kept = min(kept, size - 1)

    def damage(data):
        file = data / folder / f"{column}.npy"
        file.write_bytes(file.read_bytes()[:kept])

    assert opens(damage) is None


OTHER_ARRAYS = {
    "floats": lambda column: np.linspace(0, 1, len(column)),
    "not numbers": lambda column: np.full(len(column), np.nan),
    "complex": lambda column: np.ones(len(column)) * 1j,
    "two dimensions": lambda column: np.stack([column, column], axis=1),
    "no dimension": lambda column: np.array(3),
    "bytes": lambda column: np.array([b"x"] * len(column)),
    "records": lambda column: np.zeros(len(column), dtype=[("a", "i4")]),
    "dates": lambda column: np.zeros(len(column), dtype="M8[ns]"),
    "void": lambda column: np.zeros(len(column), dtype="V4"),
}


@pytest.mark.parametrize("array", OTHER_ARRAYS)
@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_of_another_type_or_shape_is_refused(opens, column, array):
    def damage(data):
        file = data / "train" / f"{column}.npy"
        np.save(file, OTHER_ARRAYS[array](np.load(file)))

    assert opens(damage) is None


@pytest.mark.parametrize("column", ["item", "kind", "user"])
def test_numbers_too_wide_for_their_column_are_refused_rather_than_cut(opens, column):
    def damage(data):
        file = data / "train" / f"{column}.npy"
        np.save(file, np.load(file).astype(np.int64) + 2**32)

    assert opens(damage) is None


def archive(file: Path) -> None:
    with file.open("wb") as stream:
        np.savez(stream, np.arange(3))


def folder_in_its_place(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [archive, folder_in_its_place, Path.unlink])
@pytest.mark.parametrize("file", ["manifest.json", "train/manifest.json", "test/item.npy", "test/session_id.npy"])
def test_a_file_that_is_missing_or_something_else_is_refused(opens, file, damage):
    assert opens(lambda data: damage(data / file)) is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), folder=st.sampled_from(FOLDERS))
def test_an_edited_manifest_opens_or_is_refused(opens, prepared, data, folder):
    manifest = json.loads((prepared / folder / "manifest.json").read_text())
    name = data.draw(st.sampled_from(sorted(manifest)))
    if data.draw(st.integers(0, 9)):
        manifest[name] = data.draw(VALUES | st.lists(st.sampled_from(COLUMNS), max_size=9))
    else:
        del manifest[name]
    opened = opens(lambda copy: (copy / folder / "manifest.json").write_text(json.dumps(manifest)))
    if folder and "n_train_items" in manifest and opened is not None:
        assert getattr(opened, folder).n_train_items == manifest["n_train_items"]


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "1" * 5000, "", "null", '"a', "\x00", "\ufeff{}", '{"format": "a\\nb"}']
)
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_manifest_of_something_else_is_refused(opens, folder, text):
    assert opens(lambda data: (data / folder / "manifest.json").write_text(text)) is None


def test_splits_of_two_data_sets_are_refused_even_where_they_would_fit(opens):
    def damage(data):
        shutil.rmtree(data / "test")
        shutil.copytree(data / "train", data / "test")

    assert opens(damage) is None
