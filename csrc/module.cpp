// The registered ops: one line per schema, no maths. Launchers register themselves beside their definition.
#include <torch/csrc/stable/library.h>

#include <string>

#include "csrc/acmix/schema.h"
#include "csrc/common/build_info.h"
#include "csrc/lska/schema.h"

#define ACMIX_CPU                                                                                     \
  "Tensor conv_p, Tensor fc, Tensor dep_conv, Tensor rate1, Tensor rate2, int head, int kernel_att, " \
  "int stride, int dilation"

namespace {
std::string build_info() { return lska_ops::kBuildInfo; }
}  // namespace

STABLE_TORCH_LIBRARY(lska_ops, m) {
  m.def("build_info() -> str");
  m.def("set_cpu_isa(str isa) -> str");
  m.def(LSKA_CASCADE_FWD("cpu"));
  m.def(LSKA_FWD("cpu"));
  m.def(LSKA_BWD("cpu"));
  m.def("cuda_versions() -> int[]");
  m.def(LSKA_CASCADE_FWD("cuda"));  // without an implementation where the CUDA part was not compiled
  m.def(LSKA_FWD("cuda"));
  m.def(LSKA_BWD("cuda"));
  m.def("acmix_core_fwd_cpu(Tensor qkv, " ACMIX_CPU ") -> (Tensor y, Tensor lse)");
  m.def("acmix_core_bwd_cpu(Tensor grad_y, Tensor qkv, Tensor lse, " ACMIX_CPU
        ") -> (Tensor grad_qkv, Tensor grad_conv_p, Tensor grad_fc, Tensor grad_dep_conv, Tensor grad_rate1, "
        "Tensor grad_rate2)");
  m.def(ACMIX_CORE_FWD("cuda"));
  m.def(ACMIX_CORE_BWD("cuda"));
}

STABLE_TORCH_LIBRARY_IMPL(lska_ops, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&build_info));
}
