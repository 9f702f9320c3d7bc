// Numbers and times as people say them.

const whole = new Intl.NumberFormat("en");
export const count = (n) => whole.format(n);

function scaled(value, unit) {
  const prefixes = ["", "k", "M", "G", "T", "P"];
  let i = 0;
  while (value >= 999.5 && i < prefixes.length - 1) {
    value /= 1000;
    i += 1;
  }
  return `${value.toFixed(i === 0 || value >= 99.95 ? 0 : 1)} ${prefixes[i]}${unit}`;
}

export const bytes = (n) => scaled(n, "B");
export const bits = (bytesPerSecond) => scaled(bytesPerSecond * 8, "bit/s");
export const perSecond = (n) => (n > 0 && n < 9.95 ? n.toFixed(1) : count(Math.round(n)));
export const percent = (share) => (share === null ? "–" : `${(share * 100).toFixed(share > 0.9995 || share === 0 ? 0 : 1)} %`);
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

export function age(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

const two = (n) => String(n).padStart(2, "0");

// The time of day of a Unix time; with the day, where it is another one.
export function clock(unixSeconds) {
  const at = new Date(unixSeconds * 1000);
  const time = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return at.toDateString() === new Date().toDateString() ? time : `${day} ${time}`;
}

// Rates of many counters, each from its values of the last seconds.
export class Rates {
  #seen = new Map();

  of(key, value, time) {
    const known = this.#seen.get(key) || [];
    const last = known[known.length - 1];
    // A counter that fell belongs to a daemon that was restarted.
    if (last && value < last.value) known.length = 0;
    if (!last || time > last.time) known.push({ value, time });
    while (known.length > 4) known.shift();
    if (this.#seen.size > 5000) this.#seen.clear();
    this.#seen.set(key, known);
    const [from, to] = [known[0], known[known.length - 1]];
    return to.time > from.time ? (to.value - from.value) / (to.time - from.time) : 0;
  }
}
