// The device of the host-run ops: the CPU, with the limits that configure() has set.
#pragma once

#include "csrc/common/gpu_launch.h"

namespace lska_ops::gpu {

inline GpuLimits host_limits{232448, 132, 50 << 20};

struct OnHost {
  Device device{host_limits, nullptr};
  OnHost(const char* op, const char* name, const Tensor& x) {
    STD_TORCH_CHECK(x.is_cpu(), op, ": ", name, " is on ", where(x),
                    "; expected it on the CPU, as this is the host-run build");
  }
};

}  // namespace lska_ops::gpu
