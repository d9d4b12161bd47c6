// Texts: their tokens as a line of words, and as labels of the maps.

const SEAM = 0;
const MARGINS = { edge: 104, head: 92, least: 2 };  // pixels left of a map, above it, of a cell
const WORDS = { sample: "text", tokens: "tokens", token: "token", where: "in the text", perRow: 1 };
const SNIPPET = 160, LABEL = 13;  // letters

const textOf = i => data.tokens[state.sample][i];
const tokenName = String;
const describe = i => `${i} “${textOf(i)}”`;
const seamsBefore = () => 0;
const sampleName = i => `sample in row ${data.samples[i]}: ${snippet(i)}`;
const samplePicture = i => [make("span", { class: "snippet", "aria-hidden": "true" }, snippet(i))];

function snippet(sample) {  // tokens of words alone, and ids, are set apart
  const tokens = data.tokens[sample].slice(0, SNIPPET);
  return tokens.join(data.tokens.flat().some(each => each.includes(" ")) ? "" : " ").slice(0, SNIPPET).trim();
}

function wordOf(i) {  // blanks around a word are left out, a token of blanks shows them
  const text = textOf(i);
  return text.trim() || "␣".repeat(text.length);
}

function arrangePanel() {
  at("main").prepend(at("board-card"));
}

function drawPlain(button, i) {
  delete button.dataset.weight;
  drawWord(button, i, describe(i), tokenName(i));
  button.removeAttribute("style");
}

function drawAsked(button, i, most) {
  const weight = weightAt(state.query, i);
  drawWord(button, i, `${describe(i)}, weight ${exact(weight)}`, rounded(weight));
  button.dataset.weight = exact(weight);
  shade(button, weight, most);
}

function drawWord(button, i, name, below) {
  button.setAttribute("aria-label", name);
  button.title = `${describe(i)}, id ${data.ids[state.sample][i]}`;
  button.replaceChildren(
    make("span", { class: "word", dir: "auto" }, wordOf(i)), make("span", { class: "under-word" }, below));
}

function drawLabels(context, every) {
  const { cell, left, top, edge, head } = layout;
  for (let i = 0; i < nTokens; i += every) {
    context.textAlign = "right";
    context.fillText(label(i), edge - 6, top[i] + cell / 2);
    context.textAlign = "left";
    upright(context, label(i), left[i] + cell / 2, head - 6);
  }
  context.textAlign = "left";
  if (data.hasSinks) upright(context, "sink", left[nTokens] + cell / 2, head - 6);
}

function label(i) {
  const letters = [...wordOf(i)];
  return letters.length > LABEL ? letters.slice(0, LABEL - 1).join("") + "…" : letters.join("");
}
