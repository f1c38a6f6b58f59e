// Runs the models of a folder (exchange.py) in ONNX Runtime for JavaScript.
//
//     node run_javascript.mjs PACKAGES PACKAGE FOLDER
//
// PACKAGES is the folder that npm installed into, PACKAGE onnxruntime-node or onnxruntime-web.
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, join } from "node:path";

const [packages, name, folder] = process.argv.slice(2);
const ort = createRequire(join(packages, "package.json"))(name);
if (name === "onnxruntime-web") ort.env.wasm.numThreads = 1;

const ARRAYS = { float32: Float32Array, int32: Int32Array, int64: BigInt64Array, bool: Uint8Array };

function read({ type, dims, file }) {
  const content = readFileSync(join(folder, file));
  const bytes = content.buffer.slice(content.byteOffset, content.byteOffset + content.byteLength);
  return new ort.Tensor(type, new ARRAYS[type](bytes), dims);
}

function write(file, { type, dims, data }) {
  writeFileSync(join(folder, file), new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  return { type, dims, file };
}

async function call(session, stem, place, feeds) {
  const given = Object.entries(feeds).map(([key, told]) => [key, read(told)]);
  const results = await session.run(Object.fromEntries(given));
  const told = Object.entries(results).map(([key, tensor]) => [
    key,
    write(`${stem}.${place}.${key}.out.bin`, tensor),
  ]);
  return { outputs: Object.fromEntries(told) };
}

for (const file of readdirSync(folder).filter((each) => each.endsWith(".onnx"))) {
  const stem = basename(file, ".onnx");
  const { calls } = JSON.parse(readFileSync(join(folder, `${stem}.json`), "utf8"));
  const model = new Uint8Array(readFileSync(join(folder, file)));
  const session = await ort.InferenceSession.create(model, { logSeverityLevel: 3 });
  const made = [];
  for (const [place, each] of calls.entries()) made.push(await call(session, stem, place, each.feeds));
  writeFileSync(join(folder, `${stem}.out.json`), JSON.stringify({ calls: made }));
}
