// The schemas of LSKA's registered ops, the same for each backend.
#pragma once

#define LSKA_DEPTHWISE                                                                               \
  "Tensor conv0h, Tensor? conv0h_bias, Tensor conv0v, Tensor? conv0v_bias, Tensor? conv_spatial_h, " \
  "Tensor? conv_spatial_h_bias, Tensor? conv_spatial_v, Tensor? conv_spatial_v_bias, "

#define LSKA_CASCADE_FWD(backend) \
  "lska_cascade_fwd_" backend "(Tensor x, " LSKA_DEPTHWISE "int dilation) -> Tensor"

#define LSKA_FWD(backend)                          \
  "lska_fwd_" backend "(Tensor x, " LSKA_DEPTHWISE \
  "Tensor conv1, Tensor? conv1_bias, int dilation, bool keep_product) -> (Tensor y, Tensor product)"

#define LSKA_BWD(backend)                                                         \
  "lska_bwd_" backend "(Tensor grad_y, Tensor x, Tensor product, " LSKA_DEPTHWISE \
  "Tensor conv1, Tensor? conv1_bias, int dilation) -> "                           \
  "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
