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

  // the configuration of each implementation with the most tokens a second, within two limits and any pinned settings
  const digits = (value) => Number(value.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 });
  const STEPS = 200;
  for (const picker of document.querySelectorAll(".picker")) {
    const data = JSON.parse(picker.dataset.cases);
    const [timeSize, timeUnit] = data.time, [byteSize, byteUnit] = data.bytes;
    const cases = data.rows.map(([impl, settings, latency, low, high, memory, rate]) =>
      ({ impl, settings, latency, low, high, memory, rate }));
    const body = picker.querySelector("tbody"), said = picker.querySelector(".picked");
    const menus = Array.from(picker.querySelectorAll("select"));
    const slider = (name, size, unit) => {
      const input = picker.querySelector(`input[data-limit="${name}"]`);
      const output = document.getElementById(`${input.id}-value`);
      const values = cases.map((one) => one[name]);
      const least = Math.min(...values), most = Math.max(...values);
      Object.assign(input, { min: 0, max: STEPS, step: 1, value: STEPS });
      return () => { // logarithmic, and at the far right there is no limit
        const share = Number(input.value) / STEPS;
        const limit = share === 1 ? Infinity : least * (most / least) ** share * (1 + 1e-9);
        const text = share === 1 ? "no limit" : `${digits(limit / size)} ${unit}`;
        output.textContent = text;
        input.setAttribute("aria-valuetext", text);
        return limit;
      };
    };
    const latencyLimit = slider("latency", timeSize, timeUnit), memoryLimit = slider("memory", byteSize, byteUnit);
    let before = new Map();
    const choose = () => {
      const maxLatency = latencyLimit(), maxMemory = memoryLimit(), best = new Map();
      for (const one of cases) {
        if (one.latency > maxLatency || one.memory > maxMemory) continue;
        if (menus.some((menu) => menu.value && one.settings[menu.dataset.column] !== menu.value)) continue;
        const known = best.get(one.impl);
        if (!known || one.rate > known.rate || (one.rate === known.rate && one.memory < known.memory)) best.set(one.impl, one);
      }
      const order = data.impls.slice().sort((a, b) => (best.get(b)?.rate ?? -1) - (best.get(a)?.rate ?? -1));
      body.replaceChildren(...order.map((impl) => {
        const row = document.createElement("tr"), one = best.get(impl);
        const add = (text, dim) => {
          const cell = row.insertCell();
          cell.textContent = text;
          if (row.cells.length > 1) cell.className = "n";
          if (dim) cell.append(" ", Object.assign(document.createElement("i"), { textContent: dim }));
          return cell;
        };
        add(impl);
        row.className = one ? "fits" : "none";
        row.classList.toggle("baseline", data.baselines.includes(impl));
        row.classList.toggle("changed", before.size > 0 && before.get(impl) !== one);
        if (!one) {
          const cell = add("nothing within these limits");
          cell.colSpan = data.columns.length + 3;
          cell.className = "";
          return row;
        }
        one.settings.forEach((text) => add(text));
        const bounds = one.low === null || one.high === null ? "" : `${digits(one.low / timeSize)}–${digits(one.high / timeSize)}`;
        add(digits(one.latency / timeSize), bounds);
        add(digits(one.memory / byteSize));
        add(digits(one.rate));
        return row;
      }));
      before = new Map(data.impls.map((impl) => [impl, best.get(impl)]));
      said.textContent = `${best.size} of ${data.impls.length} implementations fit`;
    };
    picker.addEventListener("input", choose);
    picker.hidden = false;
    choose();
  }

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
