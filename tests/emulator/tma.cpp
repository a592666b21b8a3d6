#include <cstring>
#include <stdexcept>

#include "tests/emulator/state.h"

namespace forge::emulator {
namespace {

constexpr std::uint32_t kElementBytes = 2;
constexpr std::uint32_t kPieceRows = 8;  // a box lands in pieces of so many rows, in any order

// Out of bounds: 0.
std::uint16_t element(const TensorMap& map, std::int64_t inner, std::int64_t outer) {
  std::uint16_t bits = 0;
  if (inner >= 0 && static_cast<std::uint64_t>(inner) < map.inner && outer >= 0 &&
      static_cast<std::uint64_t>(outer) < map.outer)
    std::memcpy(&bits,
                static_cast<const std::byte*>(map.base) + static_cast<std::uint64_t>(outer) * map.stride_bytes +
                    inner * kElementBytes,
                kElementBytes);
  return bits;
}

}  // namespace

TensorMap encode_tensor_map(const TensorMap& map) {
  constexpr std::uint32_t kMostBox = 256;
  std::uint32_t row_bytes = map.box_inner * kElementBytes;
  bool valid = reinterpret_cast<std::uintptr_t>(map.base) % 16 == 0 && map.stride_bytes % 16 == 0 &&
               map.box_inner <= kMostBox && map.box_outer <= kMostBox && row_bytes % 16 == 0 &&
               (map.swizzle == Swizzle::none || row_bytes <= 16u << static_cast<int>(map.swizzle));
  if (!valid) throw std::invalid_argument("tensor map violates the rules of cuTensorMapEncodeTiled");
  return map;
}

void Machine::issue_tma(void* dst, const TensorMap& map, std::uint64_t* bar, int x, int y) {
  std::uint32_t address = address_of(dst);
  std::uint32_t row_bytes = map.box_inner * kElementBytes, bytes = row_bytes * map.box_outer;
  std::uint32_t pattern = map.swizzle == Swizzle::none ? 128 : 128u << static_cast<int>(map.swizzle);
  if (address % pattern != 0) violation("TMA destination is not aligned to its swizzle pattern");
  if (!in_shared(address, bytes)) return violation("TMA box runs past the end of shared memory");
  if (!mbarrier(bar, "TMA load").fenced) violation("mbarrier given to TMA without fence.mbarrier_init");
  for (std::size_t line = line_of(address); line <= line_of(address + bytes - 1); ++line) {
    if (line_reading_[line])
      violation("TMA load issued into a stage that wgmma may still be reading (released too early)");
    if (line_landing_[line]) violation("TMA load issued into a stage that another TMA load is still filling");
  }
  for (std::uint32_t row = 0; row < map.box_outer; row += kPieceRows) {
    tma_.push_back({map, address, x, y, row, std::min(kPieceRows, map.box_outer - row), bar});
    for (std::uint32_t r = row; r < row + tma_.back().rows; ++r) ++line_landing_[line_of(address + r * row_bytes)];
  }
}

void Machine::run_tma() {
  std::swap(tma_[random_.below(tma_.size())], tma_.back());
  TmaPiece piece = tma_.back();
  tma_.pop_back();
  std::uint32_t row_bytes = piece.map.box_inner * kElementBytes;
  for (std::uint32_t r = piece.row; r < piece.row + piece.rows; ++r) {
    for (std::uint32_t i = 0; i < piece.map.box_inner; ++i) {
      std::uint16_t bits = element(piece.map, std::int64_t{piece.x} + i, std::int64_t{piece.y} + r);
      std::uint32_t to = piece.dst + r * row_bytes + i * kElementBytes;
      std::memcpy(at(swizzle_address(to, static_cast<int>(piece.map.swizzle))), &bits, kElementBytes);
    }
    std::size_t line = line_of(piece.dst + r * row_bytes);
    line_written_[line] = 1;
    --line_landing_[line];
  }
  MBarrier& b = mbarrier(piece.bar, "TMA completion");
  b.tx -= std::int64_t{piece.rows} * row_bytes;  // of rows out of bounds, too
  complete_phase(b);
}

void tma_load_2d(void* dst, const TensorMap& map, std::uint64_t* bar, int x, int y) {
  machine->maybe_yield();
  machine->issue_tma(dst, map, bar, x, y);
}

}  // namespace forge::emulator
