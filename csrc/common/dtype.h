// The dtypes of the CPU kernels' tables.
#pragma once

namespace lska_ops {
enum class Dtype { f32, f64, f16, bf16 };
}
