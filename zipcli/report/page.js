// The page around the grid, and the order in which everything starts.

const NAMED = 10; // failures of one reason that are named before the grid is asked

function showHeader() {
  document.title = data.title;
  $("title").textContent = data.title;
  const total = Object.values(data.counts).reduce((sum, number) => sum + number, 0);
  const states = STATES.filter((state) => data.counts[state]).map((state) => `${whole(data.counts[state])}${NBSP}${state}`);
  $("summary").textContent = [count(total, "image"), ...states].join(" \u00b7 ");
  for (const note of data.notes) $("notes").append(make("li", {}, note));
  $("notes").hidden = !data.notes.length;
  $("made").textContent = `Made ${data.made}. This file holds everything that it shows, ${bytes(size)}.`;
}

function showFailures() {
  const reasons = new Map();
  for (const card of cards.filter((card) => card.state === "failed")) {
    const reason = card.reason || "unknown";
    if (!reasons.has(reason)) reasons.set(reason, []);
    reasons.get(reason).push(card);
  }
  const total = data.counts.failed || 0;
  $("failures").hidden = !total;
  $("failures").firstElementChild.textContent = count(total, "failure");
  for (const [reason, failed] of reasons) {
    const list = make("ul");
    for (const card of failed.slice(0, NAMED)) {
      list.append(make("li", {}, make("a", { href: `#${card.id}`, class: "name" }, card.name), make("span", { class: "soft" }, card.message || "")));
    }
    const group = make("div", { class: "group" }, make("h3", {}, reason, make("span", {}, whole(failed.length))), list);
    if (failed.length > NAMED) {
      const all = make("button", { type: "button" }, `Show all ${whole(failed.length)}`);
      all.addEventListener("click", () => filterBy("failed", reason));
      group.append(all);
    }
    $("failures").append(group);
  }
}

function showSettings() {
  const write = (value) => (Array.isArray(value) ? value.map(write).join(", ") : value !== null && typeof value === "object" ? JSON.stringify(value) : String(value));
  const rows = Object.entries(data.settings).map(([name, value]) => [name.replace(/_+$/, ""), write(value), name.endsWith("sha256")]);
  pairs($("settings").querySelector("dl"), [["fingerprint", data.fingerprint, true], ...rows]);
}

showHeader();
showMeasures();
showEvaluations();
showFailures();
showSettings();
startGrid();
startViewer();
followAddress();
