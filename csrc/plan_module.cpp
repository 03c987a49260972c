// lska_ops._plan: what Python needs to know of the compiled code, without torch.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "csrc/acmix/plan.h"
#include "csrc/common/build_info.h"
#include "csrc/lska/plan.h"

namespace {

namespace py = pybind11;
using lska_ops::LskaKernel;
using lska_ops::LskaPlan;
using lska_ops::LskaSize;

py::dict lska_plan(bool backward, const LskaSize& size, int64_t shared_bytes, int64_t multiprocessors) {
  const lska_ops::GpuLimits device{shared_bytes, multiprocessors, 0};
  const LskaPlan p = (backward ? lska_ops::lska_plan_backward : lska_ops::lska_plan_forward)(size, device);
  const lska_ops::LskaStages g = lska_ops::lska_plan::stages(size);
  const char* const names[] = {"plane", "stream", "stages"};
  using py::literals::operator""_a;
  return py::dict("kernel"_a = names[int(p.kernel)], "grid"_a = py::make_tuple(p.grid_x, p.grid_y, p.grid_z),
                  "threads"_a = p.threads, "shared_bytes"_a = p.shared_bytes, "planes"_a = p.planes,
                  "band"_a = p.band, "strip"_a = p.strip, "rows"_a = p.rows, "cols"_a = p.cols,
                  "pitch"_a = p.pitch, "threads_per_plane"_a = p.threads_per_plane, "step"_a = p.step,
                  "reach_h"_a = g.reach_h(), "reach_v"_a = g.reach_v(), "dilation_h"_a = g.h1.dilation,
                  "dilation_v"_a = g.v1.dilation);
}

py::dict acmix_plan(const std::string& pass, bool attention, bool shift, bool shift_grad,
                    const lska_ops::AcmixSize& size, int64_t shared_bytes, int64_t multiprocessors) {
  using lska_ops::AcmixPass;
  const AcmixPass which = pass == "forward" ? AcmixPass::forward
                          : pass == "query" ? AcmixPass::query
                          : pass == "key"   ? AcmixPass::key
                                            : throw std::invalid_argument("pass is " + pass);
  if (shift_grad && !(which == AcmixPass::query && attention && shift))
    throw std::invalid_argument("shift_grad is of the query pass of both halves");
  const lska_ops::AcmixLayout l =
      lska_ops::acmix_plan_of(size, which, attention, shift, {shared_bytes, multiprocessors, 0}, shift_grad);
  using py::literals::operator""_a;
  return py::dict("fits"_a = l.fits, "grid"_a = py::make_tuple(l.grid_x, l.grid_y, l.grid_z),
                  "shared_bytes"_a = l.shared_bytes, "rows"_a = l.rows, "cols"_a = l.cols, "band"_a = l.band,
                  "dims"_a = l.dims, "heads"_a = l.heads, "taps"_a = l.taps, "regular"_a = l.regular,
                  "images"_a = l.images, "cost"_a = l.cost, "window_rows"_a = l.window.rows,
                  "window_pitch"_a = l.window.pitch);
}

py::dict acmix_shift_grad_plan(const lska_ops::AcmixSize& size, int64_t shared_bytes,
                               int64_t multiprocessors) {
  const lska_ops::AcmixShiftGradPlan p = acmix_plan_shift_grad(size, {shared_bytes, multiprocessors, 0});
  using py::literals::operator""_a;
  return py::dict("fits"_a = p.fits, "grid"_a = py::make_tuple(size.D(), p.groups, p.blocks_z),
                  "shared_bytes"_a = p.shared_bytes, "rows"_a = p.rows, "cols"_a = p.cols,
                  "parts"_a = p.parts, "tasks"_a = p.tasks, "splits"_a = p.splits, "units"_a = p.units);
}

}  // namespace

PYBIND11_MODULE(_plan, m) {
  m.doc() = "What lska_ops was compiled from, and how it would launch; needs no torch.";
  m.def(
      "build_info", [] { return py::module_::import("json").attr("loads")(lska_ops::kBuildInfo); },
      "The compiler, its flags, the instruction sets and CUDA architectures, torch's headers and a hash of "
      "csrc/.");
  m.def(
      "lska",
      [](bool backward, int64_t B, int64_t C, int64_t H, int64_t W, int64_t k0, int64_t k1, int64_t dilation,
         int64_t shared_bytes, int64_t multiprocessors) {
        return lska_plan(backward, {B, C, H, W, k0, k1, dilation}, shared_bytes, multiprocessors);
      },
      "How LSKA's cascade is spread over a GPU with these limits; csrc/lska/plan.h.", py::arg("backward"),
      py::arg("B"), py::arg("C"), py::arg("H"), py::arg("W"), py::arg("k0"), py::arg("k1"),
      py::arg("dilation"), py::arg("shared_bytes"), py::arg("multiprocessors"));
  m.def(
      "acmix",
      [](const std::string& pass, bool attention, bool shift, int64_t B, int64_t C, int64_t H, int64_t W,
         int64_t head, int64_t kernel_att, int64_t kernel_conv, int64_t stride, int64_t dilation,
         int64_t element, int64_t shared_bytes, int64_t multiprocessors, bool shift_grad) {
        return acmix_plan(pass, attention, shift, shift_grad,
                          {B, C, H, W, head, kernel_att, kernel_conv, stride, dilation, element},
                          shared_bytes, multiprocessors);
      },
      "How a pass of ACmix, \"forward\", \"query\" or \"key\", is spread over a GPU with these limits, for "
      "numbers of `element` bytes; the query pass also with the sums of the shift's weight gradients; "
      "csrc/acmix/plan.h.",
      py::arg("pass"), py::arg("attention"), py::arg("shift"), py::arg("B"), py::arg("C"), py::arg("H"),
      py::arg("W"), py::arg("head"), py::arg("kernel_att"), py::arg("kernel_conv"), py::arg("stride"),
      py::arg("dilation"), py::arg("element"), py::arg("shared_bytes"), py::arg("multiprocessors"),
      py::arg("shift_grad") = false);
  m.def(
      "acmix_shift_grad",
      [](int64_t B, int64_t C, int64_t H, int64_t W, int64_t head, int64_t kernel_att, int64_t kernel_conv,
         int64_t stride, int64_t dilation, int64_t element, int64_t shared_bytes, int64_t multiprocessors) {
        return acmix_shift_grad_plan({B, C, H, W, head, kernel_att, kernel_conv, stride, dilation, element},
                                     shared_bytes, multiprocessors);
      },
      "The same for the sums of the shift's weight gradients.", py::arg("B"), py::arg("C"), py::arg("H"),
      py::arg("W"), py::arg("head"), py::arg("kernel_att"), py::arg("kernel_conv"), py::arg("stride"),
      py::arg("dilation"), py::arg("element"), py::arg("shared_bytes"), py::arg("multiprocessors"));
}
