// lska_ops._plan: what Python needs to know of the compiled code, without torch.
#include <pybind11/pybind11.h>

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
}
