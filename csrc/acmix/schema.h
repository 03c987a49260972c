// The schemas of ACmix's registered ops, the same for each backend. Without rate1 there is no attention (and
// no conv_p), without rate2 no shift (and no fc and dep_conv); what belongs to a missing half is empty.
#pragma once

#define ACMIX_PARAMETERS                                                                                   \
  "Tensor? conv_p, Tensor? fc, Tensor? dep_conv, Tensor? rate1, Tensor? rate2, int head, int kernel_att, " \
  "int stride, int dilation"

#define ACMIX_CORE_FWD(backend) \
  "acmix_core_fwd_" backend "(Tensor qkv, " ACMIX_PARAMETERS ") -> (Tensor y, Tensor lse)"

#define ACMIX_CORE_BWD(backend)                                                                          \
  "acmix_core_bwd_" backend "(Tensor grad_y, Tensor qkv, Tensor lse, " ACMIX_PARAMETERS                  \
  ") -> (Tensor grad_qkv, Tensor grad_conv_p, Tensor grad_fc, Tensor grad_dep_conv, Tensor grad_rate1, " \
  "Tensor grad_rate2)"
