#include "fields.h"

#include <cmath>
#include <cstring>

#include "log.h"

namespace mla_opt::tensorrt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

const PluginField* find(const PluginFieldCollection& given, const char* name) {
  for (int32_t i = 0; i < given.nbFields; ++i) {
    const PluginField& field = given.fields[i];
    if (field.data && field.length >= 1 && std::strcmp(field.name, name) == 0) return &field;
  }
  return nullptr;
}

bool read_number(const PluginFieldCollection& given, const char* name, double& number) {
  const PluginField* field = find(given, name);
  if (!field) return fail("LatentAttention: attribute %s is missing", name);
  switch (field->type) {  // the parser chooses the width of integers
    case PluginFieldType::kFLOAT32: number = *static_cast<const float*>(field->data); return true;
    case PluginFieldType::kFLOAT64: number = *static_cast<const double*>(field->data); return true;
    case PluginFieldType::kINT32:
      number = *static_cast<const int32_t*>(field->data);
      return true;
    case PluginFieldType::kINT64:
      number = static_cast<double>(*static_cast<const int64_t*>(field->data));
      return true;
    default:
      return fail("LatentAttention: attribute %s has type %d, which is no number", name,
                  static_cast<int>(field->type));
  }
}

bool read_integer(const PluginFieldCollection& given, const char* name, int32_t least,
                  int32_t most, int32_t& result) {
  double number = 0;
  if (!read_number(given, name, number)) return false;
  if (!(number >= least && number <= most && number == std::floor(number)))
    return fail("LatentAttention: %s is %g, expected a whole number from %d to %d", name, number,
                least, most);
  result = static_cast<int32_t>(number);
  return true;
}

}  // namespace

const PluginFieldCollection& node_fields() {
  static const PluginField fields[] = {
      {"scale", nullptr, PluginFieldType::kFLOAT32, 1},
      {"kv_lora_rank", nullptr, PluginFieldType::kINT32, 1},
      {"causal", nullptr, PluginFieldType::kINT32, 1},
  };
  static const PluginFieldCollection collection{3, fields};
  return collection;
}

bool read_fields(const PluginFieldCollection& given, Fields& fields) {
  double scale = 0;
  if (!read_number(given, "scale", scale)) return false;
  fields.scale = static_cast<float>(scale);
  if (!std::isfinite(fields.scale))
    return fail("LatentAttention: scale is %g, expected a finite float", scale);
  if (!read_integer(given, "kv_lora_rank", 1, 1 << 20, fields.kv_lora_rank) ||
      !read_integer(given, "causal", 0, 1, fields.causal))
    return false;
  if (!find(given, "abi")) return true;  // a node; what follows only an engine has
  return read_integer(given, "abi", 1, 1 << 20, fields.abi) &&
         read_integer(given, "multiprocessors", 1, 1 << 20, fields.multiprocessors);
}

PluginFieldCollection engine_fields(const Fields& fields, std::vector<PluginField>& storage) {
  storage = {
      {"scale", &fields.scale, PluginFieldType::kFLOAT32, 1},
      {"kv_lora_rank", &fields.kv_lora_rank, PluginFieldType::kINT32, 1},
      {"causal", &fields.causal, PluginFieldType::kINT32, 1},
      {"multiprocessors", &fields.multiprocessors, PluginFieldType::kINT32, 1},
      {"abi", &fields.abi, PluginFieldType::kINT32, 1},
  };
  return {static_cast<int32_t>(storage.size()), storage.data()};
}

}  // namespace mla_opt::tensorrt
