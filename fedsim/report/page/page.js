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

  function choice(name, options, changed) {
    const select = element("select", { onchange: () => changed(select.value) });
    select.append(...options.map(([value, text]) => element("option", { value }, text)));
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
    const settings = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
    const draw = () => Plotly.react(place, traces(), { ...base, ...layout() }, settings);
    draw();
    return draw;
  }

  function axis(title, log, more = {}) {
    return { title: { text: title }, type: log ? "log" : "linear", gridcolor: "#e6e6e6", zeroline: false, automargin: true, ...more };
  }

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

  function curves() {
    const now = { metric: 0, x: Object.keys(data.axes)[0], logX: false, logY: data.metrics[0].log, bands: true };
    const traces = () => {
      const { curves } = data.metrics[now.metric];
      return data.runs.flatMap((run, index) => {
        const curve = curves[index];
        if (!shown[index] || !curve || !curve.x[now.x]) return [];
        const x = curve.x[now.x];
        const mean = curve.mean.map((m) => (now.logY && m !== null && m <= 0 ? null : m));
        const about = mean.map((m, i) => {
          const half = curve.half && curve.half[i] !== null ? ` ± ${number(curve.half[i])}` : "";
          return `<b>${run.name}</b><br>${data.metrics[now.metric].title}: ${number(m)}${half}<br>round ${curve.x.round[i]}, ${now.x}: ${x[i]}`;
        });
        return [...(now.bands && curve.half ? band(run, x, mean, curve.half, now.logY) : []), line(run, x, mean, about)];
      });
    };
    const layout = () => {
      const { target, title } = data.metrics[now.metric];
      const goal = target !== null && !(now.logY && target <= 0);
      return {
        xaxis: axis(data.axes[now.x], now.logX, now.logX ? {} : { rangemode: "tozero" }),
        yaxis: axis(title, now.logY),
        shapes: goal ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: target, y1: target, line: { color: "#666", width: 1, dash: "dash" } }] : [],
        annotations: goal ? [{ xref: "paper", x: 1, y: now.logY ? Math.log10(target) : target, text: `target ${target}`, showarrow: false, xanchor: "right", yanchor: "bottom", bgcolor: "#ffffffcc", font: { color: "#555", size: 12 } }] : [],
      };
    };
    const draw = chart("curves", traces, layout);
    const logY = tick("logarithmic metric", now.logY, (on) => { now.logY = on; draw(); });
    document.getElementById("curve-controls").append(
      choice("Metric", data.metrics.map((m, i) => [i, m.title]), (value) => {
        now.metric = Number(value);
        logY.firstChild.checked = now.logY = data.metrics[now.metric].log;
        draw();
      }),
      choice("against", Object.entries(data.axes), (value) => { now.x = value; draw(); }),
      tick("logarithmic cost", now.logX, (on) => { now.logX = on; draw(); }),
      logY,
      tick("intervals", now.bands, (on) => { now.bands = on; draw(); }),
    );
    return draw;
  }

  function clients() {
    let now = 0;
    const traces = () => data.runs.flatMap((run, index) => {
      const curve = data.clients[now].curves[index];
      if (!shown[index] || !curve) return [];
      const about = curve.value.map((v, i) => `<b>${run.name}</b><br>${number(curve.share[i])} % of clients: ${number(v)} or less`);
      return [line(run, curve.share, curve.value, about)];
    });
    const layout = () => ({
      xaxis: axis("% of clients, from the lowest value", false, { range: [0, 100] }), yaxis: axis(data.clients[now].title, false),
    });
    const draw = chart("clients", traces, layout);
    document.getElementById("client-controls").append(
      choice("Metric", data.clients.map((m, i) => [i, m.title]), (value) => { now = Number(value); draw(); }),
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
  legend(draws);
  document.querySelectorAll("table.sortable").forEach(sortable);
  if (data.live) setInterval(() => update(draws), 2000);
})();
