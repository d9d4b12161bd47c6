// A feature: {feature, max, density, activations, numbers, histogram, similar, samples}; the texts of a
// sample are pieces of its context, each with the activation there, null where it is not known.

const data = JSON.parse(at("data").textContent);
const features = JSON.parse(at("features").textContent);
const byNumber = new Map(features.map(each => [each.feature, each]));
const MOST_LISTED = 400;
const ORDERS = {
  max: (a, b) => b.max - a.max,
  dense: (a, b) => frequency(b) - frequency(a),
  rare: (a, b) => frequency(a) - frequency(b),
  feature: (a, b) => a.feature - b.feature,
};
const frequency = each => each.density ?? each.activations;
const state = { shown: [], current: null };

// Words

const marked = text => text.replace(/^ +| +$/g, spaces => "␣".repeat(spaces.length));
const count = number => number.toLocaleString("en");
const percent = share => `${(100 * share).toPrecision(3)} %`;

function short(number) {
  const size = Math.abs(number);
  return size !== 0 && (size < 0.001 || size >= 1e5) ? number.toExponential(2) : String(Number(number.toPrecision(4)));
}

function peakText(feature) {
  const [first] = feature.samples;
  return first === undefined || first.peak === null ? "" : marked(first.texts[first.peak].trim() || first.texts[first.peak]);
}

function preview(feature) {  // the token, behind the two before it
  const [first] = feature.samples;
  if (first === undefined || first.peak === null) return [];
  const before = first.texts.slice(Math.max(0, first.peak - 2), first.peak).join("").slice(-24).trimStart();
  return [make("span", { class: "before" }, before), make("span", {}, first.texts[first.peak])];
}

const textOf = feature => feature.samples.map(each => each.texts.join("")).join("\n").toLowerCase();

// The list

function matches(feature, words) {
  if (!words) return true;
  if (/^#?\d+$/.test(words) && String(feature.feature).startsWith(words.replace("#", ""))) return true;
  feature.text ??= textOf(feature);
  return feature.text.includes(words);
}

function listFeatures() {
  const words = at("search").value.trim().toLowerCase();
  state.shown = features.filter(each => matches(each, words))
    .sort((a, b) => ORDERS[at("sort").value](a, b) || a.feature - b.feature);
  const more = state.shown.length - MOST_LISTED;
  at("found").textContent = `${count(state.shown.length)} of ${count(features.length)} features`
    + (more > 0 ? `, the first ${count(MOST_LISTED)} listed` : "");
  at("list").replaceChildren(...state.shown.slice(0, MOST_LISTED).map(listed));
  markCurrent();
}

function listed(feature) {
  const sparse = at("sort").value === "dense" || at("sort").value === "rare";
  const value = !sparse ? short(feature.max) : feature.density === null ? count(feature.activations) : percent(feature.density);
  const button = make("button", { type: "button", "data-feature": feature.feature },
    make("b", {}, String(feature.feature)), make("span", { class: "peak-text" }, ...preview(feature)), make("span", { class: "value" }, value));
  button.addEventListener("click", () => openFeature(feature));
  return make("li", {}, button);
}

function markCurrent() {
  for (const button of at("list").querySelectorAll("button")) {
    const isCurrent = Number(button.dataset.feature) === state.current?.feature;
    button.setAttribute("aria-current", isCurrent);
    if (isCurrent) button.scrollIntoView({ block: "nearest" });
  }
  const place = state.shown.indexOf(state.current);
  at("previous").disabled = place <= 0;
  at("next").disabled = place === state.shown.length - 1;
}

function turn(step) {
  const place = state.shown.indexOf(state.current) + step;
  if (place >= 0 && place < state.shown.length) openFeature(state.shown[place]);
}

function openFeature(feature) {  // at once: what else is pressed must not find the feature before
  show(feature);
  location.hash = feature.feature;
}

// One feature

function show(feature) {
  state.current = feature;
  at("name").textContent = `Feature ${feature.feature}`;
  at("numbers").replaceChildren(...feature.numbers.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  showHistogram(feature.histogram);
  at("similar-box").hidden = !feature.similar.length;
  at("similar").replaceChildren(...feature.similar.map(similar));
  showSamples(feature);
  markCurrent();
}

function similar([number, cosine]) {
  const other = byNumber.get(number);
  const name = other === undefined ? make("span", { title: "No samples of it on this page" }, String(number))
    : make("a", { href: `#${number}`, title: peakText(other) }, String(number));
  return make("li", {}, name, make("span", { class: "value" }, (cosine < 0 ? "−" : "+") + Math.abs(cosine).toFixed(3)));
}

function showHistogram(histogram) {
  at("histogram-figure").hidden = histogram === null;
  if (histogram === null) return;
  const { edges, counts } = histogram, width = 420, left = 42, right = 8, top = 8, bottom = 108;
  const most = Math.max(...counts), step = (width - left - right) / counts.length, x = place => left + place * step;
  const y = number => bottom - (bottom - top) * Math.log1p(number) / Math.log1p(most);
  const bars = counts.map((number, place) => draw("rect", { x: x(place) + 0.5, width: Math.max(step - 1, 0.5), y: y(number),
    height: bottom - y(number), "data-count": number }, draw("title", {}, `${short(edges[place])} to ${short(edges[place + 1])}: ${count(number)} tokens`)));
  const every = Math.ceil(edges.length / 7);
  const names = edges.flatMap((edge, place) => place % every ? [] : [draw("text", { x: x(place), y: bottom + 16, "text-anchor": "middle" }, String(Number(edge.toPrecision(2))))]);
  const ticks = [...new Set([most, 10 ** Math.floor(Math.log10(Math.max(most / 2, 1)))])]
    .map(number => draw("text", { x: left - 6, y: y(number) + 4, "text-anchor": "end" }, count(number)));
  at("histogram").replaceChildren(...bars, draw("line", { x1: left, x2: width - right, y1: bottom, y2: bottom }), ...names, ...ticks);
  at("histogram").setAttribute("aria-label", `Tokens by activation: ${counts.map((number, place) => `${short(edges[place])} to ${short(edges[place + 1])}: ${number}`).join("; ")}`);
}

function showSamples(feature) {
  const strongest = Math.max(0, ...feature.samples.map(each => each.value));
  const isWhole = feature.samples.some(each => each.acts.some((act, place) => act !== null && place !== each.peak));
  const hasUnknown = isWhole && feature.samples.some(each => each.acts.includes(null));
  at("samples").replaceChildren(...feature.samples.map(each => context(each, strongest, isWhole)));
  at("shading").textContent = !feature.samples.length ? "never above the threshold"
    : isWhole ? "every token shaded by its activation; point to read it" : "the token is marked; the activations of the others are not known";
  at("legend").hidden = !isWhole;
  at("unknown").hidden = !hasUnknown;
  at("most").textContent = short(strongest);
}

function context(sample, strongest, isWhole) {
  const pieces = sample.texts.map((text, place) => piece(sample, text, place, strongest, isWhole));
  const shown = sample.texts.length ? [...(sample.cut ? ["…"] : []), ...pieces] : ["(no text: the token ids are not known)"];
  const where = (sample.sample === null ? "" : `sample ${count(sample.sample)}, `) + `position ${count(sample.position)}`;
  return make("li", {}, make("span", { class: "value" }, short(sample.value)), make("p", { class: "context" }, ...shown), make("span", { class: "where" }, where));
}

function piece(sample, text, place, strongest, isWhole) {
  const act = sample.acts[place], isPeak = place === sample.peak;
  const word = text.trimStart() || text, spaces = text.slice(0, text.length - word.length), span = make("span", {}, word);
  if (act === null) {
    if (isWhole) span.className = "unknown";
    return make("span", {}, spaces, span);
  }
  span.dataset.act = act;
  span.title = short(act);
  if (isPeak) span.className = "peak";
  const share = Math.max(0, act / strongest);
  if (share > 0) span.style.background = `color-mix(in srgb, var(--hot) ${(8 + 72 * share).toFixed(1)}%, transparent)`;
  return make("span", {}, spaces, span);
}

// What the reader does

function showHash() {
  const feature = byNumber.get(Number(location.hash.slice(1)));
  if (location.hash.length > 1 && feature !== undefined) {
    if (feature !== state.current) show(feature);
  } else if (features.length) show(state.shown[0] ?? features[0]);
  else document.querySelector("article").hidden = true;
}

const nameTheme = () => { at("theme").textContent = isDark() ? "Light theme" : "Dark theme"; };

function build() {
  at("about").textContent = data.about.join(" · ");
  at("left-out").textContent = data.leftOut ? `${count(data.leftOut)} more features have no room on this page; their files are beside it.` : "";
  at("search").addEventListener("input", listFeatures);
  at("sort").addEventListener("change", listFeatures);
  at("previous").addEventListener("click", () => turn(-1));
  at("next").addEventListener("click", () => turn(1));
  at("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    nameTheme();
  });
  addEventListener("hashchange", showHash);
  addEventListener("keydown", event => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowRight") turn(1);
    else if (event.key === "ArrowLeft") turn(-1);
    else if (event.key === "/") { event.preventDefault(); at("search").focus(); }
  });
  nameTheme();
  listFeatures();
  showHash();
}

build();
