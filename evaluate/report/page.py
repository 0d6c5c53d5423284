"""The page of a run, made of its manifest and its views and of nothing else."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...envs.folders import SCHEMA
from ...errors import InputError
from ..exports import DIFFERS, Cell, column_groups, has_figures, read_json, read_views, short, shown, table_cells
from ..views import Figure, HeatMap, LineChart, Table, View
from .charts import DASHES, MARKS, heading_lines, heat_figure, line_figure

_HERE = Path(__file__).parent
_SUMMARY = ("format", "schema", "title", "experiment", "models", "seeds", "data_path", "notes", "ties", "against")
"""What the head of the page says, and the section about the run need not say again."""


def write_report(run: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write the page of the folder `run` (its manifest.json and views.json) to `out`, by default report.html in it.

    The page loads nothing: styles, scripts and data are in it, and its Content-Security-Policy refuses everything else.
    Equal folders give equal bytes. Raises `InputError` for a folder without the two files, for damaged ones, and for an
    `out` that is a folder; the file is written whole or not at all.
    """
    run = Path(run)
    out = Path(out) if out is not None else run / "report.html"
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give the name of a file to write")
    page = _render(_manifest(run), read_views(run), run.resolve().name)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}")
    temporary.write_text(page, encoding="utf-8", newline="\n")
    os.replace(temporary, out)
    return out


def _manifest(run: Path) -> dict[str, Any]:
    manifest = read_json(run / "manifest.json", dict)
    if not str(manifest.get("format")).startswith("sessiongym."):
        raise InputError(
            f"{run / 'manifest.json'}: expected a format that begins with 'sessiongym.', found "
            f"{manifest.get('format')!r}; give the folder of a comparison or experiment"
        )
    if not isinstance(manifest.get("schema", SCHEMA), int) or manifest.get("schema", SCHEMA) > SCHEMA:
        raise InputError(
            f"{run / 'manifest.json'}: written with schema {manifest['schema']!r}, this version reads up to {SCHEMA}; "
            "upgrade sessiongym"
        )
    return manifest


def _render(manifest: Mapping[str, Any], views: Sequence[View], folder: str) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests.update(list_of_records=_is_list_of_records, long=_is_long)
    environment.globals.update(shown=shown, differs=DIFFERS)
    styles: dict[str, int] = {}
    for view in views:
        for series in view.series if isinstance(view, LineChart) else ():
            styles.setdefault(series.label, len(styles))
    sections = [_section(view, styles) for view in views]
    drawn = any(section["figure"] for section in sections)
    scripts = [Markup(get_plotlyjs())] if drawn else []
    scripts.append(Markup((_HERE / "page.js").read_text(encoding="utf-8")))
    return environment.get_template("page.html").render(
        title=manifest.get("title") or manifest.get("experiment") or folder,
        facts=_facts(manifest),
        notes=list(dict.fromkeys(_texts(manifest.get("notes")))),
        sections=sections,
        about={name: value for name, value in manifest.items() if name not in _SUMMARY},
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        scripts=scripts,
        # The policy names the scripts by their content, so a script that came in with the data would not run either.
        hashes=[b64encode(sha256(script.encode()).digest()).decode() for script in scripts],
    )


def _texts(value: Any) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else [str(value)] if value else []


def _facts(manifest: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What was compared on what: (what, figure, detail)."""
    models, seeds, data = manifest.get("models"), manifest.get("seeds"), manifest.get("data_manifest")
    facts = []
    if isinstance(models, list):
        against = manifest.get("against")
        facts.append(("models", f"{len(models)}", f"against {against}" if against else ""))
    if seeds is not None:
        count = len(seeds) if isinstance(seeds, list) else seeds
        facts.append(("training seeds" if count != 1 else "training seed", f"{count}", ""))
    test = _test_counts(data)
    if test:
        facts.append(("test events", f"{test['events']:,}", f"in {test['sessions']:,} sessions"))
    items = data.get("n_items") if isinstance(data, dict) else None
    if isinstance(items, int):
        facts.append(("items", f"{items:,}", "to choose from"))
    if manifest.get("data_path"):
        facts.append(("data", Path(str(manifest["data_path"])).name, ""))
    if manifest.get("ties"):
        facts.append(("ties count", str(manifest["ties"]), ""))
    return facts


def _test_counts(data: Any) -> dict[str, int] | None:
    steps = data.get("steps") if isinstance(data, dict) else None
    for step in reversed(steps if isinstance(steps, list) else []):
        if isinstance(step, dict) and step.get("step") == "test":
            if all(isinstance(step.get(name), int) for name in ("events", "sessions")):
                return step
    return None


def _is_list_of_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(record, dict) and record for record in value)


def _is_long(value: Any) -> bool:
    """Whether a value of the manifest deserves a fold of its own."""
    if isinstance(value, list):
        return len(value) > 10 or any(isinstance(part, (dict, list)) for part in value)
    return isinstance(value, dict) and bool(value)


def _section(view: View, styles: Mapping[str, int]) -> dict[str, Any]:
    match view:
        case Table():
            return {"kind": "table", "view": view, "figure": None, "table": _table(view)}
        case LineChart():
            figure = line_figure(view, styles) if has_figures(view) else None
            legend, data = _legend(view, styles), _line_data(view)
            return {"kind": "lines", "view": view, "figure": figure, "legend": legend, "data": data}
        case HeatMap():
            figure = heat_figure(view) if has_figures(view) else None
            rows = [
                (label, [(shown(value, view.unit, view.decimals), "") for value in values])
                for label, values in zip(view.rows, view.values, strict=True)
            ]
            # Room for all labels, in rem.
            label = max((len(short(row)) for row in view.rows), default=0)
            line = max((len(line) for column in view.columns for line in heading_lines(column)), default=0)
            width = round(1 + 0.46 * label + len(view.columns) * max(3.2, 0.5 * line), 1)
            data = {"heads": ["", *view.columns], "rows": rows}
            return {"kind": "heat", "view": view, "figure": figure, "data": data, "width": width}


def _line_data(chart: LineChart) -> dict[str, Any]:
    """The figures of a chart as a table: a column a line, a row for each x of any."""
    columns = []
    for series in chart.series:
        column: dict[float, tuple[str, str]] = {}
        for i, (x, value) in enumerate(zip(series.x, series.y, strict=True)):
            low, high = (side[i] if side else None for side in (series.low, series.high))
            half = shown((high - low) / 2, chart.unit) if low is not None and high is not None else ""
            column[x] = (shown(value, chart.unit), half)
        columns.append(column)
    places = sorted({x for series in chart.series for x in series.x})
    rows = [(f"{x:,.10g}", [column.get(x, ("", "")) for column in columns]) for x in places]
    return {"heads": [chart.x_label, *(series.label for series in chart.series)], "rows": rows}


def _legend(chart: LineChart, styles: Mapping[str, int]) -> list[dict[str, Any]]:
    """Entries in the order in which the lines end, from the top, each with its last figure."""
    entries = []
    for number, series in enumerate(chart.series):
        last = next((value for value in reversed(series.y) if value is not None), None)
        style = styles[series.label]
        look = {"style": style, "dash": DASHES[style % len(DASHES)], "mark": MARKS[style % len(MARKS)]}
        entries.append({"number": number, "label": series.label, "last": last, **look})
    return sorted(entries, key=lambda entry: (entry["last"] is None, -(entry["last"] or 0)))


@dataclass(frozen=True)
class _Bar:
    """Where a figure and its interval lie on the scale of its column, in % of its width."""

    at: float
    low: float
    high: float
    zero: float | None
    """Where 0 is, if it is inside."""


def _table(table: Table) -> dict[str, Any]:
    """Cells with what the template shows of each; columns with a paper's figure get a column for it."""
    cells = table_cells(table)
    papers = [any(row.figures[i].paper is not None for row in table.rows) for i in range(len(table.columns))]
    bars = [_bars([row.figures[i] for row in table.rows]) for i in range(len(table.columns))]
    rows: list[list[tuple[Figure, Cell, _Bar | None]]] = [
        [(figure, cells[r][i], bars[i][r]) for i, figure in enumerate(row.figures)] for r, row in enumerate(table.rows)
    ]
    groups = [(group, len(indices) + sum(papers[i] for i in indices)) for group, indices in column_groups(table)]
    marked = [cell for row in cells for cell in row]
    return {
        "rows": rows,
        "papers": papers,
        "groups": groups if any(group for group, _ in groups) else [],
        "starts": {indices[0] for _, indices in column_groups(table)} - {0},
        "any_best": any(cell.best for cell in marked),
        "any_half": any(cell.half for cell in marked),
        "any_bar": any(bar for column in bars for bar in column),
        "any_differs": any(cell.differs for cell in marked),
    }


def _bars(figures: Sequence[Figure]) -> list[_Bar | None]:
    known = [(f.value, f.low, f.high) for f in figures if None not in (f.value, f.low, f.high)]
    edges = [edge for triple in known for edge in triple if edge is not None]
    if not edges or max(edges) == min(edges):
        return [None] * len(figures)
    least, width = min(edges), max(edges) - min(edges)

    def place(value: float) -> float:
        return round(100 * (value - least) / width, 2)

    zero = place(0) if least < 0 < max(edges) else None
    return [
        None
        if figure.value is None or figure.low is None or figure.high is None
        else _Bar(place(figure.value), place(figure.low), place(figure.high), zero)
        for figure in figures
    ]
