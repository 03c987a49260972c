// What the launchers of every op share: tensors, layouts, dtypes, and the start of a kernel.
#pragma once

#include "csrc/common/check.h"
#include "csrc/common/gpu.h"
#include "csrc/common/portable.cuh"

namespace lska_ops::gpu {

using headeronly::ScalarType;
using stable::Tensor;

struct Device {
  GpuLimits limits;
  void* stream;
};

inline bool channels_last_in_memory(const Tensor& x) {
  const int64_t C = x.size(1), H = x.size(2), W = x.size(3);
  const auto fits = [&](int64_t dim, int64_t stride) { return x.size(dim) == 1 || x.stride(dim) == stride; };
  return !x.is_contiguous() && fits(1, 1) && fits(3, C) && fits(2, W * C) && fits(0, H * W * C);
}

inline Tensor empty_map(const Tensor& like, headeronly::MemoryFormat format) {
  return stable::empty(like.sizes(), like.scalar_type(), std::nullopt, like.device(), std::nullopt, format);
}

inline Tensor in_nchw(const Tensor& t) {
  if (t.is_contiguous()) return t;
  Tensor copy = empty_map(t, headeronly::MemoryFormat::Contiguous);
  return stable::copy_(copy, t);
}

// What f(op, device) answers on the device of map x, called `name`. Where PyTorch fails inside of it, the
// stable ABI of torch before 2.13 says where but not why, and what trains with ever smaller batches looks for
// these words.
template <class OnDevice, class F>
auto called(const char* op, const char* name, const Tensor& x, const F& f) {
  const OnDevice on(op, name, x);
  try {
    return f(op, on.device);
  } catch (const std::exception& error) {
    const std::string said = error.what();
    const auto says = [&](const char* words) { return said.find(words) != std::string::npos; };
    STD_TORCH_CHECK(says("out of memory") || !(says("API call failed") || says(".out failed")), op,
                    ": PyTorch failed in it, most often because the device is out of memory: ",
                    said.substr(0, said.find('\n')));
    throw;
  }
}

template <class T>
struct Type {
  using type = T;
};
template <class F>
void with_dtype(ScalarType type, const F& f) {
  if (type == ScalarType::Float) return f(Type<float>{});
  if (type == ScalarType::Half) return f(Type<Half>{});
  f(Type<BFloat16>{});
}

template <class Arguments>
void start(const char* op, const Device& device, void (*kernel)(Arguments), LaunchGrid grid, int threads,
           int64_t shared, const Arguments& arguments) {
  const char* problem =
      launch(kernel, grid, threads, shared, device.limits.shared_bytes, device.stream, arguments);
  STD_TORCH_CHECK(!problem, op, ": a kernel could not be started: ", problem ? problem : "");
}

}  // namespace lska_ops::gpu
