// All images, filtered and sorted. Only the cards in sight exist, however many images there are.

const grid = $("grid");
const GAP = 20;
const CARD = 194; // two pictures of 96 pixels, three for each of a 32 x 32 image; two cards fit on any screen
const CAPTION = 46;
const MARGIN = 400; // pixels above and below the window for which there are cards already

const names = new Intl.Collator("en", { numeric: true });
const SORTS = [
  { key: "name", label: "Name" },
  { key: "score", label: "Score", falls: true },
  { key: "change", label: "Change", falls: true },
  { key: "psnr", label: "PSNR" },
  { key: "ms", label: "Time", falls: true },
];
const STATES = ["done", "passed", "failed", "skipped", "unfinished"];

let shown = cards;
let columns = 1;
let cardWidth = CARD;
let gap = GAP;
let rowHeight = CARD;
let active = 0; // index of the card that Tab reaches
const made = new Map(); // index in `shown` -> its element
const wanted = { text: "", state: "", folder: "", sort: "name", falls: false };

function cardElement(card, index) {
  const pair = make("span", { class: "pair" });
  if (card.before || card.after) {
    for (const side of ["before", "after"]) {
      const why = card[`${side}_missing`] || (card.state === "failed" ? card.reason : "");
      pair.append(card[side] ? picture(card, side, "") : make("span", { class: "empty" }, why || `no picture ${side}`));
    }
  } else {
    const empty = make("span", { class: "empty alone" }, card.reason || card.state);
    empty.style.height = `${(cardWidth - 2) / 2}px`;
    pair.append(empty);
  }
  const figures = make("span", { class: card.state === "failed" ? "figures bad" : "figures" }, figuresOf(card));
  const link = make("a", { href: `#${card.id}`, tabindex: "-1" }, pair, make("span", { class: "name", title: card.name }, card.name), figures);
  return make("li", { "aria-setsize": shown.length, "aria-posinset": index + 1 }, link);
}

const WRITTEN = {
  score: (score) => `score ${figure(score)}`,
  change: (change) => `change ${figure(change)}`,
  psnr: (psnr) => `${decimals(psnr, 1)}${NBSP}dB`,
  ms: time,
};

// Two figures have room: first the one that the cards are sorted by.
function figuresOf(card) {
  const keys = [...new Set([wanted.sort, "score", "change", "psnr"])].filter((key) => key in WRITTEN && card[key] !== undefined);
  const figures = keys.map((key) => WRITTEN[key](card[key]));
  const state = card.state === "done" ? [] : [card.state, ...(card.reason ? [card.reason] : [])];
  return [...state, ...figures].slice(0, 2).join(" \u00b7 ");
}

function place(item, index) {
  const x = (index % columns) * (cardWidth + gap);
  const y = Math.floor(index / columns) * rowHeight;
  item.style.transform = `translate(${x}px, ${y}px)`;
  item.style.width = `${cardWidth}px`;
}

function makeCard(index) {
  if (made.has(index)) return made.get(index);
  const item = cardElement(shown[index], index);
  place(item, index);
  made.set(index, item);
  // In the order of the images, so that Tab and screen readers meet them in it.
  const later = [...made.keys()].filter((other) => other > index);
  grid.insertBefore(item, later.length ? made.get(Math.min(...later)) : null);
  return item;
}

function showCards() {
  const top = grid.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor((-top - MARGIN) / rowHeight)) * columns;
  const rows = Math.max(1, Math.ceil((window.innerHeight + MARGIN - top) / rowHeight)); // one, so that Tab finds it
  const last = Math.min(shown.length, rows * columns);
  for (const [index, item] of made) {
    if ((index < first || index >= last) && !item.contains(document.activeElement)) {
      item.remove();
      made.delete(index);
    }
  }
  for (let index = first; index < last; index += 1) makeCard(index);
  const reached = made.has(active) ? active : Math.min(...made.keys());
  for (const [index, item] of made) item.firstChild.tabIndex = index === reached ? 0 : -1;
}

function layOut() {
  const width = grid.clientWidth;
  columns = Math.max(2, Math.floor((width + GAP) / (CARD + GAP)));
  cardWidth = Math.min(CARD, Math.floor((width - GAP) / 2));
  gap = (width - columns * cardWidth) / (columns - 1);
  rowHeight = (cardWidth - 2) / 2 + CAPTION + GAP;
  grid.style.height = `${Math.ceil(shown.length / columns) * rowHeight}px`;
  for (const item of made.values()) item.remove();
  made.clear();
  if (shown.length) showCards();
}

// A card without the number comes last, whichever way the others are sorted.
function compareCards(a, b) {
  const turn = wanted.falls ? -1 : 1;
  if (wanted.sort === "name") return turn * names.compare(a.name, b.name);
  const [one, two] = [a[wanted.sort], b[wanted.sort]];
  if (one === undefined || two === undefined) {
    return (one === undefined) - (two === undefined) || names.compare(a.name, b.name);
  }
  return turn * (one - two) || names.compare(a.name, b.name);
}

function select() {
  const words = wanted.text.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (card) =>
    (!wanted.state || card.state === wanted.state) &&
    (!wanted.folder || card.folder === wanted.folder.slice(1)) &&
    words.every((word) => card.searched.includes(word));
  shown = cards.filter(fits).sort(compareCards);
  walkable = shown;
  active = 0;
  $("count").textContent = shown.length === cards.length ? count(cards.length, "image") : `${whole(shown.length)} of ${count(cards.length, "image")}`;
  $("nothing").hidden = shown.length > 0;
  $("turn").textContent = wanted.falls ? "\u2193 Descending" : "\u2191 Ascending";
  $("turn").setAttribute("aria-label", wanted.falls ? "Descending order; change to ascending" : "Ascending order; change to descending");
  layOut();
}

function goTo(index) {
  active = index;
  const top = grid.getBoundingClientRect().top + window.scrollY + Math.floor(index / columns) * rowHeight;
  const above = getComputedStyle($("tools")).position === "sticky" ? $("tools").offsetHeight + 8 : 8;
  if (top < window.scrollY + above) window.scrollTo(0, top - above);
  else if (top + rowHeight > window.scrollY + window.innerHeight) window.scrollTo(0, top + rowHeight - window.innerHeight);
  makeCard(index).firstChild.focus({ preventScroll: true });
  showCards();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const rows = Math.max(1, Math.floor(window.innerHeight / rowHeight) - 1);
  const steps = {
    ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, PageDown: rows * columns, PageUp: -rows * columns,
    Home: -shown.length, End: shown.length,
  };
  const item = event.target.closest("li");
  if (!item || !(event.key in steps)) return;
  event.preventDefault();
  const index = Number(item.getAttribute("aria-posinset")) - 1;
  goTo(Math.min(shown.length - 1, Math.max(0, index + steps[event.key])));
}

// Show the images of a state, and of a reason where `text` says so; the lists of failures lead here.
function filterBy(state, text) {
  Object.assign(wanted, { state, text, folder: "" });
  $("text").value = text;
  $("folder").value = "";
  for (const input of $("states").querySelectorAll("input")) input.checked = input.value === state;
  select();
  $("images").scrollIntoView();
  $("images").focus({ preventScroll: true });
}

function startTools() {
  for (const card of cards) card.searched = `${card.name} ${card.reason || ""} ${card.message || ""}`.toLowerCase();
  const states = STATES.filter((state) => cards.some((card) => card.state === state));
  const numbers = (state) => make("span", {}, whole(cards.filter((card) => card.state === state).length));
  const options = states.map((state) => [state, state, numbers(state)]);
  radios($("states"), "state", [["", "all"], ...options], "", (state) => {
    wanted.state = state;
    select();
  });
  $("states").hidden = states.length < 2;
  const folders = new Map();
  for (const card of cards) folders.set(card.folder, (folders.get(card.folder) || 0) + 1);
  const sorted = [...folders.keys()].sort(names.compare);
  $("folder").append(make("option", { value: "" }, "All folders"));
  for (const folder of sorted) $("folder").append(make("option", { value: `/${folder}` }, `${folder || "(none)"} (${whole(folders.get(folder))})`));
  $("folder").closest("label").hidden = folders.size < 2;
  for (const { key, label } of SORTS) {
    if (cards.some((card) => card[key] !== undefined)) $("sort").append(make("option", { value: key }, label));
  }
  $("text").addEventListener("input", () => {
    wanted.text = $("text").value;
    select();
  });
  $("folder").addEventListener("change", () => {
    wanted.folder = $("folder").value;
    select();
  });
  $("sort").addEventListener("change", () => {
    wanted.sort = $("sort").value;
    wanted.falls = Boolean(SORTS.find(({ key }) => key === wanted.sort).falls);
    select();
  });
  $("turn").addEventListener("click", () => {
    wanted.falls = !wanted.falls;
    select();
  });
  $("tools").addEventListener("submit", (event) => event.preventDefault());
}

function startGrid() {
  startTools();
  let waiting = false;
  const later = (work) => () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      work();
    });
  };
  window.addEventListener("scroll", later(() => shown.length && showCards()), { passive: true });
  let width = 0;
  new ResizeObserver(() => {
    if (grid.clientWidth === width) return;
    width = grid.clientWidth;
    layOut();
  }).observe(grid);
  grid.addEventListener("keydown", onKey);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (link && byId.has(link.hash.slice(1)) && !open) openedHere = !(event.ctrlKey || event.metaKey || event.shiftKey);
  });
  closed = (card) => {
    const index = shown.indexOf(card);
    if (index >= 0) goTo(index);
  };
  select();
}
