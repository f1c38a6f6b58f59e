// What the kernels ask of a machine, in two forms: instructions of a GPU, and, where no CUDA
// compiler is at work, an emulation of them that runs the same kernels on a CPU (tests/kernels/cuda).
//
// Shared memory is addressed by 32-bit numbers. A warp's fragments are those of the PTX manual:
// lane l of an 8 x 8 matrix holds row l / 4, columns 2 * (l % 4) and the next.
#pragma once

#if defined(__CUDACC__)
#include "device_cuda.cuh"
#else
#include "device_emulated.h"
#endif
