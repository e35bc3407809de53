
// Board of runs: filter, curves, and a reload that keeps what was chosen.
{
  const board = JSON.parse(document.getElementById("board").textContent);
  const by = (id) => document.getElementById(id);
  const rows = [...document.querySelectorAll("tr[data-run]")].sort((a, b) => a.dataset.run - b.dataset.run);
  const boxes = rows.map((row) => row.querySelector("input"));
  const table = document.querySelector("table.runs");
  const frame = { left: 44, right: 334, top: 8, bottom: 176 };
  const key = `vigil-board ${location.pathname}`;
  const recall = () => { try { return JSON.parse(sessionStorage.getItem(key)) ?? {}; } catch { return {}; } };
  const kept = recall();
  let lit = null;
  let touched = 0;

  const sums = (differences) => { let sum = 0; return differences.map((difference) => sum += difference); };
  const interpolate = (steps, values) => (step) => {
    let low = 0, high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle + 1; else high = middle;
    }
    if (!low || steps[low] <= step) return values[low];
    return values[low - 1] + (step - steps[low - 1]) / (steps[low] - steps[low - 1]) * (values[low] - values[low - 1]);
  };
  // Each axis: from a run to the function from its steps to places on the axis; none if its files do not tell.
  const clocks = board.clocks.map(([differences, hours]) => hours.length && interpolate(sums(differences), hours));
  const epochs = board.epochs.map((ends) => ends.length && interpolate([0, ...ends], [0, ...ends.map((_, i) => i + 1)]));
  const axes = {
    step: { of: () => (step) => step, name: (x) => `step ${x.toLocaleString("en")}` },
    epoch: { of: (run) => epochs[run], name: (x, step) => `epoch ${number(x)}, step ${step.toLocaleString("en")}` },
    hours: { of: (run) => clocks[run], name: (x, step) => `${number(x)} h, step ${step.toLocaleString("en")}` },
  };
  // Curves of each chart on the axis that is chosen: points of place, value and step.
  const placed = {};
  const curves = () => placed[by("axis").value] ??= board.charts.map(({ curves: all }) => all.flatMap(([run, differences, values]) => {
    const at = axes[by("axis").value].of(run);
    return at ? [{ run, points: sums(differences).map((step, i) => [at(step), values[i], step]) }] : [];
  }));
  const hue = (run) => `--hue:${(run * 137.508 % 360).toFixed(1)}`;
  const number = (v) => String(Number(v.toPrecision(4)));
  const short = (v) => (v >= 1e6 ? `${Number((v / 1e6).toPrecision(3))}M` : v >= 1e4 ? `${Number((v / 1e3).toPrecision(3))}k` : number(v));
  const drawn = (run) => boxes[run].checked && !rows[run].hidden;

  // Exponential moving average, corrected for its start at zero.
  const smooth = (points, keep) => {
    let mean = 0, weight = 0;
    return points.map(([at, v, step]) => {
      mean = keep * mean + (1 - keep) * v;
      weight = keep * weight + (1 - keep);
      return [at, mean / weight, step];
    });
  };
  const ticks = (low, high) => {
    const rough = (high - low) / 4;
    const size = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].find((digit) => digit * size >= rough) * size;
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(10)));
    return found;
  };

  const charts = [...document.querySelectorAll("[data-chart]")].map((figure, place) => {
    const [svg, caption] = [figure.querySelector("svg"), figure.querySelector("figcaption")];
    let shown = [];
    let cursor = null;
    const draw = () => {
      const keep = Number(by("smoothing").value);
      const raw = curves()[place].filter(({ run }) => drawn(run));
      shown = raw.map(({ run, points }) => ({ run, points: keep ? smooth(points, keep) : points }));
      const values = raw.flatMap(({ points }) => points.map(([, v]) => v));
      const last = raw.reduce((most, { points }) => Math.max(most, points.at(-1)[0]), by("axis").value === "step" ? 1 : 0) || 1;
      const least = values.reduce((a, b) => Math.min(a, b), Infinity), most = values.reduce((a, b) => Math.max(a, b), -Infinity);
      const logarithmic = by("logarithmic").checked && least > 0;
      const scale = logarithmic ? Math.log10 : (v) => v;
      let [low, high] = values.length ? [scale(least), scale(most)] : [0, 1];
      if (high - low < 1e-12 * Math.max(Math.abs(high), 1e-300)) [low, high] = [low - (Math.abs(low) / 2 || 0.5), high + (Math.abs(high) / 2 || 0.5)];
      const room = 0.03 * (high - low);
      [low, high] = [low - room, high + room];
      const x = (at) => frame.left + at / last * (frame.right - frame.left);
      const y = (v) => frame.bottom - (scale(v) - low) / (high - low) * (frame.bottom - frame.top);
      const parts = [];
      const powers = logarithmic && Math.floor(high) > Math.ceil(low);
      const marks = powers ? ticks(low, high).filter(Number.isInteger).map((power) => 10 ** power)
        : ticks(low, high).map((v) => (logarithmic ? 10 ** v : v));
      for (const v of marks) {
        const at = y(v).toFixed(1);
        parts.push(element("svg:line", { class: "grid", x1: frame.left, x2: frame.right, y1: at, y2: at }),
          element("svg:text", { x: frame.left - 5, y: Number(at) + 4, "text-anchor": "end" }, v && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e6) ? v.toExponential(Math.abs(v) < 1e-3 ? 0 : 1).replace("+", "") : short(v)));
      }
      for (const tick of ticks(0, last)) {
        const at = x(tick).toFixed(1);
        parts.push(element("svg:line", { class: "grid", x1: at, x2: at, y1: frame.bottom, y2: frame.bottom + 4 }),
          element("svg:text", { x: at, y: frame.bottom + 17, "text-anchor": x(tick) > frame.right - 12 ? "end" : "middle" }, short(tick)));
      }
      const path = (points) => `M${points.map(([at, v]) => `${x(at).toFixed(1)} ${y(v).toFixed(1)}`).join("L")}${points.length === 1 ? "h.1" : ""}`;
      if (keep) parts.push(...raw.map(({ run, points }) => element("svg:path", { class: "raw", style: hue(run), d: path(points) })));
      parts.push(...shown.map(({ run, points }) => element("svg:path", { "data-run": run, class: points.length === 1 ? "alone" : "", style: hue(run), d: path(points), "stroke-linecap": "round" })));
      svg.replaceChildren(...parts);
      svg.setAttribute("aria-label", `${board.charts[place].name} of ${shown.length} runs, over ${by("axis").selectedOptions[0].textContent}, up to ${number(last)}`);
      svg.classList.toggle("many", shown.length > 20);
      Object.assign(svg, { place: { x, y } });
      point(null);
    };
    const point = (at) => {
      cursor = at;
      svg.querySelector("circle")?.remove();
      if (!at) { caption.textContent = `${shown.length} run${shown.length === 1 ? "" : "s"}`; return; }
      const { run, points } = shown[at.curve];
      const [across, v, step] = points[at.point];
      svg.append(element("svg:circle", { style: hue(run), cx: svg.place.x(across), cy: svg.place.y(v), r: 4.5 }));
      caption.replaceChildren(element("bdi", {}, board.names[run]), ` ${axes[by("axis").value].name(across, step)}: ${number(v)}`);
    };
    const nearest = (left, top) => {
      let found = null, least = Infinity;
      shown.forEach(({ points }, curve) => points.forEach(([across, v], place_) => {
        const far = (svg.place.x(across) - left) ** 2 + (svg.place.y(v) - top) ** 2;
        if (far < least) [least, found] = [far, { curve, point: place_ }];
      }));
      return found;
    };
    svg.addEventListener("pointermove", ({ clientX, clientY }) => {
      const box = svg.getBoundingClientRect();
      const at = nearest((clientX - box.left) * 340 / box.width, (clientY - box.top) * 200 / box.height);
      point(at);
      light(at && shown[at.curve].run);
    });
    const leave = () => { point(null); light(null); };
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", (event) => {
      const across = { ArrowLeft: -1, ArrowRight: 1 }[event.key], along = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if ((!across && !along) || !shown.length) return;
      event.preventDefault();
      if (!cursor) point({ curve: 0, point: shown[0].points.length - 1 });
      else if (across) point({ curve: cursor.curve, point: Math.min(Math.max(cursor.point + across, 0), shown[cursor.curve].points.length - 1) });
      else {
        const across_ = shown[cursor.curve].points[cursor.point][0];
        const curve = (cursor.curve + along + shown.length) % shown.length;
        const far = shown[curve].points.map(([other]) => Math.abs(other - across_));
        point({ curve, point: far.indexOf(Math.min(...far)) });
      }
      light(shown[cursor.curve].run);
    });
    return { svg, draw };
  });

  // The run under the pointer or the focus stands out in the table and in all charts.
  function light(run) {
    if (run === lit) return;
    lit = run;
    rows.forEach((row, i) => row.classList.toggle("lit", i === run));
    for (const { svg } of charts) {
      svg.classList.toggle("lighting", run !== null && svg.querySelector(`path[data-run="${run}"]`) !== null);
      each(svg, "path[data-run]", (path) => path.classList.toggle("lit", Number(path.dataset.run) === run));
    }
  }
  rows.forEach((row, run) => {
    for (const event of ["pointerenter", "focusin"]) row.addEventListener(event, () => light(run));
    for (const event of ["pointerleave", "focusout"]) row.addEventListener(event, () => light(null));
  });

  const filter = () => {
    const words = by("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [state, group] = [by("filter-state").value, by("filter-group")?.value ?? ""];
    rows.forEach((row) => {
      const text = row.textContent.toLowerCase();
      row.hidden = !((!state || row.dataset.state === state) && (!group || row.dataset.group === group) && words.every((word) => text.includes(word)));
    });
    const number_ = rows.filter((row) => !row.hidden).length;
    by("shown").textContent = number_ < rows.length ? `${number_} of ${rows.length} runs` : "";
  };
  const measured = [...new Set(board.charts.flatMap(({ curves: all }) => all.map(([run]) => run)))];
  const draw = () => {
    if (!charts.length) return;
    const unknown = measured.filter((run) => drawn(run) && !axes[by("axis").value].of(run)).length;
    const without = `without ${by("axis").selectedOptions[0].textContent} ${unknown === 1 ? "is" : "are"} left out`;
    by("undrawn").textContent = unknown ? `${unknown} run${unknown === 1 ? "" : "s"} ${without}` : "";
    charts.forEach((chart) => chart.draw());
  };
  const keep = () => {
    const headings = table ? [...table.tHead.rows[0].cells] : [];
    const column = headings.findIndex((heading) => heading.hasAttribute("aria-sort"));
    const state = {
      text: by("filter-text")?.value, state: by("filter-state")?.value, group: by("filter-group")?.value,
      hidden: boxes.flatMap((box, run) => (box.checked ? [] : [board.names[run]])),
      sort: column < 0 ? null : [column, headings[column].getAttribute("aria-sort") === "ascending"],
      axis: by("axis")?.value, logarithmic: by("logarithmic")?.checked, smoothing: by("smoothing")?.value,
      scroll: scrollY, focus: document.activeElement?.id,
    };
    try { sessionStorage.setItem(key, JSON.stringify(state)); } catch { /* The page is only looked at. */ }
  };

  if (table) {
    by("filters").hidden = false;
    by("filter-text").value = kept.text ?? "";
    for (const [id, value] of [["filter-state", kept.state], ["filter-group", kept.group]]) {
      const select = by(id);
      if (select && [...select.options].some((option) => option.value === value)) select.value = value;
    }
    const hidden = new Set(kept.hidden ?? []);
    boxes.forEach((box, run) => { box.checked = !hidden.has(board.names[run]); });
    if (kept.sort) sort(table, ...kept.sort);
    const change = () => { filter(); draw(); };
    by("filter-text").addEventListener("input", change);
    for (const id of ["filter-state", "filter-group"]) by(id)?.addEventListener("change", change);
    const set = (checked) => () => { rows.forEach((row, run) => { if (!row.hidden) boxes[run].checked = checked; }); draw(); };
    by("show-all").addEventListener("click", set(true));
    by("show-none").addEventListener("click", set(false));
    boxes.forEach((box) => box.addEventListener("change", draw));
    filter();
  }
  if (charts.length) {
    by("scales").hidden = false;
    for (const option of by("axis").options) option.disabled = !measured.some((run) => axes[option.value].of(run));
    if (kept.axis && !by("axis").querySelector(`[value="${kept.axis}"]`).disabled) by("axis").value = kept.axis;
    by("axis").addEventListener("change", draw);
    by("logarithmic").checked = kept.logarithmic ?? false;
    by("smoothing").value = kept.smoothing ?? 0;
    by("logarithmic").addEventListener("change", draw);
    by("smoothing").addEventListener("input", draw);
    draw();
  }
  if (kept.focus) by(kept.focus)?.focus({ preventScroll: true });
  if (kept.scroll && !location.hash) scrollTo(0, kept.scroll);
  addEventListener("pagehide", keep);

  // Reload while the page is written, but not under the user's hands.
  if (board.refresh) {
    for (const event of ["pointermove", "pointerdown", "keydown", "wheel", "touchmove"]) addEventListener(event, () => { touched = Date.now(); }, { passive: true });
    const look = () => {
      const age = Date.now() / 1000 - board.written;
      if (age > 3 * board.refresh + 30) {
        by("outdated").textContent = "This page is no longer written: vigil runs board --watch has ended. Reload it by hand if it was started again.";
        by("outdated").hidden = false;
        return;
      }
      if (age >= board.refresh && !document.hidden && Date.now() - touched > 3000) { keep(); location.reload(); return; }
      setTimeout(look, 1000);
    };
    setTimeout(look, 1000);
  }
}
