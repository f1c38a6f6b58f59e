// The four charts. Colours are variables of the style sheet, so they follow the theme and the print.
const Charts = (() => {
  "use strict";

  const { plot, line, dot, text, ruleX, barX, tip, pointer } = Libraries;
  const BEFORE = "var(--before)";
  const AFTER = "var(--after)";
  const FAINT = "var(--faint)";
  const CONTEXTS = Array.from({ length: 27 }, (_, index) => Math.round(2 ** (7 + index / 2)));
  const STAGES = [
    ["query", "var(--stage-1)", "W_UQ, or W_UQ W_UK"],
    ["W_UK", "var(--stage-2)", "W_UK"],
    ["attention", "var(--stage-3)", "attention"],
    ["W_UV", "var(--stage-4)", "W_UV"],
    ["output", "var(--stage-5)", "W_O, or W_UV W_O"],
  ];

  const contextAxis = { type: "log", base: 2, domain: [128, 2 ** 20], label: "tokens of context →", ticks: [128, 1024, 8192, 65536, 2 ** 20], tickFormat: Costs.tokens };

  function size(place) {
    const width = Math.max(280, Math.min(640, place.clientWidth || 520));
    return { width, height: Math.round(Math.max(240, width * 0.6)), style: { fontSize: "12px" } };
  }

  function at(state, context) {
    return Costs.call(state.batch, state.query, Math.max(context, state.query));
  }

  /** Powers of ten within a domain: of ten, a hundred or a thousand, so that few are left. */
  function decades([low, high]) {
    const [first, last] = [Math.ceil(Math.log10(low)), Math.floor(Math.log10(high))];
    const step = Math.ceil((last - first + 1) / 7);
    return Array.from({ length: last - first + 1 }, (_, index) => 10 ** (first + index)).filter((_, index) => index % step === 0);
  }

  /** Lines with their names behind them, and a mark at the context that is chosen. */
  function lines(place, state, series, format, label) {
    const points = series.flatMap((one) => CONTEXTS.map((context) => ({ ...one, context, value: one.value(context) })));
    const domain = [Math.min(...points.map((p) => p.value)), Math.max(...points.map((p) => p.value))];
    const frame = { ...size(place), marginLeft: 62, marginRight: 146, marginTop: 24, marginBottom: 36 };
    const ends = spread(series.map((one) => ({ ...one, y: one.value(2 ** 20) })), domain, frame);
    const chosen = Math.min(Math.max(state.context, 128), 2 ** 20);
    return plot({
      ...frame,
      ariaLabel: `${label}, by context`,
      x: contextAxis,
      y: { type: "log", domain, label: `↑ ${label}`, tickFormat: format, ticks: decades(domain), grid: true },
      marks: [
        ruleX([chosen], { stroke: "var(--soft)", strokeDasharray: "3 3" }),
        ...series.map(({ name, color, width, dash }) =>
          line(points.filter((p) => p.name === name), { x: "context", y: "value", stroke: color, strokeWidth: width, strokeDasharray: dash })),
        dot(series.filter((one) => one.width > 1), { x: chosen, y: (one) => one.value(chosen), fill: "color", r: 4 }),
        text(ends, { x: 2 ** 20, y: "place", text: "name", fill: "color", textAnchor: "start", dx: 8 }),
        tip(points, pointer({ x: "context", y: "value", title: (p) => `${p.name}\n${Costs.tokens(p.context)} tokens: ${format(p.value)}` })),
      ],
    });
  }

  /** Move names apart that would lie upon each other. */
  function spread(ends, [low, high], frame) {
    const room = frame.height - frame.marginTop - frame.marginBottom;
    const gap = (14 / room) * Math.log(high / low);
    const sorted = [...ends].sort((a, b) => b.y - a.y);
    let above = Infinity;
    for (const end of sorted) {
      above = Math.min(Math.log(end.y), above - gap);
      end.place = Math.exp(above);
    }
    let below = Math.log(low) - gap;
    for (const end of sorted.reverse()) {
      below = Math.max(Math.log(end.place), below + gap);
      end.place = Math.exp(below);
    }
    return sorted;
  }

  function cache(place, data, state) {
    const total = (key) => (context) => Costs.totals(data.layers, at(state, context), state.machine)[key];
    const series = [
      { name: "now", color: BEFORE, width: 2.5, value: total("cacheBefore") },
      { name: "after", color: AFTER, width: 2.5, dash: "7 3", value: total("cacheAfter") },
      { name: "all keys, values", color: FAINT, width: 1, value: total("cacheExpanded") },
    ];
    const same = data.layers.every((layer) => layer.cache_bytes_per_token_before === layer.cache_bytes_per_token_expanded);
    const shown = series.filter((one) => one.value(1024) && !(same && one.color === FAINT));
    if (!shown.length) return document.createTextNode("No cache is seen in this model.");
    return lines(place, state, shown, (value) => Costs.quantity(value, "B"), "bytes");
  }

  function time(place, layer, state) {
    const seconds = (form) => (context) => Costs.cost(layer, form, at(state, context), state.machine).seconds;
    const after = (context) => Costs.cost(layer, Costs.formAfter(layer, at(state, context)), at(state, context), state.machine).seconds;
    const others = layer.forms.map((each) => each.form).filter((form) => form !== layer.before && form !== layer.after.form);
    const series = [
      ...others.map((form) => ({ name: form, color: FAINT, width: 1, value: seconds(form) })),
      { name: `now: ${layer.before}`, color: BEFORE, width: 2.5, value: seconds(layer.before) },
      { name: `after: ${layer.after.form}`, color: AFTER, width: 2.5, dash: "7 3", value: after },
    ];
    return lines(place, state, series, Costs.duration, "time at least");
  }

  /** Where the name of a point is: on the side that has room. */
  function beside(point, left, right) {
    return point.intensity > Math.sqrt(left * right) ? { textAnchor: "end", dx: -2, dy: 16 } : { textAnchor: "start", dx: 10, dy: 4 };
  }

  function roofline(place, layer, state) {
    const { machine } = state;
    const call = at(state, state.context);
    const sides = [["now", layer.before, BEFORE, "circle"], ["after", Costs.formAfter(layer, call), AFTER, "square"]];
    const points = sides.flatMap(([side, form, color, symbol]) =>
      Costs.stages(layer, form, call, machine).filter((stage) => stage.flops && stage.bytes).map((stage) => (
        { ...stage, side, color, symbol, intensity: stage.flops / stage.bytes, rate: stage.flops / stage.seconds })));
    const ridge = machine.flops / machine.bandwidth;
    const left = Math.min(0.1, ...points.map((p) => p.intensity / 2));
    const right = Math.max(10 * ridge, ...points.map((p) => 2 * p.intensity));
    const roof = [left, ridge, right].map((x) => ({ x, y: Math.min(machine.flops, x * machine.bandwidth) }));
    const rates = [Math.min(roof[0].y, ...points.map((p) => p.rate / 2)), 3 * machine.flops];
    const attention = points.filter((p) => p.name.includes("attend") || p.name.includes("attention"));
    return plot({
      ...size(place), marginLeft: 78, marginRight: 16, marginTop: 24, marginBottom: 36,
      ariaLabel: "Roofline: operations a second against operations a byte",
      x: { type: "log", domain: [left, right], label: "operations a byte →", ticks: decades([left, right]), tickFormat: (each) => Costs.quantity(each) },
      y: { type: "log", domain: rates, label: "↑ operations a second", ticks: decades(rates), tickFormat: (rate) => Costs.quantity(rate), grid: true },
      marks: [
        line(roof, { x: "x", y: "y", stroke: "var(--ink)", strokeWidth: 1.5 }),
        text([[Math.sqrt(left * ridge), Math.sqrt(left * ridge) * machine.bandwidth]], { text: [`${Costs.quantity(machine.bandwidth, "B")}/s`], textAnchor: "end", dx: -8, dy: -6, fill: "var(--soft)" }),
        text([[Math.sqrt(ridge * right), machine.flops]], { text: [`${Costs.quantity(machine.flops)} a second`], dy: -10, fill: "var(--soft)" }),
        dot(points, { x: "intensity", y: "rate", fill: "color", stroke: "var(--paper)", symbol: "symbol", r: 5 }),
        ...attention.map((p) => text([p], { x: "intensity", y: "rate", text: [`${p.side}: ${p.name}`], fill: p.color, ...beside(p, left, right) })),
        tip(points, pointer({ x: "intensity", y: "rate", title: (p) => `${p.side}: ${p.name}\n${Costs.quantity(p.intensity)} operations a byte\n${Costs.duration(p.seconds)}, ${p.bound} bound` })),
      ],
    });
  }

  function part(name) {
    if (name.startsWith("W_UQ")) return "query";
    if (name.endsWith("W_O")) return "output";
    return name.startsWith("W_") ? name : "attention";
  }

  function folds(place, layer, state) {
    const forms = ["factored", "fold-q", "fold-o", "fold"].map((form) => Costs.cost(layer, form, at(state, state.context), state.machine));
    const scale = forms.reduce((most, form) => Math.max(most, form.seconds), 0);
    const parts = forms.flatMap((form) => form.stages.map((stage) => ({ ...stage, form: form.form, color: STAGES.find(([key]) => key === part(stage.name))[1] })));
    const chart = plot({
      ...size(place), height: 210, marginLeft: 66, marginRight: 20, marginBottom: 36,
      ariaLabel: "Time of the factored and the folded forms, by stage",
      x: { domain: [0, scale * 1.02], label: "time at least →", ticks: 4, tickFormat: Costs.duration, grid: true },
      y: { domain: forms.map((form) => form.form), label: null, padding: 0.45 },
      marks: [
        barX(parts, { x: "seconds", y: "form", fill: "color" }),
        text(forms, { x: 0, y: "form", text: (form) => `${Costs.duration(form.seconds)}, ${Costs.quantity(form.weights, "B")} of weights`, textAnchor: "start", dy: -17, fill: "var(--ink)" }),
        tip(parts, pointer({ x: "seconds", y: "form", title: (p) => `${p.form}: ${p.name}\n${Costs.duration(p.seconds)}, ${p.bound} bound` })),
      ],
    });
    return [chart, legend()];
  }

  function legend() {
    const list = document.createElement("ul");
    list.className = "legend";
    for (const [, color, name] of STAGES) {
      const item = document.createElement("li");
      const mark = document.createElement("i");
      mark.style.background = color;
      item.append(mark, name);
      list.append(item);
    }
    return list;
  }

  return { cache, time, roofline, folds };
})();
