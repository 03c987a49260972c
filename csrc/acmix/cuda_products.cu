// The kernels of launch_products.h.
#include "csrc/acmix/launch_products.h"

namespace lska_ops::acmix_cuda {

template <class T, int... kIndex>
ProductsKernel kernel_of(int side, std::integer_sequence<int, kIndex...>) {
  constexpr ProductsKernel all[] = {acmix_products_fwd_kernel<T, kProductsSides[kIndex]>...};
  return all[side];
}

ProductsKernel products_kernel(bool bfloat16, int side) {
  constexpr std::make_integer_sequence<int, int(std::size(kProductsSides))> sides;
  return bfloat16 ? kernel_of<BFloat16>(side, sides) : kernel_of<Half>(side, sides);
}

template <class T>
ShiftTableKernel table_kernel(bool eight_heads) {
  return eight_heads ? acmix_shift_table_kernel<T, 8> : acmix_shift_table_kernel<T, 4>;
}
ShiftTableKernel shift_table_kernel(bool bfloat16, bool eight_heads) {
  return bfloat16 ? table_kernel<BFloat16>(eight_heads) : table_kernel<Half>(eight_heads);
}

}  // namespace lska_ops::acmix_cuda
