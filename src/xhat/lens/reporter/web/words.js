// Numbers and names as text.

const MINUS = "−";

function number(value, digits = 4) {
  if (value === undefined || value === null) return "";
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : MINUS + "∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text =
    size >= 1e5 || size < 1e-3
      ? value.toExponential(digits - 2).replace(/\.?0+e/, "e").replace("e+", "e")
      : String(Number(value.toPrecision(digits)));
  return text.replace(/-/g, MINUS);
}

function percent(share) {
  if (Number.isNaN(share)) return "NaN";
  const value = 100 * share;
  const size = Math.abs(value);
  if (size > 0 && size < 0.001) return "< 0.001 %";
  if (size > 95 && size < 100) {
    const places = size > 99.9 ? 2 : 1; // never round up to 100 %
    return (Math.floor(value * 10 ** places) / 10 ** places).toFixed(places) + " %";
  }
  return String(size >= 100 ? Math.round(value) : Number(value.toPrecision(2))).replace("-", MINUS) + " %";
}

const count = (n, word) => n.toLocaleString("en") + " " + word + (n === 1 ? "" : "s");

const digitsBelow = (n) => String(n).replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);

// The name of a channel: its index, or its indices if there are several channel axes.
function channelName(layer, row) {
  let index = layer.channels[row];
  const sizes = layer.axis.map((axis) => layer.shape[axis]);
  const indices = sizes.reverse().map((size) => {
    const here = index % size;
    index = Math.floor(index / size);
    return here;
  });
  return indices.reverse().join(", ");
}
