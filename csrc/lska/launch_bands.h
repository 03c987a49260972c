// The cascade as banded products on tensor cores: from a call to tables and kernel. launch.h asks it first.
#pragma once

#include "csrc/common/gpu_launch.h"
#include "csrc/lska/kernels_bands.cuh"

namespace lska_ops::lska_cuda {

// The kernels are compiled in a file of their own.
using LskaBandsKernel = void (*)(LskaBandsArguments);
using LskaBandTablesKernel = void (*)(LskaBandTableArguments);
LskaBandsKernel bands_kernel(bool bfloat16);
LskaBandTablesKernel band_tables_kernel(bool bfloat16);

inline int64_t alignment_of(const void* p) {
  int64_t bytes = 1;
  while (bytes < 16 && reinterpret_cast<uintptr_t>(p) % (2 * bytes) == 0) bytes *= 2;
  return bytes;
}

// The call's tables, made when they are first wanted.
template <class Call>
const uint32_t* made_band_tables(const Call& call, const LskaSize& size) {
  if (call.band_tables) return static_cast<const uint32_t*>(call.band_tables->const_data_ptr());
  const bool bfloat16 = call.type == gpu::ScalarType::BFloat16;
  const int H = int(size.H), W = int(size.W);
  const LskaBandTables at = bfloat16 ? lska_band_tables<BFloat16>(W) : lska_band_tables<Half>(W);
  call.band_tables = call.floats(size.C * at.size);
  uint32_t* words = static_cast<uint32_t*>(call.band_tables->data_ptr());
  LskaBandTableArguments t{call.weights, words, call.stages, H, W, {}, {}};
  for (int i = 0, n = 0; i < kBandsTiles * kBandsProducts; ++i) {
    const int tile = i / kBandsProducts, k = i % kBandsProducts;
    if (!bands_product_is(tile, k)) continue;
    t.tile[n] = static_cast<signed char>(tile);
    t.first[n++] = static_cast<signed char>(bands_first(tile) + k);
  }
  call.start(band_tables_kernel(bfloat16), {size.C, kBandTableBlocks, 1}, kBandTableThreads,
             4 * 10 * kMostBand, t);
  return words;
}

// s of `count` images from x, if these kernels serve. Call has the call's sizes, layout, weights and device.
template <class Call>
bool cascade_by_bands(const Call& call, const void* x, int64_t count, void* s) {
  if (call.type == gpu::ScalarType::Float || call.channels_last) return false;
  const bool bfloat16 = call.type == gpu::ScalarType::BFloat16;
  const LskaSize size = call.of_images(count);
  const LskaBandsPlan p =
      lska_plan_bands(size, bfloat16, std::min(alignment_of(x), alignment_of(s)), call.device.limits);
  if (!p.serves || compiled_for(bands_kernel(bfloat16)) != 80) return false;
  const int C = int(size.C), H = int(size.H), W = int(size.W);
  const uint32_t* words = made_band_tables(call, size);
  call.start(
      bands_kernel(bfloat16), {p.grid_x, p.grid_y, 1}, kWarp * p.warps, p.shared_bytes,
      LskaBandsArguments{x, s, words, call.weights, call.stages, int(count), C, H, W, p.images, p.chunk,
                         p.pitch, p.x_bytes, divisor(W / p.chunk), kWarp * p.warps / (W / p.chunk)});
  return true;
}

}  // namespace lska_ops::lska_cuda
