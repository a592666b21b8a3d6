#include <cstring>

#include "forge/base/widen.h"
#include "tests/emulator/state.h"

// Matrix fragments of a warp, by the PTX ISA ("Matrix Fragments for mma.m16n8k16 with floating point type", ldmatrix).
namespace forge::emulator {
namespace {

constexpr std::size_t kRowBytes = 16;

float half_of(std::uint32_t word, int half, bool bf16) {
  auto bits = static_cast<std::uint16_t>(word >> (16 * half));
  return bf16 ? to_float(BFloat16{bits}) : to_float(Float16{bits});
}

void transpose_matrices(Warp& w) {
  for (std::size_t matrix = 0; matrix < 4; ++matrix) {
    std::uint16_t rows[8][8];
    for (std::size_t r = 0; r < 8; ++r) std::memcpy(rows[r], w.row[8 * matrix + r], kRowBytes);
    for (std::size_t lane = 0; lane < 32; ++lane) {
      std::size_t column = lane / 4, row = lane % 4 * 2;
      w.matrices[lane][matrix] = rows[row][column] | static_cast<std::uint32_t>(rows[row + 1][column]) << 16;
    }
  }
}

void multiply(Warp& w, bool bf16) {
  float a[16][16], b[16][8];
  for (std::size_t i = 0; i < 16; ++i)
    for (std::size_t k = 0; k < 16; ++k)
      a[i][k] = half_of(w.a[i % 8 * 4 + k % 8 / 2][i / 8 + 2 * (k / 8)], static_cast<int>(k % 2), bf16);
  for (std::size_t k = 0; k < 16; ++k)
    for (std::size_t j = 0; j < 8; ++j) b[k][j] = half_of(w.b[j * 4 + k % 8 / 2][k / 8], static_cast<int>(k % 2), bf16);
  for (std::size_t i = 0; i < 16; ++i)
    for (std::size_t j = 0; j < 8; ++j) {
      double sum = 0;
      for (std::size_t k = 0; k < 16; ++k) sum += static_cast<double>(a[i][k]) * b[k][j];
      float& d = w.pointer[i % 8 * 4 + j / 2][i / 8 * 2 + j % 2];
      d = static_cast<float>(d + sum);
    }
}

}  // namespace

void ldmatrix_x4_trans(std::uint32_t* result, const void* row) {
  Thread& t = machine->self();
  if (reinterpret_cast<std::uintptr_t>(row) % kRowBytes != 0)
    return machine->violation("ldmatrix reads a row that is not aligned to 16 bytes");
  if (!machine->in_shared(machine->address_of(row), kRowBytes))
    return machine->violation("ldmatrix reads past the end of shared memory");
  auto lane = static_cast<std::size_t>(t.lane);
  t.warp->row[lane] = row;
  t.warp->matrices[lane] = result;
  machine->collective(Collective::ldmatrix, 0, [](Warp& w) { return transpose_matrices(w), true; });
}

void mma_m16n8k16(float* d, const std::uint32_t* a, const std::uint32_t* b, bool bf16) {
  Thread& t = machine->self();
  auto lane = static_cast<std::size_t>(t.lane);
  t.warp->pointer[lane] = d;
  t.warp->a[lane] = a;
  t.warp->b[lane] = b;
  machine->collective(Collective::mma, bf16, [bf16](Warp& w) { return multiply(w, bf16), true; });
}

}  // namespace forge::emulator
