"use strict";
const charts = JSON.parse(document.getElementById("data").textContent);
const tables = ["strategies", "more-columns"].map((id) => document.getElementById(id));
const form = document.querySelector(".filters");
const text = document.getElementById("text");
const more = document.getElementById("more");
const rowsOf = (table) => [...table.tBodies[0].rows].filter((row) => row.dataset.n !== undefined);
const strategies = rowsOf(tables[0]);
const views = [];

function shownNumbers() {
  const wanted = text.value.trim().toLowerCase();
  const unchecked = (name) => new Set([...form.querySelectorAll(`input[name=${name}]:not(:checked)`)].map((box) => box.value));
  const kinds = unchecked("kind"), stored = unchecked("stored");
  const shown = strategies.filter((row) => row.dataset.label.toLowerCase().includes(wanted)
    && !kinds.has(row.dataset.kind) && !stored.has(row.dataset.stored));
  return new Set(shown.map((row) => row.dataset.n));
}

function filter() {
  const shown = shownNumbers();
  const visible = (number) => number === undefined || shown.has(String(number));
  for (const row of document.querySelectorAll("tr[data-n]")) {
    row.hidden = !visible(row.dataset.n) || !visible(row.dataset.m);
  }
  for (const { view, rows } of views) {
    view.data("rows", rows.filter((row) => visible(row.n) && visible(row.m)).map((row) => ({ ...row }))).runAsync();
  }
  document.getElementById("count").textContent = shown.size === strategies.length
    ? `${strategies.length} strategies` : `${shown.size} of ${strategies.length} strategies`;
}

function sortBy(table, head) {
  const descending = head.getAttribute("aria-sort") !== "descending";
  for (const other of document.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const value = (row) => {
    const key = row.cells[head.cellIndex].dataset.value;
    return key === "" ? null : head.dataset.number === undefined ? key : Number(key);
  };
  const order = (a, b) => {
    const one = value(a), two = value(b);
    if (one === null || two === null) return (one === null) - (two === null);
    const found = typeof one === "number" ? one - two : one.localeCompare(two);
    return descending ? -found : found;
  };
  const numbers = rowsOf(table).sort(order).map((row) => row.dataset.n);
  for (const each of tables) {
    const byNumber = new Map(rowsOf(each).map((row) => [row.dataset.n, row]));
    const body = each.tBodies[0], last = body.querySelector(".baseline");
    for (const number of numbers) body.insertBefore(byNumber.get(number), last);
  }
}

async function draw({ name, specification }) {
  const rows = specification.datasets.rows;
  const drawing = document.getElementById(`drawing-${name}`);
  const { view } = await window.vegaEmbed(drawing, specification, {
    actions: false, ast: true, defaultStyle: false, renderer: "svg",
    tooltip: { disableDefaultStyle: true },
  });
  views.push({ view, rows });
  drawing.dataset.drawn = "yes";
}

for (const table of tables) {
  for (const head of table.tHead.rows[0].cells) head.querySelector("button").addEventListener("click", () => sortBy(table, head));
}
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
let wasOpen = false;
window.addEventListener("beforeprint", () => { wasOpen = more.open; more.open = true; });
window.addEventListener("afterprint", () => { more.open = wasOpen; });
Promise.all(charts.map(draw)).then(filter);
