// What the CPU launcher knows of the ACmix kernels: sizes, pointers, and one table of functions per
// instruction set and dtype. No torch header, and no function with a body: this file is seen by every
// instruction set.
#pragma once

#include <stdint.h>

#include "csrc/common/dtype.h"

namespace lska_ops {

// kernel_att 0: without attention, kernel_conv 0: without shift; then their pointers below are null.
struct AcmixSizes {
  int64_t B, C, H, W;  // of the input map
  int64_t Ho, Wo;      // of the output: ceil(H / stride), ceil(W / stride)
  int64_t G, D;        // heads, channels per head
  int64_t kernel_att, kernel_conv, stride, dilation;
};

// Weights as they are published; T is the dtype of all maps and weights, A is double for double, else float.
struct AcmixWeights {
  const void* conv_p;    // [D, 2] of T
  const void* fc;        // [Kc * Kc, 3G] of T
  const void* dep_conv;  // [D * G, Kc * Kc, Kc, Kc] of T
  const void* rate1;     // [1] of T
  const void* rate2;     // [1] of T
};

struct AcmixForward {
  const void* qkv;        // [B, 3C, H, W] of T
  const void* composite;  // [D, G * 3G * Kc * Kc] of A, as compose(..., false) leaves it
  void* y;                // [B, C, Ho, Wo] of T
  void* lse;              // [B, G, Ho, Wo] of A
};

struct AcmixInputGrad {
  const void* grad_y;     // [B, C, Ho, Wo] of T
  const void* qkv;        // [B, 3C, H, W] of T
  const void* lse;        // [B, G, Ho, Wo] of A
  const void* composite;  // [D, G * 3G * Kc * Kc] of A, as compose(..., true) leaves it
  void* grad_qkv;         // [B, 3C, H, W] of T
  void* conv_p_parts;     // [B * G, 2, D] of A
  void* rate1_parts;      // [B * G] of A
};

struct AcmixShiftGrad {
  const void* grad_y;   // [B, C, Ho, Wo] of T
  const void* qkv;      // [B, 3C, H, W] of T
  void* grad_dep_conv;  // [D * G, Kc * Kc, Kc, Kc] of T
  void* fc_parts;       // [D, Kc * Kc, 3G] of A
  void* rate2_parts;    // [D] of A
};

// Units may run in any order and on any thread; the result does not depend on it. Scratch is in bytes, for
// one thread, aligned to 64.
struct AcmixCpuKernels {
  int64_t (*compose_scratch)(const AcmixSizes&);
  // dep_conv after fc as one convolution; units: d in [0, D). transposed: for the gradient of its input.
  void (*compose)(const AcmixSizes&, const AcmixWeights&, bool transposed, void* composite, int64_t first,
                  int64_t last, void* scratch);
  int64_t (*forward_scratch)(const AcmixSizes&, int64_t band);
  // Units: bands of `band` output rows, B * ceil(Ho / band) of them.
  void (*forward)(const AcmixSizes&, const AcmixWeights&, const AcmixForward&, int64_t band, int64_t first,
                  int64_t last, void* scratch);
  int64_t (*input_grad_scratch)(const AcmixSizes&);
  // Units: b * G + g.
  void (*input_grad)(const AcmixSizes&, const AcmixWeights&, const AcmixInputGrad&, int64_t first,
                     int64_t last, void* scratch);
  int64_t (*shift_grad_scratch)(const AcmixSizes&);
  // Units: d in [0, D).
  void (*shift_grad)(const AcmixSizes&, const AcmixWeights&, const AcmixShiftGrad&, int64_t first,
                     int64_t last, void* scratch);
  // parts [count, n] of A summed in order into out [n] of T; with transposed, parts are [count, 2, n / 2] and
  // out [n / 2, 2].
  void (*sum_parts)(const void* parts, int64_t count, int64_t n, bool transposed, void* out);
};

namespace avx512 {
AcmixCpuKernels acmix_cpu_kernels(Dtype);
}
namespace avx2 {
AcmixCpuKernels acmix_cpu_kernels(Dtype);
}
namespace baseline {
AcmixCpuKernels acmix_cpu_kernels(Dtype);
}

}  // namespace lska_ops
