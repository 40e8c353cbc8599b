"use strict";
const pictures = JSON.parse(document.getElementById("data").textContent);
const table = document.getElementById("standings");
const form = document.querySelector(".filters");
const text = document.getElementById("text");
const strategies = [...table.tBodies[0].rows].filter((row) => row.dataset.n !== undefined);
const views = [];

function shownNumbers() {
  const wanted = text.value.trim().toLowerCase();
  const kept = (name) => new Set([...form.querySelectorAll(`input[name=${name}]:checked`)].map((box) => box.value));
  const kinds = kept("kind"), held = kept("held");
  const shown = strategies.filter((row) => row.dataset.label.toLowerCase().includes(wanted)
    && kinds.has(row.dataset.kind) && held.has(row.dataset.held));
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

function sortBy(head) {
  const descending = head.getAttribute("aria-sort") !== "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const value = (row) => {
    const said = row.cells[head.cellIndex].dataset.value;
    return said === "" ? null : head.dataset.number === undefined ? said : Number(said);
  };
  const order = (a, b) => {
    const one = value(a), two = value(b);
    if (one === null || two === null) return (one === null) - (two === null);
    const found = typeof one === "number" ? one - two : one.localeCompare(two);
    return descending ? -found : found;
  };
  const body = table.tBodies[0];
  const last = body.querySelector(".baseline");
  for (const row of [...strategies].sort(order)) body.insertBefore(row, last);
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

for (const head of table.tHead.rows[0].cells) head.querySelector("button").addEventListener("click", () => sortBy(head));
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
Promise.all(pictures.map(draw)).then(filter);
