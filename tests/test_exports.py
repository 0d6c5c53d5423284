"""Views as files: what is written reads back, says what the views say, and is the same for the same views."""

import csv
import json
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from sessiongym.errors import InputError
from sessiongym.evaluate.exports import (
    read_views,
    shown,
    table_cells,
    table_console,
    table_latex,
    table_markdown,
    write_views,
)
from sessiongym.evaluate.plots import draw, draw_grid
from sessiongym.evaluate.views import (
    Column,
    Figure,
    HeatMap,
    LineChart,
    Row,
    Series,
    Table,
    views_from_json,
    views_to_json,
)

PAGE = (Path(__file__).parents[1] / "docs" / "report.md").read_text(encoding="utf-8")

COLUMNS = (
    Column("Recall@5", group="Purchase, 944 events"),
    Column("MRR@5", group="Purchase, 944 events"),
    Column("loss", unit="", decimals=3, better="lower", group="Training"),
    Column("epoch", unit="", decimals=1, better="neither", group="Training"),
)
TABLE = Table(
    "table-1",
    "Recall & MRR",
    COLUMNS,
    (
        Row("a|b_<script>", (Figure(1 / 3, 0.3, 0.36, paper=0.5021), Figure(0.2), Figure(1.25), Figure(3.0))),
        Row("irn-p", (Figure(0.1, 0.05, 0.15, differs=True), Figure(0.2), Figure(0.5), Figure(None)), "IRN-P"),
        Row("none", (Figure(None), Figure(None), Figure(None), Figure(None))),
    ),
    notes=("Simulated: 100 % of it.",),
)
LINES = LineChart(
    "lines",
    "Costs of $x$ and $y$",
    "epoch",
    "Recall@5",
    (
        Series("whole", (1, 2, 3), (0.1, 0.2, 0.3), (0.05, 0.15, 0.25), (0.15, 0.25, 0.35)),
        Series("gap $5", (1, 2, 3), (0.3, None, 0.2), (0.2, None, 0.1), (0.4, None, 0.3)),
        Series("bare", (1.5, 2.5), (0.11, 0.31)),
        Series("empty", (1, 2), (None, None)),
    ),
)
HEAT = HeatMap("heat", "By slice", ("a", "b"), ("x", "x", "long label"), ((0.1, None, 0.2), (0.3, 0.4, 0.0)))
VIEWS = [TABLE, LINES, HEAT]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    write_views(folder, VIEWS)
    return folder


def test_views_read_back_as_they_were(folder):
    assert read_views(folder) == VIEWS


def test_every_view_has_its_files_and_equal_views_equal_bytes(folder, tmp_path):
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    tables = {f"tables/table-1.{ending}" for ending in ("csv", "md", "json", "tex")}
    plots = {f"plots/{name}.{ending}" for name in ("lines", "heat") for ending in ("svg", "png")}
    assert files == {"views.json"} | tables | plots
    write_views(tmp_path, VIEWS)
    assert all((folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in files)


def test_csv_and_json_hold_every_figure_in_full_precision(folder):
    with open(folder / "tables" / "table-1.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figures = [figure for row in TABLE.rows for figure in row.figures]
    assert len(rows) == len(figures)
    for row, figure in zip(rows, figures, strict=True):
        for name in ("value", "low", "high", "paper"):
            assert (float(row[name]) if row[name] else None) == getattr(figure, name)
        assert row["differs"] == str(figure.differs)
    assert [row["row"] for row in rows[::4]] == ["a|b_<script>", "irn-p", "none"] and rows[4]["paper_row"] == "IRN-P"
    assert [row["unit"] for row in rows[:4]] == ["share", "share", "", ""]
    loaded = json.loads((folder / "tables" / "table-1.json").read_text(encoding="utf-8"))
    assert views_from_json([loaded], "table-1.json") == [TABLE]


def test_the_best_of_a_column_is_judged_as_shown_and_never_where_all_look_the_same():
    best = [[cell.best for cell in row] for row in table_cells(TABLE)]
    assert best == [[True, False, False, False], [False, False, True, False], [False] * 4]
    tied = Table("t", "t", COLUMNS[:1], tuple(Row(str(v), (Figure(v),)) for v in (0.20001, 0.20002, 0.1)))
    assert [row[0].best for row in table_cells(tied)] == [True, True, False]


def test_several_tables_say_once_at_the_end_what_is_true_of_more_than_one():
    notes = (("Both.", "First only."), ("Both.", "Second [only]."), ())
    figures = ((Figure(0.1), Figure(0.2)), (Figure(0.1, 0.0, 0.2), Figure(0.2)), (Figure(0.1), Figure(0.1)))
    tables = [
        Table(
            f"t-{i}", f"Title {i}", COLUMNS[:1], tuple(Row(str(r), (one,)) for r, one in enumerate(column)), notes=own
        )
        for i, (own, column) in enumerate(zip(notes, figures, strict=True))
    ]
    lines = table_markdown(tables[0], LINES, *tables[1:], HEAT, notes=["Given.", "Given.", "First only."]).split("\n\n")
    said = [line for line in lines if not line.startswith(("**", "|"))]
    assert said == [
        "±: half the 95 % interval.  \nNote: Second \\[only\\].",
        "In %. Bold: best of its column.  \nNote: Both.  \nNote: First only.  \nNote: Given.\n",
    ]
    assert [line for line in lines if line.startswith("**")] == [
        f"**{table.title}: {COLUMNS[0].group}**" for table in tables
    ]
    console = Console(width=80, record=True, file=StringIO())
    console.print(table_console(tables[0], LINES, *tables[1:], HEAT, notes=["Given.", "Given.", "First only."]))
    footer = ["In %. *: best of its column.", "Note: Both.", "Note: First only.", "Note: Given."]
    assert [line.strip() for line in console.export_text().splitlines()][-4:] == footer
    # Alone, a table says all of it.
    assert table_markdown(tables[0]).endswith("Bold: best of its column.  \nNote: Both.  \nNote: First only.\n")


def test_text_leaves_intervals_out_where_a_column_says_so_and_files_have_them_all(tmp_path):
    row = Row("a", (Figure(0.5, 0.4, 0.6), Figure(0.25, 0.2, 0.3)))
    table = Table("t", "t", (Column("x"), Column("y", interval=False)), (row,))
    console = Console(width=80, record=True, file=StringIO())
    console.print(table_console(table))
    for text in (table_markdown(table), console.export_text()):
        assert "50.00 ±10.00" in text and "25.00" in text and text.count("±") == 2
    assert table_latex(table).count(r"$\pm$") == 2
    assert [cell.half for cell in table_cells(table)[0]] == ["10.00", "5.00"]
    write_views(tmp_path, [table])
    assert read_views(tmp_path) == [table] and "0.25,0.2,0.3" in (tmp_path / "tables" / "t.csv").read_text()
    bare = Table("t", "t", table.columns[1:], (Row("a", row.figures[1:]),))
    assert "±" not in table_markdown(bare)


def test_views_written_before_columns_had_all_their_fields_read_as_they_did():
    written = views_to_json([TABLE])
    for column in written[0]["columns"]:
        del column["interval"], column["signed"]
    assert views_from_json(written, "views.json") == [TABLE]


def test_a_column_with_negative_figures_shows_the_signs_of_all():
    table = Table("t", "t", COLUMNS[:1], tuple(Row(str(v), (Figure(v),)) for v in (-0.5, 0.25, 0.000001, None)))
    assert [row[0].value for row in table_cells(table)] == ["-50.00", "+25.00", "+0.00", ""]
    nothing = Table("t", "t", COLUMNS[:1], (Row("a", (Figure(-0.000001),)), Row("b", (Figure(0.5),))))
    assert [row[0].value for row in table_cells(nothing)] == ["0.00", "50.00"]
    differences = Table("t", "t", (Column("x", signed=True),), (Row("a", (Figure(0.25),)), Row("b", (Figure(None),))))
    assert [row[0].value for row in table_cells(differences)] == ["+25.00", ""]
    assert shown(-0.0) == "0.00"


def test_markdown_has_a_table_for_each_group_and_says_what_its_marks_mean():
    text = table_markdown(TABLE)
    assert "**Recall & MRR: Purchase, 944 events**" in text and "**Recall & MRR: Training**" in text
    assert "| **33.33 ±3.00 (50.21)** | 20.00 |" in text and "| irn-p (paper: IRN-P) | 10.00† ±5.00 | 20.00 |" in text
    assert r"a\|b_\<script\>" in text and "| none |  |  |" in text
    assert "In % but for loss, epoch. Bold: best of its column. ±: half the 95 % interval. In brackets: what" in text
    assert text.endswith("Note: Simulated: 100 % of it.\n")
    # Bars that are not escaped make columns.
    rows = [re.sub(r"\\\|", "", line) for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {4}
    plain = Table("t", "t", (Column("n", unit="", decimals=0, better="neither"),), (Row("a", (Figure(1234.0),)),))
    assert table_markdown(plain) == "**t**\n\n| model | n |\n|---|---:|\n| a | 1,234 |\n"


def test_latex_is_balanced_escaped_and_has_a_cell_a_column():
    text = table_latex(TABLE)
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    bare = re.sub(r"\\[{}\\]", "", text)
    assert bare.count("{") == bare.count("}")
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 2 + len(TABLE.rows)
    assert [len(re.findall(r"(?<!\\)&", line)) for line in lines] == [2, 4, 4, 4, 4]
    assert not re.findall(r"(?<!\\)[%#_<>|]", text.replace(r"\label{table-1}", ""))
    assert r"\multicolumn{2}{c}{Purchase, 944 events}" in text and r"\cmidrule(lr){2-3} \cmidrule(lr){4-5}" in text
    assert r"\textbf{33.33 $\pm$3.00 (50.21)}" in text and r"a\textbar{}b\_\textless{}script\textgreater{}" in text


@pytest.mark.parametrize("n_columns", [1, 4, 13])
def test_the_console_shows_every_figure_within_80_columns(n_columns):
    columns = tuple(Column(f"Recall@{i}", group="All") for i in range(n_columns))
    rows = tuple(
        Row(
            f"a-rather-long-name-of-a-model-{r}", tuple(Figure(r / 7 + i / 99, 0.1, 0.2, 0.3) for i in range(n_columns))
        )
        for r in range(3)
    )
    console = Console(width=80, record=True, file=StringIO())
    rows = (*rows, Row("[green]agent", (Figure(None),) * n_columns))
    table = Table("t", "Title [bold]", columns, rows, notes=("[red]careful[/red]",))
    console.print(table_console(table))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert all(text.count(cell.value) for row in table_cells(table) for cell in row)
    assert (
        "Title [bold]: All" in text
        and "[green]agent" in text
        and "Note: [red]careful[/red]" in text
        and "…" not in text
    )


def test_digits_of_a_column_stand_below_each_other_whatever_stands_beside_them():
    figures = (
        Figure(0.1, paper=0.5),
        Figure(0.2, differs=True),
        Figure(0.3, 0.1, 0.5, differs=True),
        Figure(0.15, 0.0, 0.1, 0.05),
    )
    console = Console(width=80, record=True, file=StringIO())
    console.print(
        table_console(Table("t", "t", COLUMNS[:1], tuple(Row(str(i), (one,)) for i, one in enumerate(figures))))
    )
    found = [
        match.start() for match in map(re.compile(r"\d\d\.\d\d").search, console.export_text().splitlines()) if match
    ]
    assert len(found) == 4 and len(set(found)) == 1


@pytest.mark.parametrize(("n_columns", "n_stacks"), [(7, 1), (10, 2)])
def test_labels_are_folded_where_that_puts_all_columns_side_by_side(n_columns, n_stacks):
    # A column takes 8 characters: 5 digits and a point, room for no mark, two spaces.
    columns = tuple(Column(f"c{i}", better="neither") for i in range(n_columns))
    row = Row("irn-p:learning_rate=0.001", (Figure(1.0),) * n_columns)
    console = Console(width=80, record=True, file=StringIO())
    console.print(table_console(Table("t", "Title", columns, (row,))))
    text = console.export_text()
    assert text.count("Title") == n_stacks and text.count("100.00") == n_columns and "…" not in text


def test_pictures_show_labels_as_they_are_and_no_empty_line(folder):
    shown_texts = re.findall(r">([^<>]+)</text>", (folder / "plots" / "lines.svg").read_text(encoding="utf-8"))
    assert {"whole", "gap $5", "bare", "Recall@5 in %", "epoch", "Costs of $x$ and $y$"} <= set(shown_texts)
    assert "empty" not in shown_texts
    cells = re.findall(r">([^<>]+)</text>", (folder / "plots" / "heat.svg").read_text(encoding="utf-8"))
    assert sorted(cells) == sorted(
        ["a", "b", "x", "x", "long label", "10.0", "20.0", "30.0", "40.0", "0.0", "By slice"]
    )
    for name in ("lines", "heat"):
        assert (folder / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_chart_of_long_names_is_drawn_with_their_ends(tmp_path, recwarn):
    names = [f"irn-p:{'x' * 200}:seed={i}" for i in range(3)]
    lines = LineChart("lines", names[0], names[0], names[0], tuple(Series(name, (1, 2), (0.1, 0.2)) for name in names))
    heat = HeatMap("heat", names[0], tuple(names), tuple(names), ((0.1, 0.2, 0.3),) * 3)
    for view in (lines, heat):
        draw(view, tmp_path / "plot.svg")
        text = (tmp_path / "plot.svg").read_text(encoding="utf-8")
        assert all(f"x:seed={i}</text>" in text for i in range(3))
    assert not recwarn.list


def test_signed_heat_maps_show_signs(tmp_path):
    heat = HeatMap("heat", "t", ("a", "b", "c"), ("x",), ((-0.5,), (0.25,), (0.0,)), unit="", decimals=2, signed=True)
    draw(heat, tmp_path / "heat.svg")
    text = (tmp_path / "heat.svg").read_text(encoding="utf-8").replace("\N{MINUS SIGN}", "-")
    assert all(f">{value}</text>" in text for value in ("-0.50", "+0.25", "+0.00"))


def test_charts_of_one_picture_share_their_looks_and_their_legend(tmp_path):
    one = LineChart("one", "Over x: a", "x", "y", (Series("a", (1, 2), (0.1, 0.2)), Series("b", (1, 2), (0.3, None))))
    two = LineChart("two", "Over z: b", "z", "y", (Series("b", (1, 2), (0.1, 0.2)),))
    for ending in ("svg", "png"):
        draw_grid([[one, two], [two]], tmp_path / f"grid.{ending}")
    text = (tmp_path / "grid.svg").read_text(encoding="utf-8")
    assert [len(re.findall(f">{label}</text>", text)) for label in ("Over x", "Over z", "a", "b")] == [1, 2, 1, 1]
    # A line, its marks and the legend; b has the look of the second series where it is the first one drawn, too.
    assert text.count("stroke: #d55e00") > text.count("stroke: #0072b2") > 0
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("view", [LineChart("no", "t", "x", "y", ()), HeatMap("no", "t", ("a",), ("b",), ((None,),))])
def test_a_chart_without_figures_is_not_drawn(view, tmp_path):
    with pytest.raises(InputError, match="no figures to draw"):
        draw(view, tmp_path / "plot.svg")
    assert not list(tmp_path.iterdir())


def test_what_has_nothing_in_it_is_written_too(tmp_path):
    views = [
        Table("no-rows", "t", COLUMNS, ()),
        Table("no-columns", "t", (), (Row("a", ()),)),
        LineChart("no-lines", "t", "x", "y", ()),
        HeatMap("no-cells", "t", (), (), ()),
        HeatMap("no-figures", "t", ("a",), ("b",), ((None,),)),
    ]
    write_views(tmp_path, views)
    assert read_views(tmp_path) == views and not (tmp_path / "plots").exists()
    for table in views[:2]:
        Console(width=80, file=StringIO()).print(table_console(table))


@pytest.mark.parametrize("name", ["", "../up", "Big", "a b", "a/b", "-a"])
def test_a_name_that_is_no_file_name_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(InputError, match="lower-case letters, digits and hyphens"):
        write_views(tmp_path, [TABLE, Table(name, "t", (), ())])
    assert not list(tmp_path.iterdir())


def test_repeated_names_and_figures_that_are_no_numbers_are_refused(tmp_path):
    with pytest.raises(InputError, match="that no other view has"):
        write_views(tmp_path, [TABLE, LINES, TABLE])
    for value in (float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"NaN or infinite.*say None"):
            write_views(tmp_path, [Table("t", "t", COLUMNS[:1], (Row("a", (Figure(value),)),))])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"views\.json: not found"),
        ("[{]", r"views\.json:1: not valid JSON"),
        ("{}", r"views\.json:1: expected a list, found a dict"),
        ('[{"kind": "pie"}]', r"views\.json: view 1: not a view"),
        ("\udcff", r"views\.json:1: not valid JSON"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, text, said):
    if text is not None:
        (tmp_path / "views.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=said) as raised:
        read_views(tmp_path)
    assert "\n" not in str(raised.value)


def test_the_example_of_the_page_prints_what_it_says(tmp_path):
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    (output,) = re.findall(r"prints as:\n\n```\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "example").mkdir()
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output}\n{Path('example', 'report.html')} True\n"
