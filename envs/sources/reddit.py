"""The Reddit subreddit-interactions file: header ``username,subreddit,utc``, a comment or post a row, times in seconds.

There are no sessions in it: users are cut where they pause. The item is the subreddit.
"""

from __future__ import annotations

from ..log import PreparedData
from .options import USER_HISTORY_OPTIONS, PrepareOptions, RedditFormat, TableFormat
from .pipeline import Progress, silent
from .table import prepare_table


def prepare_reddit(
    fmt: RedditFormat, options: PrepareOptions = USER_HISTORY_OPTIONS, progress: Progress = silent
) -> PreparedData:
    """`prepare_table` with the columns of this file and users cut where they pause for more than `fmt.gap`.

    Every event is a click. Raises `InputError` as `prepare_table` does, and for a gap that is not positive.
    """
    fmt.check()
    columns = TableFormat(fmt.file, item="subreddit", user="username", time="utc", gap=fmt.gap)
    return prepare_table(columns, options, progress, name="reddit")
