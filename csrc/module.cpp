// The registered ops: one line per launcher, no maths.
#include <torch/csrc/stable/library.h>

#include <string>

#include "csrc/common/build_info.h"

namespace {
std::string build_info() { return lska_ops::kBuildInfo; }
}  // namespace

STABLE_TORCH_LIBRARY(lska_ops, m) {
  m.def("build_info() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(lska_ops, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&build_info));
}
