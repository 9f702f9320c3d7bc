// One look: is it well, and how much is going on?

import { $, element, grid, link, sync, text } from "../dom.js";
import { Rates, age, bits, bytes, count, percent, perSecond, plural } from "../say.js";
import { Chart, recent } from "../chart.js";
import { level } from "../words.js";

const rates = new Rates();
const sum = (list, value) => list.reduce((total, item) => total + value(item), 0);
const total = (words) => sum(Object.values(words), (n) => n);

const throughput = new Chart($("throughput"), $("throughput-legend"), "Throughput", [
  { name: "to clients", className: "client", value: (s) => s.to_client },
  { name: "to backends", className: "backend", value: (s) => s.to_backend },
], bits, { unit: 8, least: 1000 });
const arrivals = new Chart($("arrivals"), $("arrivals-legend"), "Connections a second", [
  { name: "new", className: "kernel", value: (s) => s.accepted },
  { name: "refused", className: "refused", value: (s) => s.refused },
], perSecond, { unit: 1, least: 1 });

let now = 0;
const listeners = grid($("listeners"), [
  { title: "Name", value: (l) => ({ main: l.name, sub: l.bind.join(", ") }) },
  { title: "State", value: (l) => ({ main: l.state, sub: l.error || `for ${age(l.since)}`, state: level(l.state) }) },
  { title: "Open", n: true, value: (l) => count(l.open_kernel + l.open_relay) },
  { title: "New/s", n: true, value: (l) => perSecond(rates.of(`new ${l.name}`, l.accepted_total, now)) },
  { title: "To kernel", n: true, value: (l) => count(l.handed_off_total) },
  { title: "Relayed", n: true, value: (l) => count(total(l.relayed)) },
  { title: "Refused", n: true, value: (l) => count(total(l.refused)) },
  { title: "To clients", n: true, value: (l) => bytes(l.bytes.to_client) },
]);

function tiles({ connections: c, memory_bytes: memory }, samples) {
  const rate = (value) => recent(samples, value);
  text($("t-open"), count(c.open_kernel + c.open_relay));
  text($("t-open-sub"), `${count(c.open_kernel)} kernel, ${count(c.open_relay)} relayed`);
  text($("t-new"), perSecond(rate((s) => s.accepted)));
  text($("t-new-sub"), `${count(c.accepted_total)} so far`);
  text($("t-client"), bits(rate((s) => s.to_client)));
  text($("t-client-sub"), `${bits(rate((s) => s.to_backend))} back`);
  text($("t-share"), percent(c.share_handed_off_of_eligible));
  text($("t-share-sub"), c.share_handed_off === null ? "no connection yet" : `${percent(c.share_handed_off)} of all`);
  text($("t-refused"), count(c.refused_total));
  text($("t-refused-sub"), `${perSecond(rate((s) => s.refused))} a second`);
  text($("t-cpu"), percent(rate((s) => s.cpu_seconds)));
  text($("t-cpu-sub"), `of a CPU${memory === null ? "" : `, ${bytes(memory)}`}`);
}

function found({ config, listeners: all, http, kernel, census, not_ready: notReady }) {
  const alerts = [];
  if (notReady) alerts.push(["bad", `Not ready: ${notReady}.`]);
  if (config.last_error) {
    alerts.push(["bad", "The configuration file as it is now is refused; an older one is in use.", "#sources", "Why?"]);
  }
  all.filter((l) => l.error).forEach((l) => alerts.push(["bad", `Listener ${l.name} is ${l.state}: ${l.error}`]));
  http.filter((h) => h.error).forEach((h) => alerts.push(["warn", `Admin address ${h.bind} is not bound: ${h.error}`]));
  census.troubles.slice(0, 5).forEach(({ pool, backend, state, error }) => {
    const why = error ? `: ${error}` : "";
    alerts.push(["bad", `Backend ${backend} of pool ${pool} is ${state}${why}`, `#pools?q=${encodeURIComponent(pool)}`, "Show"]);
  });
  if (census.backends_down > 5) {
    alerts.push(["bad", `${plural(census.backends_down - 5, "more backend")} out.`, "#pools?state=trouble", "Show them"]);
  }
  if (census.backends_drained > 0) {
    alerts.push(["warn", `${plural(census.backends_drained, "backend")} kept back by operators.`, "#pools?state=drained", "Show"]);
  }
  if (kernel.mode !== "kernel") {
    alerts.push(["warn", "The kernel path is not in use; connections are relayed in userspace.", "#kernel", "Why?"]);
  }
  return alerts;
}

function alert([kind, message, href, more]) {
  const li = element("li", `alert ${kind}`, href ? `${message} ` : message);
  if (href) li.append(link(href, more));
  return li;
}

function estate({ census, providers, peers }) {
  const failing = providers.filter((p) => p.state !== "good").length;
  const unserved = sum(providers, (p) => p.needs_http + p.unsupported + p.conflicts);
  const apart = peers ? peers.peers.filter((p) => p.connected === null).length : 0;
  const parts = [
    ["#routes", plural(census.routes, "route"), unserved ? `${count(unserved)} not served` : "all served", unserved ? "warn" : ""],
    ["#pools", plural(census.pools, "pool"), census.pools_down ? `${count(census.pools_down)} down` : "all up", census.pools_down ? "bad" : ""],
    ["#pools", plural(census.backends, "backend"), census.backends_down ? `${count(census.backends_down)} out` : "all up", census.backends_down ? "bad" : ""],
    ["#sources", plural(providers.length, "provider"), failing ? `${count(failing)} not good` : providers.length ? "all good" : "only the file", failing ? "bad" : ""],
    ["#sources", peers ? plural(peers.peers.length, "peer") : "no peers", peers ? (apart ? `${count(apart)} away` : "all connected") : "one node", apart ? "bad" : ""],
  ];
  const make = () => {
    const li = element("li");
    const a = link("", "");
    a.append(element("strong"), element("span", "sub"));
    const state = element("span");
    a.lastChild.append(state);
    li.append(a);
    return li;
  };
  sync($("estate"), parts, (part) => parts.indexOf(part), make, (li, [href, main, sub, kind]) => {
    const a = li.firstChild;
    const bad = href === "#pools" && kind;
    a.setAttribute("href", bad ? "#pools?state=trouble" : href === "#routes" && kind ? "#routes?state=unserved" : href);
    text(a.firstChild, main);
    text(a.lastChild.firstChild, sub);
    a.lastChild.firstChild.className = kind ? `state ${kind}` : "";
  });
}

function feed(changes) {
  $("no-changes").hidden = changes.length > 0;
  const make = ({ pool, backend, to, error, by }) => {
    const li = element("li");
    const line = element("div", "line");
    const what = element("span");
    what.append(element("span", `state ${level(to)}`, to), " ", link(`#pools?q=${encodeURIComponent(pool)}`, `${pool}/${backend}`));
    line.append(what, element("span", "quiet"));
    li.append(line, element("span", "sub", error || (by ? `by ${by}` : "")));
    return li;
  };
  // The same change keeps its row, whatever its age.
  const key = (c) => [c.pool, c.backend, c.to, Math.round((now - c.age) / 2)].join(" ");
  sync($("changes"), changes.slice(0, 8), key, make, (li, c) => text(li.firstChild.lastChild, `${age(c.age)} ago`));
}

export const overview = {
  show(data, samples) {
    now = data.time;
    sync($("alerts"), found(data), (part) => part.join(" "), alert);
    tiles(data, samples);
    throughput.show(samples);
    arrivals.show(samples);
    estate(data);
    $("no-listeners").hidden = data.listeners.length > 0;
    listeners(data.listeners, (l) => l.name);
    feed(data.census.changes);
  },
};
