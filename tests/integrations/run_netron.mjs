// What Netron reads in ONNX files: `node run_netron.mjs PACKAGE FILE...` prints, for each file, its
// graphs and functions with the operators in them, and the attributes that a fused one has.
//
// PACKAGE is the folder of the package `netron`, with "type": "module" in a package.json above it.
import fs from "node:fs/promises";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [home, ...files] = process.argv.slice(2);
const imported = (name) => import(pathToFileURL(path.join(home, `${name}.js`)).href);
const { ModelFactoryService } = await imported("view");
const { BinaryStream } = await imported("base");

// What the window does for Netron, as far as reading a file goes.
const host = {
  require: (id) => imported(id.replace("./", "")),
  event: () => {},
  exception: (error) => { throw error; },
  asset: (name) => fs.readFile(path.join(home, name), "utf-8"),
};

const count = (graph) => {
  const found = {};
  for (const node of graph.nodes) found[node.type.name] = (found[node.type.name] ?? 0) + 1;
  return found;
};

const read = async (file) => {
  const context = {
    identifier: path.basename(file),
    stream: new BinaryStream(await fs.readFile(file)),
    asset: host.asset,
    require: host.require,
    request: async (name) => new BinaryStream(await fs.readFile(path.join(path.dirname(file), name))),
    fetch: async (name) => new BinaryStream(await fs.readFile(path.join(path.dirname(file), name))),
    error: (error) => { throw error; },
  };
  const model = await new ModelFactoryService(host).open(context);
  const [graph] = model.modules;
  const attributes = graph.nodes
    .filter((node) => node.type.name.endsWith("LatentAttention"))
    .map((node) => node.attributes.map((each) => each.name));
  const functions = Object.fromEntries((model.functions ?? []).map((each) => [each.name, count(each)]));
  return { format: model.format, operators: count(graph), attributes, functions };
};

const told = {};
for (const file of files) told[path.basename(file)] = await read(file);
console.log(JSON.stringify(told));
