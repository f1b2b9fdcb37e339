// A pair's page, in the gallery and in the blind audit, and the keys by which people answer.

import { answer, ask, el, people, percent, tell, undo } from "./server.js";
import { list, mark, medium, parts } from "./gallery.js";

const KEYS = [
  ["ArrowLeft", "first", "A is better", "←"],
  ["ArrowRight", "second", "B is better", "→"],
  ["t", "tie", "Neither", "T"],
  ["s", "skip", "Skip", "S"],
  ["b", "bad_image", "Bad image", "B"],
  ["u", "undo", "Undo", "U"],
  ["p", "previous", "Previous", "P"],
  ["n", "next", "Next", "N"],
];

let doIt = null; // what a key does on the page that is shown
let busy = false;

export function leave() { doIt = null; }

document.addEventListener("keydown", (event) => {
  if (!doIt || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest("input, select, textarea")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const found = KEYS.find(([name]) => name === key);
  if (key === "Escape") location.hash = "#/pairs";
  else if (found) { event.preventDefault(); doIt(found[1]); }
});

function buttons() {
  return el("div", { class: "answers", role: "group", "aria-label": "Your answer" },
    ...KEYS.map(([, name, text, key]) => el("button", { type: "button", class: name, onclick: () => doIt && doIt(name) },
      el("span", { text }), el("kbd", { text: key }))));
}

function needName() {
  if (people.name) return true;
  tell("Write your name at the top first: answers are kept per person, under a short hash of the name.");
  document.getElementById("name").focus();
  return false;
}

async function take(name, id, audit, seen, done) {
  if (busy) return;
  busy = true;
  const here = location.hash; // whoever has gone elsewhere meanwhile stays there
  try {
    if (name === "undo") {
      if (!needName()) return;
      const back = await undo();
      tell("");
      if (back.gone) tell("Your last answer was about a pair that is gone. It is taken back; there is nothing to show of it.");
      else if (location.hash === here) await done("undo", back.id);
    } else {
      if (!needName()) return;
      const said = await answer({ id, choice: name, audit, seen });
      tell("");
      if (location.hash === here) await done(name, id);
      else mark(id, name);
      if (said.taken_back) tell(`You had answered this pair. ${name === "skip" ? "Skipping it" : "Noting a bad image"} took that answer back: it no longer counts. Undo (U) gives it back.`);
    }
  } catch (problem) {
    tell(problem.status === 0 || problem.status >= 500
      ? `${problem.message} The answer waits in this browser and is sent again.` : problem.message);
  } finally {
    busy = false;
  }
}

export async function showPair(main, place, id, progress) {
  const index = /^\d+$/.test(place) ? Number(place) : null;
  doIt = null;
  const found = await ask("pair", { id });
  if (!location.hash.endsWith(encodeURIComponent(id))) return; // another page was opened meanwhile
  async function go(step, open = false) { // `open`: to the next pair that this person has not answered
    let wanted = index === null ? -1 : index + step;
    if (wanted < 0) { location.hash = "#/pairs"; return; }
    try {
      let row = await list.row(wanted);
      while (open && row && row.mine) row = await list.row(wanted += step);
      if (row) location.hash = `#/pair/${wanted}/${encodeURIComponent(row.id)}`;
      else tell(open ? "You have come to the end of the list: no pair after this one waits for your answer." : "This is the last pair of the list.");
    } catch (problem) { tell(problem.message); }
  }
  doIt = (name) => {
    if (name === "next") go(1);
    else if (name === "previous") go(-1);
    else take(name, id, false, found.seen, async (kept, about) => {
      progress();
      if (kept === "undo") {
        mark(about, null);
        if (about === id) await showPair(main, place, id, progress);
        else location.hash = `#/pair/${list.find(about) < 0 ? "-" : list.find(about)}/${encodeURIComponent(about)}`;
        return;
      }
      mark(id, kept);
      if (index === null) await showPair(main, place, id, progress);
      else await go(1, true);
    });
  };
  const back = el("a", { href: "#/pairs", text: "← all pairs" });
  const where = index === null ? "" : `${(index + 1).toLocaleString("en")} of ${list.total.toLocaleString("en")}`;
  main.replaceChildren(el("div", { class: "crumbs" }, back, el("span", { text: where })),
    ...body(found), facts(found), buttons());
  scrollTo(0, 0);
}

export async function showAudit(main, wanted, progress, guidelines) {
  doIt = null;
  const audit = await ask("audit");
  const rows = audit.rows;
  const open = rows.findIndex((row) => !row.mine && !row.gone);
  const index = wanted === null ? (open < 0 ? rows.length : open) : wanted;
  const mine = rows.filter((row) => row.mine).length;
  const head = el("div", { class: "crumbs" }, el("strong", { text: "Blind audit", title: `draw ${audit.audit}` }),
    el("span", { text: `pair ${Math.min(index + 1, rows.length)} of ${rows.length}; done by you: ${mine}; answered by anyone: ${audit.answered}` }),
    el("progress", { max: rows.length, value: mine }));
  const go = (place) => { location.hash = `#/audit/${Math.max(0, Math.min(rows.length, place))}`; };
  const following = () => {
    const later = rows.findIndex((row, place) => place > index && !row.mine && !row.gone);
    return later < 0 ? rows.findIndex((row, place) => place !== index && !row.mine && !row.gone) : later;
  };
  if (index >= rows.length) {
    doIt = (name) => { if (name === "previous") go(rows.length - 1); };
    main.replaceChildren(head, el("p", { class: "empty", text: open < 0
      ? "You have been through all drawn pairs. Thank you. Their answers anchor the next run of curation."
      : "This is the end; some pairs before have no answer of yours yet." }),
    el("p", {}, el("button", { text: open < 0 ? "Look at the first one" : "Go to the first open pair", onclick: () => go(open < 0 ? 0 : open) })));
    return;
  }
  const id = rows[index].id;
  let seen; // stands for the pair as it is shown
  doIt = (name) => {
    if (name === "next") go(index + 1);
    else if (name === "previous") go(index - 1);
    else if (rows[index].gone) tell("This pair is gone; go to the next one.");
    else if (seen === undefined) return; // it is not on the page yet
    else take(name, id, true, seen, async (kept, about) => {
      progress();
      if (kept === "undo") {
        const place = rows.findIndex((row) => row.id === about);
        if (place >= 0 && place !== index) go(place); else await showAudit(main, index, progress, guidelines);
        return;
      }
      const after = following();
      if (after < 0) go(rows.length); else go(after);
    });
  };
  if (rows[index].gone) {
    main.replaceChildren(head, el("p", { class: "empty", text: "This pair was drawn, and is gone now: the round was made anew from other rows. Its weight goes to the others." }), buttons());
    return;
  }
  const found = await ask("audit_pair", { id });
  seen = found.seen;
  if (!/^#\/audit/.test(location.hash)) return;
  const note = found.blind
    ? el("p", { class: "lead guidelines", text: `${guidelines} What labels, models and judges say is shown once you have answered.` })
    : el("p", { class: "lead", text: "You have answered this pair; this is what is known of it." });
  const skipped = found.blind && found.mine ? el("p", { class: "lead", text: found.mine === "skip" ? "You skipped this pair." : "You noted a bad image." }) : null;
  main.replaceChildren(...[head, note, skipped, ...body(found), found.blind ? null : facts(found), buttons()].filter(Boolean));
  scrollTo(0, 0);
}

function body(found) {
  const count = {};
  const images = el("div", { class: `images ${found.media.length > 1 ? "many" : ""}` }, ...found.media.map((kind, n) => {
    count[kind] = (count[kind] || 0) + 1;
    const name = `${kind} ${count[kind]}`;
    const only = found.media.length === 1 && kind === "image";
    const query = `size=large&n=${n}&pair=${encodeURIComponent(found.id)}`;
    return el("figure", {}, el("a", { href: `/api/image?${query}`, target: "_blank", rel: "noopener", tabindex: "-1" }, medium(kind, query, name)),
      only ? null : el("figcaption", { text: kind === "video" ? `${name}, its first frame` : name }));
  }));
  const turns = el("div", { class: "turns" });
  const seen = {};
  for (const turn of found.turns) {
    const words = el("div", { class: "text" });
    for (const [place, [kind, text]] of turn.pieces.entries()) {
      // The only image stands beside the text without its marker; where a table's images are not shown, markers say so.
      const hidden = found.media.length === 1;
      const bare = hidden && place && turn.pieces[place - 1][0] !== "text";
      if (kind === "text") words.append(document.createTextNode(bare ? text.replace(/^\s*\n/, "") : text));
      else if (!hidden) words.append(el("span", { class: "medium", text: `[${kind} ${seen[kind] = (seen[kind] || 0) + 1}]` }));
    }
    turns.append(el("section", { class: "turn" }, found.turns.length > 1 || turn.role !== "user" ? el("h3", { text: turn.role }) : null, words));
  }
  if (!found.turns.length) turns.append(el("p", { class: "lead", text: "(The table has no prompt.)" }));
  const side = (key, letter) => {
    const own = found[key];
    const flags = el("div", { class: "flags" });
    if (!found.blind && found.given !== undefined) {
      if (found.given === own.id) flags.append(el("span", { class: "badge", text: "chosen before" }));
      if (found.now === own.id) flags.append(el("span", { class: "badge kept", text: "chosen now" }));
    }
    if (found.mine === own.id) flags.append(el("span", { class: "badge mine", text: "your choice" }));
    return el("section", { class: "answer" }, el("h2", { text: `Answer ${letter}` }), flags, parts(own.parts));
  };
  return [el("div", { class: "question" }, images, turns), el("div", { class: "sides" }, side("first", "A"), side("second", "B"))];
}

const letter = (found, id) => (id === found.first.id ? "A" : id === found.second.id ? "B" : null);

function shownFirst(found, vote) { // in which order a judge saw the answers
  if (vote.shown_first) return `${letter(found, vote.shown_first)} first`;
  if (vote.order === "alone") return "each answer alone";
  if (vote.order === "people" || vote.judge.startsWith("person:")) return "as on this page";
  return vote.order ? `order ${vote.order}` : "order not known";
}

// What a judge wrote: its reasons where it wrote them as it was asked to, and the reply as it came.
function spoken(words) {
  let reply = null;
  try { reply = JSON.parse(words); } catch { /* a judge may write anything; a long reply is cut */ }
  const read = (name) => (reply && typeof reply[name] === "string" ? reply[name].trim() : "");
  const [analysis, own] = [read("analysis"), read("reference")];
  const whole = el("div", { class: "text", text: words });
  if (!analysis && !own) return [whole];
  return [
    analysis ? el("div", { class: "text", text: analysis }) : null,
    own ? el("div", { class: "text own", text: `Its own answer: ${own}` }) : null,
    el("details", {}, el("summary", { text: "the reply as it came" }), whole),
  ].filter(Boolean);
}

function facts(found) {
  const other = found.given === found.first.id ? found.second.id : found.first.id;
  const before = letter(found, found.given);
  const now = found.now === null ? "none" : letter(found, found.now);
  const reason = [found.why.reason, found.why.detail].filter(Boolean).join(": ");
  const rows = [
    ["Outcome", `${found.outcome}${found.contested ? ", after it was contested" : ""}${reason ? ` (${reason})` : ""}${found.why.stage ? `, by ${found.why.stage}` : ""}`],
    ["Label before", before], ["Label now", now],
    ["Given label", found.probability === null ? "probability not known" : `${percent(found.probability)} likely right`],
    ["Source", found.source || "not known"], ["Row", found.row_id || found.id], ["Pair", found.id],
    ["Script", `${found.script} (a guess at the language)`],
  ];
  const table = el("dl", {}, ...rows.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })]));
  const margins = found.margins.map((each) => {
    const bar = el("span", { class: "bar" });
    const share = Math.abs(each.margin) / (found.margin_scales[each.voter] || 1); // a voter without a scale has 0 alone
    bar.style.width = `${Math.round(100 * Math.min(1, share))}%`;
    const towards = each.margin === 0 ? "neither" : each.margin > 0 ? before : letter(found, other);
    return el("tr", {}, el("th", { text: each.voter }), el("td", { text: towards }), el("td", { text: Math.abs(each.margin).toFixed(2) }), el("td", { class: "bars" }, bar));
  });
  const verdicts = found.verdicts.flatMap((each) => {
    const none = each.fault ? `no verdict: ${each.fault}` : "no verdict";
    const verdict = { chosen: before, rejected: letter(found, other), tie: "neither" }[each.verdict] || none;
    return [
      el("tr", {}, el("th", { text: each.judge }), el("td", { text: verdict }), el("td", { text: shownFirst(found, each) })),
      each.words ? el("tr", { class: "spoken" }, el("td", { colspan: "3" }, ...spoken(each.words))) : null,
    ].filter(Boolean);
  });
  const ordered = found.verdicts.some((each) => each.words && each.shown_first);
  const people = found.people.map((each) => el("tr", {}, el("th", { text: each.person + (each.person === found.person ? " (you)" : "") }),
    el("td", { text: each.preferred === null ? "neither" : letter(found, each.preferred) || "a side that is gone" }),
    el("td", { text: each.audit ? "for an audit" : "while browsing" })));
  const block = (title, head, lines, note = "") => (lines.length ? el("section", {}, el("h2", { text: title }),
    el("table", {}, el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { text })))), el("tbody", {}, ...lines)),
    note ? el("p", { class: "lead", text: note }) : null) : null);
  return el("div", { class: "facts" }, ...[
    el("section", {}, el("h2", { text: "What became of it" }), table),
    block("Voters", ["model", "prefers", "margin", ""], margins, "A bar compares a margin with those of the same voter over all pairs: the widest 5% fill it."),
    block("Verdicts", ["judge", "prefers", "saw"], verdicts,
      ordered ? "In a judge's words, response 1 is the answer that it saw first." : ""),
    block("People", ["person", "prefers", "when"], people),
  ].filter(Boolean));
}
