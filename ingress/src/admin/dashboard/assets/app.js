// Which view is shown, and when the daemon is asked: every two seconds, never while nobody looks, and never so often that
// more than a fifth of the time goes into answering.

import { $, pill, text } from "./dom.js";
import { Refused, ask } from "./ask.js";
import { age, clock, count } from "./say.js";
import { connections } from "./views/flows.js";
import { kernel } from "./views/kernel.js";
import { overview } from "./views/overview.js";
import { pools } from "./views/pools.js";
import { routes } from "./views/routes.js";
import { sources } from "./views/providers.js";

const VIEWS = { overview, routes, pools, connections, sources, kernel };
const INTERVAL = 2000; // milliseconds
const KEPT = 150; // samples: five minutes

let name = "overview";
let params = {};
let samples = [];
let paused = false;
let silentSince = null;
let timer;
let turn = 0;

function head(data) {
  text($("node"), `on ${data.node}`);
  text($("about"), `version ${data.version}, up ${age(data.uptime)}, generation ${data.config.generation}`);
  document.title = `${data.not_ready ? "not ready: " : ""}${tab(name).firstChild.textContent.trim()} · ${data.node} · ingress`;
  pill($("ready"), data.not_ready ? "bad" : "good", data.not_ready ? "not ready" : "ready");
  mark($("pools-trouble"), data.census.backends_down, "backends out");
  const bad = data.providers.filter((p) => p.state !== "good").length + (data.config.last_error ? 1 : 0);
  mark($("sources-trouble"), bad, "not good");
}

function mark(node, n, what) {
  node.hidden = n === 0;
  text(node, count(n));
  node.title = what;
}

function keep({ samples: news }) {
  // A daemon that was restarted begins anew.
  if (news.length && samples.length && news[0].accepted < samples[samples.length - 1].accepted) samples = [];
  samples = samples.concat(news).slice(-KEPT);
}

function answered() {
  silentSince = null;
  $("silence").hidden = true;
  document.body.classList.remove("stale");
  if (!paused) pill($("live"), "good", "live");
}

function silent(error) {
  silentSince ??= Date.now() / 1000;
  const refused = error instanceof Refused;
  text($("silence"), refused ? error.message
    : `The daemon has not answered since ${clock(silentSince)}. What stands here is from before; it is asked again and again.`);
  $("silence").hidden = false;
  document.body.classList.add("stale");
  pill($("live"), "bad", "no answer");
}

async function page(view) {
  try {
    return { page: await ask(view.what, params) };
  } catch (error) {
    if (error instanceof Refused) return { refused: error.message };
    throw error;
  }
}

async function tick() {
  clearTimeout(timer);
  const mine = (turn += 1);
  const began = performance.now();
  const view = VIEWS[name];
  try {
    const since = samples.length ? samples[samples.length - 1].time : 0;
    const [data, found] = await Promise.all([ask("overview", { since }), view.what ? page(view) : {}]);
    // Somebody went elsewhere meanwhile, and asked again.
    if (mine !== turn) return;
    keep(data);
    head(data);
    view.show(data, samples);
    if (found.page) view.page(found.page);
    if (found.refused) view.refused(found.refused);
    answered();
  } catch (error) {
    if (mine !== turn) return;
    silent(error);
  }
  if (!paused && !document.hidden) timer = setTimeout(tick, Math.max(INTERVAL, 4 * (performance.now() - began)));
}

const tab = (of) => document.querySelector(`#tabs a[href="#${of}"]`);

// `#routes?q=shop&page=2`
function enter(event) {
  const [wanted, query = ""] = location.hash.slice(1).split("?");
  const next = VIEWS[wanted] ? wanted : "overview";
  const moved = next !== name;
  name = next;
  params = Object.fromEntries(new URLSearchParams(query));
  Object.keys(VIEWS).forEach((view) => {
    $(view).hidden = view !== name;
    if (view === name) tab(view).setAttribute("aria-current", "page");
    else tab(view).removeAttribute("aria-current");
  });
  const { list } = VIEWS[name];
  if (list) list.enter(params);
  if (event && moved) {
    $(`${name}-title`).focus({ preventScroll: true });
    scrollTo({ top: 0 });
  }
  tick();
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  if (paused) {
    clearTimeout(timer);
    turn += 1;
    pill($("live"), "", "paused");
  } else {
    tick();
  }
});
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").focus();
});
document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else if (!paused) tick();
});
addEventListener("ordered", tick);
addEventListener("hashchange", enter);
// `/` looks for something, wherever one is.
addEventListener("keydown", (event) => {
  const field = document.querySelector(`#${name} input[type="search"]`);
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || !field || event.target.matches("input, select, textarea")) return;
  event.preventDefault();
  field.focus();
});
enter();
