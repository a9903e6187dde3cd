// Tables that are in the page already learn to sort by a column and to filter their rows.
"use strict";
{
  const FILTER_FROM = 8; // rows
  const number = (text) => {
    const found = /^[<~±]?\s*([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)/i.exec(text);
    return found ? Number(found[1].replaceAll(",", "")) : NaN;
  };

  const sorter = (column, numeric, sign) => (left, right) => {
    const [a, b] = [left, right].map((row) => row.cells[column]?.textContent.trim() ?? "-");
    if ((a === "-") !== (b === "-")) return a === "-" ? 1 : -1; // unknown comes last, whatever the direction
    return sign * (numeric ? number(a) - number(b) : a.localeCompare(b, "en", { numeric: true })) || 0;
  };

  const sortable = (table, body, rows) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const texts = rows.map((row) => row.cells[column]?.textContent.trim() ?? "-").filter((text) => text !== "-");
      const numeric = texts.length > 0 && !texts.some((text) => Number.isNaN(number(text)));
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort") ?? "none"];
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (next !== "none") head.setAttribute("aria-sort", next);
        const sign = next === "descending" ? -1 : 1;
        body.append(...(next === "none" ? rows : [...rows].sort(sorter(column, numeric, sign))));
      });
    });
  };

  const filterable = (table, rows) => {
    const [label, input, count] = ["label", "input", "span"].map((name) => document.createElement(name));
    label.className = "filter";
    input.type = "search";
    input.placeholder = "words";
    count.setAttribute("role", "status");
    label.append("Filter rows ", input, " ", count);
    (table.closest(".scroll") ?? table).before(label);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.forEach((row) => {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      });
      count.textContent = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
    });
  };

  for (const table of document.querySelectorAll("table")) {
    const body = table.tBodies[0];
    if (!table.tHead || !body || body.rows.length < 2) continue;
    const rows = [...body.rows];
    sortable(table, body, rows);
    if (rows.length >= FILTER_FROM) filterable(table, rows);
  }
}
