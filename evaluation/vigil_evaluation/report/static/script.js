"use strict";
const each = (root, selector, act) => root.querySelectorAll(selector).forEach(act);
const percent = (v) => { const p = 100 * v; return `${p.toFixed(p && Math.abs(p) < 0.95 ? 2 : 1)}%`; };
const styled = (v, style) => (style === "percent" ? percent(v) : v.toFixed(3));
const counted = (n) => Math.round(n).toLocaleString("en");
const element = (name, attributes = {}, ...children) => {
  const made = document.createElementNS(name.startsWith("svg:") ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml", name.replace("svg:", ""));
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

// Sort a table by the clicked column; cells without a value stay last.
function sort(table, column, rising) {
  const heading = table.tHead.rows[0].cells[column];
  const key = (row) => row.cells[column].dataset.value ?? "";
  const numeric = heading.classList.contains("number");
  const compare = (a, b) => {
    const [left, right] = [key(a), key(b)];
    if (left === "" || right === "") return (left === "") - (right === "");
    const order = numeric ? Number(left) - Number(right) : left.localeCompare(right);
    return rising ? order : -order;
  };
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}
each(document, "table.sortable", (table) => {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    heading.querySelector("button")?.addEventListener("click", () => sort(table, column, heading.getAttribute("aria-sort") !== "ascending"));
  });
});

// Show the element that belongs to the selected option.
each(document, "select[data-chooses]", (select) => {
  const all = [...document.querySelectorAll("[data-of]")].filter((one) => one.dataset.of === select.dataset.chooses);
  const show = () => all.forEach((one) => { one.hidden = one.dataset.choice !== select.value; });
  select.addEventListener("change", show);
  select.parentElement.hidden = select.options.length < 2;
  show();
});

// Threshold explorer: the page holds exact counts of every candidate; nothing is interpolated.
each(document, "[data-explorer]", (box) => {
  const data = JSON.parse(box.dataset.explorer);
  const [number, slider, output] = [box.querySelector("[type=number]"), box.querySelector("[type=range]"), box.querySelector("output")];
  const chart = { left: 40, right: 310, bottom: 180, top: 10 };
  const across = (v) => chart.left + v * (chart.right - chart.left);
  const up = (v) => chart.bottom - v * (chart.bottom - chart.top);
  const share = (name, part, total) => element("div", {}, element("dt", {}, name),
    element("dd", {}, element("b", {}, total ? percent(part / total) : "–"), ` ${counted(part)} of ${counted(total)}`));
  const show = (place) => {
    const [threshold, truePositives, falsePositives, flagged] = ["threshold", "true_positives", "false_positives", "flagged"].map((name) => data[name][place]);
    const numbers = {
      threshold, precision: truePositives + falsePositives ? truePositives / (truePositives + falsePositives) : null,
      recall: data.positives ? truePositives / data.positives : null, fpr: data.negatives ? falsePositives / data.negatives : null,
    };
    slider.value = place;
    slider.setAttribute("aria-valuetext", `threshold ${Number(threshold.toPrecision(4))}`);
    number.value = Number(threshold.toPrecision(4));
    output.replaceChildren(element("dl", {}, share("Precision", truePositives, truePositives + falsePositives), share("Recall", truePositives, data.positives),
      share("False-positive rate", falsePositives, data.negatives), share("Items flagged", flagged, data.items),
      share("Positives missed", data.positives - truePositives, data.positives)));
    each(box, "svg .candidate", (mark) => {
      const [x, y] = [numbers[mark.dataset.across], numbers[mark.dataset.up]];
      const shown = place !== data.current && x !== null && y !== null;
      mark.setAttribute("visibility", shown ? "visible" : "hidden");
      if (!shown) return;
      const at = across(mark.dataset.across === "fpr" ? (x > 0 ? Math.max(1 + Math.log10(x) / 4, 0) : 0) : x);
      for (const name of mark.tagName === "line" ? ["x1", "x2"] : ["cx"]) mark.setAttribute(name, at);
      if (mark.tagName !== "line") mark.setAttribute("cy", up(y));
    });
  };
  const nearest = (value) => data.threshold.reduce((best, t, i) => (Math.abs(t - value) < Math.abs(data.threshold[best] - value) ? i : best), 0);
  slider.addEventListener("input", () => show(Number(slider.value)));
  number.addEventListener("change", () => show(number.value === "" ? data.current : nearest(Number(number.value))));
  box.querySelector("[data-reset]").addEventListener("click", () => show(data.current));
  box.querySelector(".controls").hidden = false;
  box.querySelector("details.points").open = false;
  show(data.current);
});

// Slices: another metric or label in the same rows.
each(document, "[data-slices]", (box) => {
  const data = JSON.parse(box.dataset.slices);
  const [table, metrics, labels] = [box.querySelector("table"), box.querySelector("[data-pick=metric]"), box.querySelector("[data-pick=label]")];
  const rows = [...table.tBodies[0].rows];
  const show = () => {
    const [metric, label] = [data.metrics[metrics.value], Number(labels.value)];
    const ticks = metric.ticks;
    const place = (v) => `${(100 * Math.min(Math.max((v - ticks[0]) / (ticks.at(-1) - ticks[0]), 0), 1)).toFixed(2)}%`;
    table.tHead.rows[0].cells[3].querySelector("bdi").textContent = metric.name;
    table.tHead.querySelector(".ticks").replaceChildren(...ticks.map((t) => element("i", { style: `left:${place(t)}` },
      metric.style === "percent" ? `${Number((100 * t).toFixed(4))}%` : String(t))));
    rows.forEach((row, i) => {
      const [v, low, high, mean] = metric.cells[label][i];
      const [known, positive] = label ? data.counts[label - 1][i] : [data.known[i], null];
      const few = metric.all_items ? data.items[i] < data.few : label ? Math.min(positive, known - positive) < data.few : known < data.few;
      const [support, cell, plot] = [row.cells[2], row.cells[3], row.cells[4]];
      support.dataset.value = metric.all_items ? data.items[i] : mean ?? known;
      support.querySelector(".value").classList.toggle("few", few);
      support.querySelector(".value").textContent = metric.all_items ? `${counted(data.items[i])} items` : label ? `${counted(known)} known, ${counted(positive)} positive`
        : mean === undefined ? `${counted(known)} known` : `mean of ${mean} of ${data.labels.length - 1} labels`;
      cell.dataset.value = v ?? "";
      cell.dataset.label = metric.name;
      const between = low == null ? [] : [element("span", { class: "interval" }, element("span", { class: "visually-hidden" }, "interval "), `${styled(low, metric.style)}–${styled(high, metric.style)}`)];
      const dash = element("span", { class: "none", title: "not defined, or too few" }, element("span", { "aria-hidden": "true" }, "–"), element("span", { class: "visually-hidden" }, "not defined"));
      cell.replaceChildren(element("span", { class: "value" }, v === null ? dash : styled(v, metric.style)), " ", ...between);
      const drawn = [];
      const overall = metric.overall[label];
      if (overall !== null) drawn.push(element("svg:line", { class: "reference", x1: place(overall), x2: place(overall), y1: 0, y2: "100%" }));
      if (low != null) drawn.push(element("svg:line", { class: "range", x1: place(low), x2: place(high), y1: "50%", y2: "50%" }));
      if (v !== null) drawn.push(element("svg:circle", { class: few ? "dot hollow" : "dot", cx: place(v), cy: "50%", r: 4.5 }));
      plot.querySelector("svg").replaceChildren(...drawn);
    });
    const sorted = [...table.tHead.rows[0].cells].findIndex((cell) => cell.hasAttribute("aria-sort"));
    if (sorted >= 0) sort(table, sorted, table.tHead.rows[0].cells[sorted].getAttribute("aria-sort") === "ascending");
  };
  metrics.addEventListener("change", show);
  labels.addEventListener("change", show);
  box.querySelector("[data-pick=order]").addEventListener("change", ({ target }) => sort(table, target.value ? 3 : 1, target.value === "low"));
  box.querySelector(".choices").hidden = false;
});

// A long table shows its first rows until the button is clicked.
each(document, "[data-lengthens]", (button) => {
  const table = button.parentElement.querySelector("table");
  table.classList.add("short");
  button.hidden = false;
  button.addEventListener("click", () => { table.classList.remove("short"); button.hidden = true; table.parentElement.focus(); });
});

// Texts are blurred, and hidden from screen readers, until shown by their button.
{
  const sensitive = [...document.querySelectorAll(".sensitive")];
  const all = document.getElementById("reveal");
  const set = (box, shown) => {
    const button = box.querySelector("button");
    button.setAttribute("aria-pressed", shown);
    box.classList.toggle("shown", shown);
    if (shown) box.querySelector(".text").removeAttribute("aria-hidden");
    else box.querySelector(".text").setAttribute("aria-hidden", "true");
    all?.setAttribute("aria-pressed", sensitive.every((one) => one.classList.contains("shown")));
  };
  for (const box of sensitive) {
    const button = box.querySelector("button");
    button.hidden = false;
    button.addEventListener("click", () => set(box, !box.classList.contains("shown")));
  }
  if (all && sensitive.length) {
    all.hidden = false;
    all.addEventListener("click", () => {
      const shown = all.getAttribute("aria-pressed") !== "true";
      for (const box of sensitive) set(box, shown);
    });
  }
}

// Meanings of terms: shown on hover, on focus by keyboard or touch, and closed by Escape.
{
  const tip = element("div", { id: "tip", role: "tooltip", hidden: "" });
  document.body.append(tip);
  let owner = null;
  const close = () => { owner?.removeAttribute("aria-describedby"); owner = null; tip.hidden = true; };
  const place = () => {
    if (!owner) return;
    const [at, size, margin] = [owner.getBoundingClientRect(), tip.getBoundingClientRect(), 8];
    const below = at.bottom + margin + size.height <= innerHeight;
    tip.style.left = `${Math.max(margin, Math.min(at.left, document.documentElement.clientWidth - size.width - margin))}px`;
    tip.style.top = `${below ? at.bottom + margin : Math.max(margin, at.top - margin - size.height)}px`;
  };
  const open = (term) => {
    close();
    owner = term;
    tip.textContent = term.dataset.tip;
    tip.hidden = false;
    term.setAttribute("aria-describedby", "tip");
    place();
  };
  each(document, "[data-tip]", (term) => {
    term.dataset.tip = term.title;
    term.removeAttribute("title");
    term.addEventListener("pointerenter", () => open(term));
    term.addEventListener("pointerleave", () => { if (document.activeElement !== term) close(); });
    term.addEventListener("focus", () => open(term));
    term.addEventListener("blur", close);
  });
  addEventListener("keydown", ({ key }) => { if (key === "Escape") close(); });
  // Focus by keyboard scrolls to the term.
  addEventListener("scroll", place, { capture: true, passive: true });
}

// A link into a closed section opens it; printing opens all.
const unfold = () => {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.closest("details")) { target.closest("details").open = true; target.scrollIntoView(); }
};
addEventListener("hashchange", unfold);
addEventListener("beforeprint", () => {
  each(document, "details", (details) => { details.open = true; });
  each(document, ".short", (table) => table.classList.remove("short"));
});
unfold();
