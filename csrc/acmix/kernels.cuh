// ACmix's CUDA kernels: pointers and sizes only, no torch header. plan.h says on what tiles they run.
#pragma once

#include "csrc/acmix/kernels_key.cuh"
