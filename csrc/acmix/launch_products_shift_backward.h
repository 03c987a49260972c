// The shift's backward by products on tensor cores: from a call to its kernels. launch_backward.h asks it
// first.
#pragma once

#include <optional>
#include <utility>

#include "csrc/acmix/kernels_products_shift_backward.cuh"
#include "csrc/acmix/kernels_products_shift_weights.cuh"
#include "csrc/acmix/launch_products.h"

namespace lska_ops::acmix_cuda {

// The kernels are compiled in a file of their own.
using ShiftWeightsKernel = void (*)(AcmixShiftWeightsArguments);
using ShiftBackTableKernel = void (*)(AcmixShiftBackTableArguments);
using ShiftMapsKernel = void (*)(AcmixShiftMapsArguments);
ShiftWeightsKernel shift_weights_kernel(bool bfloat16, bool eight_heads);
ShiftBackTableKernel shift_back_table_kernel(bool bfloat16, bool eight_heads);
ShiftMapsKernel shift_maps_kernel(bool bfloat16, bool eight_heads);

// Where a map lies, or nothing if it is in neither layout.
inline std::optional<AcmixMap> map_in_place(const gpu::Tensor& t, const AcmixSize& s) {
  const bool last = gpu::channels_last_in_memory(t);
  if (!last && !t.is_contiguous()) return {};
  const int64_t C = t.size(1), H = t.size(2), W = t.size(3);
  const bool aligned = reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0;
  return AcmixMap{t.const_data_ptr(),
                  C * H * W,
                  last ? W * C : W,
                  int(last ? 1 : H * W),
                  int(last ? C : 1),
                  last && aligned && s.D() % 8 == 0,
                  !last && aligned && W % 4 == 0};
}

// The parts of the composite weights' gradients, [count, D, G, 3 G, taps], and their count; or none, where
// other kernels serve. The maps are read in the layout in which they are given.
template <class Call>
std::optional<std::pair<gpu::Tensor, int64_t>> shift_weights_by_products(const Call& call,
                                                                         const gpu::Tensor& qkv,
                                                                         const gpu::Tensor& grad_y) {
  const AcmixSize& s = call.s;
  const bool bfloat16 = call.type == gpu::ScalarType::BFloat16, eight = s.G == 8;
  if (s.element != 2 || grad_y.scalar_type() != call.type) return {};
  const std::optional<AcmixMap> maps = map_in_place(qkv, s), grads = map_in_place(grad_y, s);
  if (!maps || !grads) return {};
  const ShiftWeightsKernel kernel = shift_weights_kernel(bfloat16, eight);
  const AcmixShiftWeightsPlan p = remembered_plan(call, 8, acmix_plan_shift_weights);
  if (!p.serves) return {};
  const gpu::Tensor parts = call.floats({p.layout.groups * s.C * 3 * s.G * s.conv_taps()});
  AcmixShiftWeightsArguments a{};
  a.qkv = *maps, a.grad_y = *grads;
  a.parts = static_cast<float*>(parts.mutable_data_ptr());
  a.C = int(s.C), a.D = int(s.D()), a.H = int(s.H), a.W = int(s.W);
  a.layout = p.layout;
  gpu::start(call.op, call.device, kernel, {p.grid_x, p.grid_y, 1}, kShiftWeightsThreads, p.shared_bytes, a);
  return std::pair(parts, int64_t(p.layout.groups));
}

// What a kernel needs of a call to send the shift's gradients back, but for the layout; and the table, which
// has to outlive it. call.compose() comes first.
template <class Call>
std::optional<std::pair<ShiftBackSource, gpu::Tensor>> shift_back_source(const Call& call,
                                                                         const gpu::Tensor& grad_y) {
  const AcmixSize& s = call.s;
  const std::optional<AcmixMap> grads = map_in_place(grad_y, s);
  if (!grads) return {};
  const bool eight = s.G == 8;
  gpu::Tensor table = call.floats({s.D() * (eight ? kShiftBackWords<8> : kShiftBackWords<4>)});
  const AcmixShiftBackTableArguments t{call.arguments.composite,
                                       static_cast<uint32_t*>(table.mutable_data_ptr()), int(s.D())};
  gpu::start(call.op, call.device, shift_back_table_kernel(call.type == gpu::ScalarType::BFloat16, eight),
             {s.D(), 1, 1}, 256, 4 * 3 * s.G * (9 * s.G + 1), t);
  ShiftBackSource source{};
  source.grad_y = grads->at, source.image = grads->image, source.row = grads->row;
  source.channel = grads->channel, source.pixel = grads->pixel;
  source.vectors = grads->vectors, source.quads = grads->quads;
  source.table = static_cast<const uint32_t*>(table.const_data_ptr());
  source.composite = call.arguments.composite, source.rate2 = call.arguments.rate2;
  source.G = int(s.G), source.D = int(s.D()), source.H = int(s.H), source.W = int(s.W);
  return std::pair(source, table);
}

// The gradients of q, k and v by the shift alone, in grad_qkv's layout; or false, where other kernels serve.
// call.compose() comes first.
template <class Call>
bool shift_maps_by_products(const Call& call, const gpu::Tensor& grad_y, gpu::Tensor& grad_qkv) {
  const AcmixSize& s = call.s;
  const bool bfloat16 = call.type == gpu::ScalarType::BFloat16, eight = s.G == 8;
  if (s.element != 2) return false;
  const ShiftMapsKernel kernel = shift_maps_kernel(bfloat16, eight);
  const AcmixShiftMapsPlan p = remembered_plan(call, 9, acmix_plan_shift_maps);
  const std::optional<AcmixMap> out = map_in_place(grad_qkv, s);
  if (!p.serves || !out) return false;
  const auto found = shift_back_source(call, grad_y);
  if (!found) return false;
  AcmixShiftMapsArguments a{};
  a.source = found->first;
  a.source.layout = p.back;
  a.out = grad_qkv.mutable_data_ptr();
  a.out_image = out->image, a.out_row = out->row, a.out_channel = out->channel, a.out_pixel = out->pixel;
  a.vectors = out->vectors, a.quads = out->quads;
  a.B = int(s.B), a.C = int(s.C);
  a.layout = p.layout;
  gpu::start(call.op, call.device, kernel, {p.grid_x, p.grid_y, p.grid_z}, kShiftMapsThreads, p.shared_bytes,
             a);
  return true;
}

}  // namespace lska_ops::acmix_cuda
