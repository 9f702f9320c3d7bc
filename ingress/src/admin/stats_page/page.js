// Draws the stats page from /stats.json, once a second. No framework, no build step: rows are kept and updated by key, so
// that selected text and the reading position of a screen reader survive.
"use strict";

const INTERVAL = 1000;
const HIDDEN_INTERVAL = 10000;
const WINDOW = 120; // samples in the chart
const SMOOTH = 5; // samples behind a printed rate

// What the words mean, in a line. The documentation has them at length.
const WORDS = {
  kernel_off: "kernel path is off", policy: "the pool says never", rtt: "the client is further away than the pool allows", family: "IPv6 at one end, IPv4 at the other", local: "loopback, or a backend on this host",
  device: "a device without our programs", unseen: "handshake not seen, or NAT between", options: "TCP options differ",
  mtu: "segments do not fit the other leg", half_closed: "one side had closed", out_of_order: "data out of order",
  server_first: "the backend spoke first", when_idle: "not quiet yet when it began", route: "routing rules lead spliced packets another way",
  window: "beyond the backend's window", full: "all kernel slots taken", ports: "no free source port",
  error: "a system call failed", unknown_sni: "no route for this name", no_routes_yet: "a provider has not spoken yet", no_sni: "no server name", not_tls: "not TLS",
  hello_timeout: "ClientHello took too long", hello_too_large: "ClientHello above 64 KiB",
  hello_eof: "client left before its ClientHello", listener_limit: "listener is full", source_limit: "too many from one client",
  global_limit: "limit over all listeners", bad_proxy_header: "PROXY header invalid",
  untrusted_proxy_header: "PROXY header from a stranger", no_backend: "no backend is up",
  denied: "client is denied",
  connect_failed: "no backend took it", draining: "daemon was stopping", client_reset: "client reset it",
  closed: "closed in order", backend_reset: "backend reset it", idle_timeout: "nothing said for too long",
  backend_down: "backend went down", demoted: "backend is not the primary any more", route_removed: "route removed", device_gone: "its network device is gone",
  maintenance: "backend in maintenance",
  killed: "ended by an operator", keepalive: "one end did not answer", daemon_stopped: "daemon stopped",
};

const $ = (id) => document.getElementById(id);
const samples = [];
let paused = false;
let timer;

// ---- numbers as people say them

const whole = new Intl.NumberFormat("en");
const count = (n) => whole.format(n);

function scaled(value, unit) {
  const prefixes = ["", "k", "M", "G", "T", "P"];
  let i = 0;
  while (value >= 999.5 && i < prefixes.length - 1) { value /= 1000; i += 1; }
  return `${value.toFixed(i === 0 || value >= 99.95 ? 0 : 1)} ${prefixes[i]}${unit}`;
}
const bytes = (n) => scaled(n, "B");
const bits = (bytesPerSecond) => scaled(bytesPerSecond * 8, "bit/s");
const perSecond = (n) => (n > 0 && n < 9.95 ? n.toFixed(1) : count(Math.round(n)));
const percent = (share) => (share === null ? "–" : `${(share * 100).toFixed(share > 0.9995 || share === 0 ? 0 : 1)} %`);

function age(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

// ---- the document

function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

function element(tag, className, content) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (content !== undefined) node.textContent = content;
  return node;
}

// Makes `parent`'s children match `items`, by key: known ones are updated, new ones made, gone ones removed, order kept.
function sync(parent, items, key, make, update) {
  const known = new Map(Array.from(parent.children, (child) => [child.dataset.key, child]));
  items.forEach((item, i) => {
    const id = String(key(item));
    let child = known.get(id);
    known.delete(id);
    if (!child) {
      child = make(item);
      child.dataset.key = id;
    }
    if (parent.children[i] !== child) parent.insertBefore(child, parent.children[i] || null);
    update(child, item);
  });
  known.forEach((child) => child.remove());
}

// A row whose cells carry their column's title, for the phone layout. The first cell is the row's header.
function row(titles, numeric) {
  const tr = document.createElement("tr");
  titles.forEach((title, i) => {
    const cell = element(i === 0 ? "th" : "td", numeric.has(i) ? "n" : "");
    if (i === 0) cell.scope = "row";
    cell.dataset.label = title;
    cell.append(element("span"));
    tr.append(cell);
  });
  return tr;
}

// A cell: text, or {main, sub, state}.
function fill(tr, values) {
  values.forEach((value, i) => {
    const cell = tr.cells[i];
    const span = cell.firstChild;
    const { main, sub = "", state = "" } = typeof value === "object" ? value : { main: value };
    if (!span.firstChild) span.append(element("span"), element("span", "sub"));
    text(span.firstChild, main);
    text(span.lastChild, sub);
    span.firstChild.className = state ? `state ${state}` : "";
    cell.classList.toggle("empty", main === "");
  });
}

function titlesOf(tbody) {
  const heads = Array.from(tbody.parentElement.tHead.rows[0].cells);
  return [heads.map((th) => th.textContent), new Set(heads.flatMap((th, i) => (th.className === "n" ? [i] : [])))];
}

function table(tbody, items, key, values) {
  tbody.parentElement.hidden = items.length === 0;
  const [titles, numeric] = titlesOf(tbody);
  sync(tbody, items, key, () => row(titles, numeric), (tr, item) => fill(tr, values(item)));
}

function pairs(dl, entries) {
  const make = ([name]) => {
    const div = document.createElement("div");
    div.append(element("dt", "", name), document.createElement("dd"));
    return div;
  };
  sync(dl, entries, ([name]) => name, make, (div, [, value]) => text(div.lastChild, value));
}

function bars(list, words, none) {
  const entries = Object.entries(words).sort((a, b) => b[1] - a[1]);
  const total = entries.reduce((sum, [, n]) => sum + n, 0);
  if (total === 0) {
    sync(list, [none], (s) => s, (s) => element("li", "quiet", s), () => {});
    return;
  }
  const make = ([word]) => {
    const li = document.createElement("li");
    const head = element("div", "head");
    head.append(element("span", "", word), element("span"));
    const track = element("div", "track");
    track.append(element("span", "fill"));
    li.append(head, track, element("span", "quiet", WORDS[word] || ""));
    return li;
  };
  sync(list, entries, ([word]) => word, make, (li, [, n]) => {
    text(li.firstChild.lastChild, `${count(n)}, ${percent(n / total)}`);
    li.children[1].firstChild.style.width = `${(100 * n) / entries[0][1]}%`;
  });
}

// ---- rates, from the samples that are kept

const sum = (list, value) => list.reduce((total, item) => total + value(item), 0);

function totals(data) {
  const listeners = data.status.listeners;
  return {
    time: data.time,
    toClient: sum(listeners, (l) => l.bytes.to_client),
    toBackend: sum(listeners, (l) => l.bytes.to_backend),
    accepted: data.status.connections.accepted_total,
    cpu: data.cpu_seconds || 0,
    byListener: new Map(listeners.map((l) => [l.name, l.accepted_total])),
    byBackend: new Map(data.pools.flatMap((p) => p.backends.concat(p.fallback)
      .map((b) => [`${p.name}/${b.name}`, b.connections_total]))),
    byVerdict: new Map(data.status.kernel.verdicts),
  };
}

// A counter that fell belongs to a daemon that was restarted.
function rate(value, from, to) {
  const seconds = to.time - from.time;
  const moved = value(to) - value(from);
  return seconds > 0 && moved > 0 ? moved / seconds : 0;
}

function recent(value) {
  if (samples.length < 2) return 0;
  return rate(value, samples[Math.max(0, samples.length - 1 - SMOOTH)], samples[samples.length - 1]);
}

const recentOf = (map, key) => recent((s) => s[map].get(key) || 0);

// ---- the chart

const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes) {
  const node = document.createElementNS(SVG, name);
  Object.entries(attributes).forEach(([key, value]) => node.setAttribute(key, value));
  return node;
}

// The next round multiple of a power of ten, in bits, so that the axis carries round numbers.
function ceiling(bytesPerSecond) {
  const wanted = Math.max(bytesPerSecond * 8, 1000);
  const power = 10 ** Math.floor(Math.log10(wanted));
  return ([1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= wanted) * power) / 8;
}

function chart() {
  const node = $("chart");
  const width = node.clientWidth || 600;
  const height = node.clientHeight || 190;
  const series = (value) => samples.slice(1).map((to, i) => rate(value, samples[i], to));
  const client = series((s) => s.toClient);
  const backend = series((s) => s.toBackend);
  const top = ceiling(Math.max(...client, ...backend, 0));
  const x = (i, length) => width - ((length - 1 - i) * width) / (WINDOW - 1);
  const y = (value) => height - (value / top) * (height - 16);
  const line = (values) => values.map((v, i) => `${i ? "L" : "M"}${x(i, values.length).toFixed(1)} ${y(v).toFixed(1)}`).join("");
  const grid = [0, 0.5, 1].map((share) => svg("line", { class: "grid", x1: 0, x2: width, y1: y(top * share), y2: y(top * share) }));
  const labels = [0.5, 1].map((share) => {
    const label = svg("text", { class: "label", x: 0, y: y(top * share) - 4 });
    label.textContent = bits(top * share);
    return label;
  });
  const parts = [...grid];
  if (client.length > 1) {
    const area = `${line(client)}L${width} ${height}L${x(0, client.length).toFixed(1)} ${height}Z`;
    parts.push(svg("path", { class: "area", d: area }));
    parts.push(svg("path", { class: "line backend", d: line(backend) }));
    parts.push(svg("path", { class: "line client", d: line(client) }));
  }
  node.setAttribute("viewBox", `0 0 ${width} ${height}`);
  node.replaceChildren(...parts, ...labels);
}

// ---- the parts of the page

function alerts({ status, pools }) {
  const found = [];
  const down = (pool, list) => list.filter((b) => b.state === "down" || b.state === "unresolved")
    .map((b) => ["bad", `Backend ${b.name} of pool ${pool.name} is ${b.state}` +
      (b.last_check && b.last_check.error ? `: ${b.last_check.error}` : "")]);
  if (status.config.last_error) {
    found.push(["bad", "The configuration file as it is now is refused; an older one is in use. See Configuration below."]);
  }
  status.listeners.filter((l) => l.error).forEach((l) => found.push(["bad", `Listener ${l.name} is ${l.state}: ${l.error}`]));
  status.http.filter((h) => h.error).forEach((h) => found.push(["warn", `Admin address ${h.bind} is not bound: ${h.error}`]));
  pools.forEach((pool) => found.push(...down(pool, pool.backends), ...down(pool, pool.fallback)));
  if (status.kernel.mode !== "kernel") {
    found.push(["warn", "The kernel path is not in use; connections are relayed in userspace. See Kernel path below."]);
  }
  sync($("alerts"), found, ([, message]) => message, ([level, message]) => element("p", `alert ${level}`, message), () => {});
}

function head({ status }) {
  text($("node"), `on ${status.node}`);
  text($("about"), `version ${status.version}, up ${age(status.uptime)}, generation ${status.config.generation}`);
  document.title = `${status.ready ? "" : "not ready: "}${status.node} · ingress`;
  const ready = $("ready");
  ready.hidden = false;
  ready.className = `pill ${status.ready ? "good" : "bad"}`;
  text(ready, status.ready ? "ready" : "not ready");
}

function connections({ status, memory_bytes: memory, cpu_seconds: cpu }) {
  const c = status.connections;
  const open = c.open_kernel + c.open_relay;
  text($("rate-client"), bits(recent((s) => s.toClient)));
  text($("rate-backend"), bits(recent((s) => s.toBackend)));
  text($("share"), percent(c.share_handed_off_of_eligible));
  text($("share-note"), c.share_handed_off === null ? "no connection yet"
    : `${c.share_handed_off_of_eligible === null ? "none was eligible" : "of eligible connections"}; ${percent(c.share_handed_off)} of all`);
  text($("open-kernel"), count(c.open_kernel));
  text($("open-relay"), count(c.open_relay));
  text($("opening"), count(c.opening));
  const split = $("split");
  split.children[0].style.width = `${open ? (100 * c.open_kernel) / open : 0}%`;
  split.children[1].style.width = `${open ? (100 * c.open_relay) / open : 0}%`;
  split.setAttribute("aria-label", `${count(c.open_kernel)} connections in the kernel, ${count(c.open_relay)} relayed`);
  text($("t-open"), count(open));
  text($("t-new"), perSecond(recent((s) => s.accepted)));
  text($("t-accepted"), count(c.accepted_total));
  text($("t-refused"), count(c.refused_total));
  text($("t-cpu"), cpu === null ? "–" : percent(recent((s) => s.cpu)));
  text($("t-memory"), memory === null ? "–" : bytes(memory));
  bars($("relay-reasons"), c.relay_reasons, "None did so far.");
  bars($("refused-causes"), c.refused_causes, "None was so far.");
  bars($("end-reasons"), c.end_reasons, "None ended so far.");
}

const STATES = { up: "good", listening: "good", unchecked: "good", down: "bad", degraded: "bad", unresolved: "warn" };

function check(backend) {
  const last = backend.last_check;
  if (!last) return { main: "none" };
  const when = `${age(last.age)} ago`;
  if (!last.ok) return { main: "failed", sub: `${last.error || "no reason given"}, ${when}` };
  return { main: last.latency_ms === null ? "ok" : `${last.latency_ms.toFixed(1)} ms`, sub: when };
}

function backendRow(pool) {
  return (b) => {
    const weight = Math.abs(b.effective_weight - b.weight) < 0.05 ? String(b.weight) : `${b.effective_weight.toFixed(1)} of ${b.weight}`;
    const addresses = b.addresses.filter((address) => address !== b.name).join(", ");
    return [
      { main: b.name, sub: [b.role, addresses].filter(Boolean).join(", ") },
      { main: b.state, sub: `for ${age(b.since)}`, state: STATES[b.state] || "warn" },
      check(b), weight, count(b.in_flight), perSecond(recentOf("byBackend", `${pool.name}/${b.name}`)),
      { main: count(b.connections_total), sub: b.connect_failures ? `${count(b.connect_failures)} failed` : "" },
      bytes(b.bytes_to_backend), bytes(b.bytes_to_client),
    ];
  };
}

const POOL_COLUMNS = ["Backend", "State", "Last check", "Weight", "Open", "New/s", "Connections", "To backend", "To client"];

function makePool(pool) {
  const node = element("div", "pool");
  const header = element("div", "pool-head");
  header.append(element("h3", "", pool.name), element("span"), element("span", "quiet"));
  const grid = element("table", "stack");
  const titles = grid.createTHead().insertRow();
  POOL_COLUMNS.forEach((title, i) => {
    const th = element("th", i > 2 ? "n" : "", title);
    th.scope = "col";
    titles.append(th);
  });
  grid.append(document.createElement("tbody"));
  node.append(header, grid);
  return node;
}

function pools(data) {
  sync($("pool-list"), data.pools, (p) => p.name, makePool, (node, pool) => {
    const [, state, settings] = node.firstChild.children;
    const up = pool.backends.filter((b) => STATES[b.state] === "good").length;
    state.className = `state ${up === pool.backends.length ? "good" : up ? "warn" : "bad"}`;
    text(state, `${up} of ${pool.backends.length} up`);
    const proxy = pool.proxy_protocol === "none" ? "" : `PROXY ${pool.proxy_protocol}`;
    const handoff = pool.handoff === "always" ? "" : `handoff ${pool.handoff}`;
    const checks = pool.health ? `checks: ${pool.health}` : "no checks";
    text(settings, [pool.balance.replaceAll("_", " "), proxy, handoff, checks].filter(Boolean).join(", "));
    const all = pool.backends.concat(pool.fallback.map((b) => ({ ...b, role: "fallback" })));
    table(node.querySelector("tbody"), all, (b) => `${b.role || ""}/${b.name}`, backendRow(pool));
  });
}

function listeners({ status }) {
  table($("listeners"), status.listeners, (l) => l.name, (l) => [
    l.name, l.bind.join(", "), { main: l.state, sub: `for ${age(l.since)}`, state: STATES[l.state] || "warn" },
    count(l.open_kernel + l.open_relay), perSecond(recentOf("byListener", l.name)), count(l.accepted_total),
    count(l.handed_off_total), count(sum(Object.values(l.relayed), (n) => n)), count(sum(Object.values(l.refused), (n) => n)),
    bytes(l.bytes.to_backend), bytes(l.bytes.to_client),
  ]);
}

function kernel({ status: { kernel: k } }) {
  const slots = k.max_connections ? `${count(k.connections)} of ${count(k.max_connections)}` : "none";
  pairs($("kernel"), [["Mode", k.mode], ["Connections", slots], ["Adopted at start", count(k.adopted)], ["Pinned in", k.pin_dir || "–"]]);
  sync($("missing"), k.missing, (line) => line, (line) => element("li", "", line), () => {});
  table($("interfaces"), k.interfaces, (i) => i.name, (i) => [
    i.name, { main: i.attached, state: i.attached === "none" ? "warn" : "good" }, i.why || "",
  ]);
  const verdicts = k.verdicts.filter(([, packets]) => packets > 0);
  $("packets").hidden = verdicts.length === 0;
  table($("verdicts"), verdicts, ([verdict]) => verdict, ([verdict, packets]) => [
    verdict, perSecond(recentOf("byVerdict", verdict)), count(packets),
  ]);
}

function config({ time, status: { config: c } }) {
  const source = c.source === "file" ? "the file" : "last good, from the state directory";
  pairs($("config"), [
    ["File", c.path], ["In use", source], ["Generation", count(c.generation)], ["Loaded", `${age(time - c.loaded_at)} ago`],
  ]);
  const problems = c.last_error ? [c.last_error] : [];
  sync($("config-error"), problems, (message) => message, (message) => element("pre", "", message), () => {});
}

function draw(data) {
  samples.push(totals(data));
  while (samples.length > WINDOW + 1) samples.shift();
  [head, alerts, connections, pools, listeners, kernel, config].forEach((part) => part(data));
  chart();
}

// ---- asking

function live(level, message) {
  const node = $("live");
  node.className = `pill ${level}`;
  text(node, message);
  document.body.classList.toggle("stale", level === "bad");
}

// Without the user and password that may stand in the address bar: fetch refuses such addresses.
const DATA = new URL("stats.json", location.origin + location.pathname);

async function ask() {
  const response = await fetch(DATA, { cache: "no-store", signal: AbortSignal.timeout(5000) });
  if (response.status === 401) throw new Error("password needed: load the page again");
  if (!response.ok) throw new Error(`answer ${response.status}`);
  return response.json();
}

async function tick() {
  try {
    const data = await ask();
    if (!paused) {
      draw(data);
      live("good", "live");
    }
  } catch (error) {
    if (!paused) live("bad", error.message.startsWith("password") ? error.message : "no answer, trying again");
  }
  schedule(document.hidden ? HIDDEN_INTERVAL : INTERVAL);
}

function schedule(delay) {
  clearTimeout(timer);
  if (!paused) timer = setTimeout(tick, delay);
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  text($("pause"), paused ? "Go on" : "Pause");
  if (paused) live("", "paused");
  schedule(0);
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) schedule(0); });
addEventListener("resize", chart);
tick();
