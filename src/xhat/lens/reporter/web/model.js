// What stands out in a model: findings grouped over its layers, where values are first not finite, curves over layers.

const CURVE = { w: 640, h: 190, left: 62, right: 10, top: 12, bottom: 26 };

function drawModel() {
  document.getElementById("whole").hidden = !DATA.model;
  if (!DATA.model) return;
  const cards = DATA.groups.map((group) => groupCard(group));
  if (DATA.first) {
    const { text, layer } = DATA.first;
    cards.unshift(groupCard({ kind: "first not finite", where: text, reason: "NaN or infinity begins here; every layer behind it has it too.", layer, row: 0 }));
  }
  if (!cards.length) cards.push(html("li", {}, html("div", { class: "finding fine" }, html("b", {}, "nothing stands out"), html("span", { class: "reason" }, FINE))));
  document.getElementById("groups").replaceChildren(...cards);
  drawCurves();
}

function groupCard({ kind, where, reason, layer, row }) {
  const words = [html("b", {}, kind), html("span", { class: "where" }, where), html("span", { class: "reason" }, reason)];
  return html("li", {}, html("button", { type: "button", class: "finding", "data-layer": layer, "data-row": row }, ...words));
}

// Two figures over the layers in order, on logarithmic axes; a click selects a layer.
function drawCurves() {
  const facts = DATA.layers.map((layer) => layer.facts);
  const series = (key, words, tone) => ({ words, tone, values: facts.map((one) => one[key] ?? null) });
  const figures = [
    curve("gradient norm of each layer", [series("dy", "‖dy‖ at its output", "mean"), series("dx", "‖dx‖ at its input", "gradient")]),
    curve("batch against running statistics", [
      series("gapMean", "distance of the means, in running deviations", "forward"),
      series("gapVar", "factor between the variances", "variance"),
    ]),
  ].filter(Boolean);
  document.getElementById("curves").replaceChildren(...figures);
}

function curve(title, all) {
  const { w, h, left, right, top, bottom } = CURVE;
  const drawn = all.filter(({ values }) => values.some((value) => value > 0));
  if (!drawn.length || DATA.layers.length < 2) return null;
  const logs = drawn.flatMap(({ values }) => values.filter((value) => value > 0).map(Math.log10));
  const low = Math.floor(Math.min(...logs));
  const high = Math.max(low + 1, Math.ceil(Math.max(...logs)));
  const x = (index) => left + ((index + 0.5) / DATA.layers.length) * (w - left - right);
  const y = (value) => top + (1 - (Math.log10(value) - low) / (high - low)) * (h - top - bottom);
  const picture = svg("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": `${title}, from ${DATA.layers[0].name} to ${DATA.layers.at(-1).name}` });
  const every = Math.ceil((high - low) / 6);
  for (let power = low; power <= high; power += every) {
    picture.append(svg("line", { x1: left, x2: w - right, y1: y(10 ** power), y2: y(10 ** power), class: "guide" }));
    picture.append(svg("text", { x: left - 6, y: y(10 ** power) + 4, "text-anchor": "end", class: "tick" }, number(10 ** power, 2)));
  }
  picture.append(svg("text", { x: left, y: h - 6, class: "tick" }, DATA.layers[0].name), svg("text", { x: w - right, y: h - 6, "text-anchor": "end", class: "tick" }, DATA.layers.at(-1).name));
  for (const { words, tone, values } of drawn) {
    const line = values.map((value, i) => (value > 0 ? `${values[i - 1] > 0 ? "L" : "M"}${x(i).toFixed(1)},${y(value).toFixed(1)}` : "")).join("");
    picture.append(svg("path", { d: line, class: `curve ${tone}` }));
    values.forEach((value, i) => {
      const dot = svg("circle", { cx: x(i), cy: value > 0 ? y(value) : h - bottom, r: value > 0 ? 3.4 : 2.4, class: `spot ${value > 0 ? tone : "none"}`, "data-layer": i, "data-value": value });
      dot.append(svg("title", {}, `${DATA.layers[i].name}: ${words} ${value === null ? "unknown" : number(value, 3)}`));
      picture.append(dot);
    });
  }
  picture.addEventListener("click", (event) => {
    const index = event.target.closest("[data-layer]")?.getAttribute("data-layer");
    if (index) chooseLayer(Number(index));
  });
  const keys = drawn.map(({ words, tone }) => html("span", {}, html("i", { class: `key ${tone}` }), ` ${words}`));
  return html("figure", {}, html("figcaption", {}, title), picture, html("p", { class: "legend small" }, ...keys));
}
