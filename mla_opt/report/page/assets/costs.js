// The cost model at any call. Its counts are linear in the new tokens, the keys and the scores of a
// call; the factors are the ones that mla_opt.cost_model gave, and stand in the page's data.
const Costs = (() => {
  "use strict";

  /** A call: B sequences, S new tokens, T tokens in sight. */
  function call(batch, query, context) {
    const tokens = batch * query;
    return { batch, query, context, tokens, keys: batch * context, scores: tokens * (context - (query - 1) / 2) };
  }

  function count(terms, at) {
    return terms.fixed + terms.per_token * at.tokens + terms.per_key * at.keys + terms.per_score * at.scores;
  }

  function stages(layer, form, at, machine) {
    return formOf(layer, form).stages.map((stage) => {
      const flops = count(stage.flops, at);
      const bytes = count(stage.bytes, at);
      const computing = flops / machine.flops;
      const moving = bytes / machine.bandwidth;
      const seconds = Math.max(computing, moving) + machine.launch_seconds;
      return { name: stage.name, flops, bytes, seconds, bound: bound(computing, moving, machine) };
    });
  }

  function bound(computing, moving, machine) {
    if (Math.max(computing, moving) < machine.launch_seconds) return "launch";
    return computing > moving ? "compute" : "memory";
  }

  function cost(layer, form, at, machine) {
    const parts = stages(layer, form, at, machine);
    const sum = (key) => parts.reduce((total, part) => total + part[key], 0);
    return { form, stages: parts, flops: sum("flops"), bytes: sum("bytes"), seconds: sum("seconds"), weights: formOf(layer, form).weight_bytes };
  }

  function formOf(layer, form) {
    return layer.forms.find((each) => each.form === form);
  }

  /** New tokens from which on expanding takes fewer operations, with so many tokens in sight. */
  function crossover(layer, context) {
    const limit = layer.prefill_crossover;
    return limit === null ? Infinity : (limit * context) / (context + limit);
  }

  /** The form that an attention takes afterwards. */
  function formAfter(layer, at) {
    const { form, prefill } = layer.after;
    const expands = prefill === "auto" ? at.query > crossover(layer, at.context) : prefill === "expanded";
    if (at.query === 1 || !expands) return form;
    return form === "expanded-cache" ? form : "expanded";
  }

  /** Sums over all latent attentions; a cache that is not known is null. */
  function totals(layers, at, machine) {
    const sum = (one) => layers.reduce((total, layer) => total + layer.names.length * one(layer), 0);
    const known = layers.every((layer) => layer.after.cache_bytes_per_token !== null);
    return {
      cacheBefore: sum((layer) => layer.cache_bytes_per_token_before * at.keys),
      cacheAfter: known ? sum((layer) => layer.after.cache_bytes_per_token * at.keys) : null,
      cacheExpanded: sum((layer) => layer.cache_bytes_per_token_expanded * at.keys),
      secondsBefore: sum((layer) => cost(layer, layer.before, at, machine).seconds),
      secondsAfter: sum((layer) => cost(layer, formAfter(layer, at), at, machine).seconds),
    };
  }

  /** Three digits. What lies exactly between two goes to the even one, as in Python. */
  function digits(value) {
    const [mantissa, exponent] = value.toExponential(40).split("e");
    const at = mantissa.startsWith("-") ? 5 : 4;
    if (/^50*$/.test(mantissa.slice(at)) && Number(mantissa[at - 1]) % 2 === 0) {
      return String(Number(`${mantissa.slice(0, at)}e${exponent}`));
    }
    return String(Number(value.toPrecision(3)));
  }

  /** A number with a decimal prefix: 2.3 MB. */
  function quantity(value, unit = "") {
    let power = 0;
    while (Math.abs(value) >= 999.5 && power < 6) {
      value /= 1000;
      power += 1;
    }
    const text = power === 0 && Number.isInteger(value) ? String(value) : digits(value);
    return `${text} ${["", "k", "M", "G", "T", "P", "E"][power]}${unit}`.trimEnd();
  }

  function duration(seconds) {
    if (seconds >= 999.5) return `${Math.round(seconds).toLocaleString("en-US")} s`;
    for (const [scale, unit] of [[1, "s"], [1e-3, "ms"], [1e-6, "us"]]) {
      if (seconds >= 0.9995 * scale) return `${digits(seconds / scale)} ${unit}`;
    }
    return `${digits(seconds * 1e6)} us`;
  }

  /** A context as people write it: 8k, 1M. */
  function tokens(count) {
    if (count >= 2 ** 20 && count % 2 ** 20 === 0) return `${count / 2 ** 20}M`;
    if (count >= 1024 && count % 1024 === 0) return `${count / 1024}k`;
    return String(count);
  }

  return { call, count, cost, stages, crossover, formAfter, totals, quantity, duration, tokens };
})();
