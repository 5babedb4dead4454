// The theme, lists that can be searched, filtered and sorted, and links that open what they lead to. Every page can be read without it.
"use strict";

const root = document.documentElement;
function remembered(theme) {
  try {
    if (theme) localStorage.setItem("kdcore-theme", theme);
    return localStorage.getItem("kdcore-theme");
  } catch {
    return theme; // storage is off: the choice lasts as long as the page
  }
}
const theme = remembered();
if (theme === "light" || theme === "dark") root.dataset.theme = theme; // before anything is drawn

function switchable(button) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const say = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.title = `Switch to the ${button.textContent.toLowerCase()} theme`;
  };
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    remembered(root.dataset.theme);
    say();
  });
  system.addEventListener("change", say);
  say();
  button.hidden = false;
}

function listed(section) {
  const form = section.querySelector("form"), told = form.querySelector("output");
  const items = [...section.querySelectorAll("tbody tr, .item")];
  const texts = new Map(items.map((item) => [item, item.textContent.toLowerCase()]));
  const show = () => {
    const words = form.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = [...form.querySelectorAll("select")].filter((each) => each.value);
    let shown = 0;
    for (const item of items) {
      item.hidden = !(
        words.every((word) => texts.get(item).includes(word)) &&
        chosen.every((each) => item.dataset[each.name] === each.value) &&
        !(form.run?.checked && item.dataset.verdict === "not run")
      );
      shown += !item.hidden;
    }
    told.textContent = `${shown} of ${items.length} ${section.dataset.list}`;
    section.querySelector(".nothing").hidden = shown > 0;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  section.reset = () => {
    form.reset();
    show();
  };
  show();
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], first = [...body.rows];
  const key = (row, column) => {
    const cell = row.cells[column], given = cell.dataset.sort;
    return given === undefined ? cell.textContent.trim().toLowerCase() : parseFloat(given);
  };
  const missing = (value) => value === "" || Number.isNaN(value);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const next = { ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")] ?? "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      const rows = [...first];
      if (next !== "none") {
        head.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        rows.sort((a, b) => {
          const [x, y] = [key(a, column), key(b, column)];
          if (missing(x) || missing(y)) return missing(x) - missing(y); // what has no value comes last, either way
          return sign * (typeof x === "number" ? x - y : x.localeCompare(y));
        });
      }
      body.append(...rows);
    });
  });
}

function follow() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  if (target.hidden) target.closest("[data-list]")?.reset();
  for (let each = target; each; each = each.parentElement) if (each instanceof HTMLDetailsElement) each.open = true;
  const own = target.matches("tr") && target.querySelector("details.evidence");
  if (own) own.open = true;
  target.scrollIntoView();
}

document.addEventListener("DOMContentLoaded", () => {
  switchable(document.getElementById("theme"));
  document.querySelectorAll("[data-list]").forEach(listed);
  document.querySelectorAll("table.sortable").forEach(sortable);
  addEventListener("hashchange", follow);
  follow();
});
