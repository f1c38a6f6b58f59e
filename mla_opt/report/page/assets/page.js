// What moves: sliders, the choice of machine and attention, the theme, and what a print needs.
(() => {
  "use strict";

  const data = JSON.parse(document.getElementById("report-data").textContent);
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;

  function theme() {
    const button = byId("theme");
    const system = matchMedia("(prefers-color-scheme: dark)");
    const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
    const tell = () => button.setAttribute("aria-pressed", String(dark()));
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      tell();
    });
    system.addEventListener("change", tell);
    tell();
  }

  function printing() {
    let opened = [];
    addEventListener("beforeprint", () => {
      // Lists of nodes can be dozens of pages; those are printed if somebody has opened them.
      opened = [...document.querySelectorAll("details:not([open]):not(.long)")];
      for (const each of opened) each.open = true;
    });
    addEventListener("afterprint", () => {
      for (const each of opened) each.open = false;
    });
  }

  theme();
  printing();
  if (!data.layers.length) return;

  const SIZES = ["batch", "query", "context"];

  function chosen(id) {
    const field = byId(id);
    const value = Math.round(Number(field.value));
    return Math.min(Math.max(Number.isFinite(value) ? value : 1, 1), Number(field.max));
  }

  function state() {
    const query = chosen("query");
    const choice = byId("layer-choice");
    return {
      batch: chosen("batch"),
      query,
      context: Math.max(chosen("context"), query), // it counts the new tokens, too
      machine: data.hardware[byId("machine").value],
      layer: data.layers[choice ? Number(choice.value) : 0],
    };
  }

  function put(id, text) {
    const place = byId(id);
    if (place.textContent !== text) place.textContent = text;
  }

  function showTotals(now, at) {
    const sums = Costs.totals(data.layers, at, now.machine);
    put("cache-before", Costs.quantity(sums.cacheBefore, "B"));
    put("cache-after", sums.cacheAfter === null ? "not known" : Costs.quantity(sums.cacheAfter, "B"));
    put("seconds-before", Costs.duration(sums.secondsBefore));
    put("seconds-after", Costs.duration(sums.secondsAfter));
    put("call", `B = ${at.batch}, S = ${at.query}, T = ${at.context}`);
    put("machine-name", now.machine.name);
    put("roofline-machine", now.machine.name);
  }

  function against(before, after) {
    if (before === after) return "the same";
    const factor = before / after;
    const [times, word] = factor > 1 ? [factor, "less"] : [1 / factor, "more"];
    return `${times >= 10 ? Math.round(times) : times.toFixed(2)}x ${word}`;
  }

  function showForms(now, at) {
    const after = Costs.formAfter(now.layer, at);
    const costs = now.layer.forms.map((each) => Costs.cost(now.layer, each.form, at, now.machine));
    const before = costs.find((each) => each.form === now.layer.before);
    const fastest = costs.reduce((best, each) => (each.seconds < best.seconds ? each : best));
    for (const cost of costs) {
      const row = document.querySelector(`#forms tr[data-form="${cost.form}"]`);
      const marks = [[cost === before, "now"], [cost.form === after, "after"], [cost === fastest, "fastest"]];
      row.className = cost.form === after ? "then" : cost === before ? "now" : "";
      const cells = [Costs.quantity(cost.flops), Costs.quantity(cost.bytes, "B"), Costs.quantity(cost.weights, "B"), Costs.duration(cost.seconds), against(before.seconds, cost.seconds)];
      cells.push(marks.filter(([on]) => on).map(([, word]) => word).join(", "));
      cells.forEach((text, index) => { row.children[index + 1].textContent = text; });
    }
    const from = Costs.crossover(now.layer, at.context);
    put("crossover", from === Infinity ? "Expanding never takes fewer operations." : `With ${at.context.toLocaleString("en-US")} tokens in sight, expanding takes fewer operations from ${Math.ceil(from)} new tokens on, absorbing below.`);
  }

  function showStages(now, at) {
    const sides = [["now", now.layer.before, "now"], ["after", Costs.formAfter(now.layer, at), "then"]];
    const rows = sides.flatMap(([word, form, mark]) =>
      Costs.stages(now.layer, form, at, now.machine).map((stage, index) => {
        const row = document.createElement("tr");
        row.className = mark;
        const each = stage.bytes ? Costs.quantity(stage.flops / stage.bytes) : "–";
        const cells = [stage.name, Costs.quantity(stage.flops), Costs.quantity(stage.bytes, "B"), each, stage.bound, Costs.duration(stage.seconds)];
        const head = document.createElement("th");
        head.scope = "row";
        head.textContent = index ? "" : `${word}: ${form}`;
        row.append(head, ...cells.map((text, column) => {
          const cell = document.createElement("td");
          cell.textContent = text;
          if ([1, 2, 3, 5].includes(column)) cell.className = "n";
          return cell;
        }));
        return row;
      }));
    document.querySelector("#stages tbody").replaceChildren(...rows);
  }

  function showDrawings(now, at) {
    const { layer, machine } = now;
    const form = Costs.formAfter(layer, at);
    const after = layer.drawings_after.find((each) => each.form === form);
    for (const [side, word, drawing] of [["before", "Now", layer.drawing_before], ["after", "Afterwards", after]]) {
      put(`${side}-title`, `${word}: ${drawing.text}`);
      byId(`drawing-${side}`).replaceChildren(Drawing.draw(drawing, Costs.cost(layer, drawing.form, at, machine), at));
    }
  }

  function showCharts(now) {
    for (const [id, make] of [
      ["chart-cache", (place) => [Charts.cache(place, data, now)]],
      ["chart-time", (place) => [Charts.time(place, now.layer, now)]],
      ["chart-roofline", (place) => [Charts.roofline(place, now.layer, now)]],
      ["chart-folds", (place) => Charts.folds(place, now.layer, now)],
    ]) {
      const place = byId(id);
      place.replaceChildren(...make(place));
    }
  }

  function show() {
    const now = state();
    const at = Costs.call(now.batch, now.query, now.context);
    showTotals(now, at);
    showForms(now, at);
    showStages(now, at);
    showDrawings(now, at);
    showCharts(now);
  }

  let waiting = 0;
  function soon() {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(show);
  }

  /** A slider moves in powers of two; the field beside it takes any number. */
  function follow(id) {
    const [slider, field] = [byId(`${id}-slider`), byId(id)];
    const told = () => slider.setAttribute("aria-valuetext", field.value);
    const fromField = () => { slider.value = Math.round(Math.log2(chosen(id))); told(); };
    slider.addEventListener("input", () => { field.value = 2 ** Number(slider.value); told(); soon(); });
    field.addEventListener("input", () => { fromField(); soon(); });
    field.addEventListener("change", () => { field.value = chosen(id); });
    fromField();
  }

  SIZES.forEach(follow);
  for (const id of ["machine", "layer-choice"]) byId(id)?.addEventListener("change", soon);
  document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
  new ResizeObserver(soon).observe(byId("costs"));
  show();
})();
