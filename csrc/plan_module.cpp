// lska_ops._plan: what Python needs to know of the compiled code, without torch.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "csrc/acmix/cpu_paths.h"
#include "csrc/acmix/plan.h"
#include "csrc/acmix/plan_products_backward.h"
#include "csrc/common/build_info.h"
#include "csrc/lska/cpu_paths.h"
#include "csrc/lska/plan.h"
#include "csrc/lska/plan_tile.h"
#include "csrc/lska/plan_tile_backward.h"

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

// None where the kernels of lska_plan serve.
py::object lska_tiles(const LskaSize& size, bool channels_last, int64_t element, int64_t shared_bytes,
                      int64_t multiprocessors) {
  const lska_ops::LskaForwardPlan p =
      lska_ops::lska_plan_tiles(size, channels_last, element, {shared_bytes, multiprocessors, 0});
  if (p.shape < 0) return py::none();
  const lska_ops::LskaForwardShape& k =
      channels_last ? lska_ops::kForwardNhwc[p.shape] : lska_ops::kForwardNchw[p.shape];
  using py::literals::operator""_a;
  return py::dict("shape"_a = p.shape, "grid"_a = py::make_tuple(p.grid_x, p.grid_y, p.grid_z),
                  "threads"_a = p.threads, "most_threads"_a = k.threads, "shared_bytes"_a = p.shared_bytes,
                  "rows"_a = p.tile.rows, "cols"_a = p.tile.cols, "tiles_x"_a = p.tile.tiles_x,
                  "across"_a = k.across, "down"_a = k.down, "whole"_a = k.whole,
                  "channels"_a = channels_last ? 2 << p.tile.pair_bits : 0, "planes"_a = p.tile.planes,
                  "x_pitch"_a = p.tile.x_pitch, "map_pitch"_a = p.tile.map_pitch);
}

// The same of the backward.
py::object lska_tiles_backward(const LskaSize& size, bool channels_last, int64_t element,
                               int64_t shared_bytes, int64_t multiprocessors) {
  const lska_ops::LskaTileBackwardPlan p =
      lska_ops::lska_plan_tile_backward(size, channels_last, element, {shared_bytes, multiprocessors, 0});
  if (!p.serves()) return py::none();
  using py::literals::operator""_a;
  return py::dict("pair"_a = p.pair, "grid"_a = py::make_tuple(p.grid_x, p.grid_y, p.grid_z),
                  "threads"_a = p.threads(), "shared_bytes"_a = p.shared_bytes, "rows"_a = p.tile_rows,
                  "cols"_a = p.tile_cols, "tiles_x"_a = p.tiles_x, "channels"_a = p.channels,
                  "slots"_a = p.slots, "parts"_a = p.parts());
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

lska_ops::MapReads reads_of(const std::string& word) {
  using lska_ops::MapReads;
  return word == "vectors" ? MapReads::vectors
         : word == "quads" ? MapReads::quads
         : word == "numbers"
             ? MapReads::numbers
             : throw std::invalid_argument("reads is \"" + word + "\"; expected vectors, quads or numbers");
}

// None where the kernels of acmix_plan serve.
py::object acmix_products(bool attention, bool shift, bool bfloat16, const lska_ops::AcmixSize& size,
                          const std::string& reads, const lska_ops::GpuLimits& device) {
  const lska_ops::AcmixProductsPlan p =
      lska_ops::acmix_plan_products(size, attention, shift, bfloat16, reads_of(reads), device);
  if (!p.serves) return py::none();
  using py::literals::operator""_a;
  return py::dict("grid"_a = py::make_tuple(p.grid_x, p.grid_y, p.grid_z), "threads"_a = p.threads,
                  "shared_bytes"_a = p.shared_bytes, "rows"_a = p.layout.rows, "cols"_a = p.layout.cols,
                  "heads"_a = p.layout.heads, "dims"_a = p.layout.dims,
                  "side"_a = lska_ops::kProductsSides[p.side], "shift_dims"_a = p.layout.shift_dims,
                  "shift_at_once"_a = p.layout.shift_at_once, "walks"_a = p.layout.walks,
                  "shift_row_pitch"_a = p.layout.shift_row_pitch, "key_pitch"_a = p.layout.key_pitch,
                  "key_row_pitch"_a = p.layout.key_row_pitch, "cost"_a = p.cost);
}

// None where the kernels of acmix_plan serve.
py::object acmix_products_backward(bool of_keys, bool shift, bool bfloat16, const lska_ops::AcmixSize& size,
                                   const std::string& reads, const lska_ops::GpuLimits& device) {
  const lska_ops::AcmixProductsBackwardPlan p =
      lska_ops::acmix_plan_products_backward(size, of_keys, shift, bfloat16, reads_of(reads), device);
  if (!p.serves) return py::none();
  using py::literals::operator""_a;
  return py::dict("grid"_a = py::make_tuple(p.grid_x, p.grid_y, p.grid_z), "threads"_a = p.threads,
                  "shared_bytes"_a = p.shared_bytes, "rows"_a = p.layout.rows, "cols"_a = p.layout.cols,
                  "heads"_a = p.layout.heads, "dims"_a = p.layout.dims,
                  "side"_a = lska_ops::kProductsSides[p.side], "back_dims"_a = p.back.dims,
                  "cost"_a = p.cost);
}

py::dict acmix_shift_grad_plan(const lska_ops::AcmixSize& size, int64_t shared_bytes,
                               int64_t multiprocessors) {
  const lska_ops::AcmixShiftGradPlan p = acmix_plan_shift_grad(size, {shared_bytes, multiprocessors, 0});
  using py::literals::operator""_a;
  return py::dict("fits"_a = p.fits, "grid"_a = py::make_tuple(size.D(), p.groups, p.blocks_z),
                  "shared_bytes"_a = p.shared_bytes, "rows"_a = p.rows, "cols"_a = p.cols,
                  "parts"_a = p.parts, "tasks"_a = p.tasks, "splits"_a = p.splits, "units"_a = p.units);
}

// How a call of both halves goes: each in one pass or one after the other.
py::dict acmix_calls(const lska_ops::AcmixSize& size, int64_t shared_bytes, int64_t multiprocessors) {
  using lska_ops::AcmixPass;
  const lska_ops::GpuLimits device{shared_bytes, multiprocessors, 0};
  const auto plan = [&](AcmixPass pass, bool attention, bool shift, bool shift_grad = false) {
    return lska_ops::acmix_plan_of(size, pass, attention, shift, device, shift_grad);
  };
  const lska_ops::AcmixBackward backward = lska_ops::acmix_plans_backward(size, device, plan);
  using py::literals::operator""_a;
  return py::dict("forward"_a = lska_ops::acmix_fuses_forward(size, plan), "backward"_a = backward.fused,
                  "shift_grad"_a = backward.shift_grad);
}

// With a machine's vectors and a dtype's accumulation type, both in bytes.
py::dict lska_cpu(const lska_ops::LskaShape& s, int accumulate, int vector_bytes) {
  using namespace lska_ops;
  const int forward_bytes = lska_prefers_32_bytes(s, accumulate) && vector_bytes > 32 ? 32 : vector_bytes;
  const int lanes = forward_bytes / accumulate, split = lska_plane_split(s, forward_bytes, accumulate);
  const auto strips = [&](int bytes) {
    const int columns = lska_strip_columns(s, bytes);
    return (s.W + columns - 1) / columns;
  };
  const int64_t pitch = lska_plane_pitch(s.W, s.k1 / 2 * s.dilation, lanes);
  using py::literals::operator""_a;
  return py::dict("kernel"_a = split < 0 ? "group" : "plane", "few_taps"_a = s.k1 <= kLskaFewTaps,
                  "vector_bytes"_a = forward_bytes, "lanes"_a = lanes,
                  "beyond"_a = lska_row(s.W, lanes).beyond, "band"_a = lska_plane_band(pitch * accumulate),
                  "spilled_rows"_a = lska_spilled_rows(s.W, lanes), "strips"_a = strips(forward_bytes),
                  "backward_strips"_a = strips(vector_bytes));
}

py::dict acmix_cpu(int64_t B, int64_t H, int64_t stride, int64_t reach, int64_t threads) {
  const int64_t Ho = (H + stride - 1) / stride, rows = lska_ops::kAcmixQueryRows;
  using py::literals::operator""_a;
  return py::dict("band"_a = lska_ops::acmix_forward_band(B, Ho, threads),
                  "grad_band"_a = lska_ops::acmix_grad_band(H, Ho, reach, rows), "query_rows"_a = rows,
                  "shift_rows"_a = lska_ops::kAcmixShiftRows);
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
         int64_t shared_bytes, int64_t multiprocessors, bool channels_last) {
        return lska_plan(backward, {B, C, H, W, k0, k1, dilation, channels_last}, shared_bytes,
                         multiprocessors);
      },
      "How LSKA's cascade is spread over a GPU with these limits; csrc/lska/plan.h.", py::arg("backward"),
      py::arg("B"), py::arg("C"), py::arg("H"), py::arg("W"), py::arg("k0"), py::arg("k1"),
      py::arg("dilation"), py::arg("shared_bytes"), py::arg("multiprocessors"),
      py::arg("channels_last") = false);
  m.def(
      "resident_blocks",
      [](int64_t threads, int64_t registers, int64_t shared, int64_t shared_bytes, int64_t arch) {
        return lska_ops::resident_blocks({shared_bytes, 1, 0, arch}, threads, registers, shared);
      },
      "Blocks that a multiprocessor holds at once; csrc/common/gpu.h.", py::arg("threads"),
      py::arg("registers"), py::arg("shared"), py::arg("shared_bytes"), py::arg("arch"));
  m.def(
      "lska_tiles",
      [](int64_t B, int64_t C, int64_t H, int64_t W, int64_t k0, int64_t k1, int64_t dilation,
         bool channels_last, int64_t element, int64_t shared_bytes, int64_t multiprocessors) {
        return lska_tiles({B, C, H, W, k0, k1, dilation, channels_last}, channels_last, element, shared_bytes,
                          multiprocessors);
      },
      "How LSKA's cascade forward goes in tiles, of numbers of `element` bytes, or None where it does not; "
      "csrc/lska/plan_tile.h.",
      py::arg("B"), py::arg("C"), py::arg("H"), py::arg("W"), py::arg("k0"), py::arg("k1"),
      py::arg("dilation"), py::arg("channels_last"), py::arg("element"), py::arg("shared_bytes"),
      py::arg("multiprocessors"));
  m.def(
      "lska_tiles_backward",
      [](int64_t B, int64_t C, int64_t H, int64_t W, int64_t k0, int64_t k1, int64_t dilation,
         bool channels_last, int64_t element, int64_t shared_bytes, int64_t multiprocessors) {
        return lska_tiles_backward({B, C, H, W, k0, k1, dilation, channels_last}, channels_last, element,
                                   shared_bytes, multiprocessors);
      },
      "How LSKA's cascade backward goes in tiles, or None; csrc/lska/plan_tile_backward.h.", py::arg("B"),
      py::arg("C"), py::arg("H"), py::arg("W"), py::arg("k0"), py::arg("k1"), py::arg("dilation"),
      py::arg("channels_last"), py::arg("element"), py::arg("shared_bytes"), py::arg("multiprocessors"));
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
      "acmix_products",
      [](bool attention, bool shift, int64_t B, int64_t C, int64_t H, int64_t W, int64_t head,
         int64_t kernel_att, int64_t kernel_conv, int64_t stride, int64_t dilation, int64_t element,
         int64_t shared_bytes, int64_t multiprocessors, int64_t arch, bool bfloat16, const std::string& reads,
         int64_t rank) {
        return acmix_products(attention, shift, bfloat16,
                              {B, C, H, W, head, kernel_att, kernel_conv, stride, dilation, element}, reads,
                              {shared_bytes, multiprocessors, 0, arch, rank});
      },
      "How ACmix's forward is spread over a GPU by products on tensor cores, or None; "
      "csrc/acmix/plan_products.h.",
      py::arg("attention"), py::arg("shift"), py::arg("B"), py::arg("C"), py::arg("H"), py::arg("W"),
      py::arg("head"), py::arg("kernel_att"), py::arg("kernel_conv"), py::arg("stride"), py::arg("dilation"),
      py::arg("element"), py::arg("shared_bytes"), py::arg("multiprocessors"), py::arg("arch"),
      py::arg("bfloat16") = false, py::arg("reads") = "vectors", py::arg("rank") = 0);
  m.def(
      "acmix_products_backward",
      [](bool of_keys, bool shift, int64_t B, int64_t C, int64_t H, int64_t W, int64_t head,
         int64_t kernel_att, int64_t kernel_conv, int64_t stride, int64_t dilation, int64_t element,
         int64_t shared_bytes, int64_t multiprocessors, int64_t arch, bool bfloat16, const std::string& reads,
         int64_t rank) {
        return acmix_products_backward(of_keys, shift, bfloat16,
                                       {B, C, H, W, head, kernel_att, kernel_conv, stride, dilation, element},
                                       reads, {shared_bytes, multiprocessors, 0, arch, rank});
      },
      "The same for the attention's backward, of queries or of keys, with the shift's part of it or without; "
      "csrc/acmix/plan_products_backward.h.",
      py::arg("of_keys"), py::arg("shift"), py::arg("B"), py::arg("C"), py::arg("H"), py::arg("W"),
      py::arg("head"), py::arg("kernel_att"), py::arg("kernel_conv"), py::arg("stride"), py::arg("dilation"),
      py::arg("element"), py::arg("shared_bytes"), py::arg("multiprocessors"), py::arg("arch"),
      py::arg("bfloat16") = false, py::arg("reads") = "vectors", py::arg("rank") = 0);
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
  m.def(
      "lska_cpu",
      [](int C, int H, int W, int k0, int k1, int dilation, bool channels_last, int accumulate,
         int vector_bytes) {
        return lska_cpu({C, H, W, k0, k1, dilation, channels_last}, accumulate, vector_bytes);
      },
      "Which way LSKA's cascade goes on a CPU, forward; csrc/lska/cpu_paths.h.", py::arg("C"), py::arg("H"),
      py::arg("W"), py::arg("k0"), py::arg("k1"), py::arg("dilation"), py::arg("channels_last"),
      py::arg("accumulate"), py::arg("vector_bytes"));
  m.def("acmix_cpu", &acmix_cpu, "How ACmix's rows are cut on a CPU; csrc/acmix/cpu_paths.h.", py::arg("B"),
        py::arg("H"), py::arg("stride"), py::arg("reach"), py::arg("threads"));
  m.def(
      "acmix_calls",
      [](int64_t B, int64_t C, int64_t H, int64_t W, int64_t head, int64_t kernel_att, int64_t kernel_conv,
         int64_t stride, int64_t dilation, int64_t element, int64_t shared_bytes, int64_t multiprocessors) {
        return acmix_calls({B, C, H, W, head, kernel_att, kernel_conv, stride, dilation, element},
                           shared_bytes, multiprocessors);
      },
      "Whether both halves are computed at once, forward and backward, and whether the query pass adds up "
      "the "
      "sums of the shift's weight gradients.",
      py::arg("B"), py::arg("C"), py::arg("H"), py::arg("W"), py::arg("head"), py::arg("kernel_att"),
      py::arg("kernel_conv"), py::arg("stride"), py::arg("dilation"), py::arg("element"),
      py::arg("shared_bytes"), py::arg("multiprocessors"));
}
