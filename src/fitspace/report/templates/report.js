"use strict";
// Sort a table by a column: numbers by their exact value, empty cells last.
function keyOf(cell) {
  const data = cell.querySelector("data");
  if (!data) return cell.textContent.trim();
  return data.value === "" ? null : Number(data.value);
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

for (const table of document.querySelectorAll(".table table")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const keyed = [...body.rows].map((row) => [keyOf(row.cells[column]), row]);
      keyed.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        return down ? compare(b, a) : compare(a, b);
      });
      body.append(...keyed.map(([, row]) => row));
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
    });
  });
}

// Copy a table as CSV with the exact values, in the order shown.
function field(text) {
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function asCsv(table) {
  const names = [...table.tHead.rows[0].cells].map((head) => head.dataset.names.split(" "));
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

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    await copy(asCsv(button.closest(".table").querySelector("table")));
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy CSV"), 1500);
  });
}

// Enlarge a figure.
const dialog = document.getElementById("enlarged");
for (const button of document.querySelectorAll(".enlarge")) {
  button.addEventListener("click", () => {
    const figure = button.closest("figure");
    const caption = figure.querySelector("figcaption").cloneNode(true);
    caption.querySelector("button").remove();
    dialog.querySelector(".stage").replaceChildren(figure.querySelector("svg").cloneNode(true), caption);
    dialog.showModal();
  });
}
dialog.querySelector(".close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

// The same caption in every strip, marked together.
for (const gallery of document.querySelectorAll(".gallery")) {
  const mark = (event) => {
    const at = event.target.closest("[data-caption]");
    for (const cell of gallery.querySelectorAll("[data-caption]")) {
      cell.classList.toggle("marked", !!at && cell.dataset.caption === at.dataset.caption);
    }
  };
  for (const kind of ["pointerover", "focusin", "click"]) gallery.addEventListener(kind, mark);
}

// Open the table of contents at the section in view.
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

// Whole tables on paper.
addEventListener("beforeprint", () => {
  for (const item of document.querySelectorAll("details")) item.open = true;
});
