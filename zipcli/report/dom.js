"use strict";
// What the other scripts share: the data, how elements are made, and how numbers are written.
// Text from the data becomes text nodes and values of attributes, never HTML.

const $ = (id) => document.getElementById(id);
const json = $("data").textContent;
const size = json.length;
const data = JSON.parse(json);
$("data").remove(); // megabytes that nobody needs twice
const cards = data.cards;

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const make = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);

const draw = (name, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

// A picture of a card; small ones are shown pixel by pixel.
function picture(card, which, alt) {
  const image = make("img", { alt, decoding: "async", draggable: "false", class: card.is_small ? "whole" : "" });
  image.src = "data:image/webp;base64," + card[which];
  return image;
}

const decimals = (value, digits) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const NBSP = "\u00a0"; // a number and its unit stay in one line
const whole = (value) => decimals(value, 0);
const percent = (value) => decimals(100 * value, 1) + NBSP + "%";
const count = (number, one, many = one + "s") => `${whole(number)} ${number === 1 ? one : many}`;

// Three digits that count, for scores of any size.
function figure(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(2);
  return decimals(value, size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

const time = (ms) => (ms < 1000 ? `${whole(ms)}${NBSP}ms` : `${decimals(ms / 1000, ms < 10000 ? 1 : 0)}${NBSP}s`);
const bytes = (size) => (size < 1e6 ? `${decimals(size / 1e3, 1)}${NBSP}kB` : `${decimals(size / 1e6, 1)}${NBSP}MB`);

// Radio buttons that look like one row; `options` are [value, label].
function radios(fieldset, name, options, chosen, changed) {
  fieldset.querySelectorAll("label").forEach((label) => label.remove());
  for (const [value, ...label] of options) {
    const input = make("input", { type: "radio", name, value });
    input.checked = value === chosen;
    input.addEventListener("change", () => changed(value));
    fieldset.append(make("label", {}, input, ...label));
  }
}

// Rows of a definition list; a row without a value is left out. `isDigest` sets it in equal widths.
function pairs(list, rows) {
  list.replaceChildren();
  for (const [name, value, isDigest] of rows) {
    if (value === undefined || value === null || value === "") continue;
    list.append(make("dt", {}, name), make("dd", { class: isDigest ? "digest" : undefined }, value));
  }
}
