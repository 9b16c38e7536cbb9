// The settings of play mode, and its formulas with numbers.

let fields = null; // the inputs, by name

function buildControls() {
  const { gamma, beta } = state.play.settings;
  const wide = (value) => Math.max(3, 2 * Math.abs(value));
  const slider = (low, high, step) => html("input", { type: "range", min: low, max: high, step });
  fields = {
    x: html("input", { type: "number", step: "any" }),
    dy: html("input", { type: "number", step: "any" }),
    n: slider(Math.max(2, Math.floor(state.play.settings.c) + 1), MOST_N, 1),
    gamma: slider(-wide(gamma), wide(gamma), "any"),
    beta: slider(-wide(beta), wide(beta), "any"),
    eps: slider(-12, 2, "any"),
    c0: html("input", { type: "radio", name: "correction", value: 0 }),
    c1: html("input", { type: "radio", name: "correction", value: 1 }),
  };
  const values = {};
  const labelled = (name, words) => {
    values[name] = html("output");
    return html("label", { "data-control": name }, html("span", {}, words), fields[name], values[name]);
  };
  const pair = (name) => html("label", { "data-control": name, class: "pair" }, html("span", { "data-name": name }), fields[name]);
  const corrections = html("fieldset", {}, html("legend", {}, "correction"), html("label", {}, fields.c0, " 0: divide by N"), html("label", {}, fields.c1, " 1: by N − 1"));
  fields.values = values;
  document.getElementById("controls").replaceChildren(
    html("div", { class: "pairs" }, pair("x"), pair("dy")),
    labelled("n", "N"), labelled("gamma", "γ"), labelled("beta", "β"), labelled("eps", "ε"), corrections,
  );
  for (const name of ["x", "dy"]) fields[name].addEventListener("input", () => movePlay(name, state.play.chosen, fields[name].valueAsNumber, true));
  fields.n.addEventListener("input", () => changed(() => setN(Number(fields.n.value))));
  for (const name of ["gamma", "beta"]) fields[name].addEventListener("input", () => changed(() => (state.play.settings[name] = Number(fields[name].value))));
  fields.eps.addEventListener("input", () => changed(() => (state.play.settings.eps = Number(Math.pow(10, Number(fields.eps.value)).toPrecision(3)))));
  for (const [c, name] of [[0, "c0"], [1, "c1"]]) fields[name].addEventListener("change", () => changed(() => (state.play.settings.c = c)));
}

function changed(change) {
  change();
  state.playing = true;
  fitScales(true);
  drawNumbers();
}

function drawControls() {
  if (!fields) buildControls();
  const { x, dy, settings, chosen } = state.play;
  const write = (field, value) => {
    if (document.activeElement !== field || field.type === "radio") field.value = value;
  };
  for (const [name, values] of [["x", x], ["dy", dy]]) {
    document.querySelector(`#controls [data-name=${name}]`).textContent = name + digitsBelow(chosen + 1);
    if (document.activeElement !== fields[name]) fields[name].value = Number(values[chosen].toPrecision(4));
  }
  write(fields.n, x.length);
  write(fields.gamma, settings.gamma);
  write(fields.beta, settings.beta);
  write(fields.eps, Math.log10(settings.eps));
  fields.c0.checked = settings.c === 0;
  fields.c1.checked = settings.c === 1;
  const shown = { n: x.length, gamma: settings.gamma, beta: settings.beta, eps: settings.eps };
  for (const [name, value] of Object.entries(shown)) fields.values[name].textContent = number(value, 3);
}

function drawFormulas(n) {
  const { x, dy, settings, chosen: i } = state.play;
  const { forward: f, backward: b } = n.each;
  const { gamma, beta, eps, c } = settings;
  const at = digitsBelow(i + 1);
  const below = c ? `(${f.m} − ${number(c)})` : `${f.m}`;
  const scale = gamma * f.rstd;
  const dx = ["direct", "mean", "variance"].reduce((t, path) => t + (state.on[path] ? b.paths[path][i] : 0), 0);
  const sign = (value) => `${value < 0 ? "(" : ""}${number(value)}${value < 0 ? ")" : ""}`;
  document.getElementById("formulas").replaceChildren(
    formula("forward", "mu", "μ", "Σ xⱼ / N", `${number(sum(x))} / ${f.m}`, f.mu),
    formula("forward", "var", "σ²", "Σ (xⱼ − μ)² / (N − c)", `${number(f.m2)} / ${below}`, f.var),
    formula("forward", "rstd", "r", "1 / √(σ² + ε)", `1 / √(${number(f.var)} + ${number(eps)})`, f.rstd),
    formula("forward", "xhat", `x̂${at}`, `(x${at} − μ) r`, `(${number(x[i])} − ${sign(f.mu)}) · ${number(f.rstd)}`, f.xhat[i]),
    formula("forward", "y", `y${at}`, `γ x̂${at} + β`, `${number(gamma)} · ${sign(f.xhat[i])} + ${sign(beta)}`, f.y[i]),
    formula("gradient", "dbeta", "dβ", "Σ dyⱼ", "", b.dbeta),
    formula("gradient", "dgamma", "dγ", "Σ dyⱼ x̂ⱼ", "", b.dgamma),
    html("p", { class: "gradient whole" }, html("b", {}, `dx${at}`), ` = γ r ( `, term("direct", `dy${at}`), " − ", term("mean", "dβ / N"), " − ", term("variance", `x̂${at} dγ / (N − c)`), " )"),
    html("p", { class: "gradient" }, `= ${number(scale)} · ( `, term("direct", number(dy[i])), " − ", term("mean", sign(b.dbeta / f.m)), " − ", term("variance", sign((f.xhat[i] * b.dgamma) / (f.m - c))), " )"),
    html("p", { class: "gradient" }, "= ", ...["direct", "mean", "variance"].flatMap((path, k) => [k ? " + " : "", term(path, k ? sign(b.paths[path][i]) : number(b.paths[path][i]))]), " = ", html("output", { "data-formula": "dx", "data-value": dx }, number(dx))),
    html("p", { class: "say check" }, `Σ dxⱼ = ${number(rounded(sum(b.dx), b))}: no gradient along 1.  Σ dxⱼ x̂ⱼ = ${number(rounded(sum(b.dx.map((value, j) => value * f.xhat[j])), b))}: along x̂, ε r² of it stays.`),
  );
}

// A sum, or 0 if it is only rounding error.
const rounded = (value, { paths }) => (Math.abs(value) < 1e-13 * (norm(paths.direct) + Number.MIN_VALUE) * paths.direct.length ? 0 : value);

const term = (path, words) => html("span", { class: `term ${path}${state.on[path] ? "" : " off"}` }, words);

function formula(kind, name, left, right, inserted, value) {
  const words = inserted ? [html("span", { class: "inserted" }, ` = ${inserted}`)] : [];
  return html("p", { class: kind }, html("b", {}, left), ` = ${right}`, ...words, " = ", html("output", { "data-formula": name, "data-value": value }, number(value)));
}
