"use strict";
// Draws the figures in the reader's colour scheme, and filters the gallery. Everything else works without it.
(() => {
  const parse = (id) => JSON.parse(document.getElementById(id).textContent);
  const base = document.getElementById("own").dataset.base;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const templates = parse("templates");
  const config = { responsive: true, displayModeBar: false, displaylogo: false };

  function draw(canvas) {
    const figure = parse(canvas.dataset.plot);
    const template = templates[dark.matches ? "dark" : "light"];
    return Plotly.react(canvas, figure.data, { ...figure.layout, template }, config);
  }

  const canvases = [...document.querySelectorAll(".canvas")];
  for (const canvas of canvases) draw(canvas);
  dark.addEventListener("change", () => canvases.forEach(draw));

  for (const button of document.querySelectorAll(".save")) {
    const canvas = document.querySelector(`#plot-${button.dataset.save} .canvas`);
    button.disabled = false;
    button.addEventListener("click", () => {
      const { width, height } = canvas.getBoundingClientRect();
      Plotly.downloadImage(canvas, { format: "svg", filename: button.dataset.save, width, height });
    });
  }

  const form = document.getElementById("filters");
  if (!form) return;
  const cards = [...document.querySelectorAll(".card")];
  const list = document.getElementById("cards");
  const chosen = (name) => form.querySelector(`input[name="${name}"]:checked, select[name="${name}"]`)?.value ?? "";
  const ticked = (id) => document.getElementById(id)?.checked ?? false;
  const answers = (card) => [...card.querySelectorAll("[data-method]")];
  // yes, no, or undefined where a method has no answer
  const right = (card, method) => answers(card).find((one) => one.dataset.method === method)?.dataset.correct;

  function outcome(card, method) {
    const before = right(card, base);
    const after = right(card, method);
    if (!before || !after) return "not compared";
    if (before === after) return before === "yes" ? "both right" : "both wrong";
    return before === "yes" ? "broken" : "fixed";
  }

  function compare() {
    const method = document.getElementById("method")?.value;
    const every = ticked("every") || !method;
    for (const card of cards) {
      if (method) card.dataset.outcome = outcome(card, method);
      card.querySelector(".outcome").textContent = card.dataset.outcome;
      for (const one of answers(card)) one.hidden = !every && ![base, method].includes(one.dataset.method);
    }
    const group = chosen("group");
    for (const output of form.querySelectorAll("[data-count]")) {
      output.value = cards.filter(
        (card) => card.dataset.outcome === output.dataset.count && (!group || card.dataset.group === group),
      ).length;
    }
  }

  function filter() {
    const wanted = { outcome: chosen("outcome"), seen: chosen("seen"), group: chosen("group") };
    for (const card of cards) {
      card.hidden = Object.entries(wanted).some(([key, value]) => value && card.dataset[key] !== value);
    }
    const shown = cards.filter((card) => !card.hidden).length;
    document.getElementById("count").textContent = `${shown} of ${cards.length} samples`;
    document.getElementById("nothing").hidden = shown > 0;
  }

  function overlay() {
    list.style.setProperty("--opacity", (document.getElementById("opacity")?.value ?? 0) / 100);
    list.classList.toggle("no-boxes", !ticked("boxes"));
    const name = chosen("map");
    if (name) for (const map of list.querySelectorAll(".map")) map.hidden = map.dataset.map !== name;
  }

  function update() {
    compare();
    filter();
    overlay();
  }

  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("reset").addEventListener("click", () => {
    for (const every of form.querySelectorAll('input[type="radio"][value=""]')) every.checked = true;
    for (const select of form.querySelectorAll("select[name]")) select.value = "";
    update();
  });
  update();
})();
