#include "tests/emulator/state.h"

namespace forge::emulator {
namespace {

// Fills the word of an mbarrier in memory; its state lives in the machine.
constexpr std::uint64_t kMbarrierWord = 0x6D62617272696572u;

constexpr std::byte kUnwritten{0xFF};  // of which a bf16 and an fp32 are NaN

}  // namespace

void Machine::clear_shared(std::size_t bytes) {
  shared_bytes_ = bytes;
  if (bytes > kSharedLimit) violation("dynamic shared memory exceeds 227 KB");
  constexpr std::size_t kAlignment = 1024;  // of the widest swizzle pattern
  storage_.assign(bytes + kCanaryBytes + kAlignment, kUnwritten);
  shared_ =
      storage_.data() + (kAlignment - reinterpret_cast<std::uintptr_t>(storage_.data()) % kAlignment) % kAlignment;
  std::size_t lines = (bytes + kLineBytes - 1) / kLineBytes;
  line_written_.assign(lines, 0);
  line_landing_.assign(lines, 0);
  line_reading_.assign(lines, 0);
}

void Machine::look_at_shared() {
  const std::byte* behind = shared_ + shared_bytes_;
  if (!std::all_of(behind, behind + kCanaryBytes, [](std::byte b) { return b == kUnwritten; }))
    violation("write past the end of dynamic shared memory");
  for (const auto& [bar, state] : mbarriers_)
    if (state.index >= 0 && *bar != kMbarrierWord) violation("an ordinary store overwrote an mbarrier");
}

std::uint32_t Machine::address_of(const void* p) {
  auto offset = static_cast<const std::byte*>(p) - shared_;
  if (offset < 0 || static_cast<std::size_t>(offset) >= shared_bytes_) {
    violation("shared address outside the dynamic buffer");
    return kSharedBase;
  }
  return kSharedBase + static_cast<std::uint32_t>(offset);
}

void* dynamic_shared() { return machine->shared(); }
std::uint32_t shared_address(const void* p) { return machine->address_of(p); }

void Machine::init_mbarrier(std::uint64_t* bar, std::uint32_t count) {
  address_of(bar);
  if (mbarriers_.contains(bar)) violation("mbarrier initialised twice");
  MBarrier& b = mbarriers_[bar];
  b.index = static_cast<int>(mbarriers_.size()) - 1;
  b.expected = b.pending = count;
  b.init_thread = self().id, b.init_epoch = self().epoch;
  *bar = kMbarrierWord;
}

}  // namespace forge::emulator
