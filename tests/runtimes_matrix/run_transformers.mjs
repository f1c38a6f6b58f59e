// Greedy tokens of transformers.js: PACKAGES FOLDER COUNT TOKEN... prints them.
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [packages, folder, count, ...prompt] = process.argv.slice(2);
const found = createRequire(path.join(packages, "package.json")).resolve("@huggingface/transformers");
const { AutoModelForCausalLM, Tensor, env } = await import(pathToFileURL(found));
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder) + "/";
const model = await AutoModelForCausalLM.from_pretrained(path.basename(folder), { dtype: "fp32", device: "cpu" });
const shape = [1, prompt.length];
const made = await model.generate({
  inputs: new Tensor("int64", BigInt64Array.from(prompt, BigInt), shape),
  attention_mask: new Tensor("int64", new BigInt64Array(prompt.length).fill(1n), shape),
  max_new_tokens: Number(count),
  do_sample: false,
  eos_token_id: -1,
});
console.log(made.tolist()[0].slice(prompt.length).join(" "));
