"""Charts as Plotly figures without colours: the page sets those, as they differ in the dark and on paper."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from typing import Any

from ..exports import short, shown
from ..views import HeatMap, LineChart, Series

DASHES = ("solid", "dash", "dashdot", "dot")
MARKS = ("circle", "square", "diamond", "triangle-down", "triangle-up")

_AXIS = {"automargin": True, "fixedrange": True, "zeroline": False}


def escape(text: str) -> str:
    """For Plotly, which reads a little HTML, no quotes, and fills in `%{...}`."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%", "&#37;")


def line_figure(chart: LineChart, styles: Mapping[str, int]) -> dict[str, Any]:
    """Plotly's `data` and `layout`: for each series a band, empty where no interval is known, and a line after it.

    `styles` numbers the labels of all charts of a page, so that one label looks the same everywhere. A trace says in
    `meta` which style and which series it belongs to. Plotly reads a little HTML in texts, so all are escaped.
    """
    scale = 100 if chart.unit == "%" else 1
    data = []
    for number, series in enumerate(chart.series):
        style = styles[series.label]
        meta = {"style": style, "series": number}
        data.append({**_band(series, scale), "meta": {**meta, "part": "band"}})
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": escape(series.label),
                "x": list(series.x),
                "y": [None if value is None else scale * value for value in series.y],
                "line": {"width": 2, "dash": DASHES[style % len(DASHES)]},
                "marker": {"size": 6, "symbol": MARKS[style % len(MARKS)]},
                "hoverinfo": "text",
                "hovertext": [_hover(chart, series, i) for i in range(len(series.x))],
                "meta": {**meta, "part": "line"},
            }
        )
    xs = [x for series in chart.series for x in series.x]
    whole = all(x == int(x) for x in xs) and max(xs, default=0) - min(xs, default=0) <= 10
    unit = " in %" if chart.unit == "%" and "%" not in chart.y_label else ""
    layout = {
        "xaxis": {**_AXIS, "title": _title(chart.x_label), "showgrid": False, **({"dtick": 1} if whole else {})},
        "yaxis": {**_AXIS, "title": _title(chart.y_label, unit)},
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "height": 380,
        "hovermode": "closest",
        "showlegend": False,
        "dragmode": False,
    }
    return {"data": data, "layout": layout}


def _title(text: str, unit: str = "") -> dict[str, Any]:
    return {"text": escape(short(text)) + unit, "font": {"size": 13}}


def _band(series: Series, scale: float) -> dict[str, Any]:
    """Outlines of the stretches with an interval, a gap between them."""
    x: list[float | None] = []
    y: list[float | None] = []
    stretch: list[tuple[float, float, float]] = []
    bounds = zip(series.x, series.low, series.high, strict=True) if series.low and series.high else ()
    for place, low, high in [*bounds, (0.0, None, None)]:
        if low is not None and high is not None:
            stretch.append((place, scale * low, scale * high))
        elif stretch:
            back = stretch[::-1]
            x += [*(p for p, _, _ in stretch), *(p for p, _, _ in back), stretch[0][0], None]
            y += [*(low for _, low, _ in stretch), *(high for _, _, high in back), stretch[0][1], None]
            stretch = []
    band = {"type": "scatter", "mode": "lines", "fill": "toself", "hoverinfo": "skip", "line": {"width": 0}}
    return {**band, "x": x, "y": y}


def _hover(chart: LineChart, series: Series, i: int) -> str:
    value = series.y[i]
    text = (
        f"<b>{escape(series.label)}</b><br>{escape(chart.x_label)}: {series.x[i]:,.10g}<br>{shown(value, chart.unit)}"
    )
    low, high = (side[i] if side else None for side in (series.low, series.high))
    interval = "" if low is None or high is None else f" ({shown(low, chart.unit)} to {shown(high, chart.unit)})"
    return text + ("" if value is None else f"{' %' if chart.unit == '%' else ''}{interval}")


def heading_lines(label: str) -> list[str]:
    """The heading of a column, broken so that columns may be narrow."""
    return wrap(short(label), 12, break_on_hyphens=False)


def heat_figure(view: HeatMap) -> dict[str, Any]:
    """Plotly's `data` and `layout`; rows from the top, as in a table. Axes are numbers, as equal labels are allowed."""
    scale = 100 if view.unit == "%" else 1
    suffix = " %" if view.unit == "%" else ""
    texts = [[shown(value, view.unit, view.decimals, view.signed) for value in row] for row in view.values]
    hover = [
        [f"<b>{escape(row)}</b><br>{escape(column)}<br>{text + suffix if text else 'none'}" for column, text in pairs]
        for row, pairs in (
            (row, zip(view.columns, line, strict=True)) for row, line in zip(view.rows, texts, strict=True)
        )
    ]
    data = {
        "type": "heatmap",
        "z": [[None if value is None else scale * value for value in row] for row in view.values],
        "text": texts,
        "texttemplate": "%{text}",
        "hoverinfo": "text",
        "hovertext": hover,
        "hoverongaps": False,
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "meta": {"part": "cells", "signed": view.signed},
    }
    if view.signed:
        far = max((abs(value) for row in view.values for value in row if value is not None), default=0.0) or 1.0
        data |= {"zmin": -scale * far, "zmax": scale * far}
    texts_of_axes = {
        "x": ["<br>".join(map(escape, heading_lines(name))) for name in view.columns],
        "y": [escape(short(name)) for name in view.rows],
    }
    labels = {
        axis: {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": names, "tickangle": 0}
        for axis, names in texts_of_axes.items()
    }
    layout = {
        "xaxis": {**_AXIS, **labels["x"], "side": "top", "showgrid": False},
        "yaxis": {**_AXIS, **labels["y"], "autorange": "reversed", "showgrid": False},
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "height": 90 + 30 * len(view.rows),
        "dragmode": False,
    }
    return {"data": [data], "layout": layout}
