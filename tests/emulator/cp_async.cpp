#include <cstring>

#include "tests/emulator/state.h"

namespace forge::emulator {
namespace {

constexpr int kCopyBytes = 16;

}  // namespace

void Machine::issue_copy(void* dst, const void* src, int bytes) {
  if (reinterpret_cast<std::uintptr_t>(dst) % kCopyBytes != 0 ||
      reinterpret_cast<std::uintptr_t>(src) % kCopyBytes != 0)
    violation("cp.async is not aligned to 16 bytes");
  if (bytes < 0 || bytes > kCopyBytes) violation("cp.async reads more than its 16 bytes, or less than none");
  if (!in_shared(address_of(dst), kCopyBytes)) return violation("cp.async writes past the end of shared memory");
  Thread& t = self();
  ++t.copies_pending.back();
  copies_.push_back({&t, t.copies_pending.size() - 1, dst, src, bytes});
}

void Machine::run_copy() {
  std::swap(copies_[random_.below(copies_.size())], copies_.back());
  Copy c = copies_.back();
  copies_.pop_back();
  std::memset(c.dst, 0, kCopyBytes);
  std::memcpy(c.dst, c.src, static_cast<std::size_t>(c.bytes));
  --c.thread->copies_pending[c.group];
  if (c.thread->wait == Wait::cp_async_group) wake(*c.thread);  // it looks again itself
}

void cp_async_16(void* dst, const void* src, int bytes) { machine->issue_copy(dst, src, bytes); }

void cp_async_commit() { machine->self().copies_pending.push_back(0); }

void cp_async_wait(int pending) {
  machine->maybe_yield();
  Thread& t = machine->self();
  auto complete = [&] {
    std::size_t committed = t.copies_pending.size() - 1;
    for (std::size_t g = 0; g + static_cast<std::size_t>(pending) < committed; ++g)
      if (t.copies_pending[g] != 0) return false;
    return true;
  };
  while (!complete()) machine->block(Wait::cp_async_group, static_cast<std::uint64_t>(pending));
}

}  // namespace forge::emulator
