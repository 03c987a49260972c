// All that csrc/ uses of torch, and the one place that knows in which form. With the stable ABI, from
// torch 2.11 on, the library runs in every later torch too. Before, the build defines LSKA_OPS_ATEN: the same
// names over ATen, and a library for the release that it was compiled with.
#pragma once

#include <optional>

#ifndef LSKA_OPS_ATEN

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

namespace lska_ops {

namespace headeronly = torch::headeronly;
namespace stable = torch::stable;

using MaybeTensor = std::optional<stable::Tensor>;
using DeviceGuard = stable::accelerator::DeviceGuard;

// out = a b, of one matrix or of each, by the vendor library.
inline void multiply(const stable::Tensor& a, const stable::Tensor& b, const stable::Tensor& out) {
  const char* name = a.dim() == 2 ? "aten::mm" : "aten::bmm";
  StableIValue stack[] = {stable::detail::from(a), stable::detail::from(b), stable::detail::from(out)};
  STD_TORCH_CHECK(torch_call_dispatcher(name, "out", stack, TORCH_ABI_VERSION) == 0, "lska: ", name,
                  ".out failed");
  stable::detail::to<stable::Tensor>(stack[0]);  // takes over the returned handle
}

// Where the fakes of the ops that are defined next are registered: only torch 2.3 wants to know.
template <class Library>
void fakes_in(Library&, const char*) {}

}  // namespace lska_ops

#else

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/api/include/torch/version.h>
#include <torch/library.h>

#ifndef STD_TORCH_CHECK  // torch 2.9 has it
#define STD_TORCH_CHECK TORCH_CHECK
#endif
#define STABLE_TORCH_LIBRARY TORCH_LIBRARY
#define STABLE_TORCH_LIBRARY_FRAGMENT TORCH_LIBRARY_FRAGMENT
#define STABLE_TORCH_LIBRARY_IMPL TORCH_LIBRARY_IMPL
#ifndef TORCH_BOX
#define TORCH_BOX(function) (function)
#endif

namespace lska_ops {

namespace headeronly {

using c10::DeviceType;
using c10::MemoryFormat;
using c10::ScalarType;
using c10::toString;
using IntHeaderOnlyArrayRef = c10::IntArrayRef;

}  // namespace headeronly

namespace stable {

using at::empty_like;
using at::get_num_threads;
using at::parallel_for;
using at::Tensor;
using c10::Device;

inline Tensor empty(c10::IntArrayRef shape, c10::ScalarType dtype, std::nullopt_t, Device device,
                    std::nullopt_t = std::nullopt, c10::MemoryFormat format = c10::MemoryFormat::Contiguous) {
  return at::empty(shape, at::dtype(dtype).device(device).memory_format(format));
}

inline Tensor new_empty(const Tensor& like, c10::IntArrayRef shape, c10::ScalarType dtype) {
  return empty(shape, dtype, std::nullopt, like.device());
}

inline Tensor new_empty(const Tensor& like, c10::IntArrayRef shape) {
  return new_empty(like, shape, like.scalar_type());
}

inline Tensor from_blob(void* data, c10::IntArrayRef shape, c10::IntArrayRef strides, Device device,
                        c10::ScalarType dtype) {
  const auto options = at::dtype(dtype).device(device);
  return at::for_blob(data, shape).strides(strides).target_device(device).options(options).make_tensor();
}

inline Tensor zero_(Tensor& t) { return t.zero_(); }

inline Tensor copy_(Tensor& to, const Tensor& from) { return to.copy_(from); }

inline Tensor contiguous(const Tensor& t) { return t.contiguous(); }

}  // namespace stable

using MaybeTensor = c10::optional<stable::Tensor>;  // a class of its own in torch 2.3

struct DeviceGuard : c10::DeviceGuard {
  explicit DeviceGuard(int32_t index)
      : c10::DeviceGuard(c10::Device(c10::DeviceType::CUDA, c10::DeviceIndex(index))) {}
};

// out = a b, of one matrix or of each, by the vendor library.
inline void multiply(const stable::Tensor& a, const stable::Tensor& b, stable::Tensor out) {
  a.dim() == 2 ? at::mm_out(out, a, b) : at::bmm_out(out, a, b);
}

inline void fakes_in(torch::Library& library, const char* module) {
#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 3
  library.impl_abstract_pystub(module);
#else
  (void)library, (void)module;
#endif
}

}  // namespace lska_ops

#endif
