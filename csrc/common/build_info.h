// What the library was compiled from, as JSON. The definition is written by build_backend/compile.py.
#pragma once

namespace lska_ops {
extern const char* const kBuildInfo;
}
