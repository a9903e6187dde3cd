// The browser of test examples: searched, filtered and ordered in memory, a few of them at a time in the document.
// What models wrote is only ever set as text.
"use strict";
for (const browser of document.querySelectorAll(".browser")) {
  const PAGE = 2;
  const { facts, rows } = JSON.parse(browser.querySelector("script").textContent);
  const [ID, PROMPT, REFERENCE, SPREAD, ANSWERS] = [0, 1, 2, 3, 4];
  const find = (name) => browser.querySelector(`[data-role="${name}"]`);
  const made = (name, text, ...children) => {
    const element = document.createElement(name);
    if (text) element.textContent = text;
    element.append(...children);
    return element;
  };
  const words = rows.map((row) => JSON.stringify([row[ID], row[PROMPT], row[REFERENCE], row[ANSWERS].map((a) => a?.[0])])
    .toLowerCase());
  const orders = { test: () => 0, spread: (a, b) => rows[b][SPREAD] - rows[a][SPREAD] };
  facts.arms.forEach((arm, place) => {
    orders[`worst ${place}`] = (a, b) => (rows[a][ANSWERS][place]?.[2] ?? 2) - (rows[b][ANSWERS][place]?.[2] ?? 2);
    find("order").append(new Option(`lowest ${facts.metrics[0]} of ${arm} first`, `worst ${place}`));
  });
  let shown = [];
  let page = 0;

  const answer = (row, place) => {
    const given = row[ANSWERS][place];
    const scores = given ? facts.metrics.slice(0, 3).map((metric, m) => `${metric} ${given[2 + m]?.toFixed(3) ?? "-"}`) : ["no answer"];
    if (given?.[1]) scores.push("cut at the length limit");
    const [main, ...others] = scores;
    const name = made("dt", "", made("b", facts.arms[place]), ` ${main}`, made("small", ` ${others.join(", ")}`));
    return made("div", "", name, made("dd", "", made("pre", given?.[0] ?? "")));
  };

  const card = (place) => {
    const row = rows[place];
    const reference = made("div", "", made("dt", "Reference"), made("dd", "", made("pre", row[REFERENCE])));
    const list = made("dl", "", reference, ...facts.arms.map((_, arm) => answer(row, arm)));
    const prompt = made("details", "", made("summary", "Prompt"), made("pre", row[PROMPT]));
    return made("article", "", made("h3", `Example ${row[ID]}`), prompt, list);
  };

  const draw = () => {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    find("cards").replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map(card));
    find("count").textContent = `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} examples`;
    find("page").textContent = `page ${page + 1} of ${pages}`;
    find("back").disabled = page === 0;
    find("on").disabled = page === pages - 1;
  };

  const select = () => {
    const sought = JSON.stringify(find("search").value.toLowerCase()).slice(1, -1);
    const far = find("disagree").checked ? facts.disagree : -1;
    shown = [...rows.keys()].filter((place) => rows[place][SPREAD] >= far && words[place].includes(sought));
    shown.sort(orders[find("order").value]);
    page = 0;
    draw();
  };

  let waiting;
  find("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(select, 150);
  });
  for (const name of ["disagree", "order"]) find(name).addEventListener("change", select);
  const turn = (step) => {
    page += step;
    draw();
    browser.scrollIntoView({ block: "start" });
  };
  find("back").addEventListener("click", () => turn(-1));
  find("on").addEventListener("click", () => turn(1));
  browser.hidden = false;
  select();
}
