// What the long lists share: filters that stand in the address, so that they can be sent to a colleague, and pages.

import { element, text } from "./dom.js";
import { count, plural } from "./say.js";

const TYPING = 150; // milliseconds without a key, until what was typed is looked for

export class List {
  #timer;

  // `noun`: what a row is. `none`: what stands in the rows' place where there are none without any filter.
  constructor(section, { noun, none }) {
    Object.assign(this, { section, noun, none });
    this.form = section.querySelector("form");
    this.form.addEventListener("input", (event) => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#go({ ...this.#typed(), page: "" }, true), event.target.type === "search" ? TYPING : 0);
    });
    this.form.addEventListener("submit", (event) => event.preventDefault());
    const pager = section.querySelector(".pager");
    if (!pager) return;
    this.back = this.#turn("Previous", -1);
    this.where = element("span", "quiet");
    this.on = this.#turn("Next", 1);
    pager.append(this.back, this.where, this.on);
  }

  // Sets the filters to what the address says.
  enter(params) {
    this.params = params;
    Array.from(this.form.elements).forEach((field) => {
      if (field !== document.activeElement || field.type !== "search") field.value = params[field.name] || "";
    });
  }

  show(page) {
    this.page = page;
    text(this.section.querySelector(".found"), this.#found(page));
    const nothing = page.all === 0 ? this.none : `No ${this.noun} matches.`;
    this.#empty(page.rows.length === 0 ? nothing : "");
    if (!this.where) return;
    text(this.where, `Page ${count(page.page + 1)} of ${count(page.pages)}`);
    this.back.disabled = page.page === 0;
    this.on.disabled = page.page + 1 >= page.pages;
    this.back.parentElement.hidden = page.pages < 2;
  }

  refused(message) {
    text(this.section.querySelector(".found"), "");
    this.#empty(message);
  }

  // "12 found in 10,000 routes", "51 to 100 of 10,000 routes"
  #found({ matching, all, before = 0, rows }) {
    if (rows.length === 0) return "";
    const found = matching === all ? plural(all, this.noun) : `${count(matching)} found in ${plural(all, this.noun)}`;
    return rows.length === matching ? found : `${count(before + 1)} to ${count(before + rows.length)} of ${found}`;
  }

  #empty(message) {
    const empty = this.section.querySelector(".empty");
    empty.hidden = message === "";
    text(empty, message);
  }

  #turn(name, by) {
    const button = element("button", "", name);
    button.type = "button";
    button.addEventListener("click", () => {
      this.#go({ ...this.params, page: String(this.page.page + by) }, false);
      scrollTo({ top: 0 });
    });
    return button;
  }

  #typed() {
    return Object.fromEntries(Array.from(this.form.elements, (field) => [field.name, field.value]));
  }

  // Typing makes no history: one step back leaves the list.
  #go(params, replace) {
    const given = Object.entries(params).filter(([, value]) => value && value !== "0");
    const hash = `#${this.section.id}${given.length ? `?${new URLSearchParams(given)}` : ""}`;
    if (hash === location.hash) return;
    if (replace) history.replaceState(null, "", hash);
    else history.pushState(null, "", hash);
    dispatchEvent(new HashChangeEvent("hashchange"));
  }
}
