// What the page draws with: marks of Observable Plot, and the layout of dagre.
export { barX, dot, line, plot, pointer, ruleX, text, tip } from "@observablehq/plot";
export { Graph, layout } from "@dagrejs/dagre";
