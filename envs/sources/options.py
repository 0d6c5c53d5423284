"""What a user can choose when raw data is prepared. Imports nothing heavy, so that the command line starts quickly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import InputError


@dataclass(frozen=True)
class PrepareOptions:
    """Filters and split, shared by every source. The steps run in the order given in `pipeline.build`."""

    min_item_support: int = 5
    """Events that an item must have to stay (Hidasi et al. 2016, section 4)."""
    min_session_length: int = 2
    """Events that a session must have to stay (Hidasi et al. 2016, section 4)."""
    buyers_only: bool = False
    """Keep only sessions with a purchase (IRN paper, section 5.1)."""
    latest_days: float | None = None
    """Keep only sessions that start within so many days before the newest event; all of them if not given."""
    test_days: float = 1.0
    """A session whose last event is within so many days before the newest one is test (Hidasi et al. 2016)."""
    valid_days: float = 1.0
    """The same rule, applied to what the test split leaves."""
    random_split: tuple[float, float, float] | None = None
    """Shares of train, valid and test, drawn with the seed; takes the place of the split by time."""
    split_by: Literal["session", "content"] = "session"
    """What the random split draws: sessions, or groups of sessions with identical content."""
    unseen: Literal["drop", "keep"] = "drop"
    """Events of valid and test whose item does not occur in train: removed, or given ids after the training items."""
    seed: int = 0
    """Seed of the random split and of an imposed order."""

    def check(self) -> None:
        """Raises `InputError` for values that make no sense, before any file is read."""
        for name, least in (("min_item_support", 1), ("min_session_length", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{_flag(name)}: must be at least {least}, found {getattr(self, name)}; raise it")
        for name in ("latest_days", "test_days", "valid_days"):
            days = getattr(self, name)
            if days is not None and not 0 < days < math.inf:
                raise InputError(f"{_flag(name)}: must be a positive number of days, found {days:g}; give one")
        if self.random_split is not None:
            shares = self.random_split
            if len(shares) != 3 or not all(share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-9:
                found = ",".join(f"{share:g}" for share in shares)
                raise InputError(
                    f"--random-split: must be three positive shares that sum to 1, found {found} "
                    f"(sum {sum(shares):g}); give for example 0.8,0.1,0.1"
                )
        elif self.split_by == "content":
            raise InputError(
                "--split-by content: identical sessions can be kept together only by a random split, found a split "
                "by time; add --random-split 0.8,0.1,0.1"
            )


TABLE_OPTIONS = PrepareOptions()
"""Hidasi's filters, last day test, the day before it validation."""

RECSYS15_OPTIONS = PrepareOptions(buyers_only=True, latest_days=30.0, test_days=3.0, valid_days=1.0)
"""IRN paper, section 5.1: latest month, buyer sessions, last three days test, last day of train validation."""

SHOP_OPTIONS = PrepareOptions(test_days=3.0, valid_days=3.0)
"""Of thirty simulated days three test and three validation: a small shop has few sessions a day."""

CHOICE_SETS_OPTIONS = PrepareOptions(random_split=(0.8, 0.1, 0.1), split_by="content")
"""The file has no times, and a fifth of its lines repeat another."""


@dataclass(frozen=True)
class TableFormat:
    """How to read a CSV or Parquet file of events, one row an event, columns found by name."""

    events: Path
    """The file: Parquet if it ends in .parquet or .pq, otherwise CSV (UTF-8) with a header line, one line a row."""
    item: str
    """Column of item ids (integers or text)."""
    time: str | None = None
    """Column of times (needed)."""
    session: str | None = None
    """Column of session ids (integers or text); either this or a user column with a gap."""
    user: str | None = None
    """Column of user ids (integers or text)."""
    gap: float | None = None
    """Seconds without an event after which the user's next event starts a new session."""
    time_unit: Literal["s", "ms", "iso"] = "s"
    """Seconds or milliseconds since the epoch (fractions allowed, kept to the microsecond), or ISO-8601 (no zone: UTC);
    a Parquet timestamp column is `iso`."""
    kind: str | None = None
    """Column that says click or purchase; without it every row is a click."""
    click: tuple[str, ...] = ()
    """Values of the kind column that are clicks. Events of equal time go in the order of the values here."""
    purchase: tuple[str, ...] = ()
    """Values of the kind column that are purchases; at equal times they follow the clicks."""
    sep: str = ","
    r"""Field separator of a CSV file, one character; ``\t`` and ``tab`` mean a tab."""

    @property
    def delimiter(self) -> str:
        return "\t" if self.sep in ("\\t", "tab") else self.sep

    def check(self) -> None:
        """Raises `InputError` for options that contradict each other, before the file is read."""
        where = f"{self.events}"
        if self.time is None:
            raise InputError(f"{where}: no time column named; give it with --time COLUMN and --time-unit s, ms or iso")
        if (self.session is None) == (self.gap is None):
            found = "neither" if self.session is None else "both"
            raise InputError(
                f"{where}: expected either --session COLUMN or --user COLUMN with --gap SECONDS, found {found} "
                "of --session and --gap; give exactly one"
            )
        if self.gap is not None and self.user is None:
            raise InputError(f"{where}: --gap cuts the events of a user into sessions; name the column with --user")
        if self.gap is not None and not 0 < self.gap < math.inf:
            raise InputError(f"{where}: --gap must be a positive number of seconds, found {self.gap:g}; give one")
        if self.kind is None and (self.click or self.purchase):
            raise InputError(f"{where}: --click and --purchase name values of a column; name it with --kind COLUMN")
        if self.kind is not None:
            values = self.click + self.purchase
            if not values:
                raise InputError(f"{where}: --kind {self.kind} needs its values; give --click V,V and --purchase V,V")
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise InputError(f"{where}: {twice[0]!r} is named twice in --click and --purchase; name it once")
        if len(self.delimiter) != 1:
            raise InputError(f"{where}: --sep must be one character, \\t or tab, found {self.sep!r}; give one of these")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
