// The registered ops: one line per schema, no maths. Launchers register themselves beside their definition.
#include <torch/csrc/stable/library.h>

#include <string>

#include "csrc/common/build_info.h"

#define LSKA_DEPTHWISE                                                                               \
  "Tensor conv0h, Tensor? conv0h_bias, Tensor conv0v, Tensor? conv0v_bias, Tensor? conv_spatial_h, " \
  "Tensor? conv_spatial_h_bias, Tensor? conv_spatial_v, Tensor? conv_spatial_v_bias, "

#define ACMIX_PARAMETERS                                                                                  \
  "Tensor conv_p, Tensor fc, Tensor dep_conv, Tensor rate1, Tensor rate2, int head, int kernel_att, int " \
  "stride, "                                                                                              \
  "int dilation"

namespace {
std::string build_info() { return lska_ops::kBuildInfo; }
}  // namespace

STABLE_TORCH_LIBRARY(lska_ops, m) {
  m.def("build_info() -> str");
  m.def("set_cpu_isa(str isa) -> str");
  m.def("lska_cascade_fwd_cpu(Tensor x, " LSKA_DEPTHWISE "int dilation) -> Tensor");
  m.def("lska_fwd_cpu(Tensor x, " LSKA_DEPTHWISE
        "Tensor conv1, Tensor? conv1_bias, int dilation, bool keep_product) -> (Tensor y, Tensor product)");
  m.def("lska_bwd_cpu(Tensor grad_y, Tensor x, Tensor product, " LSKA_DEPTHWISE
        "Tensor conv1, Tensor? conv1_bias, int dilation) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("acmix_core_fwd_cpu(Tensor qkv, " ACMIX_PARAMETERS ") -> (Tensor y, Tensor lse)");
  m.def("acmix_core_bwd_cpu(Tensor grad_y, Tensor qkv, Tensor lse, " ACMIX_PARAMETERS
        ") -> (Tensor grad_qkv, Tensor grad_conv_p, Tensor grad_fc, Tensor grad_dep_conv, Tensor grad_rate1, "
        "Tensor grad_rate2)");
}

STABLE_TORCH_LIBRARY_IMPL(lska_ops, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&build_info));
}
