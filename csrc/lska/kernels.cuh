// LSKA's CUDA kernels: pointers and sizes only, no torch header. plan.h says which one runs.
#pragma once

#include "csrc/lska/kernels_gate.cuh"
#include "csrc/lska/kernels_stream.cuh"
