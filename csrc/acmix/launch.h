// ACmix's launchers, for every device that portable.cuh compiles for: cuda.cu registers them for GPUs, the
// host-run tests for the CPU. They check, allocate by PyTorch, start kernels on the stream they are given,
// and never wait. Nothing of the size of all windows is ever allocated.
#pragma once

#include <array>
#include <tuple>
#include <vector>

#include "csrc/acmix/kernels.cuh"
#include "csrc/acmix/launch_products.h"
#include "csrc/common/gpu_launch.h"
#include "csrc/common/remembered.h"

namespace lska_ops::acmix_cuda {

using namespace gpu;

// What the ops take beside maps. Without rate1 there is no attention, without rate2 no shift.
struct Parameters {
  const MaybeTensor &conv_p, &fc, &dep_conv, &rate1, &rate2;
  int64_t head, kernel_att, stride, dilation;
};

// A search of some hundred layouts; the sizes of a model come again in every step.
inline AcmixLayout plan_of(const AcmixSize& s, AcmixPass pass, bool attention, bool shift,
                           const GpuLimits& device, bool shift_grad = false, bool last = false) {
  return remembered(std::tuple{s, pass, attention, shift, device, shift_grad, last},
                    [&] { return acmix_plan_of(s, pass, attention, shift, device, shift_grad, last); });
}

// One checked call.
struct Call {
  const char* op;
  Device device;
  Tensor qkv;
  ScalarType type;
  bool attention, shift;
  AcmixSize s;
  AcmixArguments arguments{};
  std::vector<Tensor> held;
  Tensor composite;
  const void *fc = nullptr, *dep_conv = nullptr;

  Call(const char* name, const Device& on, const Tensor& given, const Parameters& p)
      : op(name),
        device(on),
        qkv(given),
        type(given.scalar_type()),
        attention(bool(p.rate1)),
        shift(bool(p.rate2)) {
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16, op,
                    ": qkv has dtype ", headeronly::toString(type),
                    "; expected float32, float16 or bfloat16");
    STD_TORCH_CHECK(attention || shift, op, ": rate1 and rate2 are missing; expected at least one of them");
    STD_TORCH_CHECK(bool(p.conv_p) == attention, op,
                    ": one of conv_p and rate1 is missing; expected both or none");
    STD_TORCH_CHECK(bool(p.fc) == shift && bool(p.dep_conv) == shift, op,
                    ": some of fc, dep_conv and rate2 are missing; expected all or none");
    STD_TORCH_CHECK(p.head > 0 && p.stride > 0 && p.dilation > 0 && p.kernel_att > 0 && p.kernel_att % 2 == 1,
                    op, ": head = ", p.head, ", kernel_att = ", p.kernel_att, ", stride = ", p.stride,
                    ", dilation = ", p.dilation, "; expected positive numbers, kernel_att odd");
    STD_TORCH_CHECK(qkv.dim() == 4 && qkv.size(1) % (3 * p.head) == 0 && qkv.size(1) > 0 && qkv.size(2) > 0 &&
                        qkv.size(3) > 0,
                    op, ": qkv has shape ", in_words(qkv.sizes()),
                    "; expected [B, 3C, H, W], nothing but B zero, C divisible by head = ", p.head);
    const int64_t k = shift && p.dep_conv->dim() == 4 ? p.dep_conv->size(3) : 1;
    STD_TORCH_CHECK(k % 2 == 1, op, ": dep_conv has shape ", in_words(p.dep_conv->sizes()),
                    "; expected [C, k * k, k, k] with k odd");
    s = {qkv.size(0), qkv.size(1) / 3,
         qkv.size(2), qkv.size(3),
         p.head,      attention ? p.kernel_att : 1,
         k,           p.stride,
         p.dilation,  int64_t(qkv.element_size())};
    constexpr int64_t side = 1 << 24;
    STD_TORCH_CHECK(s.C < side && s.H < side && s.W < side && p.stride < side, op, ": qkv has shape ",
                    in_words(qkv.sizes()), " and stride is ", p.stride, "; expected all of them below 2^24");
    STD_TORCH_CHECK(s.B * s.C < kMaxGrid, op, ": qkv has shape ", in_words(qkv.sizes()),
                    "; expected B C below 2^31");
    STD_TORCH_CHECK(s.reach() <= kAcmixMostReach, op, ": the window reaches ", s.reach(),
                    " pixels; expected at most ", kAcmixMostReach);
    STD_TORCH_CHECK(s.D() <= kAcmixMostDims && s.stride <= kAcmixMostStride, op, ": a head has ", s.D(),
                    " dims and stride is ", s.stride, "; expected at most ", kAcmixMostDims, " and ",
                    kAcmixMostStride);
    STD_TORCH_CHECK(s.G * s.conv_taps() <= kAcmixMostShift && (!shift || s.G <= kAcmixMostHeads), op,
                    ": head = ", s.G, " with ", k, " x ", k, " taps; expected head <= ", kAcmixMostHeads,
                    ", head taps <= ", kAcmixMostShift);
    AcmixArguments& a = arguments;
    a.B = s.B;
    a.C = int(s.C), a.G = int(s.G), a.D = int(s.D()), a.H = int(s.H), a.W = int(s.W), a.Ho = int(s.Ho());
    a.Wo = int(s.Wo()), a.kernel_att = int(s.kernel_att), a.kernel_conv = int(k), a.stride = int(s.stride);
    a.dilation = int(s.dilation);
    if (attention) {
      a.conv_p = parameter("conv_p", *p.conv_p, {s.D(), 2, 1, 1});
      a.rate1 = parameter("rate1", *p.rate1, {1});
    }
    if (shift) {
      fc = parameter("fc", *p.fc, {k * k, 3 * s.G, 1, 1});
      dep_conv = parameter("dep_conv", *p.dep_conv, {s.C, k * k, k, k});
      a.rate2 = parameter("rate2", *p.rate2, {1});
    }
  }

  bool empty() const { return s.B == 0; }
  bool channels_last() const { return channels_last_in_memory(qkv); }
  // What kernels that know one layout read.
  void read_nchw() {
    qkv = in_nchw(qkv);
    arguments.qkv = qkv.const_data_ptr();
  }
  void check_beside(const char* name, const Tensor& t, ScalarType wanted) const {
    lska_ops::check_beside(op, name, t, "qkv", qkv);
    STD_TORCH_CHECK(t.scalar_type() == wanted, op, ": ", name, " has dtype ",
                    headeronly::toString(t.scalar_type()), "; expected ", headeronly::toString(wanted));
  }
  const void* parameter(const char* name, const Tensor& t, std::initializer_list<int64_t> shape) {
    check_beside(name, t, type);
    check_shape(op, name, t, shape);
    held.push_back(in_nchw(t));
    return held.back().const_data_ptr();
  }
  void check_map(const char* name, const Tensor& t, ScalarType wanted, int64_t channels) const {
    check_beside(name, t, wanted);
    check_shape(op, name, t, {s.B, channels, s.Ho(), s.Wo()});
  }
  Tensor map(const char* name, const Tensor& t, ScalarType wanted, int64_t channels) const {
    check_map(name, t, wanted, channels);
    return in_nchw(t);
  }
  Tensor floats(std::initializer_list<int64_t> shape) const {
    return stable::new_empty(qkv, {shape.begin(), shape.size()}, ScalarType::Float);
  }
  Tensor elements(std::initializer_list<int64_t> shape) const {
    return stable::new_empty(qkv, {shape.begin(), shape.size()});
  }
  template <class F>
  void with_type(const F& f) const {
    with_dtype(type, f);
  }
  template <class Arguments>
  void start(void (*kernel)(Arguments), LaunchGrid grid, int64_t shared, const Arguments& a) const {
    gpu::start(op, device, kernel, grid, kAcmixThreads, shared, a);
  }

  // The layout of one pass. The limits above fit 64 KiB, the least that a GPU of 7.5 or newer has.
  AcmixLayout layout(AcmixPass pass, bool with_attention, bool with_shift, bool shift_grad = false,
                     bool last = false) const {
    const AcmixLayout l = planned(pass, with_attention, with_shift, shift_grad, last);
    STD_TORCH_CHECK(l.fits, op, ": qkv has shape ", in_words(qkv.sizes()), " and the window reaches ",
                    s.reach(), " pixels; no tile of it fits ", device.limits.shared_bytes,
                    " bytes of shared memory and a grid of ", kMaxGridYZ, " blocks down and across");
    return l;
  }
  AcmixLayout planned(AcmixPass pass, bool with_attention, bool with_shift, bool shift_grad = false,
                      bool last = false) const {
    return plan_of(s, pass, with_attention, with_shift, device.limits, shift_grad, last);
  }
  bool fuses_forward() const {
    return acmix_fuses_forward(s, [&](auto... which) { return planned(which...); });
  }
  AcmixBackward plans_backward(bool wants_shift_grad) const {
    if (!attention || !shift) return {};
    return acmix_plans_backward(
        s, device.limits, [&](auto... which) { return planned(which...); }, wants_shift_grad);
  }

  void compose() {
    const int64_t taps = s.conv_taps(), n = 3 * s.G * s.C * taps;
    composite = floats({n});
    arguments.composite = static_cast<const float*>(composite.const_data_ptr());
    const AcmixComposeArguments a{fc,       dep_conv,   static_cast<float*>(composite.mutable_data_ptr()),
                                  int(s.G), int(s.D()), int(taps)};
    with_type([&](auto t) {
      start(acmix_compose_kernel<typename decltype(t)::type>, {ceil_div(n, kAcmixThreads), 1, 1}, 0, a);
    });
  }
};

inline LaunchGrid grid_of(const AcmixLayout& l) { return {l.grid_x, l.grid_y, l.grid_z}; }

inline std::tuple<Tensor, Tensor> fwd(const char* op, const Device& device, const Tensor& qkv,
                                      const Parameters& p) {
  Call call(op, device, qkv, p);
  const AcmixSize& s = call.s;
  const std::array<int64_t, 4> sizes = {s.B, s.C, s.Ho(), s.Wo()};
  const bool last = call.channels_last();
  if (!last) call.read_nchw();
  using headeronly::MemoryFormat;
  Tensor y = stable::empty(sizes, call.type, std::nullopt, qkv.device(), std::nullopt,
                           last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  Tensor lse = call.attention ? call.floats({s.B, s.G, s.Ho(), s.Wo()}) : call.floats({0});
  if (call.empty()) return {y, lse};
  float* const rows = call.attention ? static_cast<float*>(lse.mutable_data_ptr()) : nullptr;
  if (forward_by_products(call, call.attention, call.shift, nullptr, y, rows)) return {y, lse};
  call.arguments.qkv = call.qkv.const_data_ptr();
  call.arguments.last = last;
  if (call.shift) call.compose();
  const auto run = [&](bool attention, bool shift, void* out, bool out_float, const float* initial) {
    AcmixArguments a = call.arguments;
    a.layout = call.layout(AcmixPass::forward, attention, shift, false, last && !attention);
    a.out = out;
    a.out_float = out_float;
    a.out_last = last && !out_float;  // floats for another kernel are NCHW
    a.initial = initial;
    a.lse = attention ? rows : nullptr;
    call.with_type([&](auto t) {
      call.start(acmix_fwd_kernel<typename decltype(t)::type>, grid_of(a.layout), a.layout.shared_bytes, a);
    });
  };
  const bool both = call.attention && call.shift,
             by_products = both && products_plan(call, true, false).serves;
  if (!both || (!by_products && call.fuses_forward())) {
    run(call.attention, call.shift, y.mutable_data_ptr(), false, nullptr);
    return {y, lse};
  }
  const Tensor shifted = call.floats({s.B, s.C, s.Ho(), s.Wo()});
  run(false, true, shifted.data_ptr(), true, nullptr);
  const float* initial = static_cast<const float*>(shifted.const_data_ptr());
  if (!by_products || !forward_by_products(call, true, false, initial, y, rows))
    run(true, false, y.mutable_data_ptr(), false, initial);
  return {y, lse};
}

}  // namespace lska_ops::acmix_cuda
