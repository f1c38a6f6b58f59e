"""How the kernels are compiled: by a C++ compiler, and by nvcc."""
