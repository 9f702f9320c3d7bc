// Ready, drain, maintenance: three buttons for each backend, and a question before anything is cut.

import { $, element, text } from "./dom.js";
import { order } from "./ask.js";
import { plural } from "./say.js";

const WORDS = { ready: "Ready", drain: "Drain", maint: "Maint" };
const DONE = { ready: "ready", drain: "drained", maint: "in maintenance" };
const MEANS = {
  ready: "takes connections",
  drain: "takes no new connections, those that are there go on",
  maint: "takes no new connections, those that are there are cut, no checks",
};

let token = null;

export function session({ user, token: shown }) {
  token = shown;
  document.body.classList.toggle("may-order", token !== null);
  $("read-only").hidden = user !== null;
}

export const stateOf = (backend) => (backend.admin ? backend.admin.state : "ready");

// The buttons of one backend, in their cell.
export function buttons(box, backend) {
  if (!box.firstChild) {
    const group = element("div", "choice");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", `State of ${backend.name}`);
    Object.entries(WORDS).forEach(([state, word]) => {
      const button = element("button", "", word);
      button.type = "button";
      button.title = MEANS[state];
      button.addEventListener("click", () => press(box.backend, state));
      group.append(button);
    });
    box.append(group);
  }
  box.backend = backend;
  Object.keys(WORDS).forEach((state, i) => {
    box.firstChild.children[i].setAttribute("aria-pressed", String(stateOf(backend) === state));
  });
}

async function press(backend, state) {
  if (stateOf(backend) === state) return;
  const question = doubt(backend, state);
  if (question && !(await confirm(question))) return;
  const { pool, name } = backend;
  try {
    const path = `pools/${encodeURIComponent(pool)}/backends/${encodeURIComponent(name)}`;
    const { in_flight: open, warning } = await order(path, { state }, token);
    const fate = { ready: "open", drain: "going on", maint: "cut" }[state];
    const done = `${name} of pool ${pool} is ${DONE[state]}; ${plural(open, "connection")} ${fate}.`;
    say(warning ? `${done} But ${warning}.` : done, warning ? "warn" : "good");
  } catch (error) {
    say(`${name} of pool ${pool} stays as it is: ${error.message}`, "bad");
  }
  dispatchEvent(new Event("ordered"));
}

// What somebody may not have thought of; empty: nothing.
function doubt({ name, pool, in_flight: open, isLast }, state) {
  const last = isLast && state !== "ready" ? `No other backend of pool ${pool} takes connections now.` : "";
  const cut = state === "maint" && open > 0 ? `${plural(open, "open connection is", "open connections are")} cut at once.` : "";
  if (!last && !cut) return null;
  const title = state === "maint" ? `Put ${name} into maintenance?` : `Drain ${name}?`;
  return { title, lines: [cut, last].filter(Boolean), yes: state === "maint" ? "Into maintenance" : "Drain it" };
}

function confirm({ title, lines, yes }) {
  const dialog = $("sure");
  text($("sure-title"), title);
  $("sure-text").replaceChildren(...lines.map((line) => element("p", "", line)));
  text($("sure-yes"), yes);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true });
  });
}

$("sure-no").addEventListener("click", () => $("sure").close("no"));
$("sure-yes").addEventListener("click", () => $("sure").close("yes"));

let fading;

function say(message, kind) {
  const said = $("said");
  said.className = `said alert ${kind}`;
  text(said, message);
  clearTimeout(fading);
  // Long enough to be read twice; the state itself stays to be seen.
  fading = setTimeout(() => text(said, ""), 12000);
}
