"""The page of a run, as a reader meets it: in a real browser, without a network."""

import base64
import json
import os
import shutil
from pathlib import Path

import pytest
from sessiongym.errors import InputError
from sessiongym.evaluate.report import write_report
from sessiongym.evaluate.report.charts import heat_figure, line_figure
from sessiongym.evaluate.views import Column, Figure, HeatMap, LineChart, Row, Series, Table, views_to_json

MODELS = ("most-popular", "item-knn", "rnn 10", "rnn 9", "irn-p")
VALUES = (0.02, 0.4, None, 0.45, 0.0044)
TABLE = Table(
    "comparison",
    "Recall after every event",
    (Column("Recall@5", group="Click"), Column("MRR@5", group="Click"), Column("loss", "", 3, "lower", "Training")),
    tuple(
        Row(
            label,
            (
                Figure(value, value and value - 0.004, value and value + 0.004, paper=0.5 if i == 1 else None),
                Figure(0.1 * i - 0.2, 0.1 * i - 0.25, 0.1 * i - 0.15, differs=i == 4),
                Figure(None if i < 2 else 1000.5 * i),
            ),
            "IRN-P" if label == "irn-p" else None,
        )
        for i, (label, value) in enumerate(zip(MODELS, VALUES, strict=True))
    ),
    notes=("A note of the table.",),
)
LINES = LineChart(
    "curves",
    "Validation while training",
    "epoch",
    "Recall@5",
    (
        Series("rnn 10", (1, 2, 3), (0.1, 0.2, 0.3), (0.05, 0.15, 0.25), (0.15, 0.25, 0.35)),
        Series("irn-p", (1, 2, 3, 4), (0.2, None, 0.25, 0.24), (0.1, None, 0.2, 0.2), (0.3, None, 0.3, 0.3)),
        Series("item-knn", (1, 4), (0.22, 0.22)),
    ),
)
HEAT = HeatMap("slices", "Recall@5 by slice", MODELS[:2], ("click", "first"), ((0.1, None), (0.3, 0.0)))
SIGNED = HeatMap("signed", "Tau", ("a", "b", "c"), ("x",), ((-0.5,), (0.25,), (0.0,)), unit="", decimals=2, signed=True)
VIEWS = (TABLE, LINES, HEAT)
MANIFEST = {
    "format": "sessiongym.comparison",
    "schema": 1,
    "title": "Five models on a shop",
    "models": list(MODELS),
    "seeds": 3,
    "data_path": "shops/small",
    "notes": ["Simulated data.", "3 seed(s): a published table needs at least 5."],
    "against": "item-knn",
    "ties": "expected",
    "cells": {"item-knn": ["8aebff8bd41b2b21108c5ebc"]},
    "data_manifest": {
        "steps": [{"step": "read", "events": 900, "sessions": 90}, {"step": "test", "events": 4321, "sessions": 55}],
        "n_items": 77,
    },
    "something_new": {"deep": [{"a": 1}, {"b": None}], "flag": True, "empty": {}},
}


def report(folder: Path, views=VIEWS, manifest=MANIFEST) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "views.json").write_text(json.dumps(views_to_json(views)), encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return write_report(folder)


class Page:
    """A tab of headless Chromium, and what a test does with it."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, file: Path, *, width=1280, height=900, mobile=False, scheme="light", media=""):
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.command("Emulation.setEmulatedMedia", media=media, features=features)
        self.complaints()
        self.requests()
        self.driver.get(file.resolve().as_uri())
        return self

    def command(self, name: str, **arguments):
        return self.driver.execute_cdp_cmd(name, arguments)

    def js(self, code: str, *arguments):
        return self.driver.execute_script(code, *arguments)

    def texts(self, selector: str) -> list[str]:
        return self.js("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent.trim())", selector)

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def complaints(self) -> list[str]:
        """What the console said since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """What was requested since the last call, pictures inside the page apart."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]


@pytest.fixture(scope="module")
def page():
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        said = "no chromium and chromedriver on the PATH: `apt-get install chromium chromium-driver`"
        if os.environ.get("CI") == "true":
            pytest.fail(said)
        pytest.skip(said)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    # Containers have neither the sandbox's namespaces nor much shared memory; the only page opened is our own.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield Page(driver)
    driver.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return report(tmp_path_factory.mktemp("report") / "run")


LINES_DRAWN = """
return [...document.querySelectorAll(arguments[0])].filter(e => {
  const box = e.getBBox();
  return e.getAttribute('d') && box.width > 0;
}).length
"""


def test_every_chart_has_drawn_and_nothing_complains_or_leaves_the_page(page, file):
    page.open(file)
    assert page.js(LINES_DRAWN, "#chart-curves path.js-line[style*='stroke-width: 2']") == len(LINES.series)
    # Two series know their interval; the gap of one makes its band two shapes of one path.
    assert page.js(LINES_DRAWN, "#chart-curves path.js-fill") == 2
    points = sum(value is not None for series in LINES.series for value in series.y)
    assert page.js("return document.querySelectorAll('#chart-curves .point').length") == points
    size = page.js(
        "const r = document.querySelector('#chart-slices image').getBoundingClientRect(); return [r.width, r.height]"
    )
    assert min(size) > 50 and sorted(filter(None, page.texts("#chart-slices .heatmap-label"))) == [
        "0.0",
        "10.0",
        "30.0",
    ]
    page.js("document.getElementById('theme').click()")
    page.js("document.querySelectorAll('.legend button').forEach(b => b.click())")
    assert page.requests() == [file.resolve().as_uri()] and page.complaints() == []


def test_colours_of_signed_figures_part_at_zero(page, tmp_path):
    page.open(report(tmp_path, [SIGNED]))
    assert page.texts("#chart-signed .heatmap-label") == ["-0.50", "+0.25", "+0.00"]
    below, above, none = page.js("""
        const image = document.querySelector('#chart-signed image');
        const canvas = document.createElement('canvas');
        canvas.width = 60; canvas.height = 60;
        const context = canvas.getContext('2d');
        context.drawImage(image, 0, 0, 60, 60);
        return [10, 30, 50].map(y => [...context.getImageData(30, y, 1, 1).data].slice(0, 3));
    """)
    assert below[0] > below[2] and above[0] < above[2] and max(none) - min(none) < 12


def test_pointing_at_a_line_says_what_it_is_with_its_interval(page, file):
    page.open(file)
    page.js("Plotly.Fx.hover(document.getElementById('chart-curves'), [{curveNumber: 1, pointNumber: 1}])")
    assert page.texts("#chart-curves .hoverlayer .hovertext") == ["rnn 10epoch: 220.00 % (15.00 to 25.00)"]


def test_a_name_of_the_legend_hides_and_shows_its_line(page, file):
    from selenium.webdriver.common.keys import Keys

    page.open(file)
    assert page.texts(".legend button span") == ["rnn 10", "irn-p", "item-knn"]  # as the lines end
    page.js("document.querySelector('.legend button').focus()")
    for pressed, lines in (("false", 2), ("true", 3)):
        page.press(Keys.SPACE)
        assert page.js("return document.activeElement.ariaPressed") == pressed
        assert page.js(LINES_DRAWN, "#chart-curves path.js-line[style*='stroke-width: 2']") == lines


def test_headings_sort_by_keyboard_with_missing_figures_last(page, file):
    from selenium.webdriver.common.keys import Keys

    page.open(file)
    given = list(MODELS)
    expected = {
        "model": (
            ["irn-p", "item-knn", "most-popular", "rnn 9", "rnn 10"],
            ["rnn 10", "rnn 9", "most-popular", "item-knn", "irn-p"],
        ),
        "Recall@5, %": (
            ["rnn 9", "item-knn", "most-popular", "irn-p", "rnn 10"],
            ["irn-p", "most-popular", "item-knn", "rnn 9", "rnn 10"],
        ),
        "paper": (["item-knn", "most-popular", "rnn 10", "rnn 9", "irn-p"],) * 2,
        "MRR@5, %": (given[::-1], given),
        # Lower is better, so the first click puts the lowest first.
        "loss": (
            ["rnn 10", "rnn 9", "irn-p", "most-popular", "item-knn"],
            ["irn-p", "rnn 9", "rnn 10", "most-popular", "item-knn"],
        ),
    }
    heads = page.texts(".results thead button")
    assert heads == list(expected)
    labels = "return [...document.querySelectorAll('.results tbody th')].map(e => e.dataset.value)"
    for i, head in enumerate(heads):
        page.js("document.querySelectorAll('.results thead button')[arguments[0]].focus()", i)
        first, second = ("ascending", "descending") if head in ("model", "loss") else ("descending", "ascending")
        for key, order, sort in (
            (Keys.ENTER, expected[head][0], first),
            (Keys.SPACE, expected[head][1], second),
            (Keys.ENTER, given, "none"),
        ):
            page.press(key)
            assert page.js(labels) == order, (head, sort)
            sorts = page.js("return [...document.querySelectorAll('.results [aria-sort]')].map(e => e.ariaSort)")
            assert [s for s in sorts if s != "none"] == [sort] * (sort != "none") and sorts[i] == sort
            assert page.texts("#status") == ["In the order given" if sort == "none" else f"Sorted by {head}, {sort}"]


def test_every_control_is_reached_by_tab_and_shows_the_focus(page, file):
    from selenium.webdriver.common.keys import Keys

    page.open(file)
    controls = page.js("""
        window.controls = [...document.querySelectorAll('a[href], button, summary, [tabindex="0"], input, select')]
            .filter(e => e.checkVisibility());
        return controls.length""")
    reached = {}
    for _ in range(controls):
        page.press(Keys.TAB)
        number, width, style, seen = page.js("""
            const e = document.activeElement, s = getComputedStyle(e), r = e.getBoundingClientRect();
            return [controls.indexOf(e), parseFloat(s.outlineWidth), s.outlineStyle, r.left >= 0 && r.width > 0]""")
        reached[number] = width >= 2 and style != "none" and seen
    assert reached == dict.fromkeys(range(controls), True)
    page.js("controls[0].focus()")
    page.press(Keys.ENTER)
    assert page.js("return document.activeElement.id") == "main"


def test_a_phone_shows_the_page_without_scrolling_sideways(page, file, tmp_path):
    long = "irn-p:" + ",".join(f"option_{i}={i}" for i in range(30))
    rows = tuple(Row(f"{long}-{i}", TABLE.rows[0].figures * 4) for i in range(3))
    wide = Table("wide", long, TABLE.columns * 4, rows, notes=(long,))
    lines = LineChart("long", long, long, long, tuple(Series(long + str(i), (1, 2), (0.1, 0.2)) for i in range(3)))
    heat = HeatMap("long-heat", long, (long, "b"), (long, "d"), ((0.1, 0.2), (0.3, 0.4)))
    manifest = {**MANIFEST, "title": long, "notes": [long], long: {long: [{long: long}]}, "models": [long]}
    hard = report(tmp_path / "hard", [wide, lines, heat], manifest)
    for one in (file, hard):
        page.open(one, width=375, height=800, mobile=True)
        page.js("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.js("return [document.documentElement.scrollWidth, innerWidth]") == [375, 375]
    moved = page.js("""
        const box = document.querySelector('#wide .scroll'), head = box.querySelector('tbody th');
        box.scrollLeft = 400;
        const left = head.getBoundingClientRect().left - box.getBoundingClientRect().left;
        return [box.scrollLeft, left, head.getBoundingClientRect().width < 200]""")
    assert moved == [400, 0, True]


CONTRASTS = """
const parse = c => c.match(/[\\d.]+/g).map(Number);
const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const light = c => parse(c).slice(0, 3).map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const ratio = (a, b) => (Math.max(light(a), light(b)) + .05) / (Math.min(light(a), light(b)) + .05);
const ground = e => {
  for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor, alpha = parse(c)[3];
    if (alpha === undefined || alpha > 0) return c;
  }
};
const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const e = walker.currentNode.parentElement, style = getComputedStyle(e);
  if (!walker.currentNode.data.trim() || !e.checkVisibility() || e.closest('script, style')) continue;
  const ink = e.closest('svg') ? style.fill : style.color;
  const grounds = e.closest('.heatmap-label') ? ['below', 'low', 'high'].map(end => color(`heat-${end}`)) : [ground(e)];
  for (const g of grounds) found.push([ratio(ink, g), walker.currentNode.data.trim(), ink, g]);
}
return found
"""


def test_dark_and_light_differ_and_all_text_stands_out(page, file):
    grounds = {}
    for scheme in ("light", "dark"):
        page.open(file, scheme=scheme).js("document.querySelectorAll('details').forEach(d => d.open = true)")
        for toggled in (False, True):
            if toggled:
                page.js("document.getElementById('theme').click()")
            found = page.js(CONTRASTS)
            assert len(found) > 100 and {"Recall@5 in %", "rnn 9", "Simulated data."} <= {text for _, text, *_ in found}
            assert [entry for entry in found if entry[0] < 4.5] == []
            grounds[scheme, toggled] = page.js("""
                const line = document.querySelector('#chart-curves path.js-line[style*="stroke-width: 2"]');
                return [getComputedStyle(document.body).backgroundColor, getComputedStyle(line).stroke]""")
    assert grounds["light", False] == grounds["dark", True] and grounds["light", True] == grounds["dark", False]
    assert all(a != b for a, b in zip(grounds["light", False], grounds["dark", False], strict=True))


def test_print_hides_controls_shows_all_and_leaves_the_page_as_it_was(page, file):
    state = "return [document.documentElement.dataset.theme, document.querySelectorAll('details[open]').length]"
    page.open(file, scheme="dark", media="print")
    before = page.js(state)
    assert before[0] == "dark"
    assert page.js("return getComputedStyle(document.documentElement).colorScheme") == "light"
    shown = "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility()).length"
    assert page.js(shown, "#theme, nav, .skip") == 0 and page.js(shown, "section") == 4
    page.js("dispatchEvent(new Event('beforeprint'))")
    assert page.js("return document.querySelectorAll('details:not([open])').length") == 0
    assert page.js(state)[0] == "light"
    overflows = "return [...document.querySelectorAll('.scroll')].map(e => getComputedStyle(e).overflow)"
    assert set(page.js(overflows)) == {"visible"} and min(entry[0] for entry in page.js(CONTRASTS)) >= 4.5
    page.js("dispatchEvent(new Event('afterprint'))")
    assert page.js(state) == before
    page.open(file, scheme="dark")
    printed = base64.b64decode(page.command("Page.printToPDF", printBackground=False)["data"])
    assert printed.startswith(b"%PDF") and page.js(state) == before and page.complaints() == []


EVIL = (
    "<script>window.owned = 1</script>",
    "</script><img src=x onerror='window.owned = 1'>",
    "\"'><b>bold</b> & {{ 7 * 7 }} %{x} $x^2$ <!--",
    "<a href='https://example.org/'>here</a><br>",
)


def test_texts_of_the_data_stay_texts(page, tmp_path):
    rows = tuple(Row(text, (Figure(0.1 * i, paper=0.2),), f"p{text}") for i, text in enumerate(EVIL))
    columns = (Column(EVIL[0], group=EVIL[2]),)
    views = [
        Table("evil", EVIL[1], columns, rows, heading=EVIL[0], notes=EVIL),
        LineChart(
            "lines", EVIL[0], EVIL[1], EVIL[2], tuple(Series(text, (1, 2), (0.1, 0.2)) for text in EVIL), notes=EVIL
        ),
        HeatMap("heat", EVIL[0], EVIL, EVIL, tuple((0.1, 0.2, 0.3, 0.4) for _ in EVIL), notes=EVIL),
    ]
    manifest = {**MANIFEST, "title": EVIL[1], "notes": list(EVIL), **{text: {text: [{text: text}]} for text in EVIL}}
    page.open(file := report(tmp_path / "run", views, manifest))
    assert page.texts("h1") == [EVIL[1]] and page.texts(".caveats li") == list(EVIL)
    assert page.js("return [...document.querySelectorAll('.results tbody th')].map(e => e.dataset.value)") == list(EVIL)
    assert page.texts(".results .groups th") == [EVIL[2]] and page.texts(".legend button span") == list(EVIL)
    # Plotly reads some HTML; what it shows is the text.
    assert page.texts("#chart-heat .ytick text") == list(EVIL)
    # Headings are broken into lines.
    heads = ["".join(head.split()) for head in page.texts("#chart-heat .xtick text")]
    assert heads == ["".join(text.split()) for text in EVIL]
    assert page.texts("#chart-lines .xtitle") == [EVIL[1]] and page.texts("#chart-lines .ytitle") == [f"{EVIL[2]}"]
    page.js("Plotly.Fx.hover('chart-lines', [{curveNumber: 5, pointNumber: 0}])")
    assert page.texts("#chart-lines .hovertext") == [f"{EVIL[2]}{EVIL[1]}: 110.00 %"]
    assert page.js("return document.querySelectorAll('a[href^=http], svg a, img').length") == 0
    assert page.js("return window.owned === undefined")
    assert page.requests() == [file.resolve().as_uri()] and page.complaints() == []


@pytest.mark.parametrize(
    "views",
    [(), VIEWS[1:], (TABLE, HEAT), (TABLE, LINES), (TABLE,), None],
    ids=["none", "no table", "no lines", "no heat map", "table alone", "empty ones"],
)
def test_the_page_does_without_any_view(page, tmp_path, views):
    if views is None:
        views = (
            Table("a", "a", (), ()),
            Table("b", "b", TABLE.columns, ()),
            LineChart("c", "c", "x", "y", ()),
            LineChart("d", "d", "x", "y", (Series("s", (), ()), Series("t", (1,), (None,)))),
            HeatMap("e", "e", (), (), ()),
        )
    file = report(tmp_path / "run", views, {"format": "sessiongym.experiment"})
    page.open(file)
    assert page.texts("h1") == ["run"] and page.texts("section h2") == [view.title for view in views]
    assert page.complaints() == [] and page.requests() == [file.resolve().as_uri()]
    assert (file.stat().st_size > 1_000_000) == any(view in (LINES, HEAT) for view in views)


def test_a_huge_table_keeps_its_headings_in_sight_and_sorts(page, tmp_path):
    columns = tuple(Column(f"Recall@{i}", group=f"Slice {i // 8}") for i in range(40))
    rows = tuple(
        Row(f"model-{r}", tuple(Figure((r * 37 + c) % 61 / 61, 0.0, 1.0) for c in range(40))) for r in range(60)
    )
    page.open(report(tmp_path / "run", [Table("huge", "Huge", columns, rows)]))
    place = page.js("""
        const box = document.querySelector('.scroll'), r = e => e.getBoundingClientRect();
        box.scrollTop = 600; box.scrollLeft = 900;
        const row = document.elementFromPoint(r(box).left + 20, r(box).top + r(box).height / 2).closest('th');
        const head = document.elementFromPoint(r(box).left + r(box).width / 2, r(box).top + 50).closest('th');
        const heads = head.closest('thead') !== null;
        return [box.scrollTop, box.scrollLeft, row.scope, heads, r(box).height <= innerHeight]""")
    assert place == [600, 900, "row", True, True]
    page.js("document.querySelectorAll('.results thead button')[40].click()")
    order = page.js(
        "return [...document.querySelectorAll('.results tbody tr')].map(e => Number(e.cells[40].dataset.value))"
    )
    assert len(order) == 60 and order == sorted(order, reverse=True)


def test_the_head_says_what_was_compared_and_the_foot_everything_else(page, file):
    page.open(file)
    facts = page.texts(".facts div")
    assert [" ".join(fact.split()) for fact in facts] == [
        "models5 against item-knn", "training seeds3", "test events4,321 in 55 sessions", "items77 to choose from",
        "datasmall", "ties countexpected",
    ]  # fmt: skip
    assert page.texts(".caveats li") == MANIFEST["notes"]
    said = " ".join(page.texts("#about")[0].split())
    for text in (
        "cells",
        "8aebff8bd41b2b21108c5ebc",
        "something_new",
        "deep",
        "flagyes",
        "900",
        "Data: what was read",
    ):
        assert text in said
    assert "of other data" in page.texts("#comparison .key")[0]


def test_figures_are_what_plotly_knows():
    from plotly.graph_objects import Figure as PlotlyFigure

    styles = {series.label: i for i, series in enumerate(LINES.series)}
    for figure in (line_figure(LINES, styles), heat_figure(HEAT), heat_figure(SIGNED)):
        PlotlyFigure(figure)
        with pytest.raises(ValueError, match="bogus"):
            PlotlyFigure({**figure, "layout": {**figure["layout"], "bogus": 1}})


def test_equal_runs_make_equal_pages_where_they_are_told_to(tmp_path):
    one, two = report(tmp_path / "run"), write_report(tmp_path / "run", tmp_path / "deep" / "page.html")
    assert one == tmp_path / "run" / "report.html" and two == tmp_path / "deep" / "page.html"
    assert one.read_bytes() == two.read_bytes() and [path.name for path in two.parent.iterdir()] == ["page.html"]


def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path):
    report(run := tmp_path / "run", ())
    for name, text, said in (
        ("views.json", None, r"views\.json: not found"),
        ("views.json", "[", r"views\.json:1: not valid JSON"),
        ("manifest.json", '{"format": "other"}', "begins with 'sessiongym.', found 'other'"),
        ("manifest.json", '{"format": "sessiongym.comparison", "schema": 99}', "schema 99, this version reads up to"),
        ("manifest.json", "[]", r"manifest\.json:1: expected a dict, found a list"),
        ("manifest.json", None, r"manifest\.json: not found"),
    ):
        (run / name).unlink()
        if text is not None:
            (run / name).write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=said) as raised:
            write_report(run, tmp_path / "page.html")
        assert "\n" not in str(raised.value)
        if name == "views.json":
            (run / name).write_text("[]", encoding="utf-8")
        else:
            (run / name).write_text('{"format": "sessiongym.comparison"}', encoding="utf-8")
    with pytest.raises(InputError, match="is a folder"):
        write_report(run, tmp_path)
    assert not (tmp_path / "page.html").exists()
