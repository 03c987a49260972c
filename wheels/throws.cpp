// An op that throws, for the check that a library for Windows lets no exception out: csrc/common/box.h, as
// the library has it.
#include <new>
#include <string>

#include "csrc/common/box.h"

namespace {

std::string throws(const std::string& what) {
  STD_TORCH_CHECK(what != "sentence", "throws: got ", what, "; expected another");
  if (what == "number") throw 1;
  lska_ops::parallel_for(0, 64, 1, [&](int64_t, int64_t) {
    if (what == "memory") throw std::bad_alloc();
  });
  return what;
}

}  // namespace

STABLE_TORCH_LIBRARY(lska_ops_throws, m) { m.def("throws(str what) -> str"); }

STABLE_TORCH_LIBRARY_IMPL(lska_ops_throws, CompositeExplicitAutograd, m) {
  m.impl("throws", LSKA_OPS_BOX(&throws));
}
