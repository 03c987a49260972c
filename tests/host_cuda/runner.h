// Runs CUDA kernels on the host: the threads of a block are fibers of one OS thread, switched at barriers and
// warp shuffles. Everything CUDA leaves open is chosen badly on purpose: blocks and threads run in an order
// drawn from a seed, shared memory starts as NaN and ends where the launch said (an exact heap block, so
// AddressSanitizer sees a step beyond it), and a block whose threads do not all reach a barrier is an error,
// not a hang.
#pragma once

#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

// The runner's own bookkeeping is not the program under test.
#if defined(__SANITIZE_THREAD__)
#define HOST_CUDA_QUIET __attribute__((no_sanitize("thread"), noinline))
#else
#define HOST_CUDA_QUIET
#endif

namespace host_cuda {

constexpr int kMaxThreads = 1024, kWarp = 32;
constexpr int kWords = 8;                   // that a lane may send to its warp at a time
constexpr int64_t kMostBarriers = 1 << 16;  // of a block; more is a loop without an end
constexpr size_t kStackBytes = 64 << 10;

struct Position {
  int64_t x = 0, y = 0, z = 0;
};

struct Settings {
  unsigned schedule = 0;  // 0 in order, 1 backwards, else a seed
  int64_t max_shared = 232448;
  std::function<bool(int64_t)> only;  // run only the blocks, by their number, for which this is true
};
struct Counters {
  uint64_t loaded = 0, stored = 0, launches = 0, blocks = 0;
  uint64_t weights = 0;  // of the bytes loaded, those that every block loads
};
inline Settings settings;
inline Counters counters;

enum class State : uint8_t { ready, at_barrier, in_shuffle, done };

struct Fiber {
  State state = State::done;
  char* stack = nullptr;
  uint32_t sent[2][kWords] = {};  // to the warp, by turns
#if defined(__x86_64__)
  void* sp = nullptr;
#else
  ucontext_t context;
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
#if defined(__SANITIZE_THREAD__)
  void* tsan = nullptr;
#endif
};

struct Block {
  Fiber fibers[kMaxThreads], scheduler;
  int threads = 0, current = 0, waiting = 0, done = 0;
  int arrived[kMaxThreads / kWarp] = {}, turn[kMaxThreads / kWarp] = {};
  Position at, grid;
  void* shared = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::string error;
  // For ThreadSanitizer, by turns: a thread that is already at the next barrier must not pass on what it did
  // since.
  char start_tag = 0, barrier_tags[2] = {}, warp_tags[2][kMaxThreads / kWarp] = {};
  int phase = 0;
#if defined(__SANITIZE_ADDRESS__)
  const void* scheduler_bottom = nullptr;
  size_t scheduler_size = 0;
#endif
};
inline Block& the_block() {
  static Block* const block = new Block;
  return *block;
}

#if defined(__x86_64__)
// Saves what a call must preserve on the stack and continues where `to` was saved.
extern "C" void host_cuda_switch(void** save, void* to);
asm(R"(
.text
.weak host_cuda_switch
.type host_cuda_switch, @function
host_cuda_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size host_cuda_switch, . - host_cuda_switch
)");
#endif

HOST_CUDA_QUIET inline void jump(Fiber& from, Fiber& to) {
#if defined(__x86_64__)
  host_cuda_switch(&from.sp, to.sp);
#else
  swapcontext(&from.context, &to.context);
#endif
}

HOST_CUDA_QUIET inline void to_scheduler() {
  Block& b = the_block();
  Fiber& f = b.fibers[b.current];
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(f.state == State::done ? nullptr : &f.fake_stack, b.scheduler_bottom,
                                 b.scheduler_size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(b.scheduler.tsan, __tsan_switch_to_fiber_no_sync);
#endif
  jump(f, b.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(f.fake_stack, nullptr, nullptr);
#endif
}

HOST_CUDA_QUIET inline void to_fiber(int thread) {
  Block& b = the_block();
  Fiber& f = b.fibers[thread];
  b.current = thread;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&b.scheduler.fake_stack, f.stack, kStackBytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(f.tsan, __tsan_switch_to_fiber_no_sync);
#endif
  jump(b.scheduler, f);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(b.scheduler.fake_stack, nullptr, nullptr);
#endif
}

HOST_CUDA_QUIET inline void run_thread() {
  Block& b = the_block();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &b.scheduler_bottom, &b.scheduler_size);
#endif
  try {
    (*b.kernel)();
  } catch (const std::exception& e) {
    b.error = e.what();
  }
  b.fibers[b.current].state = State::done;
  ++b.done;
  to_scheduler();
  __builtin_trap();
}

HOST_CUDA_QUIET inline void start(Fiber& f) {
  if (!f.stack) {
    f.stack = static_cast<char*>(
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (f.stack == MAP_FAILED) throw std::runtime_error("host_cuda: no memory for a fiber's stack");
  }
  f.state = State::ready;
#if defined(__x86_64__)
  void** sp = reinterpret_cast<void**>(f.stack + kStackBytes);
  *--sp = nullptr;  // a call would have left a return address: keeps the stack aligned as the ABI wants it
  *--sp = reinterpret_cast<void*>(&run_thread);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  f.sp = sp;
#else
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack;
  f.context.uc_stack.ss_size = kStackBytes;
  makecontext(&f.context, run_thread, 0);
#endif
#if defined(__SANITIZE_THREAD__)
  if (!f.tsan) f.tsan = __tsan_create_fiber(0);
#endif
}

// What happened before in all threads happens before what follows in all: for ThreadSanitizer.
HOST_CUDA_QUIET inline void release(void* tag) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(tag);
#endif
  (void)tag;
}
HOST_CUDA_QUIET inline void acquire(void* tag) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(tag);
#endif
  (void)tag;
}
// Calls `f` on the start's tag as if every thread of the block did, so that one block's accesses are ordered
// with the next one's.
HOST_CUDA_QUIET inline void in_every_thread(void (*f)(void*)) {
#if defined(__SANITIZE_THREAD__)
  Block& b = the_block();
  for (int i = 0; i < b.threads; ++i) {
    __tsan_switch_to_fiber(b.fibers[i].tsan, __tsan_switch_to_fiber_no_sync);
    f(&b.start_tag);
    __tsan_switch_to_fiber(b.scheduler.tsan, __tsan_switch_to_fiber_no_sync);
  }
#else
  (void)f;
#endif
}

HOST_CUDA_QUIET inline void run_block(const std::vector<int>& order) {
  Block& b = the_block();
  b.waiting = b.done = 0;
  b.error.clear();
  std::memset(b.arrived, 0, sizeof b.arrived);
  std::memset(b.turn, 0, sizeof b.turn);
  for (int i = 0; i < b.threads; ++i) start(b.fibers[i]);
  release(&b.start_tag);
  in_every_thread(acquire);
  int64_t barriers = 0;
  while (b.done < b.threads) {
    bool moved = false;
    for (int i : order) {
      if (b.fibers[i].state != State::ready) continue;
      to_fiber(i);
      moved = true;
      if (!b.error.empty()) throw std::runtime_error("host_cuda: " + b.error);
    }
    if (b.waiting && b.waiting + b.done == b.threads) {
      if (++barriers > kMostBarriers) throw std::runtime_error("host_cuda: a block that does not end");
      if (b.done)
        throw std::runtime_error("host_cuda: divergent barrier: " + std::to_string(b.done) +
                                 " threads have ended, " + std::to_string(b.waiting) + " wait");
      for (int i = 0; i < b.threads; ++i) b.fibers[i].state = State::ready;
      b.waiting = 0;
      b.phase ^= 1;
    } else if (!moved) {
      throw std::runtime_error("host_cuda: deadlock: a warp shuffle that not all lanes reach");
    }
  }
  in_every_thread(release);
  acquire(&b.start_tag);
}

inline std::vector<int> thread_order(int threads, unsigned schedule, int64_t block) {
  std::vector<int> order(threads);
  std::iota(order.begin(), order.end(), 0);
  if (schedule == 1) std::reverse(order.begin(), order.end());
  if (schedule > 1)
    std::shuffle(order.begin(), order.end(), std::mt19937(schedule + unsigned(block) * 7919u));
  return order;
}

inline void check_launch(Position grid, int threads, int64_t shared) {
  const auto wrong = [](const std::string& what) { throw std::runtime_error("host_cuda: launch: " + what); };
  if (threads < 1 || threads > kMaxThreads || threads % kWarp)
    wrong(std::to_string(threads) + " threads; expected whole warps, 1024 at most");
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    wrong("a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
          std::to_string(grid.z));
  if (shared > settings.max_shared)
    wrong(std::to_string(shared) + " bytes of shared memory; expected " +
          std::to_string(settings.max_shared) + " at most");
}

inline void run(Position grid, int threads, int64_t shared, const std::function<void()>& kernel) {
  check_launch(grid, threads, shared);
  Block& b = the_block();
  b.threads = threads;
  b.grid = grid;
  b.kernel = &kernel;
#if defined(__SANITIZE_THREAD__)
  b.scheduler.tsan = __tsan_get_current_fiber();
#endif
  const int64_t blocks = grid.x * grid.y * grid.z;
  ++counters.launches;
  std::mt19937 draw(settings.schedule);
  const int64_t shift = settings.schedule > 1 ? int64_t(draw() % uint64_t(blocks)) : 0;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t n = settings.schedule == 1 ? blocks - 1 - i : (i + shift) % blocks;
    if (settings.only && !settings.only(n)) continue;
    b.at = {n % grid.x, n / grid.x % grid.y, n / grid.x / grid.y};
    void* memory = nullptr;
    if (shared && posix_memalign(&memory, 16, size_t(shared))) throw std::bad_alloc();
    struct Freed {
      void* p;
      ~Freed() { std::free(p); }
    } freed{memory};
    if (shared) std::memset(memory, 0xff, size_t(shared));
    b.shared = memory;
    ++counters.blocks;
    run_block(thread_order(threads, settings.schedule, n));
  }
}

// Whoever runs launches in place of the fibers: tests/ptx does, with what nvcc has made of the kernels. A
// kernel is told by its place in this library, whose symbols are hidden. Returns null, or what went wrong.
using TakesOver = const char* (*)(int64_t kernel, int64_t x, int64_t y, int64_t z, int threads,
                                  int64_t shared, const void* arguments, int64_t argument_bytes);
inline TakesOver takes_over = nullptr;

inline int64_t place_in_library(const void* function) {
  Dl_info library;
  if (!dladdr(function, &library)) throw std::runtime_error("host_cuda: a kernel of no library");
  return static_cast<const char*>(function) - static_cast<const char*>(library.dli_fbase);
}

// What a launch comes to.
template <class Arguments>
void launch(void (*kernel)(Arguments), Position grid, int threads, int64_t shared,
            const Arguments& arguments) {
  if (!takes_over) return run(grid, threads, shared, [&] { kernel(arguments); });
  check_launch(grid, threads, shared);
  ++counters.launches;
  const int64_t place = place_in_library(reinterpret_cast<const void*>(kernel));
  const char* problem =
      takes_over(place, grid.x, grid.y, grid.z, threads, shared, &arguments, sizeof arguments);
  if (problem) throw std::runtime_error(problem);
}

HOST_CUDA_QUIET inline int thread_index() { return the_block().current; }
HOST_CUDA_QUIET inline int thread_count() { return the_block().threads; }
HOST_CUDA_QUIET inline Position block() { return the_block().at; }
HOST_CUDA_QUIET inline Position grid() { return the_block().grid; }
HOST_CUDA_QUIET inline void* shared_memory() { return the_block().shared; }

HOST_CUDA_QUIET inline void barrier() {
  Block& b = the_block();
  b.fibers[b.current].state = State::at_barrier;
  ++b.waiting;
  void* const tag = &b.barrier_tags[b.phase];
  release(tag);
  to_scheduler();
  acquire(tag);
}

// What the lanes of a warp have sent each other.
struct WarpWords {
  const Fiber* lanes;
  int turn;
  HOST_CUDA_QUIET uint32_t operator()(int lane, int word) const { return lanes[lane].sent[turn][word]; }
};

// Sends `count` words to the warp and waits for those of all other lanes.
HOST_CUDA_QUIET inline WarpWords exchange(const uint32_t* words, int count) {
  Block& b = the_block();
  const int me = b.current, warp = me / kWarp, turn = b.turn[warp];
  for (int i = 0; i < count; ++i) b.fibers[me].sent[turn][i] = words[i];
  release(&b.warp_tags[turn][warp]);
  if (++b.arrived[warp] == kWarp) {
    b.arrived[warp] = 0;
    b.turn[warp] ^= 1;
    for (int i = 0; i < kWarp; ++i) b.fibers[warp * kWarp + i].state = State::ready;
  } else {
    b.fibers[me].state = State::in_shuffle;
    to_scheduler();
  }
  acquire(&b.warp_tags[turn][warp]);
  return {b.fibers + warp * kWarp, turn};
}

HOST_CUDA_QUIET inline float shuffle_xor(float v, int mask) {
  uint32_t word;
  std::memcpy(&word, &v, sizeof word);
  word = exchange(&word, 1)(the_block().current % kWarp ^ mask, 0);
  std::memcpy(&v, &word, sizeof v);
  return v;
}

HOST_CUDA_QUIET inline void count_load(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) throw std::runtime_error("a load that is not aligned");
  counters.loaded += bytes;
}
HOST_CUDA_QUIET inline void count_weight(const void* p, size_t bytes) {
  count_load(p, bytes);
  counters.weights += bytes;
}
HOST_CUDA_QUIET inline void count_store(const void* p, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) throw std::runtime_error("a store that is not aligned");
  counters.stored += bytes;
}

}  // namespace host_cuda
