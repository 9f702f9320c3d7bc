// Pools, each with its backends, and what became of them.

import { $, element, grid, sync, text } from "../dom.js";
import { List } from "../list.js";
import { Rates, age, bytes, clock, count, perSecond, plural } from "../say.js";
import { level } from "../words.js";
import { buttons, session, stateOf } from "../orders.js";

const section = $("pools");
const rates = new Rates();
let now = 0;

const list = new List(section, { noun: "pool", none: "No pool yet." });

function check({ last_check: last }) {
  if (!last) return { main: "none" };
  const when = `${age(last.age)} ago`;
  if (!last.ok) return { main: "failed", sub: `${last.error || "no reason given"}, ${when}` };
  return { main: last.latency_ms === null ? "ok" : `${last.latency_ms.toFixed(1)} ms`, sub: when };
}

function state(box, backend) {
  if (!box.firstChild) {
    const details = element("details");
    details.append(element("summary"), element("ol", "history"));
    box.append(element("span"), element("span", "sub"), details);
  }
  const [word, since, details] = box.children;
  const { admin } = backend;
  const kept = stateOf(backend) !== "ready";
  text(word, kept ? admin.state : backend.state);
  word.className = `state ${kept ? "warn" : level(backend.state)}`;
  text(since, kept ? `by ${admin.by}, ${age(now - admin.at)} ago${admin.state === "drain" ? `; health: ${backend.state}` : ""}` : `for ${age(backend.since)}`);
  details.hidden = backend.history.length === 0;
  text(details.firstChild, plural(backend.history.length, "change"));
  const make = ({ to, error }) => {
    const li = element("li");
    li.append(element("span", `state ${level(to)}`, to), " ", element("span"), element("span", "sub", error || ""));
    return li;
  };
  const at = (change) => now - change.age;
  const key = (change) => `${change.to} ${Math.round(at(change) / 2)}`;
  sync(details.lastChild, backend.history, key, make, (li, change) => {
    if (!li.children[1].textContent) text(li.children[1], clock(at(change)));
  });
}

const weight = (b) => (Math.abs(b.effective_weight - b.weight) < 0.05 ? String(b.weight) : `${b.effective_weight.toFixed(1)} of ${b.weight}`);

const COLUMNS = [
  { title: "Backend", value: (b) => ({ main: b.name, sub: [b.role, b.addresses.filter((a) => a !== b.name).join(", ")].filter(Boolean).join(", ") }) },
  { title: "State", show: state },
  { title: "Last check", value: check },
  { title: "Weight", n: true, value: weight },
  { title: "Open", n: true, value: (b) => count(b.in_flight) },
  { title: "New/s", n: true, value: (b) => perSecond(rates.of(`${b.pool}/${b.name}`, b.connections_total, now)) },
  { title: "Total", n: true, value: (b) => ({ main: count(b.connections_total), sub: b.connect_failures ? `${count(b.connect_failures)} failed` : "" }) },
  { title: "To client", n: true, value: (b) => ({ main: bytes(b.bytes_to_client), sub: `${bytes(b.bytes_to_backend)} to it` }) },
  { title: "Change", className: "orders", show: buttons },
];

function make(pool) {
  const node = element("section", "card pool");
  const head = element("div", "pool-head");
  const title = element("h3", "", pool.name);
  title.id = `pool ${pool.name}`.replaceAll(/\s/g, "-");
  head.append(title, element("span"), element("span", "quiet"));
  const table = element("table", "stack");
  node.setAttribute("aria-labelledby", title.id);
  table.setAttribute("aria-labelledby", title.id);
  node.append(head, table, element("p", "quiet"));
  node.rows = grid(table, COLUMNS);
  return node;
}

function update(node, pool) {
  const [, up, settings] = node.firstChild.children;
  const takes = (b) => (b.state === "up" || b.state === "unchecked") && stateOf(b) === "ready";
  const good = pool.backends.filter(takes).length;
  const all = pool.backends.length;
  const kept = pool.backends.filter((b) => stateOf(b) !== "ready").length;
  text(up, pool.hidden ? plural(all + pool.hidden, "backend") : `${count(good)} of ${count(all)} up${kept ? `, ${count(kept)} kept back` : ""}`);
  up.className = `state ${good === all ? "good" : good ? "warn" : "bad"}`;
  const proxy = pool.proxy_protocol === "none" ? "" : `PROXY ${pool.proxy_protocol}`;
  const handoff = pool.handoff === "always" ? "" : `handoff ${pool.handoff}`;
  const checks = pool.health ? `checks: ${pool.health}` : "no checks";
  text(settings, [pool.balance.replaceAll("_", " "), proxy, handoff, checks].filter(Boolean).join(", "));
  const every = pool.backends.concat(pool.fallback);
  const taking = pool.hidden ? Infinity : every.filter(takes).length;
  const row = (role) => (b) => ({ ...b, pool: pool.name, role, isLast: takes(b) && taking === 1 });
  const backends = pool.backends.map(row("")).concat(pool.fallback.map(row("fallback")));
  node.rows(backends, (b) => `${b.role}/${b.name}`);
  text(node.lastChild, pool.hidden ? `${plural(pool.hidden, "more backend")}: search for one, or run ingress pools.` : "");
  node.lastChild.hidden = pool.hidden === 0;
}

export const pools = {
  list,
  what: "pools",
  show(data) {
    now = data.time;
    session(data.session);
  },
  page(page) {
    list.show(page);
    sync($("pool-list"), page.rows, (pool) => pool.name, make, update);
  },
  refused(message) {
    list.refused(message);
    $("pool-list").replaceChildren();
  },
};
