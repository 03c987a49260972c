// LSKA's backward launchers, on what launch.h has.
#pragma once

#include "csrc/lska/launch.h"
#include "csrc/lska/launch_tiles_backward.h"

namespace lska_ops::lska_cuda {

using Grads =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The cascade's backward of some images: grad_x, and one part of the tap sums for each image and tile.
struct CascadeBackward {
  const Call& call;
  const int width = int(2 * (call.size.k0 + 1) + (call.size.k1 ? 2 * (call.size.k1 + 1) : 0));

  struct Plan {
    LskaTileBackwardPlan tiles;  // where they serve; else
    LskaPlan general;
    int64_t parts;  // of the tap sums
  };
  Plan plan(int64_t count) const {
    Plan p{plan_tiles_backward(call, count), {}, 0};
    if (p.tiles.serves()) {
      p.parts = p.tiles.parts();
    } else {
      p.general = lska_plan_backward(call.of_images(count), call.device.limits);
      p.parts = count * (p.general.kernel == LskaKernel::plane ? p.general.grid_y * p.general.grid_z : 1);
    }
    return p;
  }
  void operator()(LskaBackwardArguments a, const Plan& plan, int64_t count) const {
    a.sums_width = width;
    a.weights = call.weights;
    a.map = call.map(count);
    if (plan.tiles.serves()) return backward_by_tiles(call, plan.tiles, a);
    const LskaPlan& p = plan.general;
    if (p.kernel == LskaKernel::stages) return by_stages(a, count);
    a.region = lska_region(call.of_images(count), p);
    with_dtype(call.type, [&](auto t) {
      call.start(lska_cascade_bwd_kernel<typename decltype(t)::type>, {p.grid_x, p.grid_y, p.grid_z},
                 p.threads, p.shared_bytes, a);
    });
  }

 private:
  void by_stages(const LskaBackwardArguments& a, int64_t count) const {
    const std::vector<Call::Link> links = call.chain();
    const int n = int(links.size());
    std::vector<Tensor> in;  // of each stage but the first, whose is x
    for (int i = 1; i < n; ++i) {
      in.push_back(call.floats(count * call.image));
      LskaStageArguments given{};
      given.in = i == 1 ? a.x : in[i - 2].const_data_ptr();
      given.in_float = i > 1;
      given.out = in.back().data_ptr();
      given.out_float = true;
      call.stage(links[i - 1], given, count);
    }
    const Tensor grads[2] = {call.floats(count * call.image), call.floats(count * call.image)};
    const void* gradient = a.ds;
    for (int i = n - 1; i >= 0; --i) {
      LskaStageSumsArguments sums{i ? in[i - 1].const_data_ptr() : a.x,
                                  gradient,
                                  a.sums + sums_offset(links[i].number, int(call.size.k0), int(call.size.k1)),
                                  width,
                                  i > 0,
                                  i < n - 1,
                                  links[i].vertical,
                                  links[i].stage,
                                  a.map};
      const int64_t taps = std::min<int64_t>(links[i].stage.k + 1, kMaxGridYZ);
      const int64_t blocks = call.channels_last ? count * ceil_div(call.size.C, kWarp) : a.map.planes;
      with_dtype(call.type, [&](auto t) {
        call.start(lska_stage_sums_kernel<typename decltype(t)::type>, {blocks, taps, 1}, 256, 256 * 4, sums);
      });
      LskaStageArguments given{};
      given.in = gradient;
      given.in_float = i < n - 1;
      given.turned = true;
      given.out = i ? grads[i % 2].data_ptr() : a.grad_x;
      given.out_float = i > 0;
      if (i == 0) {
        given.grad_y = a.grad_y;
        given.product = a.product;
        given.conv1_bias = a.bias;
      }
      call.stage(links[i], given, count);
      gradient = given.out;
    }
  }
};

// The last sums of a call, which one launch takes.
class LastSums {
 public:
  explicit LastSums(const Call& call) : call(call) {}

  // outs = the sum of parts [count, rows, width], of float or of x's dtype, rounded once; in their order.
  void add(const Tensor& parts, int64_t count, int64_t rows, int64_t width,
           const std::vector<LskaSum>& outs) {
    const int64_t n = rows * width;
    LskaSums& s = arguments.of[arguments.count++];
    s.parts = parts.const_data_ptr();
    s.rows = rows;
    s.first_block = blocks;
    s.count = int(count);
    s.width = int(width);
    s.split = lska_split_sums(n, count, call.device.limits);
    s.parts_float = parts.scalar_type() == ScalarType::Float;
    s.outs_count = int(outs.size());
    std::copy(outs.begin(), outs.end(), s.outs);
    blocks += ceil_div(n * s.split, 256);
    if (s.split > 1) shared_bytes = 256 * 4;
  }

  void start() const {
    with_dtype(call.type, [&](auto t) {
      call.start(lska_sums_kernel<typename decltype(t)::type>, {blocks, 1, 1}, 256, shared_bytes, arguments);
    });
  }

 private:
  const Call& call;
  LskaSumsArguments arguments{};
  int64_t blocks = 0, shared_bytes = 0;
};

// conv1's gradient, from part `first` on: in NCHW a part of each image; in channels_last one of all pixels.
inline void conv1_gradient(const Call& call, const Tensor& grad_product, const Tensor& s, int64_t count,
                           const Tensor& parts, int64_t first) {
  const int64_t C = call.size.C, P = call.pixels, at = first * C * C;
  if (call.channels_last)
    multiply(matrix(grad_product, 0, C, count * P, 1, C), matrix(s, 0, count * P, C, C, 1),
             matrix(parts, at, C, C, C, 1));
  else
    multiply(matrices(grad_product, 0, count, call.image, C, P, P, 1),
             matrices(s, 0, count, call.image, P, C, 1, P), matrices(parts, at, count, C * C, C, C, C, 1));
}

// A few images at a time: s again; grad_product and from it ds; the product again where it was not kept; the
// cascade backward, which also finishes grad_x; grad_conv1. Every sum over images is taken in their order.
inline Grads bwd(const char* op, const Device& device, const Tensor& given_grad_y, const Tensor& x,
                 const Tensor& given_product, const Weights& w, const Tensor& conv1_weight,
                 const MaybeTensor& conv1_bias, int64_t dilation) {
  Call call(op, device, x, w, dilation);
  const int64_t C = call.size.C, k0 = call.size.k0, k1 = call.size.k1;
  check_conv1(call, conv1_weight, conv1_bias);
  const Tensor grad_y = call.map_like("grad_y", given_grad_y);
  const bool kept = given_product.numel() > 0;
  const Tensor product = kept ? call.map_like("product", given_product) : given_product;

  const auto gradient = [&](std::initializer_list<int64_t> shape) {
    Tensor t = stable::new_empty(call.x, {shape.begin(), shape.size()});
    return call.empty() ? stable::zero_(t) : t;
  };
  const int64_t trivial = k1 ? C : 0;  // LSKA-trivial: the dilated pair's gradients are empty
  Tensor grad_x = call.empty_like_x(), grad_conv1 = gradient({C, C, 1, 1}), grad_conv1_bias = gradient({C});
  Tensor taps[8] = {
      gradient({C, 1, 1, k0}),       gradient({C}),       gradient({C, 1, k0, 1}),       gradient({C}),
      gradient({trivial, 1, 1, k1}), gradient({trivial}), gradient({trivial, 1, k1, 1}), gradient({trivial})};
  const auto all = [&] {
    return Grads{grad_x,  taps[0], taps[1], taps[2],    taps[3],        taps[4],
                 taps[5], taps[6], taps[7], grad_conv1, grad_conv1_bias};
  };
  if (call.empty()) return all();

  const Tensor weight = call.held_matrix("conv1 weight", conv1_weight);
  const void* bias = call.bias("conv1 bias", conv1_bias);
  const int64_t element = int64_t(call.x.element_size());
  const int64_t at_once =
      lska_images_at_once(call.size, device.limits, element, call.channels_last ? 0 : C * C);
  const int64_t map = at_once * call.image;
  const CascadeBackward backward{call};
  const int64_t last = call.size.B % at_once ? call.size.B % at_once : at_once;
  const CascadeBackward::Plan plan = backward.plan(at_once),
                              last_plan = last == at_once ? plan : backward.plan(last);
  const int64_t chunks = ceil_div(call.size.B, at_once);
  const auto in_all = [&](int64_t of_chunk, int64_t of_last) { return (chunks - 1) * of_chunk + of_last; };
  const int64_t parts = in_all(plan.parts, last_plan.parts);
  Tensor s = call.elements(map), grad_product = call.elements(map), ds = call.elements(map);
  Tensor again = kept ? product : call.elements(map);
  const Tensor tap_parts = call.floats(parts * C * backward.width);
  std::vector<LskaSum> tap_sums;
  int at = 0;
  for (int i = 0; i < (k1 ? 8 : 4); ++i) {
    const int k = int(i % 2 ? 1 : i < 4 ? k0 : k1);
    tap_sums.push_back({taps[i].mutable_data_ptr(), at, k});
    at += k;
  }
  // Every chunk's maps are aligned, or none counts as such: so it is known how many parts there will be.
  const bool aligned =
      call.aligned({call.x.const_data_ptr(), grad_y.const_data_ptr(), grad_product.data_ptr()}) &&
      (chunks == 1 || map * element % 16 == 0);
  const LskaGatePlan gate_plan =
                         lska_plan_gate_backward(call.of_images(at_once), device.limits, element, aligned),
                     last_gate_plan =
                         lska_plan_gate_backward(call.of_images(last), device.limits, element, aligned);
  const int64_t bias_count = in_all(at_once * gate_plan.parts, last * last_gate_plan.parts);
  const Tensor bias_parts = call.floats(bias_count * C);
  const int64_t conv1_count = call.channels_last ? chunks : call.size.B;
  const Tensor conv1_parts = conv1_count == 1 ? grad_conv1 : call.elements(conv1_count * C * C);

  float* tap_at = static_cast<float*>(tap_parts.data_ptr());
  float* bias_at = static_cast<float*>(bias_parts.data_ptr());
  for (int64_t first = 0; first < call.size.B; first += at_once) {
    const int64_t count = std::min(at_once, call.size.B - first), kept_first = kept ? first : 0;
    call.cascade(call.at(call.x, first), count, s.mutable_data_ptr());
    LskaGateArguments gate{};
    gate.x = call.at(call.x, first);
    gate.grad_y = call.at(grad_y, first);
    gate.grad_product = grad_product.mutable_data_ptr();
    gate.map = call.map(count);
    gate.plan = count == at_once ? gate_plan : last_gate_plan;
    gate.sums = bias_at;
    bias_at += count * gate.plan.parts * C;
    with_dtype(call.type, [&](auto t) {
      using T = typename decltype(t)::type;
      const int64_t shared = (gate.plan.vectors ? kVector<T> : 1) * (kGateThreads + 8) * 4;
      call.start(lska_gate_bwd_kernel<T>, {gate.plan.grid_x, gate.plan.grid_y, 1}, kGateThreads,
                 call.channels_last ? shared : 0, gate);
    });
    conv1(call, weight, true, grad_product, 0, ds, 0, count);
    if (!kept) conv1(call, weight, false, s, 0, again, 0, count);
    LskaBackwardArguments a{};
    a.x = gate.x;
    a.ds = ds.const_data_ptr();
    a.grad_y = gate.grad_y;
    a.product = call.at(again, kept_first);
    a.bias = bias;
    a.grad_x = call.at(grad_x, first);
    a.sums = tap_at;
    const CascadeBackward::Plan& p = count == at_once ? plan : last_plan;
    backward(a, p, count);
    tap_at += p.parts * C * backward.width;
    conv1_gradient(call, grad_product, s, count, conv1_parts, call.channels_last ? first / at_once : first);
  }
  LastSums sums(call);
  sums.add(tap_parts, parts, C, backward.width, tap_sums);
  sums.add(bias_parts, bias_count, C, 1, {{grad_conv1_bias.mutable_data_ptr(), 0, 1}});
  if (conv1_count > 1) sums.add(conv1_parts, conv1_count, C, C, {{grad_conv1.mutable_data_ptr(), 0, int(C)}});
  sums.start();
  return all();
}

}  // namespace lska_ops::lska_cuda
