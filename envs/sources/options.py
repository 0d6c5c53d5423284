"""What a user can choose when raw data is prepared. Imports nothing heavy, so that the command line starts quickly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from ...errors import InputError


@dataclass(frozen=True)
class PrepareOptions:
    """Filters and split, shared by every source. The steps run in the order given in `pipeline.build`."""

    min_item_support: int = 5
    """Events that an item must have to stay (Hidasi et al. 2016, section 4)."""
    min_session_length: int = 2
    """Events that a session must have to stay (Hidasi et al. 2016, section 4)."""
    repeats: Literal["keep", "drop"] = "keep"
    """Exact repeats, events equal in session, item, time and kind: kept, or all but the first removed.
    Open in the IRN paper."""
    consecutive_repeats: Literal["keep", "drop"] = "keep"
    """Events with the item and kind of the one before them in their session: kept, or removed (Ruocco et al. 2017)."""
    basket_repeats: Literal["keep", "drop"] = "keep"
    """A session's purchases of an item that it has bought already: kept, or removed. Open in the IRN paper."""
    max_session_length: int | None = None
    """L: sessions of more than L events are cut in two after L, those of more than 2 L removed (Ruocco et al. 2017,
    L = 20); no limit if not given."""
    buyers_only: bool = False
    """Keep only sessions with a purchase (IRN paper, section 5.1)."""
    buyers_cut: Literal["before", "after"] = "before"
    """`buyers_only` before the filters by length and support, so that these see buyers alone, or after them.
    Open in the IRN paper."""
    latest_days: float | None = None
    """Keep only sessions that start within so many days before the newest event; all of them if not given."""
    latest_month: bool = False
    """Keep only sessions that start in the calendar month (UTC) of the newest event; takes the place of `latest_days`.
    Open in the IRN paper, which says "latest month"."""
    min_user_sessions: int = 1
    """Sessions that a user must have to stay (3 in Ruocco et al. 2017)."""
    split_at: Literal["end", "start"] = "end"
    """The moment by which the split by time sorts a session: its last event (Hidasi et al. 2016) or its first.
    Open in the IRN paper."""
    test_days: float = 1.0
    """A session whose moment is within so many days before the newest one is test (Hidasi et al. 2016)."""
    valid_days: float = 1.0
    """The same rule, applied to what the test split leaves."""
    random_split: tuple[float, float, float] | None = None
    """Shares of train, valid and test, drawn with the seed; takes the place of the split by time."""
    split_by: Literal["session", "content"] = "session"
    """What the random split draws: sessions, or groups of sessions with identical content."""
    user_split: Literal["none", "share", "last"] = "none"
    """Each user's newest sessions become test, the ones before them valid; takes the place of the split by time. Test
    is a share of the user's sessions (`user_test`), or the last one alone: hold-one-out (both Ruocco et al. 2017)."""
    user_test: float = 0.2
    """The share of each user's sessions that is test, rounded up to whole sessions (Ruocco et al. 2017)."""
    user_valid: int = 1
    """Sessions of each user that are valid. Ours: the paper chose its checkpoints by the test sessions."""
    unseen: Literal["drop", "keep"] = "drop"
    """Events of valid and test whose item does not occur in train: removed, or given ids after the training items."""
    seed: int = 0
    """Seed of the random split and of an imposed order."""

    def check(self) -> None:
        """Raises `InputError` for values that make no sense, before any file is read."""
        _check_choices(self)
        least = {"min_item_support": 1, "min_session_length": 1, "min_user_sessions": 1, "user_valid": 1, "seed": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"{_flag(name)}: must be at least {bound}, found {getattr(self, name)}; raise it")
        if self.max_session_length is not None and self.max_session_length < self.min_session_length:
            raise InputError(
                f"--max-session-length: must be at least --min-session-length {self.min_session_length}, "
                f"found {self.max_session_length}; raise it"
            )
        for name in ("latest_days", "test_days", "valid_days"):
            days = getattr(self, name)
            if days is not None and not 0 < days < math.inf:
                raise InputError(f"{_flag(name)}: must be a positive number of days, found {days:g}; give one")
        if self.buyers_cut == "after" and not self.buyers_only:
            raise InputError(
                "--buyers-cut after: places the cut to sessions with a purchase, found no such cut; add --buyers-only"
            )
        self._check_split()

    def _check_split(self) -> None:
        by_time = self.random_split is None and self.user_split == "none"
        if self.split_at == "start" and not by_time:
            other = "a split per user" if self.random_split is None else "a random split"
            raise InputError(f"--split-at start: belongs to the split by time, found {other}; give one of the two")
        if self.user_split != "none":
            if self.random_split is not None:
                raise InputError(
                    f"--user-split {self.user_split}: sorts sessions by their order, found --random-split; give one of "
                    "the two"
                )
            if not 0 < self.user_test < 1:
                raise InputError(f"--user-test: must be a share between 0 and 1, found {self.user_test:g}; give one")
            if self.min_user_sessions < self.user_valid + 2:
                raise InputError(
                    f"--user-split {self.user_split}: leaves each user a session in train and test and "
                    f"{self.user_valid} in valid, found users of {self.min_user_sessions} sessions; "
                    f"add --min-user-sessions {self.user_valid + 2}"
                )
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
                f"{'by time' if by_time else 'per user'}; add --random-split 0.8,0.1,0.1"
            )


TABLE_OPTIONS = PrepareOptions()
"""Hidasi's filters, last day test, the day before it validation."""

RECSYS15_OPTIONS = PrepareOptions(buyers_only=True, latest_days=30.0, test_days=3.0, valid_days=1.0)
"""IRN paper, section 5.1: latest month, buyer sessions, last three days test, last day of train validation."""

SHOP_OPTIONS = PrepareOptions(test_days=3.0, valid_days=3.0)
"""Of thirty simulated days three test and three validation: a small shop has few sessions a day."""

USER_HISTORY_OPTIONS = PrepareOptions(
    min_item_support=1,
    consecutive_repeats="drop",
    max_session_length=20,
    min_user_sessions=3,
    user_split="share",
    unseen="keep",
)
"""Ruocco et al. (2017), section 4: user histories; no item is left out."""

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


@dataclass(frozen=True)
class TaobaoFormat:
    """How to read the original UserBehavior file (Tianchi data set 649): ``user,item,category,behavior,unix time``."""

    file: Path
    """UserBehavior.csv, without header line, unpacked."""
    item_level: Literal["item", "category"] = "item"
    """The column that becomes the item. Categories are few enough to learn from a part of the file."""
    gap: float = 1800.0
    """Seconds without an event after which the user's next event starts a new session."""
    click: tuple[str, ...] = ("pv", "fav", "cart")
    """Behaviours that are clicks (page view, favourite, cart). Events of equal time go in the order given here."""
    purchase: tuple[str, ...] = ("buy",)
    """Behaviours that are purchases; at equal times they follow the clicks.
    Other behaviours are dropped and counted."""
    outside: Literal["drop", "keep"] = "drop"
    """Events outside the nine days that the data set describes, 25 November to 3 December 2017, China Standard Time.
    Some lie years away, where a single one would move the end of the data and with it the split."""

    def check(self) -> None:
        """Raises `InputError` for options that contradict each other, before the file is read."""
        _check_gap(self.gap)
        _check_choices(self)
        _check_kinds(self.click, self.purchase, ("pv", "fav", "cart", "buy"))


@dataclass(frozen=True)
class Rees46Format:
    """How to read the monthly files of REES46's "eCommerce behavior data from multi category store" and its siblings.

    Columns used, by name: ``event_time, event_type, product_id`` or ``category_id, user_id, user_session``.
    """

    files: Sequence[Path]
    """One or more files such as 2019-Oct.csv, unpacked; they become one log."""
    item_level: Literal["product", "category"] = "product"
    """The column that becomes the item, product_id or category_id."""
    click: tuple[str, ...] = ("view", "cart")
    """Event types that are clicks. Events of equal time go in the order given here."""
    purchase: tuple[str, ...] = ("purchase",)
    """Event types that are purchases; at equal times they follow the clicks.
    Other types (remove_from_cart in the cosmetics store) are dropped and counted."""

    def check(self) -> None:
        """Raises `InputError` for options that contradict each other, before a file is read."""
        if not self.files:
            raise InputError("--files: expected at least one file, found none; give for example 2019-Oct.csv")
        twice = [file for file in self.files if list(self.files).count(file) > 1]
        if twice:
            raise InputError(f"--files: {twice[0]} is given twice, and its events would count twice; give it once")
        _check_choices(self)
        _check_kinds(self.click, self.purchase, ("view", "cart", "remove_from_cart", "purchase"))


@dataclass(frozen=True)
class LastFMFormat:
    """How to read the listening histories of Last.fm-1K (Celma 2010): tab-separated, no header line.

    Columns: ``userid, timestamp, artid, artname, traid, traname``; times ISO-8601, newest first.
    """

    file: Path
    """userid-timestamp-artid-artname-traid-traname.tsv, unpacked."""
    item_level: Literal["artist", "track"] = "artist"
    """What becomes the item, by its MusicBrainz id. An artist without one goes by name, a track by ARTIST / TITLE."""
    gap: float = 1800.0
    """Seconds without an event after which the user's next event starts a new session (Ruocco et al. 2017)."""

    def check(self) -> None:
        """Raises `InputError` for options that make no sense, before the file is read."""
        _check_gap(self.gap)
        _check_choices(self)


@dataclass(frozen=True)
class RedditFormat:
    """How to read the Reddit subreddit-interactions file: header ``username,subreddit,utc``, times in seconds."""

    file: Path
    """reddit_data.csv, unpacked."""
    gap: float = 3600.0
    """Seconds without an event after which the user's next event starts a new session (Ruocco et al. 2017)."""

    def check(self) -> None:
        """Raises `InputError` for options that make no sense, before the file is read."""
        _check_gap(self.gap)


def _check_gap(gap: float) -> None:
    if not 0 < gap < math.inf:
        raise InputError(f"--gap: must be a positive number of seconds, found {gap:g}; give one")


def _check_choices(options: object) -> None:
    """Raises `InputError` for a field that holds none of the values of its `Literal`."""
    for name, hint in get_type_hints(type(options)).items():
        value, choices = getattr(options, name), get_args(hint)
        if get_origin(hint) is Literal and value not in choices:
            raise InputError(f"{_flag(name)}: must be {' or '.join(choices)}, found {value!r}; give one of these")


def _check_kinds(click: tuple[str, ...], purchase: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raises `InputError` where a format with known kinds of event is asked for others, or for one twice."""
    for flag, kinds in (("--click", click), ("--purchase", purchase)):
        for kind in kinds:
            if kind not in known:
                raise InputError(f"{flag}: expected some of {','.join(known)}, found {kind!r}; give these")
            if (click + purchase).count(kind) > 1:
                raise InputError(f"{flag}: {kind!r} is named twice in --click and --purchase; name it once")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
