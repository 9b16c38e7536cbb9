// The computational graph: nodes with numbers, and forward and gradient arrows in different colours.

const WIDE = {
  box: [1120, 436],
  places: {
    x: [84, 352], mu: [286, 220], var: [470, 82], rstd: [690, 82], xhat: [640, 352],
    gamma: [800, 196], beta: [966, 196], y: [866, 352], loss: [1052, 352],
  },
  bends: { "x var": [120, 84], "rstd xhat": [690, 220], "mu xhat": [470, 250], "gamma y": [812, 270], "beta y": [940, 270] },
  shifts: { "x var": [-52, -34], "rstd xhat": [-50, -34], "var rstd": [0, -24], "mu var": [26, 24], "xhat y": [0, -22], "y loss": [0, -22],
            "x xhat": [0, -22], "mu xhat": [0, -20], "gamma y": [-26, -4], "beta y": [22, 10], "x mu": [22, 22] },
};

const TALL = {
  box: [420, 850],
  places: {
    x: [86, 52], mu: [206, 190], var: [336, 320], rstd: [336, 440], xhat: [86, 560],
    gamma: [262, 600], beta: [350, 706], y: [86, 690], loss: [86, 802],
  },
  bends: { "x var": [350, 90], "rstd xhat": [290, 545], "mu xhat": [190, 400], "gamma y": [190, 660], "beta y": [240, 706] },
  shifts: { "x var": [34, -44], "rstd xhat": [38, 26], "var rstd": [40, 0], "mu var": [-44, 26], "xhat y": [-34, 0], "y loss": [34, 0],
            "x xhat": [-42, -40], "mu xhat": [-46, 40], "gamma y": [-22, -20], "beta y": [-8, -16], "x mu": [-34, 14] },
};

const SIZES = { x: [150, 84], xhat: [128, 84], y: [146, 84], loss: [84, 54] };
const SYMBOLS = { x: "x", mu: "μ", var: "σ²", rstd: "r", xhat: "x̂", gamma: "γ", beta: "β", y: "y", loss: "L" };
const NAMES = {
  x: "the input", mu: "mean", var: "variance", rstd: "1 / √(σ² + ε)", xhat: "normalized", gamma: "scale",
  beta: "shift", y: "the output", loss: "loss",
};

// The formulas of each node and of its gradient.
const FORMULAS = {
  x: "dx = r dx̂ + dμ / m + dσ² · 2(x − μ) / (m − c)",
  mu: "μ = Σ x / m,  dμ = −r Σ dx̂ + 0 · dσ²",
  var: "σ² = Σ (x − μ)² / (m − c),  dσ² = −r³ / 2 · dr",
  rstd: "r = 1 / √(σ² + ε),  dr = Σ dx̂ (x − μ)",
  xhat: "x̂ = (x − μ) r,  dx̂ = γ dy",
  gamma: "dγ = Σ dy x̂",
  beta: "dβ = Σ dy",
  y: "y = γ x̂ + β",
  loss: "L depends on y; its gradient is dy",
};

// source, target, path of the gradient, local derivative
const EDGES = [
  ["x", "xhat", "direct", "r"],
  ["x", "mu", "mean", "1/m"],
  ["mu", "xhat", "mean", "−r"],
  ["x", "var", "variance", "2(x−μ)/(m−c)"],
  ["var", "rstd", "variance", "−r³/2"],
  ["rstd", "xhat", "variance", "x−μ"],
  ["mu", "var", "zero", "0"],
  ["xhat", "y", "all", "γ"],
  ["gamma", "y", "scale", "x̂"],
  ["beta", "y", "shift", "1"],
  ["y", "loss", "all", "dy"],
];

let drawn = null; // the elements that are updated, and the layout for which they were made

const NARROW = window.matchMedia("(max-width: 1010px)"); // as in report.css; below this width, WIDE is illegible
const layoutNow = () => (NARROW.matches ? TALL : WIDE);

function boxOf(layout, name) {
  const [w, h] = SIZES[name] ?? [124, 76];
  const [x, y] = layout.places[name];
  return { x, y, w, h };
}

function buildGraph(layout) {
  const [width, height] = layout.box;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-labelledby": "graph-title graph-words" });
  picture.append(svg("desc", { id: "graph-words" }));
  const parts = { layout, picture, edges: new Map(), nodes: new Map() };
  const labels = svg("g", { class: "labels" });
  for (const edge of EDGES) buildEdge(parts, labels, edge);
  picture.append(labels);
  for (const name of Object.keys(layout.places)) buildNode(parts, name);
  document.getElementById("graph").replaceChildren(picture);
  return parts;
}

function buildEdge({ layout, picture, edges }, labels, [source, target, path, local]) {
  const from = boxOf(layout, source);
  const to = boxOf(layout, target);
  const key = `${source} ${target}`;
  const start = [from.x, from.y];
  const end = [to.x, to.y];
  const line = [start, layout.bends[key] ?? mix(start, end, 0.5), end];
  const group = svg("g", { class: `edge ${path}`, "data-edge": key, "data-path": path });
  const arrows = {};
  for (const way of ["forward", "gradient"]) {
    const moved = beside(line, way === "forward" ? -8 : 8);
    const curve = way === "forward" ? between(moved, from, to) : between([...moved].reverse(), to, from);
    const shaft = svg("path", { class: "shaft" });
    const head = svg("path", { class: "head" });
    arrows[way] = { curve, shaft, head, group: svg("g", { class: way }, shaft, head) };
    group.append(arrows[way].group);
  }
  const [dx, dy] = layout.shifts[key] ?? [0, -18];
  const [x, y] = at(between(line, from, to), 0.5);
  labels.append(svg("text", { x: x + dx, y: y + dy + 4, class: `local ${path}` }, local));
  picture.append(group);
  edges.set(key, { path, group, arrows });
}

function buildNode({ layout, picture, nodes }, name) {
  const { x, y, w, h } = boxOf(layout, name);
  const left = x - w / 2 + 11;
  const text = (dy, kind) => svg("text", { x: left, y: y - h / 2 + dy, class: kind });
  const symbol = text(23, "symbol");
  symbol.append(SYMBOLS[name]);
  const note = svg("text", { x: x + w / 2 - 10, y: y - h / 2 + 20, class: "note" }, NAMES[name]);
  const value = text(name === "loss" ? 43 : h > 80 ? 49 : 46, "value forward");
  const gradient = text(h > 80 ? 70 : 65, "value gradient");
  const group = svg("g", { class: "node", "data-node": name }, svg("title", {}, FORMULAS[name]), svg("rect", { x: x - w / 2, y: y - h / 2, width: w, height: h, rx: 12 }), symbol, note, value, gradient);
  picture.append(group);
  nodes.set(name, { value, gradient });
}

function drawGraph() {
  const layout = layoutNow();
  if (drawn?.layout !== layout) drawn = buildGraph(layout);
  const numbers = numbersNow();
  for (const [name, [forwardText, gradientText, forwardValue, gradientValue]] of Object.entries(nodeTexts(numbers))) {
    const { value, gradient } = drawn.nodes.get(name);
    value.textContent = forwardText;
    set(value, { "data-value": forwardValue });
    gradient.textContent = numbers.hasGradient && state.on.gradient ? gradientText : "";
    set(gradient, { "data-value": numbers.hasGradient ? gradientValue : null });
  }
  for (const [key, edge] of drawn.edges) drawEdge(key, edge, numbers);
  drawn.picture.classList.toggle("no-forward", !state.on.forward);
  drawn.picture.classList.toggle("no-gradient", !state.on.gradient || !numbers.hasGradient);
  document.getElementById("graph-words").textContent = graphWords(numbers);
}

function nodeTexts(n) {
  const std = Math.sqrt(n.var);
  const dx = n.hasGradient ? n.dx(state.on) : 0;
  const dxhat = Math.abs(n.gamma) * (n.dy ?? 0);
  const around = (center, spread) => {
    const words = (digits) => (Number.isNaN(spread) ? "NaN" : `${number(center, digits)} ± ${number(spread, digits)}`);
    return words(3).length > 16 ? words(2) : words(3);
  };
  return {
    x: [around(n.mu, std), `‖dx‖ ${number(dx)}`, n.mu, dx],
    mu: [number(n.mu), `dμ ${number(n.dmu, 3)}`, n.mu, n.dmu],
    var: [number(n.var), `dσ² ${number(n.dvar, 3)}`, n.var, n.dvar],
    rstd: [number(n.rstd), `dr ${number(n.drstd, 3)}`, n.rstd, n.drstd],
    xhat: [around(0, n.xhatRms), `‖dx̂‖ ${number(dxhat)}`, n.xhatRms, dxhat],
    gamma: [number(n.gamma), `dγ ${number(n.dgamma, 3)}`, n.gamma, n.dgamma],
    beta: [number(n.beta), `dβ ${number(n.dbeta, 3)}`, n.beta, n.dbeta],
    y: [around(n.beta, Math.abs(n.gamma) * n.xhatRms), `‖dy‖ ${number(n.dy)}`, n.beta, n.dy],
    loss: ["L(y)", "", null, null],
  };
}

// The norm of the gradient along each kind of edge, relative to the direct path.
function flowShare(path, n) {
  const { direct, mean, variance } = n.lengths;
  if (direct === 0) return 0;
  const share = { direct: 1, all: 1, mean: mean / direct, shift: mean / direct, variance: variance / direct, scale: variance / direct, zero: 0 };
  return clamp(Number.isFinite(share[path]) && Number.isFinite(n.dy) ? share[path] : 0, 0, 1);
}

function drawEdge(key, { path, group, arrows }, n) {
  const magnitude = { x: Math.hypot(n.mu, Math.sqrt(n.var)), mu: n.mu, var: n.var, rstd: n.rstd, xhat: n.xhatRms, gamma: n.gamma, beta: n.beta, y: Math.hypot(n.beta, n.gamma * n.xhatRms) };
  const size = Math.abs(magnitude[key.split(" ")[0]]);
  shape(arrows.forward, size > 0 ? 1 + 4.5 * clamp((Math.log10(size) + 3) / 6, 0, 1) : 1);
  if (n.hasGradient) shape(arrows.gradient, path === "zero" ? 1.2 : 1 + 12 * flowShare(path, n));
  const off = path in state.on && !state.on[path];
  group.classList.toggle("off", off);
  set(group, { "data-share": n.hasGradient ? flowShare(path, n) : null });
}

function shape({ curve, shaft, head }, width) {
  const outline = arrowShape(curve, width);
  set(shaft, { d: outline.shaft, "stroke-width": width.toFixed(2) });
  set(head, { d: outline.head });
}

function graphWords(n) {
  const forwardWords = `Mean ${number(n.mu)}, variance ${number(n.var)}, scale ${number(n.gamma)}, shift ${number(n.beta)}.`;
  if (!n.hasGradient) return forwardWords;
  const { direct, mean, variance } = n.lengths;
  return `${forwardWords} Lengths of the paths to x: direct ${number(direct)}, through the mean ${number(mean)}, through the variance ${number(variance)}; together ${number(n.dx({ direct: true, mean: true, variance: true }))}.`;
}

// Below the graph: the share of the gradient that reaches x, and the removed shares.
function drawReaches() {
  const n = numbersNow();
  const place = document.getElementById("reaches");
  if (!n.hasGradient) {
    place.replaceChildren(html("p", { class: "say" }, "No gradient was given (dy), so the arrows show the forward pass only; play mode generates gradients."));
    return;
  }
  const { kept, mean, variance } = n.shares;
  const words = n.fixed
    ? "This layer normalized with given moments, through which no gradient flows: all of it reaches x."
    : "Shares of the gradient's energy (its squared norm). The path through μ removes the component that β receives, the path through σ² the one that γ receives.";
  place.replaceChildren(
    shareBar(n.shares, true),
    html("p", { class: "legend" },
      legend("kept", "reaches x", kept), legend("mean", "removed through μ", mean), legend("variance", "removed through σ²", variance)),
    html("p", { class: "say" }, words),
  );
}

function legend(kind, words, share) {
  return html("span", { "data-share-of": kind, "data-value": share }, html("i", { class: `key ${kind}` }), ` ${words} `, html("b", {}, percent(share)));
}

function shareBar({ kept, mean, variance }, large) {
  const piece = (kind, share) => html("i", { class: kind, style: `width:${(100 * clamp(share || 0, 0, 1)).toFixed(3)}%` });
  return html("span", { class: large ? "shares large" : "shares" }, piece("kept", kept), piece("mean", mean), piece("variance", variance));
}
