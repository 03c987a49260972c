// The ops as PyTorch calls them, in front of launch.h and launch_backward.h. The file that includes this one
// says what a device is: `OnDevice` is constructed from qkv, selects its device for as long as it lives, and
// has the Device to launch on.
#pragma once

#include "csrc/acmix/launch_backward.h"

namespace lska_ops::acmix_cuda {

template <class OnDevice>
std::tuple<Tensor, Tensor> fwd_op(const Tensor& qkv, const MaybeTensor& conv_p, const MaybeTensor& fc,
                                  const MaybeTensor& dep_conv, const MaybeTensor& rate1,
                                  const MaybeTensor& rate2, int64_t head, int64_t kernel_att, int64_t stride,
                                  int64_t dilation) {
  return called<OnDevice>("acmix_core_fwd_cuda", "qkv", qkv, [&](const char* op, const Device& device) {
    return fwd(op, device, qkv, {conv_p, fc, dep_conv, rate1, rate2, head, kernel_att, stride, dilation});
  });
}

template <class OnDevice>
Grads bwd_op(const Tensor& grad_y, const Tensor& qkv, const Tensor& lse, const MaybeTensor& conv_p,
             const MaybeTensor& fc, const MaybeTensor& dep_conv, const MaybeTensor& rate1,
             const MaybeTensor& rate2, int64_t head, int64_t kernel_att, int64_t stride, int64_t dilation) {
  return called<OnDevice>("acmix_core_bwd_cuda", "qkv", qkv, [&](const char* op, const Device& device) {
    return bwd(op, device, grad_y, qkv, lse,
               {conv_p, fc, dep_conv, rate1, rate2, head, kernel_att, stride, dilation});
  });
}

}  // namespace lska_ops::acmix_cuda
