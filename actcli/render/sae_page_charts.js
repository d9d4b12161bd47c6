// Charts of the page of judged dictionaries, in SVG; the names that they take from sae_page.js are
// there before any of this runs.

function ticks(least, most, about = 6) {
  const raw = (most - least) / about, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find(each => each * power >= raw) * power, found = [];
  for (let i = Math.ceil(least / step - 1e-9); i * step <= most * (1 + 1e-9) + 1e-12; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function plane(svg, { xs, ys, labels, xTicks, log = false }) {
  const width = Math.max(svg.clientWidth, 240), across = width - LEFT - RIGHT, up = HEIGHT - TOP - BOTTOM;
  const scale = log ? Math.log2 : x => x, from = scale(xs[0]), reach = scale(xs[1]) - from || 1;
  const x = value => LEFT + across * (scale(value) - from) / reach;
  const y = value => TOP + up * (1 - (value - ys[0]) / (ys[1] - ys[0] || 1));
  const rows = ticks(ys[0], ys[1], 5), columns = xTicks ?? ticks(xs[0], xs[1], Math.max(2, width / 90));
  filled(svg, { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT });
  svg.replaceChildren(
    ...rows.flatMap(value => [draw("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      draw("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, minus(String(value)))]),
    ...columns.map(value => draw("text", { x: x(value), y: HEIGHT - BOTTOM + 15, "text-anchor": "middle" }, value >= 1e4 ? count(value) : minus(String(value)))),
    draw("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }),
    draw("text", { x: LEFT + across / 2, y: HEIGHT - 8, "text-anchor": "middle" }, labels[0]),
    draw("text", { transform: `translate(11 ${TOP + up / 2}) rotate(-90)`, "text-anchor": "middle" }, labels[1]));
  return { x, y, value: pixel => from + reach * (pixel - LEFT) / across, bottom: HEIGHT - BOTTOM };
}

const visible = () => all.map((_, n) => n).filter(n => !hidden.has(n));

// Histograms

function showSteps(name) {
  const svg = at(name), found = visible().filter(n => all[n][name]);
  const edges = all.flatMap(each => each[name]?.[0] ?? []), heights = found.flatMap(n => all[n][name][1]);
  if (!edges.length) { svg.replaceChildren(draw("text", { x: LEFT, y: 30 }, "no feature fired")); svg.setAttribute("height", 50); return; }
  const xs = name === "l0" ? [0, data.limit] : [Math.min(...edges), Math.max(...edges)];
  const { x, y, value, bottom } = plane(svg, { xs, ys: [0, Math.max(...heights, 1e-9) * 1.04], labels: data.labels[name] });
  for (const n of found) {
    const [at_, tall] = all[n][name];
    const path = tall.map((height, i) => `H${x(at_[i]).toFixed(1)}V${y(height).toFixed(1)}H${x(at_[i + 1]).toFixed(1)}`).join("");
    const outline = `M${x(at_[0]).toFixed(1)} ${bottom}${path}V${bottom}`;
    if (all.length <= 3) svg.append(draw("path", { d: outline, fill: colourOf(n), opacity: 0.1 }));
    svg.append(draw("path", { d: outline, fill: "none", stroke: colourOf(n), "stroke-width": 1.6, "stroke-dasharray": dashOf(n), "data-of": n }, draw("title", {}, all[n].name)));
    if (name === "l0") svg.append(draw("line", { x1: x(all[n].meanL0), x2: x(all[n].meanL0), y1: TOP, y2: bottom, stroke: colourOf(n), opacity: 0.6 }));
  }
  const here = draw("line", { class: "here", y1: TOP, y2: bottom, visibility: "hidden" });
  svg.append(here);
  svg.onpointermove = event => {
    const pixel = event.clientX - svg.getBoundingClientRect().left, where = value(pixel);
    const inside = where >= xs[0] && where <= xs[1];
    filled(here, { x1: pixel, x2: pixel, visibility: inside ? "visible" : "hidden" });
    at(`${name}-readout`).textContent = inside ? readSteps(name, found, where) : "";
  };
  svg.onpointerleave = () => { here.setAttribute("visibility", "hidden"); at(`${name}-readout`).textContent = ""; };
}

function stepAt([edges, heights], where) {
  const i = edges.findIndex((edge, k) => where >= edge && where < edges[k + 1]);
  return i < 0 || i >= heights.length ? 0 : heights[i];
}

function readSteps(name, found, where) {
  const place = name === "l0" ? `L0 ${number(where, 3)}` : `density ${number(10 ** where, 2)}`;
  return `${place}: ${found.map(n => `${all[n].name} ${number(stepAt(all[n][name], where), 3)}`).join(" · ")} (${data.labels[name][1]})`;
}

function stepNumbers(name) {
  const tables = all.map((each, n) => {
    const table = make("table"), [edges, heights] = each[name] ?? [[], []];
    fill(table, [[make("span", {}, swatch(n), each.name), "left"], [data.labels[name][1], null]],
      heights.map((height, i) => make("tr", {}, cell(`${number(edges[i], 3)} to ${number(edges[i + 1], 3)}`, "left"), cell(number(height, 3)))));
    return table;
  });
  at(`${name}-numbers`).replaceChildren(...tables);
}

// FVU against L0, nested parts

function showTradeOff() {
  const found = visible().filter(n => all[n].point), svg = at("trade");
  at("trade-section").hidden = !all.some(each => each.point);
  at("trade-parts").hidden = !all.some(each => each.parts.length);
  const points = all.flatMap(each => [...each.parts, ...(each.point ? [each.point] : [])]);
  if (!points.length) return;
  const xs = [0, Math.max(...points.map(p => p[0] + (p[2] ?? 0)), 1e-9) * 1.08], ys = [0, Math.max(...points.map(p => p[1] + (p[3] ?? 0)), 1e-9) * 1.08];
  const { x, y, bottom } = plane(svg, { xs, ys, labels: data.labels.tradeOff }), taken = [];
  for (const n of found) {
    const { point, parts, name } = all[n], line = { stroke: colourOf(n), "stroke-width": 1.3, fill: "none" };
    if (parts.length) svg.append(draw("path", { d: pathOf(parts.map(p => [x(p[0]), y(p[1])])), "stroke-dasharray": dashOf(n), ...line }));
    for (const p of parts) svg.append(marker(n, x(p[0]), y(p[1]), 3, draw("title", {}, `${name}, a nested part: L0 ${number(p[0])}, FVU ${number(p[1])}`)));
    const [l0, fvu, l0Error, fvuError] = point;
    if (l0Error !== null) svg.append(draw("path", { d: `M${x(l0 - l0Error)} ${y(fvu)}H${x(l0 + l0Error)}`, ...line }));
    if (fvuError !== null) svg.append(draw("path", { d: `M${x(l0)} ${y(fvu - fvuError)}V${y(fvu + fvuError)}`, ...line }));
    svg.append(marker(n, x(l0), y(fvu), 5.5, draw("title", {}, `${name}: L0 ${number(l0)}, FVU ${number(fvu)}`)));
    const corners = parts.map(p => [x(p[0]), y(p[1])]);
    taken.push(...corners.flatMap((to, i) => between(corners[i - 1] ?? to, to)), ...between([x(l0) - 4, y(fvu)], [x(l0) + 4, y(fvu)]));
  }
  for (const n of found) taken.push(...label(svg, short(all[n].name), [x(all[n].point[0]), y(all[n].point[1])], taken, bottom));
}

// Names beside their points: where no point, no line and no other name is, or as few as can be

function between([x0, y0], [x1, y1], step = 4) {  // dots along a line
  const n = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0) / step));
  return Array.from({ length: n + 1 }, (_, i) => [x0 + (x1 - x0) * i / n, y0 + (y1 - y0) * i / n]);
}

function label(svg, text, [x, y], taken, bottom) {
  const name = svg.appendChild(draw("text", { class: "label" }, text)), width = name.getComputedTextLength(), tall = 12;
  const places = [10, 24, 40, 58].flatMap(far => [[far, -far], [-far - width, -far], [far, 4], [-far - width, 4], [far, far + 8], [-far - width, far + 8], [-width / 2, -far - 2], [-width / 2, far + 10]]
    .map(([right, down], order) => ({ left: Math.max(LEFT + 3, Math.min(svg.clientWidth - width - 3, x + right)), base: y + down, cost: far + order / 8 })));
  for (const place of places) {
    const { left, base } = place, isInside = base - tall > TOP && base + 3 < bottom;
    place.cost += 1000 * !isInside + 25 * taken.filter(([a, b]) => a > left - 3 && a < left + width + 3 && b > base - tall - 1 && b < base + 5).length;
  }
  const { left, base } = places.reduce((best, each) => each.cost < best.cost ? each : best);
  const nearest = [Math.max(left, Math.min(left + width, x)), Math.max(base - tall + 2, Math.min(base + 2, y))];
  if (Math.hypot(nearest[0] - x, nearest[1] - y) > 16) svg.insertBefore(draw("path", { d: pathOf([[x, y], nearest]), class: "leader" }), name);
  filled(name, { x: left.toFixed(1), y: base.toFixed(1) });
  return [base - 8, base - 2, base + 2].flatMap(height => between([left, height], [left + width, height]));
}

const short = (text, most = 26) => [...text].length > most ? [...text].slice(0, most - 1).join("") + "…" : text;
const pathOf = points => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

function showCurves() {
  const nested = all.map((_, n) => n).filter(n => all[n].curves.length);
  at("prefixes-section").hidden = !nested.length;
  if (!nested.length) return;
  const labels = all[nested[0]].curves.map(([label]) => label);
  if (!at("curves").childElementCount) at("curves").append(...labels.map(label => draw("svg", { class: "chart", role: "img", "aria-label": label })));
  labels.forEach((label, i) => showCurve(at("curves").children[i], label, i, nested));
}

function showCurve(svg, label, i, nested) {
  const sizes = [...new Set(nested.flatMap(n => all[n].curves[i][1]))].sort((a, b) => a - b);
  const values = nested.flatMap(n => all[n].curves[i][2]).filter(value => value !== null);
  const first = sizes[0], last = sizes.at(-1), reach = Math.log2(last / first) || 1;
  const xTicks = sizes.filter((size, k) => !k || size === last || sizes.length < 6 && Math.log2(last / size) > 0.18 * reach && Math.log2(size / first) > 0.18 * reach);
  const { x, y } = plane(svg, { xs: [first, last], ys: [0, Math.max(...values, 1e-9) * 1.06], labels: [data.labels.size, label], xTicks, log: true });
  for (const n of nested.filter(each => !hidden.has(each))) {
    const [, at_, found] = all[n].curves[i];
    const points = at_.map((size, k) => [size, found[k]]).filter(([, value]) => value !== null);
    svg.append(draw("path", { d: pathOf(points.map(([size, value]) => [x(size), y(value)])), fill: "none", stroke: colourOf(n), "stroke-width": 1.6, "stroke-dasharray": dashOf(n) }),
      ...points.map(([size, value]) => marker(n, x(size), y(value), 4, draw("title", {}, `${all[n].name}, ${count(size)} features: ${number(value)}`))));
  }
}

function showPrefixes() {
  const rows = all.flatMap((each, n) => each.prefixes.map(part => make("tr", {}, nameCell(n),
    ...[count(part.n_features), number(part.fvu), number(part.mse), number(part.cosine_similarity), number(part.mean_l0),
      `${count(part.dead_count)} of ${count(part.n_new_features)}`, number(part.redundancy)].map(text => cell(text)))));
  const table = make("table");
  fill(table, [["dictionary", "left"], ...["features", "FVU", "MSE", "cosine", "mean L0", "dead of the new ones", "redundancy"].map(name => [name, null])], rows);
  at("prefixes").replaceChildren(table);
}
