// Talks to the server: reads, answers that are sent until they are kept, and the name of the person.
// What data or models wrote is put on the page by textContent alone.

export const people = {
  get name() { return localStorage.getItem("dt2it.name") || ""; },
  set name(value) { localStorage.setItem("dt2it.name", value.trim()); },
};

const WAITING = "dt2it.waiting"; // answers that the server has not kept yet
const listeners = [];

export class Problem extends Error {
  constructor(words, status) { super(words); this.status = status; }
}

// An element. `given`: text, class, and any other property; functions named on... are listeners.
export function el(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export async function ask(name, given = {}) {
  const parameters = new URLSearchParams();
  for (const [key, value] of Object.entries(given)) if (value !== "" && value !== undefined) parameters.set(key, value);
  if (people.name) parameters.set("person", people.name);
  return outcome(fetch(`/api/${name}?${parameters}`));
}

async function outcome(request) {
  let answer;
  try {
    answer = await request;
  } catch {
    throw new Problem("The server does not answer. Is `dt2it review serve` still running?", 0);
  }
  let value = {};
  try { value = await answer.json(); } catch { /* said below */ }
  if (!answer.ok) throw new Problem(value.error || `The server failed (${answer.status}); its terminal says why.`, answer.status);
  return value;
}

function post(name, value) {
  return outcome(fetch(`/api/${name}`, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(value),
  }));
}

export function waiting() {
  try { return JSON.parse(localStorage.getItem(WAITING)) || []; } catch { return []; }
}

function setWaiting(list) {
  localStorage.setItem(WAITING, JSON.stringify(list));
  for (const listener of listeners) listener(list.length);
}

export function onWaiting(listener) { listeners.push(listener); listener(waiting().length); }

// Puts an answer into the list of those to be kept, and sends the list. So an answer is never lost by a server that
// has stopped or a disk that is full: this browser has it until the server has kept it.
export function answer(value) {
  setWaiting([...waiting(), { ...value, person: people.name }]);
  return send();
}

let sending = Promise.resolve();

export function send() {
  sending = sending.catch(() => {}).then(sendAll);
  return sending;
}

async function sendAll() { // gives what the server said of the last one
  let said = {};
  for (let list = waiting(); list.length; list = waiting()) {
    try {
      said = await post("answer", list[0]);
    } catch (problem) {
      const gone = [400, 409, 410, 413, 415].includes(problem.status); // sending it again would not help
      if (gone) setWaiting(waiting().slice(1));
      throw problem;
    }
    setWaiting(waiting().slice(1));
  }
  return said;
}

export async function undo() {
  await sending.catch(() => {});
  const list = waiting();
  if (list.length) { // it has not been kept at all
    setWaiting(list.slice(0, -1));
    return { id: list[list.length - 1].id };
  }
  return post("undo", { person: people.name });
}

const banner = () => document.getElementById("banner");

// A message that stays until it is closed, or until `tell("")`.
export function tell(words, action) {
  const place = banner();
  place.replaceChildren();
  place.hidden = !words;
  if (!words) return;
  place.append(el("span", { text: words }));
  if (action) place.append(el("button", { text: action.text, onclick: action.run }));
  place.append(el("button", { text: "Close", class: "quiet", onclick: () => tell("") }));
}

export function percent(value) {
  if (value === null || value === undefined) return "not known";
  if (value > 0.995 && value < 1) return "over 99%";
  if (value < 0.005 && value > 0) return "under 1%";
  return `${Math.round(value * 100)}%`;
}

export function whole(number) { return number.toLocaleString("en"); }
