// Generate tokens with the model beside this program: ./generate NEW_TOKENS ID [ID ...]
// It does what generate.py does, but for the hashes: `sha256sum -c SHA256SUMS` checks those.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <string>

#include "model.h"

// The greatest of the last token's logits.
int64_t most_probable(const Ort::Value& logits) {
  const auto shape = logits.GetTensorTypeAndShapeInfo();
  const Logit* end = logits.GetTensorData<Logit>() + shape.GetElementCount();
  const Logit* row = end - shape.GetShape().back();
  return std::max_element(row, end) - row;
}

int main(int argc, char** argv) try {
  if (argc < 3) return std::cerr << "usage: generate NEW_TOKENS ID [ID ...]\n", 2;
  std::vector<int64_t> text;
  for (int at = 2; at < argc; ++at) text.push_back(std::stoll(argv[at]));
  const size_t end = text.size() + std::stoll(argv[1]);
  const auto [least, most] = std::minmax_element(text.begin(), text.end());
  if (VOCABULARY && (*least < 0 || *most >= VOCABULARY))
    return std::cerr << "the ids that the model knows are 0 to " << VOCABULARY - 1 << "\n", 2;
  if (end - 1 > ROWS) return std::cerr << "the caches have room for " << ROWS << " tokens\n", 2;

  const auto folder = std::filesystem::absolute(argv[0]).parent_path();
  Ort::Env env;
  Ort::SessionOptions options;
  if (*LIBRARY) options.RegisterCustomOpsLibrary((folder / LIBRARY).c_str());
  Ort::Session session(env, (folder / MODEL).c_str(), options);
  Ort::IoBinding binding(session);
  Ort::AllocatorWithDefaultOptions cpu;
  for (const Cache& cache : CACHES) {
    auto kept = Ort::Value::CreateTensor(cpu, cache.shape.data(), cache.shape.size(), cache.type);
    std::memset(kept.GetTensorMutableRawData(), 0, cache.bytes);  // what is not in use must be finite
    binding.BindInput(cache.input, kept);
    binding.BindOutput(cache.output, kept);  // one memory, written in place
  }
  for (size_t done = 0; text.size() < end;) {
    const size_t count = std::min(text.size() - done, MOST_NEW);
    feed(binding, &text[done], done, count);
    binding.BindOutput(LOGITS, cpu.GetInfo());  // its size changes
    session.Run(Ort::RunOptions{}, binding);
    done += count;
    if (done < text.size()) continue;
    text.push_back(most_probable(binding.GetOutputValues().back()));  // bound behind the caches
    std::cout << text.back() << (text.size() < end ? " " : "\n") << std::flush;
  }
} catch (const std::exception& error) {
  return std::cerr << error.what() << "\n", 1;
}
