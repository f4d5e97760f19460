"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const show = () => {
    const dark = chosen === null ? system.matches : chosen === "dark";
    root.dataset.theme = dark ? "dark" : "light";
    button.textContent = dark ? "Light" : "Dark";
    button.setAttribute("aria-label", `Change to ${dark ? "light" : "dark"} colours`);
  };
  button.hidden = false;
  button.addEventListener("click", () => { chosen = root.dataset.theme === "dark" ? "light" : "dark"; show(); });
  system.addEventListener("change", show);
  show();

  const table = document.getElementById("rows");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const headers = Array.from(table.tHead.rows[0].cells);
  // a cell's number stands first in its text; an empty cell sorts last in both directions
  const key = (row, column, numeric) => {
    const text = row.cells[column].textContent;
    if (!numeric) return text.toLowerCase();
    if (text === "dropless") return Infinity;
    return text === "" ? NaN : parseFloat(text.replace(/,/g, ""));
  };
  headers.forEach((header, column) => {
    const press = header.querySelector("button");
    press.addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      const numeric = header.classList.contains("n");
      const keyed = rows.map((row) => [key(row, column, numeric), row]);
      keyed.sort(([a], [b]) => {
        const noA = a === "" || Number.isNaN(a), noB = b === "" || Number.isNaN(b);
        if (noA || noB) return noA - noB;
        const order = a === b ? 0 : a < b ? -1 : 1;
        return up ? order : -order;
      });
      body.append(...keyed.map(([, row]) => row));
    });
  });

  const words = document.getElementById("filter-words");
  const impl = document.getElementById("filter-impl");
  const status = document.getElementById("filter-status");
  const count = document.getElementById("filter-count");
  const column = (name) => headers.findIndex((header) => header.dataset.name === name);
  const implAt = column("impl"), statusAt = column("status");
  const texts = rows.map((row) => Array.from(row.cells, (cell) => cell.textContent).join(" ").toLowerCase());
  const apply = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      const fits = wanted.every((word) => texts[i].includes(word))
        && (!impl.value || row.cells[implAt].textContent === impl.value)
        && (!status.value || row.cells[statusAt].textContent === status.value);
      row.hidden = !fits;
      shown += fits;
    });
    count.textContent = `${shown} of ${rows.length} rows`;
  };
  document.getElementById("filters").hidden = false;
  [words, impl, status].forEach((control) => control.addEventListener("input", apply));
  apply();
})();
