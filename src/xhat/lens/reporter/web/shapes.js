// Distributions before and after normalization, for one channel and for all.

const PANEL = { w: 300, h: 150, left: 10, right: 10, top: 12, bottom: 30 };
const BINS = 32;

function drawShapes() {
  const layer = layerNow();
  const get = (name) => cell(layer, name, state.row);
  const [mu, variance, rstd, gamma, beta, low, high] = ["mu", "var", "rstd", "gamma", "beta", "min", "max"].map(get);
  const std = Math.sqrt(variance);
  const heights = rowOf(layer.histograms.x, state.row);
  const out = (value) => gamma * ((value - mu) * rstd) + beta;
  const turned = gamma < 0;
  const panels = [
    panel("x, before", "forward", heights, low, high, [mu, std]),
    panel("y, after", "forward", turned ? [...heights].reverse() : heights, out(turned ? high : low), out(turned ? low : high), [beta, Math.abs(gamma) * std * rstd]),
  ];
  if (layer.hasGradient) {
    panels.push(
      panel("dy, coming in", "gradient", rowOf(layer.histograms.dy, state.row), get("dy_min"), get("dy_max"), [get("dbeta") / layer.m, null]),
      panel("dx, going out", "gradient", rowOf(layer.histograms.dx, state.row), get("dx_min"), get("dx_max"), [0, null]),
    );
  }
  document.getElementById("shapes").replaceChildren(...panels);
}

function panel(title, kind, heights, low, high, [center, spread]) {
  const { w, h, left, right, top, bottom } = PANEL;
  const floor = h - bottom;
  const flat = !(high > low);
  const span = flat ? Math.abs(low) || 1 : high - low;
  const start = flat ? low - span / 2 : low;
  const place = (value) => left + ((value - start) / span) * (w - left - right);
  const picture = svg("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": `${title}: from ${number(low)} to ${number(high)}, mean ${number(center)}`, class: kind, "data-shape": title });
  if (flat) picture.append(svg("rect", { x: w / 2 - 3, y: top, width: 6, height: floor - top, class: "histogram" }));
  else picture.append(svg("path", { class: "histogram", d: bars(heights, left, (w - left - right) / BINS, floor, floor - top - 10) }));
  picture.append(svg("line", { x1: left, x2: w - right, y1: floor + 0.5, y2: floor + 0.5, class: "axis" }));
  if (!flat && Number.isFinite(center)) {
    if (spread) {
      const [a, b] = [clamp(place(center - spread), left, w - right), clamp(place(center + spread), left, w - right)];
      picture.append(svg("rect", { x: a, y: floor + 2, width: Math.max(0, b - a), height: 4, class: "spread" }));
    }
    const middle = clamp(place(center), left, w - right);
    picture.append(svg("line", { x1: middle, x2: middle, y1: top, y2: floor + 6, class: "center" }));
  }
  const tick = (x, anchor, value) => svg("text", { x, y: h - 8, "text-anchor": anchor, class: "tick" }, number(value, 3));
  if (flat) picture.append(tick(w / 2, "middle", low));
  else picture.append(tick(left, "start", low), tick(w - right, "end", high));
  if (!flat) picture.append(svg("text", { x: w / 2, y: h - 8, "text-anchor": "middle", class: "tick strong" }, spread ? `${number(center, 3)} ± ${number(spread, 3)}` : `mean ${number(center, 3)}`));
  return html("figure", {}, html("figcaption", {}, title), picture);
}

const bars = (heights, left, step, floor, tall) =>
  heights.map((height, i) => (height ? `M${(left + i * step + 0.6).toFixed(1)},${floor}v${(-Math.max(1.2, (height / 255) * tall)).toFixed(1)}h${(step - 1.2).toFixed(1)}V${floor}Z` : "")).join("");

// Mean and standard deviation of every channel, before and after; a click selects a channel.
function drawOverview() {
  const layer = layerNow();
  const { mu, var: variance, rstd, gamma, beta } = Object.fromEntries(["mu", "var", "rstd", "gamma", "beta"].map((name) => [name, layer.columns[name].values]));
  const rows = layer.channels.map((_, row) => row);
  const before = rows.map((row) => [mu[row], Math.sqrt(variance[row])]);
  const after = rows.map((row) => [beta[row], Math.abs(gamma[row]) * Math.sqrt(variance[row]) * rstd[row]]);
  document.getElementById("overview").replaceChildren(
    allChannels("every channel's μ ± σ, before", before), allChannels("every channel's mean ± deviation, after", after),
  );
  markOverview();
}

function allChannels(title, pairs) {
  const w = 640;
  const h = 150;
  const good = pairs.filter(([center, spread]) => Number.isFinite(center) && Number.isFinite(spread));
  const { low, high, beyond } = usualRange(good);
  const span = high - low || 1;
  const x = (row) => 8 + ((row + 0.5) / pairs.length) * (w - 16);
  const y = (value) => 10 + (1 - (clamp(value, low, high) - low) / span) * (h - 20);
  const width = clamp(((w - 16) / pairs.length) * 0.6, 0.6, 7);
  const picture = svg("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": title, class: "forward all" });
  const strokes = pairs.map(([center, spread], row) => (Number.isFinite(spread) ? `M${x(row).toFixed(1)},${(y(center - spread) + 0.4).toFixed(1)}V${(y(center + spread) - 0.4).toFixed(1)}` : ""));
  picture.append(svg("path", { d: strokes.join(""), "stroke-width": width, class: "strokes" }));
  if (low < 0 && high > 0) picture.append(svg("line", { x1: 0, x2: w, y1: y(0), y2: y(0), class: "axis" }));
  picture.append(svg("rect", { class: "chosen", y: 2, height: h - 4, width: Math.max(3, width + 3), rx: 2 }));
  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * w;
    choose(clamp(Math.floor(((at - 8) / (w - 16)) * pairs.length), 0, pairs.length - 1));
  });
  return html("figure", {}, html("figcaption", {}, title, html("span", { class: "range" }, good.length ? `${number(low, 3)} … ${number(high, 3)}${beyond ? `, ${beyond} beyond` : ""}` : "")), picture);
}

// The range of most channels, so that outliers don't flatten all others.
function usualRange(pairs) {
  const lows = pairs.map(([center, spread]) => center - spread).sort((a, b) => a - b);
  const highs = pairs.map(([center, spread]) => center + spread).sort((a, b) => a - b);
  const cut = pairs.length < 6 ? 0 : Math.max(1, Math.floor(pairs.length * 0.03));
  const usual = { low: lows[cut], high: highs[highs.length - 1 - cut], beyond: 0 };
  const whole = { low: lows[0], high: highs[highs.length - 1], beyond: 0 };
  if (!(whole.high - whole.low > 3 * (usual.high - usual.low))) return whole;
  const { low, high } = usual;
  return { low, high, beyond: pairs.filter(([center, spread]) => center - spread < low || center + spread > high).length };
}

function markOverview() {
  const total = layerNow().channels.length;
  for (const mark of document.querySelectorAll("#overview .chosen")) {
    const width = Number(mark.getAttribute("width"));
    set(mark, { x: 8 + ((state.row + 0.5) / total) * 624 - width / 2 });
  }
}
