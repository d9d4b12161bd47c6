// Boards: cells are tokens, with their tiles beside the maps.

const SEAM = 2;  // pixels between the rows of the board on a map
const MARGINS = { edge: 70, head: 54, least: 6 };  // pixels left of a map, above it, of a cell
const WORDS = { sample: "board", tokens: "board", token: "cell", where: "on the board", perRow: data.side };

const tokenName = cell => `r${Math.floor(cell / data.side) + 1}c${cell % data.side + 1}`;
const describe = cell => `${tokenName(cell)} (${tileText(exponentAt(cell)) || "empty"})`;
const seamsBefore = cell => Math.floor(cell / data.side);
const sampleName = i => `sample in row ${data.samples[i]}`;
const samplePicture = i => [miniBoard(data.boards[i])];
const exponentAt = cell => data.boards[state.sample][cell];
const tileText = exponent => exponent ? String(2 ** exponent) : "";

function tileColour(exponent) {
  return exponent ? data.tileColours[Math.min(exponent, data.tileColours.length - 1)]
    : "var(--empty)";
}

function tileRgb(exponent) {
  const code = parseInt(tileColour(exponent).slice(1), 16);
  return [code >> 16, code >> 8 & 255, code & 255];
}

function miniBoard(board) {
  const mini = make("span", { class: "mini", "aria-hidden": "true" });
  mini.style.gridTemplateColumns = `repeat(${data.side}, auto)`;
  for (const exponent of board) {
    const cell = make("span");
    cell.style.background = tileColour(exponent);
    mini.append(cell);
  }
  return mini;
}

function drawLabels(context, every) {
  const { cell, left, top, edge, head } = layout;
  for (let cellNumber = 0; cellNumber < nTokens; cellNumber += every) {
    context.fillText(tokenName(cellNumber), edge - 50, top[cellNumber] + cell / 2);
    upright(context, tokenName(cellNumber), left[cellNumber] + cell / 2, head - 35);
  }
  if (data.hasSinks) upright(context, "sink", left[nTokens] + cell / 2, head - 35);
  for (let cellNumber = 0; cellNumber < nTokens; cellNumber++) drawTiles(context, cellNumber);
}

function drawTiles(context, cellNumber) {
  const { cell, left, top, edge, head } = layout, exponent = exponentAt(cellNumber);
  if (!exponent) return;
  chip(context, exponent, edge - 32, top[cellNumber] + 1, 28, cell - 2);
  chip(context, exponent, left[cellNumber] + 1, head - 17, cell - 2, 13);
}

function chip(context, exponent, x, y, width, height) {
  const ink = context.fillStyle;
  context.fillStyle = tileColour(exponent);
  context.fillRect(x, y, width, height);
  context.fillStyle = inkOn(tileRgb(exponent));
  context.font = "9px system-ui, sans-serif";
  const fits = text => height > 9 && context.measureText(text).width <= width;
  const text = [tileText(exponent), `${Math.floor(2 ** exponent / 1000)}k`].find(fits);
  context.fillText(text ?? "", x + width / 2, y + height / 2 + 0.5);
  context.fillStyle = ink;
}

function drawPlain(button, cell) {
  const exponent = exponentAt(cell), text = tileText(exponent);
  delete button.dataset.weight;
  button.setAttribute("aria-label", describe(cell));
  button.replaceChildren(make("span", { class: "tile" }, text));
  button.style.fontSize = `${text.length < 4 ? 20 : 26 - 2.6 * text.length}px`;
  paint(button, exponent);
}

function drawAsked(button, cell, most) {
  const weight = weightAt(state.query, cell);
  const tile = make("span", { class: "tile" }, tileText(exponentAt(cell)));
  if (exponentAt(cell)) paint(tile, exponentAt(cell));
  button.dataset.weight = exact(weight);
  button.setAttribute("aria-label", `${describe(cell)}, weight ${exact(weight)}`);
  button.replaceChildren(tile, make("span", { class: "weight" }, rounded(weight)));
  shade(button, weight, most);
}

function paint(element, exponent) {
  element.style.background = tileColour(exponent);
  element.style.color = exponent ? inkOn(tileRgb(exponent)) : "";
}

function arrangePanel() {
  at("board").style.gridTemplateColumns = `repeat(${data.side}, minmax(0, 1fr))`;
}
