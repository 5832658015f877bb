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
    if (value.columns && Object.values(value.columns).every(Array.isArray)) {
      const names = Object.keys(value.columns);
      const rows = (value.columns[names[0]] || []).map((_, i) =>
        Object.fromEntries(names.map((name) => [name, value.columns[name][i]])));
      return { values: rows };
    }
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, prepared(item, ink)]));
  }

  function config(ink, width) {
    const font = getComputedStyle(document.documentElement).getPropertyValue("--sans");
    return {
      background: null, font, view: { stroke: null },
      axis: {
        labelColor: ink.text, titleColor: ink.text, titleFontWeight: "normal", domainColor: ink.quiet,
        tickColor: ink.quiet, gridColor: ink.rule, gridOpacity: 0.6, labelFontSize: 11, titleFontSize: 11.5,
        labelOverlap: true, labelLimit: 130, titlePadding: 9,
      },
      legend: { labelColor: ink.text, titleColor: ink.text, orient: "bottom", columns: width < 420 ? 2 : 4, labelFontSize: 11 },
      title: { color: ink.text, anchor: "start", frame: "group", fontSize: 12.5, fontWeight: 600, limit: { expr: "width" } },
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
      renderer: "svg", config: config(ink, view.clientWidth), actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
      tooltip: { theme: darkMode.matches ? "dark" : "custom" },
    });
    views.set(figure, result);
    figure.dispatchEvent(new Event("drawn"));
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

  // A chart with the parameter `zoom` gets buttons, which the keyboard reaches; on them, arrow keys move the chart.
  function addZoom(figure) {
    if (!JSON.stringify(specs.get(figure)).includes('"name":"zoom"')) return;
    const group = document.createElement("div");
    group.className = "zoom";
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", `Zoom of: ${specs.get(figure).description}`);
    const change = (lows, highs) => {  // each a shift of a domain's end, as a part of its length
      const view = views.get(figure).view;
      for (const { field, channel } of view.signal("zoom_tuple_fields")) {
        const [low, high] = view.scale(channel).domain();
        const at = channel === "x" ? 0 : 1;
        view.signal(`zoom_${field}`, [low + lows[at] * (high - low), high + highs[at] * (high - low)]);
      }
      view.runAsync();
    };
    const reset = () => {
      const view = views.get(figure).view;
      for (const { field } of view.signal("zoom_tuple_fields")) view.signal(`zoom_${field}`, null);
      view.runAsync();
    };
    const zoomIn = () => change([0.15, 0.15], [-0.15, -0.15]);
    const zoomOut = () => change([-0.25, -0.25], [0.25, 0.25]);
    const move = (x, y) => change([x, y], [x, y]);
    for (const [text, label, act] of [["+", "Zoom in", zoomIn], ["−", "Zoom out", zoomOut], ["⟲", "Reset zoom", reset]]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.title = label;
      button.setAttribute("aria-label", label);
      button.addEventListener("click", act);
      group.append(button);
    }
    const keys = {
      ArrowLeft: () => move(-0.1, 0), ArrowRight: () => move(0.1, 0), ArrowUp: () => move(0, 0.1),
      ArrowDown: () => move(0, -0.1), "+": zoomIn, "-": zoomOut, "0": reset,
    };
    group.addEventListener("keydown", (event) => {
      if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
      keys[event.key]();
      event.preventDefault();
    });
    figure.querySelector(".card").prepend(group);
  }

  // A chart with the parameter `picked` gets a slider over its examples: one is marked, and named with its image.
  function addPicker(figure) {
    const { usermeta, layer } = specs.get(figure);
    if (!usermeta?.picker) return;
    const known = layer.find((one) => one.data.columns.example).data.columns;
    const order = known.x.map((_, i) => i).sort((a, b) => known.x[a] - known.x[b]);
    const box = document.createElement("div");
    box.className = "picker";
    const label = document.createElement("label");
    const slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: 0, max: order.length - 1, value: 0, autocomplete: "off" });
    label.append("Example ", slider);
    const output = document.createElement("output");
    const image = known.image ? document.createElement("img") : null;
    if (image) image.className = "pixels";
    box.append(label, ...(image ? [image] : []), output);
    const mark = () => views.get(figure)?.view.signal("picked", order[slider.value]).runAsync();
    const show = () => {
      const i = order[slider.value];
      const at = usermeta.picker.map((name, k) => `${name} ${[known.x, known.y][k][i].toFixed(2).replace("-", "−")}`).join(", ");
      const text = known.class ? `class ${known.class[i]}: ${at}` : at;
      output.textContent = text;
      slider.setAttribute("aria-valuetext", text);
      if (image) Object.assign(image, { src: known.image[i], alt: `the example at ${at}` });
    };
    slider.addEventListener("input", () => { show(); mark(); });
    figure.addEventListener("drawn", mark);
    show();
    figure.querySelector(".card").after(box);
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
    const name = table.tHead.rows[0].cells[index].textContent.trim();
    status.textContent = `Sorted by ${name}, ${ascending ? "ascending" : "descending"}.`;
  }
  const status = document.createElement("p");  // what screen readers are told
  status.className = "unseen";
  status.setAttribute("role", "status");
  document.body.append(status);
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

  // The nats of cells are shown on hover; a box shows all of them.
  function addNats(table) {
    if (!table.querySelector("[data-nats]")) return;
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.autocomplete = "off";
    label.append(box, " Show the nats of each cell");
    box.addEventListener("change", () => table.classList.toggle("with-nats", box.checked));
    table.closest(".scroll").before(label);
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
  document.querySelectorAll("table.cells").forEach(addNats);
  document.querySelectorAll(".frames").forEach(connectSlider);
  const figures = [...document.querySelectorAll("figure.chart")];
  for (const figure of figures) specs.set(figure, JSON.parse(figure.querySelector("script").textContent));
  figures.forEach(addZoom);
  figures.forEach(addPicker);
  document.querySelectorAll("[data-group]").forEach(connect);
  if (figures.length) {
    darkMode.addEventListener("change", () => drawAll(figures));
    drawAll(figures).then(() => { document.documentElement.dataset.ready = "yes"; });
  } else document.documentElement.dataset.ready = "yes";
})();
