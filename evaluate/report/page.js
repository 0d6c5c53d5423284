"use strict";
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const collator = new Intl.Collator("en", { numeric: true });

/* Colours live in the style sheet alone; charts take them from there, on paper too. */
const probe = document.getElementById("status");

function color(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

function colored(trace, haze) {
  if (trace.meta.part === "cells") {
    const ends = trace.meta.signed ? ["heat-below", "heat-low", "heat-high"] : ["heat-low", "heat-high"];
    const colorscale = ends.map((name, i) => [i / (ends.length - 1), color(name)]);
    return { ...trace, colorscale, textfont: { color: color("ink") } };
  }
  const own = color(`series-${trace.meta.style % 7}`);
  return trace.meta.part === "band"
    ? { ...trace, fillcolor: own.replace("rgb(", "rgba(").replace(")", `, ${haze})`), line: { ...trace.line, color: own } }
    : { ...trace, line: { ...trace.line, color: own }, marker: { ...trace.marker, color: own } };
}

let onPaper = false;

const charts = [...document.querySelectorAll("script[data-figure]")].map((script) => ({
  box: document.getElementById(script.dataset.figure),
  figure: JSON.parse(script.textContent),
  hidden: new Set(),
  chosen: null,
}));

function draw({ box, figure, hidden, chosen }) {
  const axis = { gridcolor: color("rule"), linecolor: color("rule"), tickcolor: color("rule") };
  const shown = new Set(figure.data.map((trace) => trace.meta.series).filter((series) => !hidden.has(series)));
  // Many intervals on top of each other hide the lines; that of the line pointed at is brought out.
  const haze = (trace) => (trace.meta.series === chosen ? 0.25 : 0.13 / Math.max(1, shown.size / 4));
  const data = figure.data.map((trace) => ({
    ...colored(trace, haze(trace)),
    visible: !hidden.has(trace.meta.series),
    opacity: chosen === null || chosen === trace.meta.series ? 1 : 0.15,
  }));
  const layout = {
    ...figure.layout,
    width: onPaper ? Math.min(box.clientWidth, 640) : undefined,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: color("ink") },
    hoverlabel: { bgcolor: color("raised"), bordercolor: color("soft"), font: { color: color("ink") }, align: "left" },
    xaxis: { ...figure.layout.xaxis, ...axis },
    yaxis: { ...figure.layout.yaxis, ...axis },
  };
  return Plotly.react(box, data, layout, { displayModeBar: false, responsive: true });
}

const drawAll = () => charts.forEach(draw);

function legends() {
  for (const chart of charts) {
    for (const button of document.querySelectorAll(`button[data-chart="${chart.box.id}"]`)) {
      const series = Number(button.dataset.series);
      button.parentElement.hidden = false;
      const choose = (chosen) => {
        const now = chart.hidden.has(chosen) ? null : chosen;
        if (now !== chart.chosen) draw(Object.assign(chart, { chosen: now }));
      };
      button.addEventListener("click", () => {
        const shown = chart.hidden.delete(series) || !chart.hidden.add(series);
        button.setAttribute("aria-pressed", shown);
        draw(Object.assign(chart, { chosen: shown ? series : null }));
      });
      for (const [event, value] of [["mouseenter", series], ["focus", series], ["mouseleave", null], ["blur", null]]) {
        button.addEventListener(event, () => choose(value));
      }
    }
  }
}

/* Missing figures stay last, whichever way is up; a third click brings back the order given. */
function sortable(table) {
  const body = table.tBodies[0];
  const given = [...body.rows];
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    const first = button.dataset.first === "up" ? "ascending" : "descending";
    const second = first === "ascending" ? "descending" : "ascending";
    button.addEventListener("click", () => {
      const next = { none: first, [first]: second, [second]: "none" }[head.getAttribute("aria-sort")];
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? next : "none"));
      const sign = next === "ascending" ? 1 : -1;
      const key = (row) => row.cells[column].dataset.value;
      const compare = column === 0 ? collator.compare : (a, b) => a - b;
      const missing = (value) => column > 0 && value === "";
      const order = (a, b) => missing(key(a)) - missing(key(b)) || sign * compare(key(a), key(b));
      body.append(...(next === "none" ? given : [...given].sort(order)));
      const said = next === "none" ? "In the order given" : `Sorted by ${button.textContent}, ${next}`;
      probe.textContent = said;
    });
  });
}

function theme(name) {
  root.dataset.theme = name;
  document.getElementById("theme").textContent = name === "dark" ? "Light" : "Dark";
  document.getElementById("theme").setAttribute("aria-label", `Switch to ${name === "dark" ? "light" : "dark"} colours`);
  drawAll();
}

/* Before the browser counts pages: paper is light and shows everything. Afterwards all is as it was. */
function printable() {
  const before = root.dataset.theme;
  const closed = [...document.querySelectorAll("details:not([open])")];
  onPaper = true;
  closed.forEach((details) => (details.open = true));
  theme("light");
  addEventListener("afterprint", () => {
    onPaper = false;
    closed.forEach((details) => (details.open = false));
    theme(before);
  }, { once: true });
}

legends();
document.querySelectorAll("table.results").forEach(sortable);
const toggle = document.getElementById("theme");
toggle.hidden = false;
toggle.addEventListener("click", () => theme(root.dataset.theme === "dark" ? "light" : "dark"));
dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));
addEventListener("beforeprint", printable);
theme(dark.matches ? "dark" : "light");
