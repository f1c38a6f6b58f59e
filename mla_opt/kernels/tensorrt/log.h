// Lines in the log of whoever loaded the plugin.
#pragma once

#include "NvInferRuntime.h"

namespace mla_opt::tensorrt {

// Where lines go from now on; null: standard error, where they also begin.
void log_to(nvinfer1::ILoggerFinder* finder);

// Writes an error, formatted as printf does. Returns false.
__attribute__((format(printf, 1, 2))) bool fail(const char* format, ...);

}  // namespace mla_opt::tensorrt
