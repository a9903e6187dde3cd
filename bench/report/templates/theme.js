// Light, dark, or as the system says: one switch, which the charts follow because they draw in the page's colours.
"use strict";
{
  const root = document.documentElement;
  document.querySelector("nav details").open = matchMedia("(min-width: 75rem)").matches; // else the answer comes first
  const choice = document.getElementById("theme");
  choice.hidden = false;
  choice.querySelector("select").addEventListener("change", (event) => {
    root.style.colorScheme = event.target.value || "light dark";
  });
}
