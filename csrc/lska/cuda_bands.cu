// The kernels of launch_bands.h.
#include "csrc/lska/launch_bands.h"

namespace lska_ops::lska_cuda {

LskaBandsKernel bands_kernel(bool bfloat16) {
  return bfloat16 ? lska_cascade_fwd_bands_kernel<BFloat16> : lska_cascade_fwd_bands_kernel<Half>;
}
LskaBandTablesKernel band_tables_kernel(bool bfloat16) {
  return bfloat16 ? lska_band_tables_kernel<BFloat16> : lska_band_tables_kernel<Half>;
}

}  // namespace lska_ops::lska_cuda
