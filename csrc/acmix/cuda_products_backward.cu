// The kernels of launch_products_backward.h.
#include "csrc/acmix/launch_products_backward.h"

namespace lska_ops::acmix_cuda {

template <class T, bool kOfKeys, int... kIndex>
ProductsBackwardKernel backward_kernel_of(int side, std::integer_sequence<int, kIndex...>) {
  constexpr ProductsBackwardKernel all[] = {acmix_products_bwd_kernel<T, kProductsSides[kIndex], kOfKeys>...};
  return all[side];
}

template <class T>
ProductsBackwardKernel backward_kernel_of(bool of_keys, int side) {
  constexpr std::make_integer_sequence<int, kProductsBackwardSides> sides;
  return of_keys ? backward_kernel_of<T, true>(side, sides) : backward_kernel_of<T, false>(side, sides);
}

ProductsBackwardKernel products_backward_kernel(bool bfloat16, bool of_keys, int side) {
  return bfloat16 ? backward_kernel_of<BFloat16>(of_keys, side) : backward_kernel_of<Half>(of_keys, side);
}

}  // namespace lska_ops::acmix_cuda
