"""Charts as pictures. Equal charts give equal bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .exports import has_figures, short
from .views import HeatMap, LineChart, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MatplotlibFigure
    from matplotlib.lines import Line2D

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", "--", "-.", ":")
_MARKS = "osD^v"


def draw(view: LineChart | HeatMap, file: str | os.PathLike[str]) -> None:
    """Draw a chart as PNG or SVG, by the ending of `file`.

    Lines are told apart by colour (the palette of Okabe and Ito, 2008, made for all kinds of colour vision), dashes,
    marks and a label at their end, so also in grey. Raises `InputError` for another ending and for a chart without
    figures.
    """
    if not has_figures(view):
        raise InputError(f"chart {view.name}: there are no figures to draw; leave it out")
    width, height, label_width = _size(view)
    # A character of the title, which begins where the labels end, is about 0.06 inches wide, a line of it 0.15 high.
    n_characters = int((width - label_width) / 0.06)
    said = [line for text in (view.title, *view.notes) for line in wrap(text, n_characters)]
    with _picture(view.name, width, height + 0.15 * len(said), file) as figure:
        axes = figure.subplots()
        if isinstance(view, LineChart):
            _draw_lines(axes, view)
        else:
            _draw_heat_map(axes, view)
        axes.set_title("\n".join(said), loc="left", fontsize=8)


def draw_grid(charts: Sequence[Sequence[LineChart]], file: str | os.PathLike[str]) -> None:
    """Draw rows of charts of the same series as one picture with one legend, by the ending of `file`.

    Each is headed by what its title says before a colon. Raises `InputError` for another ending than .png or .svg.
    """
    n_columns = max(map(len, charts))
    labels = list(dict.fromkeys(series.label for row in charts for chart in row for series in chart.series))
    style_of = {label: i for i, label in enumerate(labels)}
    with _picture(charts[0][0].name, 3.2 * n_columns, 2.6 * len(charts) + 0.5, file) as figure:
        grid = figure.subplots(len(charts), n_columns, squeeze=False)
        lines = {}
        for row, shown in zip(grid, charts, strict=True):
            for axes, chart in zip(row, shown, strict=False):
                lines |= {series.label: line for series, line in _plot_series(axes, chart, style_of)}
                axes.set_title(short(chart.title.split(":")[0]), loc="left", fontsize=8)
            for axes in row[len(shown) :]:
                axes.set_axis_off()
        known = [label for label in labels if label in lines]
        figure.legend([lines[label] for label in known], known, loc="outside lower center", ncols=6, frameon=False)


@contextmanager
def _picture(name: str, width: float, height: float, file: str | os.PathLike[str]) -> Iterator[MatplotlibFigure]:
    """A figure of so many inches to draw on, which becomes `file` at the end."""
    # Slow to import, and of use here alone.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    file = Path(file)
    if file.suffix not in (".png", ".svg"):
        raise InputError(f"{file}: expected a file that ends in .png or .svg; rename it")
    # A fixed salt, no date: names of SVG elements are random otherwise. Text stays text, dollars included.
    style: dict[Any, Any] = {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9, "text.parse_math": False}
    with rc_context(style):
        figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
        yield figure
        temporary = file.with_name(f".{file.name}")
        figure.savefig(temporary, format=file.suffix[1:], metadata={"Date": None} if file.suffix == ".svg" else None)
    os.replace(temporary, file)


def _size(view: LineChart | HeatMap) -> tuple[float, float, float]:
    """Width and height in inches, without what is said above, and how much of the width is labels on the left."""
    labels = [series.label for series in view.series] if isinstance(view, LineChart) else view.rows
    label_width = 0.07 * max(len(short(label)) for label in labels)
    if isinstance(view, LineChart):
        return 5.3 + label_width, _lines_height(len(labels)), 0.5
    # Headings stand at an angle, so they reach up and to the right.
    head_width = 0.05 * max(len(short(column)) for column in view.columns)
    width = max(0.3 + 0.65 * len(view.columns) + head_width, 3.0)
    return label_width + width, 0.9 + 0.28 * len(labels) + head_width, label_width + 0.1


def _lines_height(n_lines: int) -> float:
    return max(4.0, 0.3 * n_lines)


def _draw_lines(axes: Axes, chart: LineChart) -> None:
    ends = []
    for series, line in _plot_series(axes, chart):
        y = np.asarray(line.get_ydata(), float)
        last = np.flatnonzero(~np.isnan(y))[-1]
        ends.append((y[last], series.x[last], series.label, line.get_color()))
    _label_ends(axes, ends)


def _plot_series(
    axes: Axes, chart: LineChart, style_of: Mapping[str, int] | None = None
) -> list[tuple[Series, Line2D]]:
    """The lines with their bands, and the axes; looks by place among the lines drawn, or by `style_of` the label."""
    from matplotlib.ticker import MaxNLocator

    scale = 100 if chart.unit == "%" else 1
    drawn = [series for series in chart.series if any(value is not None for value in series.y)]
    found = []
    for place, series in enumerate(drawn):
        i = place if style_of is None else style_of[series.label]
        x, y = np.array(series.x, float), scale * np.array(series.y, float)
        color = _COLOURS[i % len(_COLOURS)]
        dashes, mark = _DASHES[i % len(_DASHES)], _MARKS[i % len(_MARKS)]
        found += axes.plot(x, y, color=color, linestyle=dashes, marker=mark, markersize=3.5, linewidth=1.4)
        if series.low and series.high:
            low, high = scale * np.array(series.low, float), scale * np.array(series.high, float)
            axes.fill_between(x, low, high, color=color, alpha=0.1 / max(1, len(drawn) / 4), linewidth=0)
    unit = " in %" if chart.unit == "%" and "%" not in chart.y_label else ""
    axes.set(xlabel=short(chart.x_label), ylabel=short(chart.y_label) + unit)
    whole = all(value == int(value) for series in drawn for value in series.x)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=whole))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    return list(zip(drawn, found, strict=True))


def _label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Labels as near to their lines as they can be without touching."""
    from scipy.optimize import isotonic_regression

    ends = sorted(ends)
    # A line of text takes 13 of the axes' points.
    bottom, top = axes.get_ylim()
    steps = np.arange(len(ends)) * 13 * (top - bottom) / (0.8 * _lines_height(len(ends)) * 72)
    places = isotonic_regression([end for end, *_ in ends] - steps).x + steps
    for (end, x, label, color), place in zip(ends, places, strict=True):
        axes.annotate(
            short(label),
            (x, end),
            (1.04, place),
            textcoords=axes.get_yaxis_transform(),
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 3},
        )


def _draw_heat_map(axes: Axes, view: HeatMap) -> None:
    values = (100 if view.unit == "%" else 1) * np.array(view.values, float).reshape(len(view.rows), len(view.columns))
    low, high = np.nanmin(values), np.nanmax(values)
    # Light enough everywhere for black text.
    if view.signed:
        far = 1.8 * (max(-low, high) or 1)
        colours: dict[str, Any] = {"cmap": "RdBu", "vmin": -far, "vmax": far}
    else:
        colours = {"cmap": "Blues", "vmin": low, "vmax": high + 0.8 * (high - low or 1)}
    edges = [np.arange(n + 1) - 0.5 for n in values.shape[::-1]]
    axes.pcolormesh(*edges, values, **colours, ec="w", lw=1.5)
    axes.invert_yaxis()
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            text = f"{value:{'+' if view.signed else ''}z.{view.decimals}f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8)
    turned = {"rotation": 35, "ha": "left", "rotation_mode": "anchor"} if max(map(len, view.columns)) > 8 else {}
    axes.set_xticks(range(len(view.columns)), map(short, view.columns), **turned)
    axes.set_yticks(range(len(view.rows)), map(short, view.rows))
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
