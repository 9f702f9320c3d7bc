// Who says what is routed: the file, the providers, and the peers that share what they were told.

import { $, element, facts, grid, pill, sync, text, trouble } from "../dom.js";
import { age, clock, count, plural } from "../say.js";
import { level } from "../words.js";

function config(c, time) {
  const good = !c.last_error && c.source === "file";
  pill($("config-state"), good ? "good" : "bad", good ? "in use" : c.source === "file" ? "newer file refused" : "last good");
  facts($("config"), [
    ["File", c.path],
    ["In use", c.source === "file" ? "the file" : "the last good one, from the state directory"],
    ["Generation", count(c.generation)],
    ["Loaded", `${age(time - c.loaded_at)} ago, ${clock(c.loaded_at)}`],
  ]);
  trouble($("config-error"), c.last_error);
}

function make(provider) {
  const node = element("section", "card");
  const head = element("div", "card-head");
  const title = element("h3", "", provider.name);
  title.id = `provider-${provider.name}`;
  node.setAttribute("aria-labelledby", title.id);
  head.append(title, element("p"));
  const unserved = element("details");
  unserved.append(element("summary"), element("ul", "plain"));
  node.append(head, element("dl", "facts"), element("div"), unserved);
  return node;
}

function update(node, p, time) {
  const [head, known, error, unserved] = node.children;
  const ago = (at) => (at === null ? "never" : `${age(time - at)} ago`);
  pill(head.lastChild, level(p.state), p.state.replace("-", " "));
  facts(known, [
    ["Kind", `${p.kind}, priority ${p.priority}`],
    ["Place", p.place],
    ["Last answer", ago(p.last_success)],
    ["Serves", `${plural(p.served, "item")}; ${count(p.needs_http)} need HTTP, ${count(p.unsupported)} unsupported, ${count(p.conflicts)} in conflict`],
    ["Changes", count(p.changes_total)],
    ["Failures", p.failing_since === null ? count(p.failures_total) : `${count(p.failures_total)}, failing for ${age(time - p.failing_since)}`],
    ...(p.from_disk === null ? [] : [["From disk", `its word of ${clock(p.from_disk)}, kept in the state directory`]]),
  ]);
  trouble(error, p.last_error);
  unserved.hidden = p.unserved.length === 0;
  text(unserved.firstChild, `Not served: ${plural(p.needs_http + p.unsupported + p.conflicts, "item")}`);
  const line = (u) => element("li", "", `${u.item}: ${u.why}`);
  sync(unserved.lastChild, p.unserved, (u) => `${u.item} ${u.why}`, line);
}

const peers = grid($("peers"), [
  { title: "Name", value: (p) => ({ main: p.name, sub: p.address }) },
  { title: "Link", value: (p) => (p.connected === null ? { main: "away", state: "bad" } : { main: "connected", sub: `for ${age(p.connected)}`, state: "good" }) },
  { title: "Round trip", n: true, value: (p) => (p.round_trip === null ? "" : `${(p.round_trip * 1000).toFixed(1)} ms`) },
  { title: "Clock ahead", n: true, value: (p) => (p.clock_skew === null ? "" : `${(p.clock_skew * 1000).toFixed(0)} ms`) },
  { title: "Waiting", n: true, value: (p) => count(p.waiting) },
  { title: "Refused", n: true, value: (p) => count(p.refused) },
  { title: "Last error", value: (p) => ({ main: p.last_error || "", sub: p.last_error_at === null ? "" : clock(p.last_error_at) }) },
]);

export const sources = {
  show({ time, config: c, providers, peers: mesh }) {
    config(c, time);
    sync($("providers"), providers, (p) => p.name, make, (node, p) => update(node, p, time));
    $("no-providers").hidden = providers.length > 0;
    $("no-peers").hidden = mesh !== null && mesh.peers.length > 0;
    text($("no-peers"), mesh === null ? "This node stands alone." : mesh.trouble || "No other node has joined yet.");
    peers(mesh === null ? [] : mesh.peers, (p) => p.name);
    const state = $("peers-state");
    state.hidden = mesh === null;
    if (mesh !== null) pill(state, mesh.trouble ? "bad" : "good", mesh.trouble ? "not in the mesh" : `this node is ${mesh.node}`);
  },
};
