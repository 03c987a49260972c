// LSKA on CPU: launchers. The cascade runs in parallel over groups of channels, the 1x1 product and the gate
// over blocks of pixels, a few images at a time, so that what one stage writes the next one finds in cache.
#include <algorithm>
#include <tuple>

#include "csrc/lska/cpu_host.h"
#include "csrc/lska/cpu_paths.h"

namespace lska_ops {
namespace {

constexpr int64_t kChunkBytes =
    2 << 20;  // of one map of fp32: what stays in the outer cache between two stages

LskaCpuKernels kernels_for(Isa isa, Dtype dtype) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return avx512::lska_cpu_kernels(dtype);
  if (isa == Isa::avx2) return avx2::lska_cpu_kernels(dtype);
#endif
  return baseline::lska_cpu_kernels(dtype);
}

Isa forward_isa(const LskaShape& shape, int64_t accumulate) {
  return lska_prefers_32_bytes(shape, int(accumulate)) ? std::min(current_isa(), Isa::avx2) : current_isa();
}

// Maps between two stages. Few bytes outlive the call: mapped anew, they would cost as much as a stage.
class Maps {
 public:
  Maps(int64_t count, int64_t bytes)
      : bytes_((bytes + 63) / 64 * 64),
        own_(empty_of({lasting(count) ? 0 : count * bytes_}, ScalarType::Byte)) {
    data_ = static_cast<char*>(lasting(count) ? workspace<1>(size_t(count * bytes_)) : own_.data_ptr());
  }
  char* operator[](int64_t i) const { return data_ + i * bytes_; }

 private:
  bool lasting(int64_t count) const { return count * bytes_ <= 4 * kChunkBytes; }
  int64_t bytes_;
  Tensor own_;
  char* data_;
};

// One checked call: sizes, pointers, and how its memory is laid out.
struct Problem {
  const char* op;
  Tensor x;
  LskaShape shape;
  Dtype dtype;
  ScalarType type, accumulate_type;
  LskaCpuKernels kernels, forward;  // forward: of the cascade
  LskaTaps taps{};
  int64_t images, pixels, image, element, accumulate;  // sizes: of an image in elements, of T and A in bytes
  int blocks;                                          // groups of channels
  std::vector<Tensor> held;

  Problem(const char* name, const Tensor& given, const LskaWeights& w, int64_t dilation)
      : op(name), x(given) {
    STD_TORCH_CHECK(x.is_cpu(), op, ": x is not on the CPU; expected a CPU tensor");
    STD_TORCH_CHECK(x.dim() == 4, op, ": x has shape ", in_words(x.sizes()), "; expected [B, C, H, W]");
    dtype = dtype_of(op, "x", x);
    type = x.scalar_type();
    accumulate_type = dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float;
    const bool channels_last = !x.is_contiguous() && is_channels_last(x);
    x = in_order(x, channels_last);
    images = x.size(0);
    const int64_t C = x.size(1), H = x.size(2), W = x.size(3);
    STD_TORCH_CHECK(C < (1 << 30) && H < (1 << 30) && W < (1 << 30), op, ": x has shape ",
                    in_words(x.sizes()), "; expected sides below 2^30");
    STD_TORCH_CHECK(dilation >= 1, op, ": dilation is ", dilation, "; expected at least 1");
    const int64_t k0 = w.conv0h.dim() == 4 ? w.conv0h.size(3) : 0;
    const int64_t k1 = w.conv_spatial_h && w.conv_spatial_h->dim() == 4 ? w.conv_spatial_h->size(3) : 0;
    STD_TORCH_CHECK(bool(w.conv_spatial_h) == bool(w.conv_spatial_v), op,
                    ": one of conv_spatial_h and conv_spatial_v is missing; expected both or none");
    // Further apart than the map is wide, taps beside the middle reach nothing, however far they are.
    const int64_t reach = std::max<int64_t>({1, H, W});
    shape = {int(C), int(H), int(W), int(k0), int(k1), int(std::min(dilation, reach)), channels_last};
    taps.conv0h = weight("conv0h weight", w.conv0h, k0, false);
    taps.conv0h_bias = bias("conv0h bias", w.conv0h_bias);
    taps.conv0v = weight("conv0v weight", w.conv0v, k0, true);
    taps.conv0v_bias = bias("conv0v bias", w.conv0v_bias);
    if (w.conv_spatial_h) {
      taps.conv_spatial_h = weight("conv_spatial_h weight", *w.conv_spatial_h, k1, false);
      taps.conv_spatial_h_bias = bias("conv_spatial_h bias", w.conv_spatial_h_bias);
      taps.conv_spatial_v = weight("conv_spatial_v weight", *w.conv_spatial_v, k1, true);
      taps.conv_spatial_v_bias = bias("conv_spatial_v bias", w.conv_spatial_v_bias);
    }
    pixels = H * W;
    image = C * pixels;
    element = int64_t(x.element_size());
    accumulate = dtype == Dtype::f64 ? 8 : 4;
    kernels = kernels_for(current_isa(), dtype);
    forward = kernels_for(forward_isa(shape, accumulate), dtype);
    blocks = int((C + kernels.lanes - 1) / kernels.lanes);
  }

  bool empty() const { return images * image == 0; }
  const void* weight(const char* name, const Tensor& t, int64_t k, bool vertical) {
    STD_TORCH_CHECK(k % 2 == 1 && k < (1 << 20), op, ": ", name, " has shape ", in_words(t.sizes()),
                    "; expected an odd kernel size");
    if (vertical)
      check_shape(op, name, t, {shape.C, 1, k, 1});
    else
      check_shape(op, name, t, {shape.C, 1, 1, k});
    return hold(name, t);
  }
  const void* bias(const char* name, const MaybeTensor& t) {
    if (!t) return nullptr;
    check_shape(op, name, *t, {shape.C});
    return hold(name, *t);
  }
  const void* hold(const char* name, const Tensor& t) {
    check_like(op, name, t, x);
    held.push_back(in_order(t, false));
    return held.back().const_data_ptr();
  }
  // A tensor of x's shape, in x's order.
  Tensor map_like(const char* name, const Tensor& t) const {
    check_like(op, name, t, x);
    check_shape(op, name, t, {images, shape.C, shape.H, shape.W});
    return in_order(t, shape.channels_last);
  }
  // conv1's weight or bias in A, to be read only; a missing bias is zeros.
  Tensor in_accumulate(const char* name, const MaybeTensor& t, int64_t n) {
    if (t && type == accumulate_type) {
      hold(name, *t);
      return held.back();
    }
    Tensor out = empty_of({n}, accumulate_type);
    if (!t) return stable::zero_(out);
    kernels.to_accumulate(hold(name, *t), out.mutable_data_ptr(), n);
    return out;
  }

  int64_t images_at_once() const {
    return std::clamp<int64_t>(kChunkBytes / (image * accumulate), 1, images);
  }
  // A power of two of blocks of at most 1024 pixels: enough for several threads, and the product stays in
  // cache; the vendor library repacks the weights for each. It follows from the shape alone, for the order of
  // sums must not depend on the number of threads.
  int64_t pixel_blocks() const {
    int64_t n = 2;
    while (n * 1024 < pixels) n *= 2;
    return n;
  }
  std::pair<int64_t, int64_t> pixel_range(int64_t block) const {
    // Blocks end where cache lines do: one that two threads write to would go back and forth between them.
    const int64_t n = pixel_blocks();
    const auto end = [&](int64_t i) { return i == n ? pixels : pixels * i / n / 32 * 32; };
    return {end(block), end(block + 1)};
  }
  // Pixels [begin, end) of an image of A as a matrix: channels x pixels, or pixels x channels where
  // channels_last.
  Matrix matrix(char* image_data, int64_t begin, int64_t end) const {
    if (shape.channels_last)
      return {image_data + begin * shape.C * accumulate, end - begin, shape.C, shape.C, 1};
    return {image_data + begin * accumulate, shape.C, end - begin, pixels, 1};
  }
  int64_t first_element(int64_t begin) const { return shape.channels_last ? begin * shape.C : begin; }
  GateBlock gate(const Matrix& product) const {
    return {product.rows, product.cols, shape.channels_last ? int64_t(shape.C) : pixels, product.row_stride,
            !shape.channels_last};
  }
  // product = conv1 s for pixels [begin, end), or ds = conv1^T grad_product.
  void conv1(const Matrix& weights, const Matrix& in, const Matrix& out) const {
    if (shape.channels_last)
      multiply(in, weights.transposed(), out, accumulate_type);
    else
      multiply(weights, in, out, accumulate_type);
  }

  const char* x_data() const { return static_cast<const char*>(x.const_data_ptr()); }
  void cascade(int64_t first_image, int64_t count, char* s, bool accumulates) const {
    const char *data = x_data() + first_image * image * element, *end = x_data() + images * image * element;
    const int64_t s_image = image * (accumulates ? accumulate : element);
    const int64_t groups = (shape.C + forward.lanes - 1) / forward.lanes;
    for_each(count * groups, [&](int64_t i) {
      forward.cascade_fwd(shape, taps, data + i / groups * image * element, end, s + i / groups * s_image,
                          accumulates, int(i % groups), workspace(forward.fwd_workspace_bytes(shape)));
    });
  }
};

Tensor lska_cascade_fwd_cpu(const Tensor& x, const Tensor& conv0h, const MaybeTensor& conv0h_bias,
                            const Tensor& conv0v, const MaybeTensor& conv0v_bias,
                            const MaybeTensor& conv_spatial_h, const MaybeTensor& conv_spatial_h_bias,
                            const MaybeTensor& conv_spatial_v, const MaybeTensor& conv_spatial_v_bias,
                            int64_t dilation) {
  const Problem p("lska_cascade_fwd_cpu", x,
                  {conv0h, conv0h_bias, conv0v, conv0v_bias, conv_spatial_h, conv_spatial_h_bias,
                   conv_spatial_v, conv_spatial_v_bias},
                  dilation);
  Tensor s = stable::empty_like(p.x);
  if (!p.empty()) p.cascade(0, p.images, static_cast<char*>(s.mutable_data_ptr()), false);
  return s;
}

// The product is what backward would have to compute again: kept on demand, without bias. fp16 and bf16 could
// only keep it rounded, and grad_x would be rounded twice; their backward starts from x alone.
std::tuple<Tensor, Tensor> lska_fwd_cpu(const Tensor& x, const Tensor& conv0h, const MaybeTensor& conv0h_bias,
                                        const Tensor& conv0v, const MaybeTensor& conv0v_bias,
                                        const MaybeTensor& conv_spatial_h,
                                        const MaybeTensor& conv_spatial_h_bias,
                                        const MaybeTensor& conv_spatial_v,
                                        const MaybeTensor& conv_spatial_v_bias, const Tensor& conv1,
                                        const MaybeTensor& conv1_bias, int64_t dilation, bool keep_product) {
  Problem p("lska_fwd_cpu", x,
            {conv0h, conv0h_bias, conv0v, conv0v_bias, conv_spatial_h, conv_spatial_h_bias, conv_spatial_v,
             conv_spatial_v_bias},
            dilation);
  const int64_t C = p.shape.C;
  check_shape(p.op, "conv1 weight", conv1, {C, C, 1, 1});
  if (conv1_bias) check_shape(p.op, "conv1 bias", *conv1_bias, {C});
  const bool in_place = p.type == p.accumulate_type, keep = keep_product && in_place;
  Tensor y = stable::empty_like(p.x);
  Tensor product = keep ? stable::empty_like(p.x) : empty_of({0}, p.type);
  if (p.empty()) return {y, product};

  const Tensor weight = p.in_accumulate("conv1 weight", conv1, C * C),
               bias = p.in_accumulate("conv1 bias", conv1_bias, C);
  const Matrix weights{static_cast<char*>(weight.data_ptr()), C, C, C, 1};
  const int64_t at_once = p.images_at_once(), pixel_blocks = p.pixel_blocks(),
                image_bytes = p.image * p.element;
  const Maps maps(1, at_once * p.image * p.accumulate);
  char* s_data = maps[0];
  char* y_data = static_cast<char*>(y.mutable_data_ptr());
  char* product_data = keep ? static_cast<char*>(product.mutable_data_ptr()) : y_data;
  for (int64_t first = 0; first < p.images; first += at_once) {
    const int64_t count = std::min(at_once, p.images - first);
    p.cascade(first, count, s_data, true);
    for_each(count * pixel_blocks, [&](int64_t i) {
      const auto [begin, end] = p.pixel_range(i % pixel_blocks);
      if (begin == end) return;
      const int64_t n = i / pixel_blocks, at = (first + n) * image_bytes + p.first_element(begin) * p.element;
      Matrix out = p.matrix(product_data + (first + n) * image_bytes, begin, end);
      if (!in_place) {
        out.data = static_cast<char*>(workspace(size_t(out.rows * out.cols * p.accumulate)));
        out.row_stride = out.cols;
      }
      p.conv1(weights, p.matrix(s_data + n * p.image * p.accumulate, begin, end), out);
      p.kernels.gate_fwd(p.gate(out), p.x_data() + at, out.data, bias.const_data_ptr(), y_data + at);
    });
  }
  return {y, product};
}

constexpr int64_t kGradRows = 64;  // rows of grad_conv1 one item computes

// grad_conv1 = grad_product s^T. Items are blocks of rows and, where those are few, parts of the pixels; each
// item adds image after image to its own sum, so the order is the same however many threads there are.
struct GradConv1 {
  const Problem& p;
  const int64_t C = p.shape.C, row_blocks = (C + kGradRows - 1) / kGradRows;
  const int64_t parts = std::max<int64_t>(1, 4 / row_blocks);
  Tensor sums = empty_of({parts, C, C}, p.accumulate_type);

  void add_images(char* grad_product, char* s, int64_t first, int64_t count) const {
    char* sums_data = static_cast<char*>(sums.mutable_data_ptr());
    for_each(row_blocks * parts, [&](int64_t i) {
      const int64_t part = i / row_blocks, row = i % row_blocks * kGradRows,
                    rows = std::min(kGradRows, C - row);
      const int64_t begin = p.pixels * part / parts, end = p.pixels * (part + 1) / parts;
      const Matrix sum{sums_data + (part * C + row) * C * p.accumulate, rows, C, C, 1};
      for (int64_t n = 0; n < count; ++n) {
        Matrix grad = p.matrix(grad_product + n * p.image * p.accumulate, begin, end);
        Matrix in = p.matrix(s + n * p.image * p.accumulate, begin, end);
        if (p.shape.channels_last)
          grad = grad.transposed();
        else
          in = in.transposed();
        grad.data += row * grad.row_stride * p.accumulate;
        grad.rows = rows;
        Matrix out = sum;
        if (first + n > 0) out.data = static_cast<char*>(workspace(size_t(rows * C * p.accumulate)));
        multiply(grad, in, out, p.accumulate_type);
        if (first + n > 0) p.kernels.add(sum.data, out.data, rows * C);
      }
    });
  }
};

using Grads =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Stages of a few images at a time: s again; grad_product and from it ds, for each block of pixels; the
// cascade backward for each group of channels, which also finishes grad_x; grad_conv1.
Grads lska_bwd_cpu(const Tensor& given_grad_y, const Tensor& x, const Tensor& product, const Tensor& conv0h,
                   const MaybeTensor& conv0h_bias, const Tensor& conv0v, const MaybeTensor& conv0v_bias,
                   const MaybeTensor& conv_spatial_h, const MaybeTensor& conv_spatial_h_bias,
                   const MaybeTensor& conv_spatial_v, const MaybeTensor& conv_spatial_v_bias,
                   const Tensor& conv1, const MaybeTensor& conv1_bias, int64_t dilation) {
  Problem p("lska_bwd_cpu", x,
            {conv0h, conv0h_bias, conv0v, conv0v_bias, conv_spatial_h, conv_spatial_h_bias, conv_spatial_v,
             conv_spatial_v_bias},
            dilation);
  const int64_t C = p.shape.C, k0 = p.shape.k0, k1 = p.shape.k1, kept_k1 = std::max<int64_t>(k1, 1);
  check_shape(p.op, "conv1 weight", conv1, {C, C, 1, 1});
  if (conv1_bias) check_shape(p.op, "conv1 bias", *conv1_bias, {C});
  const Tensor grad_y = p.map_like("grad_y", given_grad_y);
  const bool kept = product.numel() > 0;
  const Tensor kept_product = kept ? p.map_like("product", product) : product;

  const auto zeros = [&](std::initializer_list<int64_t> shape) {
    Tensor t = empty_of(shape, p.type);
    return p.empty() ? stable::zero_(t) : t;
  };
  const int64_t trivial = k1 ? C : 0;  // LSKA-trivial: the dilated pair's gradients are empty
  Tensor grad_x = stable::empty_like(p.x), grad_conv1 = zeros({C, C, 1, 1}), grad_conv1_bias = zeros({C});
  Tensor taps[8] = {
      zeros({C, 1, 1, k0}),       zeros({C}),       zeros({C, 1, k0, 1}),       zeros({C}),
      zeros({trivial, 1, 1, k1}), zeros({trivial}), zeros({trivial, 1, k1, 1}), zeros({trivial})};
  const auto all = [&] {
    return Grads{grad_x,  taps[0], taps[1], taps[2],    taps[3],        taps[4],
                 taps[5], taps[6], taps[7], grad_conv1, grad_conv1_bias};
  };
  if (p.empty()) return all();

  const Tensor weight = p.in_accumulate("conv1 weight", conv1, C * C),
               bias = p.in_accumulate("conv1 bias", conv1_bias, C);
  const Matrix weights{static_cast<char*>(weight.data_ptr()), C, C, C, 1};
  const int64_t at_once = p.images_at_once(), pixel_blocks = p.pixel_blocks();
  const int64_t image_bytes = p.image * p.element, scratch_bytes = p.image * p.accumulate;
  const auto scratch = [&](int64_t n) { return empty_of({n}, p.accumulate_type); };
  const auto data = [](const Tensor& t) { return static_cast<char*>(t.data_ptr()); };
  const Maps maps(kept ? 3 : 4, at_once * scratch_bytes);
  char *s = maps[0], *grad_product = maps[1], *ds = maps[2];
  const Tensor bias_sums = scratch(p.images * pixel_blocks * C);
  // One image's tap gradients, tensor after tensor, in the order they are returned.
  const int64_t sizes[8] = {C * k0, C, C * k0, C, C * kept_k1, C, C * kept_k1, C};
  int64_t total = 0, offsets[8];
  for (int i = 0; i < 8; total += sizes[i++]) offsets[i] = total;
  const Tensor tap_sums = scratch(p.images * total);
  const GradConv1 conv1_sums{p};

  for (int64_t first = 0; first < p.images; first += at_once) {
    const int64_t count = std::min(at_once, p.images - first);
    const char *x_now = p.x_data() + first * image_bytes, *grad_y_now = data(grad_y) + first * image_bytes;
    char* product_now = kept ? data(kept_product) + first * image_bytes : maps[3];
    p.cascade(first, count, s, true);
    for_each(count * pixel_blocks, [&](int64_t i) {
      const auto [begin, end] = p.pixel_range(i % pixel_blocks);
      const int64_t n = i / pixel_blocks, at = n * image_bytes + p.first_element(begin) * p.element;
      char* sums = data(bias_sums) + ((first + n) * pixel_blocks + i % pixel_blocks) * C * p.accumulate;
      const Matrix grad = p.matrix(grad_product + n * scratch_bytes, begin, end);
      p.kernels.gate_bwd(p.gate(grad), grad_y_now + at, x_now + at, grad.data, sums);
      if (begin == end) return;
      p.conv1(weights.transposed(), grad, p.matrix(ds + n * scratch_bytes, begin, end));
      if (!kept)
        p.conv1(weights, p.matrix(s + n * scratch_bytes, begin, end),
                p.matrix(product_now + n * scratch_bytes, begin, end));
    });
    for_each(count * p.blocks, [&](int64_t i) {
      const int64_t n = i / p.blocks, at = n * image_bytes;
      void* sums[8];
      for (int j = 0; j < 8; ++j)
        sums[j] = data(tap_sums) + ((first + n) * total + offsets[j]) * p.accumulate;
      p.kernels.cascade_bwd(p.shape, p.taps, x_now + at, p.x_data() + p.images * image_bytes,
                            ds + n * scratch_bytes, ds + at_once * scratch_bytes, grad_y_now + at,
                            product_now + n * scratch_bytes, bias.const_data_ptr(),
                            data(grad_x) + (first + n) * image_bytes,
                            {sums[0], sums[1], sums[2], sums[3], sums[4], sums[5], sums[6], sums[7]},
                            int(i % p.blocks), workspace(p.kernels.bwd_workspace_bytes(p.shape)));
    });
    conv1_sums.add_images(grad_product, s, first, count);
  }
  for (int i = 0; i < (k1 ? 8 : 4); ++i)
    p.kernels.sum_parts(data(tap_sums) + offsets[i] * p.accumulate, p.images, total, sizes[i], data(taps[i]));
  p.kernels.sum_parts(data(conv1_sums.sums), conv1_sums.parts, C * C, C * C, data(grad_conv1));
  p.kernels.sum_parts(data(bias_sums), p.images * pixel_blocks, C, C, data(grad_conv1_bias));
  return all();
}

// For tests: run the code of an older machine. "" only asks; a set this machine lacks is refused.
std::string set_cpu_isa(const std::string& isa) {
  const char* const names[] = {"baseline", "avx2", "avx512"};
  for (int i = 0; i <= int(best_isa()); ++i)
    if (isa == names[i]) current_isa() = Isa(i);
  STD_TORCH_CHECK(
      isa.empty() || isa == names[int(current_isa())], "set_cpu_isa: got ", isa,
      "; expected one of baseline, avx2, avx512, up to what this machine has: ", names[int(best_isa())]);
  return names[int(current_isa())];
}

}  // namespace
}  // namespace lska_ops

STABLE_TORCH_LIBRARY_IMPL(lska_ops, CPU, m) {
  m.impl("lska_cascade_fwd_cpu", LSKA_OPS_BOX(&lska_ops::lska_cascade_fwd_cpu));
  m.impl("lska_fwd_cpu", LSKA_OPS_BOX(&lska_ops::lska_fwd_cpu));
  m.impl("lska_bwd_cpu", LSKA_OPS_BOX(&lska_ops::lska_bwd_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(lska_ops, CompositeExplicitAutograd, m) {
  m.impl("set_cpu_isa", LSKA_OPS_BOX(&lska_ops::set_cpu_isa));
}
