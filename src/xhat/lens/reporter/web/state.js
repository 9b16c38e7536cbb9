// The selection, and its numbers: of the whole channel, or of the small batch in play mode.

const DATA = JSON.parse(document.getElementById("data").textContent);

const state = {
  layer: 0,
  row: 0,
  on: { forward: true, gradient: true, direct: true, mean: true, variance: true, zero: true },
  playing: false,
  play: null,
  sort: { key: "channel", down: false },
};

const ARRAYS = { f8: Float64Array, f4: Float32Array, u1: Uint8Array };

function unpack([kind, width, text]) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return { width, values: new ARRAYS[kind](bytes.buffer) };
}

// The selected layer; its arrays are unpacked on first use.
const opened = new Map();
function layerNow() {
  if (!opened.has(state.layer)) {
    const layer = { ...DATA.layers[state.layer] };
    for (const group of ["columns", "histograms", "sample"]) {
      layer[group] = Object.fromEntries(Object.entries(layer[group]).map(([name, packed]) => [name, unpack(packed)]));
    }
    layer.hasGradient = "dx" in layer.columns;
    opened.set(state.layer, layer);
  }
  return opened.get(state.layer);
}

const cell = (layer, name, row) => (name in layer.columns ? layer.columns[name].values[row] : undefined);

function rowOf(packed, row) {
  return Array.from(packed.values.subarray(row * packed.width, (row + 1) * packed.width));
}

// The numbers of the whole channel for the graph.
function channelNumbers() {
  const layer = layerNow();
  const get = (name) => cell(layer, name, state.row);
  const { m, eps, correction: c, fixed } = layer;
  const [mu, variance, rstd, gamma, beta] = ["mu", "var", "rstd", "gamma", "beta"].map(get);
  const xhatRms = Math.sqrt(fixed ? variance : (variance * (m - c)) / m) * rstd;
  const numbers = {
    m, eps, c, fixed, mu, var: variance, rstd, gamma, beta, xhatRms,
    hasGradient: layer.hasGradient, low: get("min"), high: get("max"),
  };
  if (!layer.hasGradient) return numbers;
  const [dbeta, dgamma, dy, direct, mean, varianceLength] = ["dbeta", "dgamma", "dy", "direct", "mean", "variance"].map(get);
  const lengths = {
    direct, mean, variance: varianceLength,
    alongXhat: varianceLength === 0 ? 0 : (gamma * rstd * dgamma) ** 2 / (m - c) / varianceLength,
  };
  return {
    ...numbers, dy, dbeta, dgamma, ...scalarGradients({ dbeta, dgamma, gamma, rstd }),
    ...(fixed ? { dmu: 0, dvar: 0, drstd: 0 } : {}),
    lengths, dx: (on) => (on.direct && on.mean && on.variance ? get("dx") : lengthOf(on, lengths)),
    shares: { kept: get("kept"), mean: get("by_mean"), variance: get("by_variance") },
  };
}

// The same numbers for the small batch in play mode.
function playNumbers() {
  const { x, dy, settings } = state.play;
  const f = forward(x, settings);
  const b = backward(dy, f, settings);
  const lengths = Object.fromEntries(Object.entries(b.paths).map(([name, path]) => [name, norm(path)]));
  const partial = (on) =>
    norm(b.dx.map((_, i) => ["direct", "mean", "variance"].reduce((t, p) => t + (on[p] ? b.paths[p][i] : 0), 0)));
  return {
    ...settings, ...f, ...b, hasGradient: true, fixed: false, xhatRms: norm(f.xhat) / Math.sqrt(f.m),
    low: Math.min(...x), high: Math.max(...x), dy: norm(dy), lengths, dx: partial, each: { forward: f, backward: b },
    shares: shares(b.paths),
  };
}

const numbersNow = () => (state.playing ? playNumbers() : channelNumbers());
