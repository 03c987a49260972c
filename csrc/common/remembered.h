// Plans that take longer to make than to use.
#pragma once

#include <map>

namespace lska_ops {

// make() of what is in `key`, on which alone it must depend. Each thread has a memory of up to 256
// answers for each type of `make`, and begins anew when it is full.
template <class Key, class Make>
auto remembered(const Key& key, const Make& make) {
  static thread_local std::map<Key, decltype(make())> known;
  if (const auto found = known.find(key); found != known.end()) return found->second;
  if (known.size() >= 256) known.clear();
  return known.emplace(key, make()).first->second;
}

}  // namespace lska_ops
