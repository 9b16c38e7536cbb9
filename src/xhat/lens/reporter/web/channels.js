// The sortable table of channels, in which only visible rows exist, and the findings.

const ROW = 30; // height of a row, as in report.css
const COLUMNS = [
  ["channel", "channel"], ["kept", "reaches x · μ · σ²"],
  ["mu", "μ"], ["var", "σ²"], ["min", "least"], ["max", "greatest"], ["gamma", "γ"], ["beta", "β"],
  ["eps_share", "ε in σ² + ε"],
  ["dy", "‖dy‖"], ["dgamma", "dγ"], ["dbeta", "dβ"], ["dx", "‖dx‖"],
  ["gap_mean", "μ from running"], ["gap_var", "σ² / running"],
  ["by_mean", "out through μ"], ["by_variance", "out through σ²"], ["cancellation", "cancellation"],
];
const SHARES = new Set(["eps_share", "by_mean", "by_variance"]);
const HINTS = {
  eps_share: "the share of ε in σ² + ε: usually near 0",
  kept: "shares of the gradient's energy: the share that reaches x, and the shares that the other two paths remove",
  gap_mean: "the distance of the batch's mean from the running one, in running standard deviations",
  gap_var: "the variance of the batch divided by the running one",
  cancellation: "the sum of the norms of the three paths, divided by the norm of their sum: 1 without cancellation",
};

let order = []; // row indices of the layer, in the order of the table

function buildTable() {
  const layer = layerNow();
  const columns = COLUMNS.filter(([key]) => key === "channel" || key in layer.columns);
  const head = html("tr", { "aria-rowindex": 1 }, ...columns.map(([key, words]) => html("th", { scope: "col", "data-key": key }, html("button", { type: "button", title: HINTS[key] ?? null }, words))));
  const body = html("tbody");
  const table = html("table", { "aria-rowcount": layer.channels.length + 1 }, html("thead", {}, head), body);
  head.addEventListener("click", (event) => {
    const key = event.target.closest("th")?.dataset.key;
    if (key) sortBy(key);
  });
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr")?.dataset.row;
    if (row !== undefined) choose(Number(row));
  });
  document.getElementById("table").replaceChildren(table);
  const missing = layer.count - layer.channels.length;
  document.getElementById("table-note").textContent = missing
    ? `${layer.channels.length} of ${layer.count}: those with findings, and an even selection of the others`
    : count(layer.count, "channel") + "; arrow keys move the choice";
  const box = document.getElementById("table");
  if (box.scrollWidth > box.clientWidth + 1) document.getElementById("table-note").textContent += "; more columns to the right →";
  sortRows();
}

function sortBy(key) {
  state.sort = { key, down: state.sort.key === key ? !state.sort.down : key !== "channel" };
  sortRows();
  document.getElementById("table").scrollTop = 0;
  drawTable();
}

function sortRows() {
  const layer = layerNow();
  const { key, down } = state.sort;
  const values = key in layer.columns ? layer.columns[key].values : layer.channels;
  const value = (row) => (Number.isNaN(values[row]) ? -Infinity : values[row]);
  order = layer.channels.map((_, row) => row).sort((a, b) => {
    const [va, vb] = [value(a), value(b)];
    return va === vb ? a - b : (va < vb ? -1 : 1) * (down ? -1 : 1);
  });
  for (const th of document.querySelectorAll("#table th")) {
    set(th, { "aria-sort": th.dataset.key === key ? (down ? "descending" : "ascending") : null });
  }
}

function drawTable() {
  const scroll = document.getElementById("table");
  const body = scroll.querySelector("tbody");
  const first = clamp(Math.floor(scroll.scrollTop / ROW) - 4, 0, Math.max(0, order.length - 1));
  const last = Math.min(order.length, first + Math.ceil(Math.max(scroll.clientHeight, 440) / ROW) + 8);
  const gap = (rows) => html("tr", { class: "gap", "aria-hidden": "true" }, html("td", { style: `height:${rows * ROW}px` }));
  const rows = order.slice(first, last).map((row, i) => tableRow(row, first + i));
  body.replaceChildren(gap(first), ...rows, gap(order.length - last));
}

function tableRow(row, place) {
  const layer = layerNow();
  const keys = [...document.querySelectorAll("#table th")].map((th) => th.dataset.key);
  const cells = keys.map((key) => {
    const value = key === "channel" ? layer.channels[row] : cell(layer, key, row);
    const td = html("td", { "data-key": key, "data-value": value });
    if (key === "channel") td.append(channelName(layer, row));
    else if (key === "kept") td.append(shareBar({ kept: value, mean: cell(layer, "by_mean", row), variance: cell(layer, "by_variance", row) }), html("span", {}, percent(value)));
    else td.append(SHARES.has(key) ? percent(value) : number(value));
    return td;
  });
  return html("tr", { "data-row": row, "aria-rowindex": place + 2, "aria-selected": row === state.row ? "true" : "false" }, ...cells);
}

function tableKeys(event) {
  const here = order.indexOf(state.row);
  const page = Math.max(1, Math.floor(event.currentTarget.clientHeight / ROW) - 2);
  const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -here, End: order.length - 1 - here }[event.key];
  if (step === undefined || event.target.closest("button")) return;
  event.preventDefault();
  const next = clamp(here + step, 0, order.length - 1);
  choose(order[next]);
  const scroll = event.currentTarget;
  scroll.scrollTop = clamp(scroll.scrollTop, (next + 2) * ROW - scroll.clientHeight + ROW, next * ROW);
}

const FIRST_SHOWN = 6;
const FINE = "No channel is constant, dominated by ε, far from zero, short of values or robbed of nearly all its gradient.";

// One entry for each kind, with the number of its channels.
function byKind(findings) {
  const kinds = new Map();
  for (const one of findings) {
    if (!kinds.has(one.kind)) kinds.set(one.kind, { ...one, count: 0 });
    kinds.get(one.kind).count += 1;
  }
  return [...kinds.values()];
}

function drawFindings(all = false) {
  const layer = layerNow();
  const listed = DATA.model ? byKind(layer.findings) : layer.findings;
  const found = all ? listed : listed.slice(0, FIRST_SHOWN);
  const items = found.map(({ kind, row, reason, count: alike }) => {
    const where = row < 0 ? "all channels" : alike > 1 ? `${alike} channels, the first ${channelName(layer, row)}` : `channel ${channelName(layer, row)}`;
    const words = [html("b", {}, kind), html("span", { class: "where" }, where), html("span", { class: "reason" }, reason)];
    return html("li", {}, row < 0 ? html("div", { class: "finding" }, ...words) : html("button", { type: "button", class: "finding", "data-row": row }, ...words));
  });
  document.getElementById("first-title").textContent = DATA.model ? `In ${layer.name}` : "Look here first";
  document.getElementById("first").hidden = DATA.model && !items.length; // the whole model is judged above
  if (!items.length) items.push(html("li", {}, html("div", { class: "finding fine" }, html("b", {}, "nothing stands out"), html("span", { class: "reason" }, FINE))));
  document.getElementById("findings").replaceChildren(...items);
  const more = document.getElementById("more");
  more.hidden = all || listed.length <= FIRST_SHOWN;
  const total = layer.findingsInAll;
  more.textContent = total > layer.findings.length ? `Show ${layer.findings.length} of ${total.toLocaleString("en")}` : `Show all ${total}`;
}
