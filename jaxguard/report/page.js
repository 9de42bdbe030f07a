"use strict";
// The table of all files: sorts, filters and pages through columns that lie in the page as JSON.
// Names of files are hostile: they become text nodes and nothing else. State lives in the address, behind the `#`.
(() => {
  const PAGE_SIZES = [50, 200, 1000];
  const NUMERIC = ["score", "p", "q", "size"];
  const HIGHEST_FIRST = new Set(["score", "size"]);
  const SIGNS = JSON.parse(document.getElementById("signs").textContent);
  const data = JSON.parse(document.getElementById("files-rows").textContent);
  const count = data.path.length;
  const table = document.getElementById("files-table");
  const body = table.tBodies[0];
  const byId = (id) => document.getElementById(id);
  const [filterBox, verdictBox, sortBox, rowsBox] = ["filter", "verdict", "sort", "rows"].map(byId);
  const state = { sort: "", desc: false, filter: "", verdict: "", page: 1, rows: PAGE_SIZES[0] };
  const copies = new WeakMap(); // button -> what it copies
  let order = [];
  let haystacks = null;

  // ---- what is shown of a value

  const ESCAPES = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };
  const hex = (char, length) => char.codePointAt(0).toString(16).padStart(length, "0");
  const escaped = (char) =>
    ESCAPES[char] ?? (char <= "\xff" ? `\\x${hex(char, 2)}` : char.length === 1 ? `\\u${hex(char, 4)}` : `\\U${hex(char, 8)}`);
  const printable = (text) => text.replace(/[\p{C}\p{Z}]/gu, (char) => (char === " " ? char : escaped(char)));
  const rate = (value) => (value === null ? "–" : String(Number(value.toPrecision(2))));

  // One number of decimals for a whole column, four digits of its spread, so that it lines up.
  function decimalsOf(column) {
    let [low, high] = [Infinity, -Infinity];
    for (const value of column) {
      if (value === null) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    const spread = high - low || Math.abs(high);
    return spread > 0 && spread < Infinity ? Math.min(Math.max(3 - Math.floor(Math.log10(spread)), 0), 8) : 2;
  }

  const decimals = { score: decimalsOf(data.score) };
  const aligned = (name, index) => data[name][index]?.toFixed(decimals[name]) ?? "–";

  function bytes(value) {
    let unit = 0;
    while (value >= 999.5 && unit < 5) {
      value /= 1000;
      unit += 1;
    }
    const places = unit === 0 ? 0 : value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
    return `${value.toFixed(places)} ${["B", "kB", "MB", "GB", "TB", "PB"][unit]}`;
  }

  // ---- which rows, in which order

  function columnOf(name) {
    if (name === "architecture") return data.architecture.map((index) => data.architectures[index]);
    return data[name];
  }

  function haystack(index) {
    const words = [data.folder + data.path[index], data.content[index]];
    for (const name of ["architecture", "cohort", "format", "kind", "reason", "verdict"]) {
      words.push(data[`${name}s`][data[name][index]]);
    }
    return words.join("\n").toLowerCase();
  }

  function matching() {
    const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
    const verdict = state.verdict === "" ? -1 : data.verdicts.indexOf(state.verdict);
    if (words.length && haystacks === null) haystacks = Array.from({ length: count }, (_, index) => haystack(index));
    const found = [];
    for (let index = 0; index < count; index += 1) {
      if (state.verdict !== "" && data.verdict[index] !== verdict) continue;
      if (words.every((word) => haystacks[index].includes(word))) found.push(index);
    }
    return found;
  }

  // Rows come most suspicious first: that decides between equals. What is unknown stands last, whatever the direction.
  function sorted(found) {
    if (state.sort === "") return found;
    const column = columnOf(state.sort);
    const sign = state.desc ? -1 : 1;
    return found.sort((a, b) => {
      const [x, y] = [column[a], column[b]];
      if (x === y) return a - b;
      if (x === null) return 1;
      if (y === null) return -1;
      return x < y ? -sign : sign;
    });
  }

  // ---- rows on the page

  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  // Lines break behind separators rather than within words.
  function breakable(text) {
    const parts = printable(text).split(/(?<=[/:,_-])/);
    return parts.flatMap((part, place) => (place ? [document.createElement("wbr"), part] : [part]));
  }

  function copier(text, label, ...shown) {
    const button = element("button", { type: "button", class: "copy", "aria-label": label, title: label }, ...shown);
    copies.set(button, text);
    return button;
  }

  function row(index) {
    const path = data.path[index];
    const content = data.content[index];
    // Names in a report may hold anything, line ends too: no "." here.
    const [, algorithm, digest] = /^(?:(\w+):)?([^]*)$/.exec(content);
    const text = (name) => data[`${name}s`][data[name][index]];
    const verdict = text("verdict");
    const [tone, sign, label] = SIGNS[verdict];
    const about = element("span", { class: "small facts-line" });
    const tell = (...told) => about.append(element("span", {}, ...told));
    if (text("format")) tell(printable(text("format")));
    if (text("cohort") && text("cohort") !== text("architecture")) tell(`in ${printable(text("cohort"))}`);
    if (digest) tell(copier(digest, `Copy ${algorithm ?? "sha256"}`, `${algorithm ?? "sha256"} ${printable(digest.slice(0, 8))}…`));
    if (text("looks").includes("triggers")) tell("triggers searched");
    if (text("unsearched")) tell(`no triggers searched: ${printable(text("unsearched"))}`);
    const name = element("span", { class: "path", dir: "ltr" }, ...breakable(path));
    const head = element("th", { role: "rowheader", scope: "row" }, name, " ");
    head.append(copier(data.folder + path, "Copy path", "copy"));
    if (about.childNodes.length) head.append(about);
    if (text("reason")) head.append(element("span", { class: "small reason" }, printable(text("reason"))));
    const kind = text("kind") ? `: ${printable(text("kind"))}` : "";
    const mark = element("span", { class: `verdict ${tone}` }, `${sign} ${label}${kind}`);
    const cell = (label, numeric, shown) =>
      element("td", { role: "cell", "data-label": label, ...(numeric ? { class: "num" } : {}) }, shown);
    return element(
      "tr",
      { role: "row", "data-index": index },
      head,
      cell("Verdict", false, mark),
      cell("Score", true, aligned("score", index)),
      cell("p", true, rate(data.p[index])),
      cell("q", true, rate(data.q[index])),
      cell("Architecture", false, element("span", { class: "name" }, ...breakable(text("architecture") || "–"))),
      cell("Size", true, verdict === "skipped" ? "–" : bytes(data.size[index])),
    );
  }

  function showHeadings() {
    for (const button of table.tHead.querySelectorAll("button")) {
      const isSorted = button.dataset.sort === state.sort;
      const heading = button.closest("th");
      if (isSorted) heading.setAttribute("aria-sort", state.desc ? "descending" : "ascending");
      else heading.removeAttribute("aria-sort");
      button.querySelector(".arrow").textContent = isSorted ? (state.desc ? "▼" : "▲") : "";
    }
  }

  function showPage() {
    const pages = Math.max(1, Math.ceil(order.length / state.rows));
    state.page = Math.min(Math.max(1, state.page), pages);
    const first = (state.page - 1) * state.rows;
    const shown = order.slice(first, first + state.rows);
    body.replaceChildren(...shown.map(row));
    const whole = count.toLocaleString("en");
    const matches = order.length.toLocaleString("en");
    const span = `${(first + 1).toLocaleString("en")}–${(first + shown.length).toLocaleString("en")}`;
    byId("status").textContent =
      (shown.length ? `${span} of ${matches} files` : "No file matches") + (order.length < count ? `, ${whole} in all` : "");
    byId("page").textContent = `Page ${state.page.toLocaleString("en")} of ${pages.toLocaleString("en")}`;
    for (const [id, isOff] of [["first", state.page === 1], ["previous", state.page === 1], ["next", state.page === pages], ["last", state.page === pages]]) {
      byId(id).disabled = isOff;
    }
    table.dataset.count = order.length;
  }

  function showControls() {
    if (document.activeElement !== filterBox) filterBox.value = state.filter;
    verdictBox.value = state.verdict;
    sortBox.value = state.sort === "" ? "" : `${state.sort} ${state.desc ? "desc" : "asc"}`;
    rowsBox.value = String(state.rows);
  }

  function update() {
    const start = performance.now();
    order = sorted(matching());
    showHeadings();
    showPage();
    showControls();
    table.dataset.ms = (performance.now() - start).toFixed(1);
  }

  // ---- the address

  let pending = 0;

  function address() {
    const told = new URLSearchParams();
    if (state.sort) told.set("sort", state.sort);
    if (state.desc) told.set("desc", "1");
    if (state.filter) told.set("filter", state.filter);
    if (state.verdict) told.set("verdict", state.verdict);
    if (state.rows !== PAGE_SIZES[0]) told.set("rows", state.rows);
    if (state.page > 1) told.set("page", state.page);
    return `#${told.toString() || "files"}`;
  }

  function keepAddress() {
    clearTimeout(pending);
    pending = setTimeout(() => {
      try {
        history.replaceState(null, "", address());
      } catch {
        // some browsers limit how often, or refuse for files: the page works without
      }
    }, 300);
  }

  function readAddress() {
    const text = location.hash.slice(1);
    if (text !== "" && !text.includes("=")) return false; // a heading
    const told = new URLSearchParams(text);
    const whole = (name, otherwise) => Math.trunc(Number(told.get(name))) || otherwise;
    const sort = told.get("sort") ?? "";
    state.sort = ["path", "verdict", "architecture", ...NUMERIC].includes(sort) ? sort : "";
    state.desc = told.get("desc") === "1" && state.sort !== "";
    state.filter = told.get("filter") ?? "";
    state.verdict = data.verdicts.includes(told.get("verdict")) ? told.get("verdict") : "";
    state.rows = PAGE_SIZES.includes(whole("rows", 0)) ? whole("rows", 0) : PAGE_SIZES[0];
    state.page = whole("page", 1);
    return text !== "";
  }

  function change(changes) {
    Object.assign(state, { page: 1 }, changes);
    update();
    keepAddress();
  }

  // ---- what readers do

  async function copy(button, text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = element("textarea", { "aria-hidden": "true", class: "offscreen" });
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    button.classList.add("done");
    byId("copied").textContent = "Copied.";
    setTimeout(() => {
      button.classList.remove("done");
      byId("copied").textContent = "";
    }, 1200);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (copies.has(button)) copy(button, copies.get(button));
  });
  table.tHead.addEventListener("click", (event) => {
    const sort = event.target.closest("button")?.dataset.sort;
    if (sort === undefined) return;
    if (state.sort !== sort) change({ sort, desc: HIGHEST_FIRST.has(sort) });
    else if (state.desc === HIGHEST_FIRST.has(sort)) change({ desc: !state.desc });
    else change({ sort: "", desc: false });
  });
  filterBox.addEventListener("input", () => change({ filter: filterBox.value.trim() }));
  verdictBox.addEventListener("change", () => change({ verdict: verdictBox.value }));
  rowsBox.addEventListener("change", () => change({ rows: Number(rowsBox.value) }));
  sortBox.addEventListener("change", () => {
    const [sort, direction] = sortBox.value.split(" ");
    change({ sort, desc: direction === "desc" });
  });
  for (const [id, page] of [["first", () => 1], ["previous", () => state.page - 1], ["next", () => state.page + 1], ["last", () => Infinity]]) {
    byId(id).addEventListener("click", () => {
      state.page = page();
      showPage();
      keepAddress();
      table.scrollIntoView({ block: "start" });
    });
  }
  window.addEventListener("hashchange", () => {
    if (!readAddress()) return;
    update();
    byId("files").scrollIntoView();
  });

  for (const button of document.querySelectorAll("button[data-row]")) {
    const { row: index, column } = button.dataset;
    copies.set(button, column === "path" ? data.folder + data.path[index] : data[column][index]);
    button.hidden = false;
  }
  byId("explorer").hidden = false;
  const hasState = readAddress();
  update();
  if (hasState) byId("files").scrollIntoView();
})();
