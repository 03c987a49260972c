// The ops as PyTorch calls them, in front of launch.h and launch_backward.h. The file that includes this one
// says what a device is: `OnDevice` is constructed from x, selects its device for as long as it lives, and
// has the Device to launch on.
#pragma once

#include "csrc/lska/launch_backward.h"

namespace lska_ops::lska_cuda {

template <class OnDevice>
Tensor cascade_fwd_op(const Tensor& x, const Tensor& conv0h, const MaybeTensor& conv0h_bias,
                      const Tensor& conv0v, const MaybeTensor& conv0v_bias, const MaybeTensor& conv_spatial_h,
                      const MaybeTensor& conv_spatial_h_bias, const MaybeTensor& conv_spatial_v,
                      const MaybeTensor& conv_spatial_v_bias, int64_t dilation) {
  return called<OnDevice>("lska_cascade_fwd_cuda", "x", x, [&](const char* op, const Device& device) {
    return cascade_fwd(op, device, x,
                       {conv0h, conv0h_bias, conv0v, conv0v_bias, conv_spatial_h, conv_spatial_h_bias,
                        conv_spatial_v, conv_spatial_v_bias},
                       dilation);
  });
}

template <class OnDevice>
std::tuple<Tensor, Tensor> fwd_op(const Tensor& x, const Tensor& conv0h, const MaybeTensor& conv0h_bias,
                                  const Tensor& conv0v, const MaybeTensor& conv0v_bias,
                                  const MaybeTensor& conv_spatial_h, const MaybeTensor& conv_spatial_h_bias,
                                  const MaybeTensor& conv_spatial_v, const MaybeTensor& conv_spatial_v_bias,
                                  const Tensor& conv1, const MaybeTensor& conv1_bias, int64_t dilation,
                                  bool keep_product) {
  return called<OnDevice>("lska_fwd_cuda", "x", x, [&](const char* op, const Device& device) {
    return fwd(op, device, x,
               {conv0h, conv0h_bias, conv0v, conv0v_bias, conv_spatial_h, conv_spatial_h_bias, conv_spatial_v,
                conv_spatial_v_bias},
               conv1, conv1_bias, dilation, keep_product);
  });
}

template <class OnDevice>
Grads bwd_op(const Tensor& grad_y, const Tensor& x, const Tensor& product, const Tensor& conv0h,
             const MaybeTensor& conv0h_bias, const Tensor& conv0v, const MaybeTensor& conv0v_bias,
             const MaybeTensor& conv_spatial_h, const MaybeTensor& conv_spatial_h_bias,
             const MaybeTensor& conv_spatial_v, const MaybeTensor& conv_spatial_v_bias, const Tensor& conv1,
             const MaybeTensor& conv1_bias, int64_t dilation) {
  return called<OnDevice>("lska_bwd_cuda", "x", x, [&](const char* op, const Device& device) {
    return bwd(op, device, grad_y, x, product,
               {conv0h, conv0h_bias, conv0v, conv0v_bias, conv_spatial_h, conv_spatial_h_bias, conv_spatial_v,
                conv_spatial_v_bias},
               conv1, conv1_bias, dilation);
  });
}

}  // namespace lska_ops::lska_cuda
