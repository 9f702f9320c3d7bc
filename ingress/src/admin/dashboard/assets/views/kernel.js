// How the kernel carries connections, and why it does not carry the others.

import { $, element, facts, grid, pill, sync, text } from "../dom.js";
import { Rates, count, percent, perSecond } from "../say.js";
import { WORDS } from "../words.js";

const rates = new Rates();
let now = 0;

function bars(list, words, none) {
  const entries = Object.entries(words).sort((a, b) => b[1] - a[1]);
  const total = entries.reduce((sum, [, n]) => sum + n, 0);
  if (total === 0) {
    sync(list, [none], (it) => it, (it) => element("li", "quiet", it));
    return;
  }
  const make = ([word]) => {
    const li = element("li");
    const head = element("div", "head");
    head.append(element("span", "", word), element("span"));
    const track = element("div", "track");
    track.append(element("span", "fill"));
    li.append(head, track, element("span", "quiet", WORDS[word] || ""));
    return li;
  };
  sync(list, entries, ([word]) => word, make, (li, [, n]) => {
    text(li.firstChild.lastChild, `${count(n)} (${percent(n / total)})`);
    li.children[1].firstChild.style.width = `${(100 * n) / entries[0][1]}%`;
  });
}

const interfaces = grid($("interfaces"), [
  { title: "Device", value: (i) => i.name },
  { title: "Programs", value: (i) => ({ main: i.attached, sub: i.why || "", state: i.attached === "none" ? "warn" : "good" }) },
  { title: "Admission", value: ({ admission: a }) => (a === null ? { main: "nothing to judge" }
    : { main: [a.side, a.mode === "none" ? "open" : a.mode].filter(Boolean).join(", "), sub: a.why || "", state: a.mode === "none" ? "bad" : "good" }) },
  { title: "Dropped", n: true, value: ({ admission: a }) => (a === null ? "" : count(a.dropped.reduce((sum, [, n]) => sum + n, 0))) },
]);

const packets = grid($("packets"), [
  { title: "Verdict", value: ([verdict]) => verdict },
  { title: "Per second", n: true, value: ([verdict, n]) => perSecond(rates.of(verdict, n, now)) },
  { title: "Total", n: true, value: ([, n]) => count(n) },
]);

export const kernel = {
  show({ time, kernel: k, connections: c }) {
    now = time;
    bars($("relay-reasons"), c.relay_reasons, "None did so far.");
    bars($("refused-causes"), c.refused_causes, "None was so far.");
    bars($("end-reasons"), c.end_reasons, "None ended so far.");
    pill($("path-state"), k.mode === "kernel" ? "good" : "warn", k.mode);
    const ports = k.ports && `${k.ports.range[0]} to ${k.ports.range[1]}; ${count(k.ports.most_taken)} taken towards one backend`;
    facts($("path"), [
      ["Connections", k.max_connections ? `${count(k.connections)} of ${count(k.max_connections)}` : "none"],
      ["Adopted at start", count(k.adopted)],
      ["Pinned in", k.pin_dir || "–"],
      ...(ports ? [["Source ports", ports]] : []),
    ]);
    sync($("missing"), k.missing, (line) => line, (line) => element("li", "", line));
    $("interfaces-title").hidden = k.interfaces.length === 0;
    interfaces(k.interfaces, (i) => i.name);
    const seen = k.verdicts.filter(([, n]) => n > 0);
    $("no-packets").hidden = seen.length > 0;
    packets(seen, ([verdict]) => verdict);
  },
};
