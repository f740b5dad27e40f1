"""What makes the gallery go: all requests are data, and only those near the window are elements."""

from __future__ import annotations

# Text of a record only ever becomes a text node or a property, never markup; a picture's address is made by this package.
SCRIPT = r"""
(() => {
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const list = document.getElementById("requests");
const form = document.querySelector(".filters");
const output = form.querySelector("output");
const names = ["q", "arm", "of", "gain", "level", "stop", "show", "order"];
const field = (name) => form.elements.namedItem(name);
const label = (key) => Object.hasOwn(data.labels, key) ? data.labels[key] : key;
const settled = () => document.readyState !== "loading";

const make = (name, kind, ...children) => {
  const element = document.createElement(name);
  if (kind) element.className = kind;
  element.append(...children.filter((child) => child !== null));
  return element;
};
const signed = (value, digits) => {
  const size = Math.abs(value).toFixed(digits);
  return (Number(size) === 0 ? "\u00b1" : value > 0 ? "+" : "\u2212") + size;
};

// -- what is known of a request

const worth = (made, of) => {
  if (!made) return null;
  if (of === "") return made.reward;
  const found = made.aspects.find((aspect) => aspect[0] === of);
  return found ? found[2] : null;
};
const final = (arm, of) => arm.chosen === null ? null : worth(arm.made[arm.chosen], of);
const gainOf = (arm, of) => {
  const first = worth(arm.made[0], of), last = final(arm, of);
  return first === null || last === null ? null : Math.round((last - first) * 1e6) / 1e6;
};
const scored = (arm) => arm.made.every((made) => made.reward !== null);
const gains = {
  better: (gain) => gain !== null && gain > 0,
  much: (gain) => gain !== null && gain >= 0.1,
  same: (gain) => gain === 0,
  worse: (gain) => gain !== null && gain < 0,
  unknown: (gain) => gain === null,
};
const levels = {
  low: (value) => value !== null && value < 0.5,
  high: (value) => value !== null && value >= 0.5,
  full: (value) => value !== null && value > 0.999,
};
const asked = (made) => made.request === null ? "" : made.request.map(([kind, text]) => kind < 0 ? "" : text).join("");
const haystack = (item) => item.hay ??= [item.id, item.prompt, ...item.arms.flatMap((arm) => [arm.stop,
  ...arm.made.flatMap((made) => [asked(made), made.critique, made.unscored])])].join("\n").toLowerCase();

// -- filter and order

let state = {}, shown = [], here = null;

const fits = (arm) =>
  (state.arm === "" || arm.arm === state.arm) &&
  (state.stop === "" || arm.stop === state.stop) &&
  (state.show === "" || scored(arm) === (state.show === "scored")) &&
  // an aspect asked for is one that was scored, unless what is looked for is that it was not
  (state.of === "" || state.gain === "unknown" || arm.made.some((made) => worth(made, state.of) !== null)) &&
  (state.gain === "" || gains[state.gain](gainOf(arm, state.of))) &&
  (state.level === "" || levels[state.level](final(arm, state.of)));
const keys = {
  most: (arms) => arms.map((arm) => gainOf(arm, state.of)).filter((gain) => gain !== null).map((gain) => -gain),
  least: (arms) => arms.map((arm) => gainOf(arm, state.of)).filter((gain) => gain !== null),
  lowest: (arms) => arms.map((arm) => final(arm, state.of)).filter((value) => value !== null),
};

const cards = data.items.map((item, index) => {
  const element = make("article", "request");
  element.tabIndex = -1;
  return { item, element, index, arms: [], filled: false };
});
const byElement = new Map(cards.map((card) => [card.element, card]));
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const card = byElement.get(entry.target);
    if (entry.isIntersecting) fill(card); else empty(card);
  }
}, { rootMargin: "1000px 0px" });

const apply = () => {
  state = Object.fromEntries(names.map((name) => [name, field(name).value]));
  const words = state.q.toLowerCase().split(/\s+/).filter((word) => word !== "");
  watcher.disconnect();
  shown = [];
  for (const card of cards) {
    card.filled = false;
    card.element.replaceChildren();
    card.element.style.height = "";
    card.arms = card.item.arms.filter(fits);
    if (card.arms.length === 0) continue;
    if (words.length && !words.every((word) => haystack(card.item).includes(word))) continue;
    const found = state.order === "" ? [] : keys[state.order](card.arms);
    card.key = found.length ? Math.min(...found) : null;
    shown.push(card);
  }
  if (state.order !== "") {
    shown.sort((a, b) => a.key === null || b.key === null ? (a.key === null) - (b.key === null) : a.key - b.key);
  }
  list.replaceChildren(...shown.map((card) => card.element));
  if (shown.length === 0) list.append(make("p", "quiet none", cards.length ? "No request fits these filters." : "There is no request."));
  // the first ones at once, so that there is something to see before anything scrolls
  shown.slice(0, 4).forEach(fill);
  shown.forEach((card) => watcher.observe(card.element));
  output.textContent = shown.length + " of " + cards.length + " requests";
  document.documentElement.dataset.shown = String(shown.length);
};

// -- addresses: #gain=worse&order=least&at=ID

const read = () => {
  const found = new URLSearchParams(location.hash.slice(1));
  for (const name of names) {
    const input = field(name);
    input.value = found.get(name) ?? "";
    // what this page does not have is no filter
    if (input.selectedIndex < 0) input.selectedIndex = 0;
  }
  apply();
  const at = found.get("at");
  const card = at === null ? undefined : shown.find((one) => one.item.id === at);
  if (card) go(card, true); else here = null;
};
const write = () => {
  const kept = names.filter((name) => field(name).value !== "").map((name) => [name, field(name).value]);
  if (here) kept.push(["at", here.item.id]);
  // a page inside a sandboxed frame, as in a tracking server's viewer, has no address of its own to change
  try { history.replaceState(null, "", "#" + new URLSearchParams(kept)); } catch { /* it works without */ }
};
const change = () => { if (here) here.element.classList.remove("here"); here = null; apply(); write(); };

// -- pictures

let waiting = [];
const load = (image, number) => {
  const block = document.getElementById("p" + number);
  // while the file is being read, the last block may be half there
  if (!block || !(block.nextElementSibling || settled())) { waiting.push([image, number]); return; }
  image.src = "data:" + block.textContent;
};
const retry = () => {
  const again = waiting;
  waiting = [];
  for (const [image, number] of again) if (image.isConnected) load(image, number);
  if (!settled()) requestAnimationFrame(retry);
};
document.addEventListener("DOMContentLoaded", retry);

const picture = (number, alt) => {
  const shape = data.pictures[number];
  if (shape.missing !== undefined) {
    const box = make("div", "missing", shape.missing);
    box.setAttribute("role", "img");
    box.setAttribute("aria-label", alt);
    return box;
  }
  const image = make("img", shape.small ? "pixels" : "");
  image.alt = alt;
  image.width = shape.width;
  image.height = shape.height;
  image.decoding = "async";
  load(image, number);
  return image;
};

const dialog = document.querySelector("dialog");
let row = [], place = 0;
const enlarge = (by) => {
  place = Math.min(row.length - 1, Math.max(0, place + by));
  const [number, text] = row[place];
  dialog.replaceChildren(picture(number, text), make("p", "text", text), make("p", "quiet", (place + 1) + " of " + row.length));
};
dialog.addEventListener("click", () => dialog.close());
const framed = (entries, index) => {
  const [number, alt] = entries[index];
  const shown = picture(number, alt);
  if (shown.tagName !== "IMG") return shown;
  const button = make("button", "zoom", shown);
  button.type = "button";
  button.title = "Enlarge";
  button.addEventListener("click", () => { row = entries; place = index; enlarge(0); if (!dialog.open) dialog.showModal(); });
  return button;
};

// -- one request

const bar = (share) => {
  const inside = share === null ? null : make("i", "");
  if (inside) inside.style.width = (100 * share).toFixed(1) + "%";
  const outside = make("span", "bar", inside);
  outside.setAttribute("aria-hidden", "true");
  return outside;
};
const aspectsOf = (made, first) => made.aspects.length === 0 ? null : make("div", "aspects", ...made.aspects.flatMap(
  ([key, value, share]) => {
    const before = made === first ? null : first.aspects.find((aspect) => aspect[0] === key)?.[1] ?? null;
    const moved = before === null || value === null ? 0 : value - before;
    const change = Math.abs(moved) < 0.005 ? null : make("span", moved > 0 ? "good" : "bad", " " + signed(moved, 2));
    return [make("span", "name", label(key)), make("span", "value", value === null ? "none" : value.toFixed(2), change), bar(share)];
  }));
const passage = ([kind, text]) => kind === 0 ? document.createTextNode(text) : make(kind < 0 ? "del" : "ins", "", text);

const candidate = (item, arm, made, index, entries) => {
  const chosen = index === arm.chosen;
  const badge = chosen ? make("span", "badge", "\u2713 chosen") : null;
  const line = ["round " + made.round];
  if (made.parent !== null) line.push("from picture " + (made.parent + 1));
  if (made.heldOut !== null) line.push("judge " + made.heldOut.toFixed(3));
  if (made.tokens) line.push(made.tokens + " tokens");
  let critique = null;
  if (made.critique.trim() !== "") {
    const text = make("pre", "", made.critique);
    text.tabIndex = 0;
    critique = make("details", "", make("summary", "", "Critique"), text);
  }
  return make("li", chosen ? "candidate chosen" : "candidate",
    framed(entries, index),
    make("div", "line", made.reward === null ? make("span", "bad", "unscored") : make("span", "reward", "reward " + made.reward.toFixed(3)),
      badge),
    made.reward === null ? make("div", "unscored text", made.unscored || "no reason recorded") : null,
    make("div", "quiet facts", (index + 1) + " of " + arm.made.length + " \u00b7 " + line.join(" \u00b7 ")),
    aspectsOf(made, arm.made[0]),
    made.request === null ? make("p", "said quiet", "original request") : make("p", "said text", ...made.request.map(passage)),
    critique);
};

const section = (item, arm) => {
  const gain = gainOf(arm, ""), last = final(arm, "");
  const outcome = arm.chosen === null ? make("span", "bad", "nothing chosen")
    : last === null ? make("span", "bad", "chosen picture is unscored") : make("span", "reward", "reward " + last.toFixed(3));
  const facts = [make("h3", "", label(arm.arm)), outcome, gain === null ? make("span", "quiet", "no gain known")
    : make("span", gain > 0 ? "good" : gain < 0 ? "bad" : "", "gain " + signed(gain, 3))];
  if (state.of !== "") {
    const moved = gainOf(arm, state.of);
    const text = moved === null ? "not compared" : signed(100 * moved, 0) + " % of its scale";
    facts.push(make("span", "quiet", label(state.of) + " " + text));
  }
  facts.push(make("span", "quiet text", "stopped: " + arm.stop));
  if (arm.tokens) facts.push(make("span", "quiet", arm.tokens + " tokens"));
  const entries = arm.made.map((made, index) => [made.picture,
    label(arm.arm) + ", picture " + (index + 1) + " for: " + (made.request === null ? item.prompt : asked(made))]);
  const element = make("section", "arm", make("header", "", ...facts),
    make("ol", "candidates", ...arm.made.map((made, index) => candidate(item, arm, made, index, entries))));
  element.dataset.arm = arm.arm;
  element.dataset.gain = gain === null ? "" : String(gain);
  return element;
};

const fill = (card) => {
  if (card.filled) return;
  card.filled = true;
  const { item } = card;
  const entries = item.sources.map((number, index) => [number, "Source picture " + (index + 1) + " of: " + item.prompt]);
  const sources = entries.map((_, index) => make("figure", "", framed(entries, index), make("figcaption", "", "Source")));
  card.element.replaceChildren(
    make("header", "", sources.length ? make("div", "sources", ...sources) : null,
      make("div", "", make("h2", "text", item.prompt),
        make("small", "text", item.id + " \u00b7 " + (item.edit ? "edit" : "text to image")))),
    make("div", "arms", ...card.arms.map((arm) => section(item, arm))));
  card.element.style.height = "";
};
const empty = (card) => {
  // what is read, or held by the keyboard, stays
  if (!card.filled || card === here || card.element.contains(document.activeElement) || card.element.querySelector("details[open]")) return;
  card.element.style.height = card.element.offsetHeight + "px";
  card.element.replaceChildren();
  card.filled = false;
};

// -- keyboard

const go = (card, quiet) => {
  if (!card) return;
  if (here) here.element.classList.remove("here");
  here = card;
  fill(card);
  card.element.classList.add("here");
  card.element.focus({ preventScroll: true });
  card.element.scrollIntoView({ block: "start" });
  if (!quiet) write();
};
const step = (by) => {
  const at = shown.indexOf(here);
  go(shown[at < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, at + by))]);
};
const cycle = (name) => {
  const input = field(name);
  input.selectedIndex = (input.selectedIndex + 1) % input.options.length;
  change();
};
const help = document.querySelector(".keys");
const pressed = {
  j: () => step(1),
  k: () => step(-1),
  g: () => go(shown[0]),
  G: () => go(shown[shown.length - 1]),
  c: () => {
    const card = here ?? shown[0];
    if (!card) return;
    go(card);
    const folds = [...card.element.querySelectorAll("details")];
    const open = folds.some((fold) => !fold.open);
    for (const fold of folds) fold.open = open;
  },
  z: () => {
    const card = here ?? shown[0];
    if (!card) return;
    go(card);
    (card.element.querySelector(".chosen .zoom") ?? card.element.querySelector(".zoom"))?.click();
  },
  s: () => cycle("order"),
  w: () => cycle("gain"),
  u: () => { field("show").value = field("show").value === "some" ? "" : "some"; change(); },
  r: () => { form.reset(); change(); },
  "/": () => field("q").focus(),
  "?": () => { help.open = !help.open; help.scrollIntoView({ block: "nearest" }); },
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (dialog.open) {
    if (event.key === "ArrowRight" || event.key === "ArrowLeft") { enlarge(event.key === "ArrowRight" ? 1 : -1); event.preventDefault(); }
    return;
  }
  if (event.target.matches("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (!Object.hasOwn(pressed, event.key)) return;
  event.preventDefault();
  pressed[event.key]();
});

let typing = 0;
form.addEventListener("input", (event) => {
  if (event.target !== field("q")) return;
  clearTimeout(typing);
  typing = setTimeout(change, 150);
});
form.addEventListener("change", (event) => { if (event.target !== field("q")) change(); });
form.addEventListener("submit", (event) => { event.preventDefault(); change(); });
document.querySelector(".reset").addEventListener("click", pressed.r);
addEventListener("hashchange", read);
form.hidden = false;
help.hidden = false;
read();
retry();
})();
"""

STYLE = """
.filters { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .4rem .75rem; align-items: end;
  margin: 1rem 0 0; padding: .6rem 0; background: var(--ground); border-bottom: 1px solid var(--line); }
.filters label { display: grid; gap: .1rem; min-width: 0; font-size: .8rem; color: var(--quiet); }
.filters select, .filters input, .reset { font: inherit; font-size: .95rem; color: var(--ink); background: var(--surface);
  border: 1px solid var(--line); border-radius: 6px; padding: .3rem .5rem; min-height: 2.4rem; width: 100%; min-width: 0; }
.reset { cursor: pointer; }
.filters output { padding: .5rem 0; color: var(--quiet); font-size: .9rem; }
.keys { font-size: .9rem; margin: .5rem 0 0; }
.keys ul { display: flex; flex-wrap: wrap; gap: .3rem 1.25rem; list-style: none; margin: .4rem 0; padding: 0; }
kbd { font: .85em ui-monospace, Menlo, Consolas, monospace; padding: .05rem .4rem; border: 1px solid var(--line); border-bottom-width: 2px;
  border-radius: 4px; background: var(--surface); }
.request { scroll-margin-top: 10rem; }
.request:empty { min-height: 30rem; background: var(--surface); }
.request.here { border-color: var(--accent); box-shadow: 0 0 0 1px var(--accent); }
.request:focus { outline: none; }
.none { padding: 2rem 0; }
.zoom { display: block; width: 100%; padding: 0; border: 0; background: none; cursor: zoom-in; }
.facts { font-size: .82rem; overflow-wrap: anywhere; }
.aspects .name { text-align: left; } .aspects .value { text-align: right; font-variant-numeric: tabular-nums; }
dialog { border: 0; border-radius: 10px; padding: 1rem; background: var(--ground); color: var(--ink);
  width: min(94vw, 46rem); max-height: 94vh; overflow: auto; cursor: zoom-out; }
dialog::backdrop { background: rgb(0 0 0 / .7); }
dialog img { max-height: 70vh; width: auto; min-width: min(60vw, 20rem); max-width: 100%; margin: 0 auto .5rem; object-fit: contain; }
del { text-decoration-color: var(--bad); margin: 0 .1em; }
tbody th { white-space: nowrap; }
.candidate { width: 13rem; }
.candidate:has(details[open]) { width: 26.75rem; max-width: 100%; }
@media (min-width: 48rem) and (min-height: 40rem) { .filters { position: sticky; top: 0; z-index: 1; } }
@media (max-width: 48rem), (max-height: 40rem) { .request { scroll-margin-top: .5rem; } }
@media (max-width: 36rem) { .filters { grid-template-columns: 1fr 1fr; } .request:empty { min-height: 45rem; }
  .arm { width: 100%; } .candidate { width: calc(50% - .25rem); } .candidate:has(details[open]) { width: 100%; } }
@media (hover: none) and (max-width: 48rem) { .keys { display: none; } }
"""
