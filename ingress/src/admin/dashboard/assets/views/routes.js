// What is routed where, who said so, and what is not served, and why.

import { $, element, grid, sync } from "../dom.js";
import { List } from "../list.js";
import { count } from "../say.js";
import { level } from "../words.js";

const section = $("routes");
const list = new List(section, { noun: "route", none: "No route yet: neither the file nor a provider names one." });

const KINDS = { sni: "", default: "default of its listener", tcp: "TCP port", http: "HTTP", item: "not read" };

function backends({ up, backends: all }) {
  if (up === null || all === null) return "";
  return { main: `${count(up)} of ${count(all)} up`, state: up === 0 ? "bad" : up < all ? "warn" : "good" };
}

const table = grid(section.querySelector("table"), [
  { title: "Name", value: (r) => ({ main: r.matches || r.route, sub: [KINDS[r.kind], r.route !== r.matches && r.matches ? r.route : ""].filter(Boolean).join(", ") }) },
  { title: "Pool", value: (r) => (r.pool ? { main: r.pool, href: `#pools?q=${encodeURIComponent(r.pool)}` } : "") },
  { title: "Backends", value: backends },
  { title: "Provider", value: (r) => ({ main: r.provider, sub: [r.owner || "", r.lease ? `lease ${r.lease} s` : ""].filter(Boolean).join(", ") }) },
  { title: "Listeners", value: (r) => (r.listeners.length ? r.listeners.join(", ") : r.state === "served" ? "all" : "") },
  { title: "State", value: (r) => ({ main: r.state.replace("_", " "), sub: r.why || "", state: level(r.state) }) },
]);

export const routes = {
  list,
  what: "routes",
  show({ providers }) {
    const names = ["file", ...providers.map((p) => p.name)];
    const select = list.form.elements.provider;
    const any = { value: "", name: "any" };
    const options = [any, ...names.map((name) => ({ value: name, name }))];
    sync(select, options, (o) => o.value, (o) => Object.assign(element("option", "", o.name), { value: o.value }));
    if (list.params) select.value = list.params.provider || "";
  },
  page(page) {
    list.show(page);
    table(page.rows, (r) => [r.provider, r.kind, r.route, r.matches, r.state].join(" "));
  },
  refused(message) {
    list.refused(message);
    table([], () => "");
  },
};
