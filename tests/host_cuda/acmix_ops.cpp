// ACmix's CUDA launchers and kernels as ops on CPU tensors, beside ops.cpp's.
#include "csrc/acmix/register.h"
#include "csrc/acmix/schema.h"
#include "on_host.h"

STABLE_TORCH_LIBRARY_FRAGMENT(lska_ops_host, m) {
  m.def(ACMIX_CORE_FWD("cuda"));
  m.def(ACMIX_CORE_BWD("cuda"));
}

STABLE_TORCH_LIBRARY_IMPL(lska_ops_host, CompositeExplicitAutograd, m) {
  using namespace lska_ops::acmix_cuda;
  m.impl("acmix_core_fwd_cuda", TORCH_BOX(&fwd_op<OnHost>));
  m.impl("acmix_core_bwd_cuda", TORCH_BOX(&bwd_op<OnHost>));
}
