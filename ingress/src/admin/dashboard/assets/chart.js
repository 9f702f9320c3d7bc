// Rates over the last five minutes: lines in an SVG of their own size, with a readout where the pointer is.

import { element, sync, text } from "./dom.js";
import { clock } from "./say.js";

const SVG = "http://www.w3.org/2000/svg";
const SPAN = 300; // seconds

function svg(name, attributes) {
  const node = document.createElementNS(SVG, name);
  Object.entries(attributes).forEach(([key, value]) => node.setAttribute(key, value));
  return node;
}

// The next round number, so that the axis carries round numbers. `unit`: what 1 is shown as; `least`: of the top.
function ceiling(value, { unit, least }) {
  const wanted = Math.max(value * unit, least);
  const power = 10 ** Math.floor(Math.log10(wanted));
  return ([1, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= wanted - 1e-9) * power) / unit;
}

// A counter that fell belongs to a daemon that was restarted.
function rates(samples, value) {
  return samples.slice(1).map((to, i) => {
    const moved = value(to) - value(samples[i]);
    return { time: to.time, value: moved > 0 ? moved / (to.time - samples[i].time) : 0 };
  });
}

// Over the last few samples, so that the number can be read.
export function recent(samples, value) {
  const [from, to] = [samples[Math.max(0, samples.length - 4)], samples[samples.length - 1]];
  if (!from || to.time <= from.time) return 0;
  return Math.max(0, value(to) - value(from)) / (to.time - from.time);
}

export class Chart {
  #samples = [];
  #pointed = null;

  // `lines`: {name, className, value: of a sample}. `say`: a rate in words. `scale`: as in `ceiling`.
  constructor(node, legend, title, lines, say, scale) {
    Object.assign(this, { node, legend, title, lines, say, scale });
    node.addEventListener("pointermove", (event) => {
      this.#pointed = event.offsetX / node.clientWidth;
      this.draw();
    });
    node.addEventListener("pointerleave", () => {
      this.#pointed = null;
      this.draw();
    });
    new ResizeObserver(() => this.draw()).observe(node);
  }

  show(samples) {
    this.#samples = samples;
    this.draw();
  }

  draw() {
    const { node, scale } = this;
    const width = node.clientWidth;
    const height = node.clientHeight;
    if (!width) return;
    const end = this.#samples.length ? this.#samples[this.#samples.length - 1].time : 0;
    const series = this.lines.map((line) => rates(this.#samples, line.value));
    const top = ceiling(Math.max(0, ...series.flatMap((points) => points.map((p) => p.value))), scale);
    const x = (time) => width - ((end - time) / SPAN) * width;
    const y = (value) => height - (value / top) * (height - 14);
    const path = (points) => points.map((p, i) => `${i ? "L" : "M"}${x(p.time).toFixed(1)} ${y(p.value).toFixed(1)}`).join("");
    const parts = [0, 0.5, 1].map((share) => svg("line", { class: "grid", x1: 0, x2: width, y1: y(top * share), y2: y(top * share) }));
    series.forEach((points, i) => {
      if (points.length < 2) return;
      const { className } = this.lines[i];
      const area = `${path(points)}L${width} ${height}L${x(points[0].time).toFixed(1)} ${height}Z`;
      if (i === 0) parts.push(svg("path", { class: `area ${className}`, d: area }));
      parts.push(svg("path", { class: `line ${className}`, d: path(points) }));
    });
    [0.5, 1].forEach((share) => {
      const label = svg("text", { class: "label", x: 0, y: y(top * share) - 4 });
      label.textContent = this.say(top * share).replace(/\.0\b/, "");
      parts.push(label);
    });
    const at = this.#pointedAt(series[0], end);
    if (at !== null) parts.push(svg("line", { class: "mark", x1: x(series[0][at].time), x2: x(series[0][at].time), y1: 0, y2: height }));
    node.setAttribute("viewBox", `0 0 ${width} ${height}`);
    node.replaceChildren(...parts);
    this.#tell(series, at);
  }

  // Which point is under the pointer.
  #pointedAt(points, end) {
    if (this.#pointed === null || points.length === 0) return null;
    const wanted = end - (1 - this.#pointed) * SPAN;
    const distance = (i) => Math.abs(points[i].time - wanted);
    return points.reduce((best, _, i) => (distance(i) < distance(best) ? i : best), 0);
  }

  #tell(series, at) {
    const values = series.map((points, i) => (at === null ? recent(this.#samples, this.lines[i].value) : points[at].value));
    const make = (line) => {
      const div = document.createElement("div");
      div.append(element("dt", line.className, line.name), document.createElement("dd"));
      return div;
    };
    const shown = this.lines.map((line, i) => ({ ...line, rate: this.say(values[i]) }));
    sync(this.legend, shown, (line) => line.name, make, (div, line) => text(div.lastChild, line.rate));
    const when = at === null ? "now" : `at ${clock(series[0][at].time)}`;
    this.legend.title = when;
    const words = shown.map((line) => `${line.rate} ${line.name}`).join(", ");
    const peak = Math.max(0, ...series.flatMap((points) => points.map((p) => p.value)));
    this.node.setAttribute("aria-label", `${this.title} of the last five minutes. ${when}: ${words}. Highest: ${this.say(peak)}.`);
  }
}
