"""The README.md of a bundle."""

from __future__ import annotations

from mla_opt.bundles.manifest import BundleManifest

OLDEST_ONNXRUNTIME = "1.20"


def readme_text(manifest: BundleManifest) -> str:
    """What someone has to know who runs the model."""
    caches = manifest.caches
    bytes_kept = sum(cache.bytes for cache in caches)
    return f"""# A language model for ONNX Runtime

This folder is all that the model needs, besides ONNX Runtime {OLDEST_ONNXRUNTIME} or newer.
It was written by mla-opt {manifest.tool_version}, with ONNX Runtime {manifest.onnxruntime_version}.
mla-opt is not needed to run it.

| file | what it is |
|---|---|
{_rows(manifest)}
## Check the files

    sha256sum -c SHA256SUMS

`generate.py` checks the model{_and_library(manifest)} each time. `generate.cpp` does not.

## Run it

Both programs take the number of new tokens, then the ids of the prompt. They print the ids of the
most probable tokens. A tokenizer is not part of the folder.

Python 3.11 or newer:

    pip install onnxruntime numpy
    python generate.py 20 3 14 15 92

C++17, where `$ORT` is the unpacked release of ONNX Runtime for C++:

    c++ -std=c++17 -O2 -I$ORT/include generate.cpp -L$ORT/lib -lonnxruntime \\
        -Wl,-rpath,$ORT/lib -o generate
    ./generate 20 3 14 15 92

Leave the program in this folder: it looks for the model beside it.
{_about_library(manifest)}
## Caches

The model keeps one small row for each token, in buffers that it writes in place:
{len(caches)} buffers of {manifest.rows} rows. One sequence takes {bytes_kept:,} bytes.

- Give each buffer to the model twice: as an input, and as the output that belongs to it. That is
  the same memory. `manifest.json` has the pairs under `caches`.
- A new buffer must hold zeros.
- Prompt and answer together must fit in the rows. The loaders check that.
- To begin a new text, count from 0 again. The old rows may stay.
"""


def _rows(manifest: BundleManifest) -> str:
    model, *data = manifest.model
    told = {model.name: "the model", **{each.name: "its weights" for each in data}}
    if manifest.library is not None:
        told[manifest.library.file.name] = "the kernels of its attention, for the CPU"
    told |= {
        "manifest.json": "inputs, outputs and caches of the model, and the SHA-256 of each file",
        "generate.py": "runs it in Python",
        "generate.cpp": "runs it in C++, with `model.h`",
        "SHA256SUMS": "the SHA-256 of each file, for `sha256sum`",
    }
    return "".join(f"| `{name}` | {what} |\n" for name, what in told.items())


def _and_library(manifest: BundleManifest) -> str:
    return "" if manifest.library is None else " and the library"


def _about_library(manifest: BundleManifest) -> str:
    library = manifest.library
    if library is None:
        return "\nThe model has standard operators only and needs no library.\n"
    return f"""
The library `{library.file.name}` is for {library.system} {library.machine}.
It takes the best instructions that the CPU has. The C library of the system must be at least as new
as where it was compiled. The model runs without it, too: it computes the same, and takes longer.
"""
