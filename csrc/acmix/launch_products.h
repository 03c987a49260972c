// The forward by products on tensor cores: from a call to its kernels. launch.h asks it first.
#pragma once

#include <tuple>

#include "csrc/acmix/kernels_products.cuh"
#include "csrc/common/gpu_launch.h"
#include "csrc/common/remembered.h"

namespace lska_ops::acmix_cuda {

// The kernels are compiled in a file of their own.
using ProductsKernel = void (*)(AcmixProductsArguments);
using ShiftTableKernel = void (*)(AcmixShiftTableArguments);
ProductsKernel products_kernel(bool bfloat16, int side);
ShiftTableKernel shift_table_kernel(bool bfloat16, bool eight_heads);

// The device's limits for a kernel: a library without machine code for it may run what was compiled for an
// older one.
template <class Call, class Kernel>
GpuLimits products_limits(const Call& call, Kernel kernel) {
  GpuLimits limits = call.device.limits;
  const int made_for = compiled_for(kernel);
  if (made_for < 80) limits.arch = std::min<int64_t>(limits.arch, made_for);
  return limits;
}

// From an image, a row, a channel and a pixel of it to the next, in elements; whether it is channels_last.
struct MapStrides {
  int64_t image, row;
  int channel, pixel;
  bool last;
};
inline MapStrides strides_of(const gpu::Tensor& t) {
  const bool last = gpu::channels_last_in_memory(t);
  const int64_t C = t.size(1), H = t.size(2), W = t.size(3);
  return {C * H * W, last ? W * C : W, int(last ? 1 : H * W), int(last ? C : 1), last};
}

inline bool aligned(const gpu::Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0;
}

// Whether 16 bytes of a pixel's channels, or 8 of a row, can be read and written at a time.
template <class... Maps>
bool reads_vectors(const AcmixSize& s, const Maps&... maps) {
  return s.D() % kProductsDims == 0 && (... && (strides_of(maps).last && aligned(maps)));
}
template <class... Maps>
bool reads_quads(const AcmixSize& s, const Maps&... maps) {
  return s.D() % kProductsDims == 0 && s.stride == 1 && s.W % 4 == 0 &&
         (... && (!strides_of(maps).last && aligned(maps)));
}

inline MapReads reads_of(const AcmixSize& s, const gpu::Tensor& map) {
  return reads_vectors(s, map) ? MapReads::vectors
         : reads_quads(s, map) ? MapReads::quads
                               : MapReads::numbers;
}

// A search of some hundred tiles; the sizes of a model come again in every step. `which` names what is
// planned.
template <class Call, class Plan>
auto remembered_plan(const Call& call, int which, const Plan& plan) {
  const AcmixSize& s = call.s;
  const bool bfloat16 = call.type == gpu::ScalarType::BFloat16;
  const GpuLimits limits = products_limits(call, products_kernel(bfloat16, 0));
  const std::tuple key{s, which, bfloat16, limits, reads_of(s, call.qkv)};
  return remembered(key, [&] { return plan(s, bfloat16, limits); });
}

template <class Call>
AcmixProductsPlan products_plan(const Call& call, bool attention, bool shift) {
  return remembered_plan(call, attention + 2 * shift, [&](const AcmixSize& s, bool bf16, const GpuLimits& l) {
    return acmix_plan_products(s, attention, shift, bf16, reads_of(s, call.qkv), l);
  });
}

// What every kernel by products takes; `y` is what it writes, of one map or of three.
template <class Call>
AcmixProductsArguments products_arguments(const Call& call, const gpu::Tensor& qkv, const gpu::Tensor& y) {
  const AcmixSize& s = call.s;
  AcmixProductsArguments a{};
  const MapStrides from = strides_of(qkv), to = strides_of(y);
  a.qkv = qkv.const_data_ptr(), a.y = y.mutable_data_ptr();
  a.image = from.image, a.row = from.row, a.channel = from.channel, a.pixel = from.pixel;
  a.y_image = to.image, a.y_row = to.row, a.y_channel = to.channel, a.y_pixel = to.pixel;
  a.vectors = reads_vectors(s, qkv, y), a.quads = reads_quads(s, qkv, y);
  a.conv_p = call.arguments.conv_p, a.rate1 = call.arguments.rate1, a.rate2 = call.arguments.rate2;
  a.B = int(s.B), a.C = int(s.C), a.G = int(s.G), a.D = int(s.D()), a.H = int(s.H), a.W = int(s.W);
  a.Ho = int(s.Ho()), a.Wo = int(s.Wo());
  a.scale = float(1 / std::sqrt(double(s.D())));
  a.step_x = 2.f / float(std::max<int64_t>(s.W - 1, 1)),
  a.step_y = 2.f / float(std::max<int64_t>(s.H - 1, 1));
  return a;
}

// y and lse, if these kernels serve. Call has the call's sizes, tensors, weights and device; `initial` is
// [B, C, Ho, Wo] of what y has beside, or null.
template <class Call>
bool forward_by_products(const Call& call, bool attention, bool shift, const float* initial,
                         const gpu::Tensor& y, float* lse) {
  const bool bfloat16 = call.type == gpu::ScalarType::BFloat16;
  const AcmixSize& s = call.s;
  const AcmixProductsPlan p = products_plan(call, attention, shift);
  if (!p.serves) return false;
  AcmixProductsArguments a = products_arguments(call, call.qkv, y);
  a.lse = lse;
  a.initial = initial;
  a.layout = p.layout;
  gpu::Tensor composite, table;
  if (shift) {
    const bool eight = s.G == 8;
    composite = call.floats({3 * s.G * s.C * 9});
    table = call.floats({s.D() * (eight ? kShiftWords<8> : kShiftWords<4>)});
    a.composite = static_cast<const float*>(composite.const_data_ptr());
    a.table = static_cast<const uint32_t*>(table.const_data_ptr());
    const AcmixShiftTableArguments t{call.fc,
                                     call.dep_conv,
                                     static_cast<float*>(composite.mutable_data_ptr()),
                                     static_cast<uint32_t*>(table.mutable_data_ptr()),
                                     int(s.G),
                                     int(s.D())};
    gpu::start(call.op, call.device, shift_table_kernel(bfloat16, eight), {s.D(), 1, 1}, 256,
               4 * s.G * (27 * s.G + 1), t);
  }
  gpu::start(call.op, call.device, products_kernel(bfloat16, p.side), {p.grid_x, p.grid_y, p.grid_z},
             p.threads, p.shared_bytes, a);
  return true;
}

}  // namespace lska_ops::acmix_cuda
