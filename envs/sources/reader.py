"""CSV and Parquet into Arrow columns, with errors that name the line.

The fast parser knows no line numbers. So it runs first, and only where it fails a slow second pass finds the line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from ...errors import InputError

# Most of these functions are made when the module is imported, where no type checker sees them.
pc: Any = pyarrow.compute

ID = pa.dictionary(pa.int32(), pa.string())
"""Type of an id column: read as text, so that 007 and 7 stay two ids; `Rows.ids` makes integers where nothing is lost.
"""

UTC_TIME = pa.timestamp("ns", "UTC")
LOCAL_TIME = pa.timestamp("ns")

_EXPECTED = {
    pa.int64(): "a whole number",
    pa.float64(): "a number",
    UTC_TIME: "an ISO-8601 time with a zone, such as 2014-04-07T10:51:09.277Z",
    LOCAL_TIME: "an ISO-8601 time without a zone, such as 2014-04-07T10:51:09",
}
_BLOCK_BYTES = 1 << 24
_RESCAN_LINES = 1 << 16


@dataclass(frozen=True, eq=False)
class Rows:
    """The columns of one file, and the way back from a row to its place in the file."""

    table: pa.Table
    file: Path
    header_lines: int | None
    """0 or 1 for CSV, None for Parquet."""
    start: int = 0
    """Bytes of the CSV file before the line that these rows begin with."""

    def where(self, row: int) -> str:
        """``file:line`` of a row (0-based) of a CSV file, ``file: row N`` (1-based) of a Parquet file."""
        if self.header_lines is None:
            return f"{self.file}: row {row + 1}"
        return f"{self.file}:{_line_number(self.file, row + self.header_lines, self.start)}"

    def line_numbers(self) -> np.ndarray:
        """[E] int64 line of each row of a CSV file, from 1."""
        numbers = np.fromiter((number for number, line in _lines(self.file) if line), dtype=np.int64)
        return numbers[self.header_lines or 0 :]

    def ids(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Codes [E] int32 and the distinct ids [N], integers or text, in order of first appearance.

        Raises `InputError` for an empty id, and for one that is neither a number nor text.
        """
        values = self.table[column]
        if pa.types.is_floating(values.type):
            self._refuse(pc.is_null(values, nan_is_null=True), column)
            values = _integers_or_text(values)
        elif pa.types.is_uint64(values.type):
            values = _integers_or_text(values)
        elif not (pa.types.is_integer(values.type) or pa.types.is_dictionary(values.type)):
            values = self._as_text(column)
        self._refuse(values.is_null(), column)
        encoded = _dictionary(values)
        ids = encoded.dictionary
        if not pa.types.is_integer(ids.type):
            ids = ids.cast(pa.string())
            empty = pc.index(ids, "").as_py()
            if empty >= 0:
                self._refuse(pc.equal(encoded.indices, empty), column)
            cut = pc.index(pc.ends_with(ids, "\0"), True).as_py()
            if cut >= 0:
                row = pc.index(encoded.indices, pa.scalar(cut, encoded.indices.type)).as_py()
                raise InputError(
                    f"{self.where(row)}: {column} {ids[cut].as_py()!r} ends with a NUL, which no id keeps; remove it"
                )
            ids = _integers_or_text(ids)
        return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32), to_numpy_ids(ids)

    def texts(self, column: str) -> tuple[np.ndarray, list[str]]:
        """Codes [E] int32 and the distinct values as text, an absent value as the empty text."""
        values = self.table[column]
        if not pa.types.is_dictionary(values.type):
            values = pc.fill_null(self._as_text(column), "")
        encoded = _dictionary(values)
        return encoded.indices.to_numpy(zero_copy_only=False), encoded.dictionary.cast(pa.string()).to_pylist()

    def int64(self, column: str) -> np.ndarray:
        """A column of integers or times as [E] int64."""
        return self.table[column].cast(pa.int64()).to_numpy()

    def _as_text(self, column: str) -> Any:
        values = self.table[column]
        row = first_failure(values, pa.string())
        if row is not None:
            raise InputError(
                f"{self.where(row)}: {column} must be text or a number, found {values.type} that cannot "
                "be written as text; convert the column"
            )
        return values.cast(pa.string())

    def _refuse(self, bad: Any, column: str) -> None:
        row = pc.index(bad, True).as_py()
        if row >= 0:
            raise InputError(
                f"{self.where(row)}: {column} is empty, expected an id; fill it in or remove the {self._unit}"
            )

    @property
    def _unit(self) -> str:
        return "row" if self.header_lines is None else "line"


def check_file(file: Path) -> Path:
    """The file as a `Path`; raises `InputError` where it is missing, empty or compressed."""
    file = Path(file)
    if not file.is_file():
        found = "is a folder" if file.is_dir() else "no such file"
        raise InputError(f"{file}: {found}, expected a data file; check the path")
    if file.stat().st_size == 0:
        raise InputError(f"{file}: the file is empty, expected events; check the download")
    if file.suffix.lower() in (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z"):
        raise InputError(f"{file}: compressed files are not read; unpack it and give the unpacked file")
    return file


def read_csv(
    file: Path, types: dict[str, pa.DataType], sep: str = ",", names: Sequence[str] = (), quoted: bool = True
) -> Rows:
    """The columns in `types`. `names` are the columns of a file without header line.

    Raises `InputError` with ``file:line`` for a line with too few or too many fields, a value that is not of its type,
    text that is not UTF-8, or a quoted value that runs over the end of its line.
    """
    file = check_file(file)
    columns = list(names) or header(file, sep, quoted)
    try:
        # An open file, not its name: by name Arrow would guess a compression.
        with pa.OSFile(str(file)) as source:
            table = parse_csv(source, types, columns, sep, quoted, skip_rows=0 if names else _header_line(file))
    except pa.ArrowInvalid as error:
        if str(error).startswith(("Empty CSV file", "Could not skip initial")):
            raise InputError(f"{file}: has no rows of data, expected events; check the file") from None
        raise explain_failure(file, types, columns, str(error), sep, quoted, headerless=bool(names)) from None
    rows = Rows(table, file, 0 if names else 1)
    if quoted:
        _refuse_spanning_quotes(rows, sep)
    if table.num_rows == 0:
        raise InputError(f"{file}: has no rows of data, expected events; check the file")
    refuse_nulls(rows, types)
    return rows


def parse_csv(
    source: pa.NativeFile,
    types: dict[str, pa.DataType],
    columns: Sequence[str],
    sep: str = ",",
    quoted: bool = True,
    skip_rows: int = 0,
    block_bytes: int = _BLOCK_BYTES,
) -> pa.Table:
    """The columns in `types`, as Arrow reads them; raises its errors, which do not name the line."""
    # Arrow takes no name that is not UTF-8, not even of a column that nobody asked for.
    names = [name.encode(errors="backslashreplace").decode() for name in columns]
    return pyarrow.csv.read_csv(
        source,
        read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=skip_rows, block_size=block_bytes),
        parse_options=pyarrow.csv.ParseOptions(delimiter=sep, quote_char='"' if quoted else False),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=types, include_columns=list(types), null_values=[""], strings_can_be_null=False
        ),
    )


def refuse_nulls(rows: Rows, types: dict[str, pa.DataType]) -> None:
    """Raises `InputError` with ``file:line`` for an empty value of a column that is not text."""
    for name, kind in types.items():
        if rows.table[name].null_count:
            row = pc.index(rows.table[name].is_null(), True).as_py()
            raise InputError(
                f"{rows.where(row)}: {name} is empty, expected {_EXPECTED[kind]}; correct or remove the line"
            )


def read_parquet(file: Path, columns: Sequence[str]) -> Rows:
    """The named columns, as they are. Raises `InputError` for a missing column or a file that is not Parquet."""
    file = check_file(file)
    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            require_columns(file, parquet.schema_arrow.names, columns)
            table = parquet.read(columns=list(columns))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file}: not a readable Parquet file ({_first_line(error)}); check the file") from None
    if table.num_rows == 0:
        raise InputError(f"{file}: has no rows; check the file")
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type) and field.type.value_type != pa.string():
            table = table.set_column(place, field.name, table[place].cast(field.type.value_type))
    return Rows(table, file, None)


def header(file: Path, sep: str, quoted: bool = True) -> list[str]:
    """Column names of a CSV file."""
    return _fields(next((line for _, line in _lines(file) if line), ""), sep, quoted)


def first_value(file: Path, sep: str, column: str) -> str:
    """The column's value in the first row of a CSV file with a header, or "" where there is none."""
    place = header(file, sep).index(column)
    row = next(islice((line for _, line in _lines(file) if line), 1, None), "")
    return "".join(_fields(row, sep, True)[place : place + 1])


def require_columns(file: Path, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises `InputError` where a wanted column is not there exactly once."""
    for name in wanted:
        times = list(found).count(name)
        if times != 1:
            state = "no column" if times == 0 else f"{times} columns"
            names = ", ".join(name if name.isprintable() else repr(name) for name in found)
            raise InputError(f"{file}: {state} {name!r}, found {names}; name one of these (or check --sep)")


def first_failure(values: pa.Array | pa.ChunkedArray, to: pa.DataType) -> int | None:
    """The first value that cannot be cast, found by halving; None where all can."""

    def fails(part: Any) -> bool:
        try:
            part.cast(to)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return True
        return False

    if not fails(values):
        return None
    good, bad = 0, len(values)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (good, middle) if fails(values.slice(good, middle - good)) else (middle, bad)
    return good


def to_numpy_ids(ids: pa.Array) -> np.ndarray:
    """Ids as int64 or fixed-width text, which ``.npy`` stores without pickle."""
    if pa.types.is_integer(ids.type):
        return ids.to_numpy(zero_copy_only=False).astype(np.int64)
    return ids.to_numpy(zero_copy_only=False).astype(np.str_)


def _integers_or_text(values: Any) -> Any:
    """Cast to int64 where that loses nothing (007 is not 7), else to text."""
    text = values.cast(pa.string())
    try:
        integers = values.cast(pa.int64())
    except pa.ArrowInvalid:
        return text
    if pa.types.is_floating(values.type) or pc.all(pc.equal(integers.cast(pa.string()), text)).as_py() is not False:
        return integers
    return text


def _dictionary(values: pa.ChunkedArray) -> pa.DictionaryArray:
    if pa.types.is_dictionary(values.type):
        array = values.unify_dictionaries().combine_chunks()
    else:
        array = values.combine_chunks().dictionary_encode()
    return array.chunk(0) if isinstance(array, pa.ChunkedArray) else array


def _lines(file: Path, start: int = 0) -> Iterator[tuple[int, str]]:
    """Line numbers and lines without their end, from the one that begins after `start` bytes.

    Bytes that are not UTF-8 come through as surrogates.
    """
    with file.open("rb") as stream:
        before = _count_lines(stream, start)
        encoding = "utf-8" if start else "utf-8-sig"
        text = TextIOWrapper(stream, encoding=encoding, errors="surrogateescape", newline=None)
        for number, line in enumerate(text, start=before + 1):
            yield number, line.rstrip("\n")


def _count_lines(stream: BinaryIO, n_bytes: int) -> int:
    """How many lines end in the next `n_bytes`, after which the stream then stands; ends are \\n, \\r\\n and \\r."""
    ends, last = 0, b""
    while block := stream.read(min(n_bytes, _BLOCK_BYTES)):
        n_bytes -= len(block)
        ends += block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n") - (last + block[:1] == b"\r\n")
        last = block[-1:]
    return ends


def _line_number(file: Path, row: int, start: int) -> int:
    """The line of a row, of which empty lines are none."""
    filled = (number for number, line in _lines(file, start) if line)
    return next(islice(filled, row, None))


def _header_line(file: Path) -> int:
    return next((number for number, line in _lines(file) if line), 1)


def _fields(line: str, sep: str, quoted: bool) -> list[str]:
    if not quoted or '"' not in line:
        return line.split(sep)
    try:
        return next(csv.reader([line], delimiter=sep), [])
    except csv.Error:
        return [line]


def _refuse_spanning_quotes(rows: Rows, sep: str) -> None:
    """A stray quote makes the parser take lines together; without this they would vanish uncounted."""
    with rows.file.open("rb") as stream:
        if not any(b'"' in block for block in iter(lambda: stream.read(_BLOCK_BYTES), b"")):
            return
    if len(rows.line_numbers()) == rows.table.num_rows:
        return
    raise _spanning_quote(rows.file, sep) or InputError(
        f"{rows.file}: {rows.table.num_rows} rows were read from {len(rows.line_numbers())} lines; check the file"
    )


def _spanning_quote(file: Path, sep: str) -> InputError | None:
    for number, line in _lines(file):
        if '"' in line and _is_open(line, sep):
            return InputError(
                f"{file}:{number}: a quoted value runs over the end of the line, expected one line a row; "
                "close the quote or remove the line break"
            )
    return None


def _is_open(line: str, sep: str) -> bool:
    try:
        next(csv.reader([line], delimiter=sep, strict=True), None)
    except csv.Error as error:
        return "unexpected end" in str(error)
    return False


def explain_failure(
    file: Path,
    types: dict[str, pa.DataType],
    columns: Sequence[str],
    reason: str,
    sep: str = ",",
    quoted: bool = True,
    headerless: bool = True,
    start: int = 0,
) -> InputError:
    """The error for the first line, after the first `start` bytes, that Arrow cannot have read."""
    filled = ((number, line) for number, line in _lines(file, start) if line)
    if not headerless:
        next(filled, None)
    while block := list(islice(filled, _RESCAN_LINES)):
        split = [_fields(line, sep, quoted) for _, line in block]
        uneven = next((i for i, fields in enumerate(split) if len(fields) != len(columns)), len(split))
        found = [(uneven, "")] if uneven < len(split) else []
        for name, kind in types.items():
            place = columns.index(name)
            texts = [fields[place] for fields in split[:uneven]]
            row = _first_bad(texts, kind)
            if row is not None:
                found.append((row, name))
        if found:
            row, name = min(found)
            number = block[row][0]
            if headerless and number == 1 and _looks_like_header(split[row]):
                return InputError(
                    f"{file}:1: looks like a header line ({block[row][1][:60]!r}), expected data from the first line "
                    "on; remove the line"
                )
            if not name:
                return InputError(
                    f"{file}:{number}: expected {len(columns)} fields separated by {sep!r}, found {len(split[row])}; "
                    "complete or remove the line"
                )
            expected = _EXPECTED.get(types[name], "UTF-8 text")
            value = split[row][columns.index(name)]
            return InputError(
                f"{file}:{number}: {name} must be {expected}, found {value!r}; correct or remove the line"
            )
    return (quoted and _spanning_quote(file, sep)) or InputError(
        f"{file}: cannot be read as CSV ({_first_line(reason)}); check the file"
    )


def _first_bad(texts: list[str], kind: pa.DataType) -> int | None:
    if kind not in _EXPECTED:
        return next((i for i, text in enumerate(texts) if not _is_utf8(text)), None)
    if not pa.types.is_temporal(kind):
        # The fast parser allows blanks around numbers.
        texts = [text.strip(" \t") for text in texts]
    return first_failure(pa.array([_printable(text) for text in texts], pa.string()), kind)


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _printable(text: str) -> str:
    return text if _is_utf8(text) else "not UTF-8"


def _looks_like_header(fields: list[str]) -> bool:
    return bool(fields) and all(field.strip() and not field.strip()[0].isdigit() for field in fields)


def _first_line(error: object) -> str:
    return str(error).splitlines()[0]
