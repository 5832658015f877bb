"use strict";
// Draws the charts of a page, sorts its tables, and connects its controls. Nothing is loaded.
(() => {
  const THEMES = {
    light: {
      text: "#22252c", quiet: "#6a707c", data: "#9aa1ad", model: "#0072B2", baseline: "#D55E00", second: "#E69F00",
      paper: "#ffffff", rule: "#dedbd2",
      category: ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#222222", "#8a6d00"],
    },
    dark: {
      text: "#e4e3de", quiet: "#9a9fab", data: "#7d8491", model: "#56B4E9", baseline: "#FF8C4A", second: "#F0B429",
      paper: "#1f2229", rule: "#33363f",
      category: ["#56B4E9", "#E69F00", "#2CC295", "#FF8C4A", "#E8A0C8", "#A9C7FF", "#f4f4f4", "#d6c15a"],
    },
  };
  const darkMode = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => THEMES[darkMode.matches ? "dark" : "light"];

  // Give colours their theme, and turn columns into rows.
  function prepared(value, ink) {
    if (typeof value === "string") return value[0] === "$" && value.slice(1) in ink ? ink[value.slice(1)] : value;
    if (Array.isArray(value)) return value.map((item) => prepared(item, ink));
    if (value === null || typeof value !== "object") return value;
    if (value.columns) {
      const names = Object.keys(value.columns);
      const rows = (value.columns[names[0]] || []).map((_, i) =>
        Object.fromEntries(names.map((name) => [name, value.columns[name][i]])));
      return { values: rows };
    }
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, prepared(item, ink)]));
  }

  function config(ink) {
    const font = getComputedStyle(document.documentElement).getPropertyValue("--sans");
    return {
      background: null, font, view: { stroke: null },
      axis: {
        labelColor: ink.text, titleColor: ink.text, titleFontWeight: "normal", domainColor: ink.quiet,
        tickColor: ink.quiet, gridColor: ink.rule, gridOpacity: 0.6, labelFontSize: 11, titleFontSize: 11.5,
        labelOverlap: true, labelLimit: 130,
      },
      legend: { labelColor: ink.text, titleColor: ink.text, orient: "bottom", columns: 3, labelFontSize: 11 },
      title: { color: ink.text, anchor: "start", fontSize: 12.5, fontWeight: 600, limit: 260 },
      text: { color: ink.text, fontSize: 11 },
      range: { category: ink.category, heatmap: { scheme: darkMode.matches ? "viridis" : "blues" } },
    };
  }

  const specs = new Map();
  const views = new Map();

  async function draw(figure) {
    const ink = theme();
    const view = figure.querySelector(".view");
    views.get(figure)?.finalize();
    const result = await vegaEmbed(view, prepared(specs.get(figure), ink), {
      renderer: "svg", config: config(ink), actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
      tooltip: { theme: darkMode.matches ? "dark" : "custom" },
    });
    views.set(figure, result);
    figure.dataset.drawn = Number(figure.dataset.drawn || 0) + 1;
  }

  const drawAll = (figures) => Promise.all(figures.map(draw));

  // Put a value at a path such as `encoding.x` of a specification.
  function put(spec, path, value) {
    const keys = path.split(".");
    const last = keys.pop();
    keys.reduce((at, key) => (at[key] ??= {}), spec)[last] = value;
  }

  // The value of a control is JSON: for each path, what is put there in the charts of the control's group.
  function connect(control) {
    control.addEventListener("change", () => {
      const changes = JSON.parse(control.value);
      const figures = [...specs.keys()].filter((f) => f.dataset.groups.split(" ").includes(control.dataset.group));
      for (const figure of figures)
        for (const [path, value] of Object.entries(changes)) put(specs.get(figure), path, value);
      drawAll(figures);
    });
  }

  // A table is sorted by a click on a heading, a second click reverses it; narrow screens have a list instead.
  const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  function sortKey(cell) {
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = text === "" || text === "–" ? NaN : Number(text);
    return Number.isNaN(number) ? text : number;
  }
  function sortBy(table, index, ascending) {
    const body = table.tBodies[0];
    const missing = (key) => key === "–" || key === "";
    const rows = [...body.rows].map((row) => [sortKey(row.cells[index]), row]);
    rows.sort(([a], [b]) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      const order = typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b);
      return ascending ? order : -order;
    });
    body.append(...rows.map(([, row]) => row));
    [...table.tHead.rows[0].cells].forEach((head, i) =>
      head.setAttribute("aria-sort", i === index ? (ascending ? "ascending" : "descending") : "none"));
  }
  function makeSortable(table) {
    if (table.tBodies[0].rows.length < 2) return;
    const heads = [...table.tHead.rows[0].cells];
    const list = document.createElement("select");
    list.append(new Option("as shown", ""));
    heads.forEach((head, index) => {
      const name = head.textContent.trim();
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sortBy(table, index, head.getAttribute("aria-sort") !== "ascending"));
      list.append(new Option(`${name}, ascending`, `${index} 1`), new Option(`${name}, descending`, `${index} 0`));
    });
    list.addEventListener("change", () => {
      const [index, ascending] = list.value.split(" ").map(Number);
      if (list.value) sortBy(table, index, Boolean(ascending));
    });
    const label = document.createElement("label");
    label.className = "narrow";
    label.append("Sort by ", list);
    table.before(label);
  }

  // A slider shows one of its frames.
  function connectSlider(box) {
    const slider = box.querySelector("input");
    const frames = [...box.querySelectorAll(".frame")];
    const show = () => {
      frames.forEach((frame, i) => { frame.hidden = i !== Number(slider.value); });
      const label = frames[Number(slider.value)].dataset.label;
      slider.setAttribute("aria-valuetext", label);
      box.querySelector("output").textContent = label;
    };
    slider.addEventListener("input", show);
    show();
  }

  document.documentElement.classList.add("alive");
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  document.querySelectorAll(".frames").forEach(connectSlider);
  const figures = [...document.querySelectorAll("figure.chart")];
  for (const figure of figures) specs.set(figure, JSON.parse(figure.querySelector("script").textContent));
  document.querySelectorAll("[data-group]").forEach(connect);
  if (figures.length) {
    darkMode.addEventListener("change", () => drawAll(figures));
    drawAll(figures).then(() => { document.documentElement.dataset.ready = "yes"; });
  } else document.documentElement.dataset.ready = "yes";
})();
