// The registered ops: one line per schema, no maths. Launchers register themselves beside their definition.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(lska_ops, m) {
  m.def(
      "acmix_core_fwd_cpu(Tensor qkv, Tensor conv_p, Tensor fc, Tensor dep_conv, Tensor rate1, Tensor rate2, int head, "
      "int kernel_att, int stride, int dilation) -> (Tensor y, Tensor lse)");
  m.def(
      "acmix_core_bwd_cpu(Tensor grad_y, Tensor qkv, Tensor lse, Tensor conv_p, Tensor fc, Tensor dep_conv, "
      "Tensor rate1, Tensor rate2, int head, int kernel_att, int stride, int dilation) -> "
      "(Tensor grad_qkv, Tensor grad_conv_p, Tensor grad_fc, Tensor grad_dep_conv, Tensor grad_rate1, "
      "Tensor grad_rate2)");
}
