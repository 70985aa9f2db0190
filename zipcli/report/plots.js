// Small plots: how a number is spread over the images, and rates before and after with their intervals.

const BINS = 32;

function histogram(title, values, write, threshold) {
  const sorted = Float64Array.from(values).sort();
  const ends = threshold === undefined ? sorted : [Math.min(sorted[0], threshold), Math.max(sorted.at(-1), threshold)];
  const low = ends.at(0);
  const span = ends.at(-1) - low || 1;
  const bins = new Array(BINS).fill(0);
  for (const value of sorted) bins[Math.min(BINS - 1, Math.floor(((value - low) / span) * BINS))] += 1;
  const most = Math.max(...bins);
  const plot = draw("svg", { viewBox: "0 0 320 64", preserveAspectRatio: "none", role: "img" });
  const [first, middle, last] = [sorted[0], sorted[sorted.length >> 1], sorted.at(-1)].map(write);
  plot.setAttribute("aria-label", `${title}: ${count(sorted.length, "image")}, from ${first} to ${last}, median ${middle}`);
  bins.forEach((number, bin) => {
    if (!number) return;
    const height = Math.max(1.5, (62 * number) / most);
    plot.append(draw("rect", { class: "bar", x: bin * 10 + 1, y: 63 - height, width: 8, height }));
  });
  plot.append(draw("line", { class: "rule", x1: 0, x2: 320, y1: 63.5, y2: 63.5 }));
  if (threshold !== undefined) {
    const x = ((threshold - low) / span) * 320;
    plot.append(draw("line", { class: "mark", x1: x, x2: x, y1: 0, y2: 64, "vector-effect": "non-scaling-stroke" }));
  }
  const scale = make("p", {}, make("span", {}, first), make("span", {}, `median ${middle}`), make("span", {}, last));
  return make("figure", {}, make("h3", {}, title), plot, scale);
}

function showMeasures() {
  const thresholds = new Set(cards.map((card) => card.threshold).filter((value) => value !== undefined));
  const shown = [
    ["Change, of 255", "change", figure],
    ["PSNR, dB", "psnr", (value) => decimals(value, 1)],
    ["Suspicion score", "score", figure, thresholds.size === 1 ? [...thresholds][0] : undefined],
    ["Time for an image", "ms", time],
  ];
  for (const [title, key, write, threshold] of shown) {
    const values = cards.map((card) => card[key]).filter((value) => value !== undefined);
    if (values.length > 1) $("measures").append(histogram(title, values, write, threshold));
  }
  $("measures").hidden = !$("measures").childElementCount;
}

const RATES = {
  ca: "Clean accuracy (CA)",
  asr: "Attack success (ASR)",
  asr_all: "ASR of all images",
  pa: "Accuracy under attack (PA)",
  ra: "PA without the target (RA)",
};
const FACTS = { der: ["DER", ""], psnr: ["PSNR of clean images", " dB"], ssim: ["SSIM", ""] };
const CLASSES_SHOWN = 50;

const written = (rate) => (rate ? `${percent(rate.value)} (${whole(rate.count)}/${whole(rate.total)})` : "no images");

const interval = (rate) =>
  rate && rate.low !== undefined && rate.high !== undefined ? `, 95 % from ${percent(rate.low)} to ${percent(rate.high)}` : "";

// A dot on its interval; `line` is its height.
function dot(plot, rate, side, line) {
  if (!rate) return;
  const at = (share) => `${100 * share}%`;
  if (rate.low !== undefined && rate.high !== undefined) {
    plot.append(draw("line", { class: side, x1: at(rate.low), x2: at(rate.high), y1: line, y2: line, "stroke-width": 2 }));
  }
  plot.append(draw("circle", { class: side, cx: at(rate.value), cy: line, r: 4, "stroke-width": 2 }));
}

function rateRow(rate) {
  const plot = draw("svg", { role: "img" });
  const words = ["before", "after"].map((side) => `${side} ${written(rate[side])}${interval(rate[side])}`);
  plot.setAttribute("aria-label", `${RATES[rate.name]}: ${words.join("; ")}`);
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    plot.append(draw("line", { class: "rule", x1: `${100 * share}%`, x2: `${100 * share}%`, y1: 0, y2: "100%" }));
  }
  dot(plot, rate.before, "before", 15);
  dot(plot, rate.after, "after", 29);
  const numbers = make("span", { class: "numbers", title: words.join("\n") });
  for (const side of ["before", "after"]) {
    numbers.append(make("span", { class: "soft" }, side), make("span", {}, written(rate[side])));
  }
  return make("div", { class: "rate" }, make("span", {}, RATES[rate.name]), plot, numbers);
}

function rateRows(rates) {
  const axis = make("div", { class: "axis", "aria-hidden": "true" }, ...["0", "25", "50", "75", "100 %"].map((text) => make("span", {}, text)));
  return make("div", { class: "rates" }, ...rates.map(rateRow), axis);
}

// How far the rate of a class moved that moved most.
const moved = (row) =>
  Math.max(...row.rates.map((rate) => (rate.before && rate.after ? Math.abs(rate.after.value - rate.before.value) : 0)), 0);

function classRows(rows) {
  const box = make("details", { class: "classes" }, make("summary", {}, `By class (${whole(rows.length)})`));
  const build = () => {
    const sorted = [...rows].sort((a, b) => moved(b) - moved(a)).slice(0, CLASSES_SHOWN);
    const words = sorted.length < rows.length ? `The ${CLASSES_SHOWN} that changed the most.` : "Those that changed the most first.";
    box.append(make("p", { class: "soft" }, words));
    for (const row of sorted) box.append(make("h3", { class: "name" }, row.name), rateRows(row.rates));
  };
  box.addEventListener("toggle", build, { once: true });
  return box;
}

function key(side) {
  const sign = draw("svg", { viewBox: "0 0 24 12", "aria-hidden": "true" });
  sign.append(
    draw("line", { class: side, x1: 1, x2: 23, y1: 6, y2: 6, "stroke-width": 2 }),
    draw("circle", { class: side, cx: 12, cy: 6, r: 4, "stroke-width": 2 }),
  );
  return make("span", {}, sign, side);
}

function showEvaluations() {
  for (const evaluation of data.evaluations) {
    const facts = Object.entries(evaluation.facts).map(([name, value]) => `${FACTS[name][0]} ${figure(value)}${FACTS[name][1]}`);
    const heading = make("header", {}, make("h2", {}, evaluation.name));
    if (facts.length) heading.append(make("span", { class: "soft" }, facts.join(", ")));
    heading.append(make("span", { class: "key" }, key("before"), key("after"), "95 % intervals"));
    const box = make("article", { class: "evaluation" }, heading, rateRows(evaluation.rates));
    for (const note of evaluation.notes) box.append(make("p", { class: "soft" }, note));
    if (evaluation.classes.length) box.append(classRows(evaluation.classes));
    $("evaluations").append(box);
  }
  $("evaluations").hidden = !data.evaluations.length;
}
