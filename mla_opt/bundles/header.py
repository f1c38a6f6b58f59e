"""``model.h`` of a bundle: of its manifest, what the C++ loader needs, as C++."""

from __future__ import annotations

from mla_opt.bundles.manifest import BundleManifest, Fed
from mla_opt.engines.manifest import Cache

#: Of each type: its name in ONNX Runtime's enumeration, and the bytes of an element.
_TYPES = {
    "bool": ("BOOL", 1),
    "int8": ("INT8", 1),
    "int32": ("INT32", 4),
    "int64": ("INT64", 8),
    "float16": ("FLOAT16", 2),
    "bfloat16": ("BFLOAT16", 2),
    "float32": ("FLOAT", 4),
    "float64": ("DOUBLE", 8),
    "float8_e4m3fn": ("FLOAT8E4M3FN", 1),
}
_LOGITS = {
    "float16": ("Ort::Float16_t", "float"),
    "float32": ("float", "float"),
    "float64": ("double", "double"),
}
_COUNTED = {"query_len": "QUERY_LEN", "total_len": "TOTAL_LEN"}


def header_text(manifest: BundleManifest) -> str:
    """Return the file."""
    logit, number = _LOGITS[manifest.logits.dtype]
    library = "" if manifest.library is None else manifest.library.file.name
    inputs = "".join(map(_input, manifest.inputs))
    caches = "".join(map(_cache, manifest.caches))
    return f"""// Written by mla-opt: what generate.cpp has to know of the model. See manifest.json.
#pragma once
#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <vector>

constexpr const char* MODEL = {_quoted(manifest.model[0].name)};
constexpr const char* LIBRARY = {_quoted(library)};
constexpr const char* LOGITS = {_quoted(manifest.logits.name)};
using Logit = {logit};
using LogitNumber = {number};
constexpr int64_t VOCABULARY = {manifest.vocabulary or 0};  // 0: not known
constexpr std::size_t ROWS = {manifest.rows}, MOST_NEW = {manifest.most_new};

enum Role {{ TOKENS, POSITIONS, START, MASK }};
constexpr int64_t QUERY_LEN = -1, TOTAL_LEN = -2;
struct Fed {{
  const char* name;
  ONNXTensorElementDataType type;
  Role role;
  std::vector<int64_t> shape;
  double visible, hidden;
}};
struct Cache {{
  const char *input, *output;
  ONNXTensorElementDataType type;
  std::size_t element_bytes;
  int64_t width;
}};
inline const std::vector<Fed> INPUTS = {{
{inputs}}};
inline const std::vector<Cache> CACHES = {{
{caches}}};
"""


def _input(fed: Fed) -> str:
    shape = ", ".join(_COUNTED[size] if isinstance(size, str) else str(size) for size in fed.shape)
    role = fed.role.upper()
    numbers = f"{fed.visible!r}, {fed.hidden!r}"
    return f"    {{{_quoted(fed.name)}, {_type(fed.dtype)}, {role}, {{{shape}}}, {numbers}}},\n"


def _cache(cache: Cache) -> str:
    names = f"{_quoted(cache.input)}, {_quoted(cache.output)}"
    return f"    {{{names}, {_type(cache.dtype)}, {_TYPES[cache.dtype][1]}, {cache.width}}},\n"


def _type(dtype: str) -> str:
    return f"ONNX_TENSOR_ELEMENT_DATA_TYPE_{_TYPES[dtype][0]}"


def _quoted(text: str) -> str:
    """A string of C++; what is not plain ASCII is written as bytes in octal."""
    plain = (
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\?' else f"\\{byte:03o}"
        for byte in text.encode()
    )
    return f'"{"".join(plain)}"'
