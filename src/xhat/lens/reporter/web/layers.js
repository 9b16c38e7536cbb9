// The layers of a model in order, each with the share of the gradient that reaches x, and the removed shares.

function drawLayers() {
  const section = document.getElementById("layers");
  section.hidden = DATA.layers.length < 2;
  if (section.hidden) return;
  const names = { kept: "reaches the input", mean: "removed through μ", variance: "removed through σ²" };
  const keys = Object.entries(names).map(([kind, words]) => html("span", {}, html("i", { class: `key ${kind}` }), ` ${words}`));
  document.getElementById("layer-legend").replaceChildren(...keys);
  document.getElementById("layer-list").replaceChildren(...DATA.layers.map(layerItem));
}

// A link to the doctor's page about the model, or the call that writes one.
function drawDoctor() {
  const line = document.getElementById("doctor");
  line.hidden = !DATA.model;
  if (DATA.doctor === null) return;
  const link = html("a", { href: DATA.doctor }, "The doctor's page about this model");
  line.replaceChildren(link, " names what batch norm does to its evaluation.");
}

function layerItem(layer, index) {
  const found = layer.findingsInAll;
  const notes = [layer.fixed ? "fixed moments" : "", found ? count(found, "finding") : ""].filter(Boolean).join(" · ");
  const parts = [html("span", { class: "name" }, layer.name), html("span", { class: "size" }, `${layer.count} ch`)];
  if (layer.shares) {
    const [kept, mean, variance] = layer.shares;
    const words = `${percent(kept)} reaches the input, ${percent(mean)} is removed through μ, ${percent(variance)} through σ²`;
    const bar = set(shareBar({ kept, mean, variance }), { role: "img", "aria-label": words, title: words });
    parts.push(bar, html("span", { class: "share" }, percent(kept)));
  } else parts.push(html("span", { class: layer.broken ? "shares broken" : "shares none" }), html("span", { class: "share" }, layer.broken ? "not finite" : "no gradient"));
  parts.push(html("span", { class: "notes" }, notes));
  const button = html("button", { type: "button", "data-layer": index, "aria-pressed": String(index === state.layer) }, ...parts);
  button.addEventListener("click", () => chooseLayer(index));
  return html("li", {}, button);
}

function markLayer() {
  for (const button of document.querySelectorAll("#layer-list button")) {
    set(button, { "aria-pressed": String(Number(button.dataset.layer) === state.layer) });
  }
}
