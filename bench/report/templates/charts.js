// Hands each specification in the page to Vega-Embed, one after the other, so that the page stays usable meanwhile.
"use strict";
(async () => {
  const options = {
    renderer: "svg",
    ast: true, // expressions are interpreted, not compiled: the page forbids eval
    actions: { export: true, source: false, compiled: false, editor: false },
    downloadFileName: "chart",
    tooltip: { theme: "custom" },
    loader: { http: () => Promise.reject(new Error("charts load nothing")) },
  };
  for (const figure of document.querySelectorAll("figure.chart")) {
    const plot = figure.querySelector(".plot");
    try {
      await vegaEmbed(plot, JSON.parse(figure.querySelector("script").textContent), options);
      plot.querySelector("summary")?.setAttribute("aria-label", "Save this chart");
    } catch (error) {
      plot.textContent = `This chart cannot be drawn here (${error.message}); its numbers are in the table below.`;
      console.error(error);
    }
    await new Promise((done) => setTimeout(done));
  }
  document.documentElement.dataset.charts = "drawn";
})();
