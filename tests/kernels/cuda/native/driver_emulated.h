// A driver for the emulated machine: what is started runs at once, unless it is being captured.
#pragma once

#include <functional>

namespace mla_opt::emulator {

// Runs the work, or keeps it for the graph that is being captured.
void submit(std::function<void()> work);

}  // namespace mla_opt::emulator

namespace mla_opt::cuda {
using emulator::submit;
}
