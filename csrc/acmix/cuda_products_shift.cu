// The kernels of launch_products_shift_backward.h.
#include "csrc/acmix/launch_products_shift_backward.h"

namespace lska_ops::acmix_cuda {

template <class T>
ShiftWeightsKernel weights_kernel(bool eight_heads) {
  return eight_heads ? acmix_shift_weights_kernel<T, 8> : acmix_shift_weights_kernel<T, 4>;
}
ShiftWeightsKernel shift_weights_kernel(bool bfloat16, bool eight_heads) {
  return bfloat16 ? weights_kernel<BFloat16>(eight_heads) : weights_kernel<Half>(eight_heads);
}

template <class T>
ShiftBackTableKernel back_table_kernel(bool eight_heads) {
  return eight_heads ? acmix_shift_back_table_kernel<T, 8> : acmix_shift_back_table_kernel<T, 4>;
}
ShiftBackTableKernel shift_back_table_kernel(bool bfloat16, bool eight_heads) {
  return bfloat16 ? back_table_kernel<BFloat16>(eight_heads) : back_table_kernel<Half>(eight_heads);
}

template <class T>
ShiftMapsKernel maps_kernel(bool eight_heads) {
  return eight_heads ? acmix_shift_maps_kernel<T, 8> : acmix_shift_maps_kernel<T, 4>;
}
ShiftMapsKernel shift_maps_kernel(bool bfloat16, bool eight_heads) {
  return bfloat16 ? maps_kernel<BFloat16>(eight_heads) : maps_kernel<Half>(eight_heads);
}

}  // namespace lska_ops::acmix_cuda
