// Uses the page as a reader would, and tells the frame around it what it has found.
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const lines = (id = "curves") => all(`#${id} .scatterlayer .trace path.js-line`).length;
const change = (element, value) => { element.value = value; element.onchange(); };
const found = { errors, lines: lines(), title: document.querySelector("#curves .ytitle").textContent };
const [metric, cost] = all("#curves-controls select");
const boxes = all("#curves-controls input");
document.querySelector("#runs input").click();
found.hidden = lines();
boxes[2].click();
found.bare = lines();
boxes[3].click();
found.panels = all("#curves .subplot.xy, #curves .subplot[class*=x2y2]").length;
found.titles = all("#curves .annotation-text").map((text) => text.textContent);
boxes[3].click();
change(metric, 1);
change(cost, "megabytes");
found.other = ["y", "x"].map((name) => document.querySelector(`#curves .${name}title`).textContent);
boxes[1].click();
found.ticks = all("#curves .ytick").length;
document.querySelector("#runs input").click();
const [, view] = all("#clients-controls select");
found.clients = ["percentiles", "ribbons", "each"].map((name) => {
  change(view, name);
  return [lines("clients"), all("#clients .scatterlayer path.point").length];
});
found.points = all("#pareto .scatterlayer path.point").length;
found.cells = all("#sweep .heatmaplayer image").length;
change(all("#sweep-controls select")[0], "local.epochs");
const table = document.querySelector("table.sortable");
const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
all("th button", table)[2].click();
found.up = names();
all("th button", table)[2].click();
found.down = names();
const used = all("#runs input, .controls select, .controls input, th button, summary");
found.focusable = used.every((element) => element.tabIndex === 0 || element.tagName === "SUMMARY");
found.named = all("select, input").every((element) => element.closest("label").textContent.trim()) && all(".chart").every((chart) => chart.ariaLabel);
found.fits = document.documentElement.scrollWidth <= window.innerWidth;
found.width = window.innerWidth;
const luminance = (color) => color.match(/[\d.]+/g).slice(0, 3).map((v) => v / 255)
  .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const color = getComputedStyle(at).backgroundColor;
    if (!color.endsWith(", 0)")) return color;
  }
  return "rgb(255, 255, 255)";
};
const texts = all("body *").filter((e) => !e.closest("svg, noscript, script, .modebar") && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
found.faint = texts.map((e) => [e.textContent.trim().slice(0, 30), [luminance(getComputedStyle(e).color), luminance(ground(e))].sort((a, b) => b - a)])
  .filter(([, [light, dark]]) => (light + 0.05) / (dark + 0.05) < 4.5).map(([text]) => text);
found.checked = texts.length;
window.dispatchEvent(new Event("beforeprint"));
found.printed = Math.max(...all(".chart .main-svg").map((svg) => svg.getBoundingClientRect().width));
window.dispatchEvent(new Event("afterprint"));
parent.postMessage(JSON.stringify(found), "*");
