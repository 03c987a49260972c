// ACmix on CPU: launchers. They check, allocate, and share the kernels' units out among the threads; every
// unit gives the same bits on any thread, and partial sums are added in the order of their units.
#include <tuple>

#include "csrc/acmix/cpu_kernels.h"
#include "csrc/acmix/cpu_paths.h"
#include "csrc/common/box.h"
#include "csrc/common/cpu_host.h"
#include "csrc/common/isa.h"

namespace lska_ops {
namespace {

AcmixCpuKernels kernels_for(Dtype dtype) {
#if defined(__x86_64__)
  if (current_isa() == Isa::avx512) return avx512::acmix_cpu_kernels(dtype);
  if (current_isa() == Isa::avx2) return avx2::acmix_cpu_kernels(dtype);
#endif
  return baseline::acmix_cpu_kernels(dtype);
}

// run(first, last, scratch) over the units, `bytes` of scratch for each thread.
template <typename Run>
void share_out(int64_t units, int64_t bytes, const Run& run) {
  parallel_for(0, units, 1, [&](int64_t first, int64_t last) {
    const Scratch scratch = new_scratch(bytes);
    run(first, last, scratch.get());
  });
}

// The parameters as the ops receive them.
struct Parameters {
  MaybeTensor conv_p, fc, dep_conv, rate1, rate2;
  int64_t head, kernel_att, stride, dilation;
};

// One checked call; of a half that is absent the tensors are empty and the sizes 0.
struct Problem {
  const char* op;
  Tensor qkv, conv_p, fc, dep_conv, rate1, rate2;
  ScalarType type, accumulate_type;
  bool attends, shifts;
  AcmixSizes s;
  AcmixWeights weights;
  AcmixCpuKernels kernels;

  Problem(const char* name, const Tensor& qkv_, const Parameters& p) : op(name), qkv(qkv_) {
    const Dtype dtype = dtype_of(op, "qkv", qkv);
    type = qkv.scalar_type();
    accumulate_type = dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float;
    attends = bool(p.rate1), shifts = bool(p.rate2);
    STD_TORCH_CHECK(attends || shifts, op, ": rate1 and rate2 are missing; expected at least one of them");
    STD_TORCH_CHECK(bool(p.conv_p) == attends, op,
                    ": one of conv_p and rate1 is missing; expected both or none");
    STD_TORCH_CHECK(bool(p.fc) == shifts && bool(p.dep_conv) == shifts, op,
                    ": some of fc, dep_conv and rate2 are missing; expected all or none");
    check_options(p);
    set_sizes(p);
    conv_p = take("conv_p", p.conv_p, {s.D, 2, 1, 1});
    fc = take("fc", p.fc, {s.kernel_conv * s.kernel_conv, 3 * s.G, 1, 1});
    dep_conv =
        take("dep_conv", p.dep_conv, {s.C, s.kernel_conv * s.kernel_conv, s.kernel_conv, s.kernel_conv});
    rate1 = take("rate1", p.rate1, {1});
    rate2 = take("rate2", p.rate2, {1});
    qkv = stable::contiguous(qkv);
    const auto data = [](const Tensor& t) { return t.numel() ? t.const_data_ptr() : nullptr; };
    weights = {data(conv_p), data(fc), data(dep_conv), data(rate1), data(rate2)};
    kernels = kernels_for(dtype);
  }

  void check_options(const Parameters& p) const {
    STD_TORCH_CHECK(qkv.is_cpu(), op, ": qkv is not on the CPU; expected a CPU tensor");
    STD_TORCH_CHECK(p.head > 0 && p.stride > 0 && p.dilation > 0 && p.kernel_att > 0 && p.kernel_att % 2 == 1,
                    op, ": head = ", p.head, ", kernel_att = ", p.kernel_att, ", stride = ", p.stride,
                    ", dilation = ", p.dilation, "; expected positive numbers, kernel_att odd");
    STD_TORCH_CHECK(qkv.dim() == 4 && qkv.size(1) % (3 * p.head) == 0 && qkv.size(1) > 0 && qkv.size(2) > 0 &&
                        qkv.size(3) > 0,
                    op, ": qkv has shape ", in_words(qkv.sizes()),
                    "; expected [B, 3C, H, W], nothing but B zero, C divisible by head = ", p.head);
    STD_TORCH_CHECK(!shifts || (p.dep_conv->dim() == 4 && p.dep_conv->size(3) % 2 == 1), op,
                    ": dep_conv has shape ", p.dep_conv ? in_words(p.dep_conv->sizes()) : "",
                    "; expected [C, k * k, k, k] with k odd");
  }

  void set_sizes(const Parameters& p) {
    const int64_t C = qkv.size(1) / 3, H = qkv.size(2), W = qkv.size(3), G = p.head, stride = p.stride;
    const int64_t K = attends ? p.kernel_att : 0, k = shifts ? p.dep_conv->size(3) : 0;
    s = {qkv.size(0), C, H,      W,         (H + stride - 1) / stride, (W + stride - 1) / stride, G, C / G,
         K,           k, stride, p.dilation};
    const int64_t width = W + 2 * (K / 2 * p.dilation + k);
    STD_TORCH_CHECK(width < (1 << 24) && K * K * width < (1 << 30) &&
                        3 * G * k * (k + kAcmixLargestBand * stride) * width < (1 << 30),
                    op, ": qkv has shape ", in_words(qkv.sizes()), "; that is too wide for this kernel_att");
  }

  // t, checked and contiguous; [0] where its half is absent.
  Tensor take(const char* name, const MaybeTensor& t, std::initializer_list<int64_t> shape) const {
    if (!t) return empty_of({0}, type);
    check_shape(op, name, *t, shape);
    check_like(op, name, *t, qkv);
    return stable::contiguous(*t);
  }

  // dep_conv after fc, as the kernels read it.
  Tensor composite(bool transposed) const {
    if (!shifts) return fc;  // empty
    Tensor out = empty_of({s.C * 3 * s.G * s.kernel_conv * s.kernel_conv}, accumulate_type);
    void* to = out.mutable_data_ptr();
    share_out(s.D, kernels.compose_scratch(s), [&](int64_t first, int64_t last, void* scratch) {
      kernels.compose(s, weights, transposed, to, first, last, scratch);
    });
    return out;
  }

  int64_t band() const { return acmix_forward_band(s.B, s.Ho, stable::get_num_threads()); }
};

std::tuple<Tensor, Tensor> acmix_core_fwd_cpu(const Tensor& qkv, const MaybeTensor& conv_p,
                                              const MaybeTensor& fc, const MaybeTensor& dep_conv,
                                              const MaybeTensor& rate1, const MaybeTensor& rate2,
                                              int64_t head, int64_t kernel_att, int64_t stride,
                                              int64_t dilation) {
  const Problem p("acmix", qkv, {conv_p, fc, dep_conv, rate1, rate2, head, kernel_att, stride, dilation});
  const AcmixSizes& s = p.s;
  Tensor y = empty_of({s.B, s.C, s.Ho, s.Wo}, p.type);
  Tensor lse =
      p.attends ? empty_of({s.B, s.G, s.Ho, s.Wo}, p.accumulate_type) : empty_of({0}, p.accumulate_type);
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

// The input's gradient and attention's parameters', then the shift branch's.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> acmix_core_bwd_cpu(
    const Tensor& grad_y_, const Tensor& qkv, const Tensor& lse_, const MaybeTensor& conv_p,
    const MaybeTensor& fc, const MaybeTensor& dep_conv, const MaybeTensor& rate1, const MaybeTensor& rate2,
    int64_t head, int64_t kernel_att, int64_t stride, int64_t dilation) {
  const Problem p("acmix", qkv, {conv_p, fc, dep_conv, rate1, rate2, head, kernel_att, stride, dilation});
  const AcmixSizes& s = p.s;
  check_shape(p.op, "grad_y", grad_y_, {s.B, s.C, s.Ho, s.Wo});
  check_like(p.op, "grad_y", grad_y_, p.qkv);
  if (p.attends) {
    check_shape(p.op, "lse", lse_, {s.B, s.G, s.Ho, s.Wo});
    STD_TORCH_CHECK(lse_.is_cpu() && lse_.scalar_type() == p.accumulate_type, p.op, ": lse has dtype ",
                    headeronly::toString(lse_.scalar_type()), "; expected ",
                    headeronly::toString(p.accumulate_type), " on the CPU, as the forward pass returned it");
  }
  const Tensor grad_y = stable::contiguous(grad_y_), lse = stable::contiguous(lse_);
  Tensor grad_qkv = empty_of({s.B, 3 * s.C, s.H, s.W}, p.type);
  Tensor grad_conv_p = stable::empty_like(p.conv_p), grad_fc = stable::empty_like(p.fc),
         grad_dep_conv = stable::empty_like(p.dep_conv), grad_rate1 = stable::empty_like(p.rate1),
         grad_rate2 = stable::empty_like(p.rate2);
  const auto sum = [&](const Tensor& parts, int64_t count, bool transposed, Tensor& out) {
    p.kernels.sum_parts(parts.const_data_ptr(), count, out.numel(), transposed, out.mutable_data_ptr());
  };
  {
    const int64_t heads = s.B * s.G;
    const Tensor composite = p.composite(true);
    Tensor conv_p_parts = empty_of({heads, grad_conv_p.numel()}, p.accumulate_type),
           rate1_parts = empty_of({heads, grad_rate1.numel()}, p.accumulate_type);
    const AcmixInputGrad io = {grad_y.const_data_ptr(),       p.qkv.const_data_ptr(),
                               lse.const_data_ptr(),          composite.const_data_ptr(),
                               grad_qkv.mutable_data_ptr(),   conv_p_parts.mutable_data_ptr(),
                               rate1_parts.mutable_data_ptr()};
    share_out(heads, p.kernels.input_grad_scratch(s), [&](int64_t first, int64_t last, void* scratch) {
      p.kernels.input_grad(s, p.weights, io, first, last, scratch);
    });
    if (p.attends) {
      sum(conv_p_parts, heads, true, grad_conv_p);
      sum(rate1_parts, heads, false, grad_rate1);
    }
  }
  if (p.shifts) {
    Tensor fc_parts = empty_of({s.D, grad_fc.numel()}, p.accumulate_type),
           rate2_parts = empty_of({s.D}, p.accumulate_type);
    const AcmixShiftGrad io = {grad_y.const_data_ptr(), p.qkv.const_data_ptr(),
                               grad_dep_conv.mutable_data_ptr(), fc_parts.mutable_data_ptr(),
                               rate2_parts.mutable_data_ptr()};
    share_out(s.D, p.kernels.shift_grad_scratch(s), [&](int64_t first, int64_t last, void* scratch) {
      p.kernels.shift_grad(s, p.weights, io, first, last, scratch);
    });
    sum(fc_parts, s.D, false, grad_fc);
    sum(rate2_parts, s.D, false, grad_rate2);
  }
  return {grad_qkv, grad_conv_p, grad_fc, grad_dep_conv, grad_rate1, grad_rate2};
}

}  // namespace
}  // namespace lska_ops

STABLE_TORCH_LIBRARY_IMPL(lska_ops, CPU, m) {
  m.impl("acmix_core_fwd_cpu", LSKA_OPS_BOX(&lska_ops::acmix_core_fwd_cpu));
  m.impl("acmix_core_bwd_cpu", LSKA_OPS_BOX(&lska_ops::acmix_core_bwd_cpu));
}
