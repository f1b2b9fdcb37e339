// Lists: pairs that scroll smoothly however many there are, quarantined rows, and errors on benchmarks.

import { ask, el, people, percent, tell, whole } from "./server.js";

const CHUNK = 60; // rows of one request
const KEPT_CHUNKS = 80;
const MOST = 100000; // rows of one stretch: browsers have no taller element than some ten million pixels

export const query = {
  outcome: "", source: "", low: "", high: "", disagree: "", script: "", length: "", search: "", sort: "wrong",
};

// The list of pairs for the present query: the same for the gallery and for "next" in a pair's page.
export const list = {
  total: 0, version: "", chunks: new Map(), scroll: 0, stretch: 0, asked: 0,
  forget() { this.chunks.clear(); this.asked += 1; },
  async row(index) {
    const part = Math.floor(index / CHUNK);
    const chunk = await this.chunk(part);
    return chunk[index - part * CHUNK];
  },
  find(id) { // the place of a pair that has been seen; -1 where it has not
    for (const [part, chunk] of this.chunks) {
      const place = chunk instanceof Array ? chunk.findIndex((row) => row.id === id) : -1;
      if (place >= 0) return part * CHUNK + place;
    }
    return -1;
  },
  known(index) {
    const part = Math.floor(index / CHUNK);
    const chunk = this.chunks.get(part);
    return chunk instanceof Array ? chunk[index - part * CHUNK] : undefined;
  },
  chunk(part) {
    const known = this.chunks.get(part);
    if (known) return Promise.resolve(known);
    const asked = this.asked;
    const request = ask("pairs", { ...query, offset: part * CHUNK, limit: CHUNK }).then((found) => {
      if (asked !== this.asked) return found.rows; // of an earlier query
      if (this.version && this.version !== found.version) {
        this.forget();
        tell("The pairs were made anew meanwhile (the round was run again): the list shows their new state. Your answers are kept.");
      }
      this.version = found.version;
      this.total = found.total;
      this.chunks.set(part, found.rows);
      for (const old of this.chunks.keys()) {
        if (this.chunks.size <= KEPT_CHUNKS) break;
        if (old !== part) this.chunks.delete(old);
      }
      return found.rows;
    }, (problem) => { this.chunks.delete(part); throw problem; });
    this.chunks.set(part, request);
    return request;
  },
};

// Of the gallery that is shown now: it is drawn anew where a name is given, also while somebody types into a filter.
let redraw = () => {};
let restart = () => {};
let typed = 0; // the timer of what was typed into a filter and is not drawn: one, since a new list has new fields
export function mark(id, mine) { // shows an answer in the list without asking again
  for (const chunk of list.chunks.values()) {
    if (chunk instanceof Array) for (const row of chunk) if (row.id === id) row.mine = mine;
  }
}

export function showGallery(main, state) {
  if (typed) forget();
  const box = el("div", { class: "list" });
  const sizer = el("div", { class: "sizer" });
  const count = el("span", { class: "count", "aria-live": "polite" });
  const stretches = el("span", { class: "stretches" });
  const begin = el("button", { type: "button", text: "Go to the first pair without an answer of yours", onclick: async () => {
    try {
      let place = 0;
      let row = await list.row(place);
      while (row && row.mine) row = await list.row(place += 1);
      if (row) location.hash = `#/pair/${place}/${encodeURIComponent(row.id)}`;
      else tell("You have answered all pairs of this list.");
    } catch (problem) { tell(problem.message); }
  } });
  box.append(sizer);
  const filters = drawFilters(state);
  const typing = main.contains(document.activeElement) ? filters.elements[document.activeElement.name] : null;
  main.replaceChildren(filters, el("div", { class: "above" }, count, begin, stretches), box);
  if (typing) typing.focus();
  let height = 0;
  const drawn = new Map();

  function shown() { return Math.max(0, Math.min(MOST, list.total - list.stretch * MOST)); }

  function draw() {
    if (!box.isConnected || !height) return;
    list.scroll = box.scrollTop;
    const first = Math.max(0, Math.floor(box.scrollTop / height) - 4);
    const last = Math.min(shown(), Math.ceil((box.scrollTop + box.clientHeight) / height) + 4);
    for (const [index, element] of drawn) if (index < first || index >= last) { element.remove(); drawn.delete(index); }
    for (let index = first; index < last; index += 1) {
      const place = index + list.stretch * MOST;
      const row = list.known(place);
      const old = drawn.get(index);
      if (old && (old.dataset.ready === "1" || !row)) continue;
      if (old) old.remove();
      const made = row ? card(row, place) : el("div", { class: "card waiting", text: "…" });
      made.dataset.ready = row ? "1" : "0";
      made.style.transform = `translateY(${index * height}px)`;
      drawn.set(index, made);
      sizer.append(made);
      if (!row) want(place);
    }
  }

  let wanted = 0;
  function want(place) { // waits until scrolling has paused, so that a long drag asks for nothing on its way
    clearTimeout(wanted);
    wanted = setTimeout(() => {
      const top = Math.floor(box.scrollTop / height) + list.stretch * MOST;
      const bottom = Math.min(list.total - 1, top + Math.ceil(box.clientHeight / height) + 4);
      const parts = new Set([top, bottom, place].map((each) => Math.floor(Math.max(0, each) / CHUNK)));
      for (const part of parts) list.chunk(part).then(draw, (problem) => tell(problem.message, { text: "Try again", run: () => { tell(""); draw(); } }));
    }, 40);
  }

  function measure() {
    height = parseFloat(getComputedStyle(box).getPropertyValue("--row")) || 112;
    sizer.style.height = `${shown() * height}px`;
    for (const element of drawn.values()) element.remove();
    drawn.clear();
  }

  async function start() {
    count.textContent = "Looking…";
    try {
      await list.chunk(Math.floor(list.stretch * MOST / CHUNK));
    } catch (problem) {
      count.textContent = "";
      tell(problem.message, { text: "Try again", run: () => { tell(""); start(); } });
      return;
    }
    count.textContent = list.total === state.pairs ? `${whole(list.total)} pairs` : `${whole(list.total)} of ${whole(state.pairs)} pairs`;
    stretches.replaceChildren();
    for (let n = 0; list.total > MOST && n * MOST < list.total; n += 1) {
      stretches.append(el("button", {
        text: `from ${whole(n * MOST + 1)}`, "aria-pressed": n === list.stretch ? "true" : "false",
        onclick: () => { list.stretch = n; list.scroll = 0; start(); },
      }));
    }
    measure();
    box.scrollTop = list.scroll;
    if (!list.total) sizer.replaceChildren(el("p", { class: "empty", text: "No pair is like that. Take a filter away." }));
    else for (const left of sizer.querySelectorAll(".empty")) left.remove();
    draw();
  }

  restart = start;
  redraw = () => { measure(); draw(); };
  box.addEventListener("scroll", draw, { passive: true });
  new ResizeObserver(() => { if (box.isConnected) redraw(); }).observe(box);
  start();
}

function card(row, index) {
  const most = row.media.length > 4 ? 3 : 4; // the fourth place says how many more there are
  const images = row.media.slice(0, most).map((kind, n) => medium(kind, `size=small&n=${n}&pair=${encodeURIComponent(row.id)}`));
  if (row.media.length > most) images.push(el("span", { class: "noimage", text: `+${row.media.length - most}` }));
  if (!images.length) images.push(el("span", { class: "noimage", text: "text" }));
  const flags = el("div", { class: "flags" },
    el("span", { class: `badge ${row.outcome}`, text: row.outcome }),
    row.contested ? el("span", { class: "badge contested", text: "contested" }) : null,
    row.disagree ? el("span", { class: "badge", text: "voters disagree" }) : null,
    row.mine ? el("span", { class: "badge mine", text: row.mine === "skip" ? "you skipped it" : row.mine === "bad_image" ? "bad image" : "you answered" }) : null,
    row.probability === null ? null : el("span", { class: "probability", text: `label ${percent(row.probability)} likely right` }),
    row.source ? el("span", { class: "source", text: row.source }) : null);
  return el("a", { class: "card", href: `#/pair/${index}/${encodeURIComponent(row.id)}` },
    el("div", { class: `thumb ${images.length > 1 ? "many" : ""}` }, ...images),
    el("div", { class: "words" }, flags,
      el("div", { class: "prompt", text: row.prompt || "(no prompt)" }),
      el("div", { class: "side", text: row.chosen }, ),
      el("div", { class: "side other", text: row.rejected })));
}

// An image, or the first frame of a video, with a mark that says so. One that cannot be shown says why.
export function medium(kind, query, words = "") {
  const url = `/api/image?${query}`;
  const image = el("img", { src: url, loading: "lazy", alt: words, onerror: async () => {
    const found = el("span", { class: "noimage", text: `no ${kind}` });
    image.replaceWith(found);
    const answer = await fetch(url).then((got) => got.json()).catch(() => ({}));
    if (!answer.error) return;
    found.title = answer.error;
    if (words) found.textContent = `${words} cannot be shown: ${answer.error}`;
  } });
  return kind === "video" ? el("span", { class: "video", title: "first frame of a video" }, image) : image;
}

function forget() { // the list of an earlier query, and that it was to be drawn anew
  clearTimeout(typed);
  typed = 0;
  list.forget(); list.scroll = 0; list.stretch = 0;
}

function changed() {
  forget();
  restart();
}

function drawFilters(state) {
  const select = (name, title, options) => {
    const made = el("select", { name, "aria-label": title }, ...options.map(([value, text]) => el("option", { value, text })));
    made.value = query[name];
    made.addEventListener("change", () => { query[name] = made.value; changed(); });
    return made;
  };
  const field = (name, title, type, extra = {}) => {
    const made = el("input", { name, type, "aria-label": title, placeholder: title, ...extra });
    made.value = name === "low" || name === "high" ? (query[name] === "" ? "" : String(Math.round(query[name] * 100))) : query[name];
    made.addEventListener("input", () => {
      const value = made.value.trim();
      const share = Math.min(100, Math.max(0, Number(value))) / 100;
      query[name] = type === "number" ? (value === "" ? "" : String(share)) : value;
      clearTimeout(typed);
      typed = setTimeout(() => { if (made.isConnected) changed(); }, 350);
    });
    return made;
  };
  const outcomes = Object.entries(state.outcomes).filter(([, n]) => n);
  const disagree = el("input", { type: "checkbox", name: "disagree" });
  disagree.checked = query.disagree === "1";
  disagree.addEventListener("change", () => { query.disagree = disagree.checked ? "1" : ""; changed(); });
  const lists = [
    select("sort", "Order", Object.entries(state.sorts)),
    select("outcome", "Outcome", [["", "all outcomes"], ...outcomes.map(([name, n]) => [name, `${name} (${whole(n)})`]),
      ...(state.contested ? [["contested", `contested (${whole(state.contested)})`]] : [])]),
    state.sources.length > 1 ? select("source", "Source", [["", "all sources"], ...state.sources.map((name) => [name, name || "(none)"])]) : null,
    state.scripts.length > 1 ? select("script", "Script, a guess at the language", [["", "all scripts"], ...state.scripts.map((name) => [name, name])]) : null,
    select("length", "Length", [["", "any length"], ["longer", "longer answer chosen"], ["shorter", "shorter answer chosen"]]),
  ];
  const set = Object.entries(query).some(([name, value]) => value && name !== "sort" && name !== "search");
  const form = el("form", { class: `filters ${set ? "" : "closed"}`, onsubmit: (event) => event.preventDefault() });
  const opener = el("button", { type: "button", class: "opener", text: "Filters", "aria-expanded": String(set), onclick: () => {
    opener.setAttribute("aria-expanded", String(!form.classList.toggle("closed")));
  } }); // on a phone alone: a wide window shows all filters
  form.append(
    field("search", "Search in texts", "search", { maxlength: "200" }), opener, ...lists.filter(Boolean),
    el("span", { class: "range" }, "label ", field("low", "from %", "number", { min: "0", max: "100", placeholder: "0" }), "to",
      field("high", "to %", "number", { min: "0", max: "100", placeholder: "100" }), "% likely right"),
    el("label", {}, disagree, " voters disagree"),
    el("button", { type: "button", text: "Clear", class: "quiet", onclick: () => {
      for (const name of Object.keys(query)) query[name] = name === "sort" ? query.sort : "";
      forget();
      dispatchEvent(new HashChangeEvent("hashchange"));
    } }));
  return form;
}

export async function showQuarantine(main) {
  const chosen = { stage: "", reason: "" };
  const found = await ask("quarantine", { limit: 0 });
  const rows = el("div", { class: "rows" });
  const more = el("button", { text: "Show more" });
  let offset = 0;
  async function next() {
    const part = await ask("quarantine", { ...chosen, offset, limit: 50 });
    for (const row of part.rows) {
      rows.append(el("article", { class: "row" },
        el("div", { class: "flags" }, el("span", { class: "badge", text: row.stage }), el("strong", { text: row.reason }),
          row.source ? el("span", { class: "source", text: row.source }) : null),
        el("div", { class: "detail", text: row.detail || "" }),
        el("div", { class: "ids" }, el("span", { text: `row ${row.row_id}` }),
          row.known ? el("a", { href: `#/pair/-/${encodeURIComponent(row.pair_id)}`, text: "see the pair" }) : null)));
    }
    offset += part.rows.length;
    more.hidden = offset >= part.total;
    head.textContent = `${whole(part.total)} rows`;
  }
  const guarded = () => next().catch((problem) => tell(problem.message));
  more.addEventListener("click", guarded);
  const head = el("span", { class: "count" });
  const reasons = el("select", { "aria-label": "Reason" }, el("option", { value: "", text: "all reasons" }),
    ...found.reasons.map((each, n) => el("option", { value: String(n), text: `${each.reason} (${each.stage}): ${whole(each.rows)}` })));
  reasons.addEventListener("change", () => {
    const each = found.reasons[Number(reasons.value)];
    Object.assign(chosen, reasons.value === "" ? { stage: "", reason: "" } : { stage: each.stage, reason: each.reason });
    rows.replaceChildren();
    offset = 0;
    guarded();
  });
  main.replaceChildren(el("div", { class: "filters" }, reasons, head),
    found.note ? el("p", { class: "empty", text: found.note }) : el("p", { class: "lead", text: "Rows that a stage could not use, and pairs that curation dropped." }),
    rows, more);
  if (!found.note) await next(); else more.hidden = true;
}

export function parts(pieces) {
  const made = el("div", { class: "text" });
  for (const [differs, text] of pieces) made.append(differs ? el("mark", { text }) : document.createTextNode(text));
  return made;
}

export async function showBenchmark(main) {
  const rows = el("div", { class: "rows" });
  const more = el("button", { text: "Show more" });
  const head = el("p", { class: "lead" });
  let offset = 0;
  async function next() {
    const part = await ask("benchmark", { offset, limit: 30 });
    head.textContent = part.note || `${whole(part.total)} of ${whole(part.measured)} benchmark pairs are not ranked right, the widest margins first.`;
    for (const row of part.rows) {
      const images = row.media.map((kind, n) => medium(kind, `size=small&benchmark=${row.place}&n=${n}`));
      const score = (value) => (value === null ? "no score" : value.toFixed(2));
      rows.append(el("article", { class: "row" },
        el("div", { class: "flags" }, el("span", { class: "badge dropped", text: row.outcome }), el("span", { text: `${row.benchmark}: ${row.group}` }),
          el("span", { class: "source", text: `item ${row.item_id}, ${row.model}` })),
        el("div", { class: "thumbs" }, ...images),
        el("div", { class: "prompt", text: row.prompt }),
        el("div", { class: "sides" },
          el("section", {}, el("h3", { text: `Better answer, score ${score(row.chosen_score)}` }), parts(row.better)),
          el("section", {}, el("h3", { text: `Worse answer, score ${score(row.rejected_score)}` }), parts(row.worse)))));
    }
    offset += part.rows.length;
    more.hidden = offset >= part.total;
  }
  more.addEventListener("click", () => next().catch((problem) => tell(problem.message)));
  main.replaceChildren(head, rows, more);
  await next();
}
