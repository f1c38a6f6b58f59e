// Generate tokens with the model beside this program: ./generate NEW_TOKENS ID [ID ...]
// It does what generate.py does, but for the hashes: `sha256sum -c SHA256SUMS` checks those.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <string>

#include "model.h"

using Ids = std::vector<int64_t>;

// Writes a number as what an input has.
void write(Ort::Value& value, ONNXTensorElementDataType type, int64_t at, double number) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: value.GetTensorMutableData<int64_t>()[at] = number; break;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: value.GetTensorMutableData<int32_t>()[at] = number; break;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL: value.GetTensorMutableData<bool>()[at] = number; break;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: value.GetTensorMutableData<float>()[at] = number; break;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: value.GetTensorMutableData<double>()[at] = number; break;
    default: value.GetTensorMutableData<Ort::Float16_t>()[at] = Ort::Float16_t(static_cast<float>(number));
  }
}

// What an input gets in a call of `count` new ids behind `start` tokens.
Ort::Value feed(const Fed& input, const int64_t* ids, int64_t start, int64_t count) {
  Ids shape;
  int64_t size = 1, total = start + count;
  for (int64_t each : input.shape) {
    shape.push_back(each == QUERY_LEN ? count : each == TOTAL_LEN ? total : each);
    size *= shape.back();
  }
  const bool by_query = std::count(input.shape.begin(), input.shape.end(), QUERY_LEN);
  Ort::AllocatorWithDefaultOptions allocator;
  Ort::Value value = Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), input.type);
  for (int64_t at = 0; at < size; ++at) {
    const int64_t last = by_query ? start + at / total % count : total - 1;
    double number = start;
    if (input.role == TOKENS) number = ids[at % count];
    if (input.role == POSITIONS) number = start + at % count;
    if (input.role == MASK) number = at % total <= last ? input.visible : input.hidden;
    write(value, input.type, at, number);
  }
  return value;
}

// Rows of zeros: what is behind the rows in use must be finite.
Ort::Value buffer(const Cache& cache) {
  Ort::AllocatorWithDefaultOptions allocator;
  const Ids shape{1, 1, ROWS, cache.width};
  Ort::Value value = Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), cache.type);
  std::memset(value.GetTensorMutableRawData(), 0, ROWS * cache.width * cache.element_bytes);
  return value;
}

int64_t most_probable(const Ort::Value& value) {
  auto number = [](Logit each) { return static_cast<LogitNumber>(each); };
  const int64_t width = value.GetTensorTypeAndShapeInfo().GetShape().back();
  const int64_t count = value.GetTensorTypeAndShapeInfo().GetElementCount();
  const Logit* row = value.GetTensorData<Logit>() + count - width;
  auto less = [&](Logit a, Logit b) { return number(a) < number(b); };
  return std::max_element(row, row + width, less) - row;
}

int main(int argc, char** argv) try {
  if (argc < 3) return std::cerr << "usage: generate NEW_TOKENS ID [ID ...]\n", 2;
  const size_t wanted = std::stoll(argv[1]), given = argc - 2;
  Ids text;
  for (int at = 2; at < argc; ++at) text.push_back(std::stoll(argv[at]));
  const auto [least, most] = std::minmax_element(text.begin(), text.end());
  if (VOCABULARY && (*least < 0 || *most >= VOCABULARY)) {
    return std::cerr << "the ids that the model knows are 0 to " << VOCABULARY - 1 << "\n", 2;
  }
  if (given + wanted - 1 > ROWS) return std::cerr << "the caches have room for " << ROWS << " tokens\n", 2;

  const auto folder = std::filesystem::absolute(argv[0]).parent_path();
  Ort::Env env;
  Ort::SessionOptions options;
  if (*LIBRARY) options.RegisterCustomOpsLibrary((folder / LIBRARY).c_str());
  Ort::Session session(env, (folder / MODEL).c_str(), options);
  Ort::IoBinding binding(session);
  const Ort::MemoryInfo cpu = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  binding.BindOutput(LOGITS, cpu);  // the first output that is bound
  std::vector<Ort::Value> kept;
  for (const Cache& cache : CACHES) {
    kept.push_back(buffer(cache));  // past and present are one memory: the model writes it in place
    binding.BindInput(cache.input, kept.back());
    binding.BindOutput(cache.output, kept.back());
  }
  for (size_t done = 0; text.size() < given + wanted;) {
    const size_t count = std::min<size_t>(text.size() - done, MOST_NEW);
    for (const Fed& input : INPUTS) binding.BindInput(input.name, feed(input, &text[done], done, count));
    binding.BindOutput(LOGITS, cpu);
    session.Run(Ort::RunOptions{}, binding);
    done += count;
    if (done < text.size()) continue;
    text.push_back(most_probable(binding.GetOutputValues().front()));
    std::cout << text.back() << (text.size() < given + wanted ? " " : "\n") << std::flush;
  }
} catch (const std::exception& error) {
  return std::cerr << error.what() << "\n", 1;
}
