// Colours, tables that sort by a column and filter their rows, and the charts, which are drawn when they are in sight.
"use strict";
{
  const choice = document.getElementById("theme");
  choice.hidden = false;
  choice.querySelector("select").addEventListener("change", (event) => {
    document.documentElement.style.colorScheme = event.target.value || "light dark";
  });
}
{
  const FILTER_FROM = 12; // rows
  const number = (text) => {
    const found = /^[<~±]?\s*([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)/i.exec(text);
    return found ? Number(found[1].replaceAll(",", "")) : NaN;
  };
  const textOf = (row, column) => row.cells[column]?.textContent.trim() ?? "-";

  const sorter = (column, numeric, sign) => (left, right) => {
    const [a, b] = [textOf(left, column), textOf(right, column)];
    if ((a === "-") !== (b === "-")) return a === "-" ? 1 : -1; // unknown comes last, whatever the direction
    return sign * (numeric ? number(a) - number(b) : a.localeCompare(b, "en", { numeric: true })) || 0;
  };

  const sortable = (table, body, rows) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const texts = rows.map((row) => textOf(row, column)).filter((text) => text !== "-");
      const numeric = texts.length > 0 && !texts.some((text) => Number.isNaN(number(text)));
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const order = { none: "ascending", ascending: "descending", descending: "none" };
        const next = order[head.getAttribute("aria-sort") ?? "none"];
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (next !== "none") head.setAttribute("aria-sort", next);
        const sorted = [...rows].sort(sorter(column, numeric, next === "descending" ? -1 : 1));
        body.append(...(next === "none" ? rows : sorted));
      });
    });
  };

  const filterable = (table, rows) => {
    const [label, input, count] = ["label", "input", "span"].map((name) => document.createElement(name));
    label.className = "filter";
    input.type = "search";
    count.setAttribute("role", "status");
    label.append("Filter rows ", input, " ", count);
    table.closest(".scroll").before(label);
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.forEach((row) => {
        row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
      });
      count.textContent = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
    });
  };

  for (const table of document.querySelectorAll("main table")) {
    const body = table.tBodies[0];
    if (body.rows.length < 2) continue;
    const rows = [...body.rows];
    sortable(table, body, rows);
    if (rows.length >= FILTER_FROM) filterable(table, rows);
  }
}
(async () => {
  const options = {
    renderer: "svg",
    ast: true, // expressions are interpreted, not compiled: the page forbids eval
    actions: { export: true, source: false, compiled: false, editor: false },
    downloadFileName: "chart",
    tooltip: { theme: "custom" },
    loader: { http: () => Promise.reject(new Error("charts load nothing")) },
  };
  const draw = async (figure) => {
    const plot = figure.querySelector(".plot");
    if (plot.dataset.drawn) return;
    plot.dataset.drawn = "yes";
    try {
      await vegaEmbed(plot, JSON.parse(figure.querySelector("script").textContent), options);
      plot.querySelector("summary")?.setAttribute("aria-label", "Save this chart");
    } catch (error) {
      plot.textContent = `This chart cannot be drawn here (${error.message}); its numbers are in the table below.`;
      console.error(error);
    }
    await new Promise((done) => setTimeout(done)); // the page stays usable meanwhile
  };
  const inSight = (figure) => !figure.closest("details:not([open])");
  for (const folded of document.querySelectorAll("main details")) {
    folded.addEventListener("toggle", () => folded.open && folded.querySelectorAll("figure.chart").forEach((figure) => inSight(figure) && draw(figure)));
  }
  for (const figure of document.querySelectorAll("figure.chart")) if (inSight(figure)) await draw(figure);
  document.documentElement.dataset.charts = "drawn";
})();
// A link to a folded section opens it.
{
  const open = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const folded = target?.closest("details");
    if (folded) folded.open = true;
    target?.scrollIntoView();
  };
  addEventListener("hashchange", open);
  if (location.hash) open();
}
