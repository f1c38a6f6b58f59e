#include "log.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace mla_opt::tensorrt {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> known_finder{nullptr};

}  // namespace

void log_to(nvinfer1::ILoggerFinder* finder) { known_finder = finder; }

bool fail(const char* format, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  nvinfer1::ILoggerFinder* finder = known_finder;
  nvinfer1::ILogger* logger = finder ? finder->findLogger() : nullptr;
  if (logger)
    logger->log(nvinfer1::ILogger::Severity::kERROR, line);
  else
    std::fprintf(stderr, "%s\n", line);
  return false;
}

}  // namespace mla_opt::tensorrt
