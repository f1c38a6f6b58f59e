// Counts what a thread allocates, where the linker wraps the functions that do.
#pragma once

// Allocations by this thread so far.
long allocations();
