// Live connections, those in the kernel and those that the daemon relays.

import { $, grid } from "../dom.js";
import { List } from "../list.js";
import { age, bytes } from "../say.js";
import { WORDS } from "../words.js";

const section = $("connections");
const list = new List(section, { noun: "connection", none: "Nobody is connected." });

const carried = (f) => (f.mode === "kernel"
  ? { main: "kernel", sub: f.state === "spliced" ? "" : f.state, state: "good" }
  : { main: "relay", sub: `${f.reason || ""}${WORDS[f.reason] ? `: ${WORDS[f.reason]}` : ""}`, state: "warn" });

const table = grid(section.querySelector("table"), [
  { title: "Client", value: (f) => f.client },
  { title: "Name", value: (f) => ({ main: f.sni || "–", sub: f.alpn || "" }) },
  { title: "Backend", value: (f) => ({ main: f.backend, sub: f.pool }) },
  { title: "Carried by", value: carried },
  { title: "Age", n: true, value: (f) => age(f.age) },
  { title: "Quiet for", n: true, value: (f) => age(f.idle) },
  { title: "To client", n: true, value: (f) => bytes(f.bytes_to_client) },
  { title: "To backend", n: true, value: (f) => bytes(f.bytes_to_backend) },
]);

export const connections = {
  list,
  what: "flows",
  show() {},
  page(page) {
    list.show(page);
    table(page.rows, (f) => `${f.mode} ${f.id}`);
  },
  refused(message) {
    list.refused(message);
    table([], () => "");
  },
};
