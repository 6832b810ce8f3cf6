"use strict";

// --- tables: sort and copy ---

// Numbers sort by their exact value; empty cells come last.
function keyOf(cell) {
  const data = cell.querySelector("data");
  if (!data) return cell.textContent.trim();
  return data.value === "" ? null : Number(data.value);
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sort(head) {
  const heads = [...head.parentElement.cells];
  const body = head.closest("table").tBodies[0];
  const down = head.ariaSort === "ascending";
  const keyed = [...body.rows].map((row) => [keyOf(row.cells[heads.indexOf(head)]), row]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return down ? compare(b, a) : compare(a, b);
  });
  body.append(...keyed.map(([, row]) => row));
  for (const other of heads) other.ariaSort = "none";
  head.ariaSort = down ? "descending" : "ascending";
}

function field(text) {
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// A table as CSV with the exact values, in the order shown.
function asCsv(table) {
  const names = [...table.tHead.rows[0].cells].map((head) => JSON.parse(head.dataset.names));
  const rows = [...table.tBodies[0].rows].map((row) =>
    [...row.cells].flatMap((cell, i) => {
      const data = [...cell.querySelectorAll("data")].map((item) => item.value);
      const text = cell.textContent.trim();
      const values = data.length ? data : [text === "–" ? "" : text];
      return names[i].map((_, k) => values[k] ?? "");
    }),
  );
  return [names.flat(), ...rows].map((row) => row.map(field).join(",")).join("\n") + "\n";
}

async function copy(button) {
  const text = asCsv(button.closest(".table").querySelector("table"));
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Beside the button: what is outside an open dialog cannot be selected.
    const area = document.createElement("textarea");
    area.value = text;
    button.after(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = document.getElementById("status").textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy CSV"), 1500);
}

// --- figures: enlarge, and the data behind the drawing ---

const dialog = document.getElementById("dialog");

function open(title, figure, ...content) {
  const caption = figure.querySelector("figcaption").textContent;
  const words = document.createElement("p");
  words.className = "small";
  words.textContent = caption;
  document.getElementById("dialog-title").textContent = title;
  dialog.querySelector(".stage").replaceChildren(...content, words);
  dialog.showModal();
}

function enlarge(figure) {
  open("Enlarged figure", figure, figure.querySelector("svg").cloneNode(true));
}

function rowsOf(csv) {
  const rows = [[]];
  for (const [, cell, end] of csv.matchAll(/("(?:[^"]|"")*"|[^",\n]*)([,\n])/g)) {
    rows.at(-1).push(cell.startsWith('"') ? cell.slice(1, -1).replaceAll('""', '"') : cell);
    if (end === "\n") rows.push([]);
  }
  return rows.slice(0, -1);
}

function short(number) {
  const notation = number !== 0 && Math.abs(number) < 1e-4 ? "scientific" : "standard";
  const digits = { minimumSignificantDigits: 5, maximumSignificantDigits: 5 };
  return number.toLocaleString("en", { notation, ...digits });
}

// A number is shown short and keeps its exact text; a count stays whole.
function cellOf(text, numeric) {
  const cell = document.createElement("td");
  if (!numeric) {
    cell.textContent = text;
    return cell;
  }
  const data = document.createElement("data");
  data.value = text;
  data.textContent = /^-?\d*$/.test(text) ? text || "–" : short(Number(text));
  cell.className = "n";
  cell.append(data);
  return cell;
}

function showData(figure) {
  const link = figure.querySelector(".download");
  const [names, ...rows] = rowsOf(decodeURIComponent(link.href.slice(link.href.indexOf(",") + 1)));
  const numeric = names.map((_, i) => rows.every((row) => Number.isFinite(Number(row[i]))));
  const block = document.getElementById("data-table").content.cloneNode(true);
  names.forEach((name, i) => {
    const head = document.createElement("th");
    const button = document.createElement("button");
    button.className = "sort";
    button.textContent = name;
    head.scope = "col";
    head.ariaSort = "none";
    head.className = numeric[i] ? "n" : "";
    head.dataset.names = JSON.stringify([name]);
    head.append(button);
    block.querySelector("thead tr").append(head);
  });
  for (const row of rows) {
    const line = block.querySelector("tbody").insertRow();
    line.append(...row.map((text, i) => cellOf(text, numeric[i])));
  }
  block.querySelector(".bar span").textContent = link.download;
  block.querySelector(".download").href = link.href;
  block.querySelector(".download").download = link.download;
  open("Data of the figure", figure, block);
}

const ACTIONS = {
  ".sort": (button) => sort(button.closest("th")),
  ".copy": copy,
  ".enlarge": (button) => enlarge(button.closest("figure")),
  ".data": (button) => showData(button.closest("figure")),
  "dialog .close": () => dialog.close(),
};
addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // The backdrop.
  for (const [selector, act] of Object.entries(ACTIONS)) {
    const control = event.target.closest(selector);
    if (control) act(control);
  }
});

// --- sample sheets: a tile beside the target and the untouched base of its caption ---

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function prepare(gallery) {
  const tiles = [...gallery.querySelectorAll(".tile")];
  const panel = gallery.querySelector(".compare");
  const captionOf = (tile) => Number(tile.parentElement.dataset.caption);

  function show(tile) {
    const at = tile ? captionOf(tile) : null;
    for (const cell of gallery.querySelectorAll("[data-caption]")) {
      cell.classList.toggle("marked", Number(cell.dataset.caption) === at);
    }
    panel.classList.toggle("open", !!tile);
    panel.querySelector(".hint").hidden = !!tile;
    panel.querySelector(".chosen").hidden = !tile;
    if (!tile) return;
    const caption = gallery.querySelector(`th[data-caption="${at}"]`).textContent;
    panel.style.setProperty("--i", at);
    panel.querySelector(".caption").textContent = caption;
    for (const figure of panel.querySelectorAll("figure")) {
      const chosen = figure.dataset.role === tile.dataset.role;
      figure.hidden = !chosen && !("kept" in figure.dataset);
      figure.classList.toggle("this", chosen);
      const label = figure.querySelector("figcaption").textContent;
      figure.querySelector(".picture").ariaLabel = `${label}: ${caption}`;
    }
    // Where the panel floats over the page, it keeps to the half without the tile.
    const box = tile.getBoundingClientRect();
    panel.classList.toggle("above", box.top + box.height / 2 > innerHeight / 2);
  }

  function step(event) {
    const tile = event.target.closest(".tile");
    if (!tile || !(event.key in STEPS)) return;
    event.preventDefault();
    const [down, right] = STEPS[event.key];
    const [role, at] = [Number(tile.dataset.role) + down, captionOf(tile) + right];
    const next = tiles.find((t) => Number(t.dataset.role) === role && captionOf(t) === at);
    if (next && !next.closest("details:not([open])")) next.focus();
  }

  // At rest: the tile with the focus; else, where the panel has its own column, the best cell's.
  const beside = matchMedia("(min-width: 64rem)");
  const rest = () => {
    const focused = tiles.find((tile) => tile === document.activeElement);
    show(focused ?? (beside.matches ? tiles.find((tile) => tile.dataset.role === "1") : null));
  };
  gallery.addEventListener("pointerover", (event) => {
    const tile = event.target.closest(".tile");
    if (tile) show(tile);
  });
  gallery.addEventListener("pointerleave", rest);
  gallery.addEventListener("click", (event) => {
    if (event.target.closest(".compare .close")) show(null);
    else if (event.target.closest(".tile")) show(event.target.closest(".tile"));
  });
  gallery.addEventListener("focusin", (event) => {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    for (const other of tiles) other.tabIndex = other === tile ? 0 : -1;
    show(tile);
  });
  gallery.addEventListener("focusout", (event) => {
    if (!gallery.contains(event.relatedTarget)) rest();
  });
  gallery.addEventListener("keydown", step);
  addEventListener("keydown", (event) => event.key === "Escape" && show(null));
  // One stop of the Tab key; the arrow keys move within.
  tiles.forEach((tile, i) => (tile.tabIndex = i ? -1 : 0));
  rest();
}
for (const gallery of document.querySelectorAll(".gallery")) prepare(gallery);

// --- contents and print ---

// Mark the section in view.
const links = new Map([...document.querySelectorAll(".toc a")].map((a) => [a.hash.slice(1), a]));
const seen = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  },
  { rootMargin: "-10% 0px -80% 0px" },
);
for (const id of links.keys()) seen.observe(document.getElementById(id));

// All of it on paper, and as it was afterwards.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const item of closed) item.open = true;
});
addEventListener("afterprint", () => {
  for (const item of closed) item.open = false;
});
