"""Files read in parts: the rows and the errors of a file read whole, whatever the parts and the parser."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sessiongym.envs.sources import reader
from sessiongym.envs.sources.parts import read_parts
from sessiongym.envs.sources.reader import UTC_TIME, read_csv
from sessiongym.errors import InputError

COLUMNS = ("session", "time", "item", "category")
TYPES = {"session": pa.int64(), "time": UTC_TIME, "item": pa.int64()}

LINES = st.sampled_from(
    [
        "1,2014-04-07T10:51:09.277Z,500,0\n",
        "22,2014-04-07T10:54:09.868Z,600,S\n",
        "333,2014-04-08T13:56:37.614Z,5000000,12\n",
        "4,2014-04-08T13:57:19Z, 700,0\n",
        "5,2014-04-08T13:57:19.000Z,700,\r\n",
        "\n",
        "6,2014-04-08T13:57:19.000Z,700,0\r",
    ]
)
DAMAGED = st.sampled_from(
    [
        "1,2014-04-07T10:51:09.277Z,500\n",
        "1,2014-04-07T10:51:09.277Z,,0\n",
        "x,2014-04-07T10:51:09.277Z,500,0\n",
        "1,2014-04-31T10:51:09.277Z,500,0\n",
        "\ufeff1,2014-04-07T10:51:09.277Z,500,0\n",
    ]
)


@pytest.fixture(scope="session")
def outcome():
    """The columns, or the message of the error; the whole file first, then in parts."""

    def read(file, **options):
        try:
            if not options:
                rows = read_csv(file, TYPES, names=COLUMNS, quoted=False)
                return [rows.int64(name).tolist() for name in TYPES]
            parts = list(read_parts(file, COLUMNS, **options))
            assert parts[-1].end == file.stat().st_size
            return [np.concatenate([getattr(part, name) for part in parts]).tolist() for name in TYPES]
        except InputError as error:
            return str(error)

    return read


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(LINES, max_size=20),
    damage=st.none() | st.tuples(st.integers(0, 20), DAMAGED),
    whole_end=st.booleans(),
    part_bytes=st.integers(1, 400),
)
def test_parts_and_parser_change_neither_rows_nor_errors(
    outcome, tmp_path, monkeypatch, lines, damage, whole_end, part_bytes
):
    if damage is not None:
        lines = [*lines[: damage[0]], damage[1], *lines[damage[0] :]]
    text = "".join(lines)
    file = tmp_path / "clicks.dat"
    file.write_bytes((text if whole_end else text.rstrip("\r\n")).encode())
    expected = outcome(file)
    # Lines before an error are counted in blocks, which may end between the two characters of a line's end.
    monkeypatch.setattr(reader, "_BLOCK_BYTES", 1 + part_bytes % 7)
    for fast in (True, False):
        assert outcome(file, fast=fast, part_bytes=part_bytes) == expected


def test_the_first_of_several_damaged_lines_is_named(tmp_path):
    file = tmp_path / "clicks.dat"
    good = "1,2014-04-07T10:51:09.277Z,500,0\n"
    file.write_text(good * 1000 + "\n" + "1,2014,500,0\n" + good * 1000 + "x" + good * 1000)
    for fast in (True, False):
        with pytest.raises(InputError, match=r"clicks.dat:1002: time must be an ISO-8601 .* found '2014'"):
            list(read_parts(file, COLUMNS, fast=fast, part_bytes=1000))


def test_a_caller_may_stop_early(tmp_path):
    file = tmp_path / "clicks.dat"
    file.write_text("1,2014-04-07T10:51:09.277Z,500,0\n" * 1000)
    parts = read_parts(file, COLUMNS, part_bytes=100)
    assert len(next(parts).item) == 4
    parts.close()  # type: ignore[attr-defined]
