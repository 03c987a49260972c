// LSKA on NVIDIA GPUs: launch.h on the current stream of x's device.
#include "csrc/common/on_gpu.h"
#include "csrc/lska/register.h"

namespace lska_ops::lska_cuda {
namespace {

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
