"""``model.h`` of a bundle: of its manifest, what the C++ loader needs, as C++."""

from __future__ import annotations

import onnx_ir as ir

from mla_opt.bundles.manifest import BundleManifest, Cache, Fed

#: Elements of inputs and of logits, in ONNX Runtime's C++ API.
_ELEMENTS = {
    "bool": "bool",
    "int32": "int32_t",
    "int64": "int64_t",
    "float16": "Ort::Float16_t",
    "float32": "float",
    "float64": "double",
}
#: What becomes an element by one conversion, where that is no element itself.
_NUMBERS = {"float16": "float"}


def header_text(manifest: BundleManifest) -> str:
    """Return the file."""
    library = "" if manifest.library is None else manifest.library.file.name
    caches = "".join(map(_cache, manifest.caches))
    inputs = "".join(map(_input, manifest.inputs))
    return f"""// Written by mla-opt: what generate.cpp has to know of the model. See manifest.json.
#pragma once
#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <vector>

constexpr const char* MODEL = {_quoted(manifest.model[0].name)};
constexpr const char* LIBRARY = {_quoted(library)};
constexpr const char* LOGITS = {_quoted(manifest.logits.name)};
using Logit = {_ELEMENTS[manifest.logits.dtype]};
constexpr int64_t VOCABULARY = {manifest.vocabulary or 0};  // 0: not known
constexpr std::size_t ROWS = {manifest.rows}, MOST_NEW = {manifest.most_new};

struct Cache {{
  const char *input, *output;
  ONNXTensorElementDataType type;
  std::vector<int64_t> shape;
  std::size_t bytes;
}};
inline const std::vector<Cache> CACHES = {{
{caches}}};

// A tensor that holds in each place what `value` says of it.
template <typename Element, typename Value>
Ort::Value tensor(const std::vector<int64_t>& shape, Value value) {{
  Ort::AllocatorWithDefaultOptions cpu;
  Ort::Value made = Ort::Value::CreateTensor<Element>(cpu, shape.data(), shape.size());
  const int64_t size = made.GetTensorTypeAndShapeInfo().GetElementCount();
  Element* elements = made.GetTensorMutableData<Element>();
  for (int64_t at = 0; at < size; ++at) elements[at] = static_cast<Element>(value(at));
  return made;
}}

// Binds what the inputs get in a call of new ids behind `start` tokens.
inline void feed(Ort::IoBinding& binding, const int64_t* ids, int64_t start, int64_t query_len) {{
  [[maybe_unused]] const int64_t total_len = start + query_len;
{inputs}}}
"""


def _cache(cache: Cache) -> str:
    names = f"{_quoted(cache.input)}, {_quoted(cache.output)}"
    kind = f"ONNX_TENSOR_ELEMENT_DATA_TYPE_{ir.DataType(cache.onnx_type).name}"
    shape = ", ".join(map(str, cache.shape))
    return f"    {{{names}, {kind}, {{{shape}}}, {cache.bytes}}},\n"


def _input(fed: Fed) -> str:
    """The statement that binds an input; sizes are counted as the function names them."""
    element = _ELEMENTS[fed.dtype]
    shape = ", ".join(map(str, fed.shape))
    number = _NUMBERS.get(fed.dtype, element)
    return (
        f"  binding.BindInput({_quoted(fed.name)}, tensor<{element}>({{{shape}}},"
        f" [&](int64_t at) -> {number} {{\n    return {_value(fed)};\n  }}));\n"
    )


def _value(fed: Fed) -> str:
    """What is at place ``at`` of an input, as an expression."""
    if fed.role == "tokens":
        return "ids[at % query_len]"
    if fed.role == "positions":
        return "start + at % query_len"
    if fed.role == "start":
        return "start"
    if "query_len" not in fed.shape:
        return f"{fed.visible!r}"  # for the last new token, which may look at all
    sees = "at % total_len <= start + at / total_len % query_len"
    return f"{sees} ? {fed.visible!r} : {fed.hidden!r}"


def _quoted(text: str) -> str:
    """A string of C++; what is not plain ASCII is written as bytes in octal."""
    plain = (
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\?' else f"\\{byte:03o}"
        for byte in text.encode()
    )
    return f'"{"".join(plain)}"'
