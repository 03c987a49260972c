// What tests/ptx asks of this library: to hand launches over, and where the tensors end that kernels may
// reach.
// c10 is none of the stable ABI that the launchers keep to.
#undef TORCH_TARGET_VERSION
#include <c10/core/CPUAllocator.h>

#include <cstring>
#include <map>
#include <mutex>

#include "runner.h"

namespace {

constexpr size_t kBehind = 4096;  // bytes that no tensor has, behind each
// A tensor begins where torch's allocator of CUDA lets it: how many lines of memory a request touches is
// counted.
constexpr size_t kAlignment = 512;

struct Tensor {
  size_t bytes;
  void* allocated;
};

// torch's allocator, whose tensors are known and hold NaN until somebody writes.
struct Watched final : c10::Allocator {
  std::map<uintptr_t, Tensor> tensors;
  std::mutex mutex;
  c10::Allocator* const own = c10::GetDefaultCPUAllocator();

  c10::DataPtr allocate(size_t bytes) override;
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
  c10::DeleterFnPtr raw_deleter() const override { return &let_go; }
  static void let_go(void* data);
};

Watched& watched() {
  static Watched* const one = new Watched;  // tensors may outlive what is static
  return *one;
}

void Watched::let_go(void* data) {
  void* allocated;
  {
    const std::lock_guard<std::mutex> lock(watched().mutex);
    const auto found = watched().tensors.find(reinterpret_cast<uintptr_t>(data));
    allocated = found->second.allocated;
    watched().tensors.erase(found);
  }
  watched().own->raw_deallocate(allocated);
}

c10::DataPtr Watched::allocate(size_t bytes) {
  void* const allocated = own->raw_allocate(bytes + kBehind + kAlignment);
  const uintptr_t from = reinterpret_cast<uintptr_t>(allocated);
  const uintptr_t address = (from + kAlignment - 1) / kAlignment * kAlignment;
  void* const data = reinterpret_cast<void*>(address);
  std::memset(data, 0xff, bytes);
  const std::lock_guard<std::mutex> lock(mutex);
  tensors[address] = {bytes, allocated};
  return {data, data, &let_go, c10::DeviceType::CPU};
}

}  // namespace

#define HOST_CUDA_VISIBLE extern "C" __attribute__((visibility("default")))

HOST_CUDA_VISIBLE void host_cuda_take_over(host_cuda::TakesOver by) { host_cuda::takes_over = by; }

// From now on tensors are known, or no longer.
HOST_CUDA_VISIBLE void host_cuda_watch(int on) { c10::SetCPUAllocator(on ? &watched() : watched().own, 255); }

// Address and size of up to `most` tensors; returns how many there are.
HOST_CUDA_VISIBLE int64_t host_cuda_tensors(int64_t* pairs, int64_t most) {
  const std::lock_guard<std::mutex> lock(watched().mutex);
  int64_t n = 0;
  for (const auto& [address, tensor] : watched().tensors)
    if (n++ < most) pairs[2 * n - 2] = int64_t(address), pairs[2 * n - 1] = int64_t(tensor.bytes);
  return n;
}
