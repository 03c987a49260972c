// How ops are registered and threads share them, so that what they throw is a RuntimeError in Python. PyTorch
// for Linux catches it. PyTorch for Windows is MSVC's and the library MinGW's: an exception of one that comes
// to the other ends the process. So none leaves the library: a thread's waits for the thread that shared the
// work out, and an op's sentence is handed to PyTorch, which throws its own.
#pragma once

#include "csrc/common/torch_api.h"

#ifndef _WIN32

#define LSKA_OPS_BOX(function) TORCH_BOX(function)

namespace lska_ops {
using stable::parallel_for;
}

#else

#include <stdio.h>

#include <exception>
#include <mutex>

#define LSKA_OPS_BOX(function) (&lska_ops::boxed<TORCH_BOX(function)>)

namespace lska_ops {

template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  std::mutex mutex;
  std::exception_ptr thrown;  // any one of them
  stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) noexcept {
    try {
      f(first, last);
    } catch (...) {
      const std::lock_guard lock(mutex);
      thrown = std::current_exception();
    }
  });
  if (thrown) std::rethrow_exception(thrown);
}

using Boxed = void (*)(StableIValue*, uint64_t, uint64_t);
struct Sentence {
  char text[2000];
};

template <Boxed op>
__attribute__((noinline)) bool fails(StableIValue* stack, uint64_t arguments, uint64_t results,
                                     Sentence& why) noexcept {
  try {
    op(stack, arguments, results);
    return false;
  } catch (const std::exception& error) {
    snprintf(why.text, sizeof why.text, "%s", error.what());
  } catch (...) {
    snprintf(why.text, sizeof why.text, "an exception of a type that is not known");
  }
  return true;
}

// PyTorch's exception passes through this frame, so that nothing here may need to be destroyed or caught:
// hence an array for the sentence, and `fails` is not inlined.
template <Boxed op>
void boxed(StableIValue* stack, uint64_t arguments, uint64_t results) {
  Sentence why;
  if (fails<op>(stack, arguments, results, why))
    aoti_torch_check(false, "lska_ops", __FILE__, __LINE__, why.text);
}

}  // namespace lska_ops

#endif
