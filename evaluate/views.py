"""What a result shows, apart from how: tables and charts as data.

Comparisons and experiments make them; files (`exports`) and the page (`report`) are made from them and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import InputError

Unit = Literal["%", ""]
"""How figures are shown: shares of 1 in per cent, or as they are."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    label: str
    unit: Unit = "%"
    decimals: int = 2
    better: Literal["higher", "lower", "neither"] = "higher"
    """Which figures are the good ones; the best of a column is marked."""
    group: str = ""
    """Heading over neighbouring columns of one group, such as "Purchase, 944 events"."""
    interval: bool = True
    """Whether text has half the 95 % interval beside the figure; the page, CSV and JSON have it anyway."""
    signed: bool = False
    """Whether figures above 0 have a sign too, as differences do; they have it wherever another one is below 0."""


@dataclass(frozen=True)
class Figure:
    """One number of a table; None where there is none."""

    value: float | None
    low: float | None = None
    """95 % interval, with `high`; None where it is not known."""
    high: float | None = None
    paper: float | None = None
    """What the paper printed in the same place, of other data; in the unit of `value`, so a share where that is one."""
    differs: bool = False
    """Of differences: the interval that holds for all figures compared at once excludes 0."""


@dataclass(frozen=True)
class Row:
    """A row of a table: a model, mostly."""

    label: str
    figures: tuple[Figure, ...]
    """One for each column."""
    paper_label: str | None = None
    """What the paper calls it, where it has it."""


@dataclass(frozen=True)
class Table:
    """A table, a row a model."""

    name: str
    """Of its files; unique among the views of a folder: lower-case letters, digits, hyphens."""
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    heading: str = "model"
    """Of the labels of the rows."""
    notes: tuple[str, ...] = ()
    """What a reader must know to read this table."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.figures) != len(self.columns):
                raise InputError(
                    f"table {self.name}, row {row.label}: expected {len(self.columns)} figures, one a column, found "
                    f"{len(row.figures)}"
                )


@dataclass(frozen=True)
class Series:
    """A line of a chart, with its 95 % interval where `low` and `high` are given."""

    label: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        for name in ("y", "low", "high"):
            values = getattr(self, name)
            if len(values) != len(self.x) and (values or name == "y"):
                raise InputError(f"series {self.label}: expected {len(self.x)} values in {name}, found {len(values)}")

    @classmethod
    def of(cls, label: str, points: Sequence[tuple[float, Figure]]) -> Series:
        """A line through figures and their intervals."""
        x, figures = zip(*points, strict=True) if points else ((), ())
        values = [tuple(getattr(figure, name) for figure in figures) for name in ("value", "low", "high")]
        return cls(label, x, *values)


@dataclass(frozen=True)
class LineChart:
    """Lines over a number: epochs, a cap, the first n recommendations, events learned from."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    unit: Unit = "%"
    """Of y."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeatMap:
    """A figure for every row and column: models by slices."""

    name: str
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    unit: Unit = "%"
    decimals: int = 1
    signed: bool = False
    """Whether values have a sign and colours part at 0, as of correlations."""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if [len(row) for row in self.values] != [len(self.columns)] * len(self.rows):
            raise InputError(f"heat map {self.name}: expected {len(self.rows)} rows of {len(self.columns)} values")


View = Table | LineChart | HeatMap

_KINDS: Mapping[str, type[View]] = {"table": Table, "lines": LineChart, "heat-map": HeatMap}


def views_to_json(views: Sequence[View]) -> list[dict[str, Any]]:
    """The views as JSON values, in their order."""
    kinds = {kind: name for name, kind in _KINDS.items()}
    return [{"kind": kinds[type(view)], **asdict(view)} for view in views]


def views_from_json(values: Sequence[Mapping[str, Any]], where: str) -> list[View]:
    """What `views_to_json` wrote. Raises `InputError`, beginning with `where`, for anything else."""
    return [_view(dict(value), f"{where}: view {number}") for number, value in enumerate(values, start=1)]


def _view(value: dict[str, Any], where: str) -> View:
    try:
        match _KINDS[value.pop("kind")]:
            case kind if kind is Table:
                rows = [
                    Row(**{**row, "figures": tuple(Figure(**figure) for figure in row["figures"])})
                    for row in value["rows"]
                ]
                columns = tuple(Column(**column) for column in value["columns"])
                return Table(**{**_tuples(value), "columns": columns, "rows": tuple(rows)})
            case kind if kind is LineChart:
                series = tuple(Series(**_tuples(one)) for one in value["series"])
                return LineChart(**{**_tuples(value), "series": series})
            case _:
                return HeatMap(**{**_tuples(value), "values": tuple(map(tuple, value["values"]))})
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: not a view ({error!r}); run the command that made it again") from None


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(part) if isinstance(part, list) else part for name, part in value.items()}
