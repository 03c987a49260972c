// LSKA's launchers, for every device that portable.cuh compiles for: cuda.cu registers them for GPUs, the
// host-run tests for the CPU. They check, allocate by PyTorch, start kernels on the stream they are given,
// and never wait.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <tuple>
#include <vector>

#include "csrc/common/gpu_launch.h"
#include "csrc/lska/kernels.cuh"
#include "csrc/lska/launch_bands.h"
#include "csrc/lska/launch_tiles.h"

namespace lska_ops::lska_cuda {

using namespace gpu;

// The depthwise weights as the ops receive them.
struct Weights {
  const Tensor& conv0h;
  const MaybeTensor& conv0h_bias;
  const Tensor& conv0v;
  const MaybeTensor& conv0v_bias;
  const MaybeTensor &conv_spatial_h, &conv_spatial_h_bias, &conv_spatial_v, &conv_spatial_v_bias;
};

// [batch, rows, cols] in someone else's memory; a batch stride of 0 repeats one matrix.
inline Tensor matrices(const Tensor& memory, int64_t offset, int64_t batch, int64_t batch_stride,
                       int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride) {
  const int64_t sizes[] = {batch, rows, cols}, strides[] = {batch_stride, row_stride, col_stride};
  char* data = static_cast<char*>(memory.data_ptr()) + offset * int64_t(memory.element_size());
  return stable::from_blob(data, {sizes, 3}, {strides, 3}, memory.device(), memory.scalar_type());
}

// [rows, cols] in someone else's memory.
inline Tensor matrix(const Tensor& memory, int64_t offset, int64_t rows, int64_t cols, int64_t row_stride,
                     int64_t col_stride) {
  const int64_t sizes[] = {rows, cols}, strides[] = {row_stride, col_stride};
  char* data = static_cast<char*>(memory.data_ptr()) + offset * int64_t(memory.element_size());
  return stable::from_blob(data, {sizes, 2}, {strides, 2}, memory.device(), memory.scalar_type());
}

// One checked call, with the plans of its cascade for some images at a time. All its maps lie in memory as x
// does: in NCHW or in channels_last, without gaps. A map that comes otherwise is copied.
struct Call {
  const char* op;
  Device device;
  Tensor x;
  bool channels_last;
  ScalarType type;
  LskaSize size;
  LskaStages stages;
  LskaWeightPointers weights{};
  int64_t pixels, image;
  std::vector<Tensor> held;
  mutable MaybeTensor band_tables;  // of launch_bands.h, the same for all images

  Call(const char* name, const Device& on, const Tensor& given, const Weights& w, int64_t dilation)
      : op(name), device(on), x(given), type(given.scalar_type()) {
    STD_TORCH_CHECK(x.dim() == 4, op, ": x has shape ", in_words(x.sizes()), "; expected [B, C, H, W]");
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16, op,
                    ": x has dtype ", headeronly::toString(type), "; expected float32, float16 or bfloat16");
    STD_TORCH_CHECK(dilation >= 1, op, ": dilation is ", dilation, "; expected at least 1");
    STD_TORCH_CHECK(bool(w.conv_spatial_h) == bool(w.conv_spatial_v), op,
                    ": one of conv_spatial_h and conv_spatial_v is missing; expected both or none");
    const int64_t k0 = w.conv0h.dim() == 4 ? w.conv0h.size(3) : 0;
    const int64_t k1 = w.conv_spatial_h && w.conv_spatial_h->dim() == 4 ? w.conv_spatial_h->size(3) : 0;
    channels_last = channels_last_in_memory(x);
    size = {x.size(0), x.size(1), x.size(2), x.size(3), k0, k1, dilation, channels_last};
    STD_TORCH_CHECK(
        size.C < (1 << 30) && size.H < (1 << 30) && size.W < (1 << 30) && size.planes() <= kMaxGrid, op,
        ": x has shape ", in_words(x.sizes()), "; expected sides below 2^30, B C below 2^31");
    weights.h0 = weight("conv0h weight", w.conv0h, k0, false);
    weights.h0_bias = bias("conv0h bias", w.conv0h_bias);
    weights.v0 = weight("conv0v weight", w.conv0v, k0, true);
    weights.v0_bias = bias("conv0v bias", w.conv0v_bias);
    if (w.conv_spatial_h) {
      weights.h1 = weight("conv_spatial_h weight", *w.conv_spatial_h, k1, false);
      weights.h1_bias = bias("conv_spatial_h bias", w.conv_spatial_h_bias);
      weights.v1 = weight("conv_spatial_v weight", *w.conv_spatial_v, k1, true);
      weights.v1_bias = bias("conv_spatial_v bias", w.conv_spatial_v_bias);
    }
    stages = lska_plan::stages(size);
    pixels = size.H * size.W;
    image = size.C * pixels;
    x = in_layout(x);
  }

  bool empty() const { return size.B * image == 0; }
  void check_beside(const char* name, const Tensor& t) const {
    lska_ops::check_beside(op, name, t, "x", x);
    STD_TORCH_CHECK(t.scalar_type() == type, op, ": ", name, " has dtype ",
                    headeronly::toString(t.scalar_type()), "; expected x's, ", headeronly::toString(type));
  }
  const void* hold(const char* name, const Tensor& t) {
    check_beside(name, t);
    held.push_back(in_nchw(t));
    return held.back().const_data_ptr();
  }
  const void* weight(const char* name, const Tensor& t, int64_t k, bool vertical) {
    STD_TORCH_CHECK(k % 2 == 1 && k < (1 << 20), op, ": ", name, " has shape ", in_words(t.sizes()),
                    "; expected an odd kernel size");
    if (vertical)
      check_shape(op, name, t, {size.C, 1, k, 1});
    else
      check_shape(op, name, t, {size.C, 1, 1, k});
    return hold(name, t);
  }
  const void* bias(const char* name, const MaybeTensor& t) {
    if (!t) return nullptr;
    check_shape(op, name, *t, {size.C});
    return hold(name, *t);
  }
  Tensor map_like(const char* name, const Tensor& t) const {
    check_beside(name, t);
    check_shape(op, name, t, {size.B, size.C, size.H, size.W});
    return in_layout(t);
  }
  Tensor in_layout(const Tensor& t) const {
    if (!channels_last) return in_nchw(t);
    if (channels_last_in_memory(t)) return t;
    Tensor copy = empty_like_x();
    return stable::copy_(copy, t);
  }
  Tensor held_matrix(const char* name, const Tensor& t) {
    hold(name, t);
    return held.back();
  }

  Tensor floats(int64_t n) const { return stable::new_empty(x, {n}, ScalarType::Float); }
  Tensor elements(int64_t n) const { return stable::new_empty(x, {n}); }
  Tensor empty_like_x() const {
    using headeronly::MemoryFormat;
    return empty_map(x, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  }

  LskaSize of_images(int64_t count) const {
    LskaSize s = size;
    s.B = count;
    return s;
  }
  LskaMap map(int64_t count) const {
    return {count * size.C, int(size.C), int(size.H), int(size.W), channels_last};
  }
  const char* at(const Tensor& t, int64_t first) const {  // image `first` of a map of x's dtype
    return static_cast<const char*>(t.const_data_ptr()) + first * image * int64_t(x.element_size());
  }
  char* at(Tensor& t, int64_t first) const {
    return static_cast<char*>(t.mutable_data_ptr()) + first * image * int64_t(x.element_size());
  }
  template <class Arguments>
  void start(void (*kernel)(Arguments), LaunchGrid grid, int threads, int64_t shared,
             const Arguments& arguments) const {
    gpu::start(op, device, kernel, grid, threads, shared, arguments);
  }

  // s of `count` images from x at `from`.
  void cascade(const void* from, int64_t count, void* s) const {
    if (cascade_by_bands(*this, from, count, s) || cascade_by_tiles(*this, from, count, s)) return;
    const LskaSize some = of_images(count);
    const LskaPlan p = lska_plan_forward(some, device.limits);
    if (p.kernel == LskaKernel::stages) return cascade_by_stages(from, count, s);
    const LskaPlaneArguments a{from, s, weights, map(count), lska_region(some, p)};
    with_dtype(type, [&](auto t) {
      using T = typename decltype(t)::type;
      start(p.kernel == LskaKernel::plane ? lska_cascade_fwd_kernel<T> : lska_cascade_fwd_stream_kernel<T>,
            {p.grid_x, p.grid_y, p.grid_z}, p.threads, p.shared_bytes, a);
    });
  }

  struct Link {  // one convolution: its number among the sums, geometry, weights
    int number;
    LskaStage stage;
    bool vertical;
    const void *taps, *bias;
  };
  std::vector<Link> chain() const {
    std::vector<Link> links{{0, stages.h0, false, weights.h0, weights.h0_bias},
                            {2, stages.v0, true, weights.v0, weights.v0_bias}};
    if (size.k1) {
      links.push_back({1, stages.h1, false, weights.h1, weights.h1_bias});
      links.push_back({3, stages.v1, true, weights.v1, weights.v1_bias});
    }
    return links;
  }
  void stage(const Link& link, LskaStageArguments a, int64_t count) const {
    a.taps = link.taps;
    a.bias = a.turned ? nullptr : link.bias;
    a.vertical = link.vertical;
    a.stage = link.stage;
    a.map = map(count);
    const int64_t blocks = std::clamp<int64_t>((channels_last ? image : pixels) / 1024, 1, kMaxGridYZ);
    with_dtype(type, [&](auto t) {
      start(lska_stage_kernel<typename decltype(t)::type>, {channels_last ? count : a.map.planes, blocks, 1},
            256, 0, a);
    });
  }
  void cascade_by_stages(const void* from, int64_t count, void* s) const {
    const std::vector<Link> links = chain();
    const Tensor a = floats(count * image), b = floats(count * image);
    const void* in = from;
    for (size_t i = 0; i < links.size(); ++i) {
      const bool last = i + 1 == links.size();
      LskaStageArguments given{};
      given.in = in;
      given.in_float = i > 0;
      given.out = last ? s : (i % 2 ? b : a).data_ptr();
      given.out_float = !last;
      stage(links[i], given, count);
      in = given.out;
    }
  }

  bool aligned(std::initializer_list<const void*> maps) const {  // to 16 bytes
    return std::all_of(maps.begin(), maps.end(),
                       [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; });
  }
  void gate(const void* from, const void* product, const void* conv1_bias, void* y, int64_t count) const {
    LskaGateArguments a{};
    a.x = from;
    a.product = product;
    a.bias = conv1_bias;
    a.y = y;
    a.map = map(count);
    a.plan = lska_plan_gate(of_images(count), device.limits, int64_t(x.element_size()),
                            aligned({from, product, y}));
    with_dtype(type, [&](auto t) {
      start(lska_gate_fwd_kernel<typename decltype(t)::type>, {a.plan.grid_x, 1, 1}, kGateThreads, 0, a);
    });
  }
};

inline Tensor cascade_fwd(const char* op, const Device& device, const Tensor& x, const Weights& w,
                          int64_t dilation) {
  const Call call(op, device, x, w, dilation);
  Tensor s = call.empty_like_x();
  if (!call.empty()) call.cascade(call.x.const_data_ptr(), call.size.B, s.mutable_data_ptr());
  return s;
}

// conv1 of `count` images: out = weight s, or weight^T s; in channels_last all pixels are one matrix.
inline void conv1(const Call& call, const Tensor& weight, bool transposed, const Tensor& in,
                  int64_t in_offset, const Tensor& out, int64_t out_offset, int64_t count) {
  const int64_t C = call.size.C, P = call.pixels;
  if (call.channels_last)
    return multiply(matrix(in, in_offset, count * P, C, C, 1),
                    matrix(weight, 0, C, C, transposed ? C : 1, transposed ? 1 : C),
                    matrix(out, out_offset, count * P, C, C, 1));
  multiply(matrices(weight, 0, count, 0, C, C, transposed ? 1 : C, transposed ? C : 1),
           matrices(in, in_offset, count, call.image, C, P, P, 1),
           matrices(out, out_offset, count, call.image, C, P, P, 1));
}

inline void check_conv1(const Call& call, const Tensor& conv1, const MaybeTensor& conv1_bias) {
  check_shape(call.op, "conv1 weight", conv1, {call.size.C, call.size.C, 1, 1});
  if (conv1_bias) check_shape(call.op, "conv1 bias", *conv1_bias, {call.size.C});
}

// Between kernels maps are of x's dtype, as the tensor cores want them; every kernel computes in fp32. The
// product is what backward would have to compute again: kept on demand, without bias.
inline std::tuple<Tensor, Tensor> fwd(const char* op, const Device& device, const Tensor& x, const Weights& w,
                                      const Tensor& conv1_weight, const MaybeTensor& conv1_bias,
                                      int64_t dilation, bool keep_product) {
  Call call(op, device, x, w, dilation);
  check_conv1(call, conv1_weight, conv1_bias);
  Tensor y = call.empty_like_x();
  Tensor product = keep_product ? call.empty_like_x() : stable::new_empty(call.x, {0});
  if (call.empty()) return {y, product};

  const Tensor weight = call.held_matrix("conv1 weight", conv1_weight);
  const void* bias = call.bias("conv1 bias", conv1_bias);
  const int64_t at_once =
      images_by_tiles(call, lska_images_at_once(call.size, device.limits, int64_t(call.x.element_size())));
  Tensor s = call.elements(at_once * call.image);
  Tensor scratch = keep_product ? product : call.elements(at_once * call.image);
  for (int64_t first = 0; first < call.size.B; first += at_once) {
    const int64_t count = std::min(at_once, call.size.B - first), kept = keep_product ? first : 0;
    call.cascade(call.at(call.x, first), count, s.mutable_data_ptr());
    conv1(call, weight, false, s, 0, scratch, kept * call.image, count);
    call.gate(call.at(call.x, first), call.at(scratch, kept), bias, call.at(y, first), count);
  }
  return {y, product};
}

}  // namespace lska_ops::lska_cuda
