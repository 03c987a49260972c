// The attention's backward by products on tensor cores: from a call to its kernels. launch_backward.h asks
// it.
#pragma once

#include "csrc/acmix/kernels_products_backward.cuh"
#include "csrc/acmix/launch_products.h"
#include "csrc/acmix/launch_products_shift_backward.h"

namespace lska_ops::acmix_cuda {

// The kernels are compiled in a file of their own.
using ProductsBackwardKernel = void (*)(AcmixProductsBackwardArguments);
ProductsBackwardKernel products_backward_kernel(bool bfloat16, bool of_keys, int side);

template <class Call>
bool shift_goes_along(const Call& call) {
  return call.shift && acmix_products_backward_takes_shift(call.s);
}

template <class Call>
AcmixProductsBackwardPlan products_backward_plan(const Call& call, bool of_keys) {
  const bool shift = shift_goes_along(call);
  return remembered_plan(
      call, 4 + of_keys + 2 * shift, [&](const AcmixSize& s, bool bfloat16, const GpuLimits& limits) {
        return acmix_plan_products_backward(s, of_keys, shift, bfloat16, reads_of(s, call.qkv), limits);
      });
}

template <class Call>
bool attention_bwd_serves(const Call& call) {
  return call.attention && products_backward_plan(call, false).serves &&
         products_backward_plan(call, true).serves;
}

// The gradients of q, k and v, each map's rounded once; returns parts of those of conv_p and rate1, 2 D + 1
// numbers each. `shifted`: [B, 3 C, H, W] of what the shift's are where they do not go along, or empty. Maps
// are NCHW or channels_last, grad_qkv as qkv is.
template <class Call>
gpu::Tensor attention_bwd_by_products(const Call& call, const gpu::Tensor& grad_y, const gpu::Tensor& lse,
                                      const gpu::Tensor& shifted, const gpu::Tensor& grad_qkv) {
  const AcmixSize& s = call.s;
  const AcmixProductsBackwardPlan plans[] = {products_backward_plan(call, false),
                                             products_backward_plan(call, true)};
  AcmixProductsBackwardArguments a{products_arguments(call, call.qkv, grad_qkv)};
  const MapStrides grad = strides_of(grad_y);
  a.grad_y = grad_y.const_data_ptr();
  a.grad_image = grad.image, a.grad_row = grad.row, a.grad_channel = grad.channel, a.grad_pixel = grad.pixel;
  a.grad_vectors = reads_vectors(s, grad_y), a.grad_quads = reads_quads(s, grad_y);
  a.initial = shifted.defined() ? static_cast<const float*>(shifted.const_data_ptr()) : nullptr;
  gpu::Tensor table;
  if (shift_goes_along(call)) {
    const auto source = shift_back_source(call, grad_y);
    a.back = source->first, table = source->second;
  }
  a.lse = static_cast<float*>(lse.data_ptr());
  const gpu::Tensor facts = call.floats({s.B, s.G, s.H, s.W, 4});
  a.facts = static_cast<QueryFacts*>(facts.data_ptr());
  a.blocks = plans[0].grid_x;
  const gpu::Tensor parts = call.floats({s.B * a.blocks, 2 * s.D() + 1});
  a.parts = static_cast<float*>(parts.data_ptr());
  for (const bool of_keys : {false, true}) {
    const AcmixProductsBackwardPlan& p = plans[of_keys];
    a.layout = p.layout, a.back.layout = p.back;
    gpu::start(call.op, call.device,
               products_backward_kernel(call.type == gpu::ScalarType::BFloat16, of_keys, p.side),
               {p.grid_x, p.grid_y, p.grid_z}, p.threads, p.shared_bytes, a);
  }
  return parts;
}

}  // namespace lska_ops::acmix_cuda
