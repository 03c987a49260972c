// ACmix on NVIDIA GPUs: launch.h on the current stream of qkv's device.
#include "csrc/acmix/register.h"
#include "csrc/common/on_gpu.h"

STABLE_TORCH_LIBRARY_IMPL(lska_ops, CUDA, m) {
  using namespace lska_ops::acmix_cuda;
  m.impl("acmix_core_fwd_cuda", TORCH_BOX(&fwd_op<OnGpu>));
  m.impl("acmix_core_bwd_cuda", TORCH_BOX(&bwd_op<OnGpu>));
}
