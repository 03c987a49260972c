// What the launcher may call: plain pointers and sizes, the same for every instruction set and dtype.
// T is the dtype of the maps and weights, A the one it is computed in (fp32 for fp16 and bf16, else T).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "csrc/common/dtype.h"

namespace lska_ops {

// One image is [C, H, W], or [H, W, C] where channels_last. LSKA-trivial has no dilated pair: k1 = 0.
struct LskaShape {
  int C, H, W, k0, k1, dilation;
  bool channels_last;
};

// Of T, contiguous; a bias may be null, and so are the last four where k1 = 0.
struct LskaTaps {
  const void *conv0h, *conv0h_bias;                  // [C, k0], [C]
  const void *conv0v, *conv0v_bias;                  // [C, k0], [C]
  const void *conv_spatial_h, *conv_spatial_h_bias;  // [C, k1], [C]
  const void *conv_spatial_v, *conv_spatial_v_bias;  // [C, k1], [C]
};

// One image's gradients, of A and of the same shapes; the last four are written even where k1 = 0 (k counts
// as 1).
struct LskaTapGrads {
  void *conv0h, *conv0h_bias, *conv0v, *conv0v_bias;
  void *conv_spatial_h, *conv_spatial_h_bias, *conv_spatial_v, *conv_spatial_v_bias;
};

// A block of pixels of one image as the matrix the 1x1 product sees: rows are channels, or pixels where
// channels_last.
struct GateBlock {
  int64_t rows, cols, stride;  // of x, y, grad_y
  int64_t product_stride;      // of the product (forward) or of grad_product (backward)
  bool channels_in_rows;
};

// `block` counts groups of `lanes` channels; `end` is one past the last element of the whole tensor x is part
// of.
struct LskaCpuKernels {
  int lanes;
  size_t (*fwd_workspace_bytes)(const LskaShape&);
  size_t (*bwd_workspace_bytes)(const LskaShape&);
  // s [image] of A if `accumulate`, else of T
  void (*cascade_fwd)(const LskaShape&, const LskaTaps&, const void* x, const void* end, void* s,
                      bool accumulate, int block, void* workspace);
  // ds, product [image] of A, bias [C] of A
  void (*cascade_bwd)(const LskaShape&, const LskaTaps&, const void* x, const void* end, const void* ds,
                      const void* ds_end, const void* grad_y, const void* product, const void* bias,
                      void* grad_x, const LskaTapGrads& grads, int block, void* workspace);
  // y = x * (product + bias); y may be the product itself where T is A
  void (*gate_fwd)(const GateBlock&, const void* x, const void* product, const void* bias, void* y);
  // grad_product = grad_y * x; sums [C] of A are grad_product summed over the block's pixels
  void (*gate_bwd)(const GateBlock&, const void* grad_y, const void* x, void* grad_product, void* sums);
  void (*to_accumulate)(const void* in, void* out, int64_t n);  // T -> A
  void (*add)(void* sum, const void* part, int64_t n);          // A
  // out[i] = parts[i] + parts[i + stride] + ... in this order; A -> T
  void (*sum_parts)(const void* parts, int64_t count, int64_t stride, int64_t n, void* out);
};

namespace baseline {
LskaCpuKernels lska_cpu_kernels(Dtype dtype);
}
namespace avx2 {
LskaCpuKernels lska_cpu_kernels(Dtype dtype);
}
namespace avx512 {
LskaCpuKernels lska_cpu_kernels(Dtype dtype);
}

}  // namespace lska_ops
