// ACmix on CPU: launchers. They check, allocate, and share the kernels' units out among the threads; every
// unit gives the same bits on any thread, and partial sums are added in the order of their units.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <memory>
#include <new>
#include <numeric>
#include <tuple>

#include "csrc/acmix/cpu_kernels.h"
#include "csrc/common/check.h"
#include "csrc/common/isa.h"

namespace lska_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kLargestBand =
    9;  // output rows whose keys, values and results stay in a 512 KiB cache at 64x80x80

AcmixCpuKernels kernels_for(Dtype dtype) {
#if defined(__x86_64__)
  if (current_isa() == Isa::avx512) return avx512::acmix_cpu_kernels(dtype);
  if (current_isa() == Isa::avx2) return avx2::acmix_cpu_kernels(dtype);
#endif
  return baseline::acmix_cpu_kernels(dtype);
}

Dtype dtype_of(const char* op, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::Double:
      return Dtype::f64;
    case ScalarType::Half:
      return Dtype::f16;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    default:
      STD_TORCH_CHECK(false, op, ": qkv has dtype ", torch::headeronly::toString(x.scalar_type()),
                      "; expected float32, float64, float16 or bfloat16");
  }
}

Tensor empty_of(std::initializer_list<int64_t> shape, ScalarType dtype) {
  return torch::stable::empty({shape.begin(), shape.size()}, dtype, std::nullopt,
                              torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

// run(first, last, scratch) over the units, `bytes` of scratch for each thread.
template <typename Run>
void share_out(int64_t units, int64_t bytes, const Run& run) {
  struct Free {
    void operator()(char* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  torch::stable::parallel_for(0, units, 1, [&](int64_t first, int64_t last) {
    const std::unique_ptr<char, Free> scratch(
        static_cast<char*>(::operator new(bytes, std::align_val_t(64))));
    run(first, last, scratch.get());
  });
}

// One checked call.
struct Problem {
  const char* op;
  Tensor qkv, conv_p, fc, dep_conv, rate1, rate2;
  ScalarType type, accumulate_type;
  AcmixSizes s;
  AcmixWeights weights;
  AcmixCpuKernels kernels;

  Problem(const char* name, const Tensor& qkv_, const Tensor& conv_p_, const Tensor& fc_,
          const Tensor& dep_conv_, const Tensor& rate1_, const Tensor& rate2_, int64_t head,
          int64_t kernel_att, int64_t stride, int64_t dilation)
      : op(name), qkv(qkv_), conv_p(conv_p_), fc(fc_), dep_conv(dep_conv_), rate1(rate1_), rate2(rate2_) {
    const Dtype dtype = dtype_of(op, qkv);
    type = qkv.scalar_type();
    accumulate_type = dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float;
    STD_TORCH_CHECK(qkv.is_cpu(), op, ": qkv is not on the CPU; expected a CPU tensor");
    STD_TORCH_CHECK(head > 0 && stride > 0 && dilation > 0 && kernel_att > 0 && kernel_att % 2 == 1, op,
                    ": head = ", head, ", kernel_att = ", kernel_att, ", stride = ", stride,
                    ", dilation = ", dilation, "; expected positive numbers, kernel_att odd");
    STD_TORCH_CHECK(qkv.dim() == 4 && qkv.size(1) % (3 * head) == 0 && qkv.size(1) > 0 && qkv.size(2) > 0 &&
                        qkv.size(3) > 0,
                    op, ": qkv has shape ", in_words(qkv.sizes()),
                    "; expected [B, 3C, H, W], nothing but B zero, C divisible by head = ", head);
    STD_TORCH_CHECK(dep_conv.dim() == 4 && dep_conv.size(3) % 2 == 1, op, ": dep_conv has shape ",
                    in_words(dep_conv.sizes()), "; expected [C, k * k, k, k] with k odd");
    const int64_t C = qkv.size(1) / 3, H = qkv.size(2), W = qkv.size(3), k = dep_conv.size(3);
    s = {
        qkv.size(0), C, H,      W,       (H + stride - 1) / stride, (W + stride - 1) / stride, head, C / head,
        kernel_att,  k, stride, dilation};
    const int64_t width = W + 2 * (kernel_att / 2 * dilation + k);
    STD_TORCH_CHECK(width < (1 << 24) && kernel_att * kernel_att * width < (1 << 30) &&
                        3 * head * k * (k + kLargestBand * stride) * width < (1 << 30),
                    op, ": qkv has shape ", in_words(qkv.sizes()), "; that is too wide for this kernel_att");
    check_shape(op, "conv_p", conv_p, {s.D, 2, 1, 1});
    check_shape(op, "fc", fc, {k * k, 3 * head, 1, 1});
    check_shape(op, "dep_conv", dep_conv, {C, k * k, k, k});
    const std::pair<const char*, Tensor*> named[] = {
        {"conv_p", &conv_p}, {"fc", &fc}, {"dep_conv", &dep_conv}, {"rate1", &rate1}, {"rate2", &rate2}};
    for (const auto& [what, t] : named) {
      check_like(op, what, *t, qkv);
      *t = torch::stable::contiguous(*t);
    }
    for (const Tensor* rate : {&rate1, &rate2}) {
      STD_TORCH_CHECK(rate->numel() == 1, op, ": a rate has shape ", in_words(rate->sizes()),
                      "; expected [1]");
    }
    qkv = torch::stable::contiguous(qkv);
    weights = {conv_p.const_data_ptr(), fc.const_data_ptr(), dep_conv.const_data_ptr(),
               rate1.const_data_ptr(), rate2.const_data_ptr()};
    kernels = kernels_for(dtype);
  }

  // dep_conv after fc, as the kernels read it.
  Tensor composite(bool transposed) const {
    Tensor out = empty_of({s.C * 3 * s.G * s.kernel_conv * s.kernel_conv}, accumulate_type);
    void* to = out.mutable_data_ptr();
    share_out(s.D, kernels.compose_scratch(s), [&](int64_t first, int64_t last, void* scratch) {
      kernels.compose(s, weights, transposed, to, first, last, scratch);
    });
    return out;
  }

  // Rows in a band of the forward pass: as many bands as keep all threads equally busy.
  int64_t band() const {
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t wanted = threads / std::gcd(s.B, threads);
    const int64_t bands = wanted * ((s.Ho + wanted * kLargestBand - 1) / (wanted * kLargestBand));
    return (s.Ho + bands - 1) / bands;
  }
};

std::tuple<Tensor, Tensor> acmix_core_fwd_cpu(const Tensor& qkv, const Tensor& conv_p, const Tensor& fc,
                                              const Tensor& dep_conv, const Tensor& rate1,
                                              const Tensor& rate2, int64_t head, int64_t kernel_att,
                                              int64_t stride, int64_t dilation) {
  const Problem p("acmix", qkv, conv_p, fc, dep_conv, rate1, rate2, head, kernel_att, stride, dilation);
  const AcmixSizes& s = p.s;
  Tensor y = empty_of({s.B, s.C, s.Ho, s.Wo}, p.type),
         lse = empty_of({s.B, s.G, s.Ho, s.Wo}, p.accumulate_type);
  if (s.B == 0) return {y, lse};
  const Tensor composite = p.composite(false);
  const AcmixForward io = {p.qkv.const_data_ptr(), composite.const_data_ptr(), y.mutable_data_ptr(),
                           lse.mutable_data_ptr()};
  const int64_t band = p.band(), bands = (s.Ho + band - 1) / band;
  share_out(s.B * bands, p.kernels.forward_scratch(s, band), [&](int64_t first, int64_t last, void* scratch) {
    p.kernels.forward(s, p.weights, io, band, first, last, scratch);
  });
  return {y, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> acmix_core_bwd_cpu(
    const Tensor& grad_y_, const Tensor& qkv, const Tensor& lse_, const Tensor& conv_p, const Tensor& fc,
    const Tensor& dep_conv, const Tensor& rate1, const Tensor& rate2, int64_t head, int64_t kernel_att,
    int64_t stride, int64_t dilation) {
  const Problem p("acmix", qkv, conv_p, fc, dep_conv, rate1, rate2, head, kernel_att, stride, dilation);
  const AcmixSizes& s = p.s;
  check_shape(p.op, "grad_y", grad_y_, {s.B, s.C, s.Ho, s.Wo});
  check_like(p.op, "grad_y", grad_y_, p.qkv);
  check_shape(p.op, "lse", lse_, {s.B, s.G, s.Ho, s.Wo});
  STD_TORCH_CHECK(lse_.is_cpu() && lse_.scalar_type() == p.accumulate_type, p.op, ": lse has dtype ",
                  torch::headeronly::toString(lse_.scalar_type()), "; expected ",
                  torch::headeronly::toString(p.accumulate_type),
                  " on the CPU, as the forward pass returned it");
  const Tensor grad_y = torch::stable::contiguous(grad_y_), lse = torch::stable::contiguous(lse_);

  const int64_t fc_size = p.fc.numel();
  Tensor grad_qkv = empty_of({s.B, 3 * s.C, s.H, s.W}, p.type),
         grad_conv_p = empty_of({s.D, 2, 1, 1}, p.type);
  Tensor grad_fc = torch::stable::empty_like(p.fc), grad_dep_conv = torch::stable::empty_like(p.dep_conv);
  Tensor grad_rate1 = torch::stable::empty_like(p.rate1), grad_rate2 = torch::stable::empty_like(p.rate2);
  Tensor conv_p_parts = empty_of({s.B * s.G, 2, s.D}, p.accumulate_type);
  Tensor rate1_parts = empty_of({s.B * s.G}, p.accumulate_type);
  Tensor fc_parts = empty_of({s.D, fc_size}, p.accumulate_type),
         rate2_parts = empty_of({s.D}, p.accumulate_type);

  {
    const Tensor composite = p.composite(true);
    const AcmixInputGrad io = {grad_y.const_data_ptr(),       p.qkv.const_data_ptr(),
                               lse.const_data_ptr(),          composite.const_data_ptr(),
                               grad_qkv.mutable_data_ptr(),   conv_p_parts.mutable_data_ptr(),
                               rate1_parts.mutable_data_ptr()};
    share_out(s.B * s.G, p.kernels.input_grad_scratch(s), [&](int64_t first, int64_t last, void* scratch) {
      p.kernels.input_grad(s, p.weights, io, first, last, scratch);
    });
  }
  const AcmixShiftGrad io = {grad_y.const_data_ptr(), p.qkv.const_data_ptr(),
                             grad_dep_conv.mutable_data_ptr(), fc_parts.mutable_data_ptr(),
                             rate2_parts.mutable_data_ptr()};
  share_out(s.D, p.kernels.shift_grad_scratch(s), [&](int64_t first, int64_t last, void* scratch) {
    p.kernels.shift_grad(s, p.weights, io, first, last, scratch);
  });
  const auto sum = [&](const Tensor& parts, int64_t count, int64_t n, bool transposed, Tensor& out) {
    p.kernels.sum_parts(parts.const_data_ptr(), count, n, transposed, out.mutable_data_ptr());
  };
  sum(conv_p_parts, s.B * s.G, 2 * s.D, true, grad_conv_p);
  sum(fc_parts, s.D, fc_size, false, grad_fc);
  sum(rate1_parts, s.B * s.G, 1, false, grad_rate1);
  sum(rate2_parts, s.D, 1, false, grad_rate2);
  return {grad_qkv, grad_conv_p, grad_fc, grad_dep_conv, grad_rate1, grad_rate2};
}

}  // namespace
}  // namespace lska_ops

STABLE_TORCH_LIBRARY_IMPL(lska_ops, CPU, m) {
  m.impl("acmix_core_fwd_cpu", TORCH_BOX(&lska_ops::acmix_core_fwd_cpu));
  m.impl("acmix_core_bwd_cpu", TORCH_BOX(&lska_ops::acmix_core_bwd_cpu));
}
