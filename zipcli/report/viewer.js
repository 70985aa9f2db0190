// One image, large: a slider between before and after, the maps, and what is known about it.
// The address holds which image is open, so that it can be shared, reloaded and left with Back.

const viewer = $("viewer");
const byId = new Map(cards.map((card) => [card.id, card]));
const LARGEST = 640; // pixels of the screen; larger, a preview shows no more
const ENLARGED = 16; // pixels of the screen for one of a small image

let open = null; // the card that is shown
let view = "compare";
let offered = ""; // the views that there are buttons for
let cut = 50; // percent of the width that shows before
let walkable = cards; // what next and previous walk through
let openedHere = false; // whether going back in the history leads to the grid
let closed = () => {}; // told which card was left

const withoutAnchor = () => location.href.split("#")[0];

function viewsOf(card) {
  const views = [];
  if (card.before || card.after) views.push(["compare", card.before && card.after ? "Compare" : card.after ? "After" : "Before"]);
  if (card.difference) views.push(["difference", `Difference \u00d7${data.amplified}`]);
  if (card.suspicion) views.push(["suspicion", "Suspicion"]);
  return views;
}

function showCard(card) {
  open = card;
  $("name").textContent = card.name;
  const list = walkable.includes(card) ? walkable : cards;
  const index = list.indexOf(card);
  $("place").textContent = `${whole(index + 1)} of ${whole(list.length)}`;
  $("previous").disabled = index === 0;
  $("next").disabled = index === list.length - 1;
  const views = viewsOf(card);
  if (!views.some(([value]) => value === view)) view = "compare";
  if (String(views) !== offered) radios($("views"), "view", views, view, showView);
  offered = String(views);
  $("views").hidden = views.length < 2;
  showFacts(card);
  const isFirst = !viewer.open;
  if (isFirst) {
    viewer.showModal();
    document.documentElement.classList.add("held");
  }
  showView(view);
  viewer.scrollTop = 0;
  if (isFirst) focusStage();
}

function focusStage() {
  const chosen = $("views").hidden ? null : $("views").querySelector("input:checked");
  ($("slider") || chosen || $("close")).focus({ preventScroll: true });
}

function showView(chosen) {
  view = chosen;
  const frame = $("frame");
  frame.replaceChildren();
  const card = open;
  for (const input of $("views").querySelectorAll("input")) input.checked = input.value === view;
  if (view !== "compare") {
    frame.append(picture(card, view, view === "difference" ? "Map of the difference" : "Map of suspicion"));
  } else if (card.before && card.after) {
    compare(frame, card);
  } else if (card.before || card.after) {
    const side = card.after ? "after" : "before";
    frame.append(picture(card, side, `The image ${side}`), make("span", { class: "tag left" }, side));
  } else {
    frame.append(make("p", { class: "none" }, "There is no picture to show."));
  }
  $("caption").textContent = caption(card);
  fit();
  // What had the focus may be gone, or a button that leads nowhere now; keys are heard only inside.
  const focused = document.activeElement;
  if (viewer.open && (!viewer.contains(focused) || focused === viewer || focused.disabled)) focusStage();
}

function compare(frame, card) {
  const before = picture(card, "before", "The image before");
  before.classList.add("top");
  const slider = make("input", {
    id: "slider", type: "range", min: 0, max: 100, step: 1, "aria-label": "Border between before, left, and after, right",
  });
  slider.value = cut;
  const move = () => {
    cut = Number(slider.value);
    frame.style.setProperty("--cut", `${cut}%`);
    slider.setAttribute("aria-valuetext", `${cut} % before`);
    left.hidden = cut < 12;
    right.hidden = cut > 88;
  };
  const left = make("span", { class: "tag left" }, "before");
  const right = make("span", { class: "tag right" }, "after");
  slider.addEventListener("input", move);
  frame.append(picture(card, "after", "The image after"), before, slider, make("span", { class: "edge" }), left, right);
  move();
}

function caption(card) {
  if (view === "difference") {
    const mean = `mean change ${figure(card.change)} of 255 levels`;
    return `The largest difference of the channels, ${data.amplified} times as bright as it is: black has not changed; ${mean}.`;
  }
  if (view === "suspicion") return "How implausible each pixel of the input is: the brighter, the more suspicious.";
  const missing = [["before", card.before_missing], ["after", card.after_missing]].filter(([, why]) => why);
  return missing.map(([side, why]) => `No picture ${side}: ${why}.`).join(" ");
}

// Make the picture as large as the window allows; pixels of small ones stay squares of one size.
function fit() {
  const isEmpty = !$("frame").querySelector("img");
  const [width, height] = isEmpty ? [320, 160] : [open.width, open.height];
  const roomX = $("frame").parentElement.clientWidth;
  const roomY = Math.max(240, window.innerHeight - 220);
  let scale = Math.min(roomX / width, roomY / height, LARGEST / Math.max(width, height), isEmpty ? 1 : Infinity);
  if (!isEmpty && open.is_small && scale > 1) scale = Math.min(ENLARGED, Math.floor(scale));
  $("frame").style.width = `${Math.max(1, Math.round(width * scale))}px`;
  $("frame").style.height = `${Math.max(1, Math.round(height * scale))}px`;
}

function verdict(card) {
  if (card.message) return card.message;
  if (card.state === "passed") return "A detector cleared it: written as it was.";
  if (card.state === "unfinished") return "A run ended before this image was finished.";
  return "";
}

function showFacts(card) {
  $("verdict").textContent = verdict(card);
  $("verdict").classList.toggle("bad", card.state === "failed");
  const given = (value, write) => (value === undefined ? undefined : write(value));
  const size = ([width, height]) => `${whole(width)} \u00d7 ${whole(height)}`;
  const link = make("a", { href: `#${card.id}` }, `#${card.id}`);
  pairs($("facts"), [
    ["State", card.state],
    ["Reason", card.reason],
    ["Score", given(card.score, (score) => figure(score) + (card.threshold === undefined ? "" : `, threshold ${figure(card.threshold)}`))],
    ["Change", given(card.change, (change) => `${figure(change)} of 255 levels`)],
    ["PSNR", given(card.psnr, (psnr) => `${decimals(psnr, 2)} dB`)],
    ["Size", card.width ? size([card.width, card.height]) : undefined],
    ["Input size", given(card.input_size, size)],
    ["Mode", card.mode],
    ["Notes", given(card.notes, (notes) => notes.join("; "))],
    ["Time", given(card.ms, time)],
    ["Finished", given(card.time, (time) => time.replace("T", " ").replace("+00:00", " UTC"))],
    ["Device", card.device],
    ["Seed", given(card.seed, String)],
    ["Output", card.out_path],
    ["Output bytes", given(card.out_bytes, bytes)],
    ["Input SHA-256", card.in_sha256, true],
    ["Output SHA-256", card.out_sha256, true],
    ["Other settings", card.other_settings, true],
    ["zipcli", card.version],
    ["Link", link, true],
  ]);
}

function step(direction) {
  const list = walkable.includes(open) ? walkable : cards;
  const card = list[list.indexOf(open) + direction];
  if (!card) return;
  history.replaceState(history.state, "", `#${card.id}`);
  showCard(card);
}

function leave() {
  if (openedHere) {
    history.back();
  } else {
    history.replaceState(null, "", withoutAnchor());
    followAddress();
  }
}

// Open or close as the address says.
function followAddress() {
  const card = byId.get(location.hash.slice(1));
  if (card) {
    showCard(card);
  } else if (open) {
    const left = open;
    open = null;
    openedHere = false;
    viewer.close();
    document.documentElement.classList.remove("held");
    closed(left);
  }
}

function startViewer() {
  history.scrollRestoration = "manual"; // Back returns to the card that was left
  window.addEventListener("hashchange", followAddress);
  window.addEventListener("popstate", followAddress);
  window.addEventListener("resize", () => open && fit());
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", leave);
  viewer.addEventListener("cancel", (event) => {
    event.preventDefault();
    leave();
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const inControl = event.target.matches("input");
    const views = viewsOf(open);
    const key = event.key.toLowerCase();
    if (key === "j" || (key === "arrowright" && !inControl)) step(1);
    else if (key === "k" || (key === "arrowleft" && !inControl)) step(-1);
    else if (/^[1-3]$/.test(key) && views[key - 1]) showView(views[key - 1][0]);
    else return;
    event.preventDefault();
  });
}
