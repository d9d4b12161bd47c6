// Legend: n a dictionary, by its place in the report; a point is [L0, FVU, error of L0, error of FVU].

const data = JSON.parse(at("data").textContent);
const all = data.dictionaries, hidden = new Set();
const HEIGHT = 270, LEFT = 64, RIGHT = 14, TOP = 10, BOTTOM = 42;

// Numbers

const minus = text => text.replace(/-/g, "−");

function number(x, digits = 4) {
  if (x === null || x === undefined) return "–";
  const size = Math.abs(x);
  if (x !== 0 && (size < 1e-3 || size >= 1e6)) return minus(x.toExponential(2));
  if (size >= 1000) return minus(x.toLocaleString("en-US", { maximumFractionDigits: 1 }));
  return minus(String(Number(x.toPrecision(digits))));
}

const count = x => x === null ? "–" : x.toLocaleString("en-US");
const percent = (x, digits = 3) => x === null ? "–" : `${number(x, digits)} %`;
const even = x => x === null || Number.isInteger(x) || Math.abs(x) < 1e-3 || Math.abs(x) >= 1000 ? number(x) : minus(x.toPrecision(4));
const shown = { number: even, count, percent };
const signed = x => x > 0 ? `+${number(x)}` : number(x);

// Looks

function colourOf(n) {
  const colour = data.colours[n % data.colours.length];
  return isDark() ? `color-mix(in oklab, ${colour} 65%, white)` : colour;
}

const DASHES = ["none", "6 3", "2 2", "8 3 2 3"];
const dashOf = n => DASHES[Math.floor(n / data.colours.length) % DASHES.length];

const OUTLINES = [[[0, 1, 12]], [[1, 1], [-1, 1], [-1, -1], [1, -1]], [[0, 1.3], [1.3, 0], [0, -1.3], [-1.3, 0]],
  [[0, -1.2], [1.2, 1], [-1.2, 1]], [[0, 1.2], [1.2, -1], [-1.2, -1]]];

function marker(n, x, y, radius, ...more) {
  const corners = OUTLINES[n % OUTLINES.length], looks = { fill: colourOf(n), stroke: "var(--card)", "data-of": n };
  if (corners.length === 1) return draw("circle", { cx: x, cy: y, r: radius, ...looks }, ...more);
  const points = corners.map(([a, b]) => `${(x + a * radius).toFixed(1)},${(y + b * radius).toFixed(1)}`).join(" ");
  return draw("polygon", { points, ...looks }, ...more);
}

function swatch(n) {
  return draw("svg", { class: "swatch", viewBox: "0 0 22 12", "aria-hidden": "true" },
    draw("line", { x1: 0, x2: 22, y1: 6, y2: 6, stroke: colourOf(n), "stroke-width": 2, "stroke-dasharray": dashOf(n) }),
    marker(n, 11, 6, 4.5));
}

// Tables

function fill(table, columns, rows) {  // columns: [heading, class]; a heading may be an element
  const head = make("tr", {}, ...columns.map(([name, kind]) => make("th", { scope: "col", class: kind ?? null }, name)));
  table.replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
}

const cell = (text, kind = null) => make("td", { class: kind }, text);
const rowHead = (kind, ...children) => make("th", { scope: "row", class: kind }, ...children);

const nameCell = n => rowHead("name", swatch(n), " ", all[n].name);
const headed = n => [make("span", {}, swatch(n), all[n].name), null];

function showWhich() {
  const names = Object.keys(all[0].facts);
  const rows = all.map((each, n) => make("tr", {}, nameCell(n), ...names.map(name => cell(each.facts[name], "left")),
    make("td", { class: "left quiet", title: `${each.path}, sha256 ${each.sha256}` }, each.sha256.slice(0, 8))));
  fill(at("which"), [["name", "left"], ...names.map(name => [name, "left"]), ["sha256", "left"]], rows);
}

const SIGNS = { lower: "↓ lower", higher: "↑ higher", none: "" };

function showMetrics() {
  const rows = data.groups.flatMap(group => [
    make("tr", {}, make("th", { class: "group", scope: "colgroup", colspan: all.length + 3 }, group.name)),
    ...group.rows.map(metricRow)]);
  const columns = [["metric", "left"], ...all.map((_, n) => headed(n)), ["better", "left"], ["formula", "left words"]];
  fill(at("metrics"), columns, rows);
  at("formulas").lastElementChild.replaceChildren(...data.groups.flatMap(group => group.rows.flatMap(row => [make("dt", {}, row.label), make("dd", {}, row.words)])));
  const goesBy = data.goesBy === null ? "" : `winners in FVU go by “${data.goesBy}”; `;
  const marks = all.length > 1 ? "marked: ahead of every other by two standard errors; " : "";
  at("metrics-note").textContent = `${goesBy}${marks}± standard error over samples`;
}

function metricRow(row) {
  const values = row.values.map((value, n) => {
    const best = row.winner === n, error = row.errors[n];
    const label = best ? { class: "value best", "aria-label": `${shown[row.kind](value)}, the best` } : { class: "value" };
    return make("td", label, shown[row.kind](value), ...(error === null ? [] : [make("small", {}, ` ± ${number(error, 2)}`)]));
  });
  return make("tr", { "data-metric": row.path, title: row.words }, rowHead("left", row.label), ...values,
    cell(SIGNS[row.better], "left sign"), cell(row.words, "words"));
}

function showDifferences() {
  const pairs = [...new Map(data.differences.map(each => [JSON.stringify([each.first, each.second]), each])).entries()];
  at("differences-section").hidden = !pairs.length;
  at("versus").replaceChildren(...pairs.map(([key, each]) => make("option", { value: key }, `${each.first} − ${each.second}`)));
  at("versus").addEventListener("change", showPair);
  if (pairs.length) showPair();
}

function showPair() {
  const [first, second] = JSON.parse(at("versus").value);
  const chosen = data.differences.filter(each => each.first === first && each.second === second);
  const rows = chosen.map(each => make("tr", {}, rowHead("left", each.metric), cell(signed(each.difference), "value"),
    cell(each.error === null ? "–" : `± ${number(each.error, 2)}`, "value"), make("td", {}, bar(each)), cell(outcome(each), "left name")));
  fill(at("differences"), [["metric", "left"], ["difference", null], ["standard error", null], ["in standard errors", null], ["better", "left"]], rows);
}

function outcome(each) {
  if (each.difference === null) return "–";
  if (each.better === "none") return "neither is";
  return each.winner ?? (each.tie ? "tie" : "–");
}

function bar({ difference, error, tie }) {
  if (difference === null || !error) return "";
  const most = 8, errors = Math.max(-most, Math.min(most, difference / error)), x = z => 75 + z * 74 / most;
  const box = { x: Math.min(x(0), x(errors)), width: Math.abs(x(errors) - x(0)), y: 3, height: 8, class: tie ? null : "clear" };
  const bounds = [-2, 2].map(z => draw("line", { x1: x(z), x2: x(z), y1: 0, y2: 14, class: "bound" }));
  return draw("svg", { class: "bar", viewBox: "0 0 150 14", role: "img", "aria-label": `${number(difference / error, 2)} standard errors` },
    draw("rect", box), ...bounds, draw("line", { x1: x(0), x2: x(0), y1: 0, y2: 14 }), draw("title", {}, `${number(difference / error, 2)} standard errors`));
}

// Pairs, weights, words

function showPairs() {
  const n = Number(at("pairs-of").value || 0), { pairs, nPairs, threshold } = all[n];
  at("pairs-note").textContent = `with |cosine| above ${threshold}: ${count(nPairs)}${nPairs > pairs.length ? `, the first ${pairs.length} here` : ""}`;
  const nested = pairs.some(pair => pair[3] !== null);
  const rows = pairs.map(([first, second, cosine, parts]) => make("tr", {}, cell(String(first)), cell(String(second)), cell(minus(cosine.toFixed(4))),
    ...(nested ? [cell(parts === null ? "–" : parts.map(part => part + 1).join(", "))] : [])));
  if (!rows.length) at("pairs").replaceChildren(make("tbody", {}, make("tr", {}, cell("No pair is.", "left"))));
  else fill(at("pairs"), [["feature", null], ["feature", null], ["cosine", null], ...(nested ? [["nested parts, from 1", null]] : [])], rows);
}

function showSpreads() {
  const fields = ["mean", "min", "p01", "p10", "median", "p90", "p99", "max"];
  const labels = [...new Set(all.flatMap(each => each.spreads.map(spread => spread.label)))];
  const rows = labels.flatMap(label => [make("tr", {}, make("th", { class: "group", scope: "colgroup", colspan: fields.length + 1 }, label)),
    ...all.flatMap((each, n) => each.spreads.filter(spread => spread.label === label).map(spread => make("tr", {},
      make("th", { scope: "row", class: "name", title: each.name }, swatch(n), ` ${short(each.name, 18)}`),
      ...fields.map(field => cell(number(spread[field], 3), "value")))))]);
  fill(at("spreads"), [["", "left"], ...fields.map(name => [name.replace(/^p0?(\d+)/, "$1 %"), null])], rows);
}

const said = (n, ...more) => make("div", {}, make("h3", {}, swatch(n), all[n].name), ...more);

function showWords() {
  at("dead").replaceChildren(...all.map((each, n) => said(n, make("p", {}, each.dead), ...(each.densest.length ? [make("p", { class: "quiet" },
    `Densest: ${each.densest.slice(0, 8).map(([feature, density]) => `${feature} (${percent(100 * density)})`).join(", ")}.`)] : []))));
  const noted = all.map((each, n) => [each, n]).filter(([each]) => each.notes.length + each.warnings.length);
  at("notes-section").hidden = !noted.length;
  at("notes").replaceChildren(...noted.map(([each, n]) => said(n, make("ul", {},
    ...each.warnings.map(text => make("li", { class: "warning" }, text)), ...each.notes.map(text => make("li", {}, text))))));
}

// The page

function build() {
  at("about").textContent = data.about.join(" · ");
  at("tokens").textContent = data.tokens;
  at("verdict").textContent = data.verdict;
  at("warnings").replaceChildren(...data.warnings.map(text => make("p", { class: "warning" }, text)));
  at("l0-note").textContent = `thin line: mean; the axis ends where 99.9 % of the tokens do, the largest is ${count(Math.max(...all.map(each => each.maxL0)))}`;
  at("pairs-of").replaceChildren(...all.map((each, n) => make("option", { value: n }, each.name)));
  at("pairs-choice").hidden = all.length < 2;
  at("pairs-of").addEventListener("change", showPairs);
  at("theme").addEventListener("click", switchTheme);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
  new ResizeObserver(showCharts).observe(document.body);
  showDifferences();
  refresh();
}

function refresh() {  // whatever has a colour
  at("theme").textContent = isDark() ? "Light" : "Dark";
  at("theme").setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
  showWhich();
  showMetrics();
  showToggles();
  showPairs();
  showSpreads();
  showPrefixes();
  showWords();
  for (const name of ["l0", "density"]) stepNumbers(name);
  showCharts();
}

function showToggles() {
  at("toggles").hidden = all.length < 2;
  at("toggles").replaceChildren(...all.map((each, n) => make("button", { type: "button", "aria-pressed": !hidden.has(n), "data-of": n }, swatch(n), each.name)));
  for (const button of at("toggles").children) button.addEventListener("click", () => toggle(Number(button.dataset.of), button));
}

function toggle(n, button) {
  if (!hidden.delete(n)) hidden.add(n);
  button.setAttribute("aria-pressed", !hidden.has(n));
  showCharts();
}

function showCharts() {
  for (const name of ["l0", "density"]) showSteps(name);
  showTradeOff();
  showCurves();
}

function switchTheme() {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  refresh();
}

build();
