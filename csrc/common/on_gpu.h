// The GPU an op runs on, its limits and PyTorch's current stream there. For cuda.cu files.
#pragma once

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include "csrc/common/gpu_launch.h"

namespace lska_ops::gpu {

// Only PyTorch builds with CUDA have it, and a library that named it would not load in the others.
inline void* current_stream(const char* op, int32_t device) {
  using Ask = int32_t (*)(int32_t, void**);
  static const Ask ask = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<Ask>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(ask, op, ": this PyTorch was built without CUDA; expected one that has it");
  void* stream = nullptr;
  STD_TORCH_CHECK(ask(device, &stream) == 0, op, ": PyTorch does not tell its current stream");
  return stream;
}

inline int attribute(const char* op, cudaDeviceAttr which, int device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, which, device);
  STD_TORCH_CHECK(error == cudaSuccess, op, ": device ", device,
                  " cannot be asked for its limits: ", cudaGetErrorString(error));
  return value;
}

struct OnGpu {
  DeviceGuard guard;
  Device device;

  static int32_t checked(const char* op, const char* name, const Tensor& x) {
    STD_TORCH_CHECK(x.is_cuda(), op, ": ", name, " is on ", where(x), "; expected it on a CUDA device");
    return x.device().index();
  }
  OnGpu(const char* op, const char* name, const Tensor& x) : guard(checked(op, name, x)) {
    const int index = x.device().index();
    device = {
        {attribute(op, cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
         attribute(op, cudaDevAttrMultiProcessorCount, index), attribute(op, cudaDevAttrL2CacheSize, index),
         10 * attribute(op, cudaDevAttrComputeCapabilityMajor, index) +
             attribute(op, cudaDevAttrComputeCapabilityMinor, index)},
        current_stream(op, index)};
  }
};

}  // namespace lska_ops::gpu
