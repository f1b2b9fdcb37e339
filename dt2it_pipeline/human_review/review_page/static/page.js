// The head of the page, and which view is shown.

import { ask, el, onWaiting, people, send, tell, whole } from "./server.js";
import { list, showBenchmark, showGallery, showQuarantine } from "./gallery.js";
import { leave, showAudit, showPair } from "./pair.js";

const main = document.getElementById("main");
const name = document.getElementById("name");
let state = null;

name.value = people.name;
name.addEventListener("change", () => {
  people.name = name.value;
  list.forget();
  tell("");
  name.blur();
  show();
});

const count = (number, one, many) => `${whole(number)} ${number === 1 ? one : many}`;

async function look() {
  state = await ask("state");
  document.title = `Review: ${state.title}`;
  document.getElementById("title").textContent = state.title;
  for (const link of document.querySelectorAll("nav a")) link.hidden = !state.views.includes(link.dataset.view);
  const all = state.answers;
  document.getElementById("progress").textContent =
    `${people.name ? `you: ${whole(state.mine)} answered; ` : ""}all: ${all.votes ? `${count(all.votes, "vote", "votes")} of ${count(all.people, "person", "people")} on ${count(all.pairs, "pair", "pairs")}` : "no votes yet"}`;
  const notes = document.getElementById("notes");
  const words = [state.problem, ...state.notes].filter(Boolean);
  notes.hidden = !words.length;
  notes.replaceChildren(...words.map((text) => el("p", { text })));
}

const progress = () => look().catch((problem) => tell(problem.message));

async function show() {
  leave();
  const [view, first, second] = location.hash.replace(/^#\//, "").split("/");
  document.body.dataset.view = view || "pairs";
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.dataset.view === (view === "pair" ? "pairs" : view || "pairs");
    if (here) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  try {
    await look();
    if (view === "pair" && second) await showPair(main, first, decodeURIComponent(second), progress);
    else if (view === "audit") await showAudit(main, first === undefined ? null : Number(first), progress, state.guidelines);
    else if (view === "quarantine") await showQuarantine(main);
    else if (view === "benchmark") await showBenchmark(main);
    else showGallery(main, state);
  } catch (problem) {
    tell(problem.message, { text: "Try again", run: () => { tell(""); show(); } });
  }
}

let before = 0;
onWaiting((count) => {
  clearTimeout(onWaiting.later);
  if (!count && before) tell(""); // what was said about answers that wait is over
  before = count;
  if (count) onWaiting.later = setTimeout(again, 3000);
});

async function again() { // answers that the server has not kept are sent until it does
  try {
    await send();
    progress();
  } catch (problem) {
    tell(`${problem.message} Answers that wait in this browser are sent again; leave this page open, or open it later.`,
      { text: "Send now", run: again });
    clearTimeout(onWaiting.later);
    onWaiting.later = setTimeout(again, 5000);
  }
}

addEventListener("hashchange", show);
show();
