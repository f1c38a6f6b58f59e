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
#: ONNX's number, and bytes, of the types that caches have.
TYPES = {"float32": (1, 4), "int8": (3, 1), "float16": (10, 2), "float64": (11, 8)}
TYPES |= {"bfloat16": (16, 2), "float8_e4m3fn": (17, 1)}


def load() -> tuple[Any, ort.InferenceSession]:
    """Check the files, then open the model with its library; returns the manifest, too."""
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    library, options = manifest["library"], ort.SessionOptions()
    for file in [*manifest["model"], *([library["file"]] if library else [])]:
        with (FOLDER / file["name"]).open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != file["sha256"]:
                sys.exit(f"{file['name']} is not the file that the manifest tells of")
    if library:
        here = (platform.system(), platform.machine())
        if here != (library["system"], library["machine"]):
            sys.exit(f"the library is for {library['system']} {library['machine']}, not for {here}")
        options.register_custom_ops_library(str(FOLDER / library["file"]["name"]))
    path = FOLDER / manifest["model"][0]["name"]
    return manifest, ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def buffer(cache: Any) -> ort.OrtValue:
    """Return rows of zeros: what is behind the rows in use must be finite."""
    (number, size), shape = TYPES[cache["dtype"]], (1, 1, cache["rows"], cache["width"])
    value = ort.OrtValue.ortvalue_from_shape_and_type(shape, number)
    ctypes.memset(value.data_ptr(), 0, size * cache["rows"] * cache["width"])
    return value


def feed(entry: Any, ids: list[int], start: int) -> Any:
    """Return what an input gets in a call of new ids behind `start` tokens."""
    places = np.arange(start, start + len(ids))
    sizes = {"query_len": len(ids), "total_len": start + len(ids)}
    shape = [sizes.get(size, size) for size in entry["shape"]]
    if entry["role"] == "mask":
        last = places[:, None] if "query_len" in entry["shape"] else places[-1]
        sees = np.arange(start + len(ids)) <= last
        values = np.where(sees, entry["visible"], entry["hidden"])
    else:
        values = {"tokens": np.array(ids), "positions": places, "start": start}[entry["role"]]
    return np.ascontiguousarray(np.broadcast_to(values, shape), entry["dtype"])


def generate(ids: list[int], new_tokens: int) -> list[int]:
    """Return `new_tokens` ids, the most probable ones behind `ids`."""
    manifest, session = load()
    if manifest["vocabulary"] and not all(0 <= each < manifest["vocabulary"] for each in ids):
        sys.exit(f"the ids that the model knows are 0 to {manifest['vocabulary'] - 1}")
    if len(ids) + new_tokens - 1 > manifest["rows"]:
        sys.exit(f"the caches have room for {manifest['rows']} tokens")
    binding = session.io_binding()
    binding.bind_output(manifest["logits"]["name"])  # the first output that is bound
    for cache in manifest["caches"]:
        kept = buffer(cache)  # past and present are one memory: the model writes it in place
        binding.bind_ortvalue_input(cache["input"], kept)
        binding.bind_ortvalue_output(cache["output"], kept)
    done, text = 0, list(ids)
    while len(text) < len(ids) + new_tokens:
        piece = text[done : done + manifest["most_new"]]
        feeds = {entry["name"]: feed(entry, piece, done) for entry in manifest["inputs"]}
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        binding.bind_output(manifest["logits"]["name"])
        session.run_with_iobinding(binding)
        done += len(piece)
        if done == len(text):
            logits = binding.get_outputs()[0].numpy()
            text.append(int(logits.reshape(-1, logits.shape[-1])[-1].argmax()))
    return text[len(ids) :]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    print(*generate([int(each) for each in sys.argv[2:]], int(sys.argv[1])))
