// A layer as boxes and arrows. What is drawn comes with the page's data; dagre finds the places.
const Drawing = (() => {
  "use strict";

  const LINE = 17;
  const PADDING = 10;
  const SVG = "http://www.w3.org/2000/svg";

  function element(name, attributes, ...children) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  const pen = document.createElement("canvas").getContext("2d");

  function width(text, small) {
    pen.font = `${small ? "400 12" : "600 13"}px ${getComputedStyle(document.body).fontFamily}`;
    return pen.measureText(text).width;
  }

  function lines(box, at, timed) {
    const found = [box.title, box.shape];
    if (box.bytes !== null) found.push(Costs.quantity(Costs.count(box.bytes, at), "B"));
    if (timed) found.push(`${Costs.duration(timed.seconds)}, ${timed.bound} bound`);
    return found;
  }

  /** Give every box a place; returns the graph. */
  function arrange(drawing, texts) {
    const graph = new Libraries.Graph();
    graph.setGraph({ nodesep: 22, ranksep: 26, marginx: 4, marginy: 4 });
    graph.setDefaultEdgeLabel(() => ({}));
    for (const box of drawing.boxes) {
      const text = texts.get(box.key);
      const widest = Math.max(...text.map((line, index) => width(line, index > 0)));
      graph.setNode(box.key, { width: widest + 2 * PADDING + 6, height: text.length * LINE + 2 * PADDING });
    }
    for (const [source, target] of drawing.arrows) graph.setEdge(source, target);
    Libraries.layout(graph);
    return graph;
  }

  function boxShape(box, place) {
    const { x, y, width: w, height: h } = place;
    const corner = box.kind === "operator" ? 2 : 12;
    const frame = (inset) =>
      element("rect", { class: `box ${box.kind}`, x: x - w / 2 + inset, y: y - h / 2 + inset, width: w - 2 * inset, height: h - 2 * inset, rx: corner });
    return box.kind === "cache" ? [frame(0), frame(3)] : [frame(0)];
  }

  function boxText(text, place) {
    const top = place.y - place.height / 2 + PADDING + 12;
    return text.map((line, index) =>
      element("text", { x: place.x, y: top + index * LINE, "text-anchor": "middle", class: index ? "small" : "", "font-weight": index ? 400 : 600 }, line));
  }

  function share(place, part) {
    const full = place.width - 8;
    return element("rect", { class: "share", x: place.x - full / 2, y: place.y + place.height / 2 - 7, width: Math.max(1, full * part), height: 4 });
  }

  function arrow(points) {
    const path = points.map(({ x, y }, index) => `${index ? "L" : "M"}${x},${y}`).join("");
    const [from, to] = points.slice(-2);
    const angle = Math.atan2(to.y - from.y, to.x - from.x);
    const corner = (turn) => `${to.x - 8 * Math.cos(angle + turn)},${to.y - 8 * Math.sin(angle + turn)}`;
    return [
      element("path", { class: "arrow", d: path }),
      element("polygon", { class: "head", points: `${to.x},${to.y} ${corner(0.4)} ${corner(-0.4)}` }),
    ];
  }

  /** Draw one form of a layer at one call. */
  function draw(drawing, cost, at) {
    const timed = new Map(cost.stages.map((stage) => [stage.name, stage]));
    const texts = new Map(drawing.boxes.map((box) => [box.key, lines(box, at, timed.get(box.stage))]));
    const graph = arrange(drawing, texts);
    const { width: w, height: h } = graph.graph();
    const title = `${drawing.form}: ${drawing.text}`;
    const svg = element("svg", { width: w, height: h, viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": title });
    for (const edge of graph.edges()) svg.append(...arrow(graph.edge(edge).points));
    for (const box of drawing.boxes) {
      const place = graph.node(box.key);
      svg.append(...boxShape(box, place), ...boxText(texts.get(box.key), place));
      const stage = timed.get(box.stage);
      if (stage) svg.append(share(place, stage.seconds / cost.seconds));
    }
    return svg;
  }

  return { draw };
})();
