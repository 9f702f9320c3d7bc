// The document. Whatever comes from outside becomes text here, never HTML; rows are kept and updated by key, so that
// selected text, an open history and the reading position of a screen reader survive.

export const $ = (id) => document.getElementById(id);

export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

export function element(tag, className = "", content = undefined) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (content !== undefined) node.textContent = content;
  return node;
}

export function link(href, content) {
  const a = element("a", "", content);
  a.href = href;
  return a;
}

export function pill(node, level, message) {
  node.className = `pill ${level}`;
  node.hidden = false;
  text(node, message);
}

// Makes `parent`'s children match `items`, by key: gone ones are removed, known ones updated, new ones made.
export function sync(parent, items, key, make, update = () => {}) {
  const keys = items.map((item) => String(key(item)));
  const wanted = new Set(keys);
  const known = new Map();
  Array.from(parent.children).forEach((child) => {
    if (wanted.has(child.dataset.key)) known.set(child.dataset.key, child);
    else child.remove();
  });
  items.forEach((item, i) => {
    let child = known.get(keys[i]);
    if (!child) {
      child = make(item);
      child.dataset.key = keys[i];
      known.set(keys[i], child);
    }
    if (parent.children[i] !== child) parent.insertBefore(child, parent.children[i] || null);
    update(child, item);
  });
}

// A cell's content: text, or {main, sub, state, href}.
function put(cell, value) {
  const { main, sub = "", state = "", href = "" } = value !== null && typeof value === "object" ? value : { main: value };
  const box = cell.firstChild;
  if (!box.firstChild) box.append(href ? link(href, "") : element("span"), element("span", "sub"));
  const [first, second] = box.children;
  text(first, main);
  text(second, sub);
  if (href && first.getAttribute("href") !== href) first.setAttribute("href", href);
  const className = state ? `state ${state}` : "";
  if (first.className !== className) first.className = className;
  cell.classList.toggle("blank", main === "" && sub === "");
}

// Gives a table its heads; the answer shows items in its rows. A column is {title, n: is it a number, className, value: of an item},
// or has `show(box, item)` for what is more than text. The first cell of a row is the row's head.
export function grid(table, columns) {
  const heads = table.createTHead().insertRow();
  const classes = ({ n, className = "" }) => (n ? "n" : className);
  columns.forEach((column) => {
    const th = element("th", classes(column), column.title);
    th.scope = "col";
    heads.append(th);
  });
  const body = table.createTBody();
  const make = () => {
    const tr = document.createElement("tr");
    columns.forEach((column, i) => {
      const cell = element(i === 0 ? "th" : "td", classes(column));
      if (i === 0) cell.scope = "row";
      // What a phone shows in place of the heads.
      cell.dataset.label = column.title;
      cell.append(document.createElement("div"));
      tr.append(cell);
    });
    return tr;
  };
  const update = (tr, item) => columns.forEach((column, i) => {
    if (column.show) column.show(tr.cells[i].firstChild, item);
    else put(tr.cells[i], column.value(item));
  });
  return (items, key) => {
    table.hidden = items.length === 0;
    sync(body, items, key, make, update);
  };
}

export function facts(dl, entries) {
  const make = ([name]) => {
    const div = document.createElement("div");
    div.append(element("dt", "", name), document.createElement("dd"));
    return div;
  };
  sync(dl, entries, ([name]) => name, make, (div, [, value]) => text(div.lastChild, value));
}

// At most one line of trouble, as it was written.
export function trouble(box, message) {
  sync(box, message ? [message] : [], (it) => it, (it) => element("pre", "", it));
}
