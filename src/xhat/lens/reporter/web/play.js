// Play mode: a small batch with editable values, gradients and settings, and the results.

const LINE = 30; // height of a row
const WIDTH = 300;
const REACH = 52; // the longest gradient arrow
const FIRST_N = 8;
const MOST_N = 16;

let rows = null; // the elements of the three panels that are updated

function startPlay() {
  const layer = layerNow();
  const settings = { gamma: cell(layer, "gamma", state.row), beta: cell(layer, "beta", state.row), eps: layer.eps, c: layer.correction };
  const x = rowOf(layer.sample.x, state.row).map((value) => (Number.isFinite(value) ? value : 0));
  const dy = layer.hasGradient ? rowOf(layer.sample.dy, state.row).map((value) => (Number.isFinite(value) ? value : 0)) : x.map((_, i) => (i ? 0 : 1));
  state.play = { x: [], dy: [], settings, chosen: 0, pool: { x, dy }, scale: null };
  setN(Math.max(2, Math.floor(settings.c) + 1, Math.min(FIRST_N, x.length)));
}

// Further values come from the sample of the channel; beyond it, from its mirror image.
function setN(n) {
  const { x, dy, pool } = state.play;
  const middle = sum(pool.x) / pool.x.length;
  const spread = Math.max(...pool.x) - Math.min(...pool.x) || 1;
  const extra = (i) => 2 * middle - pool.x[i % pool.x.length] + (0.1 * spread * Math.ceil((i + 1) / pool.x.length)) / 2;
  while (x.length < n) {
    const i = x.length;
    x.push(i < pool.x.length ? pool.x[i] : extra(i));
    dy.push(i < pool.dy.length ? pool.dy[i] : 0);
  }
  x.length = dy.length = n;
  state.play.chosen = Math.min(state.play.chosen, n - 1);
  rows = null;
  fitScales(true);
}

function fitScales(shrink) {
  const { x, dy, settings, scale: old } = state.play;
  const f = forward(x, settings);
  const b = backward(dy, f, settings);
  const reach = (values) => Math.max(...values.map(Math.abs).filter(Number.isFinite), 0) || 1;
  const padded = (values, share) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const room = (high - low) * share || Math.abs(low) * 0.05 || 1;
    return [low - room, high + room];
  };
  const wider = (was, now) => (shrink || !was ? now : [Math.min(was[0], now[0]), Math.max(was[1], now[1])]);
  const contributions = [...b.paths.direct, ...b.paths.mean, ...b.paths.variance, ...b.dx];
  state.play.scale = {
    x: old && !shrink ? wider(old.x, [Math.min(...x), Math.max(...x)]) : padded(x, 0.35),
    y: wider(old?.y, padded(f.y, 0.1)),
    dy: shrink || !old ? reach(dy) : Math.max(old.dy, reach(dy)),
    dx: shrink || !old ? reach(contributions) : Math.max(old.dx, reach(contributions)),
  };
}

const place = ([low, high], value, room = 14) => room + ((value - low) / (high - low || 1)) * (WIDTH - 2 * room);
const valueAt = ([low, high], position, room = 14) => low + ((position - room) / (WIDTH - 2 * room)) * (high - low);
const lineAt = (i) => 20 + i * LINE + LINE / 2;
const yPlace = (value) => place(state.play.scale.y, value, 14 + REACH);
const tipPlace = (y, dy) => yPlace(y) + (dy / state.play.scale.dy) * REACH;

function buildRows() {
  const n = state.play.x.length;
  const h = n * LINE + 34;
  const picture = (name) => svg("svg", { viewBox: `0 0 ${WIDTH} ${h}`, "data-panel": name, role: "group", "aria-label": name });
  const panels = { x: picture("x, move the dots"), y: picture("y, move the tips to change dy"), dx: picture("dx, path by path") };
  const band = svg("rect", { class: "band", y: 8, height: h - 30, rx: 3 });
  const middle = svg("line", { class: "center", y1: 4, y2: h - 22 });
  const bandWords = svg("text", { class: "tick", y: h - 6, "text-anchor": "middle" });
  panels.x.append(band, middle, bandWords);
  panels.dx.append(svg("line", { class: "axis", x1: WIDTH / 2, x2: WIDTH / 2, y1: 8, y2: h - 22 }));
  rows = { panels, band, middle, bandWords, lines: [] };
  for (let i = 0; i < n; i++) rows.lines.push(buildLine(panels, i));
  document.getElementById("rows").replaceChildren(...Object.values(panels).map((panel) => html("figure", {}, html("figcaption", {}, panel.getAttribute("aria-label")), panel)));
}

function buildLine(panels, i) {
  const y = lineAt(i);
  const guide = () => svg("line", { class: "guide", x1: 8, x2: WIDTH - 8, y1: y, y2: y });
  const label = svg("text", { class: "tick", x: 2, y: y - 7 }, String(i + 1));
  const handle = (kind) => svg("circle", { class: `handle ${kind}`, cy: y, r: kind === "x" ? 8 : 7, tabindex: 0, role: "slider", "data-kind": kind, "data-index": i, "aria-label": `${kind}${digitsBelow(i + 1)}` });
  const [dot, tip] = [handle("x"), handle("dy")];
  const out = svg("circle", { class: "dot", cy: y, r: 4.5 });
  const arrow = svg("line", { class: "dy", y1: y, y2: y });
  const bars = Object.fromEntries(["direct", "mean", "variance"].map((name, k) => [name, svg("rect", { class: `bar ${name}`, y: y - 10 + 6 * k, height: 5, "data-path": name })]));
  const total = svg("path", { class: "total" });
  panels.x.append(guide(), label, dot);
  panels.y.append(guide(), arrow, out, tip);
  panels.dx.append(guide(), ...Object.values(bars), total);
  return { dot, tip, out, arrow, bars, total };
}

function drawPlay() {
  document.getElementById("play").setAttribute("aria-pressed", String(state.playing));
  document.getElementById("play").textContent = state.playing ? "Playing" : "Play";
  if (!rows || rows.lines.length !== state.play.x.length) buildRows();
  const n = playNumbers();
  const { forward: f, backward: b } = n.each;
  const { x, dy, scale, chosen } = state.play;
  const std = Math.sqrt(f.var);
  const [from, to] = [f.mu - std, f.mu + std].map((value) => clamp(place(scale.x, value), 0, WIDTH));
  set(rows.band, { x: from, width: Math.max(1, to - from) });
  set(rows.middle, { x1: place(scale.x, f.mu), x2: place(scale.x, f.mu) });
  set(rows.bandWords, { x: clamp(place(scale.x, f.mu), 50, WIDTH - 50) });
  rows.bandWords.textContent = `μ ± σ: ${number(f.mu, 3)} ± ${number(std, 3)}`;
  rows.lines.forEach((line, i) => {
    const y = lineAt(i);
    set(line.dot, { cx: place(scale.x, x[i]), "aria-valuemin": scale.x[0], "aria-valuemax": scale.x[1], "aria-valuenow": x[i], "aria-valuetext": number(x[i]) });
    set(line.out, { cx: yPlace(f.y[i]), "data-value": f.y[i] });
    set(line.arrow, { x1: yPlace(f.y[i]), x2: tipPlace(f.y[i], dy[i]) });
    set(line.tip, { cx: tipPlace(f.y[i], dy[i]), "aria-valuemin": -1.4 * scale.dy, "aria-valuemax": 1.4 * scale.dy, "aria-valuenow": dy[i], "aria-valuetext": number(dy[i]) });
    for (const part of [line.dot, line.tip]) part.classList.toggle("chosen", i === chosen);
    drawBars(line, i, y, b);
  });
  drawControls();
  drawFormulas(n);
}

function drawBars({ bars, total }, i, y, { paths }) {
  const unit = (WIDTH / 2 - 12) / state.play.scale.dx;
  let value = 0;
  for (const [name, bar] of Object.entries(bars)) {
    const length = paths[name][i] * unit;
    set(bar, { x: WIDTH / 2 + Math.min(0, length), width: Math.abs(length) });
    bar.classList.toggle("off", !state.on[name]);
    if (state.on[name]) value += paths[name][i];
  }
  const at = WIDTH / 2 + value * unit;
  set(total, { d: `M${at},${y - 12}l4,5v12l-4,5l-4,-5v-12Z`, "data-value": value });
}

// Handles move by pointer or by arrow keys.
function movePlay(kind, i, value, settled) {
  if (!Number.isFinite(value)) return;
  state.play[kind][i] = value;
  state.play.chosen = i;
  state.playing = true;
  if (settled) fitScales(false);
  drawNumbers();
}

function valueUnder(event, kind, i) {
  const panel = kind === "x" ? rows.panels.x : rows.panels.y;
  const box = panel.getBoundingClientRect();
  const position = ((event.clientX - box.left) / box.width) * WIDTH;
  if (kind === "x") return clamp(valueAt(state.play.scale.x, position), ...state.play.scale.x);
  const { y } = playNumbers();
  return clamp((position - yPlace(y[i])) / REACH, -1.4, 1.4) * state.play.scale.dy;
}

function watchRows() {
  const place = document.getElementById("rows");
  let moving = null;
  place.addEventListener("pointerdown", (event) => {
    const handle = event.target.closest(".handle");
    if (!handle) return;
    moving = { kind: handle.dataset.kind, i: Number(handle.dataset.index), id: event.pointerId };
    place.setPointerCapture(event.pointerId);
    handle.focus();
    event.preventDefault();
  });
  place.addEventListener("pointermove", (event) => {
    if (moving?.id === event.pointerId) movePlay(moving.kind, moving.i, valueUnder(event, moving.kind, moving.i), false);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    place.addEventListener(end, () => {
      if (moving) fitScales(false);
      moving = null;
      drawPlay();
    });
  }
  place.addEventListener("keydown", handleKey);
  place.addEventListener("focusin", (event) => {
    const i = event.target.dataset?.index;
    if (i === undefined || Number(i) === state.play.chosen) return;
    state.play.chosen = Number(i);
    drawPlay();
  });
}

function handleKey(event) {
  const { kind, index } = event.target.dataset;
  if (kind === undefined) return;
  const { scale } = state.play;
  const step = kind === "x" ? (scale.x[1] - scale.x[0]) / 50 : scale.dy / 20;
  const sign = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key];
  if (sign === undefined) return;
  event.preventDefault();
  movePlay(kind, Number(index), state.play[kind][Number(index)] + sign * step, true);
}
