// The registered ops: one line per schema, no maths. Launchers register themselves beside their definition.
#include <string>

#include "csrc/acmix/schema.h"
#include "csrc/common/box.h"
#include "csrc/common/build_info.h"
#include "csrc/lska/schema.h"

namespace {
std::string build_info() { return lska_ops::kBuildInfo; }
}  // namespace

STABLE_TORCH_LIBRARY(lska_ops, m) {
  m.def("build_info() -> str");
  m.def("set_cpu_isa(str isa) -> str");
  m.def("cuda_versions() -> int[]");
  lska_ops::fakes_in(m, "lska_ops.lska.compiled");
  m.def(LSKA_CASCADE_FWD("cpu"));
  m.def(LSKA_FWD("cpu"));
  m.def(LSKA_BWD("cpu"));
  m.def(LSKA_CASCADE_FWD("cuda"));  // without an implementation where the CUDA part was not compiled
  m.def(LSKA_FWD("cuda"));
  m.def(LSKA_BWD("cuda"));
  lska_ops::fakes_in(m, "lska_ops.acmix.compiled");
  m.def(ACMIX_CORE_FWD("cpu"));
  m.def(ACMIX_CORE_BWD("cpu"));
  m.def(ACMIX_CORE_FWD("cuda"));
  m.def(ACMIX_CORE_BWD("cuda"));
}

STABLE_TORCH_LIBRARY_IMPL(lska_ops, CompositeExplicitAutograd, m) {
  m.impl("build_info", LSKA_OPS_BOX(&build_info));
}
