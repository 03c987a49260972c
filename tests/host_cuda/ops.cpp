// The CUDA launchers and kernels of LSKA as ops on CPU tensors, run by runner.h: torch.ops.lska_ops_host.
#include <algorithm>

#include "csrc/lska/launch_bands.h"
#include "csrc/lska/register.h"
#include "csrc/lska/schema.h"
#include "on_host.h"

namespace lska_ops::lska_cuda {
namespace {

// What the gate's and the sums' kernels take, which no plan fits to a device: every GPU has 48 KiB.
constexpr int64_t kAnyDevice = 9 << 10;

void configure(int64_t schedule, int64_t shared_bytes, int64_t multiprocessors, int64_t cache_bytes,
               int64_t arch, int64_t rank) {
  host_cuda::settings.schedule = unsigned(schedule);
  host_cuda::settings.max_shared = std::max(shared_bytes, kAnyDevice);
  host_limits = {shared_bytes, multiprocessors, cache_bytes, arch, rank};
}

// Runs only every `stride`-th block from `first` on; a stride of 0 runs all.
void only(int64_t first, int64_t stride) {
  host_cuda::settings.only = nullptr;
  if (stride > 0)
    host_cuda::settings.only = [=](int64_t block) { return block >= first && (block - first) % stride == 0; };
}

std::vector<int64_t> take_counters() {
  const host_cuda::Counters c = host_cuda::counters;
  host_cuda::counters = {};
  return {int64_t(c.loaded), int64_t(c.stored), int64_t(c.launches), int64_t(c.blocks)};
}
int64_t weight_bytes() { return int64_t(host_cuda::counters.weights); }  // until take_counters

// The cascade's backward kernel by itself: grad_x without the gate's part, and the tap sums' parts.
std::tuple<Tensor, Tensor> cascade_bwd(const Tensor& x, const Tensor& ds, const Tensor& conv0h,
                                       const Tensor& conv0v, const Tensor& conv_spatial_h,
                                       const Tensor& conv_spatial_v, int64_t dilation) {
  const MaybeTensor none, h = conv_spatial_h, v = conv_spatial_v;
  const Call call("cascade_bwd", {host_limits, nullptr}, x, {conv0h, none, conv0v, none, h, none, v, none},
                  dilation);
  const CascadeBackward backward{call};
  Tensor grad_x = call.empty_like_x();
  const CascadeBackward::Plan plan = backward.plan(call.size.B);
  Tensor zeros = call.empty_like_x();
  stable::zero_(zeros);
  Tensor sums = call.floats(plan.parts * call.size.C * backward.width);
  LskaBackwardArguments a{};
  a.x = call.x.const_data_ptr();
  const Tensor as_x = call.in_layout(ds);
  a.ds = as_x.const_data_ptr();
  a.grad_x = grad_x.mutable_data_ptr();
  a.sums = static_cast<float*>(sums.mutable_data_ptr());
  a.grad_y = a.product = zeros.const_data_ptr();
  backward(a, plan, call.size.B);
  return {grad_x, sums};
}

// The cascade by kernels_bands.cuh; an empty tensor where its plan declines.
Tensor cascade_bands(const Tensor& x, const Tensor& conv0h, const MaybeTensor& conv0h_bias,
                     const Tensor& conv0v, const MaybeTensor& conv0v_bias, const MaybeTensor& conv_spatial_h,
                     const MaybeTensor& conv_spatial_h_bias, const MaybeTensor& conv_spatial_v,
                     const MaybeTensor& conv_spatial_v_bias, int64_t dilation) {
  const Call call("cascade_bands", {host_limits, nullptr}, x,
                  {conv0h, conv0h_bias, conv0v, conv0v_bias, conv_spatial_h, conv_spatial_h_bias,
                   conv_spatial_v, conv_spatial_v_bias},
                  dilation);
  Tensor s = call.empty_like_x();
  if (!call.empty() && cascade_by_bands(call, call.x.const_data_ptr(), x.size(0), s.mutable_data_ptr()))
    return s;
  return stable::new_empty(x, {0});
}

}  // namespace
}  // namespace lska_ops::lska_cuda

STABLE_TORCH_LIBRARY(lska_ops_host, m) {
  m.def(LSKA_CASCADE_FWD("cuda"));
  m.def(LSKA_FWD("cuda"));
  m.def(LSKA_BWD("cuda"));
  m.def(
      "configure(int schedule, int shared_bytes, int multiprocessors, int cache_bytes, int arch=0, int "
      "rank=0) -> ()");
  m.def(
      "cascade_bands(Tensor x, Tensor conv0h, Tensor? conv0h_bias, Tensor conv0v, Tensor? conv0v_bias, "
      "Tensor? "
      "conv_spatial_h, Tensor? conv_spatial_h_bias, Tensor? conv_spatial_v, Tensor? conv_spatial_v_bias, int "
      "dilation) -> Tensor");
  m.def("only(int first, int stride) -> ()");
  m.def("take_counters() -> int[]");
  m.def("weight_bytes() -> int");
  m.def(
      "cascade_bwd(Tensor x, Tensor ds, Tensor conv0h, Tensor conv0v, Tensor conv_spatial_h, Tensor "
      "conv_spatial_v, int dilation) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(lska_ops_host, CompositeExplicitAutograd, m) {
  using namespace lska_ops::lska_cuda;
  m.impl("lska_cascade_fwd_cuda", TORCH_BOX(&cascade_fwd_op<OnHost>));
  m.impl("lska_fwd_cuda", TORCH_BOX(&fwd_op<OnHost>));
  m.impl("lska_bwd_cuda", TORCH_BOX(&bwd_op<OnHost>));
  m.impl("configure", TORCH_BOX(&configure));
  m.impl("cascade_bands", TORCH_BOX(&cascade_bands));
  m.impl("only", TORCH_BOX(&only));
  m.impl("take_counters", TORCH_BOX(&take_counters));
  m.impl("weight_bytes", TORCH_BOX(&weight_bytes));
  m.impl("cascade_bwd", TORCH_BOX(&cascade_bwd));
}
