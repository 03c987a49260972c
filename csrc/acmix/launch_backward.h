// ACmix's backward launchers, on what launch.h has.
#pragma once

#include <optional>

#include "csrc/acmix/launch.h"
#include "csrc/acmix/launch_products_backward.h"
#include "csrc/acmix/launch_products_shift_backward.h"

namespace lska_ops::acmix_cuda {

using Grads = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Parts of the composite weights' gradients, which are sums over pixels: [count, D, G, 3 G, taps].
struct ShiftParts {
  Tensor parts;
  int64_t count;
};

inline ShiftParts shift_parts(const Call& call, const Tensor& grad_y) {
  const AcmixSize& s = call.s;
  const AcmixShiftGradPlan p = acmix_plan_shift_grad(s, call.device.limits);
  STD_TORCH_CHECK(p.fits, call.op, ": head = ", s.G, " does not fit ", call.device.limits.shared_bytes,
                  " bytes of shared memory");
  const Tensor parts = call.floats({p.groups * s.C * 3 * s.G * s.conv_taps()});
  AcmixShiftGradArguments a{};
  a.qkv = call.arguments.qkv, a.last = call.arguments.last;
  a.grad_y = grad_y.const_data_ptr(), a.grad_last = call.arguments.grad_last;
  a.parts = static_cast<float*>(parts.data_ptr());
  a.maps = p.maps, a.grads = p.grads, a.units = p.units;
  a.C = int(s.C), a.G = int(s.G), a.D = int(s.D()), a.H = int(s.H), a.W = int(s.W), a.Ho = int(s.Ho());
  a.Wo = int(s.Wo()), a.kernel_conv = int(s.kernel_conv), a.stride = int(s.stride);
  a.rows = p.rows, a.cols = p.cols, a.runs = p.runs, a.tasks = p.tasks, a.splits = p.splits;
  a.parts_at_once = p.parts, a.groups = int(p.groups), a.fast = p.fast, a.grads_at = p.grads_at,
  a.sums_at = p.sums_at;
  call.with_type([&](auto t) {
    call.start(acmix_shift_grad_kernel<typename decltype(t)::type>, {s.D(), p.groups, p.blocks_z},
               p.shared_bytes, a);
  });
  return {parts, p.groups};
}

// The gradients of fc, dep_conv and rate2 from those parts.
inline void shift_weights_bwd(const Call& call, const ShiftParts& p, Tensor& grad_fc, Tensor& grad_dep_conv,
                              Tensor& grad_rate2) {
  const AcmixSize& s = call.s;
  const int64_t taps = s.conv_taps(), n = s.C * 3 * s.G * taps;
  const Tensor total = call.floats({n});
  const AcmixSumArguments sum{static_cast<const float*>(p.parts.const_data_ptr()), p.count, n,
                              static_cast<float*>(total.data_ptr())};
  const AcmixShiftEndArguments end{sum.out,
                                   call.arguments.composite,
                                   call.fc,
                                   call.dep_conv,
                                   call.arguments.rate2,
                                   grad_fc.mutable_data_ptr(),
                                   grad_dep_conv.mutable_data_ptr(),
                                   grad_rate2.mutable_data_ptr(),
                                   int(s.G),
                                   int(s.D()),
                                   int(taps)};
  const int64_t sums = taps * 3 * s.G + 1, weights = ceil_div(s.C * taps * taps, kAcmixThreads);
  call.with_type([&](auto t) {
    using T = typename decltype(t)::type;
    call.start(acmix_sum_kernel, {ceil_div(n, kWarp), 1, 1}, kAcmixThreads * 4, sum);
    call.start(acmix_shift_end_kernel<T>, {sums + weights, 1, 1}, kAcmixThreads / kWarp * 4, end);
  });
}

// Key by key: the gradients of k and v, and the shift's.
inline void key_bwd(const Call& call, AcmixArguments a, bool attention, bool shift) {
  a.layout = call.layout(AcmixPass::key, attention, shift);
  call.with_type([&](auto t) {
    call.start(acmix_key_bwd_kernel<typename decltype(t)::type>, grid_of(a.layout), a.layout.shared_bytes, a);
  });
}

// The shift's gradients of q, k and v where they do not go along with the attention's: as floats that these
// are added to, [B, 3 C, H, W].
inline Tensor shift_maps_bwd(const Call& call, const Tensor& grad_y) {
  const AcmixSize& s = call.s;
  const Tensor shifted = call.floats({s.B, 3 * s.C, s.H, s.W});
  AcmixArguments a = call.arguments;
  a.grad_y = grad_y.const_data_ptr();
  a.out = shifted.data_ptr();
  a.out_float = true;
  key_bwd(call, a, false, true);
  return shifted;
}

// The gradients of conv_p and rate1 from parts of 2 D + 1 sums.
inline void attention_weights_bwd(const Call& call, const Tensor& parts, Tensor& grad_conv_p,
                                  Tensor& grad_rate1) {
  const int64_t D = call.s.D();
  const AcmixQueryEndArguments end{static_cast<const float*>(parts.const_data_ptr()), parts.size(0),
                                   grad_conv_p.mutable_data_ptr(), grad_rate1.mutable_data_ptr(), int(D)};
  call.with_type([&](auto t) {
    call.start(acmix_query_end_kernel<typename decltype(t)::type>, {2 * D + 1, 1, 1},
               kAcmixThreads / kWarp * 4, end);
  });
}

// The gradients of q, k and v, conv_p and rate1: query by query, then key by key, which needs the former's
// delta. Returns the parts of the composite weights' gradients, if they are wanted and the query pass adds
// them up.
inline std::optional<ShiftParts> maps_bwd(const Call& call, const Tensor& grad_y, const Tensor& lse,
                                          bool wants_parts, Tensor& grad_qkv, Tensor& grad_conv_p,
                                          Tensor& grad_rate1) {
  const AcmixSize& s = call.s;
  AcmixArguments base = call.arguments;
  base.grad_y = grad_y.const_data_ptr();
  base.out = grad_qkv.mutable_data_ptr();
  base.out_last = base.last;
  if (!call.attention) {
    key_bwd(call, base, false, true);
    return {};
  }
  const auto [fused, shift_grad] = call.plans_backward(wants_parts);
  const Tensor delta = call.floats({s.B, s.G, s.Ho(), s.Wo()});
  Tensor shifted;
  if (call.shift && !fused) {
    shifted = shift_maps_bwd(call, grad_y);
    base.initial = static_cast<const float*>(shifted.const_data_ptr());
  }
  base.lse = static_cast<float*>(lse.data_ptr());
  base.delta = static_cast<float*>(delta.data_ptr());
  AcmixArguments a = base;
  a.layout = call.layout(AcmixPass::query, true, fused, shift_grad);
  const int64_t blocks = a.layout.grid_x * a.layout.grid_y * a.layout.grid_z;
  const Tensor parts = call.floats({blocks, 2 * s.D() + 1});
  a.parts = static_cast<float*>(parts.data_ptr());
  const ShiftParts shift_sums{call.floats({shift_grad ? blocks * s.C * 3 * s.G * s.conv_taps() : 0}), blocks};
  a.shift_parts = static_cast<float*>(shift_sums.parts.data_ptr());
  call.with_type([&](auto t) {
    call.start(acmix_query_bwd_kernel<typename decltype(t)::type>, grid_of(a.layout), a.layout.shared_bytes,
               a);
  });
  attention_weights_bwd(call, parts, grad_conv_p, grad_rate1);
  key_bwd(call, base, true, fused);
  return shift_grad ? std::optional(shift_sums) : std::nullopt;
}

inline Grads bwd(const char* op, const Device& device, const Tensor& given_grad_y, const Tensor& qkv,
                 const Tensor& given_lse, const Parameters& p) {
  Call call(op, device, qkv, p);
  const AcmixSize& s = call.s;
  call.check_map("grad_y", given_grad_y, call.type, s.C);
  const Tensor lse = call.attention ? call.map("lse", given_lse, ScalarType::Float, s.G) : given_lse;
  const auto gradient = [&](bool wanted, std::initializer_list<int64_t> shape) {
    Tensor t = wanted ? call.elements(shape) : call.elements({0});
    return call.empty() ? stable::zero_(t) : t;
  };
  using headeronly::MemoryFormat;
  const int64_t k = s.kernel_conv;
  const bool last = call.channels_last();
  Tensor grad_qkv =
      stable::empty(std::array<int64_t, 4>{s.B, 3 * s.C, s.H, s.W}, call.type, std::nullopt, qkv.device(),
                    std::nullopt, last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  Tensor grad_conv_p = gradient(call.attention, {s.D(), 2, 1, 1}), grad_rate1 = gradient(call.attention, {1});
  Tensor grad_fc = gradient(call.shift, {k * k, 3 * s.G, 1, 1}), grad_rate2 = gradient(call.shift, {1});
  Tensor grad_dep_conv = gradient(call.shift, {s.C, k * k, k, k});
  if (call.empty()) return {grad_qkv, grad_conv_p, grad_fc, grad_dep_conv, grad_rate1, grad_rate2};

  const auto in_a_layout = [](const Tensor& t) { return channels_last_in_memory(t) ? t : in_nchw(t); };
  call.qkv = in_a_layout(qkv);
  const Tensor grad_y = in_a_layout(given_grad_y);
  call.arguments.qkv = call.qkv.const_data_ptr();
  call.arguments.last = last;
  call.arguments.grad_last = channels_last_in_memory(grad_y);
  std::optional<ShiftParts> parts;
  if (call.shift) {
    call.compose();
    if (const auto found = shift_weights_by_products(call, call.qkv, grad_y))
      parts = ShiftParts{found->first, found->second};
  }
  bool has_maps = !call.attention && shift_maps_by_products(call, grad_y, grad_qkv);
  if (attention_bwd_serves(call)) {
    Tensor shifted;
    if (call.shift && !shift_goes_along(call)) shifted = shift_maps_bwd(call, grad_y);
    attention_weights_bwd(call, attention_bwd_by_products(call, grad_y, lse, shifted, grad_qkv), grad_conv_p,
                          grad_rate1);
    has_maps = true;
  }
  if (!has_maps) {
    const std::optional<ShiftParts> of_queries =
        maps_bwd(call, grad_y, lse, !parts, grad_qkv, grad_conv_p, grad_rate1);
    if (!parts) parts = of_queries;
  }
  if (call.shift && !parts) parts = shift_parts(call, grad_y);
  if (call.shift) shift_weights_bwd(call, *parts, grad_fc, grad_dep_conv, grad_rate2);
  return {grad_qkv, grad_conv_p, grad_fc, grad_dep_conv, grad_rate1, grad_rate2};
}

}  // namespace lska_ops::acmix_cuda
