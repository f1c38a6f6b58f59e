// How fast one core multiplies and adds when nothing has to be read: what a kernel is measured by.
#pragma once

#include <string>

// Repeats a block of independent multiply-adds, all of them in registers, and returns how many
// floating-point operations that were.
using Multiply = double (*)(long repeats);

// The widest multiply-add of a tier of the kernel, float32 or pairs of bfloat16 summed in float32.
// Null for a tier that has none.
Multiply multiply_of(const std::string& tier, bool bfloat16);
