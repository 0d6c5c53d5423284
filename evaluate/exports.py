"""Views as files: tables for reading, for computing and for papers, and charts as pictures."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .views import Column, Figure, HeatMap, LineChart, Table, View, views_from_json, views_to_json

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table as RichTable

VIEWS = "views.json"

DIFFERS = "the 95 % interval that holds for all figures compared at once excludes 0"
"""What `Figure.differs` means, for readers."""

_CONSOLE_WIDTH, _CONSOLE_LABELS, _CHART_LABEL = 80, (24, 10), 48


def write_views(folder: Path, views: Sequence[View]) -> None:
    """Write `views.json` (all, in order), `tables/NAME.csv|.md|.json|.tex` and `plots/NAME.svg|.png` into `folder`.

    CSV is the long form, a line a figure, floats so that they read back bit for bit; shares are shares of 1 there and
    in JSON, per cent elsewhere. Equal views give equal bytes. Charts without a figure have no picture. Raises
    `InputError`, before anything is written, for names that are repeated or no file names, and for figures that are NaN
    or infinite.
    """
    names = [view.name for view in views]
    for name in names:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) or names.count(name) > 1:
            raise InputError(
                f"view {name!r}: expected a name of lower-case letters, digits and hyphens that no other view has; "
                "rename it"
            )
    texts = {VIEWS: _json(views_to_json(views))}
    for view in views:
        if isinstance(view, Table):
            texts[f"tables/{view.name}.csv"] = _table_csv(view)
            texts[f"tables/{view.name}.md"] = table_markdown(view)
            texts[f"tables/{view.name}.json"] = _json(views_to_json([view])[0])
            texts[f"tables/{view.name}.tex"] = table_latex(view)
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    for view in views:
        if not isinstance(view, Table) and has_figures(view):
            from .plots import draw

            (folder / "plots").mkdir(exist_ok=True)
            for ending in ("svg", "png"):
                draw(view, folder / "plots" / f"{view.name}.{ending}")


def read_views(folder: Path) -> list[View]:
    """What `write_views` wrote. Raises `InputError` for a folder without it, and for a damaged file."""
    values = read_json(folder / VIEWS, list)
    return views_from_json(values, str(folder / VIEWS))


def read_json(file: Path, wanted: type) -> Any:
    """The `wanted` (dict or list) in a JSON file of a run. Raises `InputError` where there is none."""
    again = "run the command that made the folder again"
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: not found; give the folder of a comparison or experiment, or {again}") from None
    except ValueError as error:
        raise InputError(f"{file}:{getattr(error, 'lineno', 1)}: not valid JSON ({error}); {again}") from None
    except (OSError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read ({error}); {again}") from None
    if not isinstance(value, wanted):
        raise InputError(f"{file}:1: expected a {wanted.__name__}, found a {type(value).__name__}; {again}")
    return value


def has_figures(view: LineChart | HeatMap) -> bool:
    """Whether there is anything to draw."""
    values = view.values if isinstance(view, HeatMap) else [series.y for series in view.series]
    return any(value is not None for row in values for value in row)


@dataclass(frozen=True)
class Cell:
    """A figure of a table as people read it; texts are empty where there is nothing."""

    value: str
    half: str
    """Half the 95 % interval."""
    paper: str
    best: bool
    """The best of its column, as shown; no figure is where all look the same."""
    differs: bool


def table_cells(table: Table) -> list[list[Cell]]:
    """The figures of a table as text, [rows][columns]."""
    columns = [_column_cells(column, [row.figures[i] for row in table.rows]) for i, column in enumerate(table.columns)]
    return [[cells[i] for cells in columns] for i in range(len(table.rows))]


def _column_cells(column: Column, figures: Sequence[Figure]) -> list[Cell]:
    plain = [shown(figure.value, column.unit, column.decimals) for figure in figures]
    signed = column.signed or any(value.startswith("-") for value in plain)
    values = [shown(figure.value, column.unit, column.decimals, signed) for figure in figures]
    # Judged as shown: of two figures that look the same neither is the better one.
    numbers = {float(value.replace(",", "")) for value in values if value}
    choose: Callable[..., float] | None = {"higher": max, "lower": min}.get(column.better)
    best = choose(numbers) if choose and len(numbers) > 1 else None
    cells = []
    for figure, value in zip(figures, values, strict=True):
        half = None if figure.low is None or figure.high is None else (figure.high - figure.low) / 2
        cells.append(
            Cell(
                value,
                shown(half, column.unit, column.decimals) if value else "",
                shown(figure.paper, column.unit, column.decimals, signed),
                bool(value) and float(value.replace(",", "")) == best,
                figure.differs,
            )
        )
    return cells


def shown(value: float | None, unit: str = "", decimals: int = 2, signed: bool = False) -> str:
    """A number as people read it: shares of 1 in per cent (without the sign for it), nothing for None.

    >>> shown(0.50214, "%"), shown(1234567.0, decimals=0), shown(0.1, signed=True), shown(None)
    ('50.21', '1,234,567', '+0.10', '')
    """
    if value is None:
        return ""
    return f"{(100 if unit == '%' else 1) * value:{'+' if signed else ''}z,.{decimals}f}"


def short(text: str) -> str:
    """A label that fits into a chart: of a long one, its beginning and its end."""
    return text if len(text) <= _CHART_LABEL else f"{text[: _CHART_LABEL // 2 - 1]}…{text[-_CHART_LABEL // 2 :]}"


def legend(table: Table, best: str) -> list[str]:
    """Sentences that explain the marks of a table in text; `best` names the mark of a column's best figure."""
    marked = [cell for row in _text_cells(table) for cell in row]
    shares = [column.label for column in table.columns if column.unit == "%"]
    others = list(dict.fromkeys(column.label for column in table.columns if column.unit != "%"))
    lines = []
    if shares:
        lines.append("In %" + (f" but for {', '.join(others).rstrip('.')}" if others else "") + ".")
    if any(cell.best for cell in marked):
        lines.append(f"{best}: best of its column.")
    if any(cell.half for cell in marked):
        lines.append("±: half the 95 % interval.")
    if any(cell.paper for cell in marked):
        lines.append("In brackets: what the paper printed, of other data.")
    if any(cell.differs for cell in marked):
        lines.append(f"†: {DIFFERS}.")
    return lines


def row_labels(table: Table) -> list[str]:
    """The labels of the rows, with what the paper calls them where that is something else."""
    return [
        f"{row.label} (paper: {row.paper_label})" if row.paper_label not in (None, "", row.label) else row.label
        for row in table.rows
    ]


def column_groups(table: Table) -> Iterator[tuple[str, range]]:
    """Neighbouring columns of one group: its heading and their indices."""
    for group, indices in groupby(range(len(table.columns)), lambda i: table.columns[i].group):
        found = list(indices)
        yield group, range(found[0], found[-1] + 1)


def _text_cells(table: Table) -> list[list[Cell]]:
    """`table_cells` without the intervals that text leaves out."""
    return [
        [cell if column.interval else replace(cell, half="") for cell, column in zip(row, table.columns, strict=True)]
        for row in table_cells(table)
    ]


def _with_footers(
    views: Iterable[View], best: str, notes: Sequence[str]
) -> tuple[list[tuple[Table, list[str]]], list[str]]:
    """The tables among `views`, each with the lines below it, and the lines below them all: what several tables say."""
    tables = [view for view in views if isinstance(view, Table)]
    legends, remarks = [legend(table, best) for table in tables], [table.notes for table in tables]
    count = Counter(chain(*legends, *remarks, notes))

    def own(lines: Iterable[str]) -> list[str]:
        return [line for line in lines if count[line] == 1]

    def shared(lines: Iterable[str]) -> list[str]:
        return [line for line in dict.fromkeys(lines) if count[line] > 1]

    def footer(marks: Sequence[str], remarks: Iterable[str]) -> list[str]:
        return [*([" ".join(marks)] if marks else []), *(f"Note: {remark}" for remark in remarks)]

    footers = [footer(own(one), own(other)) for one, other in zip(legends, remarks, strict=True)]
    below = footer(shared(chain(*legends)), dict.fromkeys([*shared(chain(*remarks)), *notes]))
    return list(zip(tables, footers, strict=True)), below


def table_markdown(*views: View, notes: Sequence[str] = ()) -> str:
    """The tables among `views` in Markdown, one for each group of columns, the best figures in bold.

    Below each stands what it alone says, and below all, once, what several say and `notes`.
    """
    tables, below = _with_footers(views, "Bold", notes)
    blocks = []
    for table, footer in tables:
        cells, labels = _text_cells(table), row_labels(table)
        for group, indices in column_groups(table):
            title = ": ".join(_markdown_text(part) for part in (table.title, group) if part)
            heads = [_markdown_text(label) for label in (table.heading, *(table.columns[i].label for i in indices))]
            lines = [f"**{title}**", "", f"| {' | '.join(heads)} |", "|---|" + "---:|" * len(indices)]
            for label, row in zip(labels, cells, strict=True):
                texts = [f"**{_cell_text(row[i])}**" if row[i].best else _cell_text(row[i]) for i in indices]
                lines.append(f"| {' | '.join([_markdown_text(label), *texts])} |")
            blocks.append("\n".join(lines))
        blocks.append("  \n".join(map(_markdown_text, footer)))
    return "\n\n".join(filter(None, [*blocks, "  \n".join(map(_markdown_text, below))])) + "\n"


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\`*|<>\[\]])", r"\\\1", " ".join(text.split()))


def _cell_text(cell: Cell) -> str:
    return " ".join(filter(None, [cell.value + "†" * cell.differs, *_beside(cell)]))


def _beside(cell: Cell) -> tuple[str, str]:
    return f"±{cell.half}" if cell.half else "", f"({cell.paper})" if cell.paper else ""


def table_console(*views: View, notes: Sequence[str] = ()) -> Group:
    """The same for a terminal, within 80 columns: columns that do not fit stand in a further table below."""
    from rich.console import Group
    from rich.text import Text

    tables, below = _with_footers(views, "*", notes)
    parts: list[Any] = []
    for table, footer in tables:
        parts += _console_tables(table)
        parts += [Text("\n".join([*footer, ""]))] if footer else []
    return Group(*parts, *map(Text, below))


def _console_tables(table: Table) -> Iterator[RichTable]:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    cells, labels = _text_cells(table), row_labels(table)
    for group, indices in column_groups(table):
        columns = {i: _console_column(table.columns[i].label, [row[i] for row in cells]) for i in indices}
        # All lines of a column have one width, and two spaces part the columns.
        widths = {i: len(column[0].rpartition("\n")[2]) + 2 for i, column in columns.items()}
        for stack in _stacks(widths, max(map(len, [table.heading, *labels]))):
            title = Text(": ".join(filter(None, [table.title, group])))
            shown_part = RichTable(
                title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
            )
            shown_part.add_column(Text(table.heading), overflow="fold", max_width=_CONSOLE_LABELS[0])
            for i in stack:
                shown_part.add_column(Text(columns[i][0]), no_wrap=True)
            for r, label in enumerate(labels):
                marked = [Text(columns[i][r + 1], "bold" if cells[r][i].best else "") for i in stack]
                shown_part.add_row(Text(label), *marked)
            yield shown_part


def _console_column(label: str, cells: Sequence[Cell]) -> list[str]:
    """Heading and cells, padded so that digits stand below each other whatever a cell has besides its figure."""
    marks = ["†" * cell.differs + "*" * cell.best for cell in cells]
    room = max(map(len, marks), default=0)
    parts = [(cell.value + mark.ljust(room), *_beside(cell)) for cell, mark in zip(cells, marks, strict=True)]
    widths = [max(map(len, part)) for part in zip(*parts, strict=True)]
    texts = [" ".join(one.rjust(width) for one, width in zip(part, widths, strict=True) if width) for part in parts]
    head = label.replace("@", "\n@").split("\n")
    width = max(map(len, [*head, *texts]))
    # Padded here: rich takes spaces at the end of a text for nothing when it aligns it to the right.
    return ["\n".join(line.rjust(width) for line in head), *(text.rjust(width) for text in texts)]


def _stacks(widths: Mapping[int, int], label_width: int) -> list[list[int]]:
    """As many columns side by side as fit, at least one; labels are folded where that makes it fewer tables."""

    def packed(room: int) -> list[list[int]]:
        stacks: list[list[int]] = [[]]
        for i, width in widths.items():
            if stacks[-1] and sum(widths[j] for j in stacks[-1]) + width > room:
                stacks.append([])
            stacks[-1].append(i)
        return stacks

    # Three characters: the edges, and the space after the label.
    return min((packed(_CONSOLE_WIDTH - 3 - min(label_width, limit)) for limit in _CONSOLE_LABELS), key=len)


def table_latex(table: Table) -> str:
    r"""The table as a LaTeX float; the document needs `\usepackage{booktabs}`."""
    cells, labels = _text_cells(table), row_labels(table)
    groups = list(column_groups(table))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex_text(table.title)}}}", rf"\label{{{table.name}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule"]
    if any(group for group, _ in groups):
        heads = [rf"\multicolumn{{{len(i)}}}{{c}}{{{_latex_text(group)}}}" for group, i in groups]
        lines.append(" & ".join(["", *heads]) + r" \\")
        # Columns are counted from 1, and the first is the labels'.
        lines.append(" ".join(rf"\cmidrule(lr){{{i[0] + 2}-{i[-1] + 2}}}" for group, i in groups if group))
    heads = [_latex_text(label) for label in (table.heading, *(column.label for column in table.columns))]
    lines += [" & ".join(heads) + r" \\", r"\midrule"]
    lines += [
        " & ".join([_latex_text(label), *map(_latex_cell, row)]) + r" \\"
        for label, row in zip(labels, cells, strict=True)
    ]
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = [*legend(table, "Bold"), *table.notes]
    lines += [rf"\par\smallskip\footnotesize {_latex_text(' '.join(notes))}"] if notes else []
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _latex_cell(cell: Cell) -> str:
    text = _latex_text(_cell_text(cell)).replace("-", "$-$").replace("+", "$+$")
    return rf"\textbf{{{text}}}" if cell.best else text


_LATEX = {
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": "$-$",
    "†": r"\dag{}",
}


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _table_csv(table: Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "paper_row", "group", "column", "unit", "value", "low", "high", "paper", "differs"])
    for row in table.rows:
        for column, figure in zip(table.columns, row.figures, strict=True):
            numbers = [figure.value, figure.low, figure.high, figure.paper]
            names = [row.label, row.paper_label or "", column.group, column.label, "share" if column.unit else ""]
            writer.writerow([*names, *("" if n is None else repr(n) for n in numbers), figure.differs])
    return out.getvalue()


def _json(values: Any) -> str:
    try:
        return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise InputError(f"views: a figure is NaN or infinite ({error}); say None where there is none") from None
