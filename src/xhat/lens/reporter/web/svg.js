// HTML and SVG elements, and arrows with a width. Text enters the page as text nodes only.

const SVG = "http://www.w3.org/2000/svg";

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) element.removeAttribute(name);
    else element.setAttribute(name, value === true ? "" : value);
  }
  return element;
}

function html(name, attributes = {}, ...children) {
  const element = set(document.createElement(name), attributes);
  element.append(...children);
  return element;
}

function svg(name, attributes = {}, ...children) {
  const element = set(document.createElementNS(SVG, name), attributes);
  element.append(...children);
  return element;
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const mix = (a, b, t) => [a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t];

// A point of the quadratic curve a, b, c.
const at = ([a, b, c], t) => mix(mix(a, b, t), mix(b, c, t), t);

const inside = ([x, y], box) => Math.abs(x - box.x) <= box.w / 2 + 3 && Math.abs(y - box.y) <= box.h / 2 + 3;

// The part of a curve between two boxes: an arrow starts and ends at their borders.
function between(curve, from, to) {
  let start = 0;
  let end = 1;
  while (start < 1 && inside(at(curve, start), from)) start += 0.005;
  while (end > start && inside(at(curve, end), to)) end -= 0.005;
  const [a, b, c] = curve;
  const control = mix(mix(a, b, start), mix(b, c, start), end);
  return [at(curve, start), control, at(curve, end)];
}

// The curve shifted sideways, to leave room for the opposite arrow.
function beside([a, b, c], distance) {
  const length = Math.hypot(c[0] - a[0], c[1] - a[1]) || 1;
  const shift = [(-(c[1] - a[1]) / length) * distance, ((c[0] - a[0]) / length) * distance];
  return [a, b, c].map(([x, y]) => [x + shift[0], y + shift[1]]);
}

// The outline of an arrow along a curve: a shaft of the given width and a head at its end.
function arrowShape(curve, width) {
  const [a, b, c] = curve;
  const length = Math.hypot(b[0] - a[0], b[1] - a[1]) + Math.hypot(c[0] - b[0], c[1] - b[1]);
  const head = Math.min(6 + width * 0.9, length * 0.6);
  const wing = width / 2 + 3.5;
  const neck = at(curve, 1 - head / Math.max(length, 1));
  const angle = Math.atan2(c[1] - neck[1], c[0] - neck[0]);
  const side = (distance) => [neck[0] - Math.sin(angle) * distance, neck[1] + Math.cos(angle) * distance];
  const shaft = upTo(curve, 1 - head / Math.max(length, 1));
  return {
    shaft: `M${point(shaft[0])}Q${point(shaft[1])} ${point(shaft[2])}`,
    head: `M${point(c)}L${point(side(wing))}L${point(side(-wing))}Z`,
  };
}

const point = ([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`;
const upTo = ([a, b, c], end) => [a, mix(a, b, end), at([a, b, c], end)];
