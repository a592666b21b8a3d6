#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace forge::cpu {

// Hands out pieces of a workspace, each on a cache line. Without a workspace it only measures: the same code lays the
// buffers out and says how many bytes they take.
class Arena {
 public:
  Arena() = default;
  explicit Arena(std::span<std::byte> workspace) {
    auto address = reinterpret_cast<std::uintptr_t>(workspace.data());
    base_ = reinterpret_cast<std::byte*>((address + kAlign - 1) / kAlign * kAlign);
  }

  template <class T>
  T* take(std::int64_t count) {
    std::size_t at = used_;
    used_ = (used_ + static_cast<std::size_t>(count) * sizeof(T) + kAlign - 1) / kAlign * kAlign;
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }

  bool measuring() const { return base_ == nullptr; }
  // With room to align the start.
  std::size_t used() const { return used_ + kAlign; }

 private:
  static constexpr std::size_t kAlign = 64;
  std::byte* base_ = nullptr;
  std::size_t used_ = 0;
};

}  // namespace forge::cpu
