// The interactive part of a report: curves with a choice of metric and axis, clients by percentile, tables that sort.
"use strict";
(() => {
  let data = JSON.parse(document.getElementById("data").textContent);
  const shown = data.runs.map(() => true);

  function element(tag, attributes = {}, ...children) {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children);
    return made;
  }

  function choice(name, options, changed, chosen = options[0][0]) {
    const select = element("select", { onchange: () => changed(select.value) });
    select.append(...options.map(([value, text]) => element("option", { value }, text)));
    select.value = chosen;
    return element("label", {}, `${name} `, select);
  }

  function tick(text, checked, changed) {
    const box = element("input", { type: "checkbox", checked, onchange: () => changed(box.checked) });
    return element("label", {}, box, text);
  }

  function swatch({ color, dash }) {
    const strokes = { solid: "", dash: "7 3", dashdot: "7 2 2 2", dot: "2 2" };
    const line = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    line.setAttribute("width", 28);
    line.setAttribute("height", 10);
    line.innerHTML = `<line x1="0" x2="28" y1="5" y2="5" stroke="${color}" stroke-width="3" stroke-dasharray="${strokes[dash]}"/>`;
    return line;
  }

  // One chart: its controls above it, drawn anew on every change.
  function chart(id, traces, layout) {
    const place = document.getElementById(id);
    const base = {
      margin: { l: 64, r: 16, t: 12, b: 52 }, hovermode: "closest", showlegend: false, font: { family: "system-ui, sans-serif", size: 13 },
    };
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", place.dataset.about);
    const settings = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
    const draw = () => {
      const made = { ...base, ...layout() };
      place.style.height = made.height ? `${made.height}px` : "";
      return Plotly.react(place, traces(), made, settings);
    };
    draw();
    return draw;
  }

  function axis(title, log, more = {}) {
    return { title: { text: title }, type: log ? "log" : "linear", gridcolor: "#e6e6e6", zeroline: false, automargin: true, ...more };
  }

  // A share stays between 0 and 1, however wide an interval over two seeds is.
  const within = (share) => (share ? { autorangeoptions: { clipmin: 0, clipmax: 1 } } : {});

  function line(run, x, y, text) {
    const mode = x.length <= 25 ? "lines+markers" : "lines";
    return {
      x, y, mode, text, hovertemplate: "%{text}<extra></extra>", name: run.label,
      line: { color: run.color, dash: run.dash, width: 2.2 }, marker: { size: 5 },
    };
  }

  // Ends of a band; on a logarithmic axis one that reaches zero ends a hundredth below the mean, which leaves the picture.
  function band(run, x, mean, half, log) {
    const low = mean.map((m, i) => (m === null || half[i] === null ? null : log ? Math.max(m - half[i], m / 100) : m - half[i]));
    const high = mean.map((m, i) => (m === null || half[i] === null ? null : m + half[i]));
    const edge = { mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
    return [{ x, y: low, ...edge }, { x, y: high, ...edge, fill: "tonexty", fillcolor: `${run.color}2e` }];
  }

  function number(value) {
    return value === null ? "diverged" : Number(value).toPrecision(4);
  }

  // Panels of a figure, two or more side by side where there is room; the axes of panel 2 are x2 and y2.
  function panels(id, titles, axes) {
    const columns = Math.max(1, Math.min(3, titles.length, Math.floor(document.getElementById(id).clientWidth / 330)));
    const rows = Math.ceil(titles.length / columns);
    const layout = { grid: { rows, columns, pattern: "independent", xgap: 0.16, ygap: 0.32 }, height: 60 + 240 * rows, annotations: [] };
    titles.forEach((title, panel) => {
      const end = panel ? panel + 1 : "";
      [layout[`xaxis${end}`], layout[`yaxis${end}`]] = axes(panel);
      layout.annotations.push({ text: title, showarrow: false, xref: `x${end} domain`, yref: `y${end} domain`, x: 0, y: 1, xanchor: "left", yanchor: "bottom", font: { size: 13 } });
    });
    return layout;
  }

  const onPanel = (trace, panel) => (panel ? { ...trace, xaxis: `x${panel + 1}`, yaxis: `y${panel + 1}` } : trace);

  function curves() {
    const now = { metric: 0, x: Object.keys(data.axes)[0], logX: false, logY: data.metrics[0].log, bands: true, all: false };
    const one = (metric, logY) => data.runs.flatMap((run, index) => {
      const curve = data.metrics[metric].curves[index];
      if (!shown[index] || !curve || !curve.x[now.x]) return [];
      const x = curve.x[now.x];
      const mean = curve.mean.map((m) => (logY && m !== null && m <= 0 ? null : m));
      const about = mean.map((m, i) => {
        const half = curve.half && curve.half[i] !== null ? ` ± ${number(curve.half[i])}` : "";
        return `<b>${run.name}</b><br>${data.metrics[metric].title}: ${number(m)}${half}<br>round ${curve.x.round[i]}, ${now.x}: ${x[i]}`;
      });
      return [...(now.bands && curve.half ? band(run, x, mean, curve.half, logY) : []), line(run, x, mean, about)];
    });
    const traces = () => {
      if (!now.all) return one(now.metric, now.logY);
      return data.metrics.flatMap((m, panel) => one(panel, m.log).map((trace) => onPanel(trace, panel)));
    };
    const layout = () => {
      const across = now.logX ? {} : { rangemode: "tozero" };
      if (now.all) return panels("curves", data.metrics.map((m) => m.title), (panel) => [axis("", now.logX, across), axis("", data.metrics[panel].log, within(data.metrics[panel].share))]);
      const { target, title } = data.metrics[now.metric];
      const goal = target !== null && !(now.logY && target <= 0);
      return {
        xaxis: axis(data.axes[now.x], now.logX, across),
        yaxis: axis(title, now.logY, within(data.metrics[now.metric].share)),
        shapes: goal ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: target, y1: target, line: { color: "#666", width: 1, dash: "dash" } }] : [],
        annotations: goal ? [{ xref: "paper", x: 1, y: now.logY ? Math.log10(target) : target, text: `target ${target}`, showarrow: false, xanchor: "right", yanchor: "bottom", bgcolor: "#ffffffcc", font: { color: "#555", size: 12 } }] : [],
      };
    };
    const draw = chart("curves", traces, layout);
    const logY = tick("logarithmic metric", now.logY, (on) => { now.logY = on; draw(); });
    document.getElementById("curves-controls").append(
      choice("Metric", data.metrics.map((m, i) => [i, m.title]), (value) => {
        now.metric = Number(value);
        logY.firstChild.checked = now.logY = data.metrics[now.metric].log;
        draw();
      }),
      choice("against", Object.entries(data.axes), (value) => { now.x = value; draw(); }),
      tick("logarithmic cost", now.logX, (on) => { now.logX = on; draw(); }),
      logY,
      tick("intervals", now.bands, (on) => { now.bands = on; draw(); }),
      ...(data.metrics.length > 1 ? [tick("all metrics side by side", now.all, (on) => { now.all = on; draw(); })] : []),
    );
    return draw;
  }

  const VIEWS = {
    percentiles: "sorted, at the end", ribbons: "quantiles by round", each: "one by one, at the end",
  };

  // Quantiles over clients: the inner 80 % and 50 % as bands, and the median.
  function ribbon(run, { x, quantiles }) {
    const edge = { x, mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
    const bands = [[0, 4, "26"], [1, 3, "4d"]].flatMap(([low, high, alpha]) => [
      { ...edge, y: quantiles[low] }, { ...edge, y: quantiles[high], fill: "tonexty", fillcolor: run.color + alpha },
    ]);
    const about = x.map((round, i) => `<b>${run.name}</b><br>round ${round}: median ${number(quantiles[2][i])}<br>80 % of clients: ${number(quantiles[0][i])} to ${number(quantiles[4][i])}`);
    return [...bands, line(run, x, quantiles[2], about)];
  }

  function clients() {
    const now = { metric: 0, view: "percentiles" };
    const there = () => data.runs.flatMap((run, index) => (shown[index] && data.clients[now.metric].curves[index] ? [[run, data.clients[now.metric].curves[index]]] : []));
    const traces = () => there().flatMap(([run, curve], panel) => {
      if (now.view === "ribbons") return ribbon(run, curve.ribbon).map((trace) => onPanel(trace, panel));
      if (now.view === "each") {
        const text = curve.each.client.map((name, i) => `<b>${run.name}</b><br>client ${name}: ${number(curve.each.value[i])}`);
        return [{ ...line(run, curve.each.client, curve.each.value, text), mode: "markers", marker: { size: 6, color: run.color } }];
      }
      const about = curve.value.map((v, i) => `<b>${run.name}</b><br>${number(curve.share[i])} % of clients: ${number(v)} or less`);
      return [line(run, curve.share, curve.value, about)];
    });
    const layout = () => {
      const { title } = data.clients[now.metric];
      if (now.view === "ribbons") return panels("clients", there().map(([run]) => run.name), (panel) => [axis("", false), axis("", false, panel ? { matches: "y" } : {})]);
      const across = now.view === "each" ? axis("client", false) : axis("% of clients, from the lowest value", false, { range: [0, 100] });
      return { xaxis: across, yaxis: axis(title, false) };
    };
    const draw = chart("clients", traces, layout);
    document.getElementById("clients-controls").append(
      choice("Metric", data.clients.map((m, i) => [i, m.title]), (value) => { now.metric = Number(value); draw(); }),
      choice("shown", Object.entries(VIEWS), (value) => { now.view = value; draw(); }),
    );
    return draw;
  }

  // Final values against what runs cost, and the front of those that no run dominates.
  function pareto() {
    const now = { x: Object.keys(data.pareto.costs).includes("megabytes") ? "megabytes" : Object.keys(data.pareto.costs)[0], logX: false };
    const traces = () => {
      const { costs, value, half, front, title } = data.pareto;
      const points = data.runs.flatMap((run, index) => (!shown[index] || costs[now.x][index] === null ? [] : [{
        x: [costs[now.x][index]], y: [value[index]], mode: "markers", name: run.label,
        error_y: half ? { array: [half[index]], color: run.color, thickness: 1.2 } : {},
        marker: { size: 11, color: run.color, line: { width: 1.5, color: front[now.x].includes(index) ? "#111" : "#fff" } },
        text: [`<b>${run.name}</b><br>${title}: ${number(value[index])}<br>${now.x}: ${costs[now.x][index]}`], hovertemplate: "%{text}<extra></extra>",
      }]));
      const ends = front[now.x].map((index) => [costs[now.x][index], value[index]]);
      const line = { x: ends.map(([x]) => x), y: ends.map(([, y]) => y), mode: "lines", line: { shape: "hv", dash: "dash", width: 1.3, color: "#666" }, hoverinfo: "skip" };
      return [line, ...points];
    };
    const layout = () => ({ xaxis: axis(data.axes[now.x], now.logX), yaxis: axis(data.pareto.title, false, within(data.pareto.share)) });
    const draw = chart("pareto", traces, layout);
    document.getElementById("pareto-controls").append(
      choice("against", Object.keys(data.pareto.costs).map((name) => [name, data.axes[name]]), (value) => { now.x = value; draw(); }, now.x),
      tick("logarithmic cost", now.logX, (on) => { now.logX = on; draw(); }),
    );
    return draw;
  }

  // Final values over two settings; the best one where several runs have the same two.
  function sweep() {
    const names = Object.keys(data.sweep);
    const now = { down: names[0], across: names[1] };
    const traces = () => {
      const { value, lower, title } = data.pareto;
      const [down, across] = [data.sweep[now.down], data.sweep[now.across]];
      const z = down.values.map(() => across.values.map(() => null));
      value.forEach((v, run) => {
        const [row, column] = [down.at[run], across.at[run]];
        const old = z[row][column];
        if (shown[run] && v !== null && (old === null || (lower ? v < old : v > old))) z[row][column] = v;
      });
      return [{
        type: "heatmap", z, x: across.values, y: down.values, colorscale: "Viridis", reversescale: lower, xgap: 1, ygap: 1,
        texttemplate: "%{z:.3g}", hovertemplate: `${now.down}: %{y}<br>${now.across}: %{x}<br>${title}: %{z:.4g}<extra></extra>`,
      }];
    };
    const layout = () => ({ xaxis: axis(now.across, false, { type: "category" }), yaxis: axis(now.down, false, { type: "category" }) });
    const draw = chart("sweep", traces, layout);
    const options = names.map((name) => [name, name]);
    document.getElementById("sweep-controls").append(
      choice("vertical", options, (value) => { now.down = value; draw(); }, now.down),
      choice("horizontal", options, (value) => { now.across = value; draw(); }, now.across),
    );
    return draw;
  }

  function legend(draws) {
    const boxes = data.runs.map((run, index) => {
      const label = tick("", true, (on) => { shown[index] = on; draws.forEach((draw) => draw()); });
      label.append(swatch(run), run.label);
      return label;
    });
    document.getElementById("runs").append(...boxes);
  }

  // A cell counts by its first number; those without one come last.
  function key(row, column) {
    const text = row.cells[column].textContent;
    const found = text.replaceAll(",", "").replaceAll("−", "-").match(/^[+-]?\d+(\.\d+)?(e[+-]?\d+)?/i);
    return column === 0 && !found ? text : found ? Number(found[0]) : Infinity;
  }

  function sortable(table) {
    const titles = [...table.tHead.rows[0].cells];
    titles.forEach((title, column) => {
      const button = element("button", { type: "button", title: "sort" }, ...title.childNodes);
      title.append(button);
      button.onclick = () => {
        const up = title.getAttribute("aria-sort") !== "ascending";
        titles.forEach((other) => other.removeAttribute("aria-sort"));
        title.setAttribute("aria-sort", up ? "ascending" : "descending");
        const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1);
        const rows = [...table.tBodies[0].rows].sort((a, b) => {
          const [x, y] = [key(a, column), key(b, column)];
          return x === Infinity || y === Infinity ? Number(x === Infinity) - Number(y === Infinity) : order(x, y);
        });
        table.tBodies[0].append(...rows);
      };
    });
  }

  // A live page asks for new numbers; other runs or metrics than before change its controls, so that it is loaded anew.
  async function update(draws) {
    const answer = await fetch(`data.json${location.search}`).catch(() => null);
    document.body.classList.toggle("stale", !answer || !answer.ok);
    if (!answer || answer.status !== 200) return;
    const fresh = await answer.json();
    const names = (d) => JSON.stringify([d.runs, ...[d.metrics, d.clients].map((list) => list.map((m) => m.title))]);
    if (names(fresh) !== names(data)) return location.reload();
    data = fresh;
    document.getElementById("summary").innerHTML = data.summary;
    document.querySelectorAll("#summary table.sortable").forEach(sortable);
    draws.forEach((draw) => draw());
  }

  const draws = data.metrics.length ? [curves()] : [];
  if (data.clients.length) draws.push(clients());
  if (data.pareto && data.runs.length > 1) draws.push(pareto());
  if (data.sweep && document.getElementById("sweep")) draws.push(sweep());
  legend(draws);
  document.querySelectorAll("table.sortable").forEach(sortable);
  // Paper is narrower than most windows.
  const charts = [...document.querySelectorAll(".chart")];
  window.addEventListener("beforeprint", () => charts.forEach((place) => Plotly.relayout(place, { width: 660 })));
  window.addEventListener("afterprint", () => charts.forEach((place) => { Plotly.relayout(place, { width: null, autosize: true }); }));
  let waiting;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => draws.forEach((draw) => draw()), 200);
  });
  if (data.live) setInterval(() => update(draws), 2000);
})();
