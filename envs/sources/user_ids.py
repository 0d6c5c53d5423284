"""Users that a data set numbers itself: the log keeps their ids."""

from __future__ import annotations

import pyarrow as pa

from ...errors import InputError
from .reader import Rows, first_failure


def user_ids(rows: Rows, column: str) -> pa.ChunkedArray:
    """A column of whole numbers as int32, the width that a log has for users. Raises `InputError` for a wider one."""
    ids = rows.table[column]
    row = first_failure(ids, pa.int32())
    if row is not None:
        raise InputError(
            f"{rows.where(row)}: {column} must be a whole number of at most 32 bits, found {ids[row]}; "
            "correct or remove the line"
        )
    return ids.cast(pa.int32())
