// Event handlers, and the order of drawing. Drawing and numbers are in the other files.

function choose(row) {
  state.row = row;
  state.playing = false;
  restartPlay();
  drawChannel();
}

function chooseLayer(index) {
  state.layer = index;
  state.row = 0;
  state.playing = false;
  drawLayer();
}

function restartPlay() {
  fields = null;
  startPlay();
}

function drawLayer() {
  const layer = layerNow();
  const options = layer.channels.map((_, row) => html("option", { value: row }, channelName(layer, row)));
  document.getElementById("channel").replaceChildren(...options);
  markLayer();
  drawFacts(layer);
  drawFindings();
  buildTable();
  restartPlay();
  drawChannel();
  drawOverview();
}

function drawFacts(layer) {
  const name = DATA.layers.length > 1 ? layer.name : DATA.title;
  document.getElementById("title").textContent = DATA.title;
  document.title = `${DATA.title}: xhat report`;
  const facts = [
    ...(name !== DATA.title ? [name] : []),
    layer.shape.join(" × "), layer.dtype, `channel axis ${layer.axis.join(", ")}`, count(layer.count, "channel"),
    `m = ${layer.m.toLocaleString("en")}`, `ε = ${number(layer.eps)}`, `correction ${layer.correction}`,
    ...(layer.fixed ? ["fixed moments"] : []), ...(layer.hasGradient ? [] : ["forward only"]),
  ];
  document.getElementById("facts").replaceChildren(...facts.map((fact) => html("span", {}, fact)));
}

function drawChannel() {
  const layer = layerNow();
  document.getElementById("graph-channel").textContent = `channel ${channelName(layer, state.row)}`;
  document.getElementById("channel").value = state.row;
  drawShapes();
  drawTable();
  drawNumbers();
  if (document.querySelector("#overview svg")) markOverview();
}

// Everything that changes with each step of play mode.
function drawNumbers() {
  drawGraph();
  drawReaches();
  drawPlay();
  const layer = layerNow();
  document.getElementById("source").textContent = state.playing
    ? `Playing: a separate batch of ${state.play.x.length} values.`
    : `The whole channel: ${count(layer.m, "value")}.`;
  document.body.classList.toggle("playing", state.playing);
}

function press(button) {
  const name = button.dataset.switch;
  state.on[name] = !state.on[name];
  set(button, { "aria-pressed": String(state.on[name]) });
  drawNumbers();
}

function watch() {
  const on = (id, event, react) => document.getElementById(id).addEventListener(event, react);
  const step = (by) => choose((state.row + by + layerNow().channels.length) % layerNow().channels.length);
  on("previous", "click", () => step(-1));
  on("next", "click", () => step(1));
  on("channel", "change", (event) => choose(Number(event.target.value)));
  on("more", "click", () => drawFindings(true));
  on("findings", "click", (event) => {
    const row = event.target.closest("[data-row]")?.dataset.row;
    if (row === undefined) return;
    choose(Number(row));
    document.getElementById("graph-title").scrollIntoView({ block: "start", behavior: "smooth" });
  });
  on("groups", "click", (event) => {
    const chosen = event.target.closest("[data-layer]")?.dataset;
    if (chosen === undefined) return;
    chooseLayer(Number(chosen.layer));
    choose(Number(chosen.row));
    document.getElementById("graph-title").scrollIntoView({ block: "start", behavior: "smooth" });
  });
  on("play", "click", () => {
    state.playing = !state.playing;
    drawNumbers();
  });
  on("reset", "click", () => {
    restartPlay();
    drawNumbers();
  });
  on("table", "scroll", drawTable);
  on("table", "keydown", tableKeys);
  for (const button of document.querySelectorAll("[data-switch]")) button.addEventListener("click", () => press(button));
  NARROW.addEventListener("change", drawGraph);
  watchRows();
}

drawDoctor();
drawLayers();
drawModel();
drawLayer();
watch();
