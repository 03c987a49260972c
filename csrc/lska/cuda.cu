// LSKA on NVIDIA GPUs: launch.h on the current stream of x's device.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "csrc/lska/register.h"

namespace lska_ops::lska_cuda {
namespace {

// Only PyTorch builds with CUDA have it, and a library that named it would not load in the others.
void* current_stream(const char* op, int32_t device) {
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

int attribute(const char* op, cudaDeviceAttr which, int device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, which, device);
  STD_TORCH_CHECK(error == cudaSuccess, op, ": device ", device,
                  " cannot be asked for its limits: ", cudaGetErrorString(error));
  return value;
}

struct OnGpu {
  torch::stable::accelerator::DeviceGuard guard;
  Device device;

  static int32_t checked(const char* op, const Tensor& x) {
    STD_TORCH_CHECK(x.is_cuda(), op, ": x is not on a GPU; expected a CUDA tensor");
    return x.get_device_index();
  }
  OnGpu(const char* op, const Tensor& x) : guard(checked(op, x)) {
    const int index = x.get_device_index();
    device = {
        {attribute(op, cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
         attribute(op, cudaDevAttrMultiProcessorCount, index), attribute(op, cudaDevAttrL2CacheSize, index)},
        current_stream(op, index)};
  }
};

// What the driver supports, and the toolkit this was compiled with: 13000 is CUDA 13.0.
std::vector<int64_t> cuda_versions() {
  int driver = 0;
  const cudaError_t error = cudaDriverGetVersion(&driver);
  STD_TORCH_CHECK(error == cudaSuccess,
                  "cuda_versions: the driver does not answer: ", cudaGetErrorString(error));
  return {driver, CUDART_VERSION};
}

}  // namespace
}  // namespace lska_ops::lska_cuda

STABLE_TORCH_LIBRARY_IMPL(lska_ops, CompositeExplicitAutograd, m) {
  m.impl("cuda_versions", TORCH_BOX(&lska_ops::lska_cuda::cuda_versions));
}

STABLE_TORCH_LIBRARY_IMPL(lska_ops, CUDA, m) {
  using namespace lska_ops::lska_cuda;
  m.impl("lska_cascade_fwd_cuda", TORCH_BOX(&cascade_fwd_op<OnGpu>));
  m.impl("lska_fwd_cuda", TORCH_BOX(&fwd_op<OnGpu>));
  m.impl("lska_bwd_cuda", TORCH_BOX(&bwd_op<OnGpu>));
}
