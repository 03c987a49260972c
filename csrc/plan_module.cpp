// lska_ops._plan: what Python needs to know of the compiled code, without torch.
#include <pybind11/pybind11.h>

#include "csrc/common/build_info.h"

PYBIND11_MODULE(_plan, m) {
  m.doc() = "What lska_ops was compiled from; needs no torch.";
  m.def(
      "build_info", [] { return pybind11::module_::import("json").attr("loads")(lska_ops::kBuildInfo); },
      "The compiler, its flags, the instruction sets and CUDA architectures, torch's headers and a hash of "
      "csrc/.");
}
