"""Generate tokens with the model beside this file: python generate.py NEW_TOKENS ID [ID ...]

Needs onnxruntime and numpy. Prints the ids of the most probable tokens, one after the other.
"""

import ctypes
import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

FOLDER = Path(__file__).resolve().parent


def checked(file: Any) -> str:
    """Return the path of a file, which must be the one that the manifest tells of."""
    with (FOLDER / file["name"]).open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != file["sha256"]:
            sys.exit(f"{file['name']} is not the file that the manifest tells of")
    return str(FOLDER / file["name"])


def load() -> tuple[Any, ort.InferenceSession]:
    """Open the model with its library; returns the manifest, too."""
    manifest, options = json.loads((FOLDER / "manifest.json").read_bytes()), ort.SessionOptions()
    if library := manifest["library"]:
        here = (platform.system(), platform.machine())
        if here != (library["system"], library["machine"]):
            sys.exit(f"the library is for {library['system']} {library['machine']}, not for {here}")
        options.register_custom_ops_library(checked(library["file"]))
    model, *_ = [checked(file) for file in manifest["model"]]  # the others are its weights
    return manifest, ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feed(entry: Any, ids: list[int], start: int) -> Any:
    """Return what an input gets in a call of new ids behind `start` tokens."""
    count, total = len(ids), start + len(ids)
    shape = [{"query_len": count, "total_len": total}.get(size, size) for size in entry["shape"]]
    places = np.arange(start, total)
    values: Any = {"tokens": ids, "positions": places, "start": start}.get(entry["role"])
    if entry["role"] == "mask":
        last = places[:, None] if "query_len" in entry["shape"] else places[-1]
        values = np.where(np.arange(total) <= last, entry["visible"], entry["hidden"])
    return np.ascontiguousarray(np.broadcast_to(values, shape), entry["dtype"])


def generate(ids: list[int], new_tokens: int) -> list[int]:
    """Return `new_tokens` ids, the most probable ones behind `ids`."""
    manifest, session = load()
    if manifest["vocabulary"] and not all(0 <= each < manifest["vocabulary"] for each in ids):
        sys.exit(f"the ids that the model knows are 0 to {manifest['vocabulary'] - 1}")
    if len(ids) + new_tokens - 1 > manifest["rows"]:
        sys.exit(f"the caches have room for {manifest['rows']} tokens")
    binding = session.io_binding()
    for cache in manifest["caches"]:
        kept = ort.OrtValue.ortvalue_from_shape_and_type(cache["shape"], cache["onnx_type"])
        ctypes.memset(kept.data_ptr(), 0, cache["bytes"])  # what is not in use must be finite
        binding.bind_ortvalue_input(cache["input"], kept)
        binding.bind_ortvalue_output(cache["output"], kept)  # one memory, written in place
    done, text = 0, list(ids)
    while len(text) < len(ids) + new_tokens:
        piece = text[done : done + manifest["most_new"]]
        for entry in manifest["inputs"]:
            binding.bind_cpu_input(entry["name"], feed(entry, piece, done))
        binding.bind_output(manifest["logits"]["name"])  # its size changes
        session.run_with_iobinding(binding)
        done += len(piece)
        if done == len(text):
            logits = binding.get_outputs()[-1].numpy()  # bound behind the caches
            text.append(int(logits.reshape(-1, logits.shape[-1])[-1].argmax()))
    return text[len(ids) :]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    print(*generate([int(each) for each in sys.argv[2:]], int(sys.argv[1])))
